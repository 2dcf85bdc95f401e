"""What is written after a step: an event, curves, a log line; once, the measured placement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from salsa_dist.run.session import Session
from salsa_dist.training.job import Job
from salsa_dist.training.reduce import Reduced
from salsa_dist.training.speed import Speed
from salsa_dist.training.step_counts import StepCounts


def record_step(
    job: Job,
    step: int,
    seconds: float,
    active: Sequence[int],
    reduced: Reduced,
    counts: StepCounts,
    norms: Tensor,
    rates: Tensor,
    speed: Speed,
) -> None:
    """Write the `step` event and its curves, and show the job's progress."""
    clips = round(counts.clips)
    loss_of, labels_of = reduced.losses.tolist(), reduced.labels.tolist()
    rate_of, norm_of = rates.tolist(), norms.tolist()
    adapters = {
        job.names[row]: {
            "loss": _number(loss_of[row]),
            "labels": _whole(labels_of[row]),
            "lr": rate_of[row],
            "grad_norm": _number(norm_of[row]),
        }
        for row in active
    }
    store = {}
    if counts.store is not None:
        store = {"store": {name: round(v, 3) for name, v in asdict(counts.store).items()}}
    padding = 1 - counts.seconds / counts.padded_seconds if counts.padded_seconds else 0.0
    # The mean over all ranks, as a share of this rank's time.
    waited = counts.waited_s / (job.session.ranks.world_size * seconds) if seconds else 0.0
    job.session.events.write(
        "step",
        step=step,
        seconds=round(seconds, 4),
        clips=clips,
        audio_seconds=round(counts.seconds, 3),
        padding=round(padding, 4),
        data_wait=round(min(1.0, waited), 4),
        **speed.of(counts, sum(labels_of[row] for row in active), seconds),
        adapters=adapters,
        **store,
    )
    job.session.track(job.before + step, adapters)

    def text() -> str:
        losses = "  ".join(f"{job.names[row]} {loss_of[row]:.3f}" for row in active[:8])
        return f"loss {losses}  {clips / seconds:.1f} clips/s"

    job.session.say.progress(step + 1, len(job), text, len(active), job.steps_left(step + 1))


def record_placement(session: Session, measured: dict[str, Any]) -> None:
    """Write the `placement` event, and a line about it."""
    row = session.placed.row
    session.events.write("placement", **measured, why=session.placed.why, planned_bytes=row.base_bytes)
    share = measured["resident_bytes_between_steps"] / measured["base_bytes"]
    session.say(
        f"placement {measured['kind']} as measured: {measured['world_size']} ranks, "
        f"{measured['group_size']} share a copy; a rank holds "
        f"{measured['resident_bytes_between_steps'] / 1e6:.1f} MB of the base's "
        f"{measured['base_bytes'] / 1e6:.1f} between steps ({share:.0%}), "
        f"{measured['peak_bytes'] / 1e6:.1f} at the peak; a step gathers "
        f"{measured['gathered_bytes_per_step'] / 1e6:.1f} MB and reduces "
        f"{measured['reduced_bytes_per_step'] / 1e3:.1f} kB, "
        f"{measured['bytes_between_nodes_per_step'] / 1e6:.3f} MB of it between nodes"
    )


def _number(value: float) -> float | None:
    """None instead of NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None


def _whole(labels: float) -> float:
    """A count, whole but where clips have weights of their own."""
    return int(labels) if labels.is_integer() else round(labels, 4)
