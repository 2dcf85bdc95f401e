"""`salsa-dist inspect ADAPTER` and `salsa-dist compare A B`: what they say, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from stand_in_hub import StandInHub
from typer.testing import CliRunner

from salsa_dist import SteeringVectors, UserError
from salsa_dist.cli import app
from salsa_dist.steering.adapter_folder import DataFacts, TrainingFacts

TRAINED = TrainingFacts(steps=160, lr=0.01, seed=3, window_s=5.0, salsa_dist="0.1.0")
SPEECH = DataFacts(name="stamps", shards="ab" * 32, languages=["bg"], licence="GPL-2.0-only")
Says = Callable[..., str]


@pytest.fixture
def says() -> Says:
    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=True)
        if done.exception:
            raise done.exception
        return done.stdout

    return run


def vectors(*rows: tuple[float, float], first: int = 0, **facts: Any) -> SteeringVectors:
    own = {f"encoder.{first + i}": torch.tensor(row) for i, row in enumerate(rows)}
    about = {"base": "org/base", "revision": "c0ffee", "architecture": "A", **facts}
    return SteeringVectors(own, "salsa", **about)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """`adapters/` with bg, el at 60 degrees from it, ru at 90, and one of another base."""
    made = [
        vectors((3.0, 0.0), (4.0, 0.0), name="bg", language="bg", data=SPEECH, training=TRAINED),
        vectors((1.5, 1.5 * 3**0.5), (2.0, 2 * 3**0.5), name="el", language="el"),
        vectors((0.0, 1.0), (0.0, 1.0), name="ru", language="ru"),
        vectors((3.0, 0.0), (4.0, 0.0), name="other", revision="beef"),
    ]
    for one in made:
        one.save(tmp_path / "run/adapters" / one.name)
    return tmp_path / "run"


def test_an_adapter_among_others(says: Says, run: Path) -> None:
    bg = run / "adapters/bg"
    head, made_for, speech, trained, count, *rest = says("inspect", bg, "--near", run).splitlines()
    assert head == "adapter bg: language bg, rule salsa"
    assert made_for == "made for org/base at revision c0ffee, A"
    assert speech == "trained on stamps in bg, licence GPL-2.0-only"
    assert trained == "160 steps, learning rate 0.01 at most, seed 3, window 5 s, salsa-dist 0.1.0"
    assert count == "4 numbers at 2 sites"
    assert rest[0].split() == ["encoder.0", "width", "2", "norm", "3.000", "█" * 22]
    assert rest[1].split()[-1] == "█" * 30
    assert rest[2] == "nearest of 2 adapters of the same base:"
    assert [row.split()[:3] for row in rest[3:5]] == [
        ["el", "cosine", "0.500"],
        ["ru", "cosine", "0.000"],
    ]
    assert rest[5] == "1 adapters are of another base: not compared"


def test_json_says_the_same(says: Says, run: Path) -> None:
    one = says("inspect", run / "adapters/bg", "--near", run / "adapters/el", "--json")
    tree = json.loads(one)
    assert tree["training"]["steps"] == 160
    assert [(n["name"], round(n["cosine"], 6)) for n in tree["nearest"]] == [("el", 0.5)]
    both = json.loads(says("compare", run / "adapters/bg", run / "adapters/el", "--json"))
    assert both["cosine"] == pytest.approx(0.5)
    assert both["differ"]["language"] == ["bg", "el"]
    assert [s["distance"] for s in both["sites"]] == pytest.approx([3.0, 4.0])


def test_two_adapters_site_by_site(says: Says, run: Path) -> None:
    vectors((0.0, 2.0), first=1, name="late").save(run / "late")
    *said, titles, first, second = says("compare", run / "adapters/bg", run / "late").splitlines()
    assert "language: bg and -" in said
    assert "training.steps: 160 and -" in said
    assert said[-1] == "cosine 0.000 over 1 sites that both steer"
    assert titles.split("  ")[0] == "site"
    assert first.split() == ["encoder.0", "3.000", "-", "-", "-"]
    assert second.split() == ["encoder.1", "4.000", "2.000", "0.000", "4.472"]
    other = says("compare", run / "adapters/bg", run / "adapters/other")
    assert "they are of different bases" in other
    assert "base" not in says("compare", run / "adapters/el", run / "adapters/ru")


def test_a_plot_is_a_picture_of_its_own(says: Says, run: Path, tmp_path: Path) -> None:
    bg, el = run / "adapters/bg", run / "adapters/el"
    for words in (("inspect", bg), ("compare", bg, el)):
        says(*words, "--plot", tmp_path / "norms.svg")
        text = (tmp_path / "norms.svg").read_text(encoding="utf-8")
        assert "var(" not in text
        texts = {t.text for t in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")}
        assert {"encoder.0", "encoder.1", "bg"} <= texts
    assert "el" in texts
    with pytest.raises(UserError, match=r"ends in \.svg"):
        says("inspect", bg, "--plot", tmp_path / "norms.png")
    with pytest.raises(UserError, match="can't be written"):
        says("inspect", bg, "--plot", tmp_path / "nowhere" / "norms.svg")


def test_names_of_a_hub(says: Says, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StandInHub() as hub:
        hub.use(monkeypatch, str(tmp_path / "cache"))
        for name in ("bg", "el"):
            folder = run / "adapters" / name
            hub.put(f"user/{name}", {file.name: file.read_bytes() for file in folder.iterdir()})
        hub.put("user/base", {"config.json": b"{}"})
        assert "cosine 0.500" in says("inspect", "user/bg", "--near", "user/el@main")
        assert "cosine 0.500" in says("compare", "user/bg", run / "adapters/el")
        with pytest.raises(
            UserError, match="--near and --plot are about an adapter, user/base is none"
        ):
            says("inspect", "user/base", "--near", "user/el")
        with pytest.raises(UserError, match=r"adapter user/bg@v9 .* it has no revision v9"):
            says("inspect", "user/bg@v9")


def test_what_is_no_adapter(says: Says, run: Path, tiny_base: Path, tmp_path: Path) -> None:
    bg = run / "adapters/bg"
    for words, why in (
        (("inspect", bg, "--layers", "encoder=model.layers"), "--layers is about a base"),
        (("inspect", tiny_base, "--plot", "x.svg"), "--near and --plot are about an adapter"),
        (("inspect", bg, "--near", tiny_base), "no adapter is in this folder or below it"),
        (("compare", bg, run), "it has no adapter"),
        (("compare", bg, tmp_path / "nowhere"), "no adapter at"),
    ):
        with pytest.raises(UserError, match=why):
            says(*words)
    (run / "adapters/el/adapter.json").write_text("{")
    assert "nearest of 1 adapters" in says("inspect", bg, "--near", run)
