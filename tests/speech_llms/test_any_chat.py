"""Bases with a chat prompt and no file of ours; and files of a base that don't belong together."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conformance import noise
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES
from tiny_nemotron import NEMOTRON

from salsa_dist.errors import UserError
from salsa_dist.planner.base_shape import read_shape
from salsa_dist.speech_llms.any_chat import AnyChat
from salsa_dist.speech_llms.inspection import inspect_base
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.speech_llms.processor import refuse_incomplete, refuse_other_features


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SpeechLLM:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("any") / "base"
    return load_speech_llm(FAMILIES["audioflamingo3"](folder))


def test_it_asks_as_the_processor_does(base: SpeechLLM) -> None:
    family: Any = base.family
    assert isinstance(family, AnyChat)
    clip = noise(4.4, "", "el", 0)
    batch = family.prompt_batch([clip])
    made = family.processor.apply_transcription_request(clip.audio)
    for name in ("input_ids", "input_features", "input_features_mask"):
        assert torch.equal(batch.inputs[name], made[name]), name
    assert batch.rows["encoder"].tolist() == [0, 0, 0]  # windows of 2 s
    assert (family.window_s, family.end) == (20.0, "<|im_end|>")
    assert family.padded_to_s == 2.0  # a clip has as many windows as it takes


@pytest.mark.skipif(not NEMOTRON, reason="this transformers has no Nemotron-3.5-Transcribe")
def test_a_template_that_thinks_first_is_told_not_to(tmp_path: Path) -> None:
    family: Any = load_speech_llm(NEMOTRON["nemotron_transcribe"](tmp_path / "base")).family
    clip = noise(1.2, "", "el", 0)
    batch = family.prompt_batch([clip])
    made = family.processor.apply_transcription_request(clip.audio)
    assert torch.equal(batch.inputs["input_ids"], made["input_ids"])
    assert family.prompt_text("el").endswith("assistant\n<think></think>")
    frames = made["input_features"].shape[1]
    assert torch.equal(batch.inputs["input_features"][:, :frames], made["input_features"])
    assert not batch.inputs["input_features_mask"][:, frames:].any()


def test_a_request_of_the_users(base: SpeechLLM) -> None:
    own = load_speech_llm(base.name, prompt="Write down the {language} speech:", window_s=2).family
    assert own.padded_to_s == own.window_s == 2.0  # one window per clip
    assert "<|im_start|>user\nWrite down the Greek speech:<sound><|im_end|>" in own.prompt_text("el")  # type: ignore[attr-defined]


def test_without_a_request_of_its_authors_it_names_the_language(base: SpeechLLM) -> None:
    family: Any = copy.copy(base.family)
    family.processor = copy.copy(family.processor)
    family.processor.default_transcription_prompt = None
    assert "user\n<sound>Transcribe the Greek speech into text.<" in family.prompt_text("el")
    assert "user\n<sound>Transcribe the speech into text.<" in family.prompt_text("tw")


def test_audio_that_grows_is_padded_to_the_window(base: SpeechLLM) -> None:
    """What a processor makes of a clip beside others must not depend on these."""
    family: Any = copy.copy(base.family)
    family.processor = copy.copy(family.processor)
    family.processor.audio_kwargs = {**family.processor.audio_kwargs, "padding": "longest"}
    family.window_s = 2.0
    clip = np.ones(8_000, np.float32)
    family.pads_itself = False
    assert family.process(clip).features["input_features"].shape[-1] == 200
    family.pads_itself = True
    assert family.process(clip).features["input_features"].shape[-1] == 50


def changed(folder: Path, base: SpeechLLM, change: Callable[[Path], None]) -> Path:
    shutil.copytree(base.name, folder)
    change(folder)
    return folder


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(tree | values))

    return write


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["audio_tower.conv1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_weights(**more: torch.Tensor) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        weights = {**load_file(folder / "model.safetensors"), **more}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def with_template(before: str, after: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace(before, after, 1))

    return write


EIGHT_BINS = {"feature_size": 8, "feature_extractor_type": "WhisperFeatureExtractor"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_template, r"no family file, and its processor has no chat template: it can't be"),
        (without_a_weight, r"its checkpoint lacks 1 weights, such as .*conv1\.weight"),
        (
            with_weights(**{"audio_tower.layers.9.fc1.weight": torch.zeros(2)}),
            r"1 weights in layers that config.json does not describe, such as .*layers\.9\.fc1",
        ),
        (
            with_weights(**{"audio_tower.conv1.weight": torch.zeros(2)}),
            r"checkpoint has .*conv1\.weight as \(2,\), config.json wants \(24, 16, 3\)",
        ),
        (
            with_template("", "{{ messages | length }}"),
            "template writes the prompt .* differently when",
        ),
        (with_template("<sound>", "sound"), "its chat template writes no audio token '<sound>'"),
        (edit("config.json", audio_token_id=7), "no audio token '<sound>' with id 7, which config"),
        (
            edit("processor_config.json", feature_extractor=EIGHT_BINS),
            "its processor makes 8 mel bins, config.json wants 16",
        ),
        (
            edit("processor_config.json", feature_extractor={"feature_extractor_type": "Own"}),
            r"its processor's files name Own, which transformers \S+ does not have: take all files",
        ),
        (edit("config.json", model_type="llm_of_2028"), "does not know the model type 'llm_of_2028'"),
        (
            edit("config.json", model_type="llm_of_2028", transformers_version="99.1.0"),
            r"model type 'llm_of_2028'\. Its config\.json was written by transformers 99\.1\.0, and",
        ),
        (
            edit("config.json", text_config={"model_type": "own"}, transformers_version="99.1.0"),
            r"can't be loaded: .*\bown\b.* written by transformers 99\.1\.0, .*: install that release",
        ),
        (
            edit("config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}),
            r"wants to run Python code of its own \(own\), which is not done here: name a model",
        ),
    ],
)
def test_files_that_do_not_belong_together(
    base: SpeechLLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    folder = changed(tmp_path / "base", base, change)
    kind, loaded = type(base.model), []
    load = kind.from_pretrained
    monkeypatch.setattr(kind, "from_pretrained", lambda *a, **k: (loaded.append(a), load(*a, **k))[1])
    with pytest.raises(UserError, match=reason) as error:
        load_speech_llm(folder)
    assert "\n" not in str(error.value)
    assert len(loaded) <= 1


@pytest.mark.parametrize("written_by", ["99.1.0", "4.40.0"])
def test_a_plan_of_a_config_of_a_newer_release(
    base: SpeechLLM, tmp_path: Path, written_by: str
) -> None:
    folder = changed(tmp_path / "base", base, lambda _: None)
    text = json.loads((folder / "config.json").read_text())["text_config"] | {
        "hidden_act": "act_of_2028"
    }
    edit("config.json", text_config=text, transformers_version=written_by)(folder)
    with pytest.raises(UserError, match=r"no model can be built from: 'act_of_2028'") as error:
        read_shape(folder)
    said = f"written by transformers {written_by}, " in str(error.value)
    assert said == (written_by == "99.1.0")


def test_features_that_a_model_does_not_take() -> None:
    import transformers

    wanted = {
        "Gemma3nConfig": ({}, 128),
        "Gemma4Config": ({"audio_config": {}}, 128),
        "Phi4MultimodalConfig": ({}, 80),
        "ParakeetCTCConfig": ({}, 80),
        "SeamlessM4Tv2Config": ({}, 80),
        "CohereAsrConfig": ({}, 128),
        "GraniteSpeechConfig": ({}, None),  # it does not say
    }
    for name, (settings, bins) in wanted.items():
        if not hasattr(transformers, name):
            continue  # an older release
        config = getattr(transformers, name)(**settings)
        extractor = SimpleNamespace(feature_size=bins, sampling_rate=16_000, stride=2)
        processor = SimpleNamespace(feature_extractor=extractor)
        refuse_other_features(name, config, processor, False)
        extractor.feature_size = 4
        if bins is not None:
            with pytest.raises(UserError, match=f"makes 4 mel bins, config.json wants {bins}"):
                refuse_other_features(name, config, processor, False)


def test_files_that_name_their_parts_otherwise() -> None:
    config = SimpleNamespace(model_type="other", audio_token_id=7)
    processor = SimpleNamespace(chat_template="{}", tokenizer=1, audio_token="<a>", audio_processor=1)
    with pytest.raises(UserError, match="its processor has no feature extractor: it can't be trained"):
        refuse_incomplete("base", config, processor)  # as Phi4-Multimodal's
    processor.feature_extractor = 1
    refuse_incomplete("base", config, processor)
    del config.audio_token_id
    with pytest.raises(UserError, match=r"its config\.json has no audio_token_id: it can't be trained"):
        refuse_incomplete("base", config, processor)


def test_inspect_says_what_a_processor_lacks(base: SpeechLLM, tmp_path: Path) -> None:
    assert inspect_base(base.name).lacks == ""
    folder = changed(tmp_path / "base", base, without_template)
    assert "its processor has no chat template: it can't be trained" in inspect_base(folder).lacks


def test_a_template_that_writes_the_prompt_otherwise_before_an_answer(base: SpeechLLM) -> None:
    family: Any = copy.deepcopy(base.family)
    processor = family.processor
    dated = "{% if add_generation_prompt %}Now: {% endif %}"
    processor.chat_template = dated + processor.chat_template
    with pytest.raises(
        UserError, match=r"chat template writes the prompt .* differently when an answer"
    ):
        family.training_batch([noise(0.5, "kon", "en", 0)])


def test_a_model_without_audio(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a LlamaForCausalLM, which takes no audio"):
        load_speech_llm(tmp_path)
