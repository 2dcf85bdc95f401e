"""The pass before training that fills the prefix cache; see `kept_prefix.py`.

clips that this rank will use ─► those not kept yet ─► as many calls on all ranks ─► KeptPrefix
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from salsa_dist.config import Config
from salsa_dist.data.clip import silent_clip
from salsa_dist.data.index import Entry, Shard
from salsa_dist.data.reading import read_clip
from salsa_dist.errors import UserError
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.kept_prefix import KeptPrefix, Known
from salsa_dist.run.folder import RunFolder
from salsa_dist.speech_llms.base_files import UNKNOWN
from salsa_dist.steering.adapter_folder import known_as


def keep_prefix(
    config: Config,
    base: FrozenBase,
    revision: str,
    shards: str,
    needed: Iterable[tuple[Shard, Entry]],
    moved: Callable[[], None],
) -> KeptPrefix:
    """Fill a store with all clips of `needed`, and start training from it. All ranks call this.

    Args:
        revision, shards: hashes of the base and of the shard list.
        needed: all clips that this rank will use.
        moved: called before each pass, as often on all ranks.

    Raises:
        UserError: the base can't, or there is no room for so many clips.
    """
    training = config.training
    family = base.family
    wanted = {entry.key: (shard, entry) for shard, entry in needed}
    silence = silent_clip(family.languages[0])
    moved()
    store = KeptPrefix(_folder(config, base, revision, shards))
    # Silence first: every rank needs it, and it shows how large a clip is.
    store.put("", Known.of(silence), base.prefix_of([silence])[0])
    clip_bytes = store.get([""], torch.device("cpu")).nbytes
    missing = store.missing(list(wanted))
    counts = torch.tensor([len(wanted), len(missing)], dtype=torch.int64, device=base.ranks.device)
    dist.all_reduce(counts, op=dist.ReduceOp.MAX)
    most, most_missing = counts.tolist()
    shares = base.ranks.world_size if training.prefix_cache == "disk" else 1
    size_gb = most * clip_bytes * shares / 1e9
    if size_gb > training.prefix_cache_gb:
        where = "on disk" if training.prefix_cache == "disk" else "on one rank"
        raise UserError(
            f"training.prefix_cache: {most} clips of {clip_bytes / 1e6:.2f} MB take {size_gb:.2f} GB "
            f"{where}, more than training.prefix_cache_gb = {training.prefix_cache_gb:g}: give it "
            "more, or set prefix_cache to off"
        )
    size = training.clips_per_pass
    for start in range(0, most_missing, size):
        moved()
        clips = [read_clip(config.data.shards, *wanted[key]) for key in missing[start : start + size]]
        hidden = base.prefix_of(clips or [silence])
        for clip, own in zip(clips, hidden, strict=False):
            store.put(clip.key, Known.of(clip), own)
    store.missing(list(wanted))
    base.start_from(store)
    return store


def _folder(config: Config, base: FrozenBase, revision: str, shards: str) -> Path | None:
    if config.training.prefix_cache == "memory":
        return None
    if revision == UNKNOWN:
        raise UserError(
            f"training.prefix_cache=disk: the commit of base {config.base.name} is unknown, so its "
            "cached prefixes could be another base's: name a folder, or set prefix_cache=memory"
        )
    name = known_as(config.base.name)
    ends = "before " * base.shared.before_first + base.shared.first
    key = [name, revision, shards, ends, str(base.dtype), base.family.window_s]
    key += [config.base.quantization] if config.base.quantization else []
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return (config.training.prefix_folder or RunFolder(config.run).prefix) / digest
