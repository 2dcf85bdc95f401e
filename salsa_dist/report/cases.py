"""Sorts transcripts into cases: one method in one language, split and window, all seeds.

    RUN, RUN, … ──read_run──> RunFiles ──read_cases──> [Case, …]

    Case
    ├── language, split, method, window_s, kind, sites, rule, minutes, steps     what it is
    ├── learned       the languages that it was trained in; `language` is another in a forgetting row
    ├── seeds         seed -> scored utterances by key
    ├── texts         seed -> hypotheses by key
    ├── vectors       seed -> the adapter's vectors by site
    └── losses        seed -> (step, loss) of its training

A method's name holds what was chosen of it (rule, sites, rank, minutes), not its learning rate: of
several rates one must have been chosen on dev before; two of the same seed are an error. In the report
of one run each adapter goes by its own name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salsa_dist.config import AdapterSettings, Config
from salsa_dist.errors import UserError
from salsa_dist.evaluation.transcripts import BARE, ZERO_SHOT, Hypothesis
from salsa_dist.methods.registry import label_of
from salsa_dist.metrics.error_rates import Scored, score
from salsa_dist.metrics.normalise import Rules
from salsa_dist.report.run_files import RunFiles, read_run
from salsa_dist.run.folder import RunFolder


@dataclass(frozen=True)
class Case:
    """One method in one language, split and window.

    Attributes:
        kind: the method's kind in the config, such as `salsa`.
        adapter: its name in the run, that of the first seed; None for zero-shot.
        compared: whether this is the window that adapters are compared at; true for zero-shot.
        trained: numbers that were trained, 0 for none.
        rule: update rule of trained steering vectors; empty for other methods.
        minutes: of speech that it was trained on; None where that is not known.
        steps: of its training; None where there are none.
        family: its name without the minutes and steps.
        few_minutes: whether it had a part of the speech.
        few_steps: whether it had fewer steps than the longest of its family.
        averaged: whether it is a mean of adapters, and was not trained itself.
    """

    language: str
    split: str
    method: str
    window_s: float
    kind: str
    adapter: str | None = None
    compared: bool = True
    trained: int = 0
    sites: str = ""
    rule: str = ""
    minutes: float | None = None
    steps: int | None = None
    family: str = ""
    few_minutes: bool = False
    few_steps: bool = False
    averaged: bool = False
    learned: tuple[str, ...] = ()
    seeds: dict[int, dict[str, Scored]] = field(default_factory=dict)
    texts: dict[int, dict[str, Hypothesis]] = field(default_factory=dict)
    vectors: dict[int, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    losses: dict[int, list[tuple[int, float | None]]] = field(default_factory=dict)

    @property
    def forgets(self) -> bool:
        """Whether it was decoded in a language that it was not trained in."""
        return self.method != ZERO_SHOT and self.language not in self.learned

    @property
    def layer(self) -> tuple[str, int] | None:
        """Component and number of the layer, if only one layer is steered."""
        component, _, rest = self.sites.partition(":")
        return (component, int(rest)) if self.rule and rest.isdigit() else None

    @property
    def smaller(self) -> bool:
        """Whether its family has a case of more speech or steps, which stands for it beside others."""
        return self.few_minutes or self.few_steps

    def part(self, keys: Collection[str]) -> Case:
        """Only these utterances."""
        return replace(
            self,
            seeds={
                seed: {k: u for k, u in own.items() if k in keys} for seed, own in self.seeds.items()
            },
        )


def read_runs(runs: Sequence[Path]) -> list[RunFiles]:
    """The files of runs that can be compared.

    Raises:
        UserError: a run is missing, damaged or not evaluated, or of another base or split.
    """
    files = [read_run(Path(run)) for run in runs]
    first = files[0]
    problems = []
    for run, file in zip(runs, files, strict=True):
        if not file.hypotheses:
            problems.append(f"{run} was not evaluated: {RunFolder(Path(run)).command('evaluate')}")
        if file.start.base.revision != first.start.base.revision:
            problems.append(f"{run} is of base revision {file.start.base.revision}")
        if file.config.evaluation.split != first.config.evaluation.split:
            problems.append(f"{run} was evaluated on {file.config.evaluation.split}")
        if Rules.of(file.config.evaluation) != Rules.of(first.config.evaluation):
            problems.append(
                f"{run} is scored with evaluation.normaliser={file.config.evaluation.normaliser} and "
                f"alike={file.config.evaluation.alike}"
            )
    if problems:
        raise UserError(
            f"these runs can't be compared with {runs[0]} (revision {first.start.base.revision}, split "
            f"{first.config.evaluation.split}): " + "; ".join(problems)
        )
    return files


def read_cases(
    runs: Sequence[Path],
    files: Sequence[RunFiles],
    names: Mapping[tuple[Path, str], str] | None = None,
    *,
    each: bool = False,
) -> list[Case]:
    """All cases in a fixed order, including those of forgetting and of other windows.

    By language and split; in each zero-shot first, then methods in the order of runs and adapters.

    Args:
        names: by run and adapter, what it is compared as but for its minutes and steps, others being
            left out; None: all adapters, by what was chosen of their method.
        each: every adapter goes by its own name, and transcripts of all splits count.

    Raises:
        UserError: one method and seed is there twice, or its seeds were decoded on different clips.
    """
    cases: dict[tuple[Any, ...], Case] = {}
    lengths = _lengths(runs, files, names)
    # What a run of the base alone decoded is the zero-shot of all; other runs' is only there beside it.
    alone = any(not file.config.method.adapts for file in files)
    for run, file in zip(runs, files, strict=True):
        rules = Rules.of(file.config.evaluation)
        settings = {a.name: a for a in file.config.adapter_settings()}
        groups: dict[tuple[str, str, str | None, float], list[Hypothesis]] = defaultdict(list)
        for h in file.hypotheses:
            if h.method != BARE and (each or h.split == file.config.evaluation.split):
                groups[h.language, h.split, h.adapter, h.window_s].append(h)
        places = [None, *settings]
        for key in sorted(groups, key=lambda k: (places.index(k[2]) if k[2] in places else -1, *k[3:])):
            language, split, adapter, window = key
            hypotheses = groups[key]
            if adapter is None:
                if alone and file.config.method.adapts:
                    continue
                made, seed = (
                    Case(language, split, ZERO_SHOT, window, ZERO_SHOT, family=ZERO_SHOT),
                    0,
                )
            elif adapter not in settings:
                raise UserError(
                    f"{run} has transcripts of adapter {adapter!r}, which its config.yaml lacks: "
                    f"remove {run}/evaluation and evaluate again"
                )
            elif names is not None and (run, adapter) not in names:
                continue
            else:
                own = settings[adapter]
                windows = {w for x, s, a, w in groups if (x, s, a) == key[:3]}
                family = _family(run, file, own, names)
                most = None if each else lengths.get((family, own.languages))
                shown = adapter if each else family
                made = _case(file, own, shown, hypotheses[0], named=each, most=most)
                made = replace(made, compared=window == _compared_window(file.config, windows))
                seed = own.seed
            case = cases.setdefault((language, split, made.method, window, made.learned), made)
            if seed in case.seeds and adapter is not None:
                raise UserError(
                    f"{run}: {made.method} in {language} with seed {seed} is there twice: choose the "
                    "learning rate on dev, and compare that run alone"
                )
            case.texts[seed] = {h.key: h for h in hypotheses}
            case.seeds[seed] = {h.key: scored(h, rules) for h in hypotheses}
            if adapter is not None:
                case.vectors[seed] = next((a.vectors for a in file.adapters if a.name == adapter), {})
                case.losses[seed] = [
                    (step.step, step.adapters[adapter].loss)
                    for step in file.steps
                    if adapter in step.adapters
                ]
    return [
        _checked(case)
        for case in sorted(cases.values(), key=lambda e: (e.language, e.split, e.method != ZERO_SHOT))
    ]


def _lengths(
    runs: Sequence[Path], files: Sequence[RunFiles], names: Mapping[tuple[Path, str], str] | None
) -> dict[tuple[str, tuple[str, ...]], int]:
    """By family and languages the most steps, where its adapters were trained for several numbers.

    Not where each seed has one number: seeds of as many epochs differ in steps.
    """
    lengths: dict[tuple[str, tuple[str, ...]], dict[int, set[int]]] = {}
    for run, file in zip(runs, files, strict=True):
        for own in file.config.adapter_settings() if file.config.method.learns else ():
            if names is None or (run, own.name) in names:
                key = _family(run, file, own, names), own.languages
                seeds = lengths.setdefault(key, defaultdict(set))
                seeds[own.seed].add(own.steps)
    return {
        key: max(steps for own in seeds.values() for steps in own)
        for key, seeds in lengths.items()
        if any(len(own) > 1 for own in seeds.values())
    }


def _family(
    run: Path,
    file: RunFiles,
    adapter: AdapterSettings,
    names: Mapping[tuple[Path, str], str] | None,
) -> str:
    """What an adapter is compared as, but for its minutes and steps."""
    return names[run, adapter.name] if names else label_of(file.config.method, adapter)


def _case(
    file: RunFiles,
    adapter: AdapterSettings,
    family: str,
    first: Hypothesis,
    *,
    named: bool,
    most: int | None,
) -> Case:
    """A case without its transcripts. `most`: steps of the longest, where its name tells the steps."""
    kind = file.config.method.kind
    learned = file.config.method.learns
    adapters = {a.name: a for a in file.adapters if learned}
    saved = adapters.get(adapter.name)
    used = next((d.minutes for d in file.data if d.adapter == adapter.name), None)
    minutes = f", {adapter.minutes:g} min" if adapter.minutes is not None and not named else ""
    steps = f", {adapter.steps:,} steps" if most is not None else ""
    return Case(
        language=first.language,
        split=first.split,
        method=f"{family}{minutes}{steps}",
        window_s=first.window_s,
        kind=kind,
        adapter=adapter.name,
        trained=saved.trained_numbers if saved else 0,
        sites=adapter.sites if file.config.method.trains else "",
        rule=adapter.rule if file.config.method.steers and learned else "",
        minutes=used if adapter.minutes is None else adapter.minutes,
        steps=adapter.steps if learned else None,
        family=family,
        few_minutes=bool(minutes),
        few_steps=most is not None and adapter.steps < most,
        averaged=saved is not None and saved.averaged,
        learned=adapter.languages,
    )


def scored(h: Hypothesis, rules: Rules) -> Scored:
    return score(
        h.reference,
        h.hypothesis,
        h.language,
        finished=h.finished,
        key=h.key,
        speaker=h.speaker,
        rules=rules,
    )


def _compared_window(config: Config, windows: Collection[float]) -> float | None:
    """The window at which an adapter is compared; None if that is unknown.

    With `base.window_s: null` that is the base's own window. Its length is not in the config, but it
    is what remains of the decoded windows without those that the config gives in seconds.
    """
    if config.base.window_s is not None:
        own = [w for w in windows if math.isclose(w, config.base.window_s)]
    elif len(windows) == 1:
        own = list(windows)
    else:
        given = [w for w in config.evaluation.windows_s if w is not None]
        own = [w for w in windows if not any(math.isclose(w, g) for g in given)]
    return own[0] if len(own) == 1 else None


def _checked(case: Case) -> Case:
    keys = [set(scored) for scored in case.seeds.values()]
    if any(k != keys[0] for k in keys):
        raise UserError(
            f"{case.method} in {case.language}: its seeds were decoded on different clips; evaluate "
            "them again on the same shards"
        )
    return case
