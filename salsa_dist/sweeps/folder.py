"""A sweep's folder: its jobs, which are ordinary runs, and the state of their adapters.

    SWEEP/
    ├── jobs/<id>/
    │   ├── job.json         {"schema": …, "adapters": {name: identity}, "verbs": ["train", "evaluate"]}
    │   └── config.yaml, events.jsonl, state/, adapters/NAME/ …      an ordinary run
    ├── prefix/              what lies below first steered layers, where it is kept on disk
    ├── results.json
    ├── results.csv
    ├── chosen.json          of a comparison: what was tried on dev, and what was taken
    └── report/              of a comparison: its final rows

An adapter is known by its identity, a hash of all that decides its vectors: its settings, the base's
revision, the shard list. So what is there is found again whatever the sweep file names it, and only
what is missing goes into new jobs.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from salsa_dist import json_file
from salsa_dist.config import load_config
from salsa_dist.errors import UserError
from salsa_dist.evaluation import transcripts
from salsa_dist.methods import tuned_file
from salsa_dist.metrics import error_rates
from salsa_dist.metrics.normalise import Rules
from salsa_dist.new_folder import made_beside
from salsa_dist.run import events
from salsa_dist.run.folder import RunFolder
from salsa_dist.steering.adapter_folder import FACTS
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training import halving
from salsa_dist.whole_file import replace_file

SCHEMA = "salsa-dist/sweep-job/3"
SCHEMA_0_1 = "salsa-dist/sweep-job/2"  # its identities were made otherwise
_ADVICE = "remove that job's folder"
RESULTS_SCHEMA = "salsa-dist/sweep-results/1"


@dataclass(frozen=True)
class JobFolder:
    """One job on disk: the identity of each adapter, by name, and what the job does with them."""

    path: Path
    adapters: dict[str, str]
    verbs: tuple[str, ...]

    @property
    def config(self) -> Path:
        return RunFolder(self.path).config

    @property
    def done(self) -> bool:
        return not self.to_do()

    def to_do(self) -> list[str]:
        """Unfinished verbs: `train` is done when adapters are saved, `evaluate` by its summary."""
        made = {
            "train": self.whole,
            "evaluate": RunFolder(self.path).evaluation_summary.is_file(),
        }
        return [verb for verb in self.verbs if not made[verb]]

    @property
    def whole(self) -> bool:
        """Whether all its adapters are there."""
        return all(self._has_adapter(name) for name in self.adapters)

    def _has_adapter(self, name: str) -> bool:
        folder = RunFolder(self.path).adapter(name)
        return (folder / FACTS).is_file() or (folder / tuned_file.NAME).is_file()

    @property
    def begun(self) -> bool:
        return RunFolder(self.path).events.is_file()

    def events(self) -> list[dict[str, Any]]:
        """The events of the run, without an incomplete last line."""
        return events.read(self.path)

    def dropped(self) -> dict[str, int]:
        """Adapters that halving stopped, and the steps that they made."""
        return halving.dropped(self.path)


def job_folders(sweep: Path, older: Mapping[str, str] = MappingProxyType({})) -> list[JobFolder]:
    """The jobs that are there, by name of their folder.

    Args:
        older: see `older_identities`.
    """
    found = []
    for path in sorted((sweep / "jobs").glob("*/job.json")):
        try:
            tree = json_file.read(path, (SCHEMA, SCHEMA_0_1), _ADVICE)
            adapters = dict(tree["adapters"])
            if tree["schema"] == SCHEMA_0_1:
                config = yaml.safe_load(RunFolder(path.parent).config.read_text(encoding="utf-8"))
                adapters = {n: older.get(known_by(own, config), own) for n, own in adapters.items()}
            found.append(JobFolder(path.parent, adapters, tuple(tree["verbs"])))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged ({e}): {_ADVICE}") from e
    return found


def known_by(older: str, config: Mapping[str, Any]) -> str:
    """An identity in that release's format, with the limits of `config`'s job, which it lacks."""
    return f"{older} {config['training']['max_loss']} {config['training']['max_skipped']}"


def make_job(
    sweep: Path,
    identities: Mapping[str, str],
    config: Mapping[str, Any],
    verbs: Sequence[str] = ("train",),
    stage: str = "job",
    adapters: Sequence[SteeringVectors] = (),
) -> JobFolder:
    """Write a new job's folder; its name comes from its adapters.

    Args:
        identities: by adapter name.
        config: settings tree; the run's folder is filled in.
        verbs: commands that it takes, in their order.
        stage: first part of the folder's name.
        adapters: those that it does not train, by their names.
    """
    digest = hashlib.sha256(json.dumps(sorted(identities.values())).encode()).hexdigest()
    path = sweep / "jobs" / f"{stage}-{digest[:8]}"
    if not RunFolder(path).job.is_file():
        with made_beside(path) as folder:
            text = yaml.safe_dump({**config, "run": str(path)}, sort_keys=False, allow_unicode=True)
            replace_file(RunFolder(folder).config, text)
            job = {"adapters": dict(identities), "verbs": list(verbs)}
            json_file.write(RunFolder(folder).job, SCHEMA, job)
    for adapter in adapters:
        adapter.save(RunFolder(path).adapter(adapter.name))
    return JobFolder(path, dict(identities), tuple(verbs))


def result_rows(
    experiments: Sequence[Mapping[str, Any]], identities: Sequence[str], jobs: Sequence[JobFolder]
) -> list[dict[str, Any]]:
    """One flat row per adapter: its settings, folder, progress, and its scores if they are known.

    Args:
        experiments: settings of each adapter.
        identities: of each.
    """
    facts: dict[str, dict[str, Any]] = {}
    for job in jobs:
        for name, identity in job.adapters.items():
            if identity not in facts or job.done:
                facts[identity] = {"job": job, "as": name}
    told = {job.path: _told(job) for job in jobs}
    rows = []
    for experiment, identity in zip(experiments, identities, strict=True):
        row: dict[str, Any] = {**experiment, "identity": identity, "job": None, "state": "missing"}
        row |= dict.fromkeys(("steps", "train_loss", "dev_loss", "wer", "cer", "normaliser"))
        if identity in facts:
            job, name = facts[identity]["job"], facts[identity]["as"]
            row |= {"job": job.path.name, **told[job.path].get(name, {})}
            if job.done:
                row["state"] = "dropped" if name in job.dropped() else "done"
            else:
                row["state"] = "running" if job.begun else "waiting"
            row |= _scores(job, name, row["language"])
        rows.append(row)
    return rows


def write_results(sweep: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`results.json` and `results.csv`, whole or not at all."""
    sweep.mkdir(parents=True, exist_ok=True)
    json_file.write(sweep / "results.json", RESULTS_SCHEMA, {"rows": rows})
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    replace_file(sweep / "results.csv", table.getvalue())


def _told(job: JobFolder) -> dict[str, dict[str, Any]]:
    """Facts from each adapter's events: finished steps, mean loss of the last ten, dev loss."""
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
    told: dict[str, dict[str, Any]] = {name: {"dev_loss": loss} for name, loss in dev.items()}
    for name, by_step in losses.items():
        last = [by_step[step] for step in sorted(by_step)[-10:] if by_step[step] is not None]
        mean = sum(last) / len(last) if last else math.nan
        told[name] = {
            "steps": max(by_step) + 1,
            "train_loss": mean if last else None,
            "dev_loss": dev.get(name),
        }
    return told


def _scores(job: JobFolder, name: str, language: str) -> dict[str, float | str | None]:
    """Error rates of a job at the first window, and the normaliser: from its evaluation when that has
    ended, else from its report if there is one.
    """
    if "evaluate" in job.verbs:
        return _decoded(job, name, language) if job.done else {}
    path = RunFolder(job.path).report
    if not path.is_file():
        return {}
    tree = json.loads(path.read_text(encoding="utf-8"))
    for row in tree.get("results", []):
        if (row["adapter"], row["language"]) == (name, language):
            said = tree.get("definitions", {}).get("normaliser")
            return {"wer": row["wer"], "cer": row["cer"], "normaliser": said}
    return {}


def _decoded(job: JobFolder, name: str, language: str) -> dict[str, float | str | None]:
    """Error rates of an adapter's transcripts, or where the job has none of the language's."""
    every = [line for line in transcripts.read(job.path) if line["language"] == language]
    every = [line for line in every if line.get("scale", 1.0) == 1]
    # The base as it is has no adapter; of several windows the shortest counts.
    own = [line for line in every if line["adapter"] == name]
    own = own or [line for line in every if line["adapter"] is None]
    shortest = min((line["window_s"] for line in own), default=None)
    last = {line["key"]: line for line in own if line["window_s"] == shortest}
    rules = Rules.of(load_config(job.config).evaluation)
    scored = [
        error_rates.score(x["reference"], x["hypothesis"], language, rules=rules) for x in last.values()
    ]
    return {
        **{metric: error_rates.corpus_rate(scored, metric) for metric in error_rates.METRICS},
        "normaliser": str(rules),
    }
