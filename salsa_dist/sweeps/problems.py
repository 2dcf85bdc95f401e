"""Errors that prevent a sweep, or one experiment; found before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from salsa_dist.data.index import ShardIndex
from salsa_dist.data.subset import training_shards
from salsa_dist.errors import UserError
from salsa_dist.machine import memory as own_memory
from salsa_dist.methods.registry import METHODS
from salsa_dist.metrics.error_rates import misnamed
from salsa_dist.placement.ranks import Ranks, group_size
from salsa_dist.speech_llms.quantization import BYTES_EACH
from salsa_dist.steering.sites import select
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.sweeps.cost import BaseFacts, activation_bytes
from salsa_dist.sweeps.grid import Experiment, Sweep
from salsa_dist.sweeps.packing import Packed, mean_clip_s

# Memory that a rank needs beside the base and its activations: Python, torch and its libraries.
_PROCESS_BYTES = 1e9


def wrong_with(
    experiment: Experiment, sweep: Sweep, facts: BaseFacts, indexes: dict[str, ShardIndex]
) -> list[str]:
    """Reasons why one adapter cannot be trained."""
    problems = _wrong_method(experiment, sweep, facts, indexes) + _wrong_rate(experiment, sweep)
    if experiment.lr is not None and not experiment.lr > 0:
        problems.append(f"{experiment.name}: lr is {experiment.lr:g}, it must be more than 0")
    try:
        if not select(experiment.sites, facts.layers):
            problems.append(f"{experiment.name}: sites {experiment.sites!r} are none")
    except UserError as e:
        problems.append(str(e))
    if experiment.corpus not in indexes:
        if experiment.corpus not in sweep.corpora:
            problems.append(f"{experiment.name}: no corpus {experiment.corpus!r} in the grid")
        return problems
    index, data = indexes[experiment.corpus], sweep.config.data
    try:
        seed = experiment.seed or 0
        shards = training_shards(index, [experiment.language], experiment.minutes, seed)
        clips = sum(len(shard.entries) for shard in shards)
        a_step = data.clips_of_a_step(mean_clip_s(shards))
        if clips < a_step:
            problems.append(f"{experiment.language}: too few clips, {clips} for {a_step} per step")
        if len(shards) < data.readers:
            problems.append(
                f"{experiment.language}: {len(shards)} training shards for {data.readers} readers; "
                "lower data.readers"
            )
        if sweep.config.training.dev_clips:
            index.select("dev", experiment.language)
        if experiment.stage == "final":
            index.select(sweep.config.evaluation.split, experiment.language)
    except UserError as e:
        problems.append(str(e))
    return problems


def _wrong_method(
    experiment: Experiment, sweep: Sweep, facts: BaseFacts, indexes: dict[str, ShardIndex]
) -> list[str]:
    """Reasons why its method cannot run on this base, in this sweep."""
    method, config = experiment.method, sweep.config
    problems = []
    if experiment.start_from is not None:
        try:
            SteeringVectors.load(experiment.start_from)
        except UserError as e:
            problems.append(f"{experiment.label}: {e}")
    if method.needs_whole_base:
        ways = {"placement": config.placement, "evaluation.placement": config.evaluation.placement}
        for key, placement in ways.items():
            if placement.kind not in ("replicate", "auto") or placement.offload != "none":
                problems.append(
                    f"{experiment.label} needs a whole base on each rank: set {key}.kind to replicate "
                    "and offload to none"
                )
    contrast: str | None = getattr(method, "contrast", None)
    if contrast is not None:
        if experiment.language == contrast:
            problems.append(
                f"{experiment.label}: {experiment.language} is in the grid too, and can't differ"
            )
        if experiment.corpus in indexes:
            try:
                indexes[experiment.corpus].select("train", contrast)
            except UserError as e:
                problems.append(f"{experiment.label}: {e}")
    try:
        chosen = {site.partition(".")[0] for site in select(experiment.sites, facts.layers)}
    except UserError:
        return problems  # told elsewhere
    unfit = METHODS[method.kind].unfit(method, chosen, facts, config.base.dtype)
    return problems + [f"{experiment.label}{why}" for why in unfit]


def _wrong_rate(experiment: Experiment, sweep: Sweep) -> list[str]:
    """Reasons why its language cannot be compared by the requested rate."""
    halving = sweep.file.halving
    asked: dict[str, str] = (
        {"tuning.choose_by": sweep.file.tuning.choose_by} if sweep.file.methods else {}
    )
    if halving is not None:
        asked["halving.metric"] = halving.metric
    found = {key: misnamed(rate, experiment.language) for key, rate in asked.items()}
    return [f"{key} is {asked[key]}, and {why}" for key, why in found.items() if why]


def twice(experiments: Sequence[Experiment], identities: Sequence[str]) -> list[str]:
    """Entries that are the same adapter as another, or called like one."""
    first: dict[str, Experiment] = {}
    problems = []
    for experiment, own in zip(experiments, identities, strict=True):
        if own in first:
            problems.append(f"{experiment.name} is the same adapter as {first[own].name}: remove one")
        first.setdefault(own, experiment)
    names = [e.name for e in experiments]
    return problems or [f"two adapters are called {n}" for n in set(names) if names.count(n) > 1]


def memory(sweep: Sweep, facts: BaseFacts, device: str | None = None) -> tuple[float, list[str]]:
    """The bytes of memory that one rank of a job needs, and errors; `device`: see `make_plan`."""
    jobs, config = sweep.file.jobs, sweep.config
    world = jobs.nodes * jobs.ranks_per_node
    ranks = Ranks(0, world, 0, jobs.ranks_per_node, torch.device("cpu"))
    kind = config.placement.kind
    try:
        # `auto` shares no more than it must.
        shared = [] if config.base.quantization else [jobs.ranks_per_node, world]
        sizes = [1, *shared] if kind == "auto" else [group_size(kind, ranks)]
    except UserError as e:
        return 0.0, [str(e)]
    problems = []
    if world > config.data.readers:
        problems.append(
            f"a job has {world} ranks and data.readers is {config.data.readers}: give each rank one"
        )
    whole = 4 if config.base.dtype == "float32" else 2
    each = BYTES_EACH[config.base.quantization] if config.base.quantization else whole
    beside = activation_bytes(facts, config) + _PROCESS_BYTES
    have, beside_it = _memory_of_a_rank(sweep, device)
    needs = {size: facts.parameters * each / size + beside for size in sizes}
    sharing = next((size for size, need in needs.items() if need <= have), sizes[-1])
    need = needs[sharing]
    if need > have:
        problems.append(
            f"it can never fit: a rank needs about {need / 1e9:.1f} GB (base "
            f"{facts.parameters * each / 1e9:.1f} GB over {sharing} ranks, a micro-batch of "
            f"{config.training.clips_per_pass}) and has {have / 1e9:.1f}{beside_it}; "
            "share the base among more ranks (placement.kind), lower training.micro_batch or "
            "jobs.at_once, or say in jobs.memory_gb what a rank has where the jobs run"
        )
    return need, problems


def _memory_of_a_rank(sweep: Sweep, device: str | None) -> tuple[float, str]:
    """The bytes that a rank has, and a text about the ranks that share them with it."""
    jobs, set_device = sweep.file.jobs, sweep.config.device
    if jobs.memory_gb:
        return jobs.memory_gb * 1e9, ""
    kind = device if set_device == "auto" else set_device
    if torch.cuda.is_available() and kind != "cpu":
        return float(torch.cuda.get_device_properties(0).total_memory), ""
    if kind == "cuda":  # jobs for a cluster, planned where no GPU is: they check it as they start
        return math.inf, ""
    whole = own_memory()
    sharing = jobs.ranks_per_node * jobs.at_once  # a GPU has one rank, a machine's memory all of them
    if sharing == 1:
        return whole, ""
    shared = (
        f", of {whole / 1e9:.1f} for {jobs.at_once} jobs at once of {jobs.ranks_per_node} ranks each"
    )
    return whole / sharing, shared


def refuse_prefix(sweep: Sweep, new: Sequence[Packed]) -> None:
    """Refuse a kept prefix that the jobs could not keep, before any of them starts."""
    training = sweep.config.training
    if training.prefix_cache == "off" or not new:
        return
    # One rank's memory holds its own clips; a disk holds those of all ranks and jobs.
    if training.prefix_cache == "disk":
        size = sum(p.kept_bytes for p in new) / 1e9
    else:
        jobs = sweep.file.jobs
        size = max(p.kept_bytes for p in new) / (jobs.nodes * jobs.ranks_per_node) / 1e9
    if size > training.prefix_cache_gb:
        raise UserError(
            f"sweep {sweep.path} can't run with training.prefix_cache: it takes about {size:.2f} GB, "
            f"more than training.prefix_cache_gb = {training.prefix_cache_gb:g}; or set it off"
        )
