"""Turns a Moonshine in onnxruntime's format into a Hugging Face folder, in plain Python.

    python -m salsa_dist.speech_llms.moonshine_from_ort SOURCE [SOURCE …] DEST

Package registries carry Moonshine in this format where no model hub can be reached. The SOURCE folders
hold between them `encoder_model.ort`, `decoder_model_merged.ort` and `tokenizer.json`. DEST must not
exist; it appears when it is complete.

    node     /layers.0/self_attn/q_proj/MatMul ◄─ Add (zero) ◄─ Mul (scale) ◄─ Cast ◄─ int8
    weight   model.encoder.layers.0.self_attn.q_proj.weight

A node's name is the path of its module, and what it multiplies with, scaled back to float32, is the
weight. Weights that were rounded to 8 bits stay rounded.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from salsa_dist.errors import UserError
from salsa_dist.new_folder import made_beside
from salsa_dist.speech_llms.converter import run_converter
from salsa_dist.speech_llms.ort_file import Node, OrtGraph, read_ort

Tensors = dict[str, torch.Tensor]

_FILES = ("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.json")
_START, _END = "<s>", "</s>"
# The publisher's limit of a transcript, in tokens.
_MAX_TOKENS = 194
# The export's names of modules, where transformers has others.
_RENAMED = {"dense": "o_proj", "up_proj": "fc1", "down_proj": "fc2"}
# Operators, which of their inputs is a weight, and its name; MatMul has it transposed.
_PARAMETERS = {
    "MatMul": ((1, "weight"),),
    "Conv": ((1, "weight"), (2, "bias")),
    "Gather": ((0, "weight"),),
    "Mul": ((0, "weight"), (1, "weight")),
    "Add": ((0, "bias"), (1, "bias")),
}


def convert(sources: Sequence[Path], dest: Path) -> Path:
    """Write the Hugging Face folder `dest` from the files in `sources`."""
    if dest.exists():
        raise UserError(f"{dest} exists already: remove it or name another folder")
    encoder, decoder, tokenizer = (_find(sources, name) for name in _FILES)
    config, weights = to_hugging_face(read_ort(encoder), read_ort(decoder))
    with made_beside(dest) as folder:
        _write_processor(tokenizer, config, folder)
        config.save_pretrained(folder)
        ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        generation = GenerationConfig(
            **{key: getattr(config, key) for key in ids}, max_length=config.max_position_embeddings
        )
        generation.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private to its writer
    return dest


def to_hugging_face(encoder: OrtGraph, decoder: OrtGraph) -> tuple[MoonshineConfig, Tensors]:
    """The config, its sizes taken from the graphs, and float32 weights by Hugging Face's names."""
    found = {**_weights(encoder, "model.encoder."), **_weights(decoder, "")}
    config = _config(encoder, decoder, found)
    with torch.device("meta"):
        model = MoonshineForConditionalGeneration(config)
    weights: Tensors = {}
    for name, wanted in model.state_dict().items():
        if name == "proj_out.weight":
            continue  # the embedding
        where = (encoder if name.startswith("model.encoder.") else decoder).where
        if name not in found:
            raise UserError(f"{where} is no whole Moonshine: it has no {name}")
        weight = found[name]
        if weight.dim() > wanted.dim():  # (channels, 1) beside (channels,)
            weight = weight.reshape(-1)
        if weight.shape != wanted.shape:
            raise UserError(
                f"{where} is no whole Moonshine: {name} is {tuple(weight.shape)}, expected "
                f"{tuple(wanted.shape)}"
            )
        weights[name] = weight.contiguous()
    return config, weights


def _weights(graph: OrtGraph, prefix: str) -> Tensors:
    """What every node's module multiplies with or adds, by the module's name."""
    by_output = {output: node for node in graph.nodes for output in node.outputs}
    found: Tensors = {}
    for node in graph.nodes:
        path, _, operator = node.name.rpartition("/")
        if operator != node.operator:
            continue  # MatMul_1 and so on are steps inside a module, not its weight
        module = ".".join(_RENAMED.get(part, part) for part in path.split("/") if part)
        for place, kind in _PARAMETERS.get(operator, ()):
            weight = _value(graph, by_output, node.inputs[place : place + 1])
            if weight is not None and weight.dim():
                # A merged decoder has each module once with a cache, and once without.
                found.setdefault(
                    f"{prefix}{module}.{kind}", weight.T if operator == "MatMul" else weight
                )
    return found


def _value(
    graph: OrtGraph, by_output: dict[str, Node], names: Sequence[str], depth: int = 0
) -> torch.Tensor | None:
    """The float32 value of a name that is, or is scaled back from, a stored tensor; None for others."""
    if not names or depth > 3:
        return None
    if (stored := graph.tensors.get(names[0])) is not None:
        return stored.float()
    node = by_output.get(names[0])
    if node is None or node.operator not in ("Cast", "Mul", "Add"):
        return None
    parts = [_value(graph, by_output, [name], depth + 1) for name in node.inputs]
    value = parts[0]
    for other in parts[1:]:
        if value is None or other is None or other.numel() != 1:
            return None
        value = value * other if node.operator == "Mul" else value + other
    return value


def _config(encoder: OrtGraph, decoder: OrtGraph, found: Tensors) -> MoonshineConfig:
    def size(name: str, axis: int, graph: OrtGraph) -> int:
        if name not in found:
            raise UserError(f"{graph.where} is no Moonshine: it has no {name}")
        return found[name].shape[axis]

    def layers(side: str) -> int:
        numbers = [m[1] for name in found if (m := re.match(rf"model\.{side}\.layers\.(\d+)\.", name))]
        return max((int(number) + 1 for number in numbers), default=0)

    cache = decoder.sizes.get("past_key_values.0.decoder.key", ())
    # The rotary embedding multiplies positions with one frequency for each two values of a head.
    turned = next(
        (
            decoder.tensors[node.inputs[0]].numel() * 2
            for node in decoder.nodes
            if node.name.endswith("/rotary_emb/MatMul") and node.inputs[0] in decoder.tensors
        ),
        0,
    )
    if len(cache) != 4 or not cache[1] or not cache[3] or not turned:
        raise UserError(
            f"{decoder.where} is no Moonshine: it names no heads in past_key_values.0.decoder.key, or "
            "no rotary embedding"
        )
    heads, width = cache[1], cache[3]
    return MoonshineConfig(
        vocab_size=size("model.decoder.embed_tokens.weight", 0, decoder),
        hidden_size=size("model.encoder.conv1.weight", 0, encoder),
        intermediate_size=size("model.encoder.layers.0.mlp.fc1.weight", 0, encoder),
        encoder_num_hidden_layers=layers("encoder"),
        decoder_num_hidden_layers=layers("decoder"),
        encoder_num_attention_heads=heads,
        decoder_num_attention_heads=heads,
        # The publisher's shares are 0.62 and 0.9: that of a head's values that is turned, rounded up.
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": math.ceil(100 * turned / width) / 100,
        },
        pad_head_dim_to_multiple_of=8,
        max_position_embeddings=_MAX_TOKENS,
        # Labels are padded with the end of the transcript.
        pad_token_id=2,
        dtype=torch.float32,
        architectures=["MoonshineForConditionalGeneration"],
    )


def _find(sources: Sequence[Path], name: str) -> Path:
    for folder in sources:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: name the folders with {', '.join(_FILES)}")
        if (folder / name).is_file():
            return folder / name
    shown = ", ".join(str(folder) for folder in sources)
    raise UserError(f"no {name} in {shown}: name every folder that holds a part")


def _write_processor(source: Path, config: MoonshineConfig, folder: Path) -> None:
    try:
        tree = json.loads(source.read_text(encoding="utf-8"))
        ids = {token["content"]: token["id"] for token in tree["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{source} is no Hugging Face tokenizer") from e
    wanted = {_START: config.bos_token_id, _END: config.eos_token_id}
    if any(ids.get(token) != number for token, number in wanted.items()):
        raise UserError(f"{source} is not Moonshine's: {_START} and {_END} are not 1 and 2")
    shutil.copy(source, folder / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source),
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        unk_token="<unk>",
        model_max_length=config.max_position_embeddings,
    )
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"{source} has {len(tokenizer)} tokens and the model {config.vocab_size}: they belong to "
            "different models"
        )
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_converter(convert, __doc__ or "", sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
