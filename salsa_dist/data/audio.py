"""The one decoder and the one resampler: audio files to mono float32 arrays, and to FLAC.

    file or bytes ──channels──► (samples, channels) ──mono──► (samples,) ──resample──► (samples,)
       │                    float32 in [-1, 1], rate in Hz
       └─────mono_blocks──► (samples,) (samples,) …  ten seconds each ──resample_blocks──► (samples,) …

soundfile decodes wav, flac, ogg and mp3 in process, soxr resamples. `mono_blocks` also takes m4a, mp4,
webm, amr, wma … where PyAV is installed. Their kind is told by the first bytes, and PyAV gets no other
demuxer to choose: FFmpeg's playlists and subtitles, which can name other files and addresses, are never
tried. `shards.py` and `audio_input.py` stand on this module.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from salsa_dist.data import mp3_length
from salsa_dist.data.audio_header import HEAD, bytes_claimed, has_end, sound_behind
from salsa_dist.errors import UserError

Audio = npt.NDArray[np.float32]
Source = str | Path | bytes | memoryview  # a path, or the bytes of a file
Fault = Literal["audio", "length", "rate"]
OVERSHOOT_S = 0.1
BLOCK_S = 10
RATES = (4_000, 384_000)  # Hz, lowest and highest that is read
MAX_SECONDS = 600.0  # that are decoded at once; a few bytes of FLAC can claim hours of silence
MAX_VALUES = 1 << 26  # channels times samples: 600 s of 48 kHz stereo fit


class Container(NamedTuple):
    """An audio format: file ending, FFmpeg's name of its demuxer, marks from byte `start` on."""

    called: str
    demuxer: str
    start: int
    marks: tuple[bytes, ...]


_CONTAINERS = (
    Container("m4a, mp4 or mov", "mov", 4, (b"ftyp", b"moov", b"mdat", b"wide")),
    Container("webm or mkv", "matroska", 0, (b"\x1aE\xdf\xa3",)),
    Container("amr", "amr", 0, (b"#!AMR",)),
    Container("wma", "asf", 0, (b"0&\xb2u\x8ef\xcf\x11",)),
    Container("aac", "aac", 0, (b"\xff\xf1", b"\xff\xf9", b"\xff\xf0", b"\xff\xf8")),
    Container("ac3", "ac3", 0, (b"\x0bw",)),
    Container("flv", "flv", 0, (b"FLV\x01",)),
)
SUFFIXES = (  # of files that `mono_blocks` takes: those of soundfile, then those of PyAV
    *("wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "caf", "w64"),
    *("m4a", "mp4", "m4b", "mov", "3gp", "webm", "mkv", "mka", "weba"),
    *("amr", "wma", "aac", "ac3", "flv"),
)
# An mp3 or a container whose end is missing by more than this is cut off: their headers round.
_MISSING_S, _MISSING_SHARE = 1.0, 0.02


class BadAudio(UserError):
    """Audio that can't be used: `what` is wrong, and its kind.

    `kind` is `audio` (unreadable, cut off, not finite, without samples or the part asked for),
    `length` or `rate` (out of bounds).
    """

    def __init__(self, name: str, what: str, kind: Fault = "audio") -> None:
        super().__init__(f"{name} {what}: fix or remove it")
        self.what, self.kind = what, kind


def mono(several: Audio) -> Audio:
    """The mean `(samples,)` of `(samples, channels)`."""
    one = several[:, 0] if several.shape[1] == 1 else several.mean(axis=1, dtype=np.float32)
    return np.ascontiguousarray(one)


def channels(
    source: Source,
    name: str | None = None,
    start: float = 0.0,
    end: float | None = None,
    channel: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> tuple[Audio, int]:
    """Decode `source` at its own rate: `(samples, channels)` float32, and the rate in Hz.

    Args:
        source: path, or the bytes of a file.
        name: what errors call it.
        start, end: seconds; the part that is read. None: to the end.
        channel: the only one that is kept, from 0; None: all.
        max_seconds: a longer part is refused unread, whatever a header claims.

    Raises:
        BadAudio: unreadable, empty, with samples or times that are not finite, too long, or without
            that part or channel.
    """
    in_memory = isinstance(source, (bytes, memoryview))
    name = name or ("audio in memory" if in_memory else str(source))
    with _opened(source, name) as file:
        rate = _checked_rate(int(file.samplerate), name)
        first, last = _part(name, file.frames, rate, start, end)
        if last - first > max_seconds * rate:
            raise BadAudio(name, f"has more than {max_seconds:g} s", "length")
        if (last - first) * file.channels > MAX_VALUES:
            what = f"has {last - first} samples in {file.channels} channels, too many"
            raise BadAudio(name, what, "length")
        if channel is not None and not 0 <= channel < file.channels:
            raise BadAudio(name, f"has {file.channels} channels, no channel {channel}")
        if first:
            file.seek(first)
        # Only what the header claims, which is bounded now, whatever the file expands to.
        several: Audio = file.read(last - first, dtype="float32", always_2d=True)
        whole_numbers = file.subtype.startswith("PCM_")  # never NaN, nor infinite
        if file.format == "FLAC":
            _whole(len(several), last - first, name)
        elif file.format == "MP3":
            _nearly_whole(len(several), last - first, rate, name)
    if not len(several):
        raise BadAudio(name, "holds no audio")
    if channel is not None:
        several = several[:, channel : channel + 1]
    return (several if whole_numbers else finite(several, name)), rate


def mono_blocks(file: IO[bytes], name: str) -> Iterator[tuple[Audio, int]]:
    """The mean of an open file's channels in blocks `(samples,)`, and the rate in Hz.

    Of a container it is the first audio track.

    Raises:
        BadAudio: it is damaged, cut off or without an audio track.
        UserError: it needs PyAV, which is not installed.
    """
    file.seek(0)
    head = file.read(HEAD)
    container = container_of(head)
    size = file.seek(0, os.SEEK_END)
    ends, goes_on = has_end(file, head), sound_behind(file, head)
    file.seek(0)
    if container is not None:
        yield from _by_pyav(file, container, name)
        return
    # By its descriptor or the file itself, never by a name that soundfile would have to encode.
    with _opened(file, name) as opened:
        rate, claimed, got = int(opened.samplerate), opened.frames, 0
        while len(part := opened.read(BLOCK_S * max(rate, 1), dtype="float32", always_2d=True)):
            got += len(part)
            yield mono(part), rate
        if opened.format == "FLAC" and claimed < 1 << 40:  # a stream's header claims no end
            _whole(got, claimed, name)
        elif opened.format == "MP3":
            _nearly_whole(got, claimed, rate, name)
        elif not ends:
            raise BadAudio(name, f"is cut off after {got / rate:.2f} s: its last page is no end")
        elif goes_on:
            what = f"goes on behind the {got / rate:.2f} s that its header claims"
            raise BadAudio(name, what)
        elif (claimed_bytes := bytes_claimed(head) or 0) > size:
            missing = got * (claimed_bytes - size) // size
            if missing > OVERSHOOT_S * rate:
                _whole(got, got + missing, name)


def gsm(path: Path) -> tuple[Audio, int]:
    """Decode a file of GSM 06.10 frames, which has no header: `(samples,)` float32, and 8,000 Hz.

    Raises:
        BadAudio: unreadable or empty.
    """
    try:
        samples, rate = soundfile.read(
            os.fsencode(path),
            dtype="float32",
            format="RAW",
            subtype="GSM610",
            samplerate=8_000,
            channels=1,
        )
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as e:
        raise _unreadable(str(path), e) from e
    if not len(samples):
        raise BadAudio(str(path), "holds no audio")
    return samples, rate


def finite(audio: Audio, name: str) -> Audio:
    """The same audio. Raises: BadAudio: a sample is not finite."""
    if not np.isfinite(audio).all():
        raise BadAudio(name, "holds NaN or infinite samples")
    return audio


def header_seconds(path: str | Path) -> float | None:
    """Length of a file by its header; None: soundfile cannot read it."""
    try:
        return float(soundfile.info(os.fsencode(path)).duration)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return None


def kind_of(raw: bytes) -> str:
    """The format of a file's bytes, as a file ending. Raises: BadAudio."""
    with _opened(raw, "audio in memory") as file:
        return {"MPEG": "mp3", "WAVEX": "wav"}.get(file.format, file.format.lower())


def flac(audio: Audio, rate: int) -> bytes:
    """Encode `(samples,)` float32 at `rate` Hz as 16-bit FLAC; values beyond [-1, 1] are clipped."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(audio, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def resample(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """`(samples,)` at `from_hz` to `(samples · to_hz / from_hz,)`."""
    if from_hz == to_hz:
        return audio
    return np.ascontiguousarray(soxr.resample(audio, from_hz, to_hz), dtype=np.float32)


def resample_blocks(parts: Iterable[tuple[Audio, int]], to_hz: int, name: str) -> Iterator[Audio]:
    """`resample` of one recording in blocks of `(samples,)` and Hz: the same samples, in blocks.

    Raises:
        BadAudio: its rate is out of bounds, or changes.
    """
    stream, from_hz = None, None
    for block, rate in parts:
        if from_hz is None:
            from_hz = _checked_rate(rate, name)
            if rate != to_hz:
                stream = soxr.ResampleStream(rate, to_hz, 1, dtype="float32")
        if rate != from_hz:
            raise BadAudio(name, f"changes its rate from {from_hz} to {rate} Hz", "rate")
        if len(made := block if stream is None else stream.resample_chunk(block)):
            yield made
    if stream and len(made := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield made


def resampler() -> str:
    """The resampler's name and version, for the recipe of whatever is built with it."""
    return f"soxr {soxr.__version__}"


@contextmanager
def _opened(source: Source | IO[bytes], name: str) -> Iterator[soundfile.SoundFile]:
    """Open a file with soundfile. Raises: BadAudio, with soundfile's message."""
    if isinstance(source, (bytes, memoryview)):
        source = io.BytesIO(source)
    elif isinstance(source, (str, Path)):
        source = os.fsencode(source)
    try:
        with ExitStack() as closed_after:
            file = closed_after.enter_context(soundfile.SoundFile(source))
            if file.format == "MP3":
                raw = closed_after.enter_context(_open_file(source))
                at = raw.tell()
                if whole := mp3_length.stated(raw, file.frames):
                    file = closed_after.enter_context(soundfile.SoundFile(whole))
                else:
                    raw.seek(at)  # where soundfile left it
            yield file
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError) as e:
        raise _unreadable(name, e, _head(source)) from e


def _open_file(source: bytes | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """The file with the path `source`, opened; or `source`, which is open and stays so."""
    return open(source, "rb") if isinstance(source, bytes) else nullcontext(source)


def _head(source: bytes | IO[bytes]) -> bytes:
    """The first bytes of an open file, or of that with the path `source`."""
    try:
        with _open_file(source) as file:
            file.seek(0)
            return file.read(HEAD)
    except (OSError, ValueError):
        return b""


def _unreadable(name: str, error: Exception, head: bytes = b"") -> BadAudio:
    if isinstance(error, soundfile.SoundFileError) and (kind := container_of(head)):
        return BadAudio(name, f"is {kind.called} audio, which is not read here (make it FLAC)")
    said = " ".join(str(error).split())
    # soundfile's text begins with the name, or with the object that has none.
    said = said.partition(": ")[2] if said.startswith("Error opening") else said
    return BadAudio(name, f"can't be read as audio ({said})")


def _checked_rate(rate: int, name: str) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise BadAudio(name, f"has a rate of {rate} Hz, not one from {RATES[0]} to {RATES[1]}", "rate")
    return rate


def _whole(got: int, claimed: int, name: str) -> None:
    if got < claimed:
        raise BadAudio(name, f"is cut off: it has {got} of {claimed} samples")


def _nearly_whole(got: int, claimed: int, rate: int, name: str) -> None:
    if got < claimed - max(_MISSING_S * rate, _MISSING_SHARE * claimed):
        _whole(got, claimed, name)


def _part(name: str, frames: int, rate: int, start: float, end: float | None) -> tuple[int, int]:
    """First frame and the one behind the last; annotations may overshoot the end by a little."""
    asked = (start * rate, frames if end is None else end * rate)
    if not all(map(math.isfinite, asked)):
        raise BadAudio(name, f"has no part from {start} s to {end} s, which is not finite")
    first, last = map(round, asked)
    if frames and (not 0 <= first < last or last > frames + OVERSHOOT_S * rate):
        until = "its end" if end is None else f"{end:g} s"
        raise BadAudio(name, f"has {frames / rate:g} s, no part from {start:g} s to {until}")
    return first, min(last, frames)


def container_of(head: bytes) -> Container | None:
    """The format of a file by its first bytes; None: PyAV does not decode it here."""
    return next((c for c in _CONTAINERS if head.startswith(c.marks, c.start)), None)


def _by_pyav(file: IO[bytes], kind: Container, name: str) -> Iterator[tuple[Audio, int]]:
    try:
        import av
    except ImportError as e:
        raise UserError(
            f"{name} is {kind.called} audio, which needs PyAV: pip install 'salsa-dist[codecs]'"
        ) from e
    decoded, claimed, rate = 0, 0, 0
    try:
        with av.open(file, "r", kind.demuxer, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise BadAudio(name, "holds no audio")
            track = container.streams.audio[0]
            floats = None
            for frame in container.decode(track):
                if floats is None or frame.sample_rate != rate:
                    rate = frame.sample_rate
                    floats = av.AudioResampler(format="fltp")  # keeps rate and channels
                    claimed = round(_seconds(container, track) * rate)
                for made in floats.resample(frame):
                    own: npt.NDArray[Any] = made.to_ndarray()
                    decoded += own.shape[1]
                    yield own.mean(axis=0, dtype=np.float32), rate
    except (av.FFmpegError, OSError, ValueError) as e:
        raise _unreadable(name, e) from e
    _nearly_whole(decoded, claimed, rate, name)


def _seconds(container: Any, track: Any) -> float:
    """Length of a track by its header; 0: unknown. Matroska tells that of the longest track only."""
    if track.duration and track.time_base:
        return float(track.duration * track.time_base)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else 0.0
