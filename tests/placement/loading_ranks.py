"""One of four ranks, on two pretended nodes, that load each family's base; started by test_loading.py.

Writes, on every rank, OUT/rankR.json: of each family and placement whether the logits are those of the
whole base to the bit, how much of the checkpoint this rank read, and how much of the base it holds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from conformance import apart, clips, gradients, random_bank

import salsa_dist  # noqa: F401 -- before transformers
from salsa_dist.config import BaseConfig, PlacementConfig
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.loading import load_base, silent
from salsa_dist.placement.measured import resident_bytes
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.speech_llms.weight_files import StoredTensor


def main(out: Path) -> None:
    torch.set_num_threads(1)
    count_reads()
    facts = {}
    with join() as whole_world:
        # Two nodes of two ranks.
        ranks = Ranks(whole_world.rank, 4, whole_world.rank % 2, 2, whole_world.device)
        for family, folder in json.loads((out / "folders.json").read_text()).items():
            for kind in ("node", "full") if family in ("whisper", "granite_speech") else ("node",):
                placement = PlacementConfig(kind=kind, ds_config=out / "ds.json")
                facts[f"{family} {kind}"] = compare(BaseConfig(name=folder), ranks, placement)
        folder = json.loads((out / "folders.json").read_text())["whisper"]
        for kind in ("replicate", "full"):
            placement = PlacementConfig(kind=kind, offload="cpu", ds_config=out / "ds.json")
            facts[f"offloaded {kind}"] = steer(BaseConfig(name=folder), ranks, placement)
        (out / f"rank{ranks.rank}.json").write_text(json.dumps(facts))


def compare(base: BaseConfig, ranks: Ranks, placement: PlacementConfig) -> dict[str, object]:
    StoredTensor.read_bytes = 0
    loaded = load_base(base, ranks, placement, silent)
    bank = random_bank(loaded, ["salsa"] * 3)
    frozen = FrozenBase(loaded, bank, ranks, placement)
    read = StoredTensor.read_bytes
    whole = load_speech_llm(base.name)
    report = {
        "read": read,
        "base_bytes": frozen.base_bytes,
        "buffer_bytes": sum(b.numel() * b.element_size() for b in loaded.model.buffers()),
        "parts": resident_bytes(frozen),
        "logits_equal": torch.equal(logits(loaded, ranks), logits(whole, ranks)),
    }
    frozen.close()
    return report


def logits(base: SpeechLLM, ranks: Ranks) -> torch.Tensor:
    batch = base.family.training_batch(clips(base)).to(ranks.device, torch.float32)
    with torch.no_grad():
        found: torch.Tensor = base.model(**batch.inputs, use_cache=False).logits
    return found


def steer(base: BaseConfig, ranks: Ranks, placement: PlacementConfig) -> dict[str, object]:
    loaded = load_base(base, ranks, placement, silent)
    frozen = FrozenBase(loaded, random_bank(loaded, ["salsa", "add", "salsa"]), ranks, placement)
    between = resident_bytes(frozen)
    for _ in range(2):
        _, found = gradients(frozen, clips(loaded))
    whole = load_speech_llm(base.name)
    alone = FrozenBase(
        whole, random_bank(whole, ["salsa", "add", "salsa"]), ranks, PlacementConfig(kind="replicate")
    )
    _, wanted = gradients(alone, clips(whole))
    parts = [p.ds_tensor for p in loaded.model.parameters()]
    report = {
        "apart": max(apart(found[site], wanted[site]) for site in wanted),
        "resident": between,
        "buffer_bytes": sum(b.numel() * b.element_size() for b in loaded.model.buffers()),
        "held_on": sorted({part.device.type for part in parts}),
        "parts": sum(part.numel() for part in parts),
        "parameters": loaded.parameters,
    }
    frozen.close()
    alone.close()
    return report


def count_reads() -> None:
    read = StoredTensor.read

    def counted(self: StoredTensor, begin: int, end: int) -> torch.Tensor:
        StoredTensor.read_bytes += (end - begin) * self.dtype.itemsize
        return read(self, begin, end)

    StoredTensor.read = counted
    StoredTensor.read_bytes = 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
