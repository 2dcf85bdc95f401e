"""What a run has left: its events and its vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from salsa_dist import SteeringVectors


def events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The events of a run, or those of one kind."""
    every = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [event for event in every if kind in (None, event["event"])]


def vectors(run: Path) -> dict[str, torch.Tensor]:
    """The vectors of a run, each by its adapter and site."""
    return {
        f"{path.name} {site}": vector
        for path in sorted((run / "adapters").iterdir())
        for site, vector in SteeringVectors.load(path).vectors.items()
    }
