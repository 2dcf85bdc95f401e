"""Successive halving: at fixed steps, the worse adapters of each group stop.

    RUN/halving.json
    {"schema": …, "rungs": [{"step": 20, "dev_loss": {"bg-a": 2.1, "bg-b": 2.4}, "dropped": ["bg-b"]}]}

A rung lies before its step. All adapters still in the race are measured on the same clips of the dev
split, by loss or by errors (`training.halving.metric`); in each group of one language and training-set
size the best share goes on (Jamieson and Talwalkar, arXiv 1502.07943). What is dropped becomes absent
from all later steps, which changes nothing for the others. The measure is reduced over all ranks, so
each decides the same by itself; a run that goes on reads what was decided up to its step, and measures
again only where that is not on disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salsa_dist import json_file
from salsa_dist.config import AdapterSettings, HalvingConfig
from salsa_dist.errors import UserError
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/halving/1"
_ADVICE = "remove the run's folder to start it anew"


class Halving:
    """Drops adapters at each rung, and stores which were dropped when.

    Args:
        config: rungs and the share that is kept.
        adapters: in row order.
        run: folder that the decisions are written to.
        first: step that the run begins with; decisions at later ones are made anew.
    """

    def __init__(
        self, config: HalvingConfig, adapters: Sequence[AdapterSettings], run: Path, first: int
    ) -> None:
        self.config = config
        self.adapters = list(adapters)
        self.path = RunFolder(run).halving
        self.records = [r for r in _read(self.path) if r["step"] <= first]

    @property
    def dropped_at(self) -> dict[str, int]:
        """Name of each dropped adapter, and the step from which on it is absent."""
        return {name: record["step"] for record in self.records for name in record["dropped"]}

    def running(self, step: int) -> list[int]:
        """Rows that are still in the race and train at `step`."""
        gone = self.dropped_at
        return [i for i, a in enumerate(self.adapters) if a.name not in gone and step < a.steps]

    def due(self, step: int) -> bool:
        """Whether there is a rung before `step`."""
        return step in self.config.rungs and all(r["step"] != step for r in self.records)

    def next_rung(self, step: int, end: int) -> int:
        """The first rung after `step`, or `end`."""
        return min([r for r in self.config.rungs if r > step] + [end])

    def decide(self, step: int, losses: Mapping[int, float], write: bool) -> list[str]:
        """Drop the worse adapters by their `losses` or error rates, by row; names of the dropped.

        Args:
            write: this rank keeps the file.
        """
        dropped = worse(self.adapters, losses, self.config.keep)
        record = {
            "step": step,
            self.config.metric: {
                self.adapters[row].name: loss if math.isfinite(loss) else None
                for row, loss in losses.items()
            },
            "dropped": [self.adapters[row].name for row in dropped],
        }
        self.records.append(record)
        if write:
            json_file.write(self.path, SCHEMA, {"rungs": self.records})
        return [self.adapters[row].name for row in dropped]


def dropped(run: Path) -> dict[str, int]:
    """Adapters of `run` that were dropped so far, and the steps that they made."""
    return {name: r["step"] for r in _read(RunFolder(run).halving) for name in r["dropped"]}


def worse(adapters: Sequence[AdapterSettings], losses: Mapping[int, float], keep: float) -> list[int]:
    """Rows that a rung drops: in each group all but the best `keep` share, rounded up.

    A loss that is not finite is the worst; of equals the one that comes first in the job stays.
    """
    groups: dict[tuple[str, float | None], list[int]] = {}
    for row in losses:
        groups.setdefault((adapters[row].language, adapters[row].minutes), []).append(row)
    dropped: list[int] = []
    for rows in groups.values():
        best = sorted(rows, key=lambda r: (losses[r] if math.isfinite(losses[r]) else math.inf, r))
        dropped += best[math.ceil(keep * len(rows)) :]
    return sorted(dropped)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        tree = json_file.read(path, (SCHEMA,), _ADVICE)
        return [{"step": int(r["step"]), **r} for r in tree["rungs"] if r["dropped"] is not None]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged ({e}): {_ADVICE}") from e
