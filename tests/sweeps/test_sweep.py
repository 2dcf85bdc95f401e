"""A sweep file becomes jobs; all that is wrong is told at once; only what is missing runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_results import events

from salsa_dist import UserError, load_config, machine, train
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.subset import take_minutes
from salsa_dist.sweeps.cost import activation_bytes, base_facts, clip_cost
from salsa_dist.sweeps.folder import job_folders, write_results
from salsa_dist.sweeps.grid import load_sweep
from salsa_dist.sweeps.plan import Plan, make_plan


@pytest.fixture
def write(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> Any:
    """Writes a sweep file; `grid` and `sections` are added to a small one."""

    def make(grid: dict[str, Any] | None = None, **sections: Any) -> Path:
        tree = {
            "sweep": str(tmp_path / "sweep"),
            "config": {
                "base": {"name": str(tiny_base), "window_s": 2},
                "data": {"shards": str(tiny_shards), "clips_per_step": 2, "readers": 2},
                "training": {"steps": 3, "save_every_s": 60},
            },
            "grid": {"language": ["bg"], "sites": ["encoder"], "lr": [0.01], **(grid or {})},
            "dev_clips": 2,
            **sections,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return make


def plan(path: Path, nodes: int = 1) -> Plan:
    return make_plan(load_sweep(path), nodes)


def train_all(made: Plan) -> list[str]:
    """Train what is to be done; names of the adapters, in the order of their jobs."""
    jobs = made.write()
    for job in jobs:
        assert train(load_config(job.config)).finished
    return [name for job in jobs for name in job.adapters]


def test_every_combination_is_an_adapter_with_a_readable_name(write: Any) -> None:
    path = write(
        {"language": ["bg", "el"], "sites": ["encoder:last-half", "llm"], "lr": [0.01, 0.1]},
        exclude=[{"language": "el", "lr": 0.1}],
        include=[{"language": "el", "lr": 0.5}],
    )
    names = [experiment.name for experiment in load_sweep(path).experiments]
    assert len(names) == 2 * 2 * 2 - 2 + 1
    assert "bg_encoder-last-half_salsa_lr0.01_s0" in names
    assert "el_encoder-last-half_salsa_lr0.5_s0" in names
    assert not [n for n in names if n.startswith("el") and "lr0.1_" in n]


def test_each_rule_has_its_own_default_rate(write: Any) -> None:
    path = write(
        {"rule": ["salsa", "gain"], "lr": None},
        include=[{"rule": "add"}, {"rule": "gain", "lr": 0.5}],
    )
    rates = [(e.rule, e.lr) for e in load_sweep(path).experiments]
    assert rates == [("salsa", 0.05), ("gain", 0.01), ("add", 0.05), ("gain", 0.5)]
    estimated = load_sweep(write({"lr": None}, overrides={"training.lr": "auto"})).experiments
    assert [e.lr for e in estimated] == [None]


@pytest.mark.parametrize(
    ("text", "told"),
    [("- a list", "holds no settings"), ("a: [", "not valid YAML"), (None, "can't be read")],
)
def test_a_file_that_holds_no_sweep_is_told(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^sweep .*s.yaml.*{told}"):
        load_sweep(tmp_path / "s.yaml")


def test_names_that_would_be_alike_get_a_hash(write: Any) -> None:
    names = [e.name for e in load_sweep(write({"sites": ["encoder:0,2", "encoder:0-2"]})).experiments]
    assert len(set(names)) == 2


def test_adapters_of_unequal_lengths_of_training(write: Any) -> None:
    path = write({"steps": [2, 3]})
    names = ["bg_encoder_salsa_lr0.01_s0_2steps", "bg_encoder_salsa_lr0.01_s0_3steps"]
    assert [e.name for e in load_sweep(path).experiments] == names
    made = plan(path)
    assert len(set(made.identities)) == 2
    assert sorted(train_all(made)) == names
    rows = {row["name"]: row["steps"] for row in plan(path).rows()}
    assert rows == dict(zip(names, (2, 3), strict=True))
    kept = load_sweep(write({"steps": [2, 3]}, exclude=[{"steps": 2}])).experiments
    assert [e.steps for e in kept] == [3]
    with pytest.raises(UserError, match="the grid is empty"):
        plan(write(exclude=[{"steps": 3}]))  # training.steps
    for unequal in ({"grid": {"steps": [2, 3]}}, {"include": [{"steps": 8}]}):
        with pytest.raises(UserError, match="halving needs adapters of equal steps"):
            load_sweep(write(unequal.pop("grid", None), halving={"rungs": [1]}, **unequal))
    with pytest.raises(UserError, match=r"include.*steps.*greater than or equal to 1"):
        load_sweep(write(include=[{"steps": 0}]))


def test_a_smaller_size_lies_inside_a_larger_one(tiny_shards: Path) -> None:
    shards = ShardIndex.load(tiny_shards).select("train", "bg")
    keys = {
        minutes: {e.key for s in take_minutes(shards, minutes, seed=3) for e in s.entries}
        for minutes in (0.1, 0.2, 0.3)
    }
    assert keys[0.1] < keys[0.2] < keys[0.3]
    assert keys[0.2] != {e.key for s in take_minutes(shards, 0.2, seed=4) for e in s.entries}
    taken = sum(s.seconds for s in take_minutes(shards, 0.2, seed=3))
    assert 12 <= taken < 12 + 1.8 * len(shards)  # each shard ends with the clip that fills its share


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_written(write: Any, tmp_path: Path) -> None:
    path = write(
        {
            "language": ["bg", "xx"],
            "sites": ["encoder:0-9", "encoder", "encoder:0-2"],
            "lr": [0, 0.01],
            "size": ["1h"],
        },
        jobs={"memory_gb": 0.5, "nodes": 3},
        exclude=[{"lr": 0.01, "size": "1h"}],
        include=[{"language": "el", "lr": 0.5, "sites": s, "size": None} for s in ("llm", "llm:0-2")],
    )
    with pytest.raises(UserError) as told:
        plan(path)
    text = str(told.value)
    for what in (
        "lr is 0, it must be more than 0",
        "'0-9' is out of range",
        "no 'train' shards in 'xx'",
        "minutes to train on, 60 are asked for",
        "it can never fit",
        "3 ranks and data.readers is 2",
        "el_llm-0-2_salsa_lr0.5_s0 is the same adapter as el_llm_salsa_lr0.5_s0",
    ):
        assert what in text
    assert not (tmp_path / "sweep").exists()


def test_ranks_that_run_side_by_side_share_the_memory(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank needs 1.0 GB here, and the cgroup has 5."""
    (tmp_path / "own").write_text("0::/")
    (tmp_path / "memory.max").write_text("5000000000")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    shared: dict[str, Any] = {"overrides": {"device": "cpu"}}
    for jobs in ({"at_once": 4}, {"ranks_per_node": 2}, {"at_once": 6, "memory_gb": 2}):
        plan(write(jobs=jobs, **shared))
    for jobs in ({"at_once": 6}, {"ranks_per_node": 2, "at_once": 3}):
        with pytest.raises(
            UserError, match=r"needs about 1\.0 GB .* has 0\.8, of 5\.0 for . jobs at once"
        ):
            plan(write(jobs=jobs, **shared))
    # Jobs with GPUs, planned where there is none.
    make_plan(load_sweep(write(jobs={"at_once": 6})), device="cuda")


def test_the_plan_says_what_a_kept_prefix_saves_and_takes(write: Any) -> None:
    late = {"sites": ["encoder:2"], "lr": [0.01, 0.02]}
    steps = {"training.steps": 50}
    text = plan(write(late, overrides=steps)).text()
    line = next(line for line in text.splitlines() if line.startswith("prefix kept"))
    # 24 clips of 100 positions of 32 numbers in fp32; of 100 draws 76 find theirs there.
    assert "now off" in line
    assert "for 0.00 GB a job" in line
    saved = int(line.split(" packed, ")[1].split("%")[0])
    assert 10 < saved < 90
    for cache, room in (("memory", 1e-4), ("disk", 1e-4)):
        own = {**steps, "training.prefix_cache": cache, "training.prefix_cache_gb": room}
        with pytest.raises(
            UserError, match=r"takes about 0\.00 GB, more than .*prefix_cache_gb = 0.0001"
        ):
            plan(write(late, overrides=own))
        assert len(plan(write(late, overrides={**own, "training.prefix_cache_gb": 0.1})).new) == 1


def test_too_few_clips_for_a_step_are_refused(write: Any) -> None:
    path = write(overrides={"data.clips_per_step": 25})
    with pytest.raises(UserError, match=r"bg: too few clips, 24 for 25 per step"):
        plan(path)


def test_the_same_adapter_in_other_words_is_refused(write: Any) -> None:
    with pytest.raises(UserError, match="is the same adapter as bg_encoder_salsa"):
        plan(write({"sites": ["encoder", "encoder:0-2"]}))


def test_jobs_have_room_and_share_the_load(write: Any) -> None:
    path = write(
        {"language": ["bg", "el"], "lr": [0.01, 0.02, 0.03], "seed": [0, 1]}, jobs={"adapters": 7}
    )
    made = plan(path, nodes=1)
    sizes = [len(p.experiments) for p in made.new]
    assert sizes == [6, 6]
    # What takes the same clips lies together.
    for packed in made.new:
        groups = {(e.language, e.seed) for e in packed.experiments}
        assert len(groups) == 2
    assert len(plan(path, nodes=4).new) == 4


def test_sharing_makes_late_layers_cheaper_than_early_ones(write: Any) -> None:
    facts = base_facts(load_sweep(write()).config)
    late, early = (["encoder:2"] * 8, ["encoder:0"] * 8)
    gain = {
        sites[0]: clip_cost(facts, sites, False).each_step / clip_cost(facts, sites, True).each_step
        for sites in (late, early)
    }
    assert gain["encoder:2"] > gain["encoder:0"] > 1
    kept = clip_cost(facts, late, True, kept=True)
    assert kept.once > 0
    assert kept.each_step + kept.once == pytest.approx(clip_cost(facts, late, True).each_step)


def test_padding_kept_in_part_is_cheaper_and_another_adapter(write: Any) -> None:
    whole, part = (
        load_sweep(write(overrides={"training.silence_stride": stride, "base.window_s": 30}))
        for stride in (1, 16)
    )
    of_whole, of_part = base_facts(whole.config), base_facts(part.config)
    whole_step, part_step = (clip_cost(f, ["encoder"], True).each_step for f in (of_whole, of_part))
    assert 0.3 < part_step / whole_step < 0.6  # of 30 s, a clip of ten and a sixteenth of the rest
    # A step of the longest clips holds whole windows all the same.
    assert activation_bytes(of_part, part.config) == activation_bytes(of_whole, whole.config)
    plans = [make_plan(sweep, 1) for sweep in (whole, part)]
    assert plans[0].identities != plans[1].identities
    assert ["a prefix can't be kept" in made.text() for made in plans] == [False, True]


def test_only_what_is_missing_runs(write: Any, tmp_path: Path) -> None:
    first = plan(write({"language": ["bg"], "lr": [0.01, 0.02]}))
    assert len(train_all(first)) == 2
    again = plan(write({"language": ["bg"], "lr": [0.01, 0.02]}))
    assert again.new == []
    assert again.write() == []
    # Other words for the same layers are the same adapters; a language and a seed are new.
    grown = plan(
        write({"language": ["bg", "el"], "sites": ["encoder:0-2"], "lr": [0.01, 0.02], "seed": [0, 1]})
    )
    assert sorted(e.name for p in grown.new for e in p.experiments) == sorted(
        f"{language}_encoder-0-2_salsa_lr{lr}_s{seed}"
        for language, seed in (("bg", 1), ("el", 0), ("el", 1))
        for lr in (0.01, 0.02)
    )
    assert len(train_all(grown)) == 6
    rows = grown.rows()
    assert [row["state"] for row in rows] == ["done"] * 8
    assert all(row["dev_loss"] > 0 and row["steps"] == 3 for row in rows)
    write_results(tmp_path / "sweep", rows)
    with open(tmp_path / "sweep" / "results.csv", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in rows]


def test_a_killed_sweep_goes_on_with_its_jobs(write: Any) -> None:
    path = write({"lr": [0.01, 0.02]})
    made = plan(path)
    (job,) = made.write()
    config = load_config(job.config, ["training.save_every_s=0"])
    from salsa_dist.training.job import Job

    real, calls = Job.save, []

    def killed(self: Any, step: int) -> None:
        real(self, step)
        calls.append(step)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    again = plan(path)
    assert [row["state"] for row in again.rows()] == ["running", "running"]
    assert [j.path for j in again.write()] == [job.path]
    assert again.new == []
    train_all(again)
    assert [e["resumed_step"] for e in events(job.path, "start")] == [0, 2]
    assert [row["state"] for row in plan(path).rows()] == ["done", "done"]


def test_an_adapter_that_halving_dropped_is_not_done_without_it(write: Any) -> None:
    grid = {"lr": [0.01, 0.02]}
    halved = plan(write(grid, halving={"rungs": [1], "keep": 0.5}))
    train_all(halved)
    assert sorted(row["state"] for row in halved.rows()) == ["done", "dropped"]
    assert plan(write(grid, halving={"rungs": [1], "keep": 0.5})).new == []
    assert len(plan(write(grid)).new) == 1


def test_a_site_that_nobody_steers_any_more_is_no_trouble(write: Any) -> None:
    """Halving may drop all adapters of a site."""
    made = plan(write({"sites": ["encoder:1", "llm:0"]}, halving={"rungs": [1], "keep": 0.5}))
    assert len(train_all(made)) == 2


def test_a_damaged_job_is_told(write: Any, tmp_path: Path) -> None:
    made = plan(write())
    (job,) = made.write()
    (job.path / "job.json").write_text("{")
    with pytest.raises(UserError, match=r"job\.json is damaged"):
        job_folders(tmp_path / "sweep")
