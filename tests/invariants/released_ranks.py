"""One of two ranks that train with the base cut over both; started by test_released.py.

    torchrun --nproc_per_node 2 released_ranks.py OUT

OUT/CASE.yaml is a run's config. Of each, OUT/CASE-rankR.json tells by step what of the base lay whole
on this rank when backward had ended, and what when the step's sum over all ranks began; how often the
weights of a module were fetched while DeepSpeed's record of their order was complete, being made, or
invalid; and how many passes ran the layers below the first steered one apart, once a clip.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import salsa_dist  # noqa: F401 -- before transformers
from salsa_dist.config import load_config
from salsa_dist.libraries.deepspeed import fetching
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.training import loop, opening, optimizer

Whole = dict[str, int]


class Watched(FrozenBase):
    """Notes what backward left gathered, before it is released."""

    now: Watched
    left: list[Whole]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        Watched.now, Watched.left = self, []
        self.fetches: Counter[str] = Counter()
        self.apart = 0
        assert self.zero is not None
        coordinator = fetching(self.zero._offload)
        fetch = coordinator.fetch_sub_module

        def counted(*arguments: Any, **named: Any) -> None:
            kinds = {"complete": coordinator.is_complete_trace(), "made": coordinator.is_record_trace()}
            self.fetches[next((kind for kind, so in kinds.items() if so), "invalid")] += 1
            fetch(*arguments, **named)

        coordinator.fetch_sub_module = counted

    def _prefix(self, batch: AdapterBatch) -> torch.Tensor:
        self.apart += 1
        return super()._prefix(batch)

    def after_backward(self) -> None:
        self.left.append(self.whole())
        super().after_backward()

    def whole(self) -> Whole:
        """Elements of each weight that is whole here, and may not stay so."""
        named: list[tuple[str, Any]] = list(self.model.named_parameters())
        return {n: p.data.numel() for n, p in named if p.data.numel() > 0 and not p.ds_persist}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    after: list[Whole] = []
    fetches: list[Counter[str]] = []
    reduce_step = optimizer.reduce_step

    def noted(*arguments: Any) -> Any:
        after.append(Watched.now.whole())
        fetches.append(Counter(Watched.now.fetches))
        Watched.now.fetches.clear()
        return reduce_step(*arguments)

    opening.FrozenBase = Watched  # type: ignore[misc]
    optimizer.reduce_step = noted
    for config in sorted(out.glob("*.yaml")):
        after.clear()
        fetches.clear()
        loop.train(load_config(config))
        base = Watched.now
        persistent: list[Any] = [p for p in base.model.parameters() if p.ds_persist]
        facts = {
            "left": Watched.left,
            "after": after,
            "fetches": fetches,
            "apart": base.apart,
            "steps": len(after),
            "base_bytes": base.base_bytes,
            "buffer_bytes": sum(b.numel() * b.element_size() for b in base.model.buffers()),
            "persistent_bytes": sum(p.ds_numel * p.element_size() for p in persistent),
        }
        rank = base.ranks.rank
        (out / f"{config.stem}-rank{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
