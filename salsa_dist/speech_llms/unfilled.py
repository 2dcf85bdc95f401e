"""A model whose weights are still in their files, and which stored tensor belongs where.

    checkpoint                      model on the meta device
    audio_tower.conv1.weight  ───>  model.audio_tower.conv1.weight      of its true shape and dtype
    language_model.embed…     ───>  embed_tokens.weight = lm_head.weight   tied: one parameter
    …experts.0.down_proj      ─┬─>  …experts.down_proj      joined; `sources.py`
    …experts.1.down_proj      ─┘
                                    …rotary_emb.inv_freq   computed, not stored: real, on the CPU

transformers' own `from_pretrained` does the renaming, tying, precision and the report of what is
missing or too much, on tensors that have a shape and no data. All that is left is to read each weight,
which `placement` does where it is wanted.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from salsa_dist.libraries.huggingface_hub import file_in
from salsa_dist.libraries.transformers import compute_buffers
from salsa_dist.libraries.transformers_weights import made_of
from salsa_dist.speech_llms.reading_base import reason_of
from salsa_dist.speech_llms.sources import Source
from salsa_dist.speech_llms.weight_files import safetensors_files, stored_tensors


@dataclass(frozen=True)
class Unfilled:
    """A model on the meta device with the source of each of its weights.

    Attributes:
        model: of transformers; parameters and stored buffers are on the meta device.
        sources: of each of these, by its name in the model, what it is read from. Tied names share one,
            which stands under one of them.
        loading_info: what `from_pretrained(…, output_loading_info=True)` reports.
    """

    model: Any
    sources: dict[str, Source]
    loading_info: Mapping[str, Any]


def unfilled(
    model_class: Any, config: Any, name: str, revision: str | None, dtype: torch.dtype
) -> Unfilled | str:
    """A checkpoint's model without its data; or why this checkpoint must be loaded whole.

    Loaded whole are checkpoints that are not safetensors, hold a LoRA beside the base, or leave out
    weights which transformers makes up, and those whose tensors it converts by more than stacking,
    joining, cutting and transposing.

    Args:
        model_class: the transformers class.
        config: of the checkpoint.
        name: folder or hub name.
        revision: hub branch, tag or commit.
        dtype: precision of the weights.
    """
    files = safetensors_files(name, revision)
    if files is None:
        return "its weights are not in safetensors files"
    if file_in(name, "adapter_config.json", revision) is not None:
        return "it has a LoRA"
    stored = stored_tensors(files)
    empty = {k: torch.empty(t.shape, dtype=t.dtype, device="meta") for k, t in stored.items()}
    model, loading_info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=empty,
        dtype=dtype,
        device_map={"": torch.device("meta")},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    model.config.name_or_path = name
    try:
        sources: dict[str, Source] = made_of(model, stored)
    except ImportError:
        return "this release of transformers does not say where each stored tensor belongs"
    except Exception as e:  # transformers' own code, on what is no tensor
        return f"transformers converts its tensors by more than can be followed here ({reason_of(e)})"
    _tie_what_is_stored_twice(model, sources)
    read = {id(tensor_of(model, source)) for source in sources}
    if not loading_info["missing_keys"] and any(id(p) not in read for p in model.parameters()):
        return "its files do not hold each weight of the model"
    _compute_buffers(model, read)
    _take_generation_config(model, name, revision)
    return Unfilled(model, sources, loading_info)


def _tie_what_is_stored_twice(model: Any, sources: dict[str, Source]) -> None:
    """Tie two weights that are both in the checkpoint if they are equal there, as transformers does.

    On the meta device it can't compare them, and leaves them apart.
    """
    for target, source in list(model.all_tied_weights_keys.items()):
        if target not in sources or source not in sources:
            continue
        if sources[target].equals(sources[source]):
            _set(model, target, model.get_parameter(source))
            del sources[target]
        else:
            del model.all_tied_weights_keys[target]


def _compute_buffers(model: Any, read: Container[int]) -> None:
    """Make the buffers that no file holds, such as rotary frequencies, as transformers does."""
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta and id(buffer) not in read:
            _set(model, name, torch.empty_like(buffer, device="cpu"))
    compute_buffers(model)


def _take_generation_config(model: Any, name: str, revision: str | None) -> None:
    from transformers import GenerationConfig

    try:
        model.generation_config = GenerationConfig.from_pretrained(name, revision=revision or "main")
    except OSError:
        return  # it has none: the one that was made from the model's config stays


def tensor_of(model: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer by its name in `model`."""
    parent, _, leaf = name.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(parent), leaf)
    return tensor


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, tensor)
