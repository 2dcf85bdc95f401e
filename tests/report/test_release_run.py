"""A run that the release 0.1 made: its report has the keys and numbers that the release gave it.

`release_run/run` is the folder of a run, its transcripts given errors; `release_run/*.json` are what
`salsa-dist report run --by age` wrote of it, with and without `--out`.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from salsa_dist.report.comparison import compare
from salsa_dist.report.one_run import build_report
from salsa_dist.report.write import write_report

RELEASE = Path(__file__).parent / "release_run"
_PARTS = ("cells", "tests", "by", "forgetting", "sites", "norms", "losses")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(RELEASE / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return Path("run")


def loaded(file: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return tree


def reported(run: Path) -> dict[str, Any]:
    return build_report(run, by=["age"])


def compared(run: Path) -> dict[str, Any]:
    return compare([run], by=["age"])


def missing(old: Any, new: Any, where: str = "") -> list[str]:
    """What of `old` is not in `new`, or has another value there."""
    if isinstance(old, dict) and isinstance(new, dict):
        gone = [f"{where}.{key}" for key in old.keys() - new.keys()]
        return gone + [
            x for k in old.keys() & new.keys() for x in missing(old[k], new[k], f"{where}.{k}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [x for i, (a, b) in pairs for x in missing(a, b, f"{where}[{i}]")]
    return [] if old == pytest.approx(new, nan_ok=True) else [f"{where}: {old!r}, now {new!r}"]


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = (
        "field",
        "value",
        "language",
        "trained_in",
        "method",
        "window_s",
        "metric",
        "seed",
        "sites",
    )
    return {json.dumps([row.get(name) for name in names]): row for row in rows}


def test_every_key_and_number_of_the_releases_report_is_there(run: Path) -> None:
    old, new = loaded(RELEASE / "report.json"), reported(run)
    assert missing({**old, "definitions": {}}, new) == []
    # One number, two names until the next schema.
    assert all(a["trained_numbers"] == a["trained_parameters"] for a in new["adapters"])


def test_every_key_and_number_of_the_releases_comparison_is_there(run: Path) -> None:
    old, new = loaded(RELEASE / "comparison.json"), compared(run)
    for name in _PARTS:
        assert missing(by_name(old.pop(name)), by_name(new[name]), name) == []
    assert missing({**old, "notes": [], "definitions": {}}, {**new, "notes": []}) == []


def test_a_runs_report_is_a_comparison_of_one_run(run: Path) -> None:
    def what(cell: dict[str, Any]) -> tuple[Any, ...]:
        return (
            *(cell[k] for k in ("language", "window_s", "kind", "trained_numbers")),
            cell["seeds"][0],
        )

    report, comparison = reported(run), compared(run)
    cells = {what(cell): cell for cell in report["cells"]}
    assert len(comparison["cells"]) == 7
    assert any(cell["cer"]["gain"] and cell["cer"]["low"] for cell in comparison["cells"])
    for cell in comparison["cells"]:
        assert {**cells[what(cell)], "method": ""} == {**cell, "method": ""}
    assert {k: v for k, v in report.items() if k in ("untouched", "cost", "split", "base", "runs")} == {
        k: v for k, v in comparison.items() if k in ("untouched", "cost", "split", "base", "runs")
    }
    # The older rows have the same intervals.
    rows = {(r["language"], r["window_s"], r["adapter"] or "zero-shot"): r for r in report["results"]}
    for cell in report["cells"]:
        row = rows[cell["language"], cell["window_s"], cell["method"]]
        for metric in ("wer", "cer"):
            assert (row[metric], row[f"{metric}_low"], row[f"{metric}_high"]) == tuple(
                cell[metric][k] for k in ("rate", "low", "high")
            )


def test_who_decoded_what_and_when_changes_no_byte(run: Path) -> None:
    def written() -> list[bytes]:
        write_report(run, by=["age"])
        files = (run / f"report.{kind}" for kind in ("json", "csv", "tex", "html"))
        return [*(file.read_bytes() for file in files), json.dumps(compared(run)).encode()]

    before = written()
    transcripts = sorted((run / "evaluation").glob("*.jsonl"))
    lines = [line for file in transcripts for line in file.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(lines)
    for file in transcripts:
        file.unlink()
    for rank in range(3):
        own = lines[rank::3] + lines[:5]  # a resume may decode a clip again
        (run / "evaluation" / f"window2-rank{rank}.jsonl").write_text("\n".join(own) + "\n")
    assert written() == before
