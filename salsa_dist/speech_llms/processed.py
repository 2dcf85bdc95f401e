"""One clip's audio as a base takes it, and batches of clips that are each processed by themselves.

    clip  ── process_clip ──>  Processed  ── side_by_side ──>  the model's audio arguments

So a clip's tensors do not depend on what it is packed with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.speech_llms.batch import AdapterBatch, SharedAudio
from salsa_dist.speech_llms.family import Family


@dataclass(frozen=True)
class Processed:
    """One clip's audio as the base takes it.

    Attributes:
        features: the model's audio arguments, (1, …) each, or (chunks, …) for a clip in chunks.
        tokens: how many placeholders stand for it in the prompt.
        elements: how much of the first dimension of the encoder layers' outputs is this clip's: 1, its
            chunks, or its packed tokens.
        seconds: its length, where the prompt names it.
    """

    features: dict[str, Tensor]
    tokens: int
    elements: int = 1
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """How many rows the features have."""
        return len(next(iter(self.features.values())))


class ClipByClip(Family):
    """Training batches of a family that processes each clip by itself."""

    @abstractmethod
    def process_clip(self, clip: Clip) -> Processed:
        """Audio of `clip`, as it would be of this clip alone."""

    @abstractmethod
    def batch_of(
        self, clips: Sequence[Clip], processed: Sequence[Processed], audio: dict[str, Tensor]
    ) -> AdapterBatch:
        """A batch of `clips` with their transcripts, whose model gets `audio`."""

    def training_batch(self, clips: Sequence[Clip]) -> AdapterBatch:
        processed = [self.process_clip(clip) for clip in clips]
        return self.batch_of(clips, processed, side_by_side(processed))

    def shared_batch(
        self, clips: Sequence[Clip], distinct: Sequence[Clip], kept: bool = False
    ) -> AdapterBatch:
        once = [self.process_clip(clip) for clip in distinct]
        keys = tuple(clip.key for clip in distinct)
        clip_of = [keys.index(clip.key) for clip in clips]
        shared = SharedAudio(
            keys,
            side_by_side(once),
            torch.tensor([h.rows for h in once]),
            torch.tensor([h.elements for h in once]),
            torch.tensor(clip_of),
        )
        return replace(self.batch_of(clips, [once[c] for c in clip_of], {}), shared=shared)


def extracted(extractor: Any, audio: NDArray[np.float32]) -> dict[str, Tensor]:
    """What a transformers feature extractor makes of `audio`, (1, …) each."""
    made = extractor(
        [audio], sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
    )
    return {name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor)}


def processed_by(
    processor: Any,
    audio: NDArray[np.float32],
    *beside: NDArray[np.float32],
    rate: int = SAMPLE_RATE,
) -> Processed:
    """What a transformers processor makes of `audio`, when batched with the clips `beside` it.

    Features may have several rows for `audio`, such as its windows, and must have one for each beside.
    """
    clips = [audio, *beside]
    made = processor(
        text=[processor.audio_token] * len(clips),
        audio=clips,
        return_tensors="pt",
        audio_kwargs={"sampling_rate": rate},
        **({"text_kwargs": {"padding": True}} if beside else {}),
    )
    ids = made.pop("input_ids")[0]
    made.pop("attention_mask")
    token = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    features = {name: tensor[: len(tensor) - len(beside)] for name, tensor in made.items()}
    return Processed(features, int((ids == token).sum()))


def side_by_side(processed: Sequence[Processed]) -> dict[str, Tensor]:
    """Each feature of all clips, zeros behind the shorter ones."""
    batch = {}
    for name in processed[0].features:
        tensors = [h.features[name] for h in processed]
        shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
        padded = [
            pad(
                t,
                [
                    n
                    for most, own in zip(shape[::-1], t.shape[:0:-1], strict=True)
                    for n in (0, most - own)
                ],
            )
            for t in tensors
        ]
        batch[name] = torch.cat(padded)
    return batch
