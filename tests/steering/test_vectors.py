"""One adapter: what is saved is what is loaded, what was changed is refused, how much of it steers."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from placed_gradients import clips
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_base, make_config

from salsa_dist import SteeringVectors, UserError, load_config, load_speech_llm, train, transcribe
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.adapter_folder import DataFacts, TrainingFacts
from salsa_dist.steering.attachment import bank_of, describe
from salsa_dist.steering.rules.registry import RULES

SITES = [f"{c}.{i}" for c in ("encoder", "llm") for i in range(3)]


@pytest.fixture(scope="module")
def llm(tiny_base: Path) -> SpeechLLM:
    return load_speech_llm(tiny_base)


def adapter(llm: SpeechLLM, seed: int = 0, rule: str = "salsa", **facts: Any) -> SteeringVectors:
    """A random adapter for `llm`, strong enough to change what it says."""
    noise = torch.Generator().manual_seed(seed)
    numbers = 32 * RULES[rule].parts
    vectors = {site: torch.randn(numbers, generator=noise) for site in SITES}
    return SteeringVectors(vectors, rule, **{"name": "bg", "language": "bg", **describe(llm), **facts})


def logits(llm: SpeechLLM) -> torch.Tensor:
    return llm.model(**llm.family.training_batch(clips()).inputs).logits


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Saving and loading


def test_what_is_saved_is_loaded_to_the_bit(llm: SpeechLLM, tmp_path: Path) -> None:
    data = DataFacts(name="corpus", shards="ab" * 32, licence="GPL-2")
    training = TrainingFacts(steps=7, lr=0.02, seed=3, window_s=2.0, salsa_dist="0.1.0")
    saved = adapter(llm, data=data, training=training)
    # Numbers that a text would lose, and sites in an order that is not the alphabet's.
    saved.vectors["encoder.1"][:3] = torch.tensor([-0.0, 1e-42, 3.4e38])
    saved.vectors = {site: saved.vectors[site] for site in reversed(SITES)}
    folder = saved.save(tmp_path / "bg")
    loaded = SteeringVectors.load(folder)
    alone = SteeringVectors.load(folder / "adapter.safetensors")
    for found in (loaded, alone):
        assert list(found.vectors) == list(saved.vectors)
        for site, vector in saved.vectors.items():
            assert torch.equal(found.vectors[site].view(torch.int32), vector.view(torch.int32))
        for fact in ("rule", "name", "language", "base", "revision"):
            assert getattr(found, fact) == getattr(saved, fact) != ""
    assert (loaded.data, loaded.training) == (data, training)
    assert loaded.architecture == "WhisperForConditionalGeneration"
    assert loaded.model_type == "whisper"
    assert (tmp_path / "bg/adapter.safetensors").stat().st_size <= 6 * 32 * 4 + 4096


def test_a_header_of_any_length_is_no_pickle(llm: SpeechLLM, tmp_path: Path) -> None:
    """Its length comes first in the file, and one in 32 begins with the byte that a pickle does."""
    first = set()
    for length in range(1, 257, 8):
        path = adapter(llm, name="n" * length).save(tmp_path / str(length))
        first.add((path / "adapter.safetensors").read_bytes()[:1])
        assert SteeringVectors.load(path).name == "n" * length
    assert b"\x80" in first


def test_a_trained_adapter_says_where_it_comes_from(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, llm: SpeechLLM
) -> None:
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards))
    folder = train(config).adapters[1]
    assert folder == tmp_path / "run/adapters/el"
    facts = json.loads((folder / "adapter.json").read_text())
    assert facts["schema"] == "salsa-dist/adapter/1"
    assert (facts["name"], facts["language"], facts["rule"]) == ("el", "el", "add")
    assert facts["base"] == {
        "name": "tiny-whisper",  # its folder's own name: where it lies is nobody's business
        "revision": llm.revision,
        "architecture": "WhisperForConditionalGeneration",
        "model_type": "whisper",
    }
    assert facts["sites"] == SITES
    assert facts["trained_numbers"] == 6 * 32
    assert facts["data"]["name"] == "tiny"
    assert facts["training"] == {
        "steps": 6, "lr": 0.02, "lr_estimated": False, "lr_scale": None, "seed": 0, "window_s": 2.0,
        "silence_stride": 1, "silence_ends_s": 0.0,
        "salsa_dist": "0.1.0",
    }  # fmt: skip
    for content in files(folder).values():
        assert str(tmp_path).encode() not in content
        assert str(tiny_base).encode() not in content
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        assert file.metadata()["base"] == "tiny-whisper"
    SteeringVectors.load(folder).check(llm)


def test_the_model_card_says_the_facts(llm: SpeechLLM, tmp_path: Path) -> None:
    data = DataFacts(name="corpus", shards="ab" * 32, licence="GPL-2")
    training = TrainingFacts(steps=7, lr=0.02, seed=3, window_s=2.0, salsa_dist="0.1.0")
    made = adapter(llm, data=data, training=training, language="no", base="org/base", revision="abc")
    text = (made.save(tmp_path / "bg") / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["library_name"] == "salsa-dist"
    assert fields["base_model"] == "org/base"
    assert fields["language"] == ["no"]  # not false, as bare YAML has it
    assert fields["license"] == "gpl-2.0"
    assert "salsa" in fields["tags"]
    for said in ("192 numbers", "3 layers of the encoder", "`corpus`", "GPL-2", "7 steps", "seed 3"):
        assert said in body
    code = body.split("```python\n")[1].split("```")[0]
    assert 'load_speech_llm("org/base", revision="abc", window_s=2)' in code
    assert 'language="no"' in code
    assert len([line for line in code.splitlines() if line]) <= 5
    odd = adapter(llm, data=replace_licence(data, "Our own: ask\nfirst"))
    text = (odd.save(tmp_path / "odd") / "README.md").read_text(encoding="utf-8")
    fields = yaml.safe_load(text.split("---\n")[1])
    assert (fields["license"], fields["license_name"]) == ("other", "Our own: ask first")


def replace_licence(data: DataFacts, licence: str) -> DataFacts:
    return data.model_copy(update={"licence": licence})


def test_the_model_cards_code_runs(
    llm: SpeechLLM, tiny_base: Path, sounds: list[Path], tmp_path: Path, capsys: Any
) -> None:
    folder = adapter(llm).save(tmp_path / "bg")
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    for theirs, ours in (
        ("tiny-whisper", tiny_base),
        ('"bg")', f'"{folder}")'),
        ("clip.wav", sounds[0]),
    ):
        assert theirs in code
        code = code.replace(theirs, str(ours))
    exec(code, {})
    assert capsys.readouterr().out.startswith("['")


def test_an_older_adapter_is_replaced_and_nothing_else_is(llm: SpeechLLM, tmp_path: Path) -> None:
    folder = tmp_path / "bg"
    adapter(llm, 1).save(folder)
    adapter(llm, 2).save(folder)
    assert torch.equal(SteeringVectors.load(folder).vectors["llm.1"], adapter(llm, 2).vectors["llm.1"])
    assert [p.name for p in tmp_path.iterdir()] == ["bg"]
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    before = files(tmp_path)
    for place in (folder, tmp_path / "file", tmp_path / "link", tmp_path / "file" / "bg", tmp_path):
        with pytest.raises(UserError, match="can't be written"):
            adapter(llm, 3).save(place)
    assert files(tmp_path) == before
    assert (tmp_path / "link").is_symlink()


def test_the_folder_that_one_is_in_is_not_replaced(
    llm: SpeechLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="name a folder of its own"):
        adapter(llm).save(".")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["mkdir", "fsync", "first rename", "second rename"])
def test_a_save_that_fails_leaves_the_older_adapter(
    llm: SpeechLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = adapter(llm, 1).save(tmp_path / "bg")
    before = files(tmp_path)
    replace = os.replace

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def full_replace(source: Path, target: Path) -> None:
        wanted = folder if call == "second rename" else tmp_path / ".bg.old"
        if Path(target) == wanted and Path(source).suffix != ".old":
            full()
        replace(source, target)

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif call == "mkdir":
        monkeypatch.setattr(Path, "mkdir", full)
    else:
        monkeypatch.setattr(os, "replace", full_replace)
    with pytest.raises(UserError, match="No space left on device"):
        adapter(llm, 2).save(folder)
    assert files(tmp_path) == before


def test_vectors_that_would_be_refused_are_not_saved(llm: SpeechLLM, tmp_path: Path) -> None:
    broken = adapter(llm)
    broken.vectors["llm.0"][3] = float("nan")
    for vectors in (broken, SteeringVectors({}, "salsa"), adapter(llm, name="../../bg")):
        with pytest.raises(UserError, match="can't be saved"):
            vectors.save(tmp_path / "bg")
    assert list(tmp_path.iterdir()) == []


# What was damaged or changed


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """Write the vectors' file anew after `change`, with its new sha256 in adapter.json."""
    import hashlib

    file = folder / "adapter.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)
    facts = json.loads((folder / "adapter.json").read_text())
    facts["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "adapter.json").write_text(json.dumps(facts))


def _set_nan(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["encoder.0"][3] = float("nan")


def _set_infinite(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["llm.2"][0] = float("-inf")


def _cut_one(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["encoder.0"] = tensors["encoder.0"][:7].clone()


def _make_matrix(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["encoder.0"] = tensors["encoder.0"].view(2, 16).clone()


def _make_half(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["encoder.0"] = tensors["encoder.0"].half()


def _drop_one(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    del tensors["llm.2"]


def _drop_one_everywhere(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    del tensors["llm.2"]
    metadata["sites"] = metadata["sites"].removesuffix(" llm.2")


def _no_site(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["../weights"] = tensors.pop("llm.2")
    metadata["sites"] = metadata["sites"].replace("llm.2", "../weights")


def _set_metadata(key: str, value: str) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set_nan, "encoder.0 holds NaN"),
        (_set_infinite, "llm.2 holds NaN or infinity"),
        (_cut_one, "differ in width"),
        (_make_matrix, "one row"),
        (_make_half, "'encoder.0' is not of dtype F32"),
        (_drop_one, "does not match its vectors"),
        (_drop_one_everywhere, "disagree on the sites"),
        (_no_site, "no site"),
        (_set_metadata("rule", "sing"), "unknown update rule 'sing': known are salsa, add"),
        (_set_metadata("rule", "add"), "disagree on the rule"),
        (_set_metadata("schema", "salsa-dist/adapter/99"), "salsa-dist/adapter/99"),
        (_set_metadata("base", "another"), "disagree on the base"),
        (_set_metadata("revision", "another"), "disagree on the revision"),
        (_set_metadata("language", "el"), "disagree on the language"),
        (_set_metadata("name", "el"), "disagree on the name"),
    ],
)
def test_vectors_of_another_kind_are_refused(
    llm: SpeechLLM, tmp_path: Path, change: Any, said: str
) -> None:
    folder = adapter(llm).save(tmp_path / "bg")
    rewrite(folder, lambda *_: None)
    SteeringVectors.load(folder)  # the writing alone changes nothing
    rewrite(folder, change)
    assert said in refusal(folder)


def _raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "adapter.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return damage


def _header(change: Callable[[str], str]) -> Callable[[Path], None]:
    def changed(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        header = change(raw[8 : 8 + length].decode()).encode()
        return struct.pack("<Q", len(header)) + header + raw[8 + length :]

    return _raw(changed)


def _sparse(folder: Path) -> None:
    os.truncate(folder / "adapter.safetensors", 1 << 40)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_raw(lambda raw: raw[:-100]), "is damaged"),
        (_raw(lambda raw: raw[:40]), "cut off"),
        (_raw(lambda raw: raw[:5]), "cut off"),
        (_raw(lambda raw: b""), "cut off"),
        (_raw(lambda raw: raw + b"more"), "is damaged"),
        (_raw(lambda raw: pickle.dumps({"encoder.0": [1.0]})), "pickle, which is never opened"),
        (_raw(lambda raw: b"PK\x03\x04" + bytes(60)), "pickle, which is never opened"),
        (_raw(lambda raw: struct.pack("<Q", 1 << 62) + raw[8:]), "claims a header of 4,611,686"),
        (_raw(lambda raw: struct.pack("<Q", 90 << 20) + raw[8:]), "claims a header of 94,371,840"),
        (_header(lambda header: "[" * 100_000), "is damaged"),
        (_header(lambda header: "[]"), "is damaged"),
        (_header(lambda header: header.replace('"salsa"', '["salsa"]')), "is damaged"),
        (_header(lambda header: header.replace("[32]", "[33]", 1)), "is damaged"),
        (_header(lambda header: header.replace("[0,128]", "[0,1280000]")), "is damaged"),
        (_sparse, "1,099,511,627,776 bytes"),
    ],
)
def test_damaged_bytes_are_refused(llm: SpeechLLM, tmp_path: Path, damage: Any, said: str) -> None:
    folder = adapter(llm).save(tmp_path / "bg")
    before = files(folder)["adapter.safetensors"]
    damage(folder)
    assert (folder / "adapter.safetensors").stat().st_size > 1 << 30 or files(folder)[
        "adapter.safetensors"
    ] != before
    assert said in refusal(folder)
    assert said in refusal(folder / "adapter.safetensors")


def test_one_flipped_bit_is_seen(llm: SpeechLLM, tmp_path: Path) -> None:
    folder = adapter(llm).save(tmp_path / "bg")
    raw = bytearray((folder / "adapter.safetensors").read_bytes())
    raw[-5] ^= 1
    (folder / "adapter.safetensors").write_bytes(raw)
    SteeringVectors.load(folder / "adapter.safetensors")  # by itself it is a good file
    assert "disagree on the sha256" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema", "salsa-dist/adapter/2", "salsa-dist/adapter/2"),
        ("schema", None, "no schema"),
        ("schema", ["x"], "['x']"),
        ("sites", [*SITES[:-1], "llm.9"], "disagree on the sites"),
        ("sites", SITES[::-1], "disagree on the sites"),
        ("rule", "add", "disagree on the rule"),
        ("trained_numbers", 7, "disagree on the number of trained numbers"),
        ("sha256", "0" * 64, "disagree on the sha256"),
        ("base", {"name": "other"}, "disagree on the base"),
        ("base", {"name": "../../etc/passwd"}, "is a path"),
        ("base", {"name": "/etc/passwd"}, "is a path"),
        ("name", "~/bg", "is a path"),
        ("name", "..", "is a path"),
        ("file", "../other/adapter.safetensors", "file: Extra inputs"),
        ("training", {"steps": 1, "lr": float("nan"), "seed": 0}, "lr"),
        ("trained_numbers", "192", "trained_numbers"),
    ],
)
def test_changed_facts_are_refused(
    llm: SpeechLLM, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    folder = adapter(llm).save(tmp_path / "bg")
    facts = json.loads((folder / "adapter.json").read_text())
    facts[key] = value
    (folder / "adapter.json").write_text(json.dumps(facts))
    assert said in refusal(folder)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b" " * (2 << 20)])
def test_damaged_facts_are_refused(llm: SpeechLLM, tmp_path: Path, raw: bytes) -> None:
    folder = adapter(llm).save(tmp_path / "bg")
    (folder / "adapter.json").write_bytes(raw)
    assert "adapter.json" in refusal(folder)


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
def test_links_out_of_the_folder_are_refused(llm: SpeechLLM, tmp_path: Path, name: str) -> None:
    folder = adapter(llm).save(tmp_path / "bg")
    shutil.move(folder / name, tmp_path / name)
    assert name in refusal(folder)
    (folder / name).symlink_to(Path("..") / name)
    assert "link out of its folder" in refusal(folder)
    (folder / name).unlink()
    shutil.move(tmp_path / name, folder / f"moved-{name}")
    (folder / name).symlink_to(f"moved-{name}")  # a link that stays inside is no harm
    SteeringVectors.load(folder)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        SteeringVectors.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# Putting it on a base


def test_another_base_is_refused_unless_forced(llm: SpeechLLM, tmp_path: Path) -> None:
    other = load_speech_llm(make_base(tmp_path / "other", seed=1))
    plain = logits(other)
    with pytest.raises(UserError, match=f"revision {llm.revision} .* {other.revision}"):
        adapter(llm).check(other)
    renamed = adapter(llm, architecture="OtherForSpeech")
    with pytest.raises(UserError, match=r"architecture OtherForSpeech .* WhisperForConditional"):
        renamed.check(llm)
    with pytest.raises(UserError, match="architecture OtherForSpeech"):
        renamed.check(llm.model)  # a transformers model does not know its revision
    with pytest.raises(UserError, match="model_type other where this base has whisper"):
        adapter(llm, model_type="other").check(llm)
    with pytest.raises(UserError), adapter(llm).attach(other):
        pass
    assert torch.equal(logits(other), plain)
    for forced in (adapter(llm), renamed):
        with forced.attach(other, force=True):
            assert not torch.equal(logits(other), plain)


@pytest.mark.parametrize("force", [False, True])
def test_sites_and_widths_must_fit_even_if_forced(llm: SpeechLLM, force: bool) -> None:
    wide = SteeringVectors({"encoder.1": torch.ones(64)}, "salsa")
    with pytest.raises(UserError, match=r"width 64 at encoder\.1 where this base has 32"):
        wide.check(llm, force)
    deep = SteeringVectors({"llm.9": torch.ones(32)}, "salsa")
    with pytest.raises(UserError, match=r"llm\.9, which this base does not have"):
        deep.check(llm, force)


@pytest.mark.parametrize("rule", list(RULES))
def test_scale(llm: SpeechLLM, rule: str) -> None:
    vectors = adapter(llm, rule=rule)
    plain = logits(llm)
    with vectors.attach(llm):
        whole = logits(llm)
    with vectors.attach(llm, scale=0.0):
        assert torch.equal(logits(llm), plain)
    with vectors.attach(llm, scale=1.0):
        assert torch.equal(logits(llm), whole)
    with vectors.attach(llm, scale=0.5):
        half = logits(llm)
    with vectors.scaled(0.5).attach(llm):
        assert torch.equal(logits(llm), half)
    assert not torch.equal(half, whole)
    assert not torch.equal(half, plain)
    assert torch.equal(vectors.scaled(0.5).vectors["llm.0"], vectors.vectors["llm.0"] / 2)
    for bad in (float("nan"), float("inf"), 1e39):
        with pytest.raises(UserError, match="can't be scaled"):
            vectors.scaled(bad)


def test_average(llm: SpeechLLM, tmp_path: Path) -> None:
    one, two = adapter(llm, 1), adapter(llm, 2, name="el", language="el")
    for count in (1, 2, 3, 7):
        for weights in (None, [0.1 * (i + 1) for i in range(count)]):
            same = SteeringVectors.average([one] * count, weights)
            assert same.digest() == one.digest()
    mean = SteeringVectors.average([one, two])
    quarter = SteeringVectors.average([one, two], [1, 3])
    for site in SITES:
        a, b = one.vectors[site], two.vectors[site]
        assert torch.allclose(mean.vectors[site], (a + b) / 2)
        assert torch.allclose(quarter.vectors[site], a / 4 + 3 * b / 4)
    again = SteeringVectors.load(mean.save(tmp_path / "mean"))
    assert again.digest() == mean.digest()
    assert (again.language, again.revision, again.training) == ("", llm.revision, None)
    again.check(llm)


def test_what_can_not_be_averaged(llm: SpeechLLM) -> None:
    one = adapter(llm)
    fewer = adapter(llm)
    del fewer.vectors["llm.0"]
    for other, said in (
        (adapter(llm, rule="add"), "rule"),
        (adapter(llm, revision="other"), "revision"),
        (adapter(llm, architecture="other"), "architecture"),
        (fewer, "sites"),
        (SteeringVectors(dict.fromkeys(SITES, torch.ones(8)), "salsa", **describe(llm)), "width"),
    ):
        with pytest.raises(UserError, match=f"differ in their {said}"):
            SteeringVectors.average([one, other])
    for weights in ([1.0], [1, float("nan")], [0, 0], [2, -1], [1e308, 1e308]):
        with pytest.raises(UserError, match="weights"):
            SteeringVectors.average([one, one], weights)
    with pytest.raises(UserError, match="at least one"):
        SteeringVectors.average([])


# Another adapter for each utterance


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(4)
    paths = [folder / f"{i}.wav" for i in range(5)]
    for path in paths:
        soundfile.write(path, 0.1 * rng.standard_normal(24_000), 16_000)
    return paths


def test_each_row_equals_a_run_with_its_adapter_alone(llm: SpeechLLM) -> None:
    adapters = [adapter(llm, 1), adapter(llm, 2, rule="add"), adapter(llm, 3)]
    alone = [logits(llm)]
    for one in adapters:
        with one.attach(llm):
            alone.append(logits(llm))
    batch = llm.family.training_batch([replace(clip, row=i % 4 - 1) for i, clip in enumerate(clips())])
    bank = bank_of(adapters, "cpu")
    with bank.attached(adapters[0].check(llm)), bank.rows(batch.rows):
        mixed = llm.model(**batch.inputs).logits
    for i, row in enumerate(mixed):
        assert torch.equal(row, alone[i % 4][i])
        assert not torch.equal(row, alone[(i + 1) % 4][i])


def test_transcribing_with_an_adapter_for_each_file(
    llm: SpeechLLM, sounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = adapter(llm, 1).scaled(3), adapter(llm, 2, rule="add").scaled(9)
    vectors = [one, None, two, one, two]
    languages = ["bg", "el", "el", "en", "bg"]
    alone = {
        (id(v), language): transcribe(llm, sounds, language, v, max_new_tokens=8)
        for v in (one, two, None)
        for language in ("bg", "el", "en")
    }
    passes = []
    family = type(llm.family)
    prompt_batch = family.prompt_batch

    def watched(self: Any, clips: Any) -> Any:
        passes.append([clip.language for clip in clips])
        return prompt_batch(self, clips)

    monkeypatch.setattr(family, "prompt_batch", watched)
    mixed = transcribe(llm, sounds, languages, vectors, max_new_tokens=8)
    assert passes == [languages]
    assert mixed == [
        alone[id(v), language][i]
        for i, (v, language) in enumerate(zip(vectors, languages, strict=True))
    ]
    for v in (one, two, None):  # and not what one of them would have said of all
        assert mixed != [alone[id(v), language][i] for i, language in enumerate(languages)]
    assert transcribe(llm, sounds, languages, vectors, batch=2, max_new_tokens=8) == mixed
    assert transcribe(llm, sounds, "bg", [None] * 5, max_new_tokens=8) == alone[id(None), "bg"]


def test_as_many_adapters_and_languages_as_files(llm: SpeechLLM, sounds: list[Path]) -> None:
    with pytest.raises(UserError, match="2 adapters for 5 files"):
        transcribe(llm, sounds, "bg", [adapter(llm), None])
    with pytest.raises(UserError, match="1 languages for 5 files"):
        transcribe(llm, sounds, ["bg"], adapter(llm))
    stranger = adapter(llm, revision="other")
    with pytest.raises(UserError, match="revision other"):
        transcribe(llm, sounds, "bg", [None, adapter(llm), None, stranger, None])
    assert transcribe(llm, sounds, "bg", stranger, max_new_tokens=4, force=True) == transcribe(
        llm, sounds, "bg", adapter(llm), max_new_tokens=4
    )


# Arithmetic, and attaching without a block


def test_arithmetic(llm: SpeechLLM) -> None:
    one, two = adapter(llm, 1), adapter(llm, 2, name="el", language="el")
    del two.vectors["encoder.0"], two.vectors["llm.2"]
    more = SteeringVectors({"llm.2": torch.ones(32)}, "salsa", **describe(llm))
    total = two + more
    assert list(total.vectors) == [site for site in SITES if site != "encoder.0"]  # the model's order
    assert torch.equal(total.vectors["llm.2"], more.vectors["llm.2"])
    for site, vector in (one + two).vectors.items():
        other = two.vectors.get(site, torch.zeros(32))
        assert torch.allclose(vector, one.vectors[site] + other, atol=1e-6)
    for site, vector in one.interpolate(two, 0.25).vectors.items():
        other = two.vectors.get(site, torch.zeros(32))
        assert torch.allclose(vector, 0.75 * one.vectors[site] + 0.25 * other, atol=1e-6)
    assert one.interpolate(two, 0).digest() == one.digest()
    assert (0.5 * one).digest() == (one * 0.5).digest() == one.scaled(0.5).digest()
    assert torch.equal((-one).vectors["llm.1"], -one.vectors["llm.1"])
    assert not any((one - one).norms().values())
    assert (one + one).digest() == one.scaled(2).digest()
    assert (one + two).language == "" != (one + one).language
    for bad in (lambda: one + adapter(llm, rule="add"), lambda: one - adapter(llm, revision="x")):
        with pytest.raises(UserError, match="can't be mixed"):
            bad()
    with pytest.raises(UserError, match="finite"):
        one.interpolate(two, float("nan"))
    for wrong in (lambda: one + 1, lambda: one * one, lambda: one - "a"):  # type: ignore[operator]
        with pytest.raises(TypeError):
            wrong()


def test_a_vectors_file_alone_mixes_with_an_adapter_of_its_base(llm: SpeechLLM, tmp_path: Path) -> None:
    one = adapter(llm)
    alone = SteeringVectors.load(one.save(tmp_path / "bg") / "adapter.safetensors")
    assert alone.architecture == ""
    for mixed in (alone + one, one + alone, SteeringVectors.average([alone, one, one])):
        assert (mixed.revision, mixed.architecture) == (llm.revision, one.architecture)
    unsaid = adapter(llm, revision="")
    assert (unsaid + one).revision == llm.revision, "so another base is still refused"
    with pytest.raises(UserError, match="architecture"):
        SteeringVectors.average([alone, one, adapter(llm, architecture="other")])


def test_norms_and_cosines(llm: SpeechLLM) -> None:
    one, two = adapter(llm, 1), adapter(llm, 2)
    assert one.norms()["llm.1"] == pytest.approx(float(one.vectors["llm.1"].norm()))
    flat = [torch.cat(list(a.vectors.values())) for a in (one, two)]
    assert one.cosine(two) == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)))
    assert one.cosine(one.scaled(0)) is None


def test_an_adapter_stays_on_until_it_is_detached(llm: SpeechLLM) -> None:
    import gc

    one, two = adapter(llm, 1), adapter(llm, 2)
    plain = logits(llm)
    with one.attach(llm):
        first = logits(llm)
    one.attach(llm)  # nobody keeps what it gives
    gc.collect()
    assert torch.equal(logits(llm), first)
    for hooks in (m._forward_hooks for m in llm.model.modules()):
        hooks.clear()
    on = one.attach(llm)
    with two.attach(llm):
        assert not torch.equal(logits(llm), first)
    assert torch.equal(logits(llm), first)
    assert not logits(llm).requires_grad
    on.detach()
    on.detach()
    assert torch.equal(logits(llm), plain)
    with pytest.raises(ZeroDivisionError), one.attach(llm):
        raise ZeroDivisionError
    assert torch.equal(logits(llm), plain)


def test_a_pipeline_is_steered(llm: SpeechLLM, tiny_base: Path) -> None:
    from transformers import pipeline

    asr = pipeline("automatic-speech-recognition", str(tiny_base), device="cpu")
    sound = {"raw": np.random.default_rng(1).standard_normal(16_000) / 9, "sampling_rate": 16_000}

    def text() -> str:
        return asr(dict(sound), generate_kwargs={"max_new_tokens": 12, "language": "bg"})["text"]

    plain = text()
    strong = adapter(llm, 1).scaled(3)
    with strong.attach(asr):
        inside = text()
    assert plain == text() != inside
    with strong.attach(asr.model):
        assert text() == inside
    with pytest.raises(UserError, match="a str can't be steered"):
        strong.attach("whisper-base")
