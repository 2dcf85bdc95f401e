"""What a family hands to a base: a batch whose every element knows its adapter.

inputs           keyword arguments of the model's forward: (batch, …) tensors
label_positions  (batch, tokens) bool: the positions whose next token is a label
labels           (labels,) int64, in the order of those positions
label_rows       (labels,) int64, the adapter's row of each label
rows             component -> (n,) int64, the adapter's row of each element of that component's
                 layers' outputs (samples for most; chunks or packed tokens for some encoders)
heard            where clips are shared by adapters: the keys of the clips that the encoder hears, once
                 each; `inputs` holds the audio of these alone
clip_of          (n,) int64, for each sample the one of `heard` that it is of; None: nothing is shared
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdapterBatch:
    keys: list[str]
    inputs: dict[str, Tensor]
    label_positions: Tensor
    labels: Tensor
    label_rows: Tensor
    rows: dict[str, Tensor]
    heard: tuple[str, ...] = ()
    clip_of: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> AdapterBatch:
        """On `device`, with the floating-point inputs in the base's `dtype`."""
        return replace(
            self,
            inputs={k: _move(v, device, dtype) for k, v in self.inputs.items()},
            label_positions=self.label_positions.to(device),
            labels=self.labels.to(device),
            label_rows=self.label_rows.to(device),
            rows={k: v.to(device) for k, v in self.rows.items()},
        )


@dataclass(frozen=True)
class PromptBatch:
    """Audio and prompts to be continued by the base.

    Attributes:
        inputs: tensors for `generate`, (batch, …).
        options: its other arguments, such as languages.
        rows, clip_of: as in `AdapterBatch`.
    """

    inputs: dict[str, Tensor]
    options: dict[str, Any]
    rows: dict[str, Tensor]
    clip_of: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> PromptBatch:
        """On `device`, with the floating-point inputs in the base's `dtype`."""
        return replace(
            self,
            inputs={k: _move(v, device, dtype) for k, v in self.inputs.items()},
            rows={k: v.to(device) for k, v in self.rows.items()},
        )


@dataclass(frozen=True)
class Transcript:
    """What a base made of one clip; `finished` is false where the token limit cut it off."""

    text: str
    finished: bool


def _move(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None)
