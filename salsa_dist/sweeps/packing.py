"""Packs adapters into jobs, and estimates the cost of each job.

Adapters that take the same clips in each step (corpus, language, seed, size, steps) go into one job,
where those clips are computed once below the first steered layer; with halving all that compete do.
Such groups are dealt to jobs, the dearest first, always to the cheapest job that has room. Other
methods than salsa have jobs of their own: one for each language where a base is loaded for each
adapter, zero-shot and mean differences one for all languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from salsa_dist.config import load_config
from salsa_dist.data.index import Shard, ShardIndex
from salsa_dist.data.subset import training_shards
from salsa_dist.evaluation import summary as evaluation_summary
from salsa_dist.sweeps.cost import BaseFacts, clip_cost, decoding_flop
from salsa_dist.sweeps.folder import JobFolder
from salsa_dist.sweeps.grid import Experiment, Sweep
from salsa_dist.sweeps.job_config import evaluation, verbs


@dataclass(frozen=True)
class Packed:
    """A job to be made: its adapters, and the FLOP of its training, packed and separate.

    Attributes:
        decoded: clips that it transcribes, once for each adapter.
    """

    experiments: list[Experiment]
    packed: float
    separate: float
    kept_packed: float = 0.0
    kept_bytes: float = 0.0
    decoded: int = 0


def pack(
    missing: Sequence[Experiment],
    sweep: Sweep,
    facts: BaseFacts,
    indexes: dict[str, ShardIndex],
    nodes: int,
) -> list[Packed]:
    """Jobs for experiments that are missing.

    Args:
        nodes: nodes that jobs can run on at the same time.
    """
    packed = []
    alone: dict[tuple[Any, ...], list[Experiment]] = {}
    for e in missing:
        if not e.method.in_a_bank:
            method = e.method.model_dump_json(exclude={"scale"})
            language = e.language if e.method.needs_whole_base else ""
            alone.setdefault((e.stage, e.corpus, method, language), []).append(e)
    packed += [_cost(own, sweep, facts, indexes[own[0].corpus]) for own in alone.values()]
    own = [e for e in missing if e.method.in_a_bank]
    for stage in dict.fromkeys((e.stage, bool(e.seeds_of)) for e in own):
        these = [e for e in own if (e.stage, bool(e.seeds_of)) == stage]
        packed += _pack_bank(these, sweep, facts, indexes, nodes)
    return packed


def _pack_bank(
    missing: Sequence[Experiment],
    sweep: Sweep,
    facts: BaseFacts,
    indexes: dict[str, ShardIndex],
    nodes: int,
) -> list[Packed]:
    """Adapters of steering vectors, as many in a job as it has room for."""
    most = sweep.file.jobs.adapters
    packed: list[Packed] = []
    for corpus in dict.fromkeys(e.corpus for e in missing):
        groups: dict[tuple[Any, ...], list[Experiment]] = {}
        for e in missing:
            if e.corpus == corpus:
                seed = None if sweep.file.halving else e.seed
                groups.setdefault((e.language, seed, e.minutes, e.steps), []).append(e)
        cut = [g[i : i + most] for g in groups.values() for i in range(0, len(g), most)]
        index = indexes[corpus]
        priced = [(_cost(group, sweep, facts, index).packed, group) for group in cut]
        priced.sort(key=lambda one: -one[0])  # stable: of equals the file's order
        at_once = max(1, nodes // sweep.file.jobs.nodes)
        bins: list[tuple[float, list[Experiment]]] = [
            (0.0, []) for _ in range(min(len(cut), max(at_once, -(-sum(map(len, cut)) // most))))
        ]
        for cost, group in priced:
            room = [i for i, (_, b) in enumerate(bins) if len(b) + len(group) <= most]
            if not room:
                bins.append((0.0, []))
                room = [len(bins) - 1]
            i = min(room, key=lambda i: (bins[i][0], i))
            bins[i] = (bins[i][0] + cost, bins[i][1] + group)
        packed += [
            _cost(experiments, sweep, facts, indexes[corpus]) for _, experiments in bins if experiments
        ]
    return packed


def _cost(experiments: list[Experiment], sweep: Sweep, facts: BaseFacts, index: ShardIndex) -> Packed:
    """The FLOP of a job, packed and separate, and the number of clips that it decodes."""
    config = sweep.config
    decoded = sum(_decoded(e, sweep, index) for e in experiments)
    if not experiments[0].method.trains or experiments[0].seeds_of:
        return Packed(list(experiments), 0.0, 0.0, decoded=decoded)
    if not experiments[0].method.learns:
        clips = experiments[0].method.clips_computed({e.language for e in experiments})
        flop = clips * decoding_flop(facts)
        return Packed(list(experiments), flop, flop, decoded=decoded)
    groups: dict[tuple[Any, ...], list[Experiment]] = {}
    for e in experiments:
        groups.setdefault((e.language, e.seed, e.minutes, e.steps), []).append(e)
    packed = separate = kept = kept_clips = 0.0
    for group in groups.values():
        sites = [e.sites for e in group]
        shards = training_shards(index, [group[0].language], group[0].minutes, group[0].seed or 0)
        samples = (group[0].steps or config.training.steps) * config.data.clips_of_a_step(
            mean_clip_s(shards)
        )
        separate += samples * sum(clip_cost(facts, [s], False).each_step for s in sites)
        if not experiments[0].method.in_a_bank:
            packed = separate  # each by itself, on a base of its own
            continue
        clips = min(samples, sum(len(s.entries) for s in shards))
        packed += samples * clip_cost(facts, sites, facts.shares).each_step
        with_kept = clip_cost(facts, sites, facts.shares, kept=facts.shares)
        kept += samples * with_kept.each_step + clips * with_kept.once
        kept_clips += clips
    each = 4 if config.base.dtype == "float32" else 2
    clip_bytes = facts.encoder_tokens * facts.width * each
    return Packed(list(experiments), packed, separate, kept, kept_clips * clip_bytes, decoded)


def _decoded(experiment: Experiment, sweep: Sweep, index: ShardIndex) -> int:
    """Clips that are transcribed for one experiment."""
    if "evaluate" not in verbs(sweep, experiment):
        return 0
    settings = evaluation(sweep, experiment)
    there: dict[str, int] = {}
    for shard in index.shards:
        if shard.split == settings["split"]:
            there[shard.language] = there.get(shard.language, 0) + shard.samples
    forgetting = settings["forgetting"] if experiment.stage == "final" else False
    decoded_in = {experiment.language, *(there if forgetting is True else forgetting or ())}
    clips = sum(min(there.get(x, 0), settings["clips"] or there.get(x, 0)) for x in decoded_in)
    return clips * len(settings["windows_s"]) * len({1.0, *settings["scales"]})


def measured_flop(facts: BaseFacts, jobs: Sequence[JobFolder]) -> float | None:
    """FLOP of the estimate that the sweep's finished jobs made a second."""
    flop = seconds = 0.0
    for job in jobs:
        steps = [e for e in job.events() if e["event"] == "step"] if job.done else []
        config = load_config(job.config) if steps and not job.dropped() else None
        if config is not None and config.method.in_a_bank:
            groups: dict[tuple[Any, ...], list[str]] = {}
            for a in config.adapter_settings():
                groups.setdefault((a.language, a.seed, a.minutes), []).append(a.sites)
            each = sum(clip_cost(facts, s, facts.shares).each_step for s in groups.values())
            flop += sum(e["clips"] for e in steps) / len(config.adapters) * each
            seconds += sum(e["seconds"] for e in steps)
    return flop / seconds if seconds else None


def decoding_rates(jobs: Sequence[JobFolder]) -> dict[str, float]:
    """Clips a second of each kind of method, over the evaluations that are done."""
    clips: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for job in jobs:
        if job.done and "evaluate" in job.verbs:
            kind = load_config(job.config).method.kind
            summary = evaluation_summary.read(job.path)
            if summary is not None:
                clips[kind] = clips.get(kind, 0) + (summary.clips or 0)
                seconds[kind] = seconds.get(kind, 0) + (summary.seconds or 0.0)
    return {kind: clips[kind] / seconds[kind] for kind in clips if seconds[kind] and clips[kind]}


def mean_clip_s(shards: Sequence[Shard]) -> float:
    """The mean length of a clip in seconds."""
    return sum(s.seconds for s in shards) / max(1, sum(s.samples for s in shards))
