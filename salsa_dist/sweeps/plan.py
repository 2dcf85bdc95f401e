"""From a sweep to jobs: what is wrong with it, what is there already, how the rest is packed.

    Sweep ─► problems (all of them, before anything is written)
          ─► Plan ── kept: jobs that are there        Plan.write() ─► SWEEP/jobs/<id>/config.yaml
                  └─ new: Packed jobs                 Plan.text()  ─► for people

Of a comparison, what is known so far is planned: all tries, and the final rows of what has been chosen
among tries that are done. So the same call gives the next jobs once the ones before are done.

Adapters that take the same clips in each step (corpus, language, seed, size) go into one job, where
those clips are computed once below the first steered layer; with halving all that compete do. Such
groups are dealt to jobs, the dearest first, always to the cheapest job that has room. Other methods
than salsa have jobs of their own: one for each language where a base is loaded for each adapter,
zero-shot and mean differences one for all languages.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from salsa_dist.config import (
    BiasMethod,
    Config,
    InContextMethod,
    LoraMethod,
    MeanDifferenceMethod,
    load_config,
)
from salsa_dist.data.augment import from_settings
from salsa_dist.data.index import Shard, ShardIndex
from salsa_dist.data.subset import take_minutes
from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks, group_size
from salsa_dist.steering.sites import select
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.sweeps.choosing import (
    Choice,
    choose,
    finals_of,
    problems_of,
    tries_of,
    uneven,
    write_chosen,
)
from salsa_dist.sweeps.cost import (
    BaseFacts,
    activation_bytes,
    base_facts,
    clip_cost,
    decoding_flop,
)
from salsa_dist.sweeps.folder import JobFolder, job_folders, make_job, result_rows
from salsa_dist.sweeps.grid import Entry, Sweep

# Memory that a rank needs beside the base and its activations: Python, torch and its libraries.
_PROCESS_BYTES = 1e9
_UNTRAINED = ("in-context", "zero-shot")
_ONE_LANGUAGE = ("lora", "bias", "in-context")  # a base is loaded for each of their adapters


@dataclass(frozen=True)
class Packed:
    """A job to be made: its adapters, and the FLOP of its training packed and one by one.

    Attributes:
        decoded: clips that it transcribes, once for each adapter.
    """

    entries: list[Entry]
    packed: float
    separate: float
    kept_packed: float = 0.0
    kept_bytes: float = 0.0
    decoded: int = 0


@dataclass(frozen=True)
class Plan:
    """What a sweep comes to.

    Attributes:
        identities: of the sweep's adapters, in their order.
        there: jobs that hold adapters of the sweep, finished or not.
        new: jobs for the others.
        flop_per_s: measured over the sweep's own steps so far; None: none was made.
        choices: of a comparison, what was chosen so far.
        later: of a comparison, jobs for final rows that wait for tries, by a guess of what is chosen.
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

    def write(self) -> list[JobFolder]:
        """Make the new jobs' folders; all jobs that are not done, old ones first."""
        own = {e.name: i for e, i in zip(self.sweep.entries, self.identities, strict=True)}
        if self.choices:
            write_chosen(self.sweep, self.choices)
        made = [
            make_job(
                self.sweep.file.sweep.absolute(),
                {e.name: own[e.name] for e in packed.entries},
                _job_config(self.sweep, packed.entries),
                _verbs(self.sweep, packed.entries[0]),
                packed.entries[0].stage or "job",
            )
            for packed in self.new
        ]
        return [job for job in [*self.there, *made] if not job.done]

    def rows(self) -> list[dict[str, Any]]:
        """The table of results as it is now."""
        trees = [entry.row() for entry in self.sweep.entries]
        return result_rows(trees, self.identities, job_folders(self.sweep.file.sweep))

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return not self.new and not self.later and all(job.done for job in self.there)

    def text(self) -> str:
        """For people, a line a job."""
        jobs = self.sweep.file.jobs
        missing = sum(len(p.entries) for p in self.new)
        done = [job for job in self.there if job.done]
        lines = [
            f"{len(self.sweep.entries)} adapters: {len(self.sweep.entries) - missing} are in "
            f"{len(self.there)} jobs already ({len(done)} done), {missing} go into {len(self.new)} new "
            f"jobs of {jobs.nodes} x {jobs.ranks_per_node} ranks",
            f"a rank needs about {self.rank_bytes / 1e9:.1f} GB",
        ]
        for number, packed in enumerate(self.new, 1):
            languages = ", ".join(dict.fromkeys(e.language for e in packed.entries))
            first = packed.entries[0]
            what = f"{first.stage} of {_kinds(packed.entries)}, " if first.stage else ""
            lines.append(
                f"job {number}: {what}{len(packed.entries)} adapters ({languages}), "
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
                f"before steps {halving.rungs} the best {halving.keep:.0%} of each language and size "
                "in a job go on; the costs above leave that out"
            )
        return "\n".join(lines)

    def _comparison(self) -> list[str]:
        """What each method comes to, and all of it together."""
        tuning, config = self.sweep.file.tuning, self.sweep.config
        state = {row["name"]: row["state"] for row in self.rows()}
        finals = finals_of(self.sweep, self.choices, guess=True)
        lines = []
        for label in self.sweep.labels():
            tries = [e for e in self.sweep.entries if e.label == label and e.stage == "try"]
            rows = [e for e in finals if e.label == label]
            done = [sum(state.get(e.name) == "done" for e in own) for own in (tries, rows)]
            lines.append(
                f"{label}: {len(tries)} tries ({done[0]} done), {len(rows)} final rows ({done[1]} done)"
            )
        per = "each language" if tuning.per == "language" else "all languages together"
        if tuning.languages is not None:
            per = f"all languages by {', '.join(tuning.languages)}"
        lines.append(
            f"tries: {tuning.steps or config.training.steps} steps, seed {tuning.seed}; the best by "
            f"{tuning.choose_by} on {self.sweep.file.dev_clips} dev clips a language, for {per}; "
            f"final rows: {config.training.steps} steps, evaluated on {config.evaluation.split}"
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
        rates = [self.clips_per_s.get(p.entries[0].method.kind) for p in jobs if p.decoded]
        if any(rate is None for rate in rates):
            return f", {clips:,} clips to decode"
        seconds = sum(p.decoded / self.clips_per_s[p.entries[0].method.kind] for p in jobs if p.decoded)
        return f", {clips:,} clips to decode in {seconds:,.0f} s"

    def _sharing(self) -> str:
        if not self.facts.shares:
            return "clips are not shared: training.share_prefix is false"
        config = self.sweep.config
        if config.data.join_clips > 1 or config.training.silence_stride > 1:
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


def make_plan(sweep: Sweep, nodes: int = 1) -> Plan:
    """Check a sweep whole, and pack what is missing.

    Args:
        nodes: nodes that jobs can run on at the same time.

    Raises:
        UserError: with everything that is wrong.
    """
    facts = base_facts(sweep.config)
    indexes, problems = _indexes(sweep)
    folder = sweep.file.sweep
    choices: list[Choice] = []
    waiting: list[Entry] = []
    if sweep.file.methods:
        problems += problems_of(sweep)
        tries = tries_of(sweep)
        everything = [*tries, *finals_of(sweep, choose(sweep, {}), guess=True)]
        problems += [p for entry in everything for p in _wrong(entry, sweep, facts, indexes)]
        if not problems:
            own = [identity(e, sweep, facts, indexes[e.corpus]) for e in tries]
            rows = result_rows([e.row() for e in tries], own, job_folders(folder))
            by = "cer" if sweep.file.tuning.choose_by == "cer" else "dev_loss"
            choices = choose(sweep, {r["name"]: r[by] for r in rows if r["state"] == "done"})
            finals = finals_of(sweep, choices)
            known = {e.name for e in finals}
            decided = [c for c in choices if c.chosen is None]
            waiting = [e for e in finals_of(sweep, decided, guess=True) if e.name not in known]
            sweep = replace(sweep, entries=[*tries, *finals])
        else:
            sweep = replace(sweep, entries=everything)
    wrong = {id(entry): _wrong(entry, sweep, facts, indexes) for entry in sweep.entries}
    problems += [p for own in wrong.values() for p in own]
    rank_bytes, too_large = _memory(sweep, facts)
    problems += too_large
    sound = [entry for entry in sweep.entries if not wrong[id(entry)]]
    identities = [identity(entry, sweep, facts, indexes[entry.corpus]) for entry in sound]
    problems += _twice(sound, identities)
    if sweep.config.method.kind != "salsa":
        kind = sweep.config.method.kind
        problems.append(f"its config has the method {kind!r}: write it as one of the sweep's methods")
    if not sweep.entries:
        problems.append("the grid is empty: nothing is left after exclude")
    if problems:
        listed = "".join(f"\n  - {p}" for p in dict.fromkeys(problems))
        count = len(dict.fromkeys(problems))
        raise UserError(f"sweep {sweep.path} can't run, {count} problems:{listed}")
    wanted = set(identities)
    there = [j for j in job_folders(folder) if wanted & set(j.adapters.values())]
    if sweep.file.halving is None:
        # What an earlier halving cut short is not done for a sweep that has none.
        there = [j for j in there if not (j.done and j.dropped())]
    covered = {i for job in there for i in job.adapters.values()}
    missing = [e for e, i in zip(sweep.entries, identities, strict=True) if i not in covered]
    new = _pack(missing, sweep, facts, indexes, nodes)
    _refuse_prefix(sweep, new)
    return Plan(
        *(sweep, facts, identities, there, new, rank_bytes, _measured(sweep, facts, there)),
        clips_per_s=_decoding_rates(there),
        choices=choices,
        later=_pack(waiting, sweep, facts, indexes, nodes),
    )


def _refuse_prefix(sweep: Sweep, new: Sequence[Packed]) -> None:
    """Refuse a kept prefix that the jobs could not keep, before any of them starts."""
    training = sweep.config.training
    if training.prefix_cache == "off" or not new:
        return
    why = []
    # One rank's memory holds what it draws itself; a disk holds what all ranks and jobs do.
    if training.prefix_cache == "disk":
        size = sum(p.kept_bytes for p in new) / 1e9
    else:
        jobs = sweep.file.jobs
        size = max(p.kept_bytes for p in new) / (jobs.nodes * jobs.ranks_per_node) / 1e9
    if size > training.prefix_cache_gb:
        why.append(
            f"it takes about {size:.2f} GB, more than training.prefix_cache_gb = "
            f"{training.prefix_cache_gb:g}"
        )
    if not training.share_prefix:
        why.append("it needs training.share_prefix: true")
    if from_settings(sweep.config.data.augment.model_dump()) is not None:
        why.append("it keeps clips as they are: set data.augment off")
    if why:
        raise UserError(
            f"sweep {sweep.path} can't run with training.prefix_cache: {'; '.join(why)}; or set it off"
        )


def _rates_of(scales: Mapping[str, float], facts: BaseFacts) -> list[Any]:
    return [[select(words, facts.layers), scale] for words, scale in scales.items()]


def identity(entry: Entry, sweep: Sweep, facts: BaseFacts, index: ShardIndex) -> str:
    """SHA-256 over all that decides an adapter's vectors; its name is not of it."""
    config = sweep.config
    training = config.training
    kind = entry.method.kind
    tree: dict[str, Any] = {
        "method": kind if kind == "salsa" else entry.method.model_dump(mode="json"),
        "revision": facts.revision,
        "shards": index.hash,
        "base": config.base.model_dump(mode="json", exclude={"name", "revision"}),
        "data": config.data.model_dump(mode="json", exclude={"shards", "workers"}),
        "training": [
            entry.steps or training.steps,
            training.warmup,
            training.decay,
            training.clip_norm,
            *([training.window_s] if training.window_s else []),
            *([{"silence_stride": training.silence_stride}] if training.silence_stride > 1 else []),
            *([_rates_of(training.lr_scale, facts)] if training.lr_scale and kind == "salsa" else []),
        ],
        "language": entry.language,
        "sites": select(entry.sites, facts.layers),
        "adapter": [entry.rule, entry.lr, entry.seed, entry.minutes],
    }
    if entry.start_from is not None:
        tree["start_from"] = SteeringVectors.load(entry.start_from).digest()
    if kind in _UNTRAINED:
        del tree["training"], tree["sites"]
    if "evaluate" in _verbs(sweep, entry):
        tree["evaluation"] = _evaluation(sweep, entry)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _indexes(sweep: Sweep) -> tuple[dict[str, ShardIndex], list[str]]:
    indexes, problems = {}, []
    for name, folder in sweep.corpora.items():
        try:
            indexes[name] = ShardIndex.load(folder)
        except UserError as e:
            problems.append(str(e))
    return indexes, problems


def _wrong(entry: Entry, sweep: Sweep, facts: BaseFacts, indexes: dict[str, ShardIndex]) -> list[str]:
    """What keeps one adapter from being trained."""
    problems = _wrong_method(entry, sweep, facts, indexes)
    if entry.lr is not None and not entry.lr > 0:
        problems.append(f"{entry.name}: lr is {entry.lr:g}, it must be more than 0")
    try:
        if not select(entry.sites, facts.layers):
            problems.append(f"{entry.name}: sites {entry.sites!r} are none")
    except UserError as e:
        problems.append(str(e))
    if entry.corpus not in indexes:
        if entry.corpus not in sweep.corpora:
            problems.append(f"{entry.name}: no corpus {entry.corpus!r} in the grid")
        return problems
    index, data = indexes[entry.corpus], sweep.config.data
    try:
        shards = index.select("train", entry.language)
        if entry.minutes is not None:
            shards = take_minutes(shards, entry.minutes, entry.seed or 0)
        clips = sum(len(shard.entries) for shard in shards)
        a_step = data.clips_of_a_step(_mean_s(shards))
        if clips < a_step:
            problems.append(f"{entry.language}: too few clips, {clips} for {a_step} a step")
        if len(shards) < data.readers:
            problems.append(
                f"{entry.language}: {len(shards)} training shards for {data.readers} readers; lower "
                "data.readers"
            )
        if sweep.config.training.dev_clips:
            index.select("dev", entry.language)
        if entry.stage == "final":
            index.select(sweep.config.evaluation.split, entry.language)
    except UserError as e:
        problems.append(str(e))
    return problems


def _wrong_method(
    entry: Entry, sweep: Sweep, facts: BaseFacts, indexes: dict[str, ShardIndex]
) -> list[str]:
    """What keeps its method from being done on this base, in this sweep."""
    method, config = entry.method, sweep.config
    problems = []
    if entry.start_from is not None:
        try:
            SteeringVectors.load(entry.start_from)
        except UserError as e:
            problems.append(f"{entry.label}: {e}")
    if isinstance(method, LoraMethod | BiasMethod | InContextMethod):
        ways = {"placement": config.placement, "evaluation.placement": config.evaluation.placement}
        for key, placement in ways.items():
            if placement.kind not in ("replicate", "auto") or placement.offload != "none":
                problems.append(
                    f"{entry.label} needs a whole base on each rank: set {key}.kind to replicate and "
                    "offload to none"
                )
    if isinstance(method, InContextMethod):
        if not facts.in_context:
            problems.append(f"{entry.label} can't be done on this base: it has no prompt with examples")
        if method.choose == "audio" and "encoder" not in facts.layers:
            problems.append(f"{entry.label} can't be done on this base: it has no encoder")
    if isinstance(method, MeanDifferenceMethod):
        if entry.language == method.contrast:
            problems.append(f"{entry.label}: {entry.language} is in the grid too, and can't differ")
        if entry.corpus in indexes:
            try:
                indexes[entry.corpus].select("train", method.contrast)
            except UserError as e:
                problems.append(f"{entry.label}: {e}")
    if isinstance(method, LoraMethod | BiasMethod):
        try:
            chosen = {site.partition(".")[0] for site in select(entry.sites, facts.layers)}
        except UserError:
            return problems  # told elsewhere
        if isinstance(method, LoraMethod):
            there = {name for component in chosen for name in facts.linear[component]}
            if lacking := [t for t in method.targets if t not in there]:
                problems.append(
                    f"{entry.label}: these layers have no linear {', '.join(lacking)}; they have "
                    + ", ".join(sorted(there))
                )
            if find_spec("peft") is None:
                problems.append(f"{entry.label} needs PEFT: pip install 'salsa-dist[baselines]'")
        elif not chosen & facts.biased:
            problems.append(f"{entry.label}: these layers have no biases")
        elif config.base.dtype != "float32":
            problems.append(f"{entry.label} trains in fp32: set base.dtype to float32")
    return problems


def _twice(entries: Sequence[Entry], identities: Sequence[str]) -> list[str]:
    first: dict[str, Entry] = {}
    problems = []
    for entry, own in zip(entries, identities, strict=True):
        if own in first:
            problems.append(f"{entry.name} is the same adapter as {first[own].name}: leave one out")
        first.setdefault(own, entry)
    names = [e.name for e in entries]
    return problems or [f"two adapters are called {n}" for n in set(names) if names.count(n) > 1]


def _memory(sweep: Sweep, facts: BaseFacts) -> tuple[float, list[str]]:
    """Bytes that one rank of a job needs, and what is wrong with that."""
    jobs, config = sweep.file.jobs, sweep.config
    world = jobs.nodes * jobs.ranks_per_node
    ranks = Ranks(0, world, 0, jobs.ranks_per_node, torch.device("cpu"))
    kind = config.placement.kind
    try:
        # `auto` shares no more than it must.
        sizes = [1, jobs.ranks_per_node, world] if kind == "auto" else [group_size(kind, ranks)]
    except UserError as e:
        return 0.0, [str(e)]
    problems = []
    if world > config.data.readers:
        problems.append(
            f"a job has {world} ranks and data.readers is {config.data.readers}: give each rank one"
        )
    each = 4 if config.base.dtype == "float32" else 2
    beside = activation_bytes(facts, config) + _PROCESS_BYTES
    have = jobs.memory_gb * 1e9 if jobs.memory_gb else _own_memory()
    needs = {size: facts.parameters * each / size + beside for size in sizes}
    sharing = next((size for size, need in needs.items() if need <= have), sizes[-1])
    need = needs[sharing]
    if need > have:
        problems.append(
            f"it can never fit: a rank needs about {need / 1e9:.1f} GB (base "
            f"{facts.parameters * each / 1e9:.1f} GB over {sharing} ranks, a micro-batch of "
            f"{config.training.micro_batch}) and has {have / 1e9:.1f}; "
            "share the base among more ranks (placement.kind), or lower training.micro_batch"
        )
    return need, problems


def _own_memory() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _pack(
    missing: Sequence[Entry],
    sweep: Sweep,
    facts: BaseFacts,
    indexes: dict[str, ShardIndex],
    nodes: int,
) -> list[Packed]:
    packed = []
    alone: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in missing:
        if entry.method.kind != "salsa":
            method = entry.method.model_dump_json(exclude={"scale"})
            language = entry.language if entry.method.kind in _ONE_LANGUAGE else ""
            alone.setdefault((entry.stage, entry.corpus, method, language), []).append(entry)
    packed += [_cost(own, sweep, facts, indexes[own[0].corpus]) for own in alone.values()]
    own = [e for e in missing if e.method.kind == "salsa"]
    for stage in dict.fromkeys(e.stage for e in own):
        packed += _pack_bank([e for e in own if e.stage == stage], sweep, facts, indexes, nodes)
    return packed


def _pack_bank(
    missing: Sequence[Entry],
    sweep: Sweep,
    facts: BaseFacts,
    indexes: dict[str, ShardIndex],
    nodes: int,
) -> list[Packed]:
    """Adapters of steering vectors, as many in a job as it has room for."""
    most = sweep.file.jobs.adapters
    packed: list[Packed] = []
    for corpus in dict.fromkeys(e.corpus for e in missing):
        groups: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in missing:
            if entry.corpus == corpus:
                seed = None if sweep.file.halving else entry.seed
                groups.setdefault((entry.language, seed, entry.minutes), []).append(entry)
        cut = [g[i : i + most] for g in groups.values() for i in range(0, len(g), most)]
        index = indexes[corpus]
        priced = [(_cost(group, sweep, facts, index).packed, group) for group in cut]
        priced.sort(key=lambda one: -one[0])  # stable: of equals the file's order
        at_once = max(1, nodes // sweep.file.jobs.nodes)
        bins: list[tuple[float, list[Entry]]] = [
            (0.0, []) for _ in range(min(len(cut), max(at_once, -(-sum(map(len, cut)) // most))))
        ]
        for cost, group in priced:
            room = [i for i, (_, b) in enumerate(bins) if len(b) + len(group) <= most]
            if not room:
                bins.append((0.0, []))
                room = [len(bins) - 1]
            i = min(room, key=lambda i: (bins[i][0], i))
            bins[i] = (bins[i][0] + cost, bins[i][1] + group)
        packed += [_cost(entries, sweep, facts, indexes[corpus]) for _, entries in bins if entries]
    return packed


def _cost(entries: list[Entry], sweep: Sweep, facts: BaseFacts, index: ShardIndex) -> Packed:
    """The FLOP of a job, packed and one by one, and the clips that it decodes."""
    config = sweep.config
    decoded = sum(_decoded(entry, sweep, index) for entry in entries)
    kind = entries[0].method.kind
    if kind in _UNTRAINED:
        return Packed(list(entries), 0.0, 0.0, decoded=decoded)
    if isinstance(entries[0].method, MeanDifferenceMethod):
        languages = {e.language for e in entries} | {entries[0].method.contrast}
        flop = len(languages) * entries[0].method.clips * decoding_flop(facts)
        return Packed(list(entries), flop, flop, decoded=decoded)
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.language, entry.seed, entry.minutes), []).append(entry)
    packed = separate = kept = kept_clips = 0.0
    for group in groups.values():
        sites = [e.sites for e in group]
        shards = index.select("train", group[0].language)
        if group[0].minutes is not None:
            shards = take_minutes(shards, group[0].minutes, group[0].seed or 0)
        draws = (group[0].steps or config.training.steps) * config.data.clips_of_a_step(_mean_s(shards))
        separate += draws * sum(clip_cost(facts, [s], False).each_step for s in sites)
        if kind != "salsa":
            packed = separate  # each by itself, on a base of its own
            continue
        clips = min(draws, sum(len(s.entries) for s in shards))
        packed += draws * clip_cost(facts, sites, facts.shares).each_step
        with_kept = clip_cost(facts, sites, facts.shares, kept=facts.shares)
        kept += draws * with_kept.each_step + clips * with_kept.once
        kept_clips += clips
    each = 4 if config.base.dtype == "float32" else 2
    clip_bytes = facts.encoder_tokens * facts.width * each
    return Packed(list(entries), packed, separate, kept, kept_clips * clip_bytes, decoded)


def _decoded(entry: Entry, sweep: Sweep, index: ShardIndex) -> int:
    """Clips that are transcribed for one entry."""
    if "evaluate" not in _verbs(sweep, entry):
        return 0
    settings = _evaluation(sweep, entry)
    there: dict[str, int] = {}
    for shard in index.shards:
        if shard.split == settings["split"]:
            there[shard.language] = there.get(shard.language, 0) + shard.samples
    forgetting = settings["forgetting"] if entry.stage == "final" else False
    heard = {entry.language, *(there if forgetting is True else forgetting or ())}
    clips = sum(min(there.get(x, 0), settings["clips"] or there.get(x, 0)) for x in heard)
    return clips * len(settings["windows_s"])


def _kinds(entries: Sequence[Entry]) -> str:
    labels = list(dict.fromkeys(e.label for e in entries))
    return labels[0] if len(labels) == 1 else f"{len(labels)} methods"


def _mean_s(shards: Sequence[Shard]) -> float:
    """Seconds of a clip, on average."""
    return sum(s.seconds for s in shards) / max(1, sum(s.samples for s in shards))


def _measured(sweep: Sweep, facts: BaseFacts, jobs: Sequence[JobFolder]) -> float | None:
    """FLOP of the estimate that the sweep's finished jobs made a second."""
    flop = seconds = 0.0
    for job in jobs:
        steps = [e for e in job.events() if e["event"] == "step"] if job.done else []
        config = load_config(job.config) if steps and not job.dropped() else None
        if config is not None and config.method.kind == "salsa":
            groups: dict[tuple[Any, ...], list[str]] = {}
            for a in config.adapter_settings():
                groups.setdefault((a.language, a.seed, a.minutes), []).append(a.sites)
            each = sum(clip_cost(facts, s, facts.shares).each_step for s in groups.values())
            flop += sum(e["clips"] for e in steps) / len(config.adapters) * each
            seconds += sum(e["seconds"] for e in steps)
    return flop / seconds if seconds else None


def _decoding_rates(jobs: Sequence[JobFolder]) -> dict[str, float]:
    """Clips a second of each kind of method, over the evaluations that are done."""
    clips: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for job in jobs:
        if job.done and "evaluate" in job.verbs:
            kind = load_config(job.config).method.kind
            summary = json.loads((job.path / "evaluation" / "summary.json").read_text(encoding="utf-8"))
            clips[kind] = clips.get(kind, 0) + summary["clips"]
            seconds[kind] = seconds.get(kind, 0) + summary["seconds"]
    return {kind: clips[kind] / seconds[kind] for kind in clips if seconds[kind] and clips[kind]}


def _verbs(sweep: Sweep, entry: Entry) -> list[str]:
    """What a job of such entries does."""
    train = [] if entry.method.kind in _UNTRAINED else ["train"]
    decodes = entry.stage == "final" or (entry.stage == "try" and sweep.file.tuning.choose_by == "cer")
    return [*train, *(["evaluate"] if decodes else [])]


def _evaluation(sweep: Sweep, entry: Entry) -> dict[str, Any]:
    """Settings of what is decoded: the base as it is at all windows, adapters at that of training."""
    own = sweep.config.evaluation
    tree = own.model_dump(mode="json", exclude={"batch", "placement"})
    if entry.method.kind != "zero-shot":
        tree |= {"windows_s": [sweep.config.base.window_s], "zero_shot": False}
    if entry.stage == "try":
        tree |= {"split": "dev", "clips": sweep.file.dev_clips}
    return tree


def _job_config(sweep: Sweep, entries: Sequence[Entry]) -> dict[str, Any]:
    tree = sweep.config.model_dump(mode="json")
    tree["data"]["shards"] = str(Path(sweep.corpora[entries[0].corpus]).absolute())
    tree["adapters"] = [
        {
            "name": e.name,
            "language": e.language,
            "sites": e.sites,
            "rule": e.rule,
            "lr": e.lr,
            "seed": e.seed,
            "minutes": e.minutes,
            "steps": e.steps,
            "scale": getattr(e.method, "scale", None),
            "start_from": str(e.start_from.absolute()) if e.start_from else None,
        }
        for e in entries
    ]
    first = entries[0]
    tree["method"] = first.method.model_dump(mode="json")
    if first.stage:
        tree["evaluation"] |= _evaluation(sweep, first)
    if first.stage == "final" and first.method.kind in ("salsa", "mean-difference"):
        # Forgetting tells whether adapters that are off leave the base as it is.
        tree["evaluation"]["zero_shot"] = bool(tree["evaluation"]["forgetting"])
    if first.stage == "try":
        # A choice hears its own language alone.
        tree["evaluation"]["forgetting"] = False
        # A learning rate that is too high loses; it does not stop the others of its job.
        tree["training"]["max_skipped"] = first.steps
    if tree["training"]["prefix_cache"] == "disk":
        tree["training"]["prefix_folder"] = str((sweep.file.sweep / "prefix").absolute())
    Config.model_validate(tree)
    return tree
