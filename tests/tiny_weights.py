"""Weights of tiny checkpoints."""

from __future__ import annotations

from typing import Any

import torch


def randomise(model: Any) -> Any:
    """Weights large enough that audio, prompt and vectors all move the logits."""
    for name, parameter in model.eval().named_parameters():
        if parameter.ndim > 1 and "position" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model
