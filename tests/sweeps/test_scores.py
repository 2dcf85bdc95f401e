"""A sweep's table takes an adapter's scores from its job's report, in the adapter's own language."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from salsa_dist.sweeps.folder import JobFolder, result_rows

RELEASE = Path(__file__).parents[1] / "report" / "release_run"


def test_scores_are_of_the_language_that_was_learned(tmp_path: Path) -> None:
    job = tmp_path / "job"
    shutil.copytree(RELEASE / "run", job)
    shutil.copy(RELEASE / "report.json", job)
    # Where forgetting was measured, the adapter has rows in other languages, and those come first.
    rows = [r for r in json.loads((job / "report.json").read_text())["results"] if r["adapter"] == "el"]
    assert rows[0]["language"] == "bg"
    own = next(row for row in rows if row["language"] == "el")
    (row,) = result_rows([{"language": "el"}], ["id"], [JobFolder(job, {"el": "id"}, ("train",))])
    assert (row["wer"], row["cer"]) == (own["wer"], own["cer"])
    assert row["cer"] != rows[0]["cer"]
    tree = json.loads((job / "report.json").read_text())
    tree["definitions"] = {"normaliser": "whisper-basic"}  # as reports since then say
    (job / "report.json").write_text(json.dumps(tree))
    (row,) = result_rows([{"language": "el"}], ["id"], [JobFolder(job, {"el": "id"}, ("train",))])
    assert row["normaliser"] == "whisper-basic"
