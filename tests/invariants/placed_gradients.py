"""One rank of the placement test: gradients of one fixed step under several placements.

    torchrun --nproc_per_node 2 placed_gradients.py BASE OUT DTYPE

Writes, on every rank, OUT/PLACEMENT-rankR.safetensors with the reduced gradient of each site, the
losses of the adapters, and what the rank held of the base; the test compares them with one process
that never met DeepSpeed.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import Clip
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import site_modules
from salsa_dist.training.optimizer import Reduced, reduce_step

# Rank 0 gets five clips with long texts, rank 1 two with short ones: a loss averaged over ranks, or
# over clips, would give other gradients than one averaged over labels.
TEXTS = ["lisa i vuk v gorata", "mechka", "kon i zaek i riba", "ptica leti", "kotka", "da", "ne"]
ON_RANK = [[0, 1, 2, 3, 4], [5, 6]]
STRICT = {
    "zero_optimization": {
        "stage": 3,
        # At DeepSpeed's default every weight of a tiny base would stay whole on every rank, and the
        # test would pass without anything being sharded.
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
    }
}


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


def one_step(base: FrozenBase, mine: list[Clip], micro_batch: int = 16) -> Reduced:
    losses, labels = torch.zeros(2), torch.zeros(2)
    for vector in base.bank.vectors.values():
        vector.grad = None
    for start in range(0, len(mine), micro_batch):
        batch = base.family.training_batch(mine[start : start + micro_batch])
        token_losses = base.token_losses(batch)
        token_losses.sum().backward()
        base.after_backward()
        losses.index_add_(0, batch.label_rows, token_losses.detach())
        labels.index_add_(0, batch.label_rows, torch.ones_like(token_losses))
    return reduce_step(base.bank, [0, 1], losses, labels, stop=False)


def main(base_folder: Path, out: Path, dtype: str) -> None:
    strict = out / "strict.json"
    with join() as ranks:
        if ranks.is_first:
            strict.write_text(json.dumps(STRICT))
        torch.distributed.barrier()
        for kind in ("replicate", "full"):
            measure(base_folder, out, dtype, ranks, PlacementConfig(kind=kind, ds_config=strict))


def measure(base_folder: Path, out: Path, dtype: str, ranks: Ranks, placement: PlacementConfig) -> None:
    speech_llm = load_speech_llm(base_folder, dtype=dtype)
    bank = make_bank(list(site_modules(speech_llm.model)))
    base = FrozenBase(speech_llm, bank, ranks, placement)
    before = base.weights_hash()
    mine = [clips()[i] for i in ON_RANK[ranks.rank]]
    one_step(base, mine)  # the first step of ZeRO-3 differs from the later ones
    with base.watched() as traffic:
        reduced = one_step(base, mine)
    # An uneven number of clips to transcribe: rank 1 has none in its last call.
    transcripts = [base.generate(mine[:2], 6), base.generate(mine[2:4], 6)]
    one_step(base, mine)  # and training goes on after generating
    facts = {
        "resident": base.resident_bytes(),
        "still_whole": [n for n, p in base.model.named_parameters() if p.data.numel() > 0],
        "base_bytes": base.base_bytes,
        "gathered": traffic.gathered_bytes,
        "peak": traffic.peak_bytes,
        "unchanged": base.weights_hash() == before,
        "transcripts": [t.text for group in transcripts for t in group],
        "owned_gradients": [n for n, p in base.model.named_parameters() if p.grad is not None],
    }
    name = f"{placement.kind}-{dtype}-rank{ranks.rank}"
    (out / f"{name}.json").write_text(json.dumps(facts))
    save_file({**reduced.gradients, "losses": reduced.losses}, out / f"{name}.safetensors")
    base.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
