"""Each fault of a cluster, in a real run on it: the vectors are those of the run that never stopped.

    n1, n2   faults of tasks, jobs and files, several runs at once: they must not meet in anything
    n3, n4   faults of nodes and of the network, one after the other

Every fault is a function `fault_*` here; those that were selected are started together, in two
threads for the first pair of nodes and one for the second, and each test waits for its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import Cluster, Run, assert_equal
from tiny import make_config

STEPS = 60
TRAINING = {"steps": STEPS, "lr": 0.02, "save_every_s": 0, "hang_after_s": 15}
SOON_S = 60.0  # a dead rank ends its job within this


@dataclass
class Bench:
    """What a fault needs: a folder of its own, how to start a run, and what it must come to."""

    cluster: Cluster
    folder: Path
    base: Path
    shards: Path
    uninterrupted: Callable[[], Run]

    def run(self, name: str, *options: str, nodes: str = "n1,n2", **sections: object) -> Run:
        folder = self.folder / name
        folder.mkdir()
        training = {**TRAINING, **sections.pop("training", {})}  # type: ignore[dict-item]
        config = make_config(folder, self.base, self.shards, training=training, **sections)
        place = ("--nodes", "2", "--nodelist", nodes, *options)
        return Run(self.cluster, config, *place).launch()


def ends_as_if_nothing_happened(bench: Bench, run: Run, starts: int = 2) -> None:
    run.wait_for_end()
    assert len(run.resumed_at()) == starts, run.logs()
    assert all(step > 0 for step in run.resumed_at()[1:]), "it began from step 0"
    assert_equal(run, bench.uninterrupted())


def fault_submitits_interrupt(bench: Bench) -> None:
    run = bench.run("interrupt", training={"save_every_s": 600})  # saved as it stops, or not at all
    run.wait_for_step(5)
    bench.cluster.slurm("scancel", "--signal=USR2", run.job)
    run.wait_for_requeue(SOON_S)
    ends_as_if_nothing_happened(bench, run)


def fault_scontrol_requeue(bench: Bench) -> None:
    run = bench.run("requeue", training={"save_every_s": 600})
    run.wait_for_step(5)
    bench.cluster.slurm("scontrol", "requeue", run.job)
    ends_as_if_nothing_happened(bench, run)


def fault_task_killed(bench: Bench) -> None:
    run = bench.run("killed")
    run.wait_for_step(5)
    for pid in run.tasks("n2"):
        os.kill(pid, signal.SIGKILL)
    run.wait_for_requeue(SOON_S)
    ends_as_if_nothing_happened(bench, run)


FAULTS = {
    name.removeprefix("fault_"): function
    for name, function in list(globals().items())
    if name.startswith("fault_")
}
OF_NODES: set[str] = set()


@pytest.fixture(scope="session")
def started(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    tiny_base: Path,
    tiny_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[None]]]:
    """The selected faults, each a run that is under way."""
    selected = [item.callspec.params["fault"] for item in request.session.items if _is_fault(item)]
    folder = tmp_path_factory.mktemp("coming-back")
    with ThreadPoolExecutor(3) as tasks, ThreadPoolExecutor(1) as nodes:
        bench = Bench(cluster, folder, tiny_base, tiny_shards, lambda: reference.result())

        def never_stopped() -> Run:
            run = bench.run("uninterrupted")
            run.wait_for_end()
            return run

        reference = tasks.submit(never_stopped)
        yield {
            name: (nodes if name in OF_NODES else tasks).submit(FAULTS[name], bench)
            for name in selected
        }


def _is_fault(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.originalname == "test_comes_back_after"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS)
def test_comes_back_after(fault: str, started: dict[str, Future[None]]) -> None:
    started[fault].result()
