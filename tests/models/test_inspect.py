"""`salsa-dist inspect`: its table and JSON, with weights and without, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from every_family import EVERY_FAMILY
from tiny_ctc import CTC, OMNIASR
from tiny_gemma import GEMMA
from tiny_models import EVERY_MODEL, MODELS
from tiny_nemotron import NEMOTRON
from tiny_phi4 import PHI4
from tiny_seq2seq import SEQ2SEQ

from salsa_dist import UserError, cli, load_speech_llm
from salsa_dist.steering.blocks import layer_of

torch.set_num_threads(1)

ROWS = {
    **dict.fromkeys(("whisper", "qwen2_audio", "granite_speech", "granite_speech_plus"), "sample"),
    **dict.fromkeys(("fun_asr_nano", *GEMMA, *PHI4, *NEMOTRON, *OMNIASR, *SEQ2SEQ), "sample"),
    "voxtral_realtime": "sample",
    **dict.fromkeys(("qwen3_asr", "qwen2_5_omni", "qwen3_omni"), "token"),
    **dict.fromkeys(CTC, "sample"),
    "voxtral": "chunk",
    "glm_asr": "window",
    "audioflamingo3": "window",
}


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command; returns exit status, standard output, standard error."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["salsa-dist", "inspect", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def write_config(folder: Path, name: str, **changes: Any) -> Path:
    """A folder with the config of a tiny model, and no weights."""
    MODELS[name].config().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def layers(tree: dict[str, Any]) -> list[str]:
    """The sites that are whole layers."""
    return [s["site"] for s in tree["sites"] if s["site"] == layer_of(s["site"])]


def test_a_table_says_of_each_site_what_it_is(inspect: Callable[..., Any], tiny_base: Path) -> None:
    status, out, _ = inspect(tiny_base)
    assert status == 0
    head, *words, titles = out.splitlines()[:9]
    lines = out.splitlines()[9:]
    assert words == [
        f"{word}: 3 sites, {word}.0 to {word}.2"
        for word in [
            *("encoder", "encoder.attention", "encoder.feed_forward"),
            *("llm", "llm.attention", "llm.cross_attention", "llm.feed_forward"),
        ]
    ]
    assert "WhisperForConditionalGeneration" in head
    columns = ["component", "site", "width", "fires", "gradient", "rows", "padding-invariant"]
    assert titles.split() == columns
    assert len(lines) == 21
    assert lines[0].split()[:7] == ["encoder", "encoder.0", "32", "yes", "yes", "sample", "yes"]
    assert [line.split()[1] for line in lines[9:12]] == ["llm.0", "llm.1", "llm.2"]
    assert lines[15].split()[:6] == ["llm", "llm.cross_attention.0", "32", "yes", "yes", "sample"]


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_a_complete_checkpoint_of_each_family_is_inspected(
    inspect: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    status, out, err = inspect(EVERY_FAMILY[name](tmp_path / "base"), "--json")
    assert (status, err) == (0, "")
    tree = json.loads(out)
    assert tree["probed"] is True
    assert tree["dropped"] == []
    assert tree["lacks"] == ""
    rows = {s["component"]: s["rows"] for s in tree["sites"]}
    encoder = {} if name in ("vibevoice_asr", "kyutai") else {"encoder": ROWS[name]}
    assert rows == encoder | ({} if name in CTC else {"llm": "sample"})


def test_json_holds_the_same(inspect: Callable[..., Any], tiny_base: Path) -> None:
    status, out, _ = inspect(tiny_base, "--json")
    assert status == 0
    tree = json.loads(out)
    assert tree["base"] == str(tiny_base)
    assert tree["probed"] is True
    assert tree["dropped"] == []
    assert layers(tree) == [f"{c}.{i}" for c in ("encoder", "llm") for i in range(3)]
    wanted = {"component": "encoder", "width": 32, "rows": "sample", "fires": True, "gradient": True}
    assert tree["sites"][1].items() >= {**wanted, "padding_invariant": True}.items()


@pytest.mark.parametrize("name", MODELS)
def test_a_config_alone_is_enough_for_sites_and_widths(
    inspect: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    status, out, _ = inspect(write_config(tmp_path, name), "--json")
    assert status == 0
    tree = json.loads(out)
    components = [c for c in ("encoder", "llm") if getattr(MODELS[name], c)]
    assert layers(tree) == [f"{c}.{i}" for c in components for i in range(3)]
    assert {s["width"] for s in tree["sites"]} == {32}
    assert {s["rows"] for s in tree["sites"]} == {None}
    assert tree["probed"] is False


def test_without_weights_nothing_is_said_to_be_probed(
    inspect: Callable[..., Any], tmp_path: Path
) -> None:
    status, out, _ = inspect(write_config(tmp_path, "Voxtral"))
    assert status == 0
    assert "no weights" in out
    lines = [line for line in out.splitlines() if line.startswith(("encoder ", "llm "))]
    assert len(lines) == 18
    assert all(line.count("not probed") == 4 for line in lines)


def test_a_full_sized_base_is_inspected_from_its_config(
    inspect: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import VoxtralConfig

    VoxtralConfig(architectures=["VoxtralForConditionalGeneration"]).save_pretrained(tmp_path)
    status, out, _ = inspect(tmp_path, "--json")
    assert status == 0
    sites = {s["site"]: s["width"] for s in json.loads(out)["sites"]}
    assert sites["encoder.31"] == 1280
    assert sites["llm.0"] > 2000


def test_of_a_model_that_also_talks_the_thinker_is_inspected(
    inspect: Callable[..., Any], tmp_path: Path
) -> None:
    thinker = EVERY_MODEL["Qwen2.5-Omni"].config().to_dict()
    tree = {"model_type": "qwen2_5_omni", "thinker_config": thinker}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    status, out, _ = inspect(tmp_path, "--json")
    assert status == 0
    assert json.loads(out)["architecture"] == "Qwen2_5OmniThinkerForConditionalGeneration"
    assert len(layers(json.loads(out))) == 6


def test_a_list_named_by_hand_is_used(inspect: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_config(tmp_path, "Qwen2-Audio")
    named = "encoder=model.language_model.layers"
    status, out, _ = inspect(
        folder, "--json", "--layers", named, "--layers", "llm=model.audio_tower.layers"
    )
    assert (status, len(layers(json.loads(out)))) == (0, 6)
    status, _, err = inspect(folder, "--layers", "encoder=model.tower")
    assert status == 2
    assert "'model.tower' is no list of layers" in err


def refused(result: tuple[int, str, str], *parts: str) -> None:
    status, out, err = result
    assert status == 2
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("salsa-dist: ")
    for part in parts:
        assert part in line


def test_no_such_folder(inspect: Callable[..., Any], tmp_path: Path) -> None:
    refused(inspect(tmp_path / "nothing"), "can't be loaded", "no such folder")
    refused(inspect(tmp_path), "holds no config.json")


def test_a_damaged_config(inspect: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")
    refused(inspect(tmp_path), "can't be loaded")
    (tmp_path / "config.json").write_text('{"model_type": "whisper", "d_model": "wide"}')
    refused(inspect(tmp_path))


def test_a_model_type_that_is_not_known(inspect: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    refused(inspect(tmp_path), "does not know the model type 'no_such_model'")
    (tmp_path / "config.json").write_text("{}")
    refused(inspect(tmp_path), "does not know the model type None")


def test_a_model_that_wants_remote_code(inspect: Callable[..., Any], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "modeling_x.py").write_text(f"open({str(ran)!r}, 'w')")
    tree = {"model_type": "x", "auto_map": {"AutoConfig": "modeling_x.XConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    refused(inspect(tmp_path), "Python code of its own")
    assert not ran.exists()


def test_a_model_without_audio(inspect: Callable[..., Any], tmp_path: Path) -> None:
    tree = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    refused(inspect(tmp_path), "LlamaForCausalLM, which takes no audio")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["Nothing"]}')
    refused(inspect(tmp_path), "Nothing")


@pytest.mark.parametrize("missing", ["processor_config.json", "tokenizer.json", "both"])
def test_a_processor_that_is_missing(
    inspect: Callable[..., Any], tiny_base: Path, tmp_path: Path, missing: str
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    for path in folder.iterdir():
        kept = ("config.json", "generation_config.json")
        if path.name == missing or (
            missing == "both" and path.suffix == ".json" and path.name not in kept
        ):
            path.unlink()
    status, out, err = inspect(folder)
    assert (status, err) == (0, "")
    said = [line for line in out.splitlines() if line.startswith("for training: ")]
    assert len(said) == 1
    assert "lacks its processor" in said[0]
    assert [line.split()[3] for line in out.splitlines()[-6:]] == ["yes"] * 6  # each site fires
    with pytest.raises(UserError, match=r"lacks its processor .* put preprocessor_config\.json"):
        load_speech_llm(folder)


def test_weights_that_are_damaged_or_pickled(
    inspect: Callable[..., Any], tiny_base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(inspect(folder), "can't be loaded")
    weights.rename(folder / "pytorch_model.bin")
    refused(inspect(folder), "safetensors")
