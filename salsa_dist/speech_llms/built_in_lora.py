"""A LoRA that belongs to a base, and that its authors keep in a folder beside the weights.

    base/model.safetensors
    base/speech-lora/adapter_config.json, adapter_model.safetensors      W + (alpha / r) B A

It is part of the frozen base: added to the weights when the base is loaded, and never trained. So a
pass costs no more, and peft is not needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import file_in
from salsa_dist.speech_llms.reading_base import reading_base

SPEECH = "speech-lora"  # of Phi-4-multimodal
_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What peft can do beside, and changes the sum above.
_OTHER = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def folders_of(base: Path) -> list[Path]:
    """The folders that the files of a base in `base` lie in: its own, and its LoRA's."""
    return [base, *(lora for lora in (base / SPEECH,) if lora.is_dir())]


def lora_files(name: str, files: tuple[str, str | None], folder: str) -> tuple[Path, Path]:
    """Config and weights of the LoRA in `folder` of base `name`, before its weights are read.

    Args:
        files: folder or hub name that the base's files lie in, and revision.

    Raises:
        UserError: one is not there.
    """
    found = [file_in(files[0], f"{folder}/{file}", files[1]) for file in _FILES]
    if None in found:
        raise UserError(
            f"base {name} lacks {folder}/{_FILES[found.index(None)]}, without which it hardly "
            f"transcribes: put its authors' folder {folder} beside its weights"
        )
    return Path(found[0] or ""), Path(found[1] or "")


def add_lora(model: Any, name: str, config: Path, weights: Path) -> None:
    """Add the LoRA of `lora_files` to the weights of `model`, in place; summed in fp32.

    Raises:
        UserError: it is of another kind, or of another model.
    """
    with reading_base(name), safe_open(weights, "pt") as file:
        settings = json.loads(config.read_text(encoding="utf-8"))
        if other := [key for key in _OTHER if settings.get(key)]:
            raise UserError(f"base {name}: {config} sets {other[0]}, which is not known here")
        scale = settings["lora_alpha"] / settings["r"]
        names = sorted(key.removesuffix(_A) for key in file.keys() if key.endswith(_A))  # noqa: SIM118
        if not names:
            raise UserError(f"base {name}: {weights} holds no LoRA: take all files from one revision")
        for key in names:
            with torch.no_grad():
                weight = model.get_submodule(key.removeprefix(_PREFIX)).weight
                added = file.get_tensor(key + _B).float() @ file.get_tensor(key + _A).float()
                weight.copy_(weight.float() + scale * added.to(weight.device))
