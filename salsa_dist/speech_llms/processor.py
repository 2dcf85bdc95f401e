"""The processor of a base: loaded from its files, and refused where it is not that of its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.speech_llms.reading_base import reading_base, reason_of

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
        raise UserError(
            f"base {name} lacks its processor ({reason}): put preprocessor_config.json, the "
            "tokenizer's files and, where it has one, processor_config.json beside its weights"
        ) from cause
    return processor


def refuse_other_features(name: str, config: Any, processor: Any) -> None:
    """Refuse a processor of another version of a base, which the first batch would fail with."""
    size = getattr(getattr(processor, "feature_extractor", None), "feature_size", None)
    bins = getattr(getattr(config, "audio_config", config), "num_mel_bins", None)
    if isinstance(size, int) and isinstance(bins, int) and size != bins:
        raise UserError(
            f"base {name}: its processor makes {size} mel bins, config.json wants {bins}: take all "
            "files from one revision"
        )
