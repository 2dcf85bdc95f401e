"""placement: how many consecutive ranks share one copy of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from salsa_dist.config.decides import Neither, Place
from salsa_dist.config.sections.section import Folder, Section


class PlacementConfig(Section):
    kind: Neither[Literal["replicate", "node", "full", "auto"] | int] = Field(
        "auto",
        description="shard group size, the ranks that share one copy of the base: replicate (1), node, "
        "full (all), or a number; auto: the smallest that fits",
    )
    ds_config: Place[Path | None] = Field(
        None,
        description="DeepSpeed config: a file, or a name in ds_configs/ such as lean.json; null: the "
        "one for this placement",
    )
    offload: Neither[Literal["none", "cpu", "nvme"]] = Field(
        "none",
        description="where partitions are stored between uses: on the device, in RAM, or on a disk",
    )
    nvme_path: Place[Folder | None] = Field(
        None, description="folder on each node's own disk, for offload: nvme"
    )
