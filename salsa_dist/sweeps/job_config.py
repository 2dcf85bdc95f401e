"""Makes a job from experiments: its verbs, its config, and the identity of each experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from salsa_dist.config import Config
from salsa_dist.config.fingerprint import digest_of, settings
from salsa_dist.data.index import ShardIndex
from salsa_dist.places import absolute
from salsa_dist.steering.sites import select
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.sweeps.cost import BaseFacts
from salsa_dist.sweeps.grid import Experiment, Sweep


def verbs(sweep: Sweep, experiment: Experiment) -> list[str]:
    """The verbs of a job of such experiments."""
    train = ["train"] if experiment.method.trains and not experiment.seeds_of else []
    by_loss = sweep.file.tuning.choose_by == "loss"
    decodes = experiment.stage == "final" or (experiment.stage == "try" and not by_loss)
    return [*train, *(["evaluate"] if decodes else [])]


def evaluation(sweep: Sweep, experiment: Experiment) -> dict[str, Any]:
    """Evaluation settings: zero-shot at all windows, adapters at the training window."""
    own = sweep.config.evaluation
    tree = own.model_dump(mode="json", exclude={"batch", "placement"})
    if experiment.method.adapts:
        tree |= {"windows_s": [sweep.config.base.window_s], "zero_shot": False}
    if experiment.stage == "try":
        tree |= {"split": "dev", "clips": sweep.file.dev_clips}
    if experiment.stage == "try" or not experiment.method.steers:
        tree |= {"scales": []}
    return tree


def job_config(sweep: Sweep, experiments: Sequence[Experiment]) -> dict[str, Any]:
    """The config of a job of `experiments`."""
    tree = sweep.config.model_dump(mode="json")
    tree["data"]["shards"] = absolute(sweep.corpora[experiments[0].corpus])
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
            # A folder is found from any working folder; a name on a hub is unchanged.
            "start_from": e.start_from
            and str(e.start_from.absolute() if e.start_from.exists() else e.start_from),
        }
        for e in experiments
    ]
    first = experiments[0]
    tree["method"] = first.method.model_dump(mode="json")
    if not first.method.in_a_bank:
        tree["training"]["compile"] = "off"  # it is for vectors
    if first.stage:
        tree["evaluation"] |= evaluation(sweep, first)
    if first.stage == "final" and first.method.steers:
        # Forgetting tells whether adapters that are off leave the base as it is.
        tree["evaluation"]["zero_shot"] = bool(tree["evaluation"]["forgetting"])
    tree["evaluation"]["scales"] = evaluation(sweep, first)["scales"]
    if first.stage == "try":
        # A choice uses its own language only.
        tree["evaluation"]["forgetting"] = False
        # A learning rate that is too high loses; it does not stop the others of its job.
        tree["training"]["max_skipped"] = first.steps
    if tree["training"]["prefix_cache"] == "disk":
        tree["training"]["prefix_folder"] = str((sweep.file.sweep / "prefix").absolute())
    Config.model_validate(tree)
    return tree


def identity(experiment: Experiment, sweep: Sweep, facts: BaseFacts, index: ShardIndex) -> str:
    """SHA-256 over all that decides an adapter's vectors and transcripts; its name is not of it.

    Sites count by what they are in this base, and an adapter to start from by its vectors. What a job
    decides by halving does not count: what was trained to its end is the same without.
    """
    config = Config.model_validate(job_config(sweep, [experiment]))
    config = config.model_copy(
        update={"training": config.training.model_copy(update={"halving": None})}
    )
    tree: dict[str, Any] = {"revision": facts.revision, "shards": index.hash}
    does = verbs(sweep, experiment)
    if experiment.seeds_of:
        tree["mean"] = sorted(experiment.digests)
    elif "train" in does:
        decided = settings(config, "vectors")
        decided["adapters.0.sites"] = select(experiment.sites, facts.layers)
        if experiment.start_from is not None:
            decided["adapters.0.start_from"] = SteeringVectors.load(experiment.start_from).digest()
        scales = config.training.lr_scale if experiment.method.in_a_bank else {}
        decided["training.lr_scale"] = (
            [[select(words, facts.layers), scale] for words, scale in scales.items()]
            if isinstance(scales, dict)
            else scales
        )
        tree["vectors"] = decided
    else:
        tree["adapter"] = [experiment.method.kind, experiment.language, experiment.seed]
    if "evaluate" in does:
        tree |= {kind: settings(config, kind) for kind in ("transcripts", "coverage")}
    return digest_of(tree)
