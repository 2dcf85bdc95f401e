"""A rank that never arrives at a collective before training is named, with where it is, and all end."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from ranks import Process, two_ranks
from tiny import make_config

from salsa_dist.placement import ranks as ranks_module
from salsa_dist.placement.ranks import join
from salsa_dist.run.watchdog import HUNG

pytestmark = pytest.mark.timeout(1100)

# The second rank calls something of the loop's start, and does not come back.
HELD_UP = """
import os, signal, sys, time
from salsa_dist.cli import run_command
from salsa_dist.run import session

def reads_for_ever(*arguments, **named):
    time.sleep(10_000)

def is_stopped(*arguments, **named):
    time.sleep(10)  # a beat and more: so that it was seen there
    os.kill(os.getpid(), signal.SIGSTOP)

where, name, how, *words = sys.argv[1:]
if os.environ["RANK"] == "1":
    setattr(session, name, globals()[how])
run_command(where, words[0], words[1:])
"""


def failure(folder: Path, rank: int) -> str:
    return str(json.loads((folder / f"failure-{rank}.json").read_text())["text"])


Started = dict[str, tuple[Path, list[Process]]]


@pytest.fixture(scope="module")
def held_up(
    tiny_base: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """Two jobs of two ranks by their command, each with its folder; both at once, since they wait."""
    with ExitStack() as stack:
        started: Started = {}
        for command, *words in (
            ("train", "load_base", "reads_for_ever"),
            ("evaluate", "choose", "is_stopped", "method.kind=zero-shot"),
        ):
            folder = tmp_path_factory.mktemp(command)
            config = make_config(folder, tiny_base, tiny_shards)
            words[2:2] = [str(config), "training.hang_after_s=30"]
            both = stack.enter_context(two_ranks(folder, HELD_UP, command, *words))
            started[command] = (folder, both)
        yield started


def test_a_rank_that_hangs_in_loading_is_named_with_its_stack(held_up: Started) -> None:
    folder, both = held_up["train"]
    statuses = [process.wait(timeout=500) for process in both]
    logs = [(folder / f"log-{rank}").read_text() for rank in (0, 1)]
    # Both find out; where one ends a moment earlier, the other sees its connection close.
    found = [rank for rank, status in enumerate(statuses) if status == HUNG]
    assert found, logs
    for rank in found:
        text = failure(folder, rank)
        assert "\n" not in text
        assert "all ranks live, but none has moved for 30 s" in text
        assert f"rank 1 (process {both[1].pid} on " in text
        assert "is before the first step, loading the base at " in text
        assert "reads_for_ever" in text
        assert "session.py" in text  # and who called it
        assert "; waiting: rank 0; " in text
        assert text.endswith("raise training.hang_after_s")
        assert f"error: {text}" in logs[rank]
    # Every line of its own stack. Where rank 1 ends first, rank 0 has left its collective by an error.
    last = max(found)
    assert ("in agree", "in reads_for_ever")[last] in logs[last]


def test_a_rank_that_is_stopped_while_evaluation_starts_is_named(held_up: Started) -> None:
    folder, both = held_up["evaluate"]
    ended = both[0].wait(timeout=500)
    assert ended == HUNG, (folder / "log-0").read_text()
    text = failure(folder, 0)
    assert f"rank 1 (process {both[1].pid} on " in text
    assert "is before the first step, choosing a placement, and gives no sign of life" in text


def test_ranks_that_never_came_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks_module, "_TIMEOUT", timedelta(seconds=2))
    monkeypatch.setattr(ranks_module, "_stores", [])
    said = r"rank 0 of 3 waited 2 s for rank 1, 2, which never came"
    with pytest.raises(TimeoutError, match=said), join():
        pass
