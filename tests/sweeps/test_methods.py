"""A comparison: each method is tuned alike on dev, and what was chosen runs with all seeds on test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from clips import mixed_shards
from ranks import run_ranks, start
from stand_in_hub import StandInHub
from tiny_families import FAMILIES

from salsa_dist import UserError, load_config, train
from salsa_dist.cli import run_command
from salsa_dist.commands import sweep as commands
from salsa_dist.metrics.error_rates import score
from salsa_dist.report.figures import comparison_figures
from salsa_dist.report.page import comparison_page
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.sweeps import local_jobs
from salsa_dist.sweeps.choosing import choose, finals_of, trials_of
from salsa_dist.sweeps.folder import JobFolder
from salsa_dist.sweeps.grid import load_sweep
from salsa_dist.sweeps.job_config import job_config
from salsa_dist.sweeps.plan import make_plan

METHODS: list[dict[str, Any]] = [
    {"kind": "zero-shot"},
    {"kind": "in-context", "choose": "random", "examples": [1, 2]},
    {"kind": "in-context", "choose": ["audio", "text"], "examples": 1},
    {"kind": "mean-difference", "contrast": "el", "sites": "encoder", "scale": [0.5, 1]},
    {"kind": "bias", "sites": "encoder", "lr": [0.001, 0.05]},
    {"kind": "lora", "rank": 1, "targets": ["v_proj"], "sites": "encoder", "lr": [0.001, 0.05]},
    {"kind": "salsa", "sites": "encoder", "rule": "add", "lr": [0.001, 0.1]},
    {"kind": "salsa", "sites": "llm", "rule": "salsa", "lr": [0.001, 0.1], "name": "on the LLM"},
]


def write(folder: Path, base: Path, shards: Path, **sections: Any) -> Path:
    """A small comparison; `sections` replace those below."""
    tree = {
        "sweep": str(folder / "sweep"),
        "config": {
            "base": {"name": str(base), "window_s": 2},
            "data": {"shards": str(shards), "clips_per_step": 2, "readers": 2},
            "training": {"steps": 4, "save_every_s": 60},
            "evaluation": {"max_new_tokens": 8, "batch": 4},
            "trackers": [],
        },
        "grid": {"language": ["bg"], "seed": [0, 1]},
        "dev_clips": 2,
        "tuning": {"steps": 2},
        "methods": METHODS,
        "report": {"title": "All methods", "notes": "One language\nalone.\n\nNoise."},
        **sections,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def in_this_process(most: int) -> Any:
    """Runs jobs here instead of in processes of their own, and stops after `most` commands."""

    def run_jobs(jobs: Sequence[JobFolder], ranks: int, at_once: int) -> int:
        left = most
        for job in jobs:
            for verb in job.to_do():
                if not left:
                    return 143
                run_command(verb, str(job.config), [])
                left -= 1
        return 0

    return run_jobs


def run_here(path: Path, most: int = 1000) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_jobs, "run_jobs", in_this_process(most))
        commands.run(path)


def json_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def transcripts(sweep: Path, stage: str) -> list[dict[str, Any]]:
    files = sorted(sweep.glob(f"jobs/{stage}-*/evaluation/window*.jsonl"))
    return [json.loads(line) for f in files for line in f.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Path:
    """The sweep file of a comparison of all methods that ran without a stop."""
    path = write(tmp_path_factory.mktemp("whole"), tiny_base, tiny_shards)
    run_here(path)
    return path


def test_the_best_on_dev_is_chosen_and_runs_with_all_seeds_on_test(whole: Path) -> None:
    sweep = whole.parent / "sweep"
    rows = json_of(sweep / "results.json")["rows"]
    assert {row["state"] for row in rows} == {"done"}
    trials = {(r["method"], r["name"]): r["cer"] for r in rows if r["stage"] == "try"}
    for choice in json_of(sweep / "chosen.json")["choices"]:
        if len(choice["tries"]) > 1:
            by = {t["tried"]: t["dev"]["bg"] for t in choice["tries"]}
            assert sorted(by.values()) == sorted(
                v for (m, _), v in trials.items() if m == choice["method"]
            )
            assert by[choice["chosen"]] == min(by.values())
    cells = json_of(sweep / "report" / "comparison.json")["cells"]
    seeds = {cell["method"]: len(cell["seeds"]) for cell in cells}
    assert seeds == {
        "zero-shot": 1,
        "in-context by random": 2,
        "in-context by audio or text": 1,
        "mean difference to el, encoder": 1,
        "biases of encoder": 2,
        "LoRA r=1 on v_proj of encoder": 2,
        "SALSA (add), encoder": 2,
        "on the LLM": 2,
    }
    trained = {cell["method"]: cell["trained_numbers"] for cell in cells}
    page = (sweep / "report" / "comparison.html").read_text()
    assert "<h1>All methods</h1>" in page
    assert "<p>One language alone.</p>\n<p>Noise.</p>" in page
    assert page.count("2 trials per method</summary>") == 1
    assert "Without trials" not in page
    assert all(f"lr{lr}: " in page for lr in ("0.001", "0.05", "0.1"))
    assert "lora, trials" in page
    assert trained["mean difference to el, encoder"] == trained["zero-shot"] == 0
    assert trained["LoRA r=1 on v_proj of encoder"] == 3 * 64
    finals = [r for r in rows if r["stage"] == "final"]
    assert {r["steps"] for r in finals if r["lr"]} == {4}
    assert {r["steps"] for r in rows if r["stage"] == "try" and r["lr"]} == {2}


def test_the_page_names_methods_without_trials_and_marks_the_best_mean(whole: Path) -> None:
    tree = json_of(whole.parent / "sweep" / "report" / "comparison.json")
    for choice in tree["tuning"]["choices"]:
        if choice["method"] == "on the LLM":
            choice["tries"] = choice["tries"][:1]
    for i, row in enumerate(tree["mean"]):
        row["cer"] = 0.5 - i / 100
    page = comparison_page(tree)
    assert "Without trials: on the LLM.</p>" in page
    assert "2 trials per method with trials</summary>" in page
    table = page.split("mean, CER</th>", 1)[1].split("</table>", 1)[0]
    assert table.count("<td><b>") == 1
    assert "<td><b>50.0</b>" in table


def test_trials_use_dev_clips_alone_and_the_base_is_decoded_once(whole: Path) -> None:
    sweep = whole.parent / "sweep"
    tried, final = transcripts(sweep, "try"), transcripts(sweep, "final")
    assert {line["split"] for line in tried} == {"dev"}
    assert {line["key"] for line in tried} == {"bg/dev-0", "bg/dev-1"}
    assert {line["split"] for line in final} == {"test"}
    plain = [line for line in [*tried, *final] if line["adapter"] is None]
    assert len(plain) == 6
    per_adapter = [line for line in final if line["adapter"] is not None]
    assert len(per_adapter) == 6 * len({line["adapter"] for line in per_adapter})
    assert len({line["adapter"] for line in per_adapter}) == 12


def test_killed_anywhere_and_gone_on_with_it_ends_the_same(
    whole: Path, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    path = write(tmp_path, tiny_base, tiny_shards)
    sweep = tmp_path / "sweep"
    words = ("-m", "salsa_dist", "sweep", "run", path)
    process = start(*words, env=dict(os.environ), out=tmp_path / "log")
    end = time.monotonic() + 500
    while not list(sweep.glob("jobs/*/evaluation/summary.json")) and time.monotonic() < end:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    assert not (sweep / "report").exists()
    for _ in range(100):  # a stop after each command
        with contextlib.suppress(SystemExit):
            run_here(path, most=1)
        if (sweep / "report").exists():
            break
    one, other = whole.parent / "sweep", sweep
    assert json_of(one / "chosen.json") == json_of(other / "chosen.json")
    assert json_of(one / "results.json") == json_of(other / "results.json")
    cells = [json_of(x / "report" / "comparison.json")["cells"] for x in (one, other)]
    assert cells[0] == cells[1]


def test_only_what_a_longer_file_adds_is_missing(
    whole: Path, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    shutil.copytree(whole.parent / "sweep", tmp_path / "sweep")
    same = make_plan(load_sweep(write(tmp_path, tiny_base, tiny_shards)))
    assert same.finished
    assert same.write() == []

    def new(**sections: Any) -> tuple[list[str], list[str]]:
        made = make_plan(load_sweep(write(tmp_path, tiny_base, tiny_shards, **sections)))
        return (
            sorted(e.name for p in made.new for e in p.experiments),
            sorted({e.label for p in made.later for e in p.experiments}),
        )

    seed, later = new(grid={"language": ["bg"], "seed": [0, 1, 2]})
    assert later == []
    assert len(seed) == 5
    assert all(name.endswith("_s2") for name in seed)
    bias = {"kind": "bias", "sites": "llm", "lr": [0.01, 0.02]}
    method, later = new(methods=[*METHODS, bias])
    assert method == [f"bg_biases-of-llm_lr{lr}_try_s0" for lr in (0.01, 0.02)]
    assert later == ["biases of llm"]
    no_mean = [m for m in METHODS if m["kind"] != "mean-difference"]
    language, later = new(methods=no_mean, grid={"language": ["bg", "el"], "seed": [0, 1]})
    assert all(name.startswith("el_") for name in language)
    assert len(language) == 6 * 2 + 1
    assert len(later) == 6


def test_a_choice_is_for_each_language_or_for_all(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    grid = {"language": ["bg", "el"], "seed": [0]}
    method = [{"kind": "salsa", "lr": [0.1, 0.2]}]
    chosen = {}
    for per in ("language", "all"):
        sweep = load_sweep(
            write(tmp_path, tiny_base, tiny_shards, grid=grid, methods=method, tuning={"per": per})
        )
        names = [e.name for e in trials_of(sweep)]  # bg 0.1, bg 0.2, el 0.1, el 0.2
        measured = dict(zip(names, [0.5, 0.4, 0.1, 0.3], strict=True))
        finals = finals_of(sweep, choose(sweep, measured))
        chosen[per] = {e.language: e.lr for e in finals}
    assert chosen == {"language": {"bg": 0.2, "el": 0.1}, "all": {"bg": 0.1, "el": 0.1}}
    first = trials_of(sweep)[0].name
    assert choose(sweep, {first: 0.1})[0].chosen is None
    diverged = choose(sweep, {**measured, names[0]: None, names[2]: None})
    assert diverged[0].chosen is not None
    assert diverged[0].chosen.lr == 0.2
    with pytest.raises(UserError, match="no trial in bg, el has a finite result"):
        choose(sweep, dict.fromkeys(names))


def test_a_rate_that_training_estimates_needs_no_trial(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    methods = [{"kind": "salsa"}, {"kind": "lora", "rank": 1, "lr": [0.1, 0.2]}]
    sweep = load_sweep(
        write(
            *(tmp_path, tiny_base, tiny_shards),
            methods=methods,
            tuning={"uneven": True},
            overrides={"training.lr": "auto"},
        )
    )
    trials = trials_of(sweep)
    assert [(e.method.kind, e.lr) for e in trials] == [("lora", 0.1), ("lora", 0.2)]
    finals = finals_of(sweep, choose(sweep, {e.name: 0.5 for e in trials}))
    steered = [e for e in finals if e.method.kind == "salsa"]
    assert [(e.name, e.lr) for e in steered] == [
        (f"bg_SALSA-salsa-encoder_s{seed}", None) for seed in (0, 1)
    ]
    assert [a["lr"] for a in job_config(sweep, steered)["adapters"]] == [None, None]


def test_trained_methods_have_a_final_row_for_each_length_of_training(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    methods = [
        {"kind": "zero-shot"},
        {"kind": "salsa", "sites": "encoder", "lr": [0.01, 0.02]},
        {"kind": "lora", "rank": 1, "targets": ["v_proj"], "sites": "encoder", "lr": [0.001, 0.01]},
    ]
    grid = {"language": ["bg"], "seed": [0], "steps": [4, 2]}
    path = write(tmp_path, tiny_base, tiny_shards, methods=methods, grid=grid, tuning={})
    sweep = load_sweep(path)
    trials = trials_of(sweep)
    assert [(e.lr, e.steps) for e in trials] == [(lr, 4) for lr in (0.01, 0.02, 0.001, 0.01)]
    finals = finals_of(sweep, choose(sweep, {e.name: 0.5 for e in trials}))
    assert [(e.method.kind, e.steps) for e in finals] == [
        *(("zero-shot", 4), ("salsa", 4), ("salsa", 2), ("lora", 4), ("lora", 2)),
    ]
    assert finals[2].name == "bg_SALSA-salsa-encoder_lr0.01_s0_2steps"
    assert "trials: 4 steps, seed 0; the best by cer on 2 dev clips" in make_plan(sweep).text()
    assert "final rows: 4, 2 steps, evaluated on test" in make_plan(sweep).text()
    untried = write(tmp_path / "untried", tiny_base, tiny_shards, methods=[{"kind": "salsa"}])
    assert (
        "\nno trials; final rows: 4 steps, evaluated on test" in make_plan(load_sweep(untried)).text()
    )
    run_here(path)
    rows = json_of(tmp_path / "sweep/results.json")["rows"]
    made = [(r["kind"], r["steps"]) for r in rows if r["stage"] == "final" and r["lr"]]
    assert made == [("salsa", 4), ("salsa", 2), ("lora", 4), ("lora", 2)]
    comparison = json_of(tmp_path / "sweep/report/comparison.json")
    labels = ("SALSA (salsa), encoder", "LoRA r=1 on v_proj of encoder")
    assert {(r["sized"], r["steps"]) for r in comparison["steps"]} == {
        (f"{label}, {steps} steps", steps) for label in labels for steps in (2, 4)
    }
    page = (tmp_path / "sweep/report/comparison.html").read_text()
    assert "Gain in CER against training steps" in page


def test_the_mean_of_seeds_is_a_row_of_its_own(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    methods = [
        {"kind": "zero-shot"},
        {"kind": "salsa", "sites": "encoder", "lr": 0.05, "average_seeds": True},
        {"kind": "lora", "rank": 1, "targets": ["v_proj"], "sites": "encoder", "lr": 0.001},
    ]
    grid = {"language": ["bg", "el"], "seed": [0, 1, 2]}
    path = write(tmp_path, tiny_base, tiny_shards, methods=methods, grid=grid)
    label = "SALSA (salsa), encoder, mean of 3 seeds"
    before = make_plan(load_sweep(path))
    assert label not in {e.label for e in before.sweep.experiments}
    assert {e.label for p in before.later for e in p.experiments} == {label}
    assert "SALSA (salsa), encoder: 0 trials (0 done), 8 final rows (0 done)" in before.text()
    run_here(path)
    made = make_plan(load_sweep(path))
    assert made.finished
    jobs = {name: job for job in made.there for name in job.adapters}
    seeds = [f"bg_SALSA-salsa-encoder_lr0.05_s{seed}" for seed in grid["seed"]]
    name = "bg_SALSA-salsa-encoder-mean-of-3-seeds_lr0.05"
    assert jobs[name].verbs == ("evaluate",)
    own, *parts = (SteeringVectors.load(jobs[x].path / "adapters" / x) for x in (name, *seeds))
    assert own.name == name
    for site, vector in own.vectors.items():
        assert torch.allclose(vector, sum(p.vectors[site] for p in parts) / 3)
        assert vector.abs().max() > 0
    comparison = json_of(tmp_path / "sweep/report/comparison.json")
    rows = {(c["method"], c["language"]): c["seeds"] for c in comparison["cells"]}
    assert rows[label, "bg"] == rows[label, "el"] == [0]
    assert rows["SALSA (salsa), encoder", "bg"] == [0, 1, 2]
    assert {r["salsa"] for r in comparison["beside"]} == {"SALSA (salsa), encoder"}
    # Where it is the best, figures of training and of several seeds still show the trained ones.
    comparison["mean"].sort(key=lambda row: row["method"] != label)
    figures, about = comparison_figures(comparison)
    assert about["norms"] == about["cosines"] == "SALSA (salsa), encoder"
    assert ">SALSA (salsa), encoder</" in figures["loss"]
    # It is not trained; when it is lost it is made again, and another one if a seed is another.
    with pytest.raises(UserError, match="is a mean of adapters, which training would replace"):
        train(load_config(jobs[name].config))
    digest = own.digest()
    shutil.rmtree(jobs[name].path / "adapters" / name)
    again = make_plan(load_sweep(path))
    assert [e.name for p in again.new for e in p.experiments if e.language == "bg"] == [name]
    assert again.write() == []  # its transcripts are there
    assert SteeringVectors.load(jobs[name].path / "adapters" / name).digest() == digest
    (parts[0].scaled(2.0)).save(jobs[seeds[0]].path / "adapters" / seeds[0])
    [remade] = make_plan(load_sweep(path)).write()
    assert SteeringVectors.load(remade.path / "adapters" / name).digest() != digest
    parts[0].save(jobs[seeds[0]].path / "adapters" / seeds[0])
    # Other seeds make another mean.
    tree = yaml.safe_load(path.read_text())
    tree["grid"]["seed"] = [0, 1]
    path.write_text(yaml.safe_dump(tree))
    fewer = make_plan(load_sweep(path))
    assert {e.label for p in fewer.new for e in p.experiments} == {label.replace("3", "2")}
    tree["grid"]["seed"] = [0]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="average_seeds needs two seeds or more"):
        make_plan(load_sweep(path))
    tree["grid"]["seed"] = [0, 1]
    tree["methods"].append(
        {"kind": "salsa", "sites": "llm", "lr": 0.05, "name": label.replace("3", "2")}
    )
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"two methods are called 'SALSA .*mean of 2 seeds'"):
        make_plan(load_sweep(path))


def test_trials_in_some_languages_serve_all_and_an_experiment_may_have_fewer_seeds(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    grid = {"language": ["bg", "el"], "seed": [0, 1, 2]}
    methods = [
        {"kind": "salsa", "lr": [0.1, 0.2]},
        {"kind": "salsa", "sites": "llm", "lr": [0.1, 0.2], "seeds": 1},
    ]
    tuning = {"per": "all", "languages": ["el"]}
    sweep = load_sweep(
        write(tmp_path, tiny_base, tiny_shards, grid=grid, methods=methods, tuning=tuning)
    )
    trials = trials_of(sweep)
    assert [(e.language, e.lr) for e in trials] == [("el", 0.1), ("el", 0.2)] * 2
    measured: dict[str, float | None] = dict(
        zip([e.name for e in trials], [0.5, 0.4, 0.1, 0.3], strict=True)
    )
    finals = finals_of(sweep, choose(sweep, measured))
    assert [(e.language, e.lr, e.seed) for e in finals] == [
        *(("bg", 0.2, seed) for seed in (0, 1, 2)),
        *(("el", 0.2, seed) for seed in (0, 1, 2)),
        *(("bg", 0.1, 0), ("el", 0.1, 0)),
    ]
    alone = write(tmp_path, tiny_base, tiny_shards, methods=methods, tuning={"languages": ["el"]})
    with pytest.raises(UserError, match="set per: all"):
        load_sweep(alone)
    alone = write(tmp_path, tiny_base, tiny_shards, overrides={"training.epochs": 2})
    with pytest.raises(UserError, match=r"set training\.steps"):
        load_sweep(alone)


def test_by_loss_nothing_is_decoded_for_a_try_and_all_methods_have_one_measure(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    """Methods that change nothing have the same loss: that of the base."""
    methods = [
        {"kind": "mean-difference", "contrast": "el", "sites": "encoder", "scale": [1, 0]},
        {"kind": "bias", "sites": "encoder", "lr": [0.1, 1e-12]},
        {"kind": "lora", "rank": 1, "sites": "encoder", "lr": [0.1, 1e-12]},
        {"kind": "salsa", "sites": "encoder", "lr": [0.1, 1e-12]},
    ]
    tuning = {"choose_by": "loss", "steps": 2}
    path = write(tmp_path, tiny_base, tiny_shards, methods=methods, tuning=tuning)
    made = make_plan(load_sweep(path))
    jobs = made.write()
    assert {job.verbs for job in jobs} == {("train",)}
    for job in jobs:
        run_command("train", str(job.config), [])
    choices = make_plan(load_sweep(path)).choices
    assert len(choices) == 4
    assert all(choice.chosen for choice in choices)
    losses = [dev["bg"] for choice in choices for _, dev in choice.trials]
    nothing, other = losses[1::2], losses[::2]
    assert nothing == pytest.approx([nothing[0]] * 4, rel=1e-5)
    assert not any(loss == pytest.approx(nothing[0], rel=1e-5) for loss in other)


def test_mixed_speech_is_chosen_by_its_mer(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed_shards(tmp_path / "shards")
    methods = [{"kind": "salsa", "sites": "encoder", "lr": [0.001, 1.0]}]
    made = {"grid": {"language": ["zh-en"], "seed": [0]}, "methods": methods}
    path = write(
        tmp_path, tiny_base, tmp_path / "shards", **made, tuning={"choose_by": "mer", "steps": 2}
    )
    jobs = make_plan(load_sweep(path)).write()
    for job in jobs:
        for verb in job.verbs:
            run_command(verb, str(job.config), [])
    (choice,) = make_plan(load_sweep(path)).choices
    measured = {setting.lr: dev["zh-en"] for setting, dev in choice.trials}
    rates: dict[str, dict[float, float]] = {"wer": {}, "cer": {}}
    for line in transcripts(tmp_path / "sweep", "try"):
        scored = score(line["reference"], line["hypothesis"], "zh-en")
        lr = 1.0 if "_lr1_" in line["adapter"] else 0.001
        for metric, own in rates.items():
            edits = scored.edits(metric)
            own[lr] = own.get(lr, 0.0) + edits.errors
    tokens = {"wer": 2 + 1 + 3, "cer": 4 + 8}  # 我 们 go, vuk 好 lisa
    assert measured == {lr: errors / tokens["wer"] for lr, errors in rates["wer"].items()}
    assert measured != {lr: errors / tokens["cer"] for lr, errors in rates["cer"].items()}
    assert choice.chosen is not None
    assert measured[choice.chosen.lr] == min(measured.values())
    capsys.readouterr()
    commands.status(path)
    lines = [line for line in capsys.readouterr().out.splitlines() if " done " in line]
    assert {line.partition("MER ")[2] for line in lines} == {
        f"{rate:.3f}" for rate in measured.values()
    }
    assert not any("CER" in line for line in lines)


@pytest.mark.parametrize(
    ("rate", "language", "says"),
    [
        ("mer", "bg", "bg is not mixed speech: its rate is wer, or cer"),
        ("wer", "zh-en", "zh-en is mixed speech: its rate is mer, or cer"),
    ],
)
def test_a_rate_that_a_language_does_not_have_is_refused(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, rate: str, language: str, says: str
) -> None:
    grid = {"language": [language], "seed": [0]}
    path = write(tmp_path, tiny_base, tiny_shards, grid=grid, tuning={"choose_by": rate})
    with pytest.raises(UserError, match=f"tuning.choose_by is {rate}, and {says}"):
        make_plan(load_sweep(path))
    alone = yaml.safe_load(path.read_text(encoding="utf-8"))
    del alone["methods"], alone["tuning"], alone["report"]
    alone["halving"] = {"rungs": [2], "metric": rate}
    path.write_text(yaml.safe_dump(alone), encoding="utf-8")
    with pytest.raises(UserError, match=f"halving.metric is {rate}, and {says}"):
        make_plan(load_sweep(path))


def test_what_cannot_be_done_is_told_all_at_once_before_anything_runs(
    tmp_path: Path, tiny_shards: Path
) -> None:
    base = FAMILIES["qwen3_asr"](tmp_path / "base")
    methods = [
        {"kind": "in-context", "examples": [1, 2]},
        {"kind": "lora", "targets": ["query", "v_proj"], "sites": "encoder", "lr": [0.1, 0.2]},
        {"kind": "salsa", "sites": "encoder:99", "lr": [0.1, 0.2, 0.3]},
        {"kind": "mean-difference", "contrast": "xx", "sites": "encoder", "scale": [1, 2]},
        {"kind": "salsa", "name": "twice", "lr": [0.1, 0.2]},
        {"kind": "salsa", "name": "twice", "lr": [0.3, 0.4]},
    ]
    grid = {"language": ["bg"], "sites": ["encoder"]}
    path = write(tmp_path, base, tiny_shards, methods=methods, grid=grid)
    done = run_ranks(1, "-m", "salsa_dist", "sweep", "run", path, folder=tmp_path)
    assert done.returncode == 2
    for what in (
        "in-context by random can't be done on this base",
        "these layers have no linear query; they have",
        "'99' is out of range",
        "no 'train' shards in 'xx'",
        "two methods are called 'twice'",
        "unequal numbers of trials",
        "grid.sites is for a sweep without methods",
    ):
        assert what in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_unequal_numbers_of_trials_are_a_warning_where_they_are_meant(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    methods = [{"kind": "salsa", "lr": [0.1, 0.2]}, {"kind": "bias", "lr": 0.1}]
    path = write(tmp_path, tiny_base, tiny_shards, methods=methods)
    with pytest.raises(UserError, match="unequal numbers of trials"):
        make_plan(load_sweep(path))
    path = write(tmp_path, tiny_base, tiny_shards, methods=methods, tuning={"uneven": True})
    text = make_plan(load_sweep(path)).text()
    assert "warning: unequal numbers of trials, which favours those with more: SALSA" in text


def test_a_plan_counts_trials_final_rows_and_clips_to_decode(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    grid = {"language": ["bg", "el"], "seed": [0, 1, 2]}
    methods = [{"kind": "zero-shot"}, {"kind": "salsa", "name": "ours", "lr": [0.1, 0.2]}]
    text = make_plan(
        load_sweep(write(tmp_path, tiny_base, tiny_shards, grid=grid, methods=methods))
    ).text()
    assert "ours: 4 trials (0 done), 6 final rows (0 done)" in text
    # 4 trials of 2 dev clips; the base and 3 seeds on 6 test clips in 2 languages.
    assert f"{4 * 2 + 2 * 6 + 6 * 6} clips to decode" in text


def test_forgetting_is_looked_at_in_final_rows_alone_with_the_base_beside_them(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    methods = [{"kind": "zero-shot"}, {"kind": "salsa", "name": "ours", "lr": [0.1, 0.2]}]
    grid = {"language": ["bg"], "seed": [0]}
    path = write(tmp_path, tiny_base, tiny_shards, methods=methods, grid=grid)
    tree = yaml.safe_load(path.read_text())
    tree["config"]["evaluation"]["forgetting"] = True
    path.write_text(yaml.safe_dump(tree))
    # Two trials of 2 dev clips; the base and one row on 6 test clips in 2 languages.
    assert f"{2 * 2 + 2 * 6 + 2 * 6} clips to decode" in make_plan(load_sweep(path)).text()
    run_here(path)
    sweep = tmp_path / "sweep"
    assert {line["language"] for line in transcripts(sweep, "try")} == {"bg"}
    tree = json_of(sweep / "report" / "comparison.json")
    assert {cell["language"] for cell in tree["cells"]} == {"bg"}
    assert {row["language"] for row in tree["forgetting"]} == {"bg", "el"}
    assert all(row["cer"]["zero_shot"] is not None for row in tree["forgetting"])
    assert [(r["language"], r["same"]) for r in tree["untouched"]] == [("bg", 6), ("el", 6)]
    rows = {row["name"]: row for row in json_of(sweep / "results.json")["rows"]}
    (final,) = (row for row in rows.values() if row["method"] == "ours" and row["stage"] == "final")
    (cell,) = (cell for cell in tree["cells"] if cell["method"] == "ours")
    assert final["cer"] == cell["cer"]["rate"]


def test_salsa_starts_from_an_adapter_such_as_the_mean_difference(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = {"kind": "mean-difference", "contrast": "el", "sites": "encoder:1,2"}
    path = write(tmp_path, tiny_base, tiny_shards, methods=[mean], grid={"language": ["bg"]})
    (job,) = make_plan(load_sweep(path)).write()
    run_command("train", str(job.config), [])
    (folder,) = (job.path / "adapters").iterdir()
    shutil.copytree(folder, tmp_path / "start" / "bg")
    salsa = {"kind": "salsa", "sites": "encoder", "rule": "add", "lr": 1e-12}
    methods = [{**salsa, "start_from": str(tmp_path / "start" / "{language}")}, salsa]
    path = write(tmp_path, tiny_base, tiny_shards, methods=methods, grid={"language": ["bg"]})
    (job,) = make_plan(load_sweep(path)).write()
    run_command("train", str(job.config), [])
    begun = SteeringVectors.load(tmp_path / "start" / "bg").vectors
    first, other = (SteeringVectors.load(job.path / "adapters" / name).vectors for name in job.adapters)
    for site, vector in first.items():
        wanted = begun.get(site, torch.zeros_like(vector))
        torch.testing.assert_close(vector, wanted, rtol=1e-5, atol=1e-8)
    assert max(v.abs().max() for v in other.values()) < 1e-8
    with StandInHub() as hub:
        hub.use(monkeypatch, str(tmp_path / "cache"))
        hub.put("user/bg", {f.name: f.read_bytes() for f in (tmp_path / "start/bg").iterdir()})
        methods[0]["start_from"] = "user/{language}@main"
        path = write(
            tmp_path / "of-hub", tiny_base, tiny_shards, methods=methods, grid={"language": ["bg"]}
        )
        (of_hub,) = make_plan(load_sweep(path)).write()
        assert "start_from: user/bg@main" in of_hub.config.read_text()
        run_command("train", str(of_hub.config), [])
    again = SteeringVectors.load(of_hub.path / "adapters" / next(iter(of_hub.adapters))).vectors
    torch.testing.assert_close(again, first)
    methods[0]["start_from"] = str(tmp_path / "nothing")
    path = write(tmp_path, tiny_base, tiny_shards, methods=methods, grid={"language": ["bg"]})
    with pytest.raises(UserError, match="nothing"):
        make_plan(load_sweep(path))
