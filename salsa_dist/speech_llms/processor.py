"""The processor of a base: loaded from its files, and refused where it is not that of its model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.chat import ChatFamily
from salsa_dist.speech_llms.family import Family
from salsa_dist.speech_llms.reading_base import reading_base, reason_of
from salsa_dist.versions import version_of

# What configs call the mel bins of a frame; `input_feat_size`: Gemma 3n, `input_size`: Phi-4.
_BINS = ("num_mel_bins", "input_feat_size", "input_size")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def load_processor(
    name: str, files: tuple[str, str | None], load: Callable[[str, str | None], Any]
) -> Any:
    """The processor of base `name`, whose files lie in `files`, a folder or hub name and its revision.

    Raises:
        UserError: it, or its tokenizer or feature extractor, is not there.
    """
    cause: UserError | None = None
    try:
        with reading_base(name):
            processor = load(*files)
        reason = "its files make no feature extractor"
    except UserError as e:
        processor, reason, cause = None, reason_of(e.__cause__ or e), e
    # Without its files transformers makes some tokenizers with an empty vocabulary, and says nothing.
    folder = Path(files[0])
    vocabulary = any(path for kind in _TOKENIZER_FILES for path in folder.glob(kind))
    if hasattr(processor, "tokenizer") and folder.is_dir() and not vocabulary:
        processor, reason = None, "no tokenizer.json or other vocabulary"
    parts = (
        processor,
        getattr(processor, "feature_extractor", None),
        getattr(processor, "audio_processor", None),
    )
    if not any(hasattr(part, "sampling_rate") for part in parts):
        if unknown := _unknown_class(folder):
            raise UserError(
                f"base {name}: its processor's files name {unknown}, which transformers "
                f"{version_of('transformers')} does not have: take all files from one revision, or "
                "install the release that wrote them"
            ) from cause
        raise UserError(
            f"base {name} lacks its processor ({reason}): put preprocessor_config.json, the "
            "tokenizer's files and, where it has one, processor_config.json beside its weights"
        ) from cause
    return processor


def _unknown_class(folder: Path) -> str | None:
    """A class that a processor's files in `folder` name and transformers lacks; None: no such class."""
    import transformers

    there = set(dir(transformers))
    for file in ("processor_config.json", "preprocessor_config.json"):
        try:
            tree = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for part in (tree, tree.get("feature_extractor") or {}, tree.get("audio_processor") or {}):
            for key in ("processor_class", "feature_extractor_type"):
                if key in part and part[key] not in there:
                    return str(part[key])
    return None


def refuse_other_features(name: str, config: Any, processor: Any, resamples: bool) -> None:
    """Refuse a processor of another version of a base, which the first batch would fail with.

    Args:
        resamples: the family gives the processor audio at the rate that it takes.

    Raises:
        UserError: it makes other features than the model takes, or of audio at another rate than clips.
    """
    rate = getattr(getattr(processor, "feature_extractor", processor), "sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE and not resamples:
        raise UserError(
            f"base {name}: its processor takes audio at {rate} Hz, and clips have {SAMPLE_RATE}: take "
            "its files from the revision of its weights, or another base"
        )
    extractor = getattr(processor, "feature_extractor", None)
    size, bins = getattr(extractor, "feature_size", None), _bins(config, extractor)
    if isinstance(size, int) and bins is not None and size != bins:
        raise UserError(
            f"base {name}: its processor makes {size} mel bins, config.json wants {bins}: take all "
            "files from one revision"
        )


def _bins(config: Any, extractor: Any) -> int | None:
    """Mel bins of a frame that a model of `config` takes; None: it does not say."""
    width = getattr(config, "feature_projection_input_dim", None)  # of SeamlessM4T: joined frames
    if isinstance(width, int):
        return width // getattr(extractor, "stride", 1)
    parts = [getattr(config, name, None) for name in ("audio_config", "encoder_config")]
    for part in (*parts, config):
        named = [getattr(part, key, None) for key in _BINS]
        # Gemma 4 has as many bins as its first convolution has channels.
        channels = getattr(part, "subsampling_conv_channels", None)
        named += channels[:1] if isinstance(channels, list) else []
        if found := [bins for bins in named if isinstance(bins, int)]:
            return found[0]
    return None


def refuse_incomplete(name: str, config: Any, processor: Any) -> None:
    """Refuse a base without a family file, before weights are read, whose files tell too little.

    Raises:
        UserError: its processor has no chat template, tokenizer, feature extractor or audio token, or
            its config no `audio_token_id`.
    """
    needed = ("chat_template", "tokenizer", "feature_extractor", "audio_token")
    lacking = [key.replace("_", " ") for key in needed if not getattr(processor, key, None)]
    if lacking or getattr(config, "audio_token_id", None) is None:
        files = "processor" if lacking else "config.json"
        raise UserError(
            f"base {name} is a {config.model_type!r} model, which has no family file, and its {files} "
            f"has no {', no '.join(lacking or ['audio_token_id'])}: it can't be trained; "
            "docs/adding-a-model.md says how to add one"
        )


def refuse_failing(name: str, family: Family) -> None:
    """Refuse a processor or chat template that can't make a batch of a second of silence.

    Raises:
        UserError: with what the batch failed with.
    """
    if not isinstance(family, ChatFamily):
        return
    clip = Clip("silence", np.zeros(SAMPLE_RATE, np.float32), "a", "en", 0)
    advice = "Take all files from one revision."
    with reading_base(name, "has a processor that makes no batch of a clip", advice):
        batch = family.training_batch([clip])
    if not bool((batch.inputs["input_ids"] == family.audio_id).any()):
        raise UserError(
            f"base {name}: its chat template writes no audio token {family.audio_token!r}: take all "
            "files from one revision"
        )
