"""A LoRA that belongs to a base, and that its authors keep beside the weights or in a folder.

    base/model.safetensors
    base/speech-lora/adapter_config.json, adapter_model.safetensors      W + (alpha / r) B A
    base/adapter_config.json, adapter_model.safetensors                  the same

It is part of the frozen base: added to the weights when the base is loaded, and never trained. So a
pass costs no more, and peft is not needed: its newest is older than what transformers 5.24 asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from salsa_dist.errors import UserError
from salsa_dist.libraries.huggingface_hub import file_in
from salsa_dist.libraries.transformers_weights import renaming
from salsa_dist.speech_llms.reading_base import reading_base

SPEECH = "speech-lora"  # of Phi-4-multimodal
BESIDE = ""  # of Granite-Speech
_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What peft can do beside, and changes the sum above.
_OTHER = (
    *("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"),
    *("fan_in_fan_out", "lora_bias"),
)
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def folders_of(base: Path) -> list[Path]:
    """The folders that the files of a base in `base` lie in: its own, and its LoRA's."""
    return [base, *(lora for lora in (base / SPEECH,) if lora.is_dir())]


def lora_files(
    name: str, config: Any, files: tuple[str, str | None], folder: str | None
) -> tuple[Path, Path] | None:
    """Config and weights of the LoRA of base `name`, before its weights are read; None: it has none.

    Args:
        config: of the base; one with `has_lora_adapter` says itself whether it has one.
        files: folder or hub name that the base's files lie in, and revision.
        folder: in it; `BESIDE`: beside its weights. None: bases of this family have none.

    Raises:
        UserError: one is not there.
    """
    if folder is None or not getattr(config, "has_lora_adapter", True):
        return None
    wanted = [f"{folder}/{file}".lstrip("/") for file in _FILES]
    found = [file_in(files[0], file, files[1]) for file in wanted]
    if None in found:
        raise UserError(
            f"base {name} lacks {wanted[found.index(None)]}, without which it hardly transcribes: put "
            f"its authors' {' and '.join(wanted)} where its weights are"
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
        rename = renaming(model)
        keys = set(file.keys())
        names = sorted(key.removesuffix(_A) for key in keys if key.endswith(_A))
        if not names:
            raise UserError(f"base {name}: {weights} holds no LoRA: take all files from one revision")
        if other := sorted(keys - {key + end for key in names for end in (_A, _B)}):
            raise UserError(
                f"base {name}: {weights} holds {other[0]}, which is no linear layer's LoRA: it is not "
                "known here"
            )
        for key in names:
            stored = key.removeprefix(_PREFIX) + ".weight"
            with torch.no_grad():
                weight = model.get_parameter(rename(stored)[0] if rename else stored)
                added = file.get_tensor(key + _B).float() @ file.get_tensor(key + _A).float()
                if added.shape != weight.shape:
                    raise UserError(
                        f"base {name}: {weights} has {key} for a weight of {tuple(added.shape)}, and "
                        f"the base's is {tuple(weight.shape)}: take all files from one revision"
                    )
                weight.copy_(weight.float() + scale * added.to(weight.device))
