"""Adapters that come and go, trained together: a process of test_packed_invariant.py.

torchrun --nproc_per_node 2 packed_ranks.py OUT          both ranks, replicated and sharded
packed()                                                 the same in one process, or one alone

step        0 1 2 3 4 5 6 7
all         x x x x x x x x     every site, salsa
sometimes   x x   x x   x x     absent from every third step; the encoder's last half, add
early       x x x x             ends early; the LLM's last half, salsa
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import salsa_dist  # noqa: F401 -- before transformers
from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import SAMPLE_RATE, Clip, silent_clip
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers, select
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.loss import token_losses
from salsa_dist.training.optimizer import PackedAdam, Schedule, reduce_step

STEPS = {"whisper": 50}  # the other families: fewer, since each is here for its own layers
OTHERS = 20
TEXTS = ["лека нощ", "one two three", "vuk", "kon ptica leti"]
Vectors = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Member:
    """One adapter: where and how it steers, how fast, and in which steps it takes part."""

    name: str
    sites: str
    rule: str
    lr: float
    language: str
    seed: int
    ends: float = 1.0  # after this share of the steps
    rests: bool = False

    def takes_part(self, step: int, steps: int) -> bool:
        return step < self.ends * steps and not (self.rests and step % 3 == 2)

    def clips(self, step: int, row: int) -> list[Clip]:
        """Three clips, of unequal lengths and texts; the same for members of one seed and language."""
        rng = np.random.default_rng([self.seed, step])
        clips = []
        for i in range(3):
            audio = 0.1 * rng.standard_normal(int(SAMPLE_RATE * rng.uniform(0.3, 1.7)))
            text = TEXTS[int(rng.integers(len(TEXTS)))]
            key = f"{self.language}/{self.seed}/{step}/{i}"
            clips.append(Clip(key, audio.astype(np.float32), text, self.language, row))
        return clips


MEMBERS = [
    Member("all", "encoder+llm", "salsa", 0.01, "bg", 1),
    Member("sometimes", "encoder:last-half", "add", 0.02, "bg", 1, rests=True),
    Member("early", "llm:last-half", "salsa", 0.03, "el", 2, ends=0.4),
]


def packed(
    base: SpeechLLM, members: list[Member], ranks: Ranks, placement: PlacementConfig, steps: int
) -> tuple[Vectors, int]:
    """What `members` learn in one job; and how many numbers of the base this rank holds after it."""
    layers = find_layers(base.model)
    counts = {component: len(stack) for component, stack in layers.items()}
    specs = [AdapterSpec(m.name, tuple(select(m.sites, counts)), m.rule) for m in members]
    bank = Bank(specs, site_widths(layers))
    frozen = FrozenBase(base, bank, ranks, placement)
    adam = PackedAdam(
        bank, [Schedule(m.lr, round(m.ends * steps), 0.1, "cosine") for m in members], 0.3
    )
    for step in range(steps):
        active = [row for row, member in enumerate(members) if member.takes_part(step, steps)]
        if not active:
            continue
        sampled = [(i, clip) for r in active for i, clip in enumerate(members[r].clips(step, r))]
        # Rank 0 has two clips of each adapter, rank 1 one: unequal label counts.
        mine = [clip for i, clip in sampled if i % 2 == ranks.rank or ranks.world_size == 1]
        clips = mine or [silent_clip("bg")]
        distinct = list({clip.key: clip for clip in clips}.values())
        batch = base.family.shared_batch(clips, distinct)
        for vector in bank.vectors.values():
            vector.grad = None
        of_labels = token_losses(frozen, batch)
        of_labels.sum().backward()
        frozen.after_backward()
        losses, labels = torch.zeros(len(members)), torch.zeros(len(members))
        losses.index_add_(0, batch.label_rows, of_labels.detach())
        labels.index_add_(0, batch.label_rows, torch.ones_like(of_labels))
        adam.step(reduce_step(bank, active, losses, labels, False).gradients, active)
    held = sum(p.data.numel() for p in base.model.parameters())
    frozen.close()
    learned = {
        spec.name: {site: bank.vectors[site][row].detach().clone() for site in spec.sites}
        for row, spec in enumerate(specs)
    }
    return learned, held


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with join() as ranks:
        for family, folder in json.loads((out / "folders.json").read_text()).items():
            steps = STEPS.get(family, OTHERS)
            for kind in ("replicate", "full"):
                placement = PlacementConfig(kind=kind, ds_config=out / "ds.json")
                learned, held = packed(load_speech_llm(folder), MEMBERS, ranks, placement, steps)
                if ranks.is_first:
                    torch.save({"learned": learned, "held": held}, out / f"{family}-{kind}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
