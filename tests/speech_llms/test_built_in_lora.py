"""Phi-4-multimodal and Granite-Speech: their LoRA is on; a clip among others is what it is alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import ALONE, apart, noise
from safetensors.torch import load_file, save_file
from tiny_families import make_granite_speech
from tiny_phi4 import make_phi4_multimodal, save_lora

from salsa_dist.config import BaseConfig
from salsa_dist.errors import UserError
from salsa_dist.placement.staging import staged
from salsa_dist.speech_llms.base_files import base_revision
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phi4_multimodal(tmp_path_factory.mktemp("phi4") / "base")


@pytest.fixture(scope="module")
def base(folder: Path) -> SpeechLLM:
    return load_speech_llm(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """What transformers loads: the base without its LoRA."""
    from transformers import Phi4MultimodalForCausalLM

    return Phi4MultimodalForCausalLM.from_pretrained(folder).eval()


def test_the_lora_is_what_peft_makes_of_its_files(base: SpeechLLM, plain: Any, folder: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = LoraConfig.from_pretrained(folder / "speech-lora")
    made = inject_adapter_in_model(config, plain, "speech").eval()
    stored = load_file(folder / "speech-lora" / "adapter_model.safetensors")
    report = set_peft_model_state_dict(
        made, {k.removeprefix("base_model.model."): v for k, v in stored.items()}, "speech"
    )
    assert not report.unexpected_keys
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        found = base.model(input_ids=ids).logits
        wanted = made(input_ids=ids).logits
        for module in made.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(False)
        without = made(input_ids=ids).logits
    assert apart(found, wanted) < 1e-5
    assert apart(found, without) > 0.1


def test_a_clip_beside_a_longer_one_is_what_transformers_makes_of_it_alone(
    base: SpeechLLM, folder: Path
) -> None:
    from transformers import Phi4MultimodalForCausalLM

    encoder = Phi4MultimodalForCausalLM.from_pretrained(folder).eval().model.embed_tokens_extend
    family: Any = base.family
    short, long = noise(1.13, "kon", "bg", 0), noise(2.2, "vuk", "en", 0)
    inputs = family.training_batch([short, long]).inputs
    with torch.no_grad():
        found = base.model.model.embed_tokens_extend.audio_embed.encoder(
            inputs["audio_input_features"], inputs["audio_attention_mask"]
        )
        for i, clip in enumerate((short, long)):
            alone = family.features([clip.audio], sampling_rate=16_000, return_tensors="pt")
            wanted = encoder.audio_embed.encoder(alone["audio_input_features"], None)
            tokens = int(inputs["audio_embed_sizes"][i])
            assert wanted.shape[1] == tokens
            assert apart(found[i, :tokens], wanted[0]) < 1e-5
    assert family.tokenizer.decode(family.prompt("bg")) == (
        "<|user|><|audio|>Transcribe the audio clip into text.<|end|><|assistant|>"
    )


def test_a_lora_that_is_not_there_or_not_this_one_is_refused(tmp_path: Path) -> None:
    folder = make_phi4_multimodal(tmp_path / "base")
    revision = base_revision(str(folder))
    weights, config = (
        folder / "speech-lora" / file for file in ("adapter_model.safetensors", "adapter_config.json")
    )
    tensors = load_file(weights)
    save_file({k: 2 * v for k, v in tensors.items()}, weights)
    assert base_revision(str(folder)) != revision
    save_file({k.replace("layers.1", "layers.7"): v for k, v in tensors.items()}, weights)
    with pytest.raises(UserError, match=r"can't be loaded: .*7"):
        load_speech_llm(folder)
    save_file({**tensors, "base_model.model.x.lora_embedding_A": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match=r"lora_embedding_A, which is no linear layer"):
        load_speech_llm(folder)
    a_key = next(key for key in tensors if key.endswith(".lora_A.weight"))
    save_file({**tensors, a_key: tensors[a_key][:, :1].contiguous()}, weights)
    with pytest.raises(UserError, match=r"for a weight of \(\d+, 1\), and the base's is"):
        load_speech_llm(folder)
    save_file({"some.weight": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match="holds no LoRA: take all files from one revision"):
        load_speech_llm(folder)
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(UserError, match="sets use_dora, which is not known here"):
        load_speech_llm(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"lacks speech-lora/adapter_model.safetensors, without which"):
        load_speech_llm(folder)


@pytest.fixture(scope="module")
def granite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Granite-Speech with its LoRA beside the weights, by the names of the published checkpoints."""
    folder = make_granite_speech(tmp_path_factory.mktemp("granite") / "base")
    layers = load_speech_llm(folder).model.get_decoder().layers
    save_lora(layers, "language_model.model.layers", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "has_lora_adapter": True}))
    return folder


def test_a_lora_beside_the_weights_is_added_to_them(granite: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(granite, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "has_lora_adapter": False}))
    for file in plain.glob("adapter_*"):
        file.unlink()
    base, without = load_speech_llm(granite), load_speech_llm(plain)
    assert base.revision != without.revision
    stored = load_file(granite / "adapter_model.safetensors")
    name = "model.language_model.layers.1.mlp.up_proj"
    key = "base_model.model.language_model.model.layers.1.mlp.up_proj"
    if name + ".weight" not in dict(base.model.named_parameters()):  # transformers 5.17
        name = name.replace("model.language_model", "language_model.model")
    added = 2 * stored[key + ".lora_B.weight"] @ stored[key + ".lora_A.weight"]
    found, own = (one.model.get_submodule(name).weight for one in (base, without))
    assert apart(found, own + added) < 1e-6 < 1e-2 < apart(found, own)
    same = base.model.get_submodule(name.replace("up_proj", "down_proj")).weight
    assert apart(same, without.model.get_submodule(name.replace("up_proj", "down_proj")).weight) > 1e-2
    (granite / "adapter_config.json").rename(granite / "kept.json")
    with pytest.raises(UserError, match=r"lacks adapter_config.json, without which"):
        load_speech_llm(granite)
    (granite / "kept.json").rename(granite / "adapter_config.json")


def test_a_staged_copy_has_its_lora(folder: Path, tmp_path: Path, base: SpeechLLM) -> None:
    settings = BaseConfig(name=str(folder), stage_to=str(tmp_path))
    copy = staged(settings, ALONE, lambda line: None)
    assert staged(settings, ALONE, lambda line: None) == copy
    assert load_speech_llm(copy).revision == base.revision
