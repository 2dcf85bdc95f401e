"""The notebook runs from the first cell to the last, and is kept without outputs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"


def test_kept_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs"), "clear all outputs before you commit"
        assert cell.get("execution_count") is None


def test_runs_and_its_loss_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel finds this tree, as the tests do.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    book = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(book, timeout=300, resources=where).execute()
    printed = "".join(o.get("text", "") for c in book.cells for o in c.get("outputs", []))
    assert "zero-shot ['" in printed
    losses = re.findall(r"^step \d+ loss bg ([\d.]+) el ([\d.]+)$", printed, re.MULTILINE)
    assert len(losses) == 4
    assert all(float(last) < float(first) for first, last in zip(losses[0], losses[-1], strict=True))
