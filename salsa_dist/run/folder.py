"""A run's folder: where each of its files lies. Nothing else names one.

    RUN/
    ├── config.yaml                       the whole config: run/start.py
    ├── events.jsonl                      what happened: run/events.py
    ├── lock.json, ranks/rank-0003.json   while it runs: run/lock.py, run/watchdog.py
    ├── state/[NAME/]step-….safetensors   to go on from: training/state.py
    ├── halving.json                      which adapters were dropped: training/halving.py
    ├── pass_limit.json                   clips that fit one pass: training/pass_limit.py
    ├── adapters/NAME/                    one folder an adapter: methods/
    ├── evaluation/                       settings.json: evaluation/kept.py; window30-rank0.jsonl:
    │                                     evaluation/transcripts.py; summary.json:
    │                                     evaluation/summary.py
    ├── report.html, .json, .csv, .tex    report/write.py
    ├── prefix/                           outputs of the unsteered prefix: placement/kept_prefix.py
    ├── tensorboard/                      curves: run/trackers.py
    ├── logs/JOB/                         launch.json, ended.json: runs/launches.py;
    │                                     JOB_RANK_failure.json: run/failure_file.py
    ├── snapshots/, submit.sh             code and config of each launch: launch/snapshot.py
    └── job.json                          of a sweep's job: sweeps/folder.py

The module named is the only one that reads and writes the file. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The paths in the folder of one run."""

    path: Path

    # Folders that a run has; nothing below them is a run of its own.
    FOLDERS = (
        *(
            "adapters",
            "evaluation",
            "last",
            "logs",
            "prefix",
            "ranks",
            "snapshots",
            "state",
            "tensorboard",
        ),
    )

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    def command(self, verb: str) -> str:
        """The command that makes its files again, for errors."""
        return f"salsa-dist {verb} {self.config}"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / "lock.json"

    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def halving(self) -> Path:
        return self.path / "halving.json"

    @property
    def pass_limit(self) -> Path:
        return self.path / "pass_limit.json"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def last(self) -> Path:
        """Of adapters as they were after their last step, where `adapters` has those best on dev."""
        return self.path / "last"

    def adapter(self, name: str) -> Path:
        return self.adapters / name

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def transcripts(self) -> list[Path]:
        """Of every window and rank so far, by name."""
        return sorted(self.evaluation.glob("*.jsonl"))

    @property
    def transcripts_settings(self) -> Path:
        return self.evaluation / "settings.json"

    @property
    def evaluation_summary(self) -> Path:
        return self.evaluation / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def prefix(self) -> Path:
        return self.path / "prefix"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def submit(self) -> Path:
        return self.path / "submit.sh"

    @property
    def job(self) -> Path:
        return self.path / "job.json"
