"""What the first steered layer of a job puts out before its vector is added, kept for each clip.

    fill      conv ─ encoder.0 … encoder.3 ─┐ (the layers above pass their input on)   once a clip
                                            ▼
    KeptPrefix   clip key ──► (positions, hidden) in the base's dtype, in memory or on disk
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class KeptPrefix:
    """Outputs of one layer by clip.

    Args:
        folder: where they lie, those of one base, shards, site, dtype and window; None: in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.texts: dict[str, str] = {}
        self._held: dict[str, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that are not kept yet."""
        return [key for key in keys if key not in self.texts and not self._found(key)]

    def put(self, key: str, text: str, hidden: Tensor) -> None:
        """Keep (positions, hidden) of one clip, and its transcript."""
        self.texts[key] = text
        hidden = hidden.detach().cpu().contiguous().clone()
        if self.folder is None:
            self._held[key] = hidden
            return
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        metadata = {"facts": json.dumps([key, text]), "digest": _digest(hidden)}
        save_file({"hidden": hidden}, temporary, metadata=metadata)
        os.replace(temporary, path)

    def get(self, keys: Sequence[str], device: torch.device) -> Tensor:
        """(clips, positions, hidden) of `keys`, in their order."""
        if self.folder is None:
            return torch.stack([self._held[key] for key in keys]).to(device)
        tensors = []
        for key in keys:
            with safe_open(self._path(key), framework="pt") as file:
                tensors.append(file.get_tensor("hidden"))
        return torch.stack(tensors).to(device)

    def _found(self, key: str) -> bool:
        """Whether the file of `key` is there and whole; then its transcript is known too."""
        if self.folder is None:
            return False
        try:
            with safe_open(self._path(key), framework="pt") as file:
                metadata = file.metadata()
                own, text = json.loads(metadata["facts"])
                whole = own == key and metadata["digest"] == _digest(file.get_tensor("hidden"))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return False
        if whole:
            self.texts[key] = str(text)
        return whole

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


@contextmanager
def only_up_to(site: str, modules: dict[str, nn.Module]) -> Iterator[list[Tensor]]:
    """Run the encoder's layers up to `site` alone; the block finds their output in the list."""
    found: list[Tensor] = []
    sites = [s for s in modules if s.startswith("encoder.")]
    above = [modules[s] for s in sites[sites.index(site) + 1 :]]
    hook = modules[site].register_forward_hook(lambda m, args, output: found.append(_first(output)))
    undo = [_replaced(layer, _pass_on) for layer in above]
    try:
        yield found
    finally:
        hook.remove()
        _all(undo)


def start_at(
    site: str, modules: dict[str, nn.Module], kept: Callable[[], Tensor]
) -> Callable[[], None]:
    """Let the layer of `site` put out `kept()` and nothing below it run; returns what undoes it.

    Convolutions beside the list of layers put out zeros of the right shape.
    """
    sites = [s for s in modules if s.startswith("encoder.")]
    below = [modules[s] for s in sites[: sites.index(site)]]
    undo = [_replaced(layer, _pass_on) for layer in below]
    undo.append(_replaced(modules[site], lambda *args, **kwargs: kept()))
    return lambda: _all(undo)


def skip_convolutions(encoder: nn.Module) -> Callable[[], None]:
    """Let the convolutions that are children of `encoder` compute nothing; returns what undoes it."""
    undo = [_replaced(c, _zeros_of(c)) for c in encoder.children() if isinstance(c, nn.Conv1d)]
    return lambda: _all(undo)


def _zeros_of(conv: nn.Conv1d) -> Callable[[Tensor], Tensor]:
    (kernel,), (stride,), (dilation,) = conv.kernel_size, conv.stride, conv.dilation
    padding: Any = conv.padding[0]

    def zeros(features: Tensor) -> Tensor:
        length = (features.shape[-1] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        return features.new_zeros(1, 1, 1).expand(features.shape[0], conv.out_channels, length)

    return zeros


def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    before = module.__dict__.get("forward")
    module.forward = forward

    def back() -> None:
        if before is None:
            del module.forward  # the class's own is seen again
        else:
            module.forward = before

    return back


def _all(undo: Sequence[Callable[[], None]]) -> None:
    for back in undo:
        back()


def _pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden


def _first(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _digest(hidden: Tensor) -> str:
    raw = hidden.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(str(tuple(hidden.shape)).encode() + raw).hexdigest()
