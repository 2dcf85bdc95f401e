"""transformers behind its public classes: how decoding hands over a cache, how weights are named."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# What `generate` calls the cache of keys and values: from 5.24 on, and before.
_CACHE_NAMES = ("cache", "past_key_values")


def cache_in(made: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The cache among what `generate` hands to a decoding loop of our own, and its name there.

    Assumes that `generate(custom_generate=loop)` makes the cache before it calls `loop(**made)`, and
    that rows can be taken out of it by `batch_select_indices`.

    Seen: transformers 5.17 and 5.23 (under the name `past_key_values`), and 5.24 (`cache`).
    Else: None, and transformers decodes by its own loop: the same tokens, slower.
    Test: test_generate_hands_a_cache_to_a_custom_loop
    """
    name = next((n for n in _CACHE_NAMES if made.get(n) is not None), None)
    if name is None or not hasattr(made[name], "batch_select_indices"):
        return None
    return name, made[name]


@contextmanager
def generating_quietly() -> Iterator[None]:
    """Hold back transformers' notes on arguments of `generate` that it set itself.

    Assumes that they are warnings of loggers below `transformers.generation`, of Whisper's own
    `generate`, which since 5.24 hands itself arguments that it warns of: suppressed tokens beside a
    generation config, its default `max_length` beside `max_new_tokens`; and of SeamlessM4T's, which
    asks for a language that stands in the prompt already.

    Seen: transformers 5.17 and 5.24.
    Else: the notes are printed; what is decoded is the same.
    Test: test_generate_says_nothing_of_its_own_arguments
    """
    models = ("whisper.generation_whisper", "seamless_m4t_v2.modeling_seamless_m4t_v2")
    names = ("transformers.generation", *(f"transformers.models.{name}" for name in models))
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def decode_greedily(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int,
    synced: bool,
    stop: int | list[int],
    pad: int,
) -> torch.Tensor:
    """(batch, tokens) ids that transformers' own loop writes: the prompts, and what follows them.

    Args:
        inputs: tensors and other arguments of the model's `generate`.
        max_new_tokens: limit of what follows a prompt.
        synced: keep stepping until all ranks are done, as sharded weights need.
        stop: tokens that end a text.
        pad: what stands behind it.
    """
    with generating_quietly():
        ids: torch.Tensor = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop,
            pad_token_id=pad,
            synced_gpus=synced,
        )
    return ids


def listed_class(config: Any) -> Any | None:
    """The class that transformers' tables of speech-LLMs list for a config; None: they list none.

    From then on a Gemma 3n is built without its vision tower, see `leave_out_vision`.

    Assumes that the tables are `_model_mapping` of the Auto classes, by type of config.

    Seen: transformers 5.17 and 5.24.
    Else: None, and the class is the one that the checkpoint's config.json names in `architectures`.
    Test: test_the_tables_of_auto_classes_can_be_read
    """
    from transformers import AutoModelForCTC, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq

    for auto in (AutoModelForSpeechSeq2Seq, AutoModelForMultimodalLM, AutoModelForCTC):
        table = getattr(auto, "_model_mapping", {})
        if type(config) in table:
            if config.model_type == "gemma3n":
                leave_out_vision(config.vision_config)
            return table[type(config)]
    return None


def leave_out_vision(config: Any) -> None:
    """Have models with a vision tower of this config built without it, and its weights not read.

    Assumes that the tower is made by `AutoModel.from_config`, and that a model ignores the stored
    weights that its parts list in `_keys_to_ignore_on_load_unexpected`.

    Seen: transformers 5.24; 5.17 registers no model for a config of its own.
    Else: the tower is built, which needs timm and torchvision.
    Test: test_gemma3n_is_built_without_its_vision_tower
    """
    from transformers import AutoModel, PreTrainedModel

    class NoVision(PreTrainedModel):
        config_class = type(config)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self._keys_to_ignore_on_load_unexpected = {r"vision_tower\."}
            self.post_init()

    AutoModel.register(type(config), NoVision, exist_ok=True)


def frames_of(model: Any, lengths: torch.Tensor) -> torch.Tensor:
    """How many frames an encoder trained by CTC makes of audio of `lengths`, (n,) samples or features.

    Assumes that it tells by `_get_feat_extract_output_lengths` or `_get_subsampling_output_length`, as
    its own loss does, and uses shapes alone.

    Seen: transformers 5.24.
    Else: an AttributeError before training.
    Test: test_an_encoder_tells_how_many_frames_it_makes
    """
    for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
        if hasattr(model, name):
            return torch.as_tensor(getattr(model, name)(lengths)).long()
    raise AttributeError(f"{type(model).__name__} does not tell how many frames it makes")


def without_weights(model_class: Any, config: Any, dtype: torch.dtype | None = None) -> Any:
    """A model of `config` on the meta device: shapes and no numbers.

    Assumes that `_from_config` makes a model in a precision and keeps in fp32 what its class keeps so.

    Seen: transformers 5.17 and 5.24.
    Else: the class is called, and all of its weights are of `dtype`.
    Test: test_a_model_is_built_without_weights
    """
    with torch.device("meta"):
        if hasattr(model_class, "_from_config"):
            return model_class._from_config(config, **({} if dtype is None else {"dtype": dtype}))
        model = model_class(config)
        return model if dtype is None else model.to(dtype)


def commit_of(name: str, revision: str | None, fetched: bool = False) -> str | None:
    """The hub commit of a hub name as it is on this machine; None: it can't be told.

    Where the base was `fetched` just now, the hub is not asked again.

    Assumes that the path of a file of the hub's cache is `…/snapshots/COMMIT/FILE`. transformers itself
    no longer keeps the commit in a config (5.24).

    Seen: transformers 5.17 and 5.24.
    Else: None. The base's revision is then `unknown`, so adapters of two commits are not told apart.
    Test: test_the_commit_of_a_hub_name_is_known
    """
    found = _in_cache(name, revision) if fetched else file_in(name, "config.json", revision)
    if found is None or found.parent.parent.name != "snapshots":
        return None
    return found.parent.name


def _in_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def file_in(name: str, wanted: str, revision: str | None) -> Path | None:
    """A file of a folder or hub name, fetched if need be; None: there is no such file.

    Assumes that `cached_file`, given `_raise_exceptions_for_missing_entries=False`, answers None then.

    Seen: transformers 5.17 and 5.24.
    Else: for a folder it is not asked; for a hub name a TypeError before anything is loaded.
    Test: test_a_file_that_is_not_there_is_none
    """
    if Path(name).is_dir():
        file = Path(name, wanted)
        return file if file.is_file() else None
    from transformers.utils import cached_file

    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    found = cached_file(name, wanted, **options)
    return None if found is None else Path(found)


def renaming(model: Any) -> Callable[[str], tuple[str, bool]] | None:
    """From the name of a stored tensor to its name in `model`, and whether more than that changes.

    Assumes that `get_model_conversion_mapping` lists the renames and conversions of a checkpoint and
    that `rename_source_key` applies them to one name, as `from_pretrained` does.

    Seen: transformers 5.17 and 5.24.
    Else: None, and each rank loads the base whole before it keeps its part: more host memory, the same
        weights.
    Test: test_stored_names_become_the_models
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key
    except ImportError:
        return None
    mapping = get_model_conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings: list[Any] = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    names, prefix = model.state_dict(), model.base_model_prefix

    def rename(key: str) -> tuple[str, bool]:
        target, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if target not in names and key in names:
            target, pattern = rename_source_key(key, [], [], prefix, names)
        return target, pattern is not None

    return rename


def compute_buffers(model: Any) -> None:
    """Compute the buffers that no checkpoint holds, such as rotary frequencies, where they are empty.

    Assumes that `initialize_weights` computes them for modules that are not marked by
    `_is_hf_initialized`, and leaves tensors alone that came from a checkpoint.

    Seen: transformers 5.17 and 5.24.
    Else: an AttributeError before training.
    Test: test_buffers_that_no_file_holds_are_computed
    """
    for module in model.modules():
        module._is_hf_initialized = False  # looked at before, while there was nothing to fill
    model.initialize_weights()


def keep_as_written(generation: Any) -> None:
    """Have a generation config saved and read as it is.

    Assumes that a config marked `_from_model_config` may be derived again from config.json, which
    would lose `lang_to_id`.

    Seen: transformers 5.17 and 5.24.
    Else: nothing: the mark means nothing then.
    Test: test_a_generation_config_is_kept_as_written
    """
    generation._from_model_config = False


def whisper_languages() -> dict[str, str]:
    """Language codes and English names that Whisper was trained with.

    Assumes that Whisper's tokenizer module lists them as `LANGUAGES`.

    Seen: transformers 5.17 and 5.24.
    Else: an ImportError that names the version, where a chat family asks for a language's name.
    Test: test_whispers_languages_are_listed
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return dict(LANGUAGES)


def qwen3_asr_languages() -> dict[str, str]:
    """Language codes and English names that Qwen3-ASR's prompts use.

    Assumes that its processor's module lists them as `LANGUAGE_CODE_TO_NAME`.

    Seen: transformers 5.17 and 5.24.
    Else: an ImportError that names the version, when a Qwen3-ASR base is loaded.
    Test: test_qwen3_asrs_languages_are_listed
    """
    from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

    return dict(LANGUAGE_CODE_TO_NAME)


def language_names(processor: Any) -> dict[str, str]:
    """Language codes and names that a processor's own request takes as a part of the message; {}: none.

    Assumes that the module of a processor whose `apply_transcription_request` takes a language lists
    them as `LANGUAGE_CODE_TO_NAME`, and that its template takes a part of type `language`.

    Seen: transformers 5.17 and 5.24, Fun-ASR-Nano.
    Else: {}, and the prompt is our own request in English.
    Test: test_language_names_of_a_processor
    """
    if getattr(processor, "chat_template", None) is None or '"language"' not in str(
        processor.chat_template
    ).replace("'", '"'):
        return {}
    names = getattr(sys.modules[type(processor).__module__], "LANGUAGE_CODE_TO_NAME", {})
    return dict(names)


def text_normaliser(clean: Callable[[str], str]) -> Callable[[str], str]:
    """Whisper's normaliser of text in any language, with `clean` in place of its own step.

    Assumes that `BasicTextNormalizer` lies in Whisper's `english_normalizer` and calls whatever
    function it holds as `clean`; its own two choices lose combining marks.

    Seen: transformers 5.17 and 5.24.
    Else: an ImportError that names the version, when transcripts are scored.
    Test: test_the_normaliser_calls_our_own_step
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normaliser: Any = BasicTextNormalizer()
    normaliser.clean = clean
    normalise: Callable[[str], str] = normaliser
    return normalise
