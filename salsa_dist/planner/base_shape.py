"""The shape of a base, from its config and its safetensors headers: no weight is read.

    shape = read_shape("openai/whisper-base", window_s=5)
    shape.weights     every parameter in the model's order, a tied one once
    shape.modules     who uses which weights, in the order of a forward pass
    shape.stored      bytes of the checkpoint's weights, or None where only a config is at hand

    modules   encoder ──► rest (projector) ──► llm ──► head
    layers    encoder.0 … encoder.5            llm.0 … llm.5

The model is built on the meta device, so shapes, ties, buffers and the audio window are those of the
model that a run would load. Headers say how many bytes lie on disk, and in which precision.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import without_weights
from salsa_dist.planner.modules import Module, modules_of
from salsa_dist.speech_llms.base_config import advice
from salsa_dist.speech_llms.inspection import class_of, read_config
from salsa_dist.speech_llms.load import FAMILIES
from salsa_dist.speech_llms.quantization import LIBRARIES, own_method, planned_bytes, refuse_twice
from salsa_dist.speech_llms.reading_base import NO_MODEL, reading_base
from salsa_dist.speech_llms.weight_files import cached_safetensors_files, read_header
from salsa_dist.speech_llms.window import longest, shorten
from salsa_dist.speech_llms.word_frames import FRAMES_PER_S
from salsa_dist.steering.blocks import layer_of, with_blocks
from salsa_dist.steering.sites import find_layers, output_head, select
from salsa_dist.steering.widths import output_width

# Encoder rows a second of Whisper's kind: 100 frames of 10 ms, halved by a convolution. Others have
# as many (Granite) or fewer (Qwen3-ASR), so this is the cautious number for a base not of that kind.
ENCODER_TOKENS_PER_SECOND = 50
_HEADER_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Weight:
    """One parameter: its name, its number of elements, the bytes of one; of a quantised one, of all."""

    name: str
    numel: int
    itemsize: int
    quantized: int | None = None

    @property
    def bytes(self) -> int:
        return self.numel * self.itemsize if self.quantized is None else self.quantized


@dataclass(frozen=True)
class Layer:
    """One layer that can be steered: its site, and the width of its output."""

    site: str
    width: int


@dataclass(frozen=True)
class BaseShape:
    """A base without its weights.

    Attributes:
        name: folder or hub name.
        architecture: its transformers class.
        dtype: precision of the weights in a run.
        weights: every parameter, in the model's order.
        buffer_bytes: bytes of what is not a parameter.
        modules: those with weights, in the order of a forward pass.
        layers: encoder first, then LLM.
        blocks: words for sites inside a layer, such as `encoder.attention`.
        vocabulary: numbers of one logit row.
        encoder_decoder: text goes to a decoder by itself, and audio by cross-attention (Whisper).
        encoder_tokens: rows of an encoder built for one window; None: it takes any length.
        labels_per_s: of a base that writes a token per frame; None: as many as the text has.
        stored: bytes of the weights on disk, as the headers say; None: only a config is at hand.
        quantized: how its linear weights are quantised, while loading or in the checkpoint; None: they
            are not.
        held: bytes of the weights of a checkpoint that is quantised; None: as `weights` say.
    """

    name: str
    architecture: str
    dtype: str
    weights: tuple[Weight, ...]
    buffer_bytes: int
    modules: tuple[Module, ...]
    layers: tuple[Layer, ...]
    blocks: tuple[str, ...]
    vocabulary: int
    encoder_decoder: bool
    encoder_tokens: int | None
    labels_per_s: float | None
    stored: int | None
    quantized: str | None
    held: int | None = None

    @property
    def parameters(self) -> int:
        return sum(w.numel for w in self.weights)

    @property
    def bytes(self) -> int:
        """Bytes of the whole base on one device: parameters and buffers."""
        weights = sum(w.bytes for w in self.weights) if self.held is None else self.held
        return weights + self.buffer_bytes

    def counts(self) -> dict[str, int]:
        """Layers of each component and its blocks, as `select` wants them."""
        found = Counter(layer.site.partition(".")[0] for layer in self.layers)
        words = [w for c in found for w in (c, *(b for b in self.blocks if b.startswith(c + ".")))]
        return {word: found[word.partition(".")[0]] for word in words}

    def sites(self, words: str) -> tuple[str, ...]:
        """The sites that `words` name, such as `encoder:last-half+llm`."""
        return tuple(select(words, self.counts()))

    def width(self, site: str) -> int:
        return self.layers[self.place(site)].width

    def place(self, site: str) -> int:
        """The index in `layers` of the layer that a site is of."""
        return next(i for i, layer in enumerate(self.layers) if layer.site == layer_of(site))


def read_shape(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    window_s: float | None = None,
    layers: dict[str, str] | None = None,
) -> BaseShape:
    """Read the shape of a base.

    Args:
        name: folder with a checkpoint or only its config.json, or a hub name.
        revision: hub branch, tag or commit.
        dtype: precision of a run; None: as stored, or bfloat16 where no weights are at hand.
        quantization: as `load_speech_llm` takes it; its library need not be installed.
        window_s: audio window in seconds; None: the base's own.
        layers: paths of layer lists that are not found by structure.

    Raises:
        UserError: no such base, one that is quantised already or that transformers does not know,
            or headers that can't be read.
    """
    name = os.path.expanduser(str(name))
    config = read_config(name, revision)
    stored, stored_type = _stored(name, revision)
    dtype = dtype or stored_type or "bfloat16"
    model = build_empty(config, name, dtype)
    if window_s is not None:
        _cut_window(model, config, window_s)
    own = own_method(config)
    refuse_twice(name, quantization, own)
    shape = shape_of(
        model, name, dtype, layers, stored=stored, quantized=quantization or own, config=config
    )
    return shape if own is None else replace(shape, held=stored)


def build_empty(config: Any, name: str, dtype: str) -> nn.Module:
    """A model of the config on the meta device: shapes without numbers."""
    family = FAMILIES.get(config.model_type)
    if family is not None and family.MODEL_CLASS is not None:
        import transformers

        model_class = getattr(transformers, family.MODEL_CLASS)
    else:
        model_class = class_of(config, name)
    with reading_base(name, NO_MODEL, advice(getattr(config, "transformers_version", None), "")):
        model: nn.Module = without_weights(model_class, config, getattr(torch, dtype))
    return model.eval()


def shape_of(
    model: Any,
    name: str,
    dtype: str,
    layers: dict[str, str] | None = None,
    *,
    stored: int | None = None,
    quantized: str | None = None,
    config: Any = None,
) -> BaseShape:
    """The shape of a loaded model, on any device."""
    lists = find_layers(model, layers)
    order = [(f"{c}.{i}", m) for c in ("encoder", "llm") for i, m in enumerate(lists.get(c, []))]
    named = list(model.named_parameters())  # a tied one once
    number = {id(p): i for i, (_, p) in enumerate(named)}
    config = model.config if config is None else config
    encoder_tokens = _window_rows(model)
    head = output_head(model)
    family = FAMILIES.get(config.model_type)
    per_frame = family is not None and family.LEARNS_WORD_TIMES
    smaller = planned_bytes(model, quantized) if quantized in LIBRARIES else {}
    return BaseShape(
        name=name,
        architecture=type(model).__name__,
        dtype=dtype,
        weights=tuple(Weight(n, p.numel(), p.element_size(), smaller.get(n)) for n, p in named),
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
        modules=tuple(modules_of(model, order, lists, number, head, config)),
        layers=tuple(Layer(site, output_width(module)) for site, module in order),
        blocks=tuple(word for word in with_blocks(lists) if "." in word),
        vocabulary=0 if head is None else int(next(head.parameters()).shape[0]),
        encoder_decoder=bool(getattr(model.config, "is_encoder_decoder", False)),
        encoder_tokens=encoder_tokens,
        labels_per_s=FRAMES_PER_S if per_frame else None,
        stored=stored,
        quantized=quantized,
    )


def _window_rows(model: Any) -> int | None:
    """Rows of an encoder that is built for one window (Whisper's kind); None: any length."""
    for module in model.modules():
        table = getattr(module, "embed_positions", None)
        if hasattr(module, "conv1") and isinstance(table, nn.Embedding):
            return int(table.num_embeddings)
    return None


def _cut_window(model: Any, config: Any, window_s: float) -> None:
    """The same change as the family's `fit`, without its processor."""
    for module in list(model.modules()):
        table = getattr(module, "embed_positions", None)
        # Whisper's and Qwen2-Audio's windows can be shortened; others of this kind are always whole.
        if hasattr(module, "conv1") and isinstance(table, nn.Embedding) and _is_cut(config):
            rows = table.num_embeddings
            seconds = longest(rows / ENCODER_TOKENS_PER_SECOND, window_s)
            with torch.device("meta"):
                shorten(module, max(1, round(seconds * ENCODER_TOKENS_PER_SECOND)))


def _is_cut(config: Any) -> bool:
    return config.model_type in ("whisper", "qwen2_audio")


def _stored(name: str, revision: str | None) -> tuple[int | None, str | None]:
    """Bytes of the weights on disk, and the precision of most weights, from headers alone."""
    folder = Path(name)
    sizes: dict[str, int] = {}
    files = (
        sorted(folder.glob("*.safetensors"))
        if folder.is_dir()
        else cached_safetensors_files(name, revision)
    )
    if files is not None:
        for path in files:
            for entry in read_header(path)[0].values():
                first, last = entry["data_offsets"]
                sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + last - first
    else:
        from huggingface_hub import get_safetensors_metadata
        from huggingface_hub.errors import NotASafetensorsRepoError

        try:
            metadata = get_safetensors_metadata(name, revision=revision)
        except NotASafetensorsRepoError:
            return None, None
        except Exception as e:  # whatever a network has to say: hub, proxy, resolver
            reason = " ".join(str(e).split())[:160] or type(e).__name__
            raise UserError(
                f"base {name}: its safetensors headers can't be read from the hub ({reason}); "
                "name a folder with its config.json"
            ) from e
        for file in metadata.files_metadata.values():
            for tensor in file.tensors.values():
                first, last = tensor.data_offsets
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + last - first
    if not sizes:
        return None, None
    most = max(sizes, key=lambda kind: sizes[kind])
    dtype = _HEADER_TYPES.get(most)
    return sum(sizes.values()), None if dtype is None else str(dtype).removeprefix("torch.")
