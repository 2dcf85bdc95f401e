"""A rank that hangs is found by its peers, named, and does not hang them for ever."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from salsa_dist.data import last_read
from salsa_dist.placement.device_events import in_thread
from salsa_dist.run.watchdog import HUNG, Watchdog, report, waits_for_a_mover

RANK = """
import sys, time
from pathlib import Path
from salsa_dist.run.watchdog import Watchdog
run, rank, hang = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with Watchdog(run, rank, 2, hang) as watchdog:
    for step in range(int(sys.argv[4])):
        watchdog.at(step, "forward and backward")
        time.sleep(0.1)
    if rank == 0:
        def waits_for_its_peer():
            watchdog.at(step, "the sum over all ranks")
            time.sleep(60)
        waits_for_its_peer()
"""


def start(run: Path, rank: int, hang_after_s: float, steps: int) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", RANK, str(run), str(rank), str(hang_after_s), str(steps)]
    environment = {**os.environ, "SALSA_FAILURE_FILE": str(run / f"failure-{rank}.json")}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_stopped_rank_is_named_and_its_peer_ends(tmp_path: Path) -> None:
    stopped = start(tmp_path, 1, 3, 10_000)
    seen = tmp_path / "ranks" / "rank-0001.json"
    deadline = time.monotonic() + 60
    while "forward and backward" not in _text(seen) and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGSTOP)
    try:
        waiting = start(tmp_path, 0, 3, 3)
        _, log = waiting.communicate(timeout=60)
    finally:
        stopped.kill()
        stopped.communicate()
    assert waiting.returncode == HUNG
    text = json.loads((tmp_path / "failure-0.json").read_text())["text"]
    assert f"rank 1 (process {stopped.pid} on " in text
    assert "forward and backward" in text
    assert "no sign of life" in text
    assert "waiting: rank 0" in text
    assert text in log
    assert "waits_for_its_peer" in log  # where it waited: its stack
    assert (
        "waits_for_its_peer" in json.loads((tmp_path / "ranks/rank-0000.json").read_text())["stack"][-1]
    )


def test_ranks_that_move_are_left_alone(tmp_path: Path) -> None:
    moving = start(tmp_path, 1, 1, 40)
    _, log = moving.communicate(timeout=60)
    assert (moving.returncode, log) == (0, "")
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


LOADING = """
import sys, time
from pathlib import Path
from salsa_dist.run.watchdog import Watchdog
run, rank = Path(sys.argv[1]), int(sys.argv[2])
until = time.monotonic() + 12
with Watchdog(run, rank, 2, 3) as watchdog, open("/dev/zero", "rb") as weights:
    watchdog.at(None, "loading the base", reads=True)
    while rank == 1 and time.monotonic() < until:
        weights.read(2**21)
        time.sleep(0.2)
    watchdog.at(None, "comparing what was loaded")
    while rank == 0 and not (run / "loaded").exists():
        time.sleep(0.2)
    if rank == 1:
        (run / "loaded").touch()
"""


def test_a_rank_that_still_reads_is_waited_for(tmp_path: Path) -> None:
    """One reads weights for four times as long as ranks may stand, and the other waits for it."""
    words = [sys.executable, "-c", LOADING, str(tmp_path)]
    both = [subprocess.Popen([*words, "1"], stderr=subprocess.PIPE, text=True)]
    deadline = time.monotonic() + 60
    while not (tmp_path / "ranks" / "rank-0001.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    both.append(subprocess.Popen([*words, "0"], stderr=subprocess.PIPE, text=True))
    logs = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], logs


def test_where_all_live_the_one_furthest_behind_is_named() -> None:
    def seen(beat: int, step: int) -> dict[str, object]:
        where = {"place": 3 * step, "step": step, "phase": "saving the state"}
        return {"beat": beat, "pid": 1, "host": "n1", **where}

    text = report([seen(1, 5), seen(1, 4)], [seen(4, 5), seen(4, 4)], 2, 60)
    assert "all ranks live" in text
    assert "rank 1 (process 1 on n1) is in step 5, saving the state" in text
    assert "; waiting: rank 0; " in text
    assert text.endswith("; if ranks are only slow here, raise training.hang_after_s")


def test_a_rank_that_has_just_ended_is_one_that_moved() -> None:
    """Its file goes between two readings, while its peer has yet to see what it left."""

    def seen(beat: int) -> dict[str, object]:
        place = {"place": 3, "step": 0, "phase": "saving the state", "since_s": 9.0}
        return {"beat": beat, "pid": 1, "host": "n1", **place}

    assert waits_for_a_mover(0, [seen(1), seen(1)], [seen(4), {}], 3)
    assert not waits_for_a_mover(0, [seen(1), {}], [seen(4), {}], 3)
    text = report([seen(1), {}], [seen(4), {}], 2, 3)
    assert "rank 1 has no report: it never began, or it has ended" in text


class FakeEvent:
    """Stands for a CUDA event: done once the GPU has come to it."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


def test_with_fake_events_the_rank_whose_gpu_is_late_is_named(tmp_path: Path) -> None:
    """The processes of both ranks wait for the sum; one GPU has not come to it."""

    def of_rank(rank: int, reached: int) -> tuple[dict[str, object], dict[str, object]]:
        events: list[FakeEvent] = []
        with Watchdog(tmp_path, rank, 2, 60, lambda: events.append(FakeEvent()) or events[-1]) as dog:
            for phase in ("forward and backward", "the sum over all ranks"):
                dog.at(4, phase)
            begun = _read(dog, tmp_path, rank)
            for event in events[:reached]:
                event.done = True
            return begun, _read(dog, tmp_path, rank)

    waiting, late = of_rank(0, 3), of_rank(1, 2)
    assert [seen["ahead"] for seen in waiting] == ["the sum over all ranks", None]
    assert (waiting[1]["phase"], late[1]["phase"]) == ("the sum over all ranks", "forward and backward")
    text = report([waiting[0], late[0]], [waiting[1], late[1]], 2, 60)
    assert "; rank 1 (process" in text
    assert "forward and backward on its GPU (its process: the sum over all ranks)" in text
    assert "; waiting: rank 0; " in text


def test_with_fake_events_a_gpu_that_works_is_no_hang(tmp_path: Path) -> None:
    event = FakeEvent()
    with Watchdog(tmp_path, 0, 2, 60, lambda: event) as dog:
        time.sleep(0.3)
        assert dog._stood_s() > 0.25
        event.done = True
        dog._write()
        assert dog._stood_s() < 0.25


def test_the_thread_that_asks_events_has_the_device_of_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new thread begins with the first GPU, where every rank of the node would take memory."""
    device, done = torch.device("cuda", 3), threading.Event()
    taken: list[tuple[str, torch.device]] = []

    def take(device: torch.device) -> None:
        taken.append((threading.current_thread().name, device))
        done.set()

    monkeypatch.setattr(torch.cuda, "set_device", take)
    in_thread(torch.device("cpu"))
    with Watchdog(tmp_path, 0, 2, 60, in_thread=lambda: in_thread(device)):
        assert done.wait(10)
    assert taken == [("watchdog", device)]


def test_with_fake_events_a_part_of_a_phase_is_done_when_the_gpu_has_done_it(tmp_path: Path) -> None:
    """The process has asked for both passes; the GPU is in the first, then in the second."""
    events: list[FakeEvent] = []
    with Watchdog(tmp_path, 0, 2, 600, lambda: events.append(FakeEvent()) or events[-1]) as dog:
        dog.at(4, "forward and backward")
        dog.moved()
        dog.moved()
        dog.at(4, "the sum over all ranks")
        first, second = events[2:4]
        for event in events[:2]:
            event.done = True
        begun = _read(dog, tmp_path, 0)
        dog._device_moved = 0.0
        first.done = True
        after_one = _read(dog, tmp_path, 0)
        assert dog._device_moved > 0
        second.done = True
        assert _read(dog, tmp_path, 0)["place"] == after_one["place"] == begun["place"]
        assert after_one["phase"] == "forward and backward"
        assert after_one["ahead"] == "the sum over all ranks"
        events[-1].done = True
        assert _read(dog, tmp_path, 0)["phase"] == "the sum over all ranks"


def test_a_part_of_a_phase_renews_the_time_and_not_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks make unequal numbers of passes after one was out of memory, and places are compared."""
    monkeypatch.setattr(last_read, "_last", last_read._Own())
    with Watchdog(tmp_path, 0, 2, 6000) as dog:
        for moves in (dog.moved, last_read.now):
            dog.at(4, "forward and backward")
            dog._place = replace(dog._place, since=dog._place.since - 500)
            dog._moved_at = 0.0
            place = _read(dog, tmp_path, 0)["place"]
            assert dog._stood_s() >= 500
            moves()
            assert dog._stood_s() < 400
            assert _read(dog, tmp_path, 0)["place"] == place


def _read(dog: Watchdog, run: Path, rank: int) -> dict[str, object]:
    dog._write()
    seen: dict[str, object] = json.loads((run / f"ranks/rank-{rank:04}.json").read_text())
    return seen


def test_what_ranks_left_that_are_no_more_is_forgotten_with_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    for rank in (1, 2):
        (tmp_path / "ranks" / f"rank-{rank:04}.json").write_text("{}")
    with Watchdog(tmp_path, 0, 2, 600) as watchdog:
        watchdog.at(None, "loading")
        assert (tmp_path / "ranks" / "rank-0002.json").exists(), "the folder may still be another job's"
        watchdog.at(7, "reading clips")
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == ["rank-0001.json"]


def test_a_ranks_file_is_whole_whenever_it_is_read(tmp_path: Path) -> None:
    """Ranks that give up at one moment write and read each other's files at once."""
    with Watchdog(tmp_path, 0, 2, 60) as watchdog:
        watchdog.at(0, "clips")
        path = tmp_path / "ranks" / "rank-0000.json"
        until = time.monotonic() + 1
        writer = threading.Thread(target=lambda: [watchdog._write() for _ in range(2000)])
        writer.start()
        while writer.is_alive() and time.monotonic() < until:
            assert json.loads(path.read_text())["rank"] == 0
        writer.join()
