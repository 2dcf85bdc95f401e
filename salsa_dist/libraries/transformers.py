"""transformers' internals: the cache in decoding, tables of classes, what a model is built of."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

# What `generate` calls the cache of keys and values: from 5.24 on, and before.
_CACHE_NAMES = ("cache", "past_key_values")


def cache_in(made: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The cache in the arguments that `generate` passes to our decoding loop, with its name.

    Assumes that `generate(custom_generate=loop)` makes the cache before it calls `loop(**made)`, and
    that `batch_select_indices` selects rows of the cache.

    Seen: transformers 5.17 and 5.23 (under the name `past_key_values`), and 5.24 (`cache`).
    Else: None. transformers then decodes with its own loop: the same tokens, slower.
    Test: test_generate_hands_a_cache_to_a_custom_loop
    """
    name = next((n for n in _CACHE_NAMES if made.get(n) is not None), None)
    if name is None or not hasattr(made[name], "batch_select_indices"):
        return None
    return name, made[name]


@contextmanager
def generating_quietly() -> Iterator[None]:
    """Suppress transformers' warnings about arguments of `generate` that transformers itself sets.

    Assumes that the loggers below `transformers.generation`, and those of Whisper's and SeamlessM4T's
    `generate`, give these warnings. Since 5.24, Whisper sets suppressed tokens in addition to a
    generation config, and its default `max_length` in addition to `max_new_tokens`. SeamlessM4T asks
    for a language that is in the prompt.

    Seen: transformers 5.17 and 5.24.
    Else: the warnings are printed; the transcripts are the same.
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
    stop: int | list[int] | None,
    pad: int,
    loop: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """(batch, tokens) ids that transformers' own loop writes: the prompts, and what follows them.

    Args:
        inputs: tensors and other arguments of the model's `generate`.
        max_new_tokens: limit of what follows a prompt.
        synced: keep stepping until all ranks are done, as sharded weights need.
        stop: tokens that end a text; None: the model's own, if it has any.
        pad: what stands behind it.
        loop: what is called in place of the model's own `generate`.

    Assumes that `generate` gives no warning but those that `generating_quietly` suppresses.

    Seen: transformers 5.17 and 5.24.
    Else: the warnings are printed; the transcripts are the same.
    Test: test_generate_says_nothing_of_its_own_arguments
    """
    with generating_quietly():
        ids: torch.Tensor = (loop or model.generate)(
            **inputs,
            **as_it_is(),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop,
            pad_token_id=pad,
            synced_gpus=synced,
        )
    return ids


def as_it_is() -> dict[str, bool]:
    """Arguments with which `generate` runs a model as it is, on a GPU too.

    Else a model whose cache is static, such as Kyutai's, is compiled there: anew for each size of a
    batch, and with the hooks of the first time, which say whose vectors are added.

    Assumes that `generate` takes `disable_compile`.

    Seen: transformers 5.24.
    Else: minutes of compiling on a GPU, and perhaps the vectors of another batch.
    Test: test_generate_compiles_nothing
    """
    return {"disable_compile": True}


def generate_as_it_is(*owners: Any) -> None:
    """From now on `generate` runs a user's model as it is, on a GPU too.

    Else a model with a static cache is compiled there, and what is compiled keeps the hooks of that
    moment: a vector would be added after it was taken away, or not at all.

    Args:
        owners: the model, and a pipeline with settings of its own for `generate`.

    Assumes that `generation_config.disable_compile` says it.

    Seen: transformers 5.24.
    Else: as above, on a GPU.
    Test: test_generate_compiles_no_model_that_is_steered
    """
    for owner in owners:
        if (settings := getattr(owner, "generation_config", None)) is not None:
            settings.disable_compile = True


def listed_class(config: Any) -> Any | None:
    """The class of a config in transformers' tables of speech-LLMs; None: it is in no table.

    After this call, a Gemma 3n is built without its vision tower, see `leave_out_vision`.

    Assumes that `_model_mapping` of the Auto classes has the tables, by type of config.

    Seen: transformers 5.17 and 5.24.
    Else: None. The class is then taken from `architectures` in the checkpoint's config.json.
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
    """Build models without the vision tower of this config, and do not read its weights.

    Assumes that `AutoModel.from_config` makes the tower, and that a model ignores the stored weights
    that its parts list in `_keys_to_ignore_on_load_unexpected`.

    Seen: transformers 5.24. 5.17 cannot register a model for one of its own configs.
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
    """Number of output frames of a CTC encoder for audio of `lengths`, (n,) samples or features.

    Assumes that `_get_feat_extract_output_lengths` or `_get_subsampling_output_length` returns it, as
    for the model's own loss, and needs no weights.

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

    Assumes that `_from_config` makes a model in a precision, except for weights that its class keeps in
    fp32.

    Seen: transformers 5.17 and 5.24.
    Else: the class is called, and all weights have `dtype`.
    Test: test_a_model_is_built_without_weights
    """
    with torch.device("meta"):
        if hasattr(model_class, "_from_config"):
            return model_class._from_config(config, **({} if dtype is None else {"dtype": dtype}))
        model = model_class(config)
        return model if dtype is None else model.to(dtype)


@contextmanager
def without_adapter() -> Iterator[None]:
    """In the block, `from_pretrained` leaves a LoRA beside the weights to `built_in_lora`.

    Assumes that `integrations.peft.find_adapter_config_file` looks for it; here it finds none. The
    arguments of `from_pretrained` can't say so in all releases.

    Seen: transformers 5.17 and 5.24.
    Else: transformers asks for a release of peft, or loads the LoRA as layers of peft, and the base is
        refused.
    Test: test_a_lora_beside_the_weights_is_not_loaded
    """
    from transformers.integrations import peft

    find = peft.find_adapter_config_file
    peft.find_adapter_config_file = lambda *_, **__: None
    try:
        yield
    finally:
        peft.find_adapter_config_file = find


def compute_buffers(model: Any) -> None:
    """Compute empty buffers that no checkpoint contains, such as rotary frequencies.

    Assumes that `initialize_weights` computes them for modules without the mark `_is_hf_initialized`,
    and does not change tensors from a checkpoint.

    Seen: transformers 5.17 and 5.24.
    Else: an AttributeError before training.
    Test: test_buffers_that_no_file_holds_are_computed
    """
    for module in model.modules():
        module._is_hf_initialized = False  # the mark was set while buffers were on the meta device
    model.initialize_weights()


def keep_as_written(generation: Any) -> None:
    """Save and read a generation config unchanged.

    Assumes that transformers may derive a config with the mark `_from_model_config` from config.json
    again, which would lose `lang_to_id`.

    Seen: transformers 5.17 and 5.24.
    Else: nothing changes; the mark has no effect then.
    Test: test_a_generation_config_is_kept_as_written
    """
    generation._from_model_config = False


def whisper_languages() -> dict[str, str]:
    """Language codes and English names that Whisper was trained with.

    Assumes that Whisper's tokenizer module lists them as `LANGUAGES`.

    Seen: transformers 5.17 and 5.24.
    Else: an ImportError with the version, when a chat family needs the name of a language.
    Test: test_whispers_languages_are_listed
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return dict(LANGUAGES)


def qwen3_asr_languages() -> dict[str, str]:
    """Language codes and English names that Qwen3-ASR's prompts use.

    Assumes that its processor's module lists them as `LANGUAGE_CODE_TO_NAME`.

    Seen: transformers 5.17 and 5.24.
    Else: an ImportError with the version, when a Qwen3-ASR base is loaded.
    Test: test_qwen3_asrs_languages_are_listed
    """
    from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

    return dict(LANGUAGE_CODE_TO_NAME)


def language_names(processor: Any) -> dict[str, str]:
    """Language codes and names for the `language` part of a message; {}: its template has no such part.

    Assumes that the processor's module lists them as `LANGUAGE_CODE_TO_NAME`, and that its template
    accepts a part of type `language`.

    Seen: transformers 5.17 and 5.24, Fun-ASR-Nano.
    Else: {}. The prompt is then our own request in English.
    Test: test_language_names_of_a_processor
    """
    if getattr(processor, "chat_template", None) is None or '"language"' not in str(
        processor.chat_template
    ).replace("'", '"'):
        return {}
    names = getattr(sys.modules[type(processor).__module__], "LANGUAGE_CODE_TO_NAME", {})
    return dict(names)


def text_normaliser(clean: Callable[[str], str]) -> Callable[[str], str]:
    """Whisper's normaliser of text in any language, with `clean` instead of its own cleaning step.

    Assumes that `BasicTextNormalizer` is in Whisper's `english_normalizer` and calls its attribute
    `clean`. Both of its own cleaning functions remove combining marks.

    Seen: transformers 5.17 and 5.24.
    Else: an ImportError with the version, when transcripts are scored.
    Test: test_the_normaliser_calls_our_own_step
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normaliser: Any = BasicTextNormalizer()
    normaliser.clean = clean
    normalise: Callable[[str], str] = normaliser
    return normalise


def quantized_weights(model: Any) -> list[str]:
    """Names of the weights that torchao or bitsandbytes quantise in transformers: linear, not the head.

    Assumes that `get_modules_to_not_convert` and `should_convert_module` say which modules stay as they
    are.

    Seen: transformers 5.17 and 5.24.
    Else: an ImportError that names the version, where a quantised base is planned.
    Test: test_planned_weights_are_the_quantised
    """
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept: Any = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and should_convert_module(name, kept)
    ]
