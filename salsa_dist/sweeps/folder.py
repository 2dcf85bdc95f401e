"""A sweep's folder: jobs that are ordinary runs, and what became of their adapters.

    SWEEP/
    ├── jobs/<id>/
    │   ├── job.json         {"schema": …, "adapters": {name: identity}}
    │   └── config.yaml, events.jsonl, state/, adapters/NAME/ …      an ordinary run
    ├── prefix/              what lies below first steered layers, where it is kept on disk
    ├── results.json
    └── results.csv

An adapter is known by its identity, a hash of all that decides its vectors: its settings, the base's
revision, the shard list. So what is there is found again whatever the sweep file names it, and only
what is missing goes into new jobs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from salsa_dist.errors import UserError
from salsa_dist.new_folder import made_beside

SCHEMA = "salsa-dist/sweep-job/1"
RESULTS_SCHEMA = "salsa-dist/sweep-results/1"


@dataclass(frozen=True)
class JobFolder:
    """One job on disk: identity of each of its adapters, by name."""

    path: Path
    adapters: dict[str, str]

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def done(self) -> bool:
        """All its adapters are saved, which a run does at its end."""
        return all((self.path / "adapters" / n / "adapter.json").is_file() for n in self.adapters)

    def events(self) -> list[dict[str, Any]]:
        """What the run told, half a line at the end left out."""
        try:
            text = (self.path / "events.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        try:
            return [json.loads(line) for line in whole]
        except ValueError as e:
            raise UserError(f"{self.path / 'events.jsonl'} is damaged ({e})") from None

    def dropped(self) -> dict[str, int]:
        """Adapters that halving stopped, and the steps that they made."""
        path = self.path / "halving.json"
        if not path.is_file():
            return {}
        rungs = json.loads(path.read_text(encoding="utf-8"))["rungs"]
        return {name: rung["step"] for rung in rungs for name in rung["dropped"]}


def job_folders(sweep: Path) -> list[JobFolder]:
    """The jobs that are there, by name of their folder."""
    found = []
    for path in sorted((sweep / "jobs").glob("*/job.json")):
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["schema"] != SCHEMA:
                raise ValueError(f"its schema is {tree['schema']!r}")
            found.append(JobFolder(path.parent, dict(tree["adapters"])))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged ({e}): remove that job's folder") from None
    return found


def make_job(sweep: Path, identities: Mapping[str, str], config: Mapping[str, Any]) -> JobFolder:
    """Write a new job's folder; its name comes from its adapters.

    Args:
        identities: by adapter name.
        config: settings tree; the run's folder is filled in.
    """
    digest = hashlib.sha256(json.dumps(sorted(identities.values())).encode()).hexdigest()
    path = sweep / "jobs" / f"job-{digest[:8]}"
    if not (path / "job.json").is_file():
        with made_beside(path) as folder:
            text = yaml.safe_dump({**config, "run": str(path)}, sort_keys=False, allow_unicode=True)
            (folder / "config.yaml").write_text(text, encoding="utf-8")
            job = {"schema": SCHEMA, "adapters": dict(identities)}
            (folder / "job.json").write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
    return JobFolder(path, dict(identities))


def result_rows(
    entries: Sequence[Mapping[str, Any]], identities: Sequence[str], jobs: Sequence[JobFolder]
) -> list[dict[str, Any]]:
    """One flat row an adapter: its settings, where it is, how far, and its scores as far as known.

    Args:
        entries: settings of each adapter.
        identities: of each.
    """
    facts: dict[str, dict[str, Any]] = {}
    for job in jobs:
        for name, identity in job.adapters.items():
            if identity not in facts or job.done:
                facts[identity] = {"job": job, "as": name}
    told = {job.path: _told(job) for job in jobs}
    rows = []
    for entry, identity in zip(entries, identities, strict=True):
        row: dict[str, Any] = {**entry, "identity": identity, "job": None, "state": "missing"}
        row |= dict.fromkeys(("steps", "train_loss", "dev_loss", "wer", "cer"))
        if identity in facts:
            job, name = facts[identity]["job"], facts[identity]["as"]
            row |= {"job": job.path.name, **told[job.path].get(name, {})}
            if job.done:
                row["state"] = "dropped" if name in job.dropped() else "done"
            else:
                row["state"] = "running" if told[job.path] else "waiting"
            row |= _scores(job, name)
        rows.append(row)
    return rows


def write_results(sweep: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`results.json` and `results.csv`, whole or not at all."""
    sweep.mkdir(parents=True, exist_ok=True)
    tree = {"schema": RESULTS_SCHEMA, "rows": rows}
    _replace(sweep / "results.json", json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    temporary = sweep / "results.csv.part"
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, sweep / "results.csv")


def _told(job: JobFolder) -> dict[str, dict[str, Any]]:
    """What the events say of each adapter: steps made, mean loss of its last ten, loss on dev clips."""
    losses: dict[str, dict[int, float]] = {}
    dev: dict[str, float] = {}
    for event in job.events():
        if event["event"] == "step":
            for name, values in event["adapters"].items():
                # A step made again after a stop counts once.
                losses.setdefault(name, {})[event["step"]] = values["loss"]
        elif event["event"] == "rung":
            dev |= event.get("dev_loss", {})  # halving by errors measures no loss
        elif event["event"] == "dev_loss":
            dev |= event["adapters"]
    told = {}
    for name, by_step in losses.items():
        last = [by_step[step] for step in sorted(by_step)[-10:] if by_step[step] is not None]
        mean = sum(last) / len(last) if last else math.nan
        told[name] = {
            "steps": max(by_step) + 1,
            "train_loss": mean if last else None,
            "dev_loss": dev.get(name),
        }
    return told


def _scores(job: JobFolder, name: str) -> dict[str, float | None]:
    """Error rates from the job's report, if it was evaluated; of the first window."""
    path = job.path / "report.json"
    if not path.is_file():
        return {}
    for row in json.loads(path.read_text(encoding="utf-8")).get("results", []):
        if row["adapter"] == name:
            return {"wer": row["wer"], "cer": row["cer"]}
    return {}


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
