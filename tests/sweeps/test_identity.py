"""What an adapter of a sweep is known by: what decides its result, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from salsa_dist.run.settled import settled
from salsa_dist.sweeps.choosing import choose, finals_of, trials_of
from salsa_dist.sweeps.folder import SCHEMA_0_1, job_folders
from salsa_dist.sweeps.grid import Experiment, Sweep, load_sweep
from salsa_dist.sweeps.job_config import identity, job_config
from salsa_dist.sweeps.release_0_1 import older_identities

# Written by that release: sweeps, and the identity of each of their experiments.
OLD: dict[str, Any] = json.loads((Path(__file__).parent / "release_0_1_identities.json").read_text())
FACTS: Any = SimpleNamespace(revision=OLD["revision"], layers=OLD["layers"])
INDEX: Any = SimpleNamespace(hash=OLD["shards"])


def sweep_of(folder: Path, name: str, *changes: tuple[str, Any]) -> tuple[Sweep, list[Experiment]]:
    tree = json.loads(json.dumps(OLD["sweeps"][name]["sweep"]))
    for key, value in changes:
        section: Any = tree["config"]
        *above, last = key.split(".")
        for part in above:
            section = section.setdefault(part, {})
        section[last] = value
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**tree, "sweep": str(folder / "sweep")}))
    sweep = load_sweep(path)
    sweep = replace(sweep, config=settled(sweep.config, "cpu"))
    return sweep, sweep.experiments or [
        *trials_of(sweep),
        *finals_of(sweep, choose(sweep, {}), guess=True),
    ]


def identities(folder: Path, name: str, *changes: tuple[str, Any]) -> dict[str, str]:
    sweep, experiments = sweep_of(folder, name, *changes)
    return {f"{e.name}/{e.stage}": identity(e, sweep, FACTS, INDEX) for e in experiments}


@pytest.mark.parametrize("name", ["grid", "methods"])
def test_what_decides_nothing_retrains_nothing(tmp_path: Path, name: str) -> None:
    own = identities(tmp_path, name)
    assert len(set(own.values())) == len(own)
    for key, value in [
        *(
            ("data.stage_to", "/other"),
            ("data.max_bad", 3),
            ("data.workers", 2),
            ("base.name", "moved"),
        ),
        *(("base.stage_to", "/fast"), ("training.keep", 5), ("training.lr", 0.5), ("trackers", [])),
    ]:
        assert identities(tmp_path, name, (key, value)) == own, key


def test_what_decides_a_result_makes_another_adapter(tmp_path: Path) -> None:
    own = identities(tmp_path, "methods")
    trained = {key for key in own if "zero-shot" not in key and "in-context" not in key}
    finals = {key for key in own if key.endswith("/final")}
    for key, value, changed in [
        ("training.max_loss", 7, trained),
        ("training.max_skipped", 7, trained & finals),  # a trial never stops for it
        ("training.warmup", 0.5, trained),
        ("training.lr_scale", {"llm": 2}, {k for k in trained if "LoRA" not in k}),
        ("base.dtype", "bfloat16", set(own)),
        ("evaluation.max_new_tokens", 7, set(own)),  # trials are decoded too
        ("evaluation.forgetting", False, finals),
    ]:
        other = identities(tmp_path, "methods", (key, value))
        assert {k for k in own if own[k] != other[k]} == changed, key
    grid = identities(tmp_path, "grid")
    assert identities(tmp_path, "grid", ("evaluation.max_new_tokens", 7)) == grid
    assert not set(identities(tmp_path, "grid", ("training.max_loss", 7)).values()) & set(grid.values())


def test_only_jobs_of_trained_vectors_compile_kernels(tmp_path: Path) -> None:
    sweep, experiments = sweep_of(tmp_path, "methods", ("training.compile", "rule"))
    found = {e.method.kind: job_config(sweep, [e]) for e in experiments}
    assert {kind: tree["training"]["compile"] for kind, tree in found.items()} == {
        kind: "rule" if kind == "salsa" else "off" for kind in found
    }
    assert {"salsa", "lora", "zero-shot", "in-context"} <= set(found)


@pytest.mark.parametrize("name", ["grid", "methods"])
def test_jobs_of_release_0_1_are_found_again(tmp_path: Path, name: str) -> None:
    # That release scored at the base's own window where the config named none.
    own_window = ("evaluation.windows_s", [None])
    sweep, experiments = sweep_of(tmp_path, name, own_window)
    old = OLD["sweeps"][name]["identities"]
    for i, experiment in enumerate(experiments):
        job = tmp_path / "sweep" / "jobs" / f"job-{i:02d}"
        job.mkdir(parents=True)
        (job / "config.yaml").write_text(yaml.safe_dump(job_config(sweep, [experiment])))
        adapters = {experiment.name: old[f"{experiment.name}/{experiment.stage}"]}
        tree = {"schema": SCHEMA_0_1, "adapters": adapters, "verbs": ["train"]}
        (job / "job.json").write_text(json.dumps(tree))
    older = older_identities(experiments, sweep, FACTS, {"": INDEX})
    found = [own for job in job_folders(tmp_path / "sweep", older) for own in job.adapters.values()]
    assert found == list(identities(tmp_path, name, own_window).values())
    # That release took no notice of max_loss; what it trained with another is not taken for it.
    sweep, experiments = sweep_of(tmp_path, "grid", ("training.max_loss", 7))
    older = older_identities(experiments, sweep, FACTS, {"": INDEX})
    there = {own for job in job_folders(tmp_path / "sweep", older) for own in job.adapters.values()}
    assert not there & {identity(e, sweep, FACTS, INDEX) for e in experiments}
