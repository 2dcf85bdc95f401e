"""A placement's DeepSpeed config: a file of ds_configs/ or the user's own, filled in for a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from salsa_dist import built_in
from salsa_dist.errors import UserError


def ds_settings(
    path: Path | None,
    kind: str | int,
    dtype: torch.dtype,
    offload: str = "none",
    nvme_path: Path | None = None,
) -> dict[str, Any]:
    """The DeepSpeed config of a placement, with the precision of the base and offload filled in.

    Args:
        path: a file, or the name of one in ds_configs/; None: the one there of the placement's name.
        kind: `placement.kind`.
        dtype: of the base.
        offload: where parts are between uses; `none` leaves what the file says.
        nvme_path: folder for `offload` nvme.

    Raises:
        UserError: the file can't be used for a frozen base.
    """
    if path is None:
        name = kind if isinstance(kind, str) else "group"
        path = built_in.folder("ds_configs") / f"{name}.json"
    path = built_in.ds_config(path)
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(
            f"DeepSpeed config {path} can't be read ({e.strerror}): set placement.ds_config"
        ) from e
    except ValueError as e:
        raise UserError(f"DeepSpeed config {path} is not valid JSON: {e}") from e
    if settings.get("zero_optimization", {}).get("stage") != 3:
        raise UserError(
            f"DeepSpeed config {path}: zero_optimization.stage must be 3 for sharded weights"
        )
    if "optimizer" in settings:
        raise UserError(f"DeepSpeed config {path}: drop 'optimizer', the base is frozen")
    if offload != "none":
        target = settings["zero_optimization"].setdefault("offload_param", {})
        target["device"] = offload
        if nvme_path is not None:
            target["nvme_path"] = str(nvme_path)
    if target := settings["zero_optimization"].get("offload_param"):
        # Without a GPU there is nothing to pin for, and DeepSpeed would compile what pins for minutes.
        target["pin_memory"] = torch.cuda.is_available() and target.get("pin_memory", True)
    # DeepSpeed insists on a batch size, which only its own training loop would use.
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["bf16"] = {"enabled": dtype == torch.bfloat16}
    settings["fp16"] = {"enabled": dtype == torch.float16}
    return settings
