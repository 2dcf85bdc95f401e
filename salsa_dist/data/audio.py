"""Audio files to mono float32 arrays: decoding, mixing down, resampling.

    file or bytes ──decode──► (samples,) float32 in [-1, 1], rate in Hz ──resample──► (samples,)

soundfile decodes wav, flac, ogg and mp3 in process; starting a program per clip is slow, and
torchaudio's own reader wants a library as choosy about torch as torchaudio itself.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from salsa_dist import torchaudio_guard
from salsa_dist.errors import UserError

Audio = npt.NDArray[np.float32]


def decode(source: str | Path | bytes, name: str | None = None) -> tuple[Audio, int]:
    """`source` as mono: `(samples,)` float32, and its rate in Hz. `name` is what errors call it."""
    name = name or ("audio in memory" if isinstance(source, bytes) else str(source))
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        channels, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"{name} can't be read as audio ({reason}): mend or drop it") from None
    audio = channels.mean(axis=1, dtype=np.float32)
    if not len(audio):
        raise UserError(f"{name} holds no audio: drop it")
    if not np.isfinite(audio).all():
        raise UserError(f"{name} holds NaN or infinite samples: mend or drop it")
    return audio, int(rate)


def resample(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """`(samples,)` at `from_hz` to `(samples · to_hz / from_hz,)`; `resampler()` says by what."""
    if from_hz == to_hz:
        return audio
    if torchaudio_guard.works():
        import torch
        from torchaudio.functional import resample as by_torchaudio

        changed = by_torchaudio(torch.from_numpy(audio), from_hz, to_hz).numpy()
    else:
        changed = soxr.resample(audio, from_hz, to_hz)
    return np.ascontiguousarray(changed, dtype=np.float32)


def resampler() -> str:
    """What `resample` uses on this machine; belongs into the recipe of whatever is built with it."""
    if torchaudio_guard.works():
        return f"torchaudio {torchaudio_guard.status()}"
    return f"soxr {soxr.__version__}"


def read_audio(path: str | Path, rate: int = 16_000) -> Audio:
    """The clip at `path` as mono `(samples,)` float32 at `rate` Hz."""
    audio, from_hz = decode(path)
    return resample(audio, from_hz, rate)
