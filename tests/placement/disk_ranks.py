"""One of two ranks whose parts of the base lie in files between uses; started by test_disk_offload.py.

    torchrun --nproc_per_node 2 disk_ranks.py BASE OUT

Writes OUT/rankR.json: how far the gradients are from those without offload, and where the parts lay.
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

# DeepSpeed leaves parts under 1 MiB in memory.
SETTINGS = {
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
        "offload_param": {"buffer_count": 8, "max_in_cpu": 0},
    }
}
STEPS = 3


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with join() as ranks:
        (out / f"ds{ranks.rank}.json").write_text(json.dumps(SETTINGS))
        found = [steer(folder, out, ranks, kind) for kind in ("full", "replicate")]
        (out / f"rank{ranks.rank}.json").write_text(json.dumps(found))


def steer(folder: Path, out: Path, ranks: Ranks, kind: str) -> dict[str, object]:
    disk = out / kind
    disk.mkdir(exist_ok=True)
    placement = PlacementConfig(
        kind=kind, offload="nvme", nvme_path=disk, ds_config=out / f"ds{ranks.rank}.json"
    )
    wanted = wanted_gradients(folder, ranks)
    loaded = load_base(BaseConfig(name=str(folder)), ranks, placement, silent)
    frozen = FrozenBase(loaded, random_bank(loaded, ["salsa", "add", "salsa"]), ranks, placement)
    distances = []
    for _ in range(STEPS):
        _, found = gradients(frozen, clips(loaded))
        distances += [apart(found[site], wanted[site]) for site in wanted]
    parts = [p.ds_tensor for p in loaded.model.parameters()]
    on_disk = [part for part in parts if str(part.final_location) == "OffloadDeviceEnum.nvme"]
    files = list(disk.glob(f"**/rank{ranks.rank}/*.swp"))
    report: dict[str, object] = {
        "apart": max(distances),
        "parts_on_disk": len(on_disk),
        "bytes_of_them": sum(part.ds_numel * loaded.model.dtype.itemsize for part in on_disk),
        "still_in_memory": sum(part.numel() for part in on_disk),
        "files": len(files),
        "bytes_in_files": sum(file.stat().st_size for file in files),
        "resident": resident_bytes(frozen),
        "buffers": sum(b.numel() * b.element_size() for b in loaded.model.buffers()),
    }
    frozen.close()
    return report


def wanted_gradients(folder: Path, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Of the whole base in memory."""
    placement = PlacementConfig(kind="replicate")
    loaded = load_base(BaseConfig(name=str(folder)), ranks, placement, silent)
    frozen = FrozenBase(loaded, random_bank(loaded, ["salsa", "add", "salsa"]), ranks, placement)
    _, wanted = gradients(frozen, clips(loaded))
    frozen.close()
    return wanted


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
