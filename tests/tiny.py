"""A complete tiny Whisper and tiny shards, made here: tests need no download.

The base is random, 3 + 3 layers of width 32, with a 2 s window and a byte tokenizer; the clips are
noise with made-up words. Nothing is learned from them that makes sense; gradients are real.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from salsa_dist.corpus.writer import Sample, ShardWriter

SPECIAL = [
    *("<|endoftext|>", "<|startoftranscript|>", "<|bg|>", "<|el|>", "<|en|>", "<|translate|>"),
    *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
]
MARKED: tuple[Any, ...] = ({"speech": False}, {"loss_weight": 0.3}, {"loss_weight": 2.5}, {})
WORDS = ["vuk", "lisa", "mechka", "zaek", "riba", "kon", "ptica", "kotka"]


def make_base(folder: Path, seed: int = 0, **shape: int) -> Path:
    """Write a tiny Whisper checkpoint with tokenizer and processor; `shape` changes its config."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    ids = {t: tokenizer.token_to_id(t) for t in SPECIAL}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]

    torch.manual_seed(seed)
    tree: dict[str, int] = {
        "vocab_size": len(letters) + len(SPECIAL),
        "num_mel_bins": 80,
        "d_model": 32,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_source_positions": 100,
        "max_target_positions": 48,
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    config = WhisperConfig(**{**tree, **shape})
    model = WhisperForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed_positions" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    model.generation_config = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        max_length=48,
        is_multilingual=True,
        lang_to_id={t: ids[t] for t in ("<|bg|>", "<|el|>", "<|en|>")},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        suppress_tokens=[],
        begin_suppress_tokens=[end],
        return_timestamps=False,
    )
    model.generation_config._from_model_config = False
    model.save_pretrained(folder)
    features = WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    words = WhisperTokenizer(
        tokenizer_object=tokenizer,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    )
    WhisperProcessor(features, words).save_pretrained(folder)
    return folder


def make_shards(
    folder: Path,
    train: int = 24,
    held_out: int = 6,
    per_shard: int = 6,
    weighted: bool = False,
    seconds: tuple[float, float] = (0.4, 1.8),
    languages: Sequence[str] = ("bg", "el"),
) -> Path:
    """Write shards of noise clips in `languages`, of unequal lengths (`seconds`) and texts.

    Of each four clips that are `weighted`, one has no speech and two have weights of their own.
    """
    rng = np.random.default_rng(0)
    with ShardWriter(folder, "tiny", seed=0) as writer:
        for language in languages:
            for split, count in (("train", train), ("dev", held_out), ("test", held_out)):
                samples = []
                for i in range(count):
                    length = int(16_000 * rng.uniform(*seconds))
                    audio = rng.standard_normal(length).astype(np.float32)
                    words = rng.choice(WORDS, size=rng.integers(1, 5))
                    samples.append(
                        Sample(
                            key=f"{language}/{split}-{i}",
                            audio=(0.1 * audio).clip(-1, 1),
                            text="" if weighted and i % 4 == 0 else " ".join(words),
                            language=language,
                            speaker=None,
                            licence="CC0",
                            source="made by the tests",
                            **(MARKED[i % 4] if weighted else {}),
                        )
                    )
                writer.write(split, language, samples, per_shard)
        writer.finish({"source": "noise"})
    return folder


def make_config(folder: Path, base_folder: Path, shards_folder: Path, **sections: object) -> Path:
    """Write a small run's config; `sections` replace those below.

    Where a test does not say otherwise, learning rates are absolute and padding is not thinned.
    """
    tree: dict[str, Any] = {
        "run": str(folder / "run"),
        "base": {"name": str(base_folder)},
        "data": {"shards": str(shards_folder), "clips_per_step": 5, "readers": 4},
        "steering": {"sites": "encoder+llm", "rule": "salsa"},
        "adapters": [{"name": "bg", "language": "bg"}, {"name": "el", "language": "el", "rule": "add"}],
        "training": {"steps": 6, "lr": 0.02, "save_every_s": 0},
        "evaluation": {"windows_s": [None], "batch": 4, "max_new_tokens": 8},
        **sections,
    }
    tree["training"] = {"lr_scale": {}, "silence_stride": 1, **tree["training"]}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
