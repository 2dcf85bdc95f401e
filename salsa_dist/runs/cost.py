"""The work and cost of a run, from its events.jsonl.

    start ── step step checkpoint step ✗ start ── step … end
    └──────── one try ────────────────┘  └── the next ─────┘    hours = ranks x time, over all tries

Time is counted from the start of the process, loading included, to the last event of the try. Steps
that were done twice count as often as they were done.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salsa_dist.run.events import read_forgiving


@dataclass(frozen=True)
class Cost:
    """Sums over all starts of a run.

    Attributes:
        device: `cpu` or the GPU's name.
        device_hours: GPU-hours, or hours of CPU cores.
        hours: wall clock.
        steps, clips: worked through, repeated ones included.
        checkpoints: written.
        checkpoint_bytes: of the last one.
        skipped: steps without a usable gradient.
        restarts: tries after the first.
        last_step: the number of the newest step; None: no step yet.
        step_seconds: of the newest step.
        last_time: of the newest event, Unix seconds.
        finished: it came to its end.
    """

    device: str
    device_hours: float
    hours: float
    steps: int
    clips: int
    checkpoints: int
    checkpoint_bytes: int
    skipped: int
    restarts: int
    last_step: int | None
    step_seconds: float
    last_time: float
    finished: bool

    @property
    def text(self) -> str:
        unit = "CPU-hours" if self.device == "cpu" else "GPU-hours"
        return (
            f"{self.device_hours:.2f} {unit} ({self.device}), {_span(self.hours)} of wall clock; "
            f"{self.steps} steps, {self.clips} clips, {self.skipped} steps skipped; "
            f"{self.checkpoints} checkpoints of {self.checkpoint_bytes / 1e3:.1f} kB; "
            f"{self.restarts} restarts"
        )


def cost(run: Path) -> Cost | None:
    """The sums of `run`; None before its first start. Lines that are no event are passed over."""
    events = read_forgiving(run)
    starts = [i for i, event in enumerate(events) if event["event"] == "start"]
    if not starts:
        return None
    hours = device_hours = 0.0
    for first, end in zip(starts, [*starts[1:], len(events)], strict=True):
        start = events[first]
        spent = (events[end - 1]["time"] - start["time"] + start.get("startup_s", 0.0)) / 3600
        hours += spent
        device = start.get("environment", {}).get("device", "cpu")
        per_rank = start.get("threads", 1) if device == "cpu" else 1
        device_hours += spent * start["world_size"] * per_rank
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in events[starts[0] :]:
        kinds.setdefault(event["event"], []).append(event)
    steps, checkpoints = kinds.get("step", []), kinds.get("checkpoint", [])
    return Cost(
        device=device,
        device_hours=device_hours,
        hours=hours,
        steps=len(steps),
        clips=sum(step["clips"] for step in steps),
        checkpoints=len(checkpoints),
        checkpoint_bytes=checkpoints[-1]["bytes"] if checkpoints else 0,
        skipped=len(kinds.get("skipped", [])),
        restarts=len(starts) - 1,
        last_step=steps[-1]["step"] if steps else None,
        step_seconds=steps[-1]["seconds"] if steps else 0.0,
        last_time=events[-1]["time"],
        finished=any(event["event"] == "end" for event in events[starts[-1] :]),
    )


def _span(hours: float) -> str:
    seconds = round(hours * 3600)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
