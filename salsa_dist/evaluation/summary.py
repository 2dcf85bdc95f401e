"""`RUN/evaluation/summary.json`: the cost of an evaluation; written at its end.

{"seconds": 12.1, "clips": 40, "clips_per_second": 3.3, "device": "cpu", "device_hours": 0.013, …}
"""

from __future__ import annotations

import json
from pathlib import Path

from salsa_dist.errors import UserError
from salsa_dist.json_file import Damaged, Record, parsed
from salsa_dist.run.folder import RunFolder
from salsa_dist.whole_file import replace_file


class EvaluationSummary(Record):
    """The cost of an evaluation, summed over all its calls."""

    seconds: float | None = None
    clips: int | None = None
    clips_per_second: float | None = None
    max_new_tokens: int | None = None
    batch: int | None = None
    device: str | None = None
    device_hours: float | None = None
    """GPU-hours, or hours of CPU cores."""


def read(run: Path) -> EvaluationSummary | None:
    """The summary of `run`; None where it was not evaluated to the end.

    Raises:
        UserError: it is damaged.
    """
    folder = RunFolder(run)
    path = folder.evaluation_summary
    advice = f"make it again with `{folder.command('evaluate')}`"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as e:
        raise UserError(f"{path} can't be read ({e.strerror}): {advice}") from e
    except ValueError as e:
        raise Damaged(f"{path} is damaged (no JSON: {e}): {advice}") from e
    return parsed(EvaluationSummary, tree, str(path), advice)


def write(run: Path, summary: EvaluationSummary) -> None:
    """Write it whole or not at all."""
    text = json.dumps(summary.model_dump(), indent=2)
    replace_file(RunFolder(run).evaluation_summary, text)
