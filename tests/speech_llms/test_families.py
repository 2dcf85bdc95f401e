"""What each family says to its base, against what its authors or transformers' own processor would."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import noise, placed, random_bank
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import GenerationConfig, PreTrainedTokenizerFast

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.errors import UserError
from salsa_dist.metrics.normalise import unit
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.load import FAMILIES as FILES
from salsa_dist.speech_llms.load import SpeechLLM, family_of, load_speech_llm
from salsa_dist.steering.sites import find_layers, site_modules
from salsa_dist.steering.widths import output_width, site_widths
from salsa_dist.training.loss import token_losses

Load = Callable[..., SpeechLLM]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    made: dict[str, Path] = {}

    def load(family: str, **options: Any) -> SpeechLLM:
        if family not in FAMILIES:
            pytest.skip("needs mistral-common")
        if family not in made:
            made[family] = FAMILIES[family](tmp_path_factory.mktemp("families") / family)
        return load_speech_llm(made[family], **options)

    return load


def test_a_family_file_has_at_most_120_lines() -> None:
    files = {inspect.getsourcefile(family) for family in (*FILES.values(), family_of("no such model"))}
    lines = {file: len(Path(file).read_text(encoding="utf-8").splitlines()) for file in files if file}
    assert len(lines) > 15
    assert {file: count for file, count in lines.items() if count > 120} == {}


def prompt(base: SpeechLLM, language: str) -> str:
    return str(base.family.tokenizer.decode(base.family.prompt(language)))  # type: ignore[attr-defined]


def test_prompts(load: Load) -> None:
    qwen2 = load("qwen2_audio")
    assert prompt(qwen2, "el") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
        "Detect the language and recognize the speech: <|el|><|im_end|>\n<|im_start|>assistant\n"
    )
    qwen3 = load("qwen3_asr")
    assert prompt(qwen3, "el").endswith("<|im_start|>assistant\nlanguage Greek<asr_text>")
    assert prompt(qwen3, "tw").endswith("language None<asr_text>")
    assert prompt(qwen3, "tw-en").endswith("language English<asr_text>")
    omni = load("qwen2_5_omni")
    assert "<|audio_eos|>Transcribe the Greek audio into text without" in prompt(omni, "el")
    assert "Transcribe the Chinese and English audio" in prompt(omni, "zh-en")
    assert "<|audio_eos|>Transcribe the audio into text without" in prompt(omni, "tw")
    omni = load("qwen3_omni")
    assert prompt(omni, "el") == (
        "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|>Transcribe the Greek audio "
        "into text.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "<|audio_end|>Transcribe the audio into text.<" in prompt(omni, "tw")
    assert "<|audio_end|>请将这段中文语音转换为纯文本。<" in prompt(omni, "zh")
    granite = load("granite_speech")
    assert prompt(granite, "bg") == (
        "<|start_of_role|>user<|end_of_role|><|audio|>can you transcribe the speech into a written "
        "format?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
    )


@pytest.mark.parametrize(
    ("family", "same_as", "names"),
    [
        ("qwen2_audio", "zh", "recognize the speech: <|zh|>"),
        ("qwen3_asr", "zh", "language Chinese<asr_text>"),
        ("qwen2_5_omni", None, "Transcribe the Chinese and English audio into text"),
        ("qwen3_omni", None, "Transcribe the Chinese and English audio into text"),
        ("audioflamingo3", "en", "Transcribe the input speech."),
        ("voxtral", "zh", "lang:zh[TRANSCRIBE]"),
        ("glm_asr", "en", "transcribe"),
        ("granite_speech", "en", "can you transcribe the speech into a written format?"),
    ],
)
def test_how_each_chat_family_names_mixed_speech(
    load: Load, family: str, same_as: str | None, names: str
) -> None:
    base = load(family)
    said = prompt(base, "zh-en")
    assert names in said
    assert said not in [prompt(base, code) for code in ("zh", "en", "el") if same_as is None]
    if same_as is not None:
        assert said == prompt(base, same_as)
    # The order of the parts counts, but where no language is named.
    nameless = family in ("glm_asr", "granite_speech", "audioflamingo3")
    assert (said == prompt(base, "en-zh")) == nameless


def test_granites_prompt_does_not_change_overnight(load: Load) -> None:
    base: Any = load("granite_speech")
    own = base.family.tokenizer.chat_template
    dated = own.replace(
        "{% for m",
        "{% if messages[0].role != 'system' %}{{ strftime_now('%B %d') }}{% endif %}{% for m",
        1,
    )
    family = copy.deepcopy(base.family)
    family.tokenizer.chat_template = family.processor.chat_template = dated
    assert "strftime" in dated
    text = family.prompt_text("bg")
    assert text.startswith("<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.")


def test_voxtrals_prompt(load: Load) -> None:
    base = load("voxtral")
    assert prompt(base, "el-GR") == "<s>[INST][BEGIN_AUDIO][AUDIO][/INST]lang:el[TRANSCRIBE]"
    assert prompt(base, "yue") == "<s>[INST][BEGIN_AUDIO][AUDIO][/INST][TRANSCRIBE]"


def test_the_pretrained_qwen2_audio_reads_the_bare_request(load: Load, tmp_path: Path) -> None:
    folder = FAMILIES["qwen2_audio"](tmp_path / "base")
    generation = GenerationConfig.from_pretrained(folder)
    generation.eos_token_id = generation.eos_token_id[0]
    generation.save_pretrained(folder)
    base = load_speech_llm(folder)
    assert prompt(base, "el") == (
        "<|audio_bos|><|AUDIO|><|audio_eos|>Detect the language and recognize the speech: <|el|>"
    )
    batch = base.family.training_batch([noise(1, "kon", "el", 0)])
    assert base.family.tokenizer.decode(batch.labels.tolist()) == "kon<|endoftext|>"  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["qwen2_audio", "qwen2_5_omni", "granite_speech", "glm_asr"])
def test_an_instruction_of_the_users(load: Load, family: str) -> None:
    base = load(family, prompt="Write down this {language}.")
    assert "Write down this Bulgarian." in prompt(base, "bg")
    assert "Write down this tw." in prompt(base, "tw")


def test_whispers_language_tokens(load: Load) -> None:
    base = load("whisper")
    assert "<|el|>" in prompt(base, "el")
    assert "<|bg|>" in prompt(base, "bg-BG")
    assert "<|el|>" in prompt(base, "sq-el")
    assert "<|en|>" in prompt(base, "tw")
    told = load("whisper", language_as={"tw": "bg"})
    assert "<|bg|>" in prompt(told, "tw")
    with pytest.raises(UserError, match="no token for language 'yo'"):
        load("whisper", language_as={"tw": "yo"}).family.prompt("tw")
    with pytest.raises(UserError, match="no token for language 'zh'"):
        load("whisper", language_as={"zh-en": "en+zh"}).family.prompt("zh-en")
    with pytest.raises(UserError, match="takes no instruction"):
        load("whisper", prompt="Write this down.")


def test_whisper_with_the_tokens_of_both_languages(load: Load) -> None:
    base = load("whisper", language_as={"zh-en": "el+bg"})
    assert "<|startoftranscript|><|el|><|bg|><|transcribe|>" in prompt(base, "zh-en")
    assert "<|startoftranscript|><|bg|><|transcribe|>" in prompt(base, "bg")
    family: Any = base.family
    assert family.apart("zh-en") == family.apart("bg") + 1
    clips = [noise(1, "kon", "zh-en", i) for i in range(2)]
    one = noise(1, "kon", "bg", 2)
    training = family.training_batch([*clips, one])
    ids = training.inputs["decoder_input_ids"].tolist()
    assert [row[:5] for row in ids[:2]] == [family.prompt("zh-en")] * 2
    assert ids[2][:4] == family.prompt("bg")
    assert int(training.label_positions.int().argmax(1)[0]) == 4  # behind the last of the prompt
    # Decoding goes on from the prompt of training, with what the model says next.
    both = family.prompt_batch(clips)
    assert both.inputs["decoder_input_ids"].tolist() == [family.prompt("zh-en")] * 2
    assert "decoder_input_ids" not in family.prompt_batch([one]).inputs
    said = family.generate(base.model, both, max_new_tokens=6)
    begun = both.inputs["decoder_input_ids"]
    features = both.inputs["input_features"]
    for _ in range(6):
        logits = base.model(input_features=features, decoder_input_ids=begun).logits[:, -1]
        begun = torch.cat([begun, logits.argmax(-1, keepdim=True)], dim=1)
    assert any(t.text for t in said)
    assert [t.text for t in said] == [family.transcript(row[5:]) for row in begun.tolist()]


def test_voxtral_gets_what_its_processor_makes(load: Load) -> None:
    base = load("voxtral")
    clip = noise(3.1, "", "el", 0)
    # A WAV has 16 bits: take a clip that they hold.
    clip = replace(clip, audio=np.round(clip.audio * 32768).astype(np.float32) / 32768)
    processor: Any = base.family.processor  # type: ignore[attr-defined]
    wanted = processor.apply_transcription_request(
        audio=[clip.audio],
        model_id="",
        language="el",
        sampling_rate=SAMPLE_RATE,
        format="WAV",
        audio_kwargs={"pad_to_multiple_of": 2 * SAMPLE_RATE, "max_source_positions": 200},
    )
    found = base.family.prompt_batch([clip])
    assert found.inputs["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert found.rows["encoder"].tolist() == [0, 0]
    assert torch.allclose(found.inputs["input_features"], wanted["input_features"], atol=1e-4)


def test_qwen3_asr_asks_as_its_processor_does(load: Load) -> None:
    base = load("qwen3_asr")
    clip = noise(2.3, "", "el", 0)
    processor: Any = base.family.processor  # type: ignore[attr-defined]
    wanted = processor.apply_transcription_request(audio=[clip.audio], language="el")
    found = base.family.prompt_batch([clip]).inputs
    for name in ("input_ids", "input_features", "input_features_mask"):
        assert torch.equal(found[name], wanted[name]), name


def test_glm_asr_asks_as_its_processor_does(load: Load) -> None:
    base = load("glm_asr")
    assert prompt(base, "el") == (
        "<|user|>\n<|begin_of_audio|><|pad|><|end_of_audio|><|user|>\n"
        "Please transcribe this audio into text<|assistant|>\n"
    )
    processor: Any = base.family.processor  # type: ignore[attr-defined]
    for seconds, windows in ((0.7, 1), (2.0, 1), (4.37, 3)):
        clip = noise(seconds, "", "el", 0)
        wanted = processor.apply_transcription_request(audio=[clip.audio])
        batch = base.family.prompt_batch([clip])
        assert batch.rows["encoder"].tolist() == [0] * windows
        assert batch.inputs["input_features"].shape == (windows, 16, 200)
        for name in wanted:
            assert torch.equal(batch.inputs[name], wanted[name]), name
    assert base.window_s == 20  # its processor takes 21 s, in whole windows of 2
    with pytest.raises(UserError, match="this base's window is 20 s at most"):
        load("glm_asr", window_s=21)


def test_omni_gets_what_padding_to_300_s_gives(load: Load) -> None:
    base = load("qwen2_5_omni")
    extractor: Any = base.family.features  # type: ignore[attr-defined]
    for seconds in (0.5, 1.0, 1.2345):
        clip = noise(seconds, "", "el", 0)
        wanted = extractor(
            clip.audio, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt"
        )
        found = base.family.prompt_batch([clip]).inputs
        frames = int(wanted["attention_mask"].sum())
        assert found["feature_attention_mask"].sum() == frames
        assert torch.allclose(
            found["input_features"], wanted["input_features"][..., :frames], atol=1e-5
        )


def test_granite_minds_padding(load: Load) -> None:
    """Why its clips are padded to the window: with another window the same clip is another."""
    clip = noise(0.7, "kon", "bg", 0)
    losses = []
    for window in (1.0, 2.0):
        base = load("granite_speech", window_s=window)
        with placed(base, random_bank(base, ["salsa"])) as frozen, torch.no_grad():
            losses.append(token_losses(frozen, base.family.training_batch([clip])))
    assert not torch.allclose(*losses, rtol=1e-5)


def test_a_shorter_window_of_qwen2_audio(load: Load) -> None:
    base = load("qwen2_audio", window_s=0.99)
    assert base.window_s == 1.0
    batch = base.family.training_batch([noise(0.9, "kon", "bg", 0)])
    assert batch.inputs["input_features"].shape[-1] == 100
    assert base.model(**batch.inputs).logits.isfinite().all()
    with pytest.raises(UserError, match="this base's window is 2 s at most"):
        load("qwen2_audio", window_s=3)


@pytest.mark.parametrize(
    "family", ["qwen2_audio", "qwen3_asr", "granite_speech", "qwen2_5_omni", "glm_asr"]
)
def test_a_control_token_in_a_transcript_is_refused(load: Load, family: str) -> None:
    base: Any = load(family)
    for token in (base.family.audio_token, base.family.end):
        with pytest.raises(UserError, match=r"clip bg/0/1: .* holds a control token"):
            base.family.training_batch([noise(1, f"a {token} b", "bg", 0)])


def test_a_template_that_rewrites_the_prompt_is_refused(load: Load) -> None:
    base: Any = load("granite_speech")
    family = copy.copy(base.family)
    family.full_text = lambda language, text: "As before: " + family.prompt_text(language) + text
    with pytest.raises(UserError, match="training needs a template that writes it the same"):
        family.training_batch([noise(1, "kon", "bg", 0)])


def test_the_first_label_does_not_merge_with_the_prompt(load: Load) -> None:
    base: Any = load("granite_speech")
    family = copy.copy(base.family)
    tokenizer = Tokenizer(BPE({"<|audio|>": 0, "S": 1, ":": 2, "k": 3, ":k": 4, "!": 5}, [(":", "k")]))
    family.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!")
    family.prompt_text = lambda language: "S:"
    family.full_text = lambda language, text: "S:" + text
    assert family.tokenizer("S:k").input_ids == [1, 4]
    assert family.prompt_ids("bg", 1) == [1, 2]
    assert family.rest_ids("bg", "k") == [3]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_widths_come_from_the_layers(load: Load, family: str) -> None:
    base = load(family)
    layers = find_layers(base.model)
    seen: dict[str, int] = {}

    def watch(site: str) -> Callable[..., None]:
        def hook(module: object, args: object, output: Any) -> None:
            seen[site] = (output[0] if isinstance(output, tuple) else output).shape[-1]

        return hook

    for site, module in site_modules(base.model).items():
        module.register_forward_hook(watch(site))
    base.model(**base.family.training_batch([noise(1, "kon", "bg", 0)]).inputs)
    assert site_widths(layers) == seen


def test_the_width_of_a_layer_whose_weights_are_elsewhere() -> None:
    layer = torch.nn.Module()
    layer.norm = torch.nn.LayerNorm(7)
    for parameter in layer.parameters():
        parameter.ds_shape = torch.Size([7])  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    assert output_width(layer) == 7
    with pytest.raises(UserError, match="the width of Conv1d is unknown"):
        output_width(torch.nn.Conv1d(2, 2, 1))


@pytest.mark.parametrize("error", [IndexError, KeyError, AssertionError])
def test_the_width_of_a_layer_that_wants_other_arguments(error: type[Exception]) -> None:
    class Layer(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(UserError, match="the width of Layer is unknown"):
        output_width(Layer(2, 2))


def test_a_layer_without_norm_weights_is_run_for_its_width() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 6))
    ran: list[str] = []
    layer[0].register_forward_hook(lambda *_: ran.append("the base"))
    for weight in layer.parameters():
        weight.ds_shape, weight.data = weight.shape, torch.empty(0)  # type: ignore[attr-defined]
    assert output_width(layer) == 6
    assert ran == []


def test_language_codes() -> None:
    assert languages.parts("pt-BR") == languages.parts("pt_BR") == languages.parts("pt-076") == ["pt"]
    assert languages.parts("zh-EN") == ["zh", "en"]  # no country is EN
    assert languages.parts("zh-Hant-TW") == ["zh", "hant"]
    assert languages.parts("PT-BR") == languages.parts("pt-br") == ["pt", "br"]
    assert languages.english_name("zh-en") == "Chinese and English"
    assert languages.english_name("tw") is None
    # Countries whose codes are those of Breton, Catalan, Shona and Arabic.
    assert languages.english_name("pt-BR") == "Portuguese"
    assert languages.english_name("fr-CA") == "French"
    assert languages.first_known("wo-SN", {"sn"}) is None
    assert languages.first_known("es-AR", {"ar", "es"}) == "es"
    for code in ("zh", "cmn", "yue-HK", "jpn", "th-TH", "lo_la"):
        assert languages.has_no_spaces(code)
        assert unit(code) == "character"
    for wrong in ("", "b", "Bulgarian", "bg el", "../bg"):
        with pytest.raises(UserError, match="no language code"):
            languages.parts(wrong)


def test_the_thinker_of_a_whole_omni_checkpoint(load: Load, tmp_path: Path) -> None:
    """As on the hub: the thinker's weights and config lie beside the talker's."""
    thinker = load("qwen2_5_omni")
    folder = shutil.copytree(thinker.name, tmp_path / "whole")
    weights = {
        f"thinker.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    weights["talker.weight"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "qwen2_5_omni", "thinker_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
    found = load_speech_llm(folder)
    wanted = thinker.model.state_dict()
    assert found.model.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.model.state_dict().items())
    assert prompt(found, "el") == prompt(thinker, "el")
