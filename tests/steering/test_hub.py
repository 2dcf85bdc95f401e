"""Adapters on a hub: what is pushed is what is fetched; what is not there or no adapter is told.

The hub is a mock on loopback (`stand_in_hub.py`).
"""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stand_in_hub import StandInHub

from salsa_dist import SteeringVectors, UserError
from salsa_dist.steering.adapter_folder import DataFacts, TrainingFacts
from salsa_dist.steering.model_card import Score

OPEN = DataFacts(name="corpus", shards="ab" * 32, languages=["bg"], licence="CC-BY-4.0")
LICENSED = DataFacts(name="myst", shards="ab" * 32, licence="LDC User Agreement (not to be passed on)")
TRAINED = TrainingFacts(steps=7, lr=0.02, seed=3, window_s=2.0, salsa_dist="0.1.0")
SCORE = Score("bg", "test", "cer", 2.0, 120, 0.576, 0.379, 0.343, 0.416, 0.342, 0.208, 0.488)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    with StandInHub() as stand_in:
        stand_in.use(monkeypatch, str(tmp_path / "cache"))
        yield stand_in


def made(seed: int = 0, **facts: Any) -> SteeringVectors:
    noise = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(32, generator=noise) for site in ("encoder.0", "llm.1")}
    about = {"name": "bg", "language": "bg", "base": "org/base", "revision": "c0ffee", "data": OPEN}
    return SteeringVectors(vectors, "salsa", **{**about, "training": TRAINED, **facts})


def test_what_is_pushed_is_fetched(hub: StandInHub) -> None:
    one, two = made(1), made(2)
    address = one.push_to_hub("user/bg", scores=[SCORE])
    first = hub.commit_of("user/bg", "main")
    assert address == f"{hub.url}/user/bg/commit/{first}"
    assert hub.message == "Adapter bg for org/base"
    two.push_to_hub("user/bg")
    made(3).push_to_hub("user/bg", revision="trial")
    for name, revision, expected in (
        ("user/bg", None, two), ("user/bg", first, one), ("user/bg", "trial", made(3))
    ):  # fmt: skip
        found = SteeringVectors.from_pretrained(name, revision=revision)
        assert found.digest() == expected.digest()
        assert (found.data, found.training, found.revision) == (OPEN, TRAINED, "c0ffee")
    assert SteeringVectors.load(f"user/bg@{first}").digest() == one.digest()
    assert sorted(hub.repositories["user/bg"]["main"]) == [
        "README.md", "adapter.json", "adapter.safetensors"
    ]  # fmt: skip
    assert not hub.private
    one.push_to_hub("user/mine", private=True)
    assert hub.private == {"user/mine"}


def test_the_card_says_what_the_hub_needs(hub: StandInHub) -> None:
    made().push_to_hub("user/bg", scores=[SCORE])
    _, front, body = hub.repositories["user/bg"]["main"]["README.md"].decode().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["base_model"], fields["license"]) == ("org/base", "cc-by-4.0")
    (result,) = fields["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "cer", "value": 37.9}]
    assert "revision `c0ffee`" in body
    assert 'SteeringVectors.from_pretrained("user/bg")' in body
    assert (
        "| bg | test | 2 s | 120 | CER | 57.6% | 37.9% (34.3% to 41.6%) | 34.2% (20.8% to 48.8%) |"
        in body
    )


@pytest.mark.parametrize(
    ("data", "corpus", "said"),
    [
        (LICENSED, "myst", "'LDC User Agreement (not to be passed on)', not an open one"),
        (OPEN.model_copy(update={"licence": None}), "corpus", "is not stated"),
        (None, "bg", "which its facts do not record"),
    ],
)
def test_licensed_speech_blocks_a_push(
    hub: StandInHub, data: DataFacts | None, corpus: str, said: str
) -> None:
    adapter = made(data=data)
    for may_publish in (None, "another"):
        with pytest.raises(UserError) as caught:
            adapter.push_to_hub("user/bg", may_publish=may_publish)
        assert said in str(caught.value)
        assert f"--may-publish {corpus}" in str(caught.value)
    assert hub.asked == []
    adapter.push_to_hub("user/bg", may_publish=corpus)


def test_what_was_mixed_from_licensed_speech_stays_blocked(hub: StandInHub) -> None:
    licensed = made(data=LICENSED)
    for mixed in (
        licensed.scaled(0.5),
        licensed + made(),
        -licensed,
        licensed.interpolate(made(), 0.1),
    ):
        with pytest.raises(UserError, match="is not published"):
            mixed.push_to_hub("user/bg")


def test_what_is_not_there(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.put("user/bg", {"README.md": b"no adapter"})
    for name, revision, said in (
        ("user/none", None, "nothing on the hub has this name"),
        ("user/bg", "v9", "has no revision v9"),
        ("user/bg", None, "holds no adapter"),
        ("runs/demo/bg", None, "no adapter at runs/demo/bg"),
        (tmp_path, "v1", "is a folder, which has no revision"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            SteeringVectors.from_pretrained(name, revision=revision)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is no name on a hub"):
        made().push_to_hub("a/b/c")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match=r"refuses \(401\): set HF_TOKEN"):
        made().push_to_hub("user/new")
    assert "user/new" not in hub.repositories


def test_without_network_what_was_fetched_before_still_loads(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    made().push_to_hub("user/bg")
    SteeringVectors.load("user/bg")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert SteeringVectors.load("user/bg").digest() == made().digest()
    with pytest.raises(UserError, match="the hub can't be reached"):
        SteeringVectors.load("user/other")
    with pytest.raises(UserError, match="the hub can't be reached"):
        made().push_to_hub("user/other")


def test_a_hub_that_is_down_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StandInHub() as gone:
        pass
    gone.use(monkeypatch, str(tmp_path))
    with pytest.raises(UserError, match="the hub can't be reached"):
        SteeringVectors.load("user/bg")


def test_what_a_hub_holds_is_data(hub: StandInHub, tmp_path: Path) -> None:
    folder = made().save(tmp_path / "bg")
    good = {name: (folder / name).read_bytes() for name in ("adapter.json", "adapter.safetensors")}
    facts = json.loads(good["adapter.json"])
    for change, said in (
        ({"adapter.safetensors": pickle.dumps({"encoder.0": [1.0]})}, "pickle, which is never opened"),
        ({"adapter.safetensors": (1 << 62).to_bytes(8, "little") + b"{}"}, "claims a header of"),
        ({"adapter.json": json.dumps({**facts, "rule": "add"}).encode()}, "disagree on the rule"),
        ({"adapter.json": b"[" * 100_000}, "is damaged"),
        ({"adapter.json": b" " * (2 << 20)}, "at most 1,048,576: it was not fetched"),
    ):
        hub.put("user/bad", {**good, **change})
        with pytest.raises(UserError, match=said):
            SteeringVectors.load("user/bad")
    hub.put("user/bad", {**good, "adapter.bin": b"x", "code.py": b"raise SystemExit"})
    hub.asked.clear()
    SteeringVectors.load("user/bad")
    assert not [asked for asked in hub.asked if "adapter.bin" in asked or "code.py" in asked]


def test_a_large_file_is_not_fetched(hub: StandInHub, tmp_path: Path) -> None:
    made().push_to_hub("user/bg")
    hub.claimed_size = 1 << 40
    hub.asked.clear()
    with pytest.raises(UserError, match="1099511627776 bytes"):
        SteeringVectors.load("user/bg")
    assert [asked for asked in hub.asked if asked.startswith("GET")] == []
