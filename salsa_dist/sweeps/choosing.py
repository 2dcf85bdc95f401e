"""A comparison's trials, the choice among them on dev, and the final rows.

    methods x settings x languages, one seed ─► trials ─► dev rate or loss of each ─► SWEEP/chosen.json
                                                                │
    chosen settings x languages x seeds ─► final rows ─► the test split

    chosen.json   {"schema": …, "choose_by": "cer", "choices": [
                     {"method": "LoRA r=8 …", "corpus": "", "minutes": null, "languages": ["bg"],
                      "tries": [{"tried": "lr0.001", "dev": {"bg": 0.41}}, …], "chosen": "lr0.001"}]}

A method with one setting has no trials. Of equals the first in the file is taken, and a trial whose
measure is no number never.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from salsa_dist import json_file
from salsa_dist.errors import UserError
from salsa_dist.sweeps.grid import Experiment, Sweep, experiment_name
from salsa_dist.sweeps.methods import Setting

SCHEMA = "salsa-dist/chosen/1"
NAME = "chosen.json"


@dataclass(frozen=True)
class Choice:
    """The trials and the chosen setting of one method, for one language or for all languages.

    Attributes:
        trials: each setting with its dev measure by language; None: not known yet, or no number.
        chosen: None while trials are missing.
    """

    method: str
    corpus: str
    minutes: float | None
    languages: tuple[str, ...]
    trials: list[tuple[Setting, dict[str, float | None]]]
    chosen: Setting | None


def trials_of(sweep: Sweep) -> list[Experiment]:
    """Every trial of every method that has more than one setting."""
    tuning = sweep.file.tuning
    steps = sweep.trial_steps
    return [
        _experiment(corpus, language, minutes, label, setting, tuning.seed, steps, "try")
        for corpus, minutes, label, settings in _cells(sweep)
        if len(settings) > 1
        for language in tuning.languages or sweep.file.grid.language
        for setting in settings
    ]


def choose(sweep: Sweep, measured: Mapping[str, float | None]) -> list[Choice]:
    """The choices that finished trials allow so far.

    Args:
        measured: by name, dev measure of the trials that are done; None where it is no number.

    Raises:
        UserError: all trials of a method came to no number.
    """
    choices = []
    languages = sweep.file.grid.language
    groups = [tuple(languages)] if sweep.file.tuning.per == "all" else [(x,) for x in languages]
    trials = {(e.corpus, e.minutes, e.label, e.language, _key(e)): e.name for e in trials_of(sweep)}
    for corpus, minutes, label, settings in _cells(sweep):
        for group in groups:
            tried_in = sweep.file.tuning.languages or group
            names = [
                {x: trials.get((corpus, minutes, label, x, _key(s)), "") for x in tried_in}
                for s in settings
            ]
            found = [{x: measured.get(n) for x, n in own.items()} for own in names]
            chosen: Setting | None = None
            if len(settings) == 1:
                chosen = settings[0]
            elif all(n in measured for own in names for n in own.values()):
                means = [_mean(list(dev.values())) for dev in found]
                if not math.isfinite(min(means)):
                    raise UserError(
                        f"{label}: no trial in {', '.join(group)} has a finite result on dev: lower "
                        "its learning rates"
                    )
                chosen = settings[means.index(min(means))]
            tried = list(zip(settings, found, strict=True))
            choices.append(Choice(label, corpus, minutes, group, tried, chosen))
    return choices


def finals_of(sweep: Sweep, choices: Sequence[Choice], guess: bool = False) -> list[Experiment]:
    """The final rows of the chosen settings.

    Args:
        guess: also of what is not yet, with the first setting of each.
    """
    grid = sweep.file.grid
    finals: dict[str, Experiment] = {}
    for choice in choices:
        setting = choice.chosen or (choice.trials[0][0] if guess else None)
        if setting is None:
            continue
        for language in choice.languages:
            seeds = _seeds(sweep, setting)
            learns = setting.method.learns
            lengths = sweep.final_steps if learns else [sweep.config.training.steps]
            for steps in lengths:
                named = grid.steps is not None and learns
                where, rest = (choice.corpus, language, choice.minutes), (steps, "final", named)
                own = [_experiment(*where, choice.method, setting, seed, *rest) for seed in seeds]
                if setting.average_seeds:
                    label = _mean_label(choice.method, seeds)
                    mean = _experiment(*where, label, replace(setting, seeded=False), 0, *rest)
                    own.append(replace(mean, seeds_of=tuple(own)))
                for experiment in own:
                    finals.setdefault(experiment.name, experiment)  # without a seed, one row
    return list(finals.values())


def chosen_tree(sweep: Sweep, choices: Sequence[Choice]) -> dict[str, Any]:
    """The tree of `chosen.json`."""
    tuning = sweep.file.tuning
    return {
        "schema": SCHEMA,
        "choose_by": tuning.choose_by,
        "dev_clips": sweep.file.dev_clips,
        "steps": sweep.trial_steps,
        "seed": tuning.seed,
        "choices": [
            {
                "method": c.method,
                "corpus": c.corpus,
                "minutes": c.minutes,
                "languages": list(c.languages),
                "tries": [{"tried": setting.tried, "dev": dev} for setting, dev in c.trials],
                "chosen": c.chosen.tried if c.chosen else None,
            }
            for c in choices
        ],
    }


def write_chosen(sweep: Sweep, choices: Sequence[Choice]) -> None:
    """`chosen.json`, whole or not at all."""
    sweep.file.sweep.mkdir(parents=True, exist_ok=True)
    json_file.write(sweep.file.sweep / NAME, SCHEMA, chosen_tree(sweep, choices))


def problems_of(sweep: Sweep) -> list[str]:
    """Errors of a comparison that do not depend on the base."""
    file, grid = sweep.file, sweep.file.grid
    problems = [
        f"grid.{axis} is for a sweep without methods: give it to each of them"
        for axis in ("sites", "rule", "lr")
        if getattr(grid, axis) is not None
    ]
    problems += [
        f"{what} is for a sweep without methods: take it out"
        for what in ("include", "exclude", "halving")
        if getattr(file, what)
    ]
    averaged = {label: s[0] for _, _, label, s in _cells(sweep) if s[0].average_seeds}
    labels = sweep.labels()
    labels += [_mean_label(label, _seeds(sweep, s)) for label, s in averaged.items()]
    slugs = [_slug(label) for label in labels]
    problems += [
        f"two methods are called {label!r}: give one another name"
        for i, label in enumerate(labels)
        if slugs[i] in slugs[:i]
    ]
    problems += [
        f"{label}: average_seeds needs two seeds or more: name them in grid.seed"
        for label, setting in averaged.items()
        if len(_seeds(sweep, setting)) < 2
    ]
    counts = {label: len(settings) for _, _, label, settings in _cells(sweep) if _tunable(settings)}
    told = ", ".join(f"{label} {count}" for label, count in counts.items())
    if len(set(counts.values())) > 1 and not file.tuning.uneven:
        problems.append(
            f"methods have unequal numbers of trials ({told}): give each as many, or set "
            "tuning.uneven to true"
        )
    if max(counts.values(), default=1) > 1:
        if not file.dev_clips:
            problems.append("choosing among trials needs dev_clips, such as 32")
        if file.tuning.choose_by == "loss":
            problems += [
                f"{label} has no dev loss: set tuning.choose_by to an error rate, or name one setting"
                for _, _, label, settings in _cells(sweep)
                if not settings[0].method.trains and len(settings) > 1
            ]
    if file.tuning.choose_by != "loss" and sweep.config.evaluation.split == "dev":
        problems.append("evaluation.split is dev, which settings are chosen on: set it to test")
    return problems


def uneven(sweep: Sweep) -> str | None:
    """The warning that a reader of the comparison needs."""
    counts = {label: len(settings) for _, _, label, settings in _cells(sweep) if _tunable(settings)}
    if len(set(counts.values())) < 2:
        return None
    told = ", ".join(f"{label} {count}" for label, count in counts.items())
    return f"unequal numbers of trials, which favours those with more: {told}"


def _tunable(settings: Sequence[Setting]) -> bool:
    return settings[0].method.adapts


def _cells(sweep: Sweep) -> list[tuple[str, float | None, str, list[Setting]]]:
    """Corpus, minutes, label and settings of each method; those that train nothing take all speech."""
    cells = []
    for corpus in sweep.corpora:
        for number, minutes in enumerate(sweep.file.grid.size):
            for method in sweep.file.methods:
                settings = [
                    replace(_filled(s, sweep), seeds=method.seeds)
                    for s in method.settings(sweep.config.steering)
                ]
                trains = settings[0].method.learns
                if trains or number == 0:
                    label = method.label(sweep.config.steering)
                    cells.append((corpus, minutes if trains else None, label, settings))
    return cells


def _filled(setting: Setting, sweep: Sweep) -> Setting:
    """A method with the config's learning rate, if it trains and has no own one."""
    if setting.lr is not None or not setting.method.learns:
        return setting
    rate = sweep.config.rate(setting.method, setting.rule)
    return setting if rate is None else replace(setting, lr=rate, tried=f"lr{rate:g}")


def _experiment(
    corpus: str,
    language: str,
    minutes: float | None,
    label: str,
    setting: Setting,
    seed: int,
    steps: int,
    stage: str,
    named: bool = False,
) -> Experiment:
    """A trial or final row. `named`: its name tells the steps."""
    own_seed = seed if setting.seeded else None
    what = [_slug(label), *([_slug(setting.tried)] if setting.tried else [])]
    what += ["try"] if stage == "try" else []
    return Experiment(
        name=experiment_name(corpus, language, what, own_seed, minutes, steps if named else None),
        corpus=corpus,
        language=language,
        sites=setting.sites,
        rule=setting.rule,
        lr=setting.lr,
        seed=own_seed,
        minutes=minutes,
        method=setting.method,
        label=label,
        stage=stage,
        steps=steps,
        start_from=_start(setting, language),
    )


def _seeds(sweep: Sweep, setting: Setting) -> list[int]:
    """The seeds of a setting's final rows, each once."""
    every = sweep.file.grid.seed or [sweep.config.training.seed]
    return list(dict.fromkeys(every))[: setting.seeds]


def _mean_label(label: str, seeds: Sequence[int]) -> str:
    return f"{label}, mean of {len(seeds)} seeds"


def _start(setting: Setting, language: str) -> Path | None:
    if setting.start_from is None:
        return None
    return Path(setting.start_from.replace("{language}", language)).expanduser()


def _key(of: Experiment | Setting) -> str:
    return json.dumps([of.method.model_dump(mode="json"), of.sites, of.rule, of.lr])


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.:-]+", "-", text).strip("-")


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if len(known) == len(values) else math.inf
