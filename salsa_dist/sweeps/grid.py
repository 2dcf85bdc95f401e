"""A sweep file, and the adapters that it stands for.

sweep: runs/sweep               folder of the sweep
config: demo/demo.yaml          shared by all jobs: a config file, or its content written out here
overrides: {training.steps: 40}
grid:                           every combination is an adapter
  language: [bg, el]
  corpus: {tuxpaint: ~/shards/tuxpaint}      left out: the config's data.shards
  sites: ["encoder:last-half", "encoder:5"]
  rule: [salsa]
  lr: [0.01, 0.03]
  seed: [0]
  size: [10min, 1h, all]        speech to train on; the smaller ones lie inside the larger
  steps: [64, 256, 1024]        left out: the config's training.steps
include: [{language: bg, sites: llm}]        what is left out is the first of its list
exclude: [{language: el, lr: 0.03}]
jobs: {adapters: 64}

With `methods` (see `methods.py`) it is a comparison: the grid says languages, seeds, sizes and steps,
and `choosing.py` makes trials and final rows of them.

Experiment ── one adapter: name, corpus, language, sites, rule, lr, seed, minutes; method, label …
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from salsa_dist import places
from salsa_dist.config import (
    Config,
    Folder,
    HalvingConfig,
    Method,
    Rule,
    SalsaMethod,
    Section,
    Shards,
    explained,
    load_config,
    override,
    parse_config,
    read_yaml,
)
from salsa_dist.errors import UserError
from salsa_dist.sweeps.methods import MethodEntry, Tuning

_LONGEST_NAME = 80
_NOT_IN_ROWS = ("method", "label", "stage", "steps", "start_from", "seeds_of", "digests")


def _minutes(size: Any) -> float | None:
    """`10min` -> 10, `1h` -> 60, `all` -> None."""
    if size is None or isinstance(size, (int, float)):
        return size
    if size == "all":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(min|h)", str(size))
    if match is None:
        raise ValueError(f"{size!r} is no amount of speech: write 10min, 1h or all")
    return float(match[1]) * {"min": 1, "h": 60}[match[2]]


Minutes = Annotated[float | None, BeforeValidator(_minutes)]


class Grid(Section):
    language: list[str] = Field(min_length=1)
    corpus: dict[str, Shards] | None = None
    sites: list[str] | None = Field(None, min_length=1)
    rule: list[Rule] | None = Field(None, min_length=1)
    lr: list[float] | None = Field(None, min_length=1)
    seed: list[int] | None = Field(None, min_length=1)
    size: list[Minutes] = Field([None], min_length=1)
    steps: list[Annotated[int, Field(ge=1)]] | None = Field(None, min_length=1)


class Choice(Section):
    """Some of an adapter's settings: what `exclude` leaves out, or `include` adds."""

    language: str | None = None
    corpus: str | None = None
    sites: str | None = None
    rule: Rule | None = None
    lr: float | None = None
    seed: int | None = None
    size: Minutes = None
    steps: int | None = Field(None, ge=1)


class Jobs(Section):
    adapters: int = Field(64, ge=1, description="maximum number of adapters in one job")
    nodes: int = Field(1, ge=1, description="nodes of one job")
    ranks_per_node: int = Field(1, ge=1)
    at_once: int = Field(1, ge=1, description="parallel jobs, if the sweep runs on this machine")
    memory_gb: float | None = Field(
        None, gt=0, description="memory of one rank; null: its share of this machine's, or its GPU's"
    )


class Report(Section):
    """Texts for the report of a comparison."""

    title: str | None = None
    notes: str = Field(
        "", description="such as what was reduced, and why; an empty line starts a new paragraph"
    )


class SweepFile(Section):
    sweep: Folder = Field(description="folder of the sweep")
    config: Path | dict[str, Any] = Field(
        description="shared by all jobs: a config file, or its content"
    )
    overrides: dict[str, Any] = Field({})
    grid: Grid
    methods: list[MethodEntry] = Field([], description="methods to compare; none: train the grid")
    tuning: Tuning = Tuning()
    include: list[Choice] = Field([])
    exclude: list[Choice] = Field([])
    halving: HalvingConfig | None = Field(None, description="stop the worse adapters early")
    dev_clips: int = Field(32, ge=0, description="dev clips per language that adapters are measured on")
    jobs: Jobs = Jobs()
    report: Report = Report()

    @property
    def rate(self) -> str:
        """The error rate that adapters are compared by: cer, wer or mer; cer where it is the loss."""
        by: str = self.tuning.choose_by if self.methods else getattr(self.halving, "metric", "cer")
        return "cer" if by == "loss" else by


@dataclass(frozen=True)
class Experiment:
    """One adapter of a sweep, or one row of its comparison.

    Attributes:
        corpus: "" for the config's own shards.
        lr: None where the method has none, or estimates it.
        seed: None where the method has none.
        minutes: of training speech; None for all.
        label: of its method in the report.
        stage: "" of a grid; "try", measured on dev; "final", measured on the split of the config.
        steps: None: the config's training.steps.
        seeds_of: the rows whose vectors' mean it is; it is not trained.
        digests: of those vectors, once they are there.
    """

    name: str
    corpus: str
    language: str
    sites: str
    rule: str
    lr: float | None
    seed: int | None
    minutes: float | None
    method: Method = field(default_factory=SalsaMethod)
    label: str = ""
    stage: str = ""
    steps: int | None = None
    start_from: Path | None = None
    seeds_of: tuple[Experiment, ...] = ()
    digests: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The settings as a flat row of a table."""
        row = {k: v for k, v in vars(self).items() if k not in _NOT_IN_ROWS}
        if not self.stage:
            return row
        of_method = {k: getattr(self.method, k, None) for k in ("kind", "scale", "examples", "choose")}
        return {**row, "stage": self.stage, "method": self.label, **of_method}


@dataclass(frozen=True)
class Sweep:
    """A sweep file with its adapters and what their jobs share.

    Attributes:
        config: the config of all jobs; its adapters mean nothing.
        corpora: name to folder of shards; "" is the config's own.
    """

    path: Path
    file: SweepFile
    config: Config
    corpora: dict[str, places.Folder]
    experiments: list[Experiment]

    def labels(self) -> list[str]:
        """Names of its methods, in the file's order."""
        return [entry.label(self.config.steering) for entry in self.file.methods]

    @property
    def final_steps(self) -> list[int]:
        """Training steps of a comparison's final rows: each trained method has a row for each."""
        return self.file.grid.steps or [self.config.training.steps]

    @property
    def trial_steps(self) -> int:
        """Training steps of a comparison's trials."""
        return self.file.tuning.steps or max(self.final_steps)


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file and the config that it names.

    Raises:
        UserError: it can't be read, or holds what a sweep file does not; everything wrong is listed.
    """
    path = Path(path)
    tree = read_yaml(path, "sweep", "sweep, config, grid …")
    try:
        file = SweepFile.model_validate(tree)
    except ValidationError as e:
        raise UserError(f"sweep {path}: {explained(e, SweepFile)}") from e
    config = _shared_config(file, path)
    corpora = file.grid.corpus or {"": config.data.shards}
    experiments = [] if file.methods else _experiments(file, config, corpora)
    if file.halving and len({e.steps or config.training.steps for e in experiments}) > 1:
        raise UserError(f"sweep {path}: halving needs adapters of equal steps: remove steps or halving")
    return Sweep(path, file, config, corpora, experiments)


def _shared_config(file: SweepFile, path: Path) -> Config:
    """The config of all jobs, with one adapter so that it is whole."""
    one = [{"name": "any", "language": file.grid.language[0]}]
    changes = {"run": str(file.sweep), **file.overrides, "training.dev_clips": file.dev_clips}
    if isinstance(file.config, Path):
        # As given, or else beside the sweep file.
        given = Path(file.config).expanduser()
        shared = given if given.is_file() else path.parent / given
        tree = load_config(shared).model_dump(mode="json")
    else:
        tree = dict(file.config)
    tree = {"run": str(file.sweep), **tree, "adapters": one}
    for key, value in changes.items():
        override(tree, f"{key}={json.dumps(value)}")
    tree["training"] = {**tree.get("training", {})}
    tree["training"]["halving"] = file.halving.model_dump() if file.halving else None
    if tree["training"].get("silence_stride", "auto") == "auto":
        tree["training"]["silence_stride"] = 1  # the same for all that are compared
    config = parse_config(tree, f"sweep {path}, config")
    if config.training.epochs is not None:
        raise UserError(
            f"sweep {path}: training.epochs gives adapters unequal steps, and a sweep compares them at "
            "equal ones: set training.steps"
        )
    return config


def _experiments(
    file: SweepFile, config: Config, corpora: dict[str, places.Folder]
) -> list[Experiment]:
    grid = file.grid
    axes: dict[str, list[Any]] = {
        "corpus": list(corpora),
        "language": grid.language,
        "sites": grid.sites or [config.steering.sites],
        "rule": grid.rule or [config.steering.rule],
        "lr": grid.lr or [None],
        "seed": grid.seed or [config.training.seed],
        "size": list(grid.size),
        "steps": grid.steps or [None],
    }
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    chosen = [_with_rate(c, config) for c in chosen]
    steps = config.training.steps
    chosen = [c for c in chosen if not any(_matches(c, out, steps) for out in file.exclude)]
    first = {axis: values[0] for axis, values in axes.items()}
    included = [{**first, **choice.model_dump(exclude_unset=True)} for choice in file.include]
    chosen += [_with_rate(c, config) for c in included]
    return [_experiment(choice) for choice in chosen]


def _with_rate(choice: dict[str, Any], config: Config) -> dict[str, Any]:
    """The choice with the learning rate of its rule, where the sweep names none."""
    if choice["lr"] is not None:
        return choice
    return {**choice, "lr": config.rate(config.method, choice["rule"])}


def _matches(chosen: dict[str, Any], out: Choice, steps: int) -> bool:
    own = {**chosen, "steps": chosen["steps"] or steps}
    return all(own[axis] == value for axis, value in out.model_dump(exclude_unset=True).items())


def _experiment(choice: dict[str, Any]) -> Experiment:
    minutes = choice.pop("size")
    rate = [] if choice["lr"] is None else [f"lr{choice['lr']:g}"]
    what = [choice["sites"], choice["rule"], *rate]
    name = experiment_name(
        choice["corpus"], choice["language"], what, choice["seed"], minutes, choice["steps"]
    )
    return Experiment(name=name, minutes=minutes, **choice)


def experiment_name(
    corpus: str,
    language: str,
    what: Sequence[str],
    seed: int | None,
    minutes: float | None,
    steps: int | None = None,
) -> str:
    """A readable name of an adapter, fit for a folder."""
    parts = [
        *([corpus] if corpus else []),
        language,
        *what,
        *([] if seed is None else [f"s{seed}"]),
        *([] if minutes is None else [f"{minutes:g}min"]),
        *([] if steps is None else [f"{steps}steps"]),
    ]
    plain = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", str(part)).strip("-") for part in parts)
    # A name says all that it can; what was lost of it is told apart by a short hash.
    lossy = any(re.search(r"[^A-Za-z0-9.:-]", str(part)) for part in parts)
    if lossy or len(plain) > _LONGEST_NAME:
        tail = hashlib.sha256(repr(parts).encode()).hexdigest()[:6]
        plain = f"{plain[: _LONGEST_NAME - 7]}-{tail}"
    return plain
