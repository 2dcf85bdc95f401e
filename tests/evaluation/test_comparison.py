"""Several runs side by side, on made-up transcripts whose errors are counted by hand.

Twenty clips of ten letters each; a method's error rate is how many of a clip's letters are wrong.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from salsa_dist.errors import UserError
from salsa_dist.evaluation.comparison import compare
from salsa_dist.evaluation.comparison_page import as_csv, as_latex, write_comparison

CLIPS = 20
LETTERS = "abcdefghij"


def wrong(count: int) -> str:
    return "x" * count + LETTERS[count:]


def made_run(
    folder: Path,
    name: str,
    errors: int,
    *,
    zero_shot: int = 8,
    seed: int = 0,
    sites: str = "encoder",
    method: dict[str, Any] | None = None,
    revision: str = "abc",
    clips: int = CLIPS,
) -> Path:
    """A run with one adapter, `errors` wrong letters a clip and `zero_shot` without it."""
    run = folder / name
    (run / "evaluation").mkdir(parents=True)
    config: dict[str, Any] = {
        "run": str(run),
        "base": {"name": "org/base"},
        "data": {"shards": "shards"},
        "steering": {"sites": sites},
        "training": {"seed": seed},
        "adapters": [{"name": "bg", "language": "bg"}],
    }
    if method:
        config["method"] = method
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    start = {
        "schema": "salsa-dist/events/1",
        "event": "start",
        "base": {"name": "org/base", "revision": revision, "parameters": 9},
        "environment": {},
    }
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")
    kind = method["kind"] if method else "salsa"
    lines = [
        {
            "schema": "salsa-dist/hypotheses/1", "key": str(i), "language": "bg", "split": "test",
            "method": m, "adapter": adapter, "window_s": 30.0, "reference": LETTERS,
            "hypothesis": wrong(n), "finished": True,
        }
        for i in range(clips)
        for m, adapter, n in (("zero-shot", None, zero_shot), (kind, "bg", errors))
    ]  # fmt: skip
    (run / "evaluation" / "a.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if kind == "salsa":
        (run / "adapters" / "bg").mkdir(parents=True)
        save_file(
            {"encoder.0": np.ones(4, np.float32)},
            run / "adapters" / "bg" / "adapter.safetensors",
            metadata={
                "schema": "salsa-dist/adapter/1", "rule": "salsa", "sites": sites, "language": "bg",
            },
        )  # fmt: skip
    return run


def cells(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["method"]: cell for cell in comparison["cells"]}


def test_seeds_are_averaged_and_their_deviation_told(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, f"s{n}", errors, seed=n) for n, errors in enumerate((2, 4, 6))]
    found = cells(compare(runs))
    salsa = found["SALSA (salsa), encoder"]
    assert salsa["seeds"] == [0, 1, 2]
    assert salsa["cer"]["rate"] == pytest.approx(0.4)
    assert salsa["cer"]["deviation"] == pytest.approx(0.2)
    assert salsa["cer"]["gain"] == pytest.approx(0.5)
    assert found["zero-shot"]["cer"]["rate"] == pytest.approx(0.8)
    assert found["zero-shot"]["cer"]["gain"] is None


def test_methods_have_names_of_their_own(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "salsa", 2),
        made_run(tmp_path, "llm", 5, sites="llm"),
        made_run(tmp_path, "ic", 6, method={"kind": "in-context", "examples": 2}),
    ]
    comparison = compare(runs)
    assert set(cells(comparison)) == {
        "zero-shot",
        "SALSA (salsa), encoder",
        "SALSA (salsa), llm",
        "in-context, 2 examples by random",
    }
    order = [row["method"] for row in comparison["mean"]]
    assert order[0] == "SALSA (salsa), encoder"
    assert order[-1].startswith("in-context")


def test_every_method_is_tested_against_the_best(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, "a", 2), made_run(tmp_path, "b", 2, sites="llm")]
    tests = {t["method"]: t for t in compare(runs)["tests"] if t["metric"] == "cer"}
    assert tests["zero-shot"]["p"] < 0.01
    (same,) = (t for name, t in tests.items() if name != "zero-shot")
    assert same["p"] == 1.0  # the two are wrong alike


def test_layers_steered_alone_make_the_curve(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, f"l{n}", 6 - n, sites=f"encoder:{n}") for n in range(3)]
    curve = [(row["layer"], row["gain"]) for row in compare(runs)["layers"]]
    assert curve == [(n, pytest.approx((8 - (6 - n)) / 8)) for n in range(3)]


def test_what_can_not_be_compared_is_refused_all_at_once(tmp_path: Path) -> None:
    good = made_run(tmp_path, "a", 2)
    other = made_run(tmp_path, "b", 2, revision="xyz")
    empty = made_run(tmp_path, "c", 2)
    (empty / "evaluation" / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"(?s)b is of base revision xyz.*|c was not evaluated") as e:
        compare([good, other, empty])
    assert "xyz" in str(e.value)
    assert "was not evaluated" in str(e.value)


def test_two_learning_rates_of_one_seed_are_refused(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, "a", 2), made_run(tmp_path, "b", 3)]
    with pytest.raises(UserError, match="choose the learning rate on dev"):
        compare(runs)


def test_other_clips_are_refused(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, "a", 2), made_run(tmp_path, "b", 3, sites="llm", clips=5)]
    with pytest.raises(UserError, match="different clips"):
        compare(runs)


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, "s0", 2), made_run(tmp_path, "s1", 4, seed=1)]
    page = write_comparison(runs, tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (row,) = (r for r in csv.DictReader(io.StringIO(as_csv(tree))) if r["method"] != "zero-shot")
    assert float(row["cer_rate"]) == pytest.approx(0.3)
    latex = as_latex(tree)
    assert r"\textbf{30.0 $\pm$ 14.1}" in latex
    assert (tmp_path / "out" / "comparison.tex").read_text() == latex
    html = page.read_text()
    assert "<b>30.0</b>" in html
    assert "<script" not in html
    assert "http" not in html.replace("http://www.w3.org", "")
