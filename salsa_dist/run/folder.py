"""The paths of all files in a run's folder. No other module names one.

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


class _At:
    """A path in the folder of a run."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __get__(self, run: RunFolder, owner: object = None) -> Path:
        return run.path.joinpath(*self.names)


@dataclass(frozen=True)
class RunFolder:
    """The paths in the folder of one run."""

    path: Path

    # Folders that a run has; nothing below them is a run of its own.
    FOLDERS = (
        *("adapters", "evaluation", "last", "logs", "prefix"),
        *("ranks", "snapshots", "state", "tensorboard"),
    )

    config = _At("config.yaml")
    events = _At("events.jsonl")
    lock = _At("lock.json")
    ranks = _At("ranks")
    state = _At("state")
    halving = _At("halving.json")
    pass_limit = _At("pass_limit.json")
    adapters = _At("adapters")
    last = _At("last")  # adapters after their last step, where `adapters` has those best on dev
    evaluation = _At("evaluation")
    transcripts_settings = _At("evaluation", "settings.json")
    evaluation_summary = _At("evaluation", "summary.json")
    report = _At("report.json")
    prefix = _At("prefix")
    logs = _At("logs")
    snapshots = _At("snapshots")
    submit = _At("submit.sh")
    job = _At("job.json")

    def command(self, verb: str) -> str:
        """The command that makes its files again, for errors."""
        return f"salsa-dist {verb} {self.config}"

    def adapter(self, name: str) -> Path:
        """The folder of one adapter."""
        return self.adapters / name

    def transcripts(self) -> list[Path]:
        """All transcript files, of every window and rank, sorted by name."""
        return sorted(self.evaluation.glob("*.jsonl"))
