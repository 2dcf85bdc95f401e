"""What a job of some entries is: what it does, its config, and the identity of each entry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salsa_dist.config import Config
from salsa_dist.config.fingerprint import digest_of, settings
from salsa_dist.data.index import ShardIndex
from salsa_dist.places import absolute
from salsa_dist.steering.sites import select
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.sweeps.cost import BaseFacts
from salsa_dist.sweeps.grid import Entry, Sweep


def verbs(sweep: Sweep, entry: Entry) -> list[str]:
    """What a job of such entries does."""
    train = ["train"] if entry.method.trains else []
    by_loss = sweep.file.tuning.choose_by == "loss"
    decodes = entry.stage == "final" or (entry.stage == "try" and not by_loss)
    return [*train, *(["evaluate"] if decodes else [])]


def evaluation(sweep: Sweep, entry: Entry) -> dict[str, Any]:
    """Settings of what is decoded: the base as it is at all windows, adapters at that of training."""
    own = sweep.config.evaluation
    tree = own.model_dump(mode="json", exclude={"batch", "placement"})
    if entry.method.adapts:
        tree |= {"windows_s": [sweep.config.base.window_s], "zero_shot": False}
    if entry.stage == "try":
        tree |= {"split": "dev", "clips": sweep.file.dev_clips}
    return tree


def job_config(sweep: Sweep, entries: Sequence[Entry]) -> dict[str, Any]:
    """The config file of a job of `entries`, as a tree."""
    tree = sweep.config.model_dump(mode="json")
    tree["data"]["shards"] = absolute(sweep.corpora[entries[0].corpus])
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
            "start_from": _found_from_anywhere(e.start_from) if e.start_from else None,
        }
        for e in entries
    ]
    first = entries[0]
    tree["method"] = first.method.model_dump(mode="json")
    if first.stage:
        tree["evaluation"] |= evaluation(sweep, first)
    if first.stage == "final" and first.method.steers:
        # Forgetting tells whether adapters that are off leave the base as it is.
        tree["evaluation"]["zero_shot"] = bool(tree["evaluation"]["forgetting"])
    if first.stage == "try":
        # A choice uses its own language only.
        tree["evaluation"]["forgetting"] = False
        # A learning rate that is too high loses; it does not stop the others of its job.
        tree["training"]["max_skipped"] = first.steps
    if tree["training"]["prefix_cache"] == "disk":
        tree["training"]["prefix_folder"] = str((sweep.file.sweep / "prefix").absolute())
    Config.model_validate(tree)
    return tree


def _found_from_anywhere(adapter: Path) -> str:
    """A folder's full path; a name on a hub as it is."""
    return str(adapter.absolute() if adapter.exists() else adapter)


def identity(entry: Entry, sweep: Sweep, facts: BaseFacts, index: ShardIndex) -> str:
    """SHA-256 over all that decides an adapter's vectors and transcripts; its name is not of it.

    Sites count by what they are in this base, and an adapter to start from by its vectors. What a job
    decides by halving does not count: what was trained to its end is the same without.
    """
    config = Config.model_validate(job_config(sweep, [entry]))
    config = config.model_copy(
        update={"training": config.training.model_copy(update={"halving": None})}
    )
    tree: dict[str, Any] = {"revision": facts.revision, "shards": index.hash}
    does = verbs(sweep, entry)
    if "train" in does:
        decided = settings(config, "vectors")
        decided["adapters.0.sites"] = select(entry.sites, facts.layers)
        if entry.start_from is not None:
            decided["adapters.0.start_from"] = SteeringVectors.load(entry.start_from).digest()
        scales = config.training.lr_scale if entry.method.in_a_bank else {}
        decided["training.lr_scale"] = [[select(w, facts.layers), scale] for w, scale in scales.items()]
        tree["vectors"] = decided
    else:
        tree["adapter"] = [entry.method.kind, entry.language, entry.seed]
    if "evaluate" in does:
        tree |= {kind: settings(config, kind) for kind in ("transcripts", "coverage")}
    return digest_of(tree)
