"""What salsa_dist/libraries/transformers.py assumes of the installed transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_frames import make_kyutai

from salsa_dist.data.clip import silent_clip
from salsa_dist.libraries import transformers as library
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.steering.widths import site_widths


def _llama() -> Any:
    from transformers import LlamaConfig

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 8}
    return LlamaConfig(**size, num_attention_heads=2, num_key_value_heads=2)


def test_generate_hands_a_cache_to_a_custom_loop(tiny_base: Path) -> None:
    model = load_speech_llm(tiny_base).model
    seen: dict[str, Any] = {}

    def loop(model: Any, input_ids: torch.Tensor, **made: Any) -> torch.Tensor:
        seen.update(made)
        return torch.cat([input_ids, input_ids[:, -1:]], dim=-1)  # Whisper wants at least one token

    model.generate(torch.zeros(2, 80, 200), custom_generate=loop, max_new_tokens=2)
    found = library.cache_in(seen)
    assert found is not None, f"no cache among {sorted(seen)}"
    assert found[0] in ("cache", "past_key_values")


def test_the_tables_of_auto_classes_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    config = transformers.WhisperConfig()
    assert library.listed_class(config) is transformers.WhisperForConditionalGeneration
    ctc = transformers.Wav2Vec2Config()
    assert library.listed_class(ctc) is transformers.Wav2Vec2ForCTC
    for auto in ("SpeechSeq2Seq", "MultimodalLM", "CTC"):
        monkeypatch.setattr(getattr(transformers, f"AutoModelFor{auto}"), "_model_mapping", {})
    assert library.listed_class(ctc) is None
    assert library.listed_class(config) is None


def test_an_encoder_tells_how_many_frames_it_makes() -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    model = library.without_weights(Wav2Vec2ForCTC, Wav2Vec2Config(num_hidden_layers=1))
    assert library.frames_of(model, torch.tensor([399, 400, 16_000])).tolist() == [0, 1, 49]
    with pytest.raises(AttributeError, match="does not tell how many frames"):
        library.frames_of(torch.nn.Linear(1, 1), torch.tensor([1]))


def test_a_model_is_built_without_weights() -> None:
    from transformers import LlamaForCausalLM

    model = library.without_weights(LlamaForCausalLM, _llama(), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {"meta"}
    # Where `_from_config` is gone, the class is called.
    made = library.without_weights(lambda config: LlamaForCausalLM(config), _llama(), torch.bfloat16)
    shapes = {n: (p.shape, p.dtype, p.device) for n, p in model.named_parameters()}
    assert {n: (p.shape, p.dtype, p.device) for n, p in made.named_parameters()} == shapes


def test_buffers_that_no_file_holds_are_computed() -> None:
    from transformers import LlamaForCausalLM

    real = LlamaForCausalLM(_llama())
    wanted = real.model.rotary_emb.inv_freq.clone()
    weight = real.lm_head.weight.detach().clone()
    real.lm_head.weight._is_hf_initialized = True  # as what comes from a checkpoint is marked
    real.model.rotary_emb.inv_freq.fill_(float("nan"))
    library.compute_buffers(real)
    assert torch.equal(real.model.rotary_emb.inv_freq, wanted)
    assert torch.equal(real.lm_head.weight, weight)


def test_a_generation_config_is_kept_as_written(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    generation = GenerationConfig(lang_to_id={"<|bg|>": 3})
    library.keep_as_written(generation)
    generation.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).lang_to_id == {"<|bg|>": 3}


def test_whispers_languages_are_listed() -> None:
    assert library.whisper_languages()["bg"] == "bulgarian"
    assert len(library.whisper_languages()) > 90


def test_qwen3_asrs_languages_are_listed() -> None:
    assert library.qwen3_asr_languages()["en"] == "English"


def test_gemma3n_is_built_without_its_vision_tower() -> None:
    from transformers import AutoModel, Gemma3nConfig

    config = Gemma3nConfig()
    try:
        library.leave_out_vision(config.vision_config)
        tower = AutoModel.from_config(config.vision_config)
    except ImportError:
        pytest.skip("this transformers wants timm")
    assert not list(tower.parameters())
    assert tower._keys_to_ignore_on_load_unexpected == {r"vision_tower\."}


def test_language_names_of_a_processor() -> None:
    from transformers import FunAsrNanoProcessor

    processor = FunAsrNanoProcessor.__new__(FunAsrNanoProcessor)
    processor.chat_template = "{% if c.type == 'language' %}"
    assert library.language_names(processor)["zh"] == "中文"
    processor.chat_template = "{{ c.text }}"
    assert library.language_names(processor) == {}


def test_the_normaliser_calls_our_own_step() -> None:
    assert library.text_normaliser(lambda text: text.replace("a", "e"))("A  [noise] name").split() == [
        "e",
        "neme",
    ]


def test_generate_says_nothing_of_its_own_arguments(
    tiny_base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging

    base = load_speech_llm(tiny_base)
    features = torch.zeros(2, 80, 200)
    logging.set_verbosity_warning()
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)  # not so in each release
    caplog.clear()
    with library.generating_quietly():
        base.model.generate(input_features=features, max_new_tokens=3, language="bg")
    assert caplog.text == ""
    base.model.generate(input_features=features, max_new_tokens=3, language="bg")
    assert "max_new_tokens" in caplog.text  # else there is nothing to hold back any more


def compiling(base: SpeechLLM, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What transformers compiles on a GPU is compiled here, and noted."""
    from transformers import CompileConfig

    everywhere = base.model.generation_config.compile_config = CompileConfig()
    everywhere._compile_all_devices = True
    compiled: list[Any] = []
    monkeypatch.setattr(
        base.model, "get_compiled_call", lambda config: compiled.append(config) or base.model.__call__
    )
    return compiled


def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` is called as by a user."""
    from transformers import GenerationMixin

    generate = GenerationMixin.generate

    def without(model: Any, *, disable_compile: bool, **others: Any) -> Any:
        return generate(model, **others)

    monkeypatch.setattr(GenerationMixin, "generate", without)


def test_generate_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_speech_llm(make_kyutai(tmp_path / "base"))  # its cache is static
    compiled = compiling(base, monkeypatch)
    prompts = base.family.prompt_batch([silent_clip("en")])
    base.family.generate(base.model, prompts, 4)
    assert compiled == []
    unasked(monkeypatch)
    base.family.generate(base.model, prompts, 4)
    assert compiled  # else it need not be asked any more


def test_generate_compiles_no_model_that_is_steered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_speech_llm(make_kyutai(tmp_path / "base"))
    compiled = compiling(base, monkeypatch)
    unasked(monkeypatch)
    prompts = base.family.prompt_batch([silent_clip("en")])
    site, width = next(iter(site_widths(base.layer_lists).items()))
    with SteeringVectors({site: torch.ones(width)}, "salsa").attach(base.model):
        base.family.generate(base.model, prompts, 4)
    base.family.generate(base.model, prompts, 4)
    assert compiled == []


def test_planned_weights_are_the_quantised(tiny_base: Path) -> None:
    pytest.importorskip("torchao")  # `make quantized` has it
    model = load_speech_llm(tiny_base, quantization="int8").model
    quantised = [n for n, p in model.named_parameters() if hasattr(p, "qdata")]
    assert library.quantized_weights(model) == quantised
    assert len(quantised) == 3 * 6 + 3 * 10


def test_a_lora_beside_the_weights_is_not_loaded(tiny_base: Path, tmp_path: Path) -> None:
    """peft's files would make transformers ask for peft, or load them."""
    from transformers import WhisperForConditionalGeneration

    folder = shutil.copytree(tiny_base, tmp_path / "base")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with library.without_adapter():
        model = WhisperForConditionalGeneration.from_pretrained(folder)
    assert not any("lora" in name for name, _ in model.named_parameters())
    with pytest.raises(Exception, match=r"(?i)peft|adapter"):  # else nothing need be kept from it
        WhisperForConditionalGeneration.from_pretrained(folder)
