"""Each fault of a cluster, in a real run on it: the vectors are those of the run that never stopped.

    n1, n2   faults of tasks, jobs and files, several runs at once: they must not meet in anything
    n3       a node that is lost
    n4       its link is cut

Every fault is a function `fault_*` here; those that were selected are started together, `AT_ONCE` at a
time, those that mostly wait first, and each test waits for its own.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from slurm_cluster import END_S, Cluster, Run, assert_equal, is_pending, is_stopped, wait_until
from tiny import make_config

from salsa_dist import load_speech_llm, transcribe
from salsa_dist.training import state as states

STEPS = 160  # some seconds: long enough to be hit
TRAINING = {"steps": STEPS, "lr": 0.02, "save_every_s": 0, "hang_after_s": 120}
SOON_S = 60.0  # a dead rank ends its job within this
AT_ONCE = 4


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
        count: int = 2,
        folder: Path | None = None,
        shards: Path | None = None,
        **training: Any,
    ) -> Run:
        """Launched on `count` of `nodes`, one rank on each; `training` replaces parts of `TRAINING`."""
        beside = self.folder / name
        beside.mkdir()
        at = folder or beside / "run"
        settings = {**TRAINING, **training}
        config = make_config(beside, self.base, shards or self.shards, training=settings, run=str(at))
        others = ",".join({"n1", "n2", "n3", "n4"} - set(nodes.split(",")))
        place = ("--nodes", str(count), *(("--exclude", others) if others else ()), *options)
        return Run(self.cluster, config, *place, folder=at).launch()


def ends_as_if_nothing_happened(bench: Bench, run: Run, tolerance: float = 0) -> None:
    run.wait_for_end()
    # One restart for each fault. A node that was cut off may end the tasks of the first start a minute
    # late, when the second one's run there: that is one restart more, and goes on from disk as well.
    starts = len(run.resumed_at())
    assert starts >= 2, run.logs()
    if starts > 2:
        told = bench.cluster.daemons_on(run.job)
        warnings.warn(f"job {run.job} was started {starts} times:\n{told}", stacklevel=2)
    assert all(step > 0 for step in run.resumed_at()[1:]), "it began from step 0"
    assert_equal(run, bench.uninterrupted(), tolerance)


def fault_link_cut(bench: Bench) -> None:
    """For 30 s it is waited for; for good, the job ends and comes back."""
    run = bench.run("link", nodes="n1,n4", hang_after_s=75)
    run.wait_for_step(5)
    bench.cluster.link("n4", "down")
    time.sleep(30)
    bench.cluster.link("n4", "up")
    run.wait_for_step(run.events("step")[-1]["step"] + 2)
    assert run.restarts() == 0, (
        f"it did not wait for the link:\n{bench.cluster.daemons_on(run.job)}\n{run.logs()}"
    )
    bench.cluster.link("n4", "down")
    # Three beats, a fifth of the time apart, are missed before a rank is called silent.
    run.wait_for_requeue(75 * 1.6 + SOON_S)
    bench.cluster.link("n4", "up")
    bench.cluster.wait_idle("n4")
    ends_as_if_nothing_happened(bench, run)


def fault_node_killed(bench: Bench) -> None:
    """slurmd and tasks of a node killed: requeued on the nodes that are left, on fewer if need be."""
    # n3 weighs less than n1 and n2, so it is taken first.
    spare = bench.run("node", nodes="n1,n2,n3")
    fewer = bench.run("fewer-nodes", "--min-nodes", "1", nodes="n2,n3")
    for run in (spare, fewer):
        run.wait_for_step(5)
        assert run.tasks("n3"), run.logs()
    bench.cluster.crash("n3")
    for run in (spare, fewer):
        run.wait_for_requeue(4 * SOON_S)
    ends_as_if_nothing_happened(bench, spare)
    ends_as_if_nothing_happened(bench, fewer, 1e-5)
    assert [event["world_size"] for event in fewer.events("start")] == [2, 1]


def fault_time_limit(bench: Bench) -> None:
    """Slurm's own signal ahead of the limit: saved, requeued by submitit, gone on with."""
    # The signal comes two minutes before the limit: on a busy machine the start takes one.
    run = bench.run("limit", "--time", "4", save_every_s=600, hang_after_s=600)
    run.wait_for_step(5)
    # Stopped until it has been signalled, to wait out the limit without computing.
    ranks = [*run.tasks("n1"), *run.tasks("n2")]
    assert len(ranks) == 2, run.logs()
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    try:
        wait_until(
            lambda: all(is_pending(rank, signal.SIGUSR2) for rank in ranks), "the limit nears", 400
        )
    except FileNotFoundError:
        pass  # Slurm itself let them go on as it signalled, and one has ended by now.
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGCONT)
    run.wait_for_requeue(SOON_S)
    assert "SIGUSR2 on n1: this job is timed-out" in run.logs()
    ends_as_if_nothing_happened(bench, run)


def fault_rank_0_killed_while_saving(bench: Bench) -> None:
    """At 20 moments of its writing: what a kill leaves has a newest checkpoint that loads.

    At all but the last rank 0 is only stopped, what then lies on disk is copied, and it goes on: a
    killed process leaves just that. At the last it is killed. On a busy machine many steps pass between
    two moments: then there are fewer of them, so that the kill comes before the run ends.
    """
    run = bench.run("saving")
    run.wait_for_step(5)
    (rank,) = run.tasks("n1")
    state = run.folder / "state"
    moments = random.Random(0)
    for moment in range(20):
        saved = stop_while_saving(rank, state, moments)
        last = moment == 19 or _step_of(saved) > 0.7 * STEPS
        left = shutil.copytree(state, bench.folder / f"left-{moment}")
        os.kill(rank, signal.SIGKILL if last else signal.SIGCONT)
        paths = sorted(left.glob("step-*.safetensors"))
        assert all(states._read(path) for path in paths), "a checkpoint is torn"
        assert paths[-1].name >= saved, "a checkpoint that was saved is lost"
        if last:
            break
    assert moment >= 4, "too few moments to say anything"
    run.wait_for_requeue(SOON_S)
    ends_as_if_nothing_happened(bench, run)
    assert run.resumed_at()[1] == _step_of(paths[-1].name)


def _step_of(checkpoint: str) -> int:
    return int(Path(checkpoint).stem.removeprefix("step-") or 0)


def stop_while_saving(rank: int, state: Path, moments: random.Random) -> str:
    """SIGSTOP a rank while it writes a checkpoint; returns the name of the newest before that."""
    wait_until(lambda: not any(state.glob("*.part")), "the checkpoint before is written", SOON_S)
    until = time.monotonic() + SOON_S
    while time.monotonic() < until:
        names = os.listdir(state)
        if not any(name.endswith(".part") for name in names):
            continue
        time.sleep(moments.uniform(0, 0.001))
        os.kill(rank, signal.SIGSTOP)
        wait_until(lambda: is_stopped(rank), "the rank stands", SOON_S)
        if any(state.glob("*.part")):
            return max((name for name in names if name.endswith(".safetensors")), default="")
        os.kill(rank, signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("no checkpoint was seen while it was written")


def fault_terminated(bench: Bench) -> None:
    """SIGTERM that nobody's `scancel` sent, as ahead of a preemption: saved, and started again."""
    run = bench.run("terminated", save_every_s=600)
    run.wait_for_step(5)
    bench.cluster.slurm("scancel", "--signal=TERM", run.job)
    run.wait_for_requeue(SOON_S)
    ends_as_if_nothing_happened(bench, run)


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
    """Where jobs inherit nothing of the login host, and the user's setup ends a script at an error."""
    alone = ("--sbatch", "export=NONE", "--env", "OMP_NUM_THREADS=1", "--setup", "set -eu")
    run = bench.run("killed", *alone)
    run.wait_for_step(5)
    for pid in run.tasks("n2"):
        os.kill(pid, signal.SIGKILL)
    run.wait_for_requeue(SOON_S)
    ends_as_if_nothing_happened(bench, run)


def fault_transcription_killed(bench: Bench) -> None:
    """A killed task ends the job; it comes back, and what is there is not done again."""
    recordings, texts = bench.folder / "recordings", bench.folder / "texts"
    recordings.mkdir()
    count, kinds = 400, 4
    for i in range(count):
        noise = 0.1 * np.random.default_rng(i % kinds).standard_normal(16_000)
        soundfile.write(recordings / f"{i:03}.wav", noise, 16_000)
    words = ("transcribe", str(bench.base), str(recordings), "--language", "bg", "--batch", "1")
    place = ("--nodes", "2", "--exclude", "n3,n4")
    run = Run(bench.cluster, None, *place, *words, "--out", str(texts), folder=texts).launch()
    wait_until(lambda: len(list(texts.glob("*.txt"))) > 20, "some texts are there", END_S)
    (task,) = run.tasks("n2")
    os.kill(task, signal.SIGKILL)
    run.wait_for_requeue(SOON_S)
    before = {path: path.stat().st_mtime_ns for path in texts.glob("*.txt")}
    run.wait_for_end()
    done = sorted(texts.glob("*.txt"))
    assert len(before) < len(done) == count
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    wanted = transcribe(load_speech_llm(bench.base), sorted(recordings.iterdir())[:kinds], "bg")
    assert [path.read_text() for path in done] == [f"{text}\n" for text in wanted] * (count // kinds)


def fault_tries_without_progress(bench: Bench) -> None:
    """A rank that dies in every start: the job is not requeued for ever, and says so."""
    run = bench.run("tries", "--tries", "2", save_every_s=600)
    for start in (1, 2):
        run.wait_for_step(0, starts=start)
        for pid in run.tasks("n2"):
            os.kill(pid, signal.SIGKILL)
        if start == 1:
            run.wait_for_requeue(SOON_S)
    run.wait_for_end("FAILED")
    assert run.restarts() == 1
    assert "2 attempts in a row ended at step 0 without a new checkpoint" in run.logs()


def fault_shards_damaged(bench: Bench) -> None:
    """Truncated, removed and replaced in the middle: a clear stop, or counted, as the config allows."""
    shards = Path(shutil.copytree(bench.shards, bench.folder / "damaged-shards"))
    truncated, removed = sorted(shards.glob("bg/train-*.tar"))[:2]
    replaced, other = sorted(shards.glob("el/train-*.tar"))[:2]
    run = bench.run("shards", "data.max_bad=0", shards=shards)
    run.wait_for_step(5)
    os.truncate(truncated, truncated.stat().st_size // 2)
    removed.unlink()
    shutil.copy(other, shards / "new")
    os.replace(shards / "new", replaced)
    run.wait_for_end("FAILED")
    assert run.restarts() == 0, "another attempt would have ended the same"
    assert "samples can't be used" in run.logs()
    assert "more than data.max_bad, 0" in run.logs()
    newest = sorted((run.folder / "state").glob("step-*.safetensors"))[-1]
    assert states._read(newest)
    again = Run(bench.cluster, run.config, *run.options[:-1], "data.max_bad=1000").launch()
    again.wait_for_end()
    assert again.resumed_at()[-1] > 0
    found = [sample for event in again.events("bad_samples") for sample in event["samples"]]
    named = {path.relative_to(shards).as_posix() for path in (truncated, removed, replaced)}
    assert {sample["shard"] for sample in found} == named
    kinds = {(sample["shard"], sample["kind"]) for sample in found}
    assert (removed.relative_to(shards).as_posix(), "shard") in kinds
    assert (truncated.relative_to(shards).as_posix(), "tar") in kinds
    assert again.events("bad_samples")[-1]["so_far"].keys() == {"tar", "shard"}


def fault_rank_stopped(bench: Bench) -> None:
    """SIGSTOP for good: its peer names it and ends, the job comes back."""
    run = bench.run("stopped", hang_after_s=40)
    run.wait_for_step(5)
    (task,) = run.tasks("n2")
    os.kill(task, signal.SIGSTOP)
    run.wait_for_requeue(2 * SOON_S)
    log = next(run.folder.glob("logs/*/*_0_log.err")).read_text()
    assert "no rank has moved for 40 s; rank 1 (process " in log, log
    assert " on n2) is in step " in log
    assert "gives no sign of life" in log
    ends_as_if_nothing_happened(bench, run)


def fault_second_submission(bench: Bench) -> None:
    """Two jobs in one run folder: the second is refused and not tried again, the first goes on.

    Once cancelled, the first has saved its state and stays cancelled.
    """
    first = bench.run("twice", steps=100_000)
    first.wait_for_step(1)
    second = Run(bench.cluster, first.config, *first.options).launch()
    second.wait_for_end("FAILED")
    assert second.restarts() == 0
    log = next(second.folder.glob(f"logs/{second.job}/*_0_log.err")).read_text()
    assert f"is in use by another job (job {first.job}, process " in log
    assert first.state() == "RUNNING"
    bench.cluster.slurm("scancel", first.job)
    first.wait_for_end("CANCELLED")
    assert "the same command resumes from there" in first.logs()
    assert first.restarts() == 0


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


FAULTS = {
    name.removeprefix("fault_"): function
    for name, function in list(globals().items())
    if name.startswith("fault_")
}


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
    with ThreadPoolExecutor(AT_ONCE) as threads:
        bench = Bench(cluster, folder, tiny_base, tiny_shards, lambda: reference.result())

        def never_stopped() -> Run:
            run = bench.run("uninterrupted")
            run.wait_for_end()
            return run

        reference = threads.submit(never_stopped)
        yield {name: threads.submit(FAULTS[name], bench) for name in selected}


def _is_fault(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.originalname == "test_comes_back_after"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS)
def test_comes_back_after(fault: str, started: dict[str, Future[None]]) -> None:
    started[fault].result()
