"""Ranks that would run different modules are stopped with one clear line, and none is left waiting."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import disagreeing_ranks
import pytest
from ranks import free_port, run_ranks, start, world
from tiny import make_base, make_config

from salsa_dist.config import load_config
from salsa_dist.run.agreement import settings_facts

# Far below the time after which a rank gives its peers up by itself.
SOON_S = 240


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three ranks was told, by case."""
    out = tmp_path_factory.mktemp("answers")
    done = run_ranks(3, disagreeing_ranks.__file__, out, folder=out, timeout_s=SOON_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"rank{r}.json").read_text()) for r in range(3)]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("one differs", ["from rank 0", "rank 2 on", "training.steps (30, not 20)"]),
        ("the first differs", ["from rank 1", "rank 0 on", "torch (2.12.0, not 2.13.0)"]),
        ("all differ", ["rank 1 on", "encoder.1, not encoder.0", "rank 2 on", "encoder.2"]),
        ("one knows less", ["rank 2 on", "b (nothing, not 2)"]),
        ("in much", ["rank 0 on", "key 1 (1, not 0)", "6 more"]),
    ],
)
def test_every_rank_is_told_who_differs_and_in_what(
    answers: list[dict[str, Any]], case: str, said: list[str]
) -> None:
    lines = {answer[case] for answer in answers}
    assert len(lines) == 1
    line = lines.pop()
    assert all(words in line for words in [*said, socket.gethostname()]), line
    assert "\n" not in line


def test_ranks_that_agree_go_on(answers: list[dict[str, Any]]) -> None:
    assert all(answer["same"] is None and answer["same again"] is None for answer in answers)


def run_command(command: str, configs: list[Path], *overrides: list[str]) -> list[tuple[int, str]]:
    """One rank a config, as a launcher would start them; exit status and output of each."""
    port = free_port()
    logs = [config.parent / f"rank-{rank}.{port}.log" for rank, config in enumerate(configs)]
    ranks = [
        start(
            *("-m", "salsa_dist", command, config, *overrides[rank]),
            env={**os.environ, **world(len(configs), port, rank)},
            out=logs[rank],
        )
        for rank, config in enumerate(configs)
    ]
    try:
        statuses = [rank.wait(timeout=SOON_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [(status, log.read_text()) for status, log in zip(statuses, logs, strict=True)]


def test_training_with_other_settings_on_one_rank_stops_before_the_base_is_loaded(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    for status, output in run_command("train", [config] * 2, [], ["training.steps=7"]):
        assert status == 2, output
        assert "rank 1 on" in output
        assert "training.steps (7, not 6)" in output
        assert "Traceback" not in output
        assert "loading base" not in output
    assert not (tmp_path / "run").exists()


def test_training_over_another_base_on_one_rank_stops_before_it_is_placed(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    other = make_base(tmp_path / "other", seed=1)
    config = make_config(tmp_path, tiny_base, tiny_shards)
    told = run_command("train", [config] * 2, [], [f"base.name={other}"])
    for status, output in told:
        assert status == 2, output
        assert "rank 1 on" in output
        assert "base (local-" in output
        assert "Traceback" not in output
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("command", "method", "other"),
    [
        ("train", "lora", "method.rank=3"),
        ("train", "bias", "steering.sites=llm"),
        ("train", "mean-difference", "method.clips=1"),
        ("evaluate", "in-context", "method.examples=1"),
    ],
)
def test_what_steering_is_compared_with_is_agreed_on_too(
    command: str, method: str, other: str, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    own = [f"method.kind={method}", *(["method.contrast=el"] if method == "mean-difference" else [])]
    for status, output in run_command(command, [config] * 2, own, [*own, other]):
        assert status == 2, output
        assert "rank 1 on" in output
        assert other.partition("=")[0] in output
        assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["lora", "mean-difference"])
def test_another_base_on_one_rank_is_found_whatever_is_trained(
    method: str, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    other = make_base(tmp_path / "other", seed=1)
    config = make_config(tmp_path, tiny_base, tiny_shards)
    own = [f"method.kind={method}", *(["method.contrast=el"] if method == "mean-difference" else [])]
    for status, output in run_command("train", [config] * 2, own, [*own, f"base.name={other}"]):
        assert status == 2, output
        assert "base (local-" in output
        assert "Traceback" not in output
    assert not (tmp_path / "run" / "adapters").exists()


def test_an_adapter_that_one_rank_sees_as_trained_is_found(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    (tmp_path / "elsewhere" / "adapters" / "bg").mkdir(parents=True)
    own = ["method.kind=lora"]
    told = run_command("train", [config] * 2, own, [*own, f"run={tmp_path / 'elsewhere'}"])
    for status, output in told:
        assert status == 2, output
        assert "trained before (bg, not )" in output


@pytest.mark.parametrize(
    "override",
    [
        "training.lr=0.5",
        "training.activation_checkpointing=true",
        "base.dtype=bfloat16",
        "steering.sites=llm",
        "adapters.1.rule=salsa",
        "placement.kind=full",
        "evaluation.batch=3",
    ],
)
def test_each_setting_that_decides_what_runs_is_compared(
    override: str, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    mine = settings_facts(load_config(config), "shards")
    other = settings_facts(load_config(config, [override]), "shards")
    key = override.partition("=")[0]
    assert {k for k in mine if mine[k] != other[k]} == {key}
    assert "shards" in mine


def test_places_may_differ_and_what_lies_there_may_not(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    files = [tmp_path / name for name in ("one.json", "copy.json", "other.json")]
    for file, text in zip(files, ("{}", "{}", "{ }"), strict=True):
        file.write_text(text)
    one, copy, other = (
        settings_facts(load_config(config, [f"placement.ds_config={f}", f"run={f}.run"]), "shards")
        for f in files
    )
    assert one == copy
    assert one != other
