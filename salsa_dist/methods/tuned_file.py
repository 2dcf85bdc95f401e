"""The file of trained weights of LoRA or BEFT, or of biases: safetensors, with their base and settings.

RUN/adapters/NAME/tuned.safetensors
└── metadata "tuned": schema, base revision, method, sites, language, trained numbers, how trained
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from salsa_dist.errors import UserError
from salsa_dist.json_file import of_another_release
from salsa_dist.new_folder import made_beside

SCHEMA = "salsa-dist/tuned/1"
NAME = "tuned.safetensors"


def save(folder: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write `folder` whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with made_beside(folder) as new:
        tensors = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
        save_file(tensors, new / NAME, metadata={"tuned": json.dumps({"schema": SCHEMA, **facts})})
    return folder


def facts(folder: Path) -> dict[str, Any]:
    """The metadata of the file."""
    return _open(folder)[0]


def digest(folder: Path) -> str:
    """SHA-256 of the file."""
    _open(folder)
    return hashlib.sha256((folder / NAME).read_bytes()).hexdigest()


def restore(folder: Path, into: Mapping[str, nn.Parameter], revision: str) -> None:
    """Copy saved weights into the parameters that `install` made.

    Raises:
        UserError: no such file, a damaged one, one of another base or of other settings.
    """
    saved, tensors = _open(folder)
    if saved["revision"] != revision:
        raise UserError(
            f"{folder} was trained on base revision {saved['revision']}, this one is {revision}"
        )
    shapes = {name: tuple(p.shape) for name, p in into.items()}
    if {name: tuple(t.shape) for name, t in tensors.items()} != shapes:
        raise UserError(f"{folder} was trained with another method or other sites than the config's")
    with torch.no_grad():
        for name, parameter in into.items():
            parameter.copy_(tensors[name])


def _open(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"no adapter at {folder}: train it first (salsa-dist train CONFIG)")
    try:
        with safe_open(path, framework="pt") as file:
            saved = json.loads((file.metadata() or {}).get("tuned", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path} is damaged ({e}): train it again") from e
    if saved.get("schema") != SCHEMA:
        raise UserError(f"{path} is {of_another_release(saved.get('schema'), SCHEMA)}")
    return saved, tensors
