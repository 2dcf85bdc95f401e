"""One of two ranks that share each family's base by ZeRO-3; started by test_conformance.py.

The first rank has three clips, the second one: unequal label counts, lengths and transcripts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conformance import RULES, clips, gradients, kept_bytes, loaded, random_bank

import salsa_dist  # noqa: F401 -- before transformers
from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import silent_clip
from salsa_dist.placement.decode import generate
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import join
from salsa_dist.placement.recompute import recompute_in_backward
from salsa_dist.steering.sites import whole_layers


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with join() as ranks:
        placement = PlacementConfig(kind="full", ds_config=out / "ds.json")
        for family, folder in json.loads((out / "folders.json").read_text()).items():
            base = loaded(family, folder)
            bank = random_bank(base, RULES)
            frozen = FrozenBase(base, bank, ranks, placement)
            mine = clips(base)[:3] if ranks.rank == 0 else clips(base)[3:]
            # Twice: DeepSpeed records the order of modules in the first pass, prefetches by it later.
            for _ in range(2):
                losses, found = gradients(frozen, mine)
            kept = kept_bytes(frozen, mine)
            undo = recompute_in_backward(whole_layers(base.layer_lists).values(), bank)
            _, checkpointed = gradients(frozen, mine)
            undo()
            # A rank with no clip left trains on silence without labels.
            _, first_only = gradients(frozen, mine if ranks.rank == 0 else [silent_clip("bg")])
            resident = torch.tensor(sum(p.data.numel() for p in base.model.parameters()))
            texts: list[list[str]] = [[], []]
            dist.all_gather_object(texts, [t.text for t in generate(frozen, mine, 4)])
            # A rank with no clip left steps along.
            generate(frozen, mine if ranks.rank == 0 else [], 2)
            loss = losses.sum()
            for tensor in (
                loss,
                resident,
                *found.values(),
                *first_only.values(),
                *checkpointed.values(),
            ):
                dist.all_reduce(tensor)
            report = {
                "loss": float(loss),
                "resident": int(resident),
                "gradients": found,
                "first_only": first_only,
                "checkpointed": checkpointed,
                "kept": kept,
                "texts": texts[0] + texts[1],
            }
            if ranks.is_first:
                torch.save(report, out / f"{family}.pt")
            frozen.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
