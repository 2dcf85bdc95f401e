"""Several runs side by side, on made-up transcripts whose errors are counted by hand.

Twenty clips of ten letters each; a method's error rate is how many of a clip's letters are wrong.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from salsa_dist.errors import UserError
from salsa_dist.report.comparison import Told, compare
from salsa_dist.report.figures import comparison_figures
from salsa_dist.report.numbers import percent
from salsa_dist.report.page import comparison_page
from salsa_dist.report.plots import Point, error_rates
from salsa_dist.report.scales import curves_of
from salsa_dist.report.tables import ERRORS, RATES
from salsa_dist.report.write import write_comparison

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
    languages: tuple[str, ...] = ("bg",),
    minutes: float | None = None,
    trained_steps: int = 4,
    fields: Callable[[int], dict[str, Any]] = lambda i: {},
    harder: Callable[[int], int] = lambda i: 0,
    forgetting: int | None = None,
    direction: int = 0,
) -> Path:
    """A run with an adapter a language, `errors` wrong letters a clip and `zero_shot` without it.

    Args:
        fields: what the shards say of clip i.
        harder: wrong letters of clip i beyond `errors`.
        forgetting: wrong letters of an adapter in the languages that it was not trained in.
        direction: where the vector's one number is.
    """
    run = folder / name
    (run / "evaluation").mkdir(parents=True)
    own = [{"name": x, "language": x} for x in languages]
    config: dict[str, Any] = {
        "run": str(run),
        "base": {"name": "org/base"},
        "data": {"shards": "shards"},
        "steering": {"sites": sites},
        "training": {"seed": seed, "steps": trained_steps},
        "adapters": [{**a, "minutes": minutes} for a in own] if minutes else own,
    }
    if method:
        config["method"] = method
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    start = {
        "event": "start",
        "time": 1000.0,
        "startup_s": 20.0,
        "world_size": 2,
        "threads": 1,
        "base": {"name": "org/base", "revision": revision, "parameters": 9},
        "environment": {"device": "cpu"},
    }
    steps = [
        {
            "event": "step", "time": 1000.0 + 10 * t, "step": t, "seconds": 10.0, "clips": 4,
            "adapters": {x: {"loss": 2.0 - 0.1 * t} for x in languages},
        }
        for t in range(4)
    ]  # fmt: skip
    data = [
        {"event": "data", "adapter": x, "clips": 9, "minutes": minutes or 40.0, "left_out": 0}
        for x in languages
    ]
    events = [{"schema": "salsa-dist/events/1", **e} for e in (start, *data, *steps)]
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    kind = method["kind"] if method else "salsa"
    decoded = [
        (x, m, adapter, n)
        for x in languages
        for m, adapter, n in (
            ("zero-shot", None, zero_shot),
            *([(kind, x, errors)] if kind != "zero-shot" else ()),
            *([("no-adapters", None, zero_shot)] if forgetting is not None else ()),
            *((kind, o, forgetting) for o in languages if o != x and forgetting is not None),
        )
    ]
    lines = [
        {
            "schema": "salsa-dist/hypotheses/1", "key": f"{x}/{i}", "language": x, "split": "test",
            "method": m, "adapter": adapter, "window_s": 30.0, "reference": LETTERS,
            "hypothesis": wrong(min(10, n + (harder(i) if adapter else 0))), "finished": True,
            "fields": fields(i),
        }
        for x, m, adapter, n in decoded
        for i in range(clips)
    ]  # fmt: skip
    (run / "evaluation" / "a.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    summary = {"seconds": 36.0, "device": "cpu", "device_hours": 0.02}
    (run / "evaluation" / "summary.json").write_text(json.dumps(summary))
    for number, x in enumerate(languages if kind == "salsa" else ()):
        (run / "adapters" / x).mkdir(parents=True)
        vector = np.zeros(4, np.float32)
        vector[direction] = 3
        vector[3] = 4 * number
        save_file(
            {"encoder.0": vector},
            run / "adapters" / x / "adapter.safetensors",
            metadata={
                "schema": "salsa-dist/adapter/1", "rule": "salsa", "sites": "encoder.0", "language": x,
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


def test_methods_that_are_better_on_different_clips_do_not_differ(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "a", 2, harder=lambda i: 4 * (i % 2)),
        made_run(tmp_path, "b", 2, sites="llm", harder=lambda i: 4 * (1 - i % 2)),
    ]
    tests = {t["method"]: t["p"] for t in compare(runs)["tests"] if t["metric"] == "cer"}
    assert tests.pop("zero-shot") < 0.05
    assert list(tests.values()) == [1.0]


def test_each_other_method_stands_beside_the_salsa_of_nearest_size(tmp_path: Path) -> None:
    # Both SALSAs train 4 numbers; the better one is taken. Eight wrong letters of ten are zero-shot's.
    # A clip is one word, so a method with any wrong letters has a WER of 100%.
    both = ("bg", "el")
    runs = [
        made_run(tmp_path, "a", 4, languages=both),
        made_run(tmp_path, "b", 0, sites="llm", languages=both, harder=lambda i: 2 * (i < 10)),
        made_run(tmp_path, "few", 1, minutes=5, sites="llm", languages=both),
        made_run(tmp_path, "bg", 0, sites="encoder:0"),  # it lacks a language
        made_run(tmp_path, "ic", 6, method={"kind": "in-context", "examples": 2}, languages=both),
    ]
    rows = compare(runs)["beside"]
    assert [(r["language"], r["salsa"], r["cer"], r["salsa_cer"]) for r in rows] == [
        (x, "SALSA (salsa), llm", pytest.approx(0.6), pytest.approx(0.1)) for x in both
    ]
    assert [(r["wer"], r["salsa_wer"]) for r in rows] == [(1.0, 0.5)] * 2
    # Ten clips differ in WER, each by one word: all are on one side in 2 of 2^10 permutations.
    assert all(r["p"] < 0.001 for r in rows)
    assert all(0.001 < r["p_wer"] < 0.004 for r in rows)
    text = text_of(write_comparison(runs, tmp_path / "out").read_text())
    assert "60.0 → 10.0 p &lt;0.001 WER 100.0 → 50.0 p 0.00" in text


@pytest.mark.parametrize("rate", ["cer", "mer"])
def test_what_a_sweep_tells_is_on_the_page(tmp_path: Path, rate: str) -> None:
    run = made_run(tmp_path, "a", 2)
    tried = made_run(tmp_path, "try", 3)
    choice = {
        "method": "SALSA (salsa), encoder", "corpus": "", "minutes": None, "languages": ["bg"],
        "tries": [{"tried": "lr0.1", "dev": {"bg": 0.5}}, {"tried": "lr0.2", "dev": {"bg": None}}],
        "chosen": "lr0.1",
    }  # fmt: skip
    tuning = {"choose_by": rate, "dev_clips": 4, "steps": 9, "seed": 7, "choices": [choice]}
    told = Told("Four & more", ("Two seeds were cut.", "At 5 s."), tuning, (tried,))
    html = write_comparison([run], tmp_path / "out", told=told).read_text()
    assert "<h1>Four &amp; more</h1>" in html
    assert "<p>Two seeds were cut.</p>" in html
    text = text_of(html)
    assert f"{rate.upper()} in % on 4 dev clips per language after 9 steps with seed 7" in text
    assert "lr0.1: <b>50.0</b>" in html
    assert "lr0.2: no number" in text
    # Two ranks of one thread for 50 s are 0.0278 hours each, and 0.02 of transcribing.
    assert "salsa 1 1 0.0278 CPU-hours 0.02 CPU-hours" in text
    assert "salsa, trials 1 1 0.0278 CPU-hours" in text
    assert "all 2 2 0.0556 CPU-hours 0.04 CPU-hours" in text


def test_zero_shot_is_that_of_the_run_of_the_base_alone(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "a", 2, forgetting=3, zero_shot=9),
        made_run(tmp_path, "base", 8, method={"kind": "zero-shot"}),
        made_run(tmp_path, "b", 2, sites="llm", forgetting=3, zero_shot=9),
    ]
    comparison = compare(runs)
    assert cells(comparison)["zero-shot"]["cer"]["rate"] == pytest.approx(0.8)
    assert [row["cer_off"] for row in comparison["untouched"]] == [0.9, 0.9]
    html = write_comparison(runs, tmp_path / "out").read_text()
    assert "90.000000 / 90.000000 100.000000 / 100.000000 all 20 2" in text_of(html)  # both in a row


def test_layers_steered_alone_make_the_curve(tmp_path: Path) -> None:
    alone = [("encoder", 0), ("encoder", 1), ("encoder", 2), ("llm", 0), ("llm", 1)]
    runs = [made_run(tmp_path, f"{c}{n}", 6 - n, sites=f"{c}:{n}") for c, n in alone]
    curve = [(row["component"], row["layer"], row["gain"]) for row in compare(runs)["sites"]]
    assert curve == [(c, n, pytest.approx((8 - (6 - n)) / 8)) for c, n in alone]
    html = write_comparison(runs, tmp_path / "out").read_text()
    for component in ("encoder", "llm"):
        assert f"{component} layer steered alone" in html


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


def speaker(i: int) -> dict[str, Any]:
    return {"speaker": f"s{i // 5}", "age": 5 + i // 10}


def test_speakers_are_resampled_whole(tmp_path: Path) -> None:
    # Four speakers of five clips; two of them are wrong in all letters, two in none.
    def harder(i: int) -> int:
        return 10 if i < 10 else 0

    alone = compare([made_run(tmp_path, "a", 0, harder=harder)])
    known = compare([made_run(tmp_path, "b", 0, harder=harder, fields=speaker)])
    by_clip, by_speaker = (cells(c)["SALSA (salsa), encoder"] for c in (alone, known))
    assert by_clip["interval_over"] == "utterances"
    assert (by_speaker["interval_over"], by_speaker["speakers"]) == ("speakers", 4)
    assert by_clip["cer"]["rate"] == by_speaker["cer"]["rate"] == 0.5
    # Of 20 clips the share of the bad ones is 0.5 ± 1.96 * 0.5 / √20; of 4 speakers all may be bad
    # (1 in 16 draws), so the interval is everything.
    assert by_clip["cer"]["low"] == pytest.approx(0.5 - 0.219, abs=0.06)
    assert by_clip["cer"]["high"] == pytest.approx(0.5 + 0.219, abs=0.06)
    assert (by_speaker["cer"]["low"], by_speaker["cer"]["high"]) == (0.0, 1.0)
    assert by_speaker["cer"]["gain_high"] - by_speaker["cer"]["gain_low"] > (
        by_clip["cer"]["gain_high"] - by_clip["cer"]["gain_low"]
    )


def test_a_speakers_clips_change_sides_together(tmp_path: Path) -> None:
    def p(name: str, **more: Any) -> float:
        (test,) = (t for t in compare([made_run(tmp_path, name, 2, **more)])["tests"]
                   if t["metric"] == "cer")  # fmt: skip
        return float(test["p"])

    assert p("a") < 0.001  # twenty clips that all have fewer errors: 2 of 2^20 signs
    # Four speakers have 16 signs, of which all plus and all minus are as far from nought.
    assert p("b", fields=speaker) == pytest.approx(2 / 16)


def test_results_by_a_field_of_the_shards(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", 2, fields=speaker, harder=lambda i: 2 if i >= 10 else 0)
    rows = compare([run], by=["age"])["by"]
    found = {(r["value"], r["method"]): (r["utterances"], r["cer"]["rate"]) for r in rows}
    assert found == {
        ("5", "zero-shot"): (10, 0.8),
        ("6", "zero-shot"): (10, 0.8),
        ("5", "SALSA (salsa), encoder"): (10, 0.2),
        ("6", "SALSA (salsa), encoder"): (10, 0.4),
    }
    gains = {r["value"]: r["cer"]["gain"] for r in rows if r["kind"] == "salsa"}
    assert gains == {"5": pytest.approx(0.75), "6": pytest.approx(0.5)}


def test_an_unknown_field_names_those_there_are(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", 2, fields=speaker)
    with pytest.raises(UserError, match=r"field grade; there are age, speaker"):
        compare([run], by=["grade"])


def test_forgetting_is_a_matrix_of_its_own(tmp_path: Path) -> None:
    comparison = compare([made_run(tmp_path, "a", 2, languages=("bg", "el"), forgetting=10)])
    matrix = {(r["trained_in"], r["language"]): r["cer"]["gain"] for r in comparison["forgetting"]}
    assert matrix == {
        ("bg", "bg"): pytest.approx(0.75),
        ("bg", "el"): pytest.approx(-0.25),
        ("el", "bg"): pytest.approx(-0.25),
        ("el", "el"): pytest.approx(0.75),
    }
    # What an adapter does elsewhere is none of its results.
    assert len(comparison["cells"]) == 4
    assert comparison["mean"][0]["cer"] == pytest.approx(0.75)


def test_rates_by_scale_are_told_apart_from_the_adapter_itself(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, f"s{n}", 2, seed=n, languages=("bg", "el"), forgetting=10) for n in (0, 1)
    ]
    before = compare(runs)["cells"]
    for run in runs:
        file = run / "evaluation" / "a.jsonl"
        own = [json.loads(line) for line in file.read_text().splitlines()]
        longer = [{**x, "scale": 1.5, "hypothesis": wrong(5)} for x in own if x["adapter"] == "bg"]
        file.write_text("".join(json.dumps(x) + "\n" for x in own + longer))
    comparison = compare(runs)
    assert comparison["cells"] == before
    rows = comparison["scales"]
    assert {(r["adapter"], r["trained_in"], r["language"], r["scale"]): r["cer"] for r in rows} == {
        ("bg", "bg", "bg", 0.0): 0.8,
        ("bg", "bg", "bg", 1.0): 0.2,
        ("bg", "bg", "bg", 1.5): 0.5,
        ("bg", "bg", "el", 0.0): 0.8,
        ("bg", "bg", "el", 1.0): 1.0,
        ("bg", "bg", "el", 1.5): 0.5,
    }
    assert len(rows) == 12
    assert curves_of(rows) == {
        "bg": [(0.0, 0.8), (1.0, 0.2), (1.5, 0.5)],
        "bg in other languages": [(0.0, 0.8), (1.0, 1.0), (1.5, 0.5)],
    }
    html = write_comparison(runs, tmp_path / "out").read_text()
    assert "scale of the vectors" in html
    assert f"bg s1 el {percent(0.8)} {percent(1.0)} {percent(0.5)}" in text_of(html)
    assert len((tmp_path / "out/comparison-scales.csv").read_text().splitlines()) == 13


def test_the_base_with_adapters_off_is_held_against_the_base_alone(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", 2, forgetting=10)
    (row,) = compare([run])["untouched"]
    assert (row["same"], row["utterances"]) == (20, 20)
    assert row["cer_off"] == row["cer_without"] == 0.8
    file = run / "evaluation" / "a.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    next(x for x in lines if x["method"] == "no-adapters")["hypothesis"] = "other"
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))
    (row,) = compare([run])["untouched"]
    assert (row["same"], row["utterances"]) == (19, 20)
    assert row["cer_off"] != row["cer_without"]


def test_norms_and_cosines_of_vectors(tmp_path: Path) -> None:
    # bg is (3, 0, 0, 0) with one seed and (0, 3, 0, 0) with the other; el the same with a 4 at the end.
    runs = [
        made_run(tmp_path, f"s{seed}", 2, seed=seed, direction=seed, languages=("bg", "el"))
        for seed in (0, 1)
    ]
    comparison = compare(runs)
    assert {r["language"]: r["norms"] for r in comparison["norms"]} == {
        "bg": {"encoder.0": 3.0},
        "el": {"encoder.0": 5.0},
    }
    cosines = {(r["language"], r["other"]): r["cosine"] for r in comparison["cosines"]}
    # bg with el: 9 / 15 with the same seed, nought with the other. el with itself: 16 / 25.
    assert cosines == {
        ("bg", "bg"): 0.0,
        ("bg", "el"): pytest.approx(0.3),
        ("el", "bg"): pytest.approx(0.3),
        ("el", "el"): pytest.approx(0.64),
    }


def test_gain_against_minutes_of_speech(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "m5", 6, minutes=5),
        made_run(tmp_path, "m10", 4, minutes=10),
        made_run(tmp_path, "all", 2),
        made_run(tmp_path, "llm", 2, sites="llm"),  # one size is no curve
    ]
    rows = compare(runs)["minutes"]
    assert [(r["minutes"], r["gain"]) for r in rows] == [
        (5, pytest.approx(0.25)),
        (10, pytest.approx(0.5)),
        (40, pytest.approx(0.75)),
    ]


def test_gain_against_training_steps(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "s64", 6, trained_steps=64),
        made_run(tmp_path, "s1024", 2, trained_steps=1024),
        made_run(tmp_path, "llm64", 4, trained_steps=64, sites="llm"),
        made_run(tmp_path, "llm1024", 4, trained_steps=1024, sites="llm"),
        made_run(tmp_path, "layer", 2, sites="encoder:1", trained_steps=8),  # one length is no curve
    ]
    comparison = compare(runs)
    assert [
        (r["sized"], r["steps"], r["gain"]) for r in comparison["steps"] if "encoder" in r["sized"]
    ] == [
        ("SALSA (salsa), encoder, 64 steps", 64, pytest.approx(0.25)),
        ("SALSA (salsa), encoder, 1,024 steps", 1024, pytest.approx(0.75)),
    ]
    assert {row["method"] for row in comparison["mean"]} == {
        *("SALSA (salsa), encoder, 64 steps", "SALSA (salsa), encoder, 1,024 steps"),
        *("SALSA (salsa), llm, 64 steps", "SALSA (salsa), llm, 1,024 steps"),
        "SALSA (salsa), encoder:1",
    }
    # The longer one stands for its sites, and in the figures that show methods side by side.
    assert {row["sites"]: row["gain"] for row in comparison["sites"]} == {
        "encoder": pytest.approx(0.75),
        "encoder:1": pytest.approx(0.75),
        "llm": pytest.approx(0.5),
    }
    figures, _ = comparison_figures(comparison)
    assert figures["steps"].count("SALSA (salsa), encoder<") == 1
    assert "1,024 steps" in figures["gains"]
    assert "64 steps" not in figures["gains"] + figures["numbers"]
    page = comparison_page(comparison)
    assert "<h2>Gain by sites and by training steps</h2>" in page
    assert "a line per method for its mean over languages</figcaption>" in page


def test_curves_of_minutes_and_of_steps_are_apart(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, f"{minutes}-{steps}", errors, minutes=minutes, trained_steps=steps)
        for errors, minutes, steps in ((7, 5, 64), (6, 5, 1024), (4, None, 64), (2, None, 1024))
    ]
    comparison = compare(runs)
    assert [(r["minutes"], r["gain"]) for r in comparison["minutes"]] == [
        (5, pytest.approx(0.25)),
        (40, pytest.approx(0.75)),
    ]
    assert [(r["steps"], r["gain"]) for r in comparison["steps"]] == [
        (64, pytest.approx(0.5)),
        (1024, pytest.approx(0.75)),
    ]
    figures, _ = comparison_figures(comparison)
    assert {"gains", "numbers", "minutes", "steps"} <= set(figures)
    assert "64 steps" not in figures["gains"] + figures["numbers"]


def test_seeds_of_unequal_steps_are_seeds_of_one_method(tmp_path: Path) -> None:
    """As seeds of as many epochs are."""
    runs = [made_run(tmp_path, str(s), 4, seed=s, trained_steps=36 + s) for s in (0, 1, 2)]
    comparison = compare(runs)
    assert [(r["method"], r["seeds"]) for r in comparison["mean"]] == [("SALSA (salsa), encoder", [3])]
    assert comparison["steps"] == []


def test_languages_of_other_lengths_are_no_curve(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "bg", 6, trained_steps=64, languages=("bg",)),
        made_run(tmp_path, "el", 4, trained_steps=1024, languages=("el",)),
    ]
    comparison = compare(runs)
    assert comparison["steps"] == []
    assert {row["method"] for row in comparison["mean"]} == {"SALSA (salsa), encoder"}


def test_languages_of_other_sizes_are_no_curve(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "bg", 6, minutes=5, languages=("bg",)),
        made_run(tmp_path, "el", 4, minutes=10, languages=("el",)),
    ]
    assert compare(runs)["minutes"] == []


def test_sites_and_cost_and_losses(tmp_path: Path) -> None:
    chosen = {"encoder:1": 5, "encoder:last-half": 4, "llm": 2}
    runs = [made_run(tmp_path, s.replace(":", "-"), n, sites=s) for s, n in chosen.items()]
    comparison = compare(runs)
    assert [(r["sites"], r["component"], r["layer"]) for r in comparison["sites"]] == [
        ("encoder:1", "encoder", 1), ("encoder:last-half", None, None), ("llm", None, None),
    ]  # fmt: skip
    cost = comparison["cost"][0]
    # Two ranks of one thread from 20 s before the start to the last event, 30 s after it.
    assert cost["training_device_hours"] == pytest.approx(2 * 50 / 3600)
    assert (cost["training_seconds"], cost["evaluation_device_hours"]) == (40.0, 0.02)
    assert comparison["losses"][0]["points"] == [[0, 2.0], [1, 1.9], [2, 1.8], [3, 1.7]]


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_page_csv_json_and_latex_hold_the_same_numbers(tmp_path: Path) -> None:
    more: dict[str, Any] = {"languages": ("bg", "el"), "fields": speaker}
    runs = [
        made_run(tmp_path, "s0", 2, forgetting=9, harder=lambda i: i % 3, **more),
        made_run(tmp_path, "s1", 4, seed=1, harder=lambda i: i % 4, **more),
        made_run(tmp_path, "llm", 5, sites="llm", harder=lambda i: i % 2, **more),
    ]
    page = write_comparison(runs, tmp_path / "out", by=["age"])
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        *("comparison.html", "comparison.json", "comparison.csv", "comparison.tex"),
        *("comparison-by.csv", "comparison-forgetting.csv"),
    }
    tree = json.loads((out / "comparison.json").read_text())
    latex = (out / "comparison.tex").read_text()
    normaliser = tree["definitions"]["normaliser"]
    assert latex.startswith(f"% normaliser: {normaliser}\n")
    assert f"<td>{normaliser}</td>" in (out / "comparison.html").read_text()
    html = page.read_text()
    text = text_of(html)
    rows = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    assert len(rows) == len(tree["cells"]) == 6
    assert {row["normaliser"] for row in rows} == {normaliser}
    for cell, row in zip(tree["cells"], rows, strict=True):
        assert (row["language"], row["method"]) == (cell["language"], cell["method"])
        for metric in ("cer", "wer"):
            for name in (*RATES, *ERRORS):
                value = cell[metric][name]
                assert row[f"{metric}_{name}"] == ("" if value is None else str(value))
        said = percent(cell["cer"]["rate"])
        interval = f"{percent(cell['cer']['low'])} to {percent(cell['cer']['high'])}"
        deviation = cell["cer"]["deviation"]
        between = f" ± {percent(deviation)}" if deviation is not None else ""
        assert f"{said} {between.strip()} ({interval})".replace("  ", " ") in text
        assert f"{said}{' $' + chr(92) + 'pm$ ' + percent(deviation) if deviation else ''}" in latex
        if cell["cer"]["gain"] is not None:
            ends = f"{percent(cell['cer']['gain_low'])} to {percent(cell['cer']['gain_high'])}"
            assert f"{percent(cell['cer']['gain'])} ({ends})" in text
            assert f"{percent(cell['cer']['gain'])} ({ends})".replace("−", "$-$") in latex
        errors = " / ".join(
            percent(cell["wer"][k]) for k in ("substitutions", "deletions", "insertions")
        )
        assert errors in text
    best = min(c["cer"]["rate"] for c in tree["cells"] if c["language"] == "bg")
    assert f"<b>{percent(best)}</b>" in html
    assert rf"\textbf{{{percent(best)} $\pm$" in latex
    for row in tree["forgetting"]:
        assert f"{percent(row['cer']['gain'])} ({percent(row['cer']['zero_shot'])} →" in text
    forgotten = csv.DictReader(io.StringIO((out / "comparison-forgetting.csv").read_text()))
    assert [r["cer_gain"] for r in forgotten] == [str(r["cer"]["gain"]) for r in tree["forgetting"]]
    by = csv.DictReader(io.StringIO((out / "comparison-by.csv").read_text()))
    assert [r["cer_rate"] for r in by] == [str(r["cer"]["rate"]) for r in tree["by"]]


def test_long_names_are_whole_in_a_legend_and_take_their_lines() -> None:
    name = "SALSA (gain), encoder+encoder.attention+encoder.feed_forward+llm"
    svgs = [error_rates("CER", [("bg", [Point(label, 0.3, 0.2, 0.4)])]) for label in (name, name[:30])]
    texts = re.findall(r">([^<>]*SALSA[^<>]*|[^<>]*llm[^<>]*)</", svgs[0])
    assert "".join(texts).replace(" +", "+") == name
    tall, low = (float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)[1]) for svg in svgs)
    assert tall > low + 8


def test_the_page_stands_alone_with_all_its_figures(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "l0", 6, sites="encoder:0", languages=("bg", "el")),
        made_run(tmp_path, "l1", 5, sites="encoder:1", languages=("bg", "el")),
        made_run(tmp_path, "all", 2, languages=("bg", "el")),
        made_run(tmp_path, "m5", 4, minutes=5, languages=("bg", "el")),
    ]
    html = write_comparison(runs, tmp_path / "out").read_text()
    assert "<script" not in html
    assert not re.search(r"<(link|script|img|iframe|object)\b|@import|url\((?!#)", html)
    # Gains, CER, numbers, layers, sites, minutes, norms, cosines, loss.
    assert html.count("<svg") == 9
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_mixed_speech_is_told_by_language_and_at_switch_points(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", 2, languages=("zh-en",))
    file = run / "evaluation" / "a.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["reference"] = "我们用app吧"
        line["hypothesis"] = "我们用map吧" if line["adapter"] else "你们用map吧"
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))
    html = write_comparison([run], tmp_path / "out").read_text()
    tree = json.loads((tmp_path / "out/comparison.json").read_text())
    cell = next(c for c in tree["cells"] if c["kind"] == "salsa")
    assert {name: (p["rate"], p["tokens"]) for name, p in cell["parts"].items()} == {
        "zh": (0.0, 80),
        "en": (1.0, 20),
        "switch": (1 / 3, 60),
    }
    text = text_of(html)
    assert "MER of zh 80 tokens en 20 tokens switch points 60 tokens" in text
    assert "zero-shot 25.0" in text
    assert "2 errors: zh 1, en 1, at switch points 1" in text
    assert "WER" not in text.split("Definitions")[0]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/comparison-mixed.csv").read_text())))
    told = {(r["method"], r["part"]): r["rate"] for r in rows}
    assert told[cell["method"], "switch"] == str(1 / 3)
    assert told["zero-shot", "zh"] == "0.25"


def test_examples_mark_each_kind_of_error_without_colour_too(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", 2)
    file = run / "evaluation" / "a.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["reference"] = "one two three"
        line["hypothesis"] = "one too three" if line["adapter"] else "two three four"
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))
    html = write_comparison([run], tmp_path / "out").read_text()
    assert '<mark title="instead of: two">too</mark>' in html
    assert '<del title="deleted">one</del>' in html
    assert '<ins title="inserted">four</ins>' in html
    style = html[html.index("<style") : html.index("</style>")]
    assert re.search(r"mark \{[^}]*dashed", style)
    assert re.search(r"ins::before \{ content: \"\+\"", style)
    assert re.search(r"del \{[^}]*line-through", style)
