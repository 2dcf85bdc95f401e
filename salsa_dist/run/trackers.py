"""A run's curves for people: TensorBoard, W&B or trackio, by accelerate's trackers.

    RUN/tensorboard/…           loss/bg  lr/bg  grad_norm/bg …  by step; all adapters of a bank
    W&B and trackio             the same names, in project `salsa-dist`, the run named after its folder

The first rank alone has any. A tracker that fails is a warning and is dropped: no
curve is worth a run.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.libraries.accelerate import trackers

PROJECT = "salsa-dist"
_FLUSH_S = 30  # a run that is killed may lose so much of its curves, which events.jsonl has
_CURVES = ("loss", "lr", "grad_norm", "dev_loss", "cer", "wer", "mer")


class Trackers:
    """The trackers of `kinds`, those that were asked for in the config.

    Args:
        kinds: of `tensorboard`, `wandb`, `trackio`.
        run: folder of the run.
        settings: the run's config, shown by W&B and trackio.
        first_step: where this start goes on; TensorBoard drops what an earlier one logged after it.

    Raises:
        UserError: a package is missing.
    """

    def __init__(
        self, kinds: Sequence[str], run: Path, settings: Mapping[str, Any], first_step: int
    ) -> None:
        def begin(tracker: Any) -> None:
            tracker.start()
            if tracker.name != "tensorboard":  # there it writes a table of one row, slowly
                tracker.store_init_configuration(dict(settings))

        self._trackers = [_make(kind, run, first_step) for kind in kinds]
        self._each(begin)

    def step(self, step: int, adapters: Mapping[str, Mapping[str, float | None]]) -> None:
        """Log one step.

        Args:
            step: its number.
            adapters: by name, each with its loss, lr and grad_norm, or its measures on dev clips; None
                is not logged.
        """
        if not self._trackers:
            return
        values = {
            f"{what}/{name}": facts[what]
            for name, facts in adapters.items()
            for what in _CURVES
            if facts.get(what) is not None
        }
        self._each(lambda tracker: _log(tracker, values, step))

    def close(self) -> None:
        self._each(lambda tracker: tracker.finish())

    def _each(self, call: Callable[[Any], None]) -> None:
        self._trackers = [tracker for tracker in self._trackers if _worked(tracker, call)]


def _log(tracker: Any, values: Mapping[str, float | None], step: int) -> None:
    if tracker.name != "tensorboard":
        tracker.log(values, step=step)
        return
    for name, value in values.items():  # its own `log` waits for the disk each time
        tracker.writer.add_scalar(name, value, global_step=step)


def _worked(tracker: Any, call: Callable[[Any], None]) -> bool:
    try:
        call(tracker)
    except Exception as e:
        warnings.warn(f"tracker {tracker.name} is skipped: {e}", stacklevel=2)
        return False
    return True


def refuse_missing(kinds: Sequence[str]) -> None:
    """Raises: UserError: a package that `kinds` need is not installed."""
    missing = [kind for kind in kinds if importlib.util.find_spec(kind) is None]
    if missing:
        names = " ".join(missing)
        raise UserError(
            f"trackers: {names} is not installed: pip install {names}, or remove it from `trackers`"
        )


def _make(kind: str, run: Path, first_step: int) -> Any:
    tracking = trackers()
    tracker: Any
    if kind == "tensorboard":
        settings = {"purge_step": first_step, "flush_secs": _FLUSH_S}
        tracker = tracking.TensorBoardTracker("tensorboard", run, **settings)
    elif kind == "wandb":
        tracker = tracking.WandBTracker(PROJECT, name=run.name, dir=str(run))
    else:
        tracker = tracking.TrackioTracker(PROJECT, name=run.name)
    # Only the first rank makes one; else it would ask that state who is first.
    tracker.main_process_only = False
    return tracker
