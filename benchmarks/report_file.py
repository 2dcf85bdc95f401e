"""The report of a benchmark: when, on which machine, by which command, and the rows."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch


def machine(*more: str) -> str:
    """This machine in words, with `more` about it."""
    return ", ".join([platform.processor() or platform.machine(), *more, f"torch {torch.__version__}"])


def write_report(
    file: Path, rows: Sequence[Mapping[str, Any]], on: str | None = None, **facts: Any
) -> None:
    """Write `file`.

    Args:
        on: the machine, if there is more to say of it than `machine()` does.
        facts: what is the same for all rows.
    """
    command = " ".join(["python", *sys.argv])
    head = {"date": str(date.today()), "machine": on or machine(), "command": command}
    file.write_text(json.dumps({**head, **facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
