"""Any kind of audio input, as mono float32 at 16,000 Hz, block by block.

    "clip.ogg"  Path  b"RIFF…"  open file ─┐
    (array, 8000)  array  tensor           ├─ blocks ─► (samples,) (samples,) …  ten seconds each
    {"array", "sampling_rate"}  {"raw", …} ┘

A recording of hours takes no more memory than one of seconds, and its samples are those that it has
when it is read whole. `audio.py` decodes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from salsa_dist.data import audio
from salsa_dist.data.audio import BLOCK_S, Audio, BadAudio, finite, mono, mono_blocks, resample_blocks
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.errors import UserError

SUFFIXES = frozenset(audio.SUFFIXES)  # of files that are looked for in a folder
_ADVICE = (
    "give a path, bytes, an open file, an array at 16,000 Hz, (array, rate), or a dict with 'array' or "
    "'raw' and 'sampling_rate'"
)


def name_of(source: Any) -> str:
    """The name of an input in errors and results: its path, or its kind."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, Mapping) and isinstance(source.get("path"), str):
        return str(source["path"])
    named = getattr(source, "name", None)
    return named if isinstance(named, str) else f"audio in memory ({type(source).__name__})"


def blocks(source: Any, name: str | None = None) -> Iterator[Audio]:
    """`(samples,)` float32 at 16,000 Hz, some ten seconds a block, none of them empty.

    Args:
        source: a path; the bytes of a file or the open file; `(array, rate in Hz)`; an array or tensor
            at 16,000 Hz; or a mapping with `array` or `raw` and `sampling_rate`, as Hugging Face's
            datasets and pipelines have it, or with `bytes` or `path`. Arrays are (samples,), or have
            two axes of which the longer is time; whole numbers are taken as PCM of their width.
        name: what errors call it; None: `name_of(source)`.

    Raises:
        UserError: it is not there, unreadable, empty, cut off or not finite, or no kind of audio.
    """
    name = name_of(source) if name is None else name
    some = False
    for block in resample_blocks(_mono(source, name), SAMPLE_RATE, name):
        some = True
        yield finite(block, name)
    if not some:
        raise BadAudio(name, "holds no audio")


def read(source: Any, name: str | None = None) -> Audio:
    """All of `blocks` as one `(samples,)` array."""
    return np.concatenate(list(blocks(source, name)))


def seconds(source: Any) -> float | None:
    """Length of the recording at a path, by its header; None: unknown, or the input is not a path."""
    return audio.header_seconds(os.fsdecode(source)) if isinstance(source, (str, os.PathLike)) else None


def _mono(source: Any, name: str) -> Iterator[tuple[Audio, int]]:
    """Blocks at the source's own rate, and that rate."""
    if isinstance(source, (str, os.PathLike)):
        yield from _of_path(Path(os.fsdecode(source)).expanduser(), name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield from mono_blocks(io.BytesIO(source), name)
    elif isinstance(source, Mapping):
        yield from _of_mapping(source, name)
    elif hasattr(source, "get_all_samples"):  # what `datasets` 4 has in an audio column
        samples = source.get_all_samples()
        yield from _of_array(samples.data, samples.sample_rate, name)
    elif hasattr(source, "read"):
        seekable = getattr(source, "seekable", lambda: True)()
        yield from mono_blocks(source if seekable else io.BytesIO(source.read()), name)
    elif isinstance(source, tuple) and len(source) == 2:
        yield from _of_array(*source, name)
    else:
        yield from _of_array(source, SAMPLE_RATE, name)


def _of_mapping(source: Mapping[str, Any], name: str) -> Iterator[tuple[Audio, int]]:
    for field in ("array", "raw"):
        if source.get(field) is not None:
            if "sampling_rate" not in source:
                raise UserError(f"{name} has {field!r} and no 'sampling_rate': give it in Hz")
            return _of_array(source[field], source["sampling_rate"], name)
    for field in ("bytes", "path"):
        if source.get(field) is not None:
            return _mono(source[field], name)
    raise UserError(f"{name} has none of 'array', 'raw', 'bytes' and 'path': {_ADVICE}")


def _of_array(array: Any, rate: Any, name: str) -> Iterator[tuple[Audio, int]]:
    if hasattr(array, "detach"):  # a torch tensor, of any device and precision
        tensor = array.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    try:
        values = np.asarray(array)
        hz = int(rate)
    except (TypeError, ValueError) as e:
        raise UserError(f"{name} is no audio: {_ADVICE}") from e
    if values.dtype.kind not in "fi" or values.ndim not in (1, 2) or hz != rate:
        what = f"an array of {values.dtype} with {values.ndim} axes at {rate} Hz"
        raise UserError(f"{name} is {what}, no audio: {_ADVICE}")
    if values.ndim == 2:
        values = values if values.shape[0] >= values.shape[1] else values.T
    whole = -float(np.iinfo(values.dtype).min) if values.dtype.kind == "i" else 1.0
    step = BLOCK_S * max(hz, 1)  # a rate of 0 is refused where it is used
    for start in range(0, len(values), step):
        part = values[start : start + step].astype(np.float32) / np.float32(whole)
        yield mono(part.reshape(len(part), -1)), hz


def _of_path(path: Path, name: str) -> Iterator[tuple[Audio, int]]:
    try:
        if path.is_dir():
            raise UserError(f"{name} is a folder: name a file")
        with open(path, "rb") as file:
            yield from mono_blocks(file, name)
    except FileNotFoundError as e:
        raise UserError(f"{name}: no such file") from e
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise UserError(f"{name} can't be read ({reason})") from e
