"""A column of a manifest, all the way: shards, transcripts, the report's rows by its values."""

import csv
import json
from pathlib import Path

from clips import wave
from tiny import make_config

from salsa_dist.cli import report, run_command
from salsa_dist.config import load_config
from salsa_dist.corpus.build import build


def test_results_by_the_grade_in_a_manifest(tmp_path: Path, tiny_base: Path) -> None:
    rows = []
    for i in range(24):
        wave(tmp_path / f"in/{i}.wav", hz=300 + 20 * i)
        split = ("train", "dev", "test", "test")[i % 4]
        grade = ("K", "1", "2")[i % 3]
        rows.append({"audio": f"{i}.wav", "text": f"da {i}", "split": split, "grade": grade})
    manifest = tmp_path / "in/all.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [*rows[0], "lang"])
        table.writeheader()
        table.writerows({**row, "lang": "bg"} for row in rows)
    build("table", manifest, tmp_path / "shards")
    path = make_config(
        tmp_path,
        tiny_base,
        tmp_path / "shards",
        method={"kind": "zero-shot"},
        adapters=[{"name": "bg", "language": "bg"}],
    )
    run_command("evaluate", str(path), [])
    run = load_config(path).run
    report([run], by=["grade"])
    tree = json.loads((run / "report.json").read_text(encoding="utf-8"))
    counts = {row["value"]: row["utterances"] for row in tree["by"]}
    assert counts == {"1": 4, "2": 4, "K": 4}
    report([run], out=tmp_path / "out", by=["grade"])
    tree = json.loads((tmp_path / "out/comparison.json").read_text(encoding="utf-8"))
    assert {row["value"]: row["utterances"] for row in tree["by"]} == counts
