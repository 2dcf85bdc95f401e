"""Identities that release 0.1 gave to experiments of a sweep, so that its jobs are found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from salsa_dist.config import Config
from salsa_dist.config.release_0_1 import digest_of_release_0_1
from salsa_dist.data.index import ShardIndex
from salsa_dist.steering.sites import select
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.sweeps.cost import BaseFacts
from salsa_dist.sweeps.folder import known_by
from salsa_dist.sweeps.grid import Experiment, Sweep
from salsa_dist.sweeps.job_config import evaluation, identity, job_config, verbs

# Its keys; later ones were not of it.
_BASE = {"dtype", "window_s", "stage_to", "prompt", "layers", "language_as"}
_DATA = {
    *("clips_per_step", "seconds_per_step", "join_clips"),
    *("readers", "max_bad", "stage_to", "augment"),
}
_EVALUATION = ("split", "clips", "windows_s", "max_new_tokens", "decoding", "zero_shot", "forgetting")


def older_identities(
    experiments: Sequence[Experiment], sweep: Sweep, facts: BaseFacts, indexes: Mapping[str, ShardIndex]
) -> dict[str, str]:
    """From the identity in release 0.1 to today's identity of the same experiment."""
    found = {}
    for experiment in experiments:
        tree = job_config(sweep, [experiment])
        index = indexes[experiment.corpus]
        if digest_of_release_0_1(Config.model_validate(tree)) is not None:
            older = known_by(_identity(experiment, sweep, facts, index), tree)
            found[older] = identity(experiment, sweep, facts, index)
    return found


def _identity(experiment: Experiment, sweep: Sweep, facts: BaseFacts, index: ShardIndex) -> str:
    """SHA-256 of an experiment as release 0.1 made it."""
    config = sweep.config
    training = config.training
    kind = experiment.method.kind
    tree: dict[str, Any] = {
        "method": kind if kind == "salsa" else experiment.method.model_dump(mode="json"),
        "revision": facts.revision,
        "shards": index.hash,
        "base": config.base.model_dump(mode="json", include=_BASE),
        "data": config.data.model_dump(mode="json", include=_DATA),
        "training": [
            experiment.steps or training.steps,
            training.warmup,
            training.decay,
            training.clip_norm,
            *([training.window_s] if training.window_s else []),
            *([{"silence_stride": training.silence_stride}] if training.silence_stride != 1 else []),
            *([_rates_of(training.lr_scale, facts)] if training.lr_scale and kind == "salsa" else []),
        ],
        "language": experiment.language,
        "sites": select(experiment.sites, facts.layers),
        "adapter": [experiment.rule, experiment.lr, experiment.seed, experiment.minutes],
    }
    if experiment.start_from is not None:
        tree["start_from"] = SteeringVectors.load(experiment.start_from).digest()
    if not experiment.method.trains:
        del tree["training"], tree["sites"]
    if "evaluate" in verbs(sweep, experiment):
        told = evaluation(sweep, experiment)
        tree["evaluation"] = {key: told[key] for key in _EVALUATION}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _rates_of(scales: Mapping[str, float] | str, facts: BaseFacts) -> Any:
    if isinstance(scales, str):
        return scales  # measured, which release 0.1 could not: equal to none of its identities
    return [[select(words, facts.layers), scale] for words, scale in scales.items()]
