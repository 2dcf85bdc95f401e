"""`transcribe` by the launcher: its words reach every rank, and its --out folder is the run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from launching import DRIVER, Desk, Result, sbatch_lines

from salsa_dist.cli import app
from salsa_dist.launch.command import launch
from salsa_dist.launch.options import command_line

WORDS = ["transcribe", "base", "talks/", "--language", "bg", "--batch=4"]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_every_rank_gets_its_words(desk: Desk) -> None:
    (desk.folder / "driver.py").write_text(DRIVER)
    local = ("--cluster", "local", "--tasks-per-node", "2")
    words = [*WORDS, "--out", "texts", "caf\udce9.ogg"]  # a name that is not UTF-8
    done = desk.forked(desk.folder / "driver.py", "show", *local, *words)
    assert (done.status, done.err) == (0, "")
    for rank in range(2):
        assert desk.seen(rank)["WORLD_SIZE"] == "2"
        assert desk.seen(rank)["arguments"] == ["transcribe", "", words[1:]]
    texts = desk.folder / "texts"
    assert desk.seen(0)["code"].startswith(f"{texts}/snapshots/")
    again = (texts / "submit.sh").read_bytes()
    assert b"slurm.py --cluster local --tasks-per-node 2 transcribe base talks/ --lang" in again
    assert b"'caf\xe9.ogg' \"$@\"" in again
    assert not list(texts.rglob("config.yaml"))


def test_the_script_asks_for_gpus_and_sees_what_is_named(desk: Desk) -> None:
    away = desk.folder.parent / f"{desk.folder.name}-away"
    away.mkdir()
    options = ("--gpus-per-node", "8", "--nodes", "2", "--container", "salsa.sif", "--dry-run")
    done = desk.slurm_py(*options, *WORDS, f"{away}/*/*.ogg", "--out", "texts")
    assert (done.status, done.err) == (0, "")
    asked = sbatch_lines(done.out)
    assert (asked["job-name"], asked["ntasks-per-node"]) == ("salsa-transcribe-texts", "8")
    assert f",{desk.folder}/texts:{desk.folder}/texts," in done.out
    assert f",{away}:{away} " in done.out
    assert not (desk.folder / "texts").exists(), "a dry run writes nothing"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "needs --out FOLDER"),
        (("--out", "all.jsonl"), "is one file"),
        (("--out", "texts", "-"), "no standard input"),
        (("--out", "texts", "--langage", "el"), "--langage"),
        (("--out", "texts", "--stage-to", "/tmp"), "--stage-to is about a run with a config"),
        (("--out", "texts", "--array-parallelism", "2"), "works only with sweep"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(desk: Desk, words: tuple[str, ...], says: str) -> None:
    done: Result = desk.slurm_py(*WORDS, *words, "--dry-run")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert says in done.err


def test_no_option_is_both_the_launchers_and_its_own() -> None:
    own = typer.main.get_command(app).commands["transcribe"]  # type: ignore[attr-defined]
    names = [
        {word for one in command.params for word in one.opts} for command in (own, command_line(launch))
    ]
    assert names[0] & names[1] <= {"files", "words", "--help"}
