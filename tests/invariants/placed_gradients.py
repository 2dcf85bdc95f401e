"""One rank of the placement test: gradients of one fixed step under every placement.

    torchrun --nproc_per_node 4 placed_gradients.py BASE OUT

Four ranks stand for two nodes of two. For each placement, precision and with or without activation
checkpointing, every rank writes OUT/PLACEMENT-DTYPE-MEMORY-rankR.safetensors with the reduced gradient
of each site and the losses of the adapters, and beside it a JSON with what the rank held of the base
and which collectives it took part in. The test compares them with one process that never met DeepSpeed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from collectives import collectives
from conformance import kept_bytes
from safetensors.torch import save_file

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.libraries.deepspeed import part_of
from salsa_dist.placement.decode import generate
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.measured import measured_facts, resident_bytes, watched
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import site_modules
from salsa_dist.training.loss import token_losses
from salsa_dist.training.optimizer import Reduced, reduce_step

RANKS = 4
DTYPES = ("float32", "bfloat16")
MEMORY = ("kept", "checkpointed")
# Placement: its setting, and how many ranks a node has. An island is of two nodes, here of one rank.
PLACEMENTS: dict[str, tuple[str | int, int]] = {
    "replicate": ("replicate", 2),
    "node": ("node", 2),
    "island": (2, 1),
    "full": ("full", 2),
}
# The island's groups are the node's: one precision and one way of backward are enough for it.
COMBINATIONS = [
    (name, dtype, memory)
    for name, dtype, memory in product(PLACEMENTS, DTYPES, MEMORY)
    if name != "island" or (dtype, memory) == ("float32", "kept")
]
# Rank 0 gets four clips with long texts, another one short clip, the last none at all: a loss averaged
# over ranks, or over clips, would give other gradients than one averaged over labels.
TEXTS = ["lisa i vuk v gorata", "mechka", "kon i zaek i riba", "ptica leti", "kotka", "da", "ne"]
ON_RANK = [[0, 1, 2, 3], [4], [5, 6], []]
# Three calls of generate() for the first rank, two for the third, none for the last.
TRANSCRIBED = [[[0, 1], [2], [3]], [[4]], [[5], [6]], []]
MICRO_BATCH = 3
# At DeepSpeed's default every weight of a tiny base would stay whole on every rank, and the test would
# pass without anything being sharded.
STRICT = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    # Prefetching runs ahead of every small module: a tiny base would be whole at the peak, and its
    # weights would still be there when backward or a checkpointed layer comes to need them again.
    "stage3_prefetch_bucket_size": 0,
}
# Some of the small weights may stay: those of up to 40 elements, 500 elements in all.
THRESHOLD = {
    **STRICT,
    "stage3_param_persistence_threshold": 40,
    "stage3_model_persistence_threshold": 500,
}
MANY = 256
ACTIVE = [3, 200]


def clips() -> list[Clip]:
    rng = np.random.default_rng(7)
    return [
        Clip(
            f"clip-{i}",
            (0.1 * rng.standard_normal(4000 + 3000 * i)).astype(np.float32),
            text,
            ["bg", "el"][i % 2],
            row=i % 3 % 2,
        )
        for i, text in enumerate(TEXTS)
    ]


def make_bank(sites: list[str]) -> Bank:
    """Two adapters that differ in rule and sites, with vectors away from zero."""
    specs = [AdapterSpec("a", tuple(sites), "salsa"), AdapterSpec("b", tuple(sites[1:]), "add")]
    bank = Bank(specs, dict.fromkeys(sites, 32))
    generator = torch.Generator().manual_seed(3)
    for row, spec in enumerate(specs):
        bank.set_row(row, {s: 0.1 * torch.randn(32, generator=generator) for s in spec.sites})
    return bank


def one_step(base: FrozenBase, mine: list[Clip]) -> Reduced:
    """Two passes on every rank, as the training loop makes them."""
    losses, labels = torch.zeros(2), torch.zeros(2)
    for vector in base.bank.vectors.values():
        vector.grad = None
    passes = -(-max(map(len, ON_RANK)) // MICRO_BATCH)
    for i in range(passes):
        batch = base.family.training_batch(mine[i::passes] or [silent_clip("bg")])
        of_labels = token_losses(base, batch)
        of_labels.sum().backward()
        base.after_backward()
        losses.index_add_(0, batch.label_rows, of_labels.detach())
        labels.index_add_(0, batch.label_rows, torch.ones_like(of_labels))
    return reduce_step(base.bank, [0, 1], losses, labels, stop=False)


def main(base_folder: Path, out: Path) -> None:
    with join() as ranks:
        for name, zero in (("strict", STRICT), ("threshold", THRESHOLD)):
            if ranks.is_first:
                (out / f"{name}.ds.json").write_text(json.dumps({"zero_optimization": zero}))
        dist.barrier()
        for name, dtype, memory in COMBINATIONS:
            measure(base_folder, out, ranks, name, dtype, memory)
        thresholds(base_folder, out, ranks)
        many_adapters(out, ranks)


def placed(
    base_folder: Path, out: Path, ranks: Ranks, name: str, dtype: str, memory: str, ds: str = "strict"
) -> FrozenBase:
    kind, ranks_a_node = PLACEMENTS[name]
    speech_llm = load_speech_llm(base_folder, dtype=dtype)
    bank = make_bank(list(site_modules(speech_llm.model)))
    return FrozenBase(
        speech_llm,
        bank,
        replace(ranks, local_world_size=ranks_a_node),
        PlacementConfig(kind=kind, ds_config=out / f"{ds}.ds.json"),
        activation_checkpointing=memory == "checkpointed",
    )


def measure(base_folder: Path, out: Path, ranks: Ranks, name: str, dtype: str, memory: str) -> None:
    base = placed(base_folder, out, ranks, name, dtype, memory)
    before = weights_hash(base)
    mine = [clips()[i] for i in ON_RANK[ranks.rank]]
    one_step(base, mine)  # the first step of ZeRO-3 differs from the later ones
    with collectives() as seen, watched(base) as traffic:
        reduced = one_step(base, mine)
    facts: dict[str, Any] = {
        "resident": resident_bytes(base),
        "still_whole": whole(base) if base.size > 1 else {},
        "base_bytes": base.base_bytes,
        "gathered": traffic.gathered_bytes,
        "peak": traffic.peak_bytes,
        "reduced": reduced.bytes,
        "told": measured_facts(base, traffic, reduced.bytes),
        "collectives": [[c.kind, list(c.ranks), c.bytes] for c in seen],
    }
    if (dtype, memory) == ("float32", "kept"):
        calls = max(map(len, TRANSCRIBED))
        given = TRANSCRIBED[ranks.rank] + [[]] * calls
        groups = [generate(base, [clips()[i] for i in given[call]], 4) for call in range(calls)]
        facts["transcripts"] = [t.text for group in groups for t in group]
        again = one_step(base, mine)  # and training goes on after generating
        facts["again"] = [float((again.gradients[s] - g).norm()) for s, g in reduced.gradients.items()]
    facts["kept"] = kept_bytes(base, mine or clips()[:1])
    facts["unchanged"] = weights_hash(base) == before
    facts["changed_weights"] = changed_weights(base, checkpoint(base_folder, dtype))
    facts["owned_gradients"] = [n for n, p in base.model.named_parameters() if p.grad is not None]
    path = out / f"{name}-{dtype}-{memory}-rank{ranks.rank}"
    path.with_suffix(".json").write_text(json.dumps(facts))
    save_file({**reduced.gradients, "losses": reduced.losses}, path.with_suffix(".safetensors"))
    base.close()


def weights_hash(base: FrozenBase) -> str:
    """SHA-256 of what this rank holds of the base: its whole weights, or its parts of them."""
    digest = hashlib.sha256()
    for p in base.model.parameters():
        held = part_of(p) if base.zero else p.data
        digest.update(held.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def whole(base: FrozenBase) -> dict[str, int]:
    """The weights that lie whole on this rank now, and their elements."""
    return {n: p.data.numel() for n, p in base.model.named_parameters() if p.data.numel() > 0}


def changed_weights(base: FrozenBase, wanted: dict[str, torch.Tensor]) -> list[str]:
    """Weights that, put together again from the parts of the group, differ from the checkpoint's."""
    named = dict(base.model.named_parameters())
    if base.size == 1:
        return [name for name, p in named.items() if not torch.equal(p, wanted[name])]
    mine = torch.cat([p.ds_tensor.data for p in named.values()])
    parts = [torch.empty_like(mine) for _ in range(base.size)]
    dist.all_gather(parts, mine, group=next(iter(named.values())).ds_process_group)
    sizes = [p.ds_tensor.numel() for p in named.values()]
    pieces = zip(*(part.split(sizes) for part in parts), strict=True)
    return [
        name
        for (name, p), own in zip(named.items(), pieces, strict=True)
        if not torch.equal(torch.cat(own)[: p.ds_numel].view(p.ds_shape), wanted[name])
    ]


@cache
def checkpoint(base_folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """The weights as transformers loads them."""
    return dict(load_speech_llm(base_folder, dtype=dtype).model.named_parameters())


def thresholds(base_folder: Path, out: Path, ranks: Ranks) -> None:
    """What stays gathered where DeepSpeed is allowed to keep small weights."""
    base = placed(base_folder, out, ranks, "full", "float32", "kept", "threshold")
    mine = [clips()[i] for i in ON_RANK[ranks.rank]]
    one_step(base, mine)
    with watched(base) as traffic:
        one_step(base, mine)
    facts = {
        **measured_facts(base, traffic, 0),
        "still_whole": whole(base),
        "resident": resident_bytes(base),
    }
    (out / f"threshold-rank{ranks.rank}.json").write_text(json.dumps(facts))
    base.close()


def many_adapters(out: Path, ranks: Ranks) -> None:
    """A bank of 256 adapters of which two are in this step; every row has a gradient of its own."""
    sites = {"encoder.0": 32, "llm.0": 48}
    # The second active adapter steers one site only.
    specs = [AdapterSpec(str(i), tuple(sites)[i == ACTIVE[1] :], "salsa") for i in range(MANY)]
    bank = Bank(specs, sites)
    for vector in bank.vectors.values():
        rows = torch.arange(1.0, MANY + 1).unsqueeze(1)
        vector.grad = rows.expand_as(vector) * (ranks.rank + 1)
    losses = torch.arange(1.0, MANY + 1)
    with collectives() as seen:
        reduced = reduce_step(bank, ACTIVE, losses, torch.full((MANY,), 2.0), stop=False)
    facts = {
        "collectives": Counter(c.kind for c in seen),
        "bytes": sum(c.bytes for c in seen),
        "reported": reduced.bytes,
        "moved_rows": {s: g.any(1).nonzero().flatten().tolist() for s, g in reduced.gradients.items()},
        "values": {s: g[:, 0].tolist() for s, g in reduced.gradients.items()},
    }
    (out / f"many-rank{ranks.rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
