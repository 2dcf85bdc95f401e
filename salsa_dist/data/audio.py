"""Audio files outside shards to mono float32 arrays; `shards.py` decodes the clips of shards.

    file or bytes ──channels──► (samples, channels) ──mono──► (samples,) ──resample──► (samples,)
                            float32 in [-1, 1], rate in Hz

soundfile decodes wav, flac, ogg and mp3 in process, soxr resamples; starting a program per clip is
slow, and torchaudio fits few versions of torch. For what transcription takes, see `audio_input.py`.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from salsa_dist.errors import UserError

Audio = npt.NDArray[np.float32]
OVERSHOOT_S = 0.1
RATES = (4_000, 384_000)  # Hz, lowest and highest that is read


def mono(several: Audio) -> Audio:
    """The mean `(samples,)` of `(samples, channels)`."""
    one = several[:, 0] if several.shape[1] == 1 else several.mean(axis=1, dtype=np.float32)
    return np.ascontiguousarray(one)


def channels(
    source: str | Path | bytes,
    name: str | None = None,
    start: float = 0.0,
    end: float | None = None,
    channel: int | None = None,
    max_seconds: float | None = None,
) -> tuple[Audio, int]:
    """`source` as it was recorded: `(samples, channels)` float32, and its rate in Hz.

    Args:
        source: path, or the bytes of a file.
        name: what errors call it.
        start, end: seconds; the part that is read. None: to the end.
        channel: the only one that is kept, from 0; None: all.
        max_seconds: a longer part is refused unread, whatever a header claims.

    Raises:
        UserError: unreadable, empty, with samples or times that are not finite, too long, or without
            that part or channel.
    """
    name = name or ("audio in memory" if isinstance(source, bytes) else str(source))
    opened = io.BytesIO(source) if isinstance(source, bytes) else os.fsencode(source)
    try:
        with soundfile.SoundFile(opened) as file:
            rate = int(file.samplerate)
            first, last = _part(name, file.frames, rate, start, end)
            if max_seconds is not None and last - first > max_seconds * rate:
                raise UserError(f"{name} is longer than {max_seconds:g} s: cut or drop it")
            if channel is not None and not 0 <= channel < file.channels:
                raise UserError(f"{name} has {file.channels} channels, no channel {channel}")
            if first:
                file.seek(first)
            several: Audio = file.read(last - first, dtype="float32", always_2d=True)
            cut_off = file.format == "FLAC" and len(several) < last - first
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"{name} can't be read as audio ({reason}): fix or remove it") from e
    if not len(several):
        raise UserError(f"{name} holds no audio: drop it")
    if cut_off:
        raise UserError(f"{name} is cut off: {len(several)} of {last - first} samples; drop it")
    if channel is not None:
        several = several[:, channel : channel + 1]
    if not np.isfinite(several).all():
        raise UserError(f"{name} holds NaN or infinite samples: fix or remove it")
    return several, rate


def _part(name: str, frames: int, rate: int, start: float, end: float | None) -> tuple[int, int]:
    """First frame and the one behind the last; annotations may overshoot the end by a little."""
    asked = (start * rate, frames if end is None else end * rate)
    if not all(map(math.isfinite, asked)):
        raise UserError(f"{name}: a part from {start} s to {end} s is no part: give finite seconds")
    first, last = map(round, asked)
    if frames and (not 0 <= first < last or last > frames + OVERSHOOT_S * rate):
        until = "its end" if end is None else f"{end:g} s"
        raise UserError(
            f"{name} has {frames / rate:g} s, no part from {start:g} s to {until}: fix or remove it"
        )
    return first, min(last, frames)


def resample(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """`(samples,)` at `from_hz` to `(samples · to_hz / from_hz,)`."""
    if from_hz == to_hz:
        return audio
    return np.ascontiguousarray(soxr.resample(audio, from_hz, to_hz), dtype=np.float32)


def resample_blocks(blocks: Iterable[Audio], from_hz: int, to_hz: int) -> Iterator[Audio]:
    """`resample` of one recording that comes in blocks `(samples,)`: the same samples, in blocks."""
    if from_hz == to_hz:
        yield from (block for block in blocks if len(block))
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
    for block in blocks:
        if len(made := stream.resample_chunk(block)):
            yield made
    if len(made := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield made


def resampler() -> str:
    """What resamples; belongs into the recipe of whatever is built with it."""
    return f"soxr {soxr.__version__}"
