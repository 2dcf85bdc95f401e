"""The batch that a family passes to a base: every element has an adapter index.

inputs           keyword arguments of the model's forward: (batch, …) tensors
label_positions  (batch, tokens) bool: the positions whose next token is a label
labels           (labels,) int64, in the order of those positions
label_rows       (labels,) int64, the adapter's row of each label
rows             component -> (n,) int64, the adapter's row of each element of that component's
                 layers' outputs (samples for most; chunks or packed tokens for some encoders)
shared           the audio where adapters share clips: then `inputs` holds none
label_counts     (batch,) int64, labels of each sample, where a loss is of whole samples (`OwnLoss`);
                 there `label_positions` are the frames that the labels are spread over
label_weights    (labels,) fp32, what each label's loss is multiplied by; None: 1
marked           how many `label_positions` are true; None until the batch is moved
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from salsa_dist.data.clip import Clip


@dataclass(frozen=True)
class SharedAudio:
    """Audio of the clips that the samples of a batch are of, each clip once.

    Attributes:
        keys: of the clips.
        inputs: audio arguments of the model's forward, clips one behind the other: (rows, …) each.
        rows: (clips,) int64, how many rows of `inputs` each clip has.
        elements: (clips,) int64, how many elements of an encoder layer's output each has.
        clip_of: (n,) int64, the clip of each sample.
    """

    keys: tuple[str, ...]
    inputs: dict[str, Tensor]
    rows: Tensor
    elements: Tensor
    clip_of: Tensor

    def of_samples(self) -> dict[str, Tensor]:
        """`inputs` with the clips' rows once for each sample."""
        ends = self.rows.cumsum(0).tolist()
        sizes = self.rows.tolist()
        taken = [r for c in self.clip_of.tolist() for r in range(ends[c] - sizes[c], ends[c])]
        places = torch.tensor(taken)
        return {name: _taken(tensor, places) for name, tensor in self.inputs.items()}

    def to(self, device: torch.device, dtype: torch.dtype) -> SharedAudio:
        """The same with `inputs` on `device`, in the base's `dtype` where they are floating-point."""
        return replace(self, inputs={k: _move(v, device, dtype) for k, v in self.inputs.items()})

    def samples(self) -> list[int]:
        """For each clip, the first sample that is of it."""
        clip_of = self.clip_of.tolist()
        return [clip_of.index(clip) for clip in range(len(self.keys))]


@dataclass(frozen=True)
class AdapterBatch:
    keys: list[str]
    inputs: dict[str, Tensor]
    label_positions: Tensor
    labels: Tensor
    label_rows: Tensor
    rows: dict[str, Tensor]
    shared: SharedAudio | None = None
    label_counts: Tensor | None = None
    label_weights: Tensor | None = None
    marked: int | None = None

    @classmethod
    def of(
        cls,
        clips: Sequence[Clip],
        inputs: dict[str, Tensor],
        label_positions: Tensor,
        labels: Sequence[Sequence[int]],
        encoder_rows: Tensor | None = None,
    ) -> AdapterBatch:
        """The batch of `clips`, each with its own labels.

        Args:
            clips: of the samples.
            inputs, label_positions: as above.
            labels: token ids of each clip.
            encoder_rows: `rows` of the encoder; None: an element is a sample.
        """
        rows = torch.tensor([clip.row for clip in clips])
        return cls(
            keys=[clip.key for clip in clips],
            inputs=inputs,
            label_positions=label_positions,
            labels=torch.tensor([i for own in labels for i in own], dtype=torch.long),
            label_rows=rows.repeat_interleave(torch.tensor([len(own) for own in labels])),
            rows={"encoder": rows if encoder_rows is None else encoder_rows, "llm": rows},
        )

    @property
    def sample_rows(self) -> Tensor:
        """(batch,) int64, the adapter's row of each sample."""
        return self.rows["llm"]

    def weighted(self, weights: Sequence[float]) -> AdapterBatch:
        """The same with the losses of each sample's labels multiplied by its weight, (batch,), too."""
        if all(weight == 1 for weight in weights):
            return self
        counts = self.label_positions.sum(1) if self.label_counts is None else self.label_counts
        each = torch.tensor(weights).repeat_interleave(counts.cpu())
        own = self.label_weights
        return replace(self, label_weights=each if own is None else own * each)

    def whole(self) -> dict[str, Tensor]:
        """Arguments of the model's forward for every sample."""
        return self.inputs if self.shared is None else {**self.inputs, **self.shared.of_samples()}

    def of_clips(self) -> dict[str, Tensor]:
        """The same for each shared clip once, with the text of the first sample that is of it."""
        assert self.shared is not None
        first = torch.tensor(self.shared.samples())
        texts = {k: _taken(v, first) for k, v in self.inputs.items()}
        return {**texts, **self.shared.inputs}

    def to(self, device: torch.device, dtype: torch.dtype) -> AdapterBatch:
        """On `device`, with the floating-point inputs in the base's `dtype`."""
        # Weights are no input of the base: they stay fp32.
        weights = self.label_weights
        return self._each(lambda t: _move(t, device, t.dtype if t is weights else dtype))

    def pin_memory(self) -> AdapterBatch:
        """The same in memory from which a GPU copies without a wait; the data loader calls this."""
        return self._each(Tensor.pin_memory)

    def share_memory(self) -> None:
        """Move all tensors to /dev/shm, from where another process takes them without a copy.

        Raises:
            RuntimeError: it is full.
        """
        audio, counts = self.shared, self.label_counts
        small = [] if audio is None else [audio.rows, audio.elements, audio.clip_of]
        small += [] if counts is None else [counts]
        for tensor in [*self.tensors(), *small]:
            if tensor.numel():
                tensor.share_memory_()

    def tensors(self) -> list[Tensor]:
        """What `to` moves."""
        audio = {} if self.shared is None else self.shared.inputs
        own = [self.label_positions, self.labels, self.label_rows]
        own += [self.label_weights] if self.label_weights is not None else []
        return [*self.inputs.values(), *own, *self.rows.values(), *audio.values()]

    def _each(self, made: Callable[[Tensor], Tensor]) -> AdapterBatch:
        shared = self.shared
        if shared is not None:
            shared = replace(shared, inputs={k: made(v) for k, v in shared.inputs.items()})
        return replace(
            self,
            inputs={k: made(v) for k, v in self.inputs.items()},
            label_positions=made(self.label_positions),
            labels=made(self.labels),
            label_rows=made(self.label_rows),
            label_weights=None if self.label_weights is None else made(self.label_weights),
            rows={k: made(v) for k, v in self.rows.items()},
            shared=shared,
            # Counted while the positions lie on the CPU: of a GPU it would have to be asked.
            marked=int(self.label_positions.sum()) if self.marked is None else self.marked,
        )


@dataclass(frozen=True)
class PromptBatch:
    """Audio and prompts to be continued by the base.

    Attributes:
        inputs: tensors for `generate`, (batch, …).
        options: its other arguments, such as languages.
        rows, shared: as in `AdapterBatch`.
    """

    inputs: dict[str, Tensor]
    options: dict[str, Any]
    rows: dict[str, Tensor]
    shared: SharedAudio | None = None

    @classmethod
    def of(
        cls,
        clips: Sequence[Clip],
        inputs: dict[str, Tensor],
        options: dict[str, Any] | None = None,
        encoder_rows: Tensor | None = None,
    ) -> PromptBatch:
        """The batch of `clips`; `encoder_rows` as in `AdapterBatch.of`."""
        rows = torch.tensor([clip.row for clip in clips])
        encoder = rows if encoder_rows is None else encoder_rows
        return cls(inputs, options or {}, {"encoder": encoder, "llm": rows})

    @property
    def sample_rows(self) -> Tensor:
        """(batch,) int64, the adapter's row of each sample."""
        return self.rows["llm"]

    def to(self, device: torch.device, dtype: torch.dtype) -> PromptBatch:
        """On `device`, with the floating-point inputs in the base's `dtype`."""
        return replace(
            self,
            inputs={k: _move(v, device, dtype) for k, v in self.inputs.items()},
            rows={k: v.to(device) for k, v in self.rows.items()},
            shared=self.shared and self.shared.to(device, dtype),
        )

    def on(self, model: Any) -> PromptBatch:
        """The same on the device and in the precision of a transformers model."""
        return self.to(next(model.parameters()).device, model.dtype)


@dataclass(frozen=True)
class Transcript:
    """What a base made of one clip; `finished` is false where the token limit cut it off."""

    text: str
    finished: bool


def _move(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    # From pinned memory this does not wait, and from other memory it does all the same.
    return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)


def _taken(tensor: Tensor, places: Tensor) -> Tensor:
    return tensor.index_select(0, places.to(tensor.device, non_blocking=True))
