"""Each fault of a cluster, in a real run on it: the vectors are those of the run that never stopped.

    n1, n2   faults of tasks, jobs and files, several runs at once: they must not meet in anything
    n3, n4   faults of nodes and of the network, one after the other

Every fault is a function `fault_*` here; those that were selected are started together, in two
threads for the first pair of nodes and one for the second, and each test waits for its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, Run, assert_equal
from tiny import make_config

STEPS = 600  # some seconds: long enough to be hit
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

    def run(
        self,
        name: str,
        *options: str,
        nodes: str = "n1,n2",
        folder: Path | None = None,
        **training: Any,
    ) -> Run:
        """Launched on two of `nodes`, one rank on each; `training` replaces settings of `TRAINING`."""
        beside = self.folder / name
        beside.mkdir()
        at = folder or beside / "run"
        settings = {**TRAINING, **training}
        config = make_config(beside, self.base, self.shards, training=settings, run=str(at))
        others = ",".join({"n1", "n2", "n3", "n4"} - set(nodes.split(",")))
        place = ("--nodes", "2", *(("--exclude", others) if others else ()), *options)
        return Run(self.cluster, config, *place, folder=at).launch()


def ends_as_if_nothing_happened(bench: Bench, run: Run, starts: int = 2) -> None:
    run.wait_for_end()
    assert len(run.resumed_at()) == starts, run.logs()
    assert all(step > 0 for step in run.resumed_at()[1:]), "it began from step 0"
    assert_equal(run, bench.uninterrupted())


def fault_submitits_interrupt(bench: Bench) -> None:
    run = bench.run("interrupt", save_every_s=600)  # saved as it stops, or not at all
    run.wait_for_step(5)
    bench.cluster.slurm("scancel", "--signal=USR2", run.job)
    run.wait_for_requeue(SOON_S)
    ends_as_if_nothing_happened(bench, run)


def fault_scontrol_requeue(bench: Bench) -> None:
    run = bench.run("requeue", save_every_s=600)
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


def fault_rank_stopped(bench: Bench) -> None:
    """SIGSTOP for good: its peer names it and ends, the job comes back."""
    run = bench.run("stopped")
    run.wait_for_step(5)
    (task,) = run.tasks("n2")
    os.kill(task, signal.SIGSTOP)
    run.wait_for_requeue(2 * SOON_S)
    log = next(run.folder.glob("logs/*/*_0_log.err")).read_text()
    assert "no rank has moved for 15 s; rank 1 (process " in log, log
    assert " on n2) is in step " in log
    assert "gives no sign of life" in log
    ends_as_if_nothing_happened(bench, run)


def fault_second_submission(bench: Bench) -> None:
    """Two jobs in one run folder: the second is refused and not tried again, the first goes on."""
    first = bench.run("twice", steps=100_000)
    first.wait_for_step(1)
    second = Run(bench.cluster, first.config, *first.options).launch()
    second.wait_for_end("FAILED")
    assert second.restarts() == 0
    log = next(second.folder.glob(f"logs/{second.job}/*_0_log.err")).read_text()
    assert f"is in use by another job (job {first.job}, process " in log
    assert first.state() == "RUNNING"
    bench.cluster.slurm("scancel", first.job)


def fault_disk_full(bench: Bench) -> None:
    """No room while saving: a clear line, the last checkpoint intact; with room again it goes on."""
    cluster, disk = bench.cluster, bench.cluster.disk
    run = bench.run("full", folder=disk / "run")
    run.wait_for_step(5)
    # One page is left for the log, which is less than a state takes.
    fill = "cat /dev/zero >filler; truncate -s -4096 filler"
    cluster.run("sh", "-c", f"cd {disk}; {fill}")
    run.wait_for_end("FAILED")
    assert "can't be written: " in run.logs()
    cluster.slurm("rm", str(disk / "filler"))
    again = Run(cluster, run.config, *run.options, folder=run.inside).launch()
    ends_as_if_nothing_happened(bench, again)


def fault_node_killed(bench: Bench) -> None:
    """slurmd and tasks of a node killed: requeued on nodes that are left."""
    # It may run anywhere; n3 and n4 weigh less, so they are taken first.
    run = bench.run("node", nodes="n1,n2,n3,n4")
    run.wait_for_step(5)
    bench.cluster.crash("n4")
    try:
        run.wait_for_requeue(2 * SOON_S)
        run.wait_for_end()
    finally:
        bench.cluster.revive("n4")
    assert run.resumed_at()[-1] > 0
    assert_equal(run, bench.uninterrupted())


def fault_link_cut(bench: Bench) -> None:
    """For a while it is waited for; for good, the job ends and comes back."""
    run = bench.run("link", nodes="n3,n4", hang_after_s=20)
    run.wait_for_step(5)
    bench.cluster.link("n4", "down")
    time.sleep(5)
    bench.cluster.link("n4", "up")
    run.wait_for_step(run.events("step")[-1]["step"] + 2)
    bench.cluster.link("n4", "down")
    run.wait_for_requeue(2 * SOON_S)
    bench.cluster.link("n4", "up")
    bench.cluster.wait_idle("n4")
    run.wait_for_end()
    assert run.resumed_at()[-1] > 0
    assert_equal(run, bench.uninterrupted())


FAULTS = {
    name.removeprefix("fault_"): function
    for name, function in list(globals().items())
    if name.startswith("fault_")
}
OF_NODES = {"node_killed", "link_cut"}


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
