"""The prefix cache: per clip, the first steered layer's output before its vector is added.

    fill      conv ─ encoder.0 … encoder.3 ─┐ (the layers above pass their input on)   once a clip
                                            ▼
    KeptPrefix   clip key ──► (elements, …, hidden) in the base's dtype, in memory or on disk
                                            ▼
    train     (nothing below runs) encoder.3 ─ its vectors ─ encoder.4 …               every step

    FOLDER/<base, shards, site, dtype, window>/<SHA-256 of the clip's key>.safetensors

All ranks fill in a pass of its own, with as many calls each, and then all train from the kept layer:
none ever runs other modules than its peers. A file on disk that is damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from salsa_dist.data.clip import Clip, Word
from salsa_dist.data.word_times import words_of
from salsa_dist.whole_file import written_whole


@dataclass(frozen=True)
class Known:
    """Facts about a clip that training needs beside its prefix."""

    text: str
    samples: int
    speech: bool = True
    weight: float = 1.0
    words: tuple[Word, ...] | None = None

    @classmethod
    def of(cls, clip: Clip) -> Known:
        return cls(clip.text, len(clip.audio), clip.speech, clip.weight, clip.words)


class KeptPrefix:
    """Outputs of one layer by clip.

    Args:
        folder: where they lie, those of one base, shards, site, dtype and window; None: in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.known: dict[str, Known] = {}
        self._held: dict[str, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that are not in the cache yet."""
        return [key for key in keys if key not in self.known and not self._found(key)]

    def put(self, key: str, known: Known, hidden: Tensor) -> None:
        """Keep (elements, …, hidden) of one clip."""
        self.known[key] = known
        hidden = hidden.detach().cpu().contiguous().clone()
        if self.folder is None:
            self._held[key] = hidden
            return
        path = self._path(key)
        metadata = {"facts": json.dumps([key, *astuple(known)]), "digest": _digest(hidden)}
        # What a crash tears is found out by its digest, and made again.
        with written_whole(path, flushed=False, writer=str(os.getpid())) as part:
            save_file({"hidden": hidden}, part, metadata=metadata)

    def get(self, keys: Sequence[str], device: torch.device) -> Tensor:
        """(elements, …, hidden) of `keys`, in their order one behind the other."""
        if self.folder is None:
            return torch.cat([self._held[key] for key in keys]).to(device)
        tensors = []
        for key in keys:
            with safe_open(self._path(key), framework="pt") as file:
                tensors.append(file.get_tensor("hidden"))
        return torch.cat(tensors).to(device)

    def _found(self, key: str) -> bool:
        """Whether the file of `key` is there and whole; then what else it says is known too."""
        if self.folder is None:
            return False
        try:
            with safe_open(self._path(key), framework="pt") as file:
                metadata = file.metadata()
                own, text, samples, speech, weight, words = json.loads(metadata["facts"])
                whole = own == key and metadata["digest"] == _digest(file.get_tensor("hidden"))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return False
        if whole:
            timed = words_of({"text": text, "words": words})
            self.known[key] = Known(str(text), int(samples), bool(speech), float(weight), timed)
        return whole

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def without_audio(key: str, known: Known, language: str, row: int) -> Clip:
    """A clip whose prefix is kept: no audio is needed but its length."""
    audio = np.zeros(known.samples, np.float32)
    marks = known.speech, known.weight, known.words
    return Clip(key, audio, known.text, language, row, {}, *marks)


def _digest(hidden: Tensor) -> str:
    raw = hidden.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(str(tuple(hidden.shape)).encode() + raw).hexdigest()
