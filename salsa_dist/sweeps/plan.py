"""Plans a sweep: its errors, its finished jobs, and new jobs for the remaining adapters.

    Sweep ─► problems (all of them, before anything is written)
          ─► Plan ── kept: jobs that are there        Plan.write() ─► SWEEP/jobs/<id>/config.yaml
                  └─ new: Packed jobs                 Plan.text()  ─► for people

Of a comparison, what is known so far is planned: all trials, the final rows of what has been chosen
among trials that are done, and the means of seeds that are done. So the same call gives the next jobs
once the ones before are done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from salsa_dist.config import Config
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.metrics.error_rates import CHOSEN_BY
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.settled import begun_in, settled, with_precision
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.sweeps.choosing import (
    Choice,
    choose,
    finals_of,
    problems_of,
    trials_of,
    uneven,
    write_chosen,
)
from salsa_dist.sweeps.cost import BaseFacts, base_facts
from salsa_dist.sweeps.folder import JobFolder, job_folders, make_job, result_rows
from salsa_dist.sweeps.grid import Experiment, Sweep
from salsa_dist.sweeps.job_config import identity, job_config, verbs
from salsa_dist.sweeps.packing import Packed, decoding_rates, measured_flop, pack
from salsa_dist.sweeps.problems import memory, refuse_prefix, twice, wrong_with
from salsa_dist.sweeps.release_0_1 import older_identities


@dataclass(frozen=True)
class Plan:
    """The plan of a sweep.

    Attributes:
        identities: of the sweep's adapters, in their order.
        there: jobs that hold adapters of the sweep, finished or not.
        new: jobs for the others.
        flop_per_s: measured over the sweep's own steps so far; None: none was made.
        choices: of a comparison, what was chosen so far.
        later: of a comparison, jobs for final rows that wait for trials, by a guess of what is chosen,
            or for the seeds whose mean they are.
        older: what release 0.1 knew the adapters by, see `older_identities`.
    """

    sweep: Sweep
    facts: BaseFacts
    identities: list[str]
    there: list[JobFolder]
    new: list[Packed]
    rank_bytes: float
    flop_per_s: float | None
    clips_per_s: dict[str, float] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    later: list[Packed] = field(default_factory=list)
    older: dict[str, str] = field(default_factory=dict)

    def write(self) -> list[JobFolder]:
        """Make the new jobs' folders; all jobs that are not done, old ones first."""
        own = {e.name: i for e, i in zip(self.sweep.experiments, self.identities, strict=True)}
        if self.choices:
            write_chosen(self.sweep, self.choices)
        made = [
            make_job(
                self.sweep.file.sweep.absolute(),
                {e.name: own[e.name] for e in packed.experiments},
                job_config(self.sweep, packed.experiments),
                verbs(self.sweep, packed.experiments[0]),
                packed.experiments[0].stage or "job",
                [self._mean(e) for e in packed.experiments if e.seeds_of],
            )
            for packed in self.new
        ]
        return [job for job in [*self.there, *made] if not job.done]

    def _mean(self, experiment: Experiment) -> SteeringVectors:
        """The mean of the vectors of an experiment's seeds, which are done."""
        named = {e.name: i for e, i in zip(self.sweep.experiments, self.identities, strict=True)}
        where = {i: (job.path, name) for job in self.there for name, i in job.adapters.items()}
        folders = [where[named[e.name]] for e in experiment.seeds_of]
        own = [SteeringVectors.load(RunFolder(run).adapter(name)) for run, name in folders]
        return replace(SteeringVectors.average(own), name=experiment.name)

    def rows(self) -> list[dict[str, Any]]:
        """The current table of results."""
        trees = [e.row() for e in self.sweep.experiments]
        return result_rows(trees, self.identities, self.jobs())

    def jobs(self) -> list[JobFolder]:
        """All current jobs in the sweep's folder, including those of other adapters."""
        return job_folders(self.sweep.file.sweep, self.older)

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return not self.new and not self.later and all(job.done for job in self.there)

    def text(self) -> str:
        """The plan as text, one line per job."""
        jobs = self.sweep.file.jobs
        missing = sum(len(p.experiments) for p in self.new)
        done = [job for job in self.there if job.done]
        lines = [
            f"{len(self.sweep.experiments)} adapters: {len(self.sweep.experiments) - missing} are in "
            f"{len(self.there)} jobs already ({len(done)} done), {missing} go into {len(self.new)} new "
            f"jobs of {jobs.nodes} x {jobs.ranks_per_node} ranks",
            f"a rank needs about {self.rank_bytes / 1e9:.1f} GB, the base in "
            f"{self.sweep.config.base.dtype}",
        ]
        for number, packed in enumerate(self.new, 1):
            languages = ", ".join(dict.fromkeys(e.language for e in packed.experiments))
            first = packed.experiments[0]
            what = f"{first.stage} of {_kinds(packed.experiments)}, " if first.stage else ""
            lines.append(
                f"job {number}: {what}{len(packed.experiments)} adapters ({languages}), "
                f"{self._cost(packed.packed)} packed, {self._cost(packed.separate)} separate"
                + self._decoding([packed])
            )
        if self.sweep.file.methods:
            lines += self._comparison()
        elif self.new:
            packed, separate = (sum(getattr(p, k) for p in self.new) for k in ("packed", "separate"))
            how = "measured on this sweep's own steps" if self.flop_per_s else "estimated, not measured"
            lines.append(
                f"in all {self._cost(packed)} packed against {self._cost(separate)} separate, "
                f"{separate / packed:.2f} times less, with {missing - len(self.new)} starts fewer; "
                f"{how}"
            )
            lines.append(self._sharing())
        if self.sweep.file.halving:
            halving = self.sweep.file.halving
            lines.append(
                f"after steps {halving.rungs} the best {halving.keep:.0%} of each language and size "
                "in a job go on; the costs above do not include that"
            )
        return "\n".join(lines)

    def _comparison(self) -> list[str]:
        """The number of trials and final rows of each method, and their totals."""
        tuning, config = self.sweep.file.tuning, self.sweep.config
        state = {row["name"]: row["state"] for row in self.rows()}
        finals = finals_of(self.sweep, self.choices, guess=True)
        lines = []
        for label in self.sweep.labels():
            trials = [e for e in self.sweep.experiments if e.label == label and e.stage == "try"]
            rows = [e for e in finals if (e.seeds_of[0] if e.seeds_of else e).label == label]
            done = [sum(state.get(e.name) == "done" for e in own) for own in (trials, rows)]
            lines.append(
                f"{label}: {len(trials)} trials ({done[0]} done), {len(rows)} final rows "
                f"({done[1]} done)"
            )
        per = "each language" if tuning.per == "language" else "all languages together"
        if tuning.languages is not None:
            per = f"all languages by {', '.join(tuning.languages)}"
        tried = (
            f"trials: {self.sweep.trial_steps} steps, seed {tuning.seed}; "
            f"the best by {tuning.choose_by} on {self.sweep.file.dev_clips} dev clips per language, "
            f"for {per}"
            if any(e.stage == "try" for e in self.sweep.experiments)
            else "no trials"
        )
        lines.append(
            f"{tried}; final rows: {', '.join(map(str, self.sweep.final_steps))} steps, evaluated on "
            f"{config.evaluation.split}"
        )
        left = [*self.new, *self.later]
        if left:
            how = "measured on this sweep's own steps" if self.flop_per_s else "estimated, not measured"
            cost = self._cost(sum(p.packed for p in left))
            lines.append(f"left to do: {cost} to train{self._decoding(left)}; {how}")
        warning = uneven(self.sweep)
        return [*lines, *([f"warning: {warning}"] if warning else [])]

    def _decoding(self, jobs: Sequence[Packed]) -> str:
        clips = sum(p.decoded for p in jobs)
        if not clips:
            return ""
        rates = [self.clips_per_s.get(p.experiments[0].method.kind) for p in jobs if p.decoded]
        if any(rate is None for rate in rates):
            return f", {clips:,} clips to decode"
        seconds = sum(
            p.decoded / self.clips_per_s[p.experiments[0].method.kind] for p in jobs if p.decoded
        )
        return f", {clips:,} clips to decode in {seconds:,.0f} s"

    def _sharing(self) -> str:
        config = self.sweep.config
        if not self.facts.shares:
            why = "the base has no encoder sites"
            if not config.training.share_prefix:
                why = "training.share_prefix is false"
            return f"clips are not shared: {why}"
        if config.data.join_clips > 1 or config.training.silence_stride != 1:
            return (
                "a prefix can't be kept: data.join_clips and training.silence_stride make other windows"
            )
        kept = sum(p.kept_packed for p in self.new)
        packed = sum(p.packed for p in self.new)
        size = max(p.kept_bytes for p in self.new) / 1e9
        on, room = config.training.prefix_cache, config.training.prefix_cache_gb
        return (
            f"prefix kept (training.prefix_cache, now {on}): {self._cost(kept)} packed, "
            f"{1 - kept / packed:.0%} less, for {size:.2f} GB a job (training.prefix_cache_gb is "
            f"{room:g})"
        )

    def _cost(self, flop: float) -> str:
        if self.flop_per_s:
            return f"{flop / self.flop_per_s:,.0f} s"
        return f"{flop / 1e12:,.1f} TFLOP"


def make_plan(sweep: Sweep, nodes: int = 1, device: str | None = None) -> Plan:
    """Check the whole sweep, and pack the missing adapters.

    Args:
        nodes: nodes that jobs can run on at the same time.
        device: kind of device of the jobs where the config leaves it open, such as cuda; None: that of
            a run on this machine.

    Raises:
        UserError: with everything that is wrong.
    """
    sweep = replace(sweep, config=_in_one_precision(sweep, device))
    facts = base_facts(sweep.config)
    indexes, problems = _indexes(sweep)
    folder = sweep.file.sweep
    choices: list[Choice] = []
    waiting: list[Experiment] = []
    if sweep.file.methods:
        problems += problems_of(sweep)
        trials = trials_of(sweep)
        everything = [*trials, *finals_of(sweep, choose(sweep, {}), guess=True)]
        problems += [p for e in everything for p in wrong_with(e, sweep, facts, indexes)]
        if not problems:
            own = [identity(e, sweep, facts, indexes[e.corpus]) for e in trials]
            older = older_identities(trials, sweep, facts, indexes)
            rows = result_rows([e.row() for e in trials], own, job_folders(folder, older))
            by = CHOSEN_BY.get(sweep.file.tuning.choose_by, "dev_loss")
            choices = choose(sweep, {r["name"]: r[by] for r in rows if r["state"] == "done"})
            decided = finals_of(sweep, choices)
            finals = _with_means(decided, sweep, facts, indexes)
            known = {e.name for e in finals}
            guessed = finals_of(sweep, [c for c in choices if c.chosen is None], guess=True)
            waiting = [e for e in [*decided, *guessed] if e.name not in known]
            sweep = replace(sweep, experiments=[*trials, *finals])
        else:
            sweep = replace(sweep, experiments=everything)
    wrong = {id(e): wrong_with(e, sweep, facts, indexes) for e in sweep.experiments}
    problems += [p for own in wrong.values() for p in own]
    rank_bytes, too_large = memory(sweep, facts, device)
    problems += too_large
    sound = [e for e in sweep.experiments if not wrong[id(e)]]
    identities = [identity(e, sweep, facts, indexes[e.corpus]) for e in sound]
    problems += twice(sound, identities)
    if not sweep.config.method.in_a_bank:
        kind = sweep.config.method.kind
        problems.append(f"its config has the method {kind!r}: write it as one of the sweep's methods")
    if not sweep.experiments:
        problems.append("the grid is empty: nothing is left after exclude")
    if problems:
        listed = "".join(f"\n  - {p}" for p in dict.fromkeys(problems))
        count = len(dict.fromkeys(problems))
        raise UserError(f"sweep {sweep.path} can't run, {count} problems:{listed}")
    wanted = set(identities)
    older = older_identities(sound, sweep, facts, indexes)
    means = {i for e, i in zip(sound, identities, strict=True) if e.seeds_of}
    there = [j for j in job_folders(folder, older) if wanted & set(j.adapters.values())]
    # A mean that was removed is made again; what is trained again needs its job.
    there = [j for j in there if j.whole or not means & set(j.adapters.values())]
    if sweep.file.halving is None:
        # What an earlier halving cut short is not done for a sweep that has none.
        there = [j for j in there if not (j.done and j.dropped())]
    covered = {i for job in there for i in job.adapters.values()}
    missing = [e for e, i in zip(sweep.experiments, identities, strict=True) if i not in covered]
    new = pack(missing, sweep, facts, indexes, nodes)
    refuse_prefix(sweep, new)
    return Plan(
        *(sweep, facts, identities, there, new, rank_bytes, measured_flop(facts, there)),
        clips_per_s=decoding_rates(there),
        choices=choices,
        later=pack(waiting, sweep, facts, indexes, nodes),
        older=older,
    )


def _with_means(
    finals: Sequence[Experiment],
    sweep: Sweep,
    facts: BaseFacts,
    indexes: Mapping[str, ShardIndex],
) -> list[Experiment]:
    """The final rows; a mean only once its seeds are done, with the digests of their vectors."""
    trained = [e for e in finals if not e.seeds_of]
    if len(trained) == len(finals):
        return trained
    older = older_identities(trained, sweep, facts, indexes)
    done = {
        own: RunFolder(job.path).adapter(name)
        for job in job_folders(sweep.file.sweep, older)
        if job.done
        for name, own in job.adapters.items()
    }
    where = {e.name: done.get(identity(e, sweep, facts, indexes[e.corpus])) for e in trained}
    found = []
    for e in finals:
        folders = [where[seed.name] for seed in e.seeds_of]
        if None not in folders:
            digests = tuple(SteeringVectors.load(folder).digest() for folder in folders if folder)
            found.append(replace(e, digests=digests))
    return found


def _in_one_precision(sweep: Sweep, device: str | None) -> Config:
    """The sweep's config with the precision of existing jobs, or else the precision for `device`."""
    config = sweep.config
    begun = (begun_in(path.parent) for path in (sweep.file.sweep / "jobs").glob("*/job.json"))
    found = next(filter(None, begun), None)
    if config.base.dtype == "auto" and found is not None:
        return with_precision(config, found)
    if config.device != "auto":
        device = config.device
    return settled(config, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _indexes(sweep: Sweep) -> tuple[dict[str, ShardIndex], list[str]]:
    indexes, problems = {}, []
    for name, folder in sweep.corpora.items():
        try:
            indexes[name] = ShardIndex.load(folder)
        except UserError as e:
            problems.append(str(e))
    return indexes, problems


def _kinds(experiments: Sequence[Experiment]) -> str:
    labels = list(dict.fromkeys(e.label for e in experiments))
    return labels[0] if len(labels) == 1 else f"{len(labels)} methods"
