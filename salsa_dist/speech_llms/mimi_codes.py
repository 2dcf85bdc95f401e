"""Mimi's codes beside the text that Kyutai STT reads.

    audio (batch, 1, samples) ── Mimi ──► a0 a1 a2 …
    text  (batch, frames)     ──────────► [<bos>, <bos>], [t0, a0] …   (batch, frames, 1 + codes)

transformers has its `generate` encode audio between the passes of the model, frame by frame. Ranks that
share weights must all run the same modules, and codes of single frames are not quite those of the whole
clip: so a hook encodes the whole inside the decoder's pass, in training as in transcription.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


class AudioBeside:
    """A hook on the decoder: Mimi's codes of a frame beside the text of the frame before.

    Args:
        model: the base.
        audio: (batch, 1, samples), the bits of fp32, of a batch that is being transcribed; None: it
            comes with each pass.
    """

    def __init__(self, model: Any, audio: Tensor | None = None) -> None:
        self._model = model
        self._audio = audio
        self._codes: Tensor | None = None

    def attached(self) -> RemovableHandle:
        """Put the hook before others on the decoder; what is returned takes it off."""
        decoder = self._model.model
        handle: RemovableHandle = decoder.register_forward_pre_hook(
            self, with_kwargs=True, prepend=True
        )
        return handle

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        audio = kwargs.pop("audio", self._audio)
        if audio is None:
            return args, kwargs  # codes are given beside the text
        if self._audio is None or self._codes is None:
            self._codes = self._encoded(audio)
        codes = self._codes
        ids: Tensor = kwargs["input_ids"]
        positions = kwargs.get("position_ids")
        at = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions[0]
        # A rank that waits for others goes on past its audio.
        beside = codes[:, (at - 1).clamp(0, codes.shape[1] - 1)]
        beside = beside.masked_fill((at == 0)[:, None], self._model.config.audio_bos_token_id)
        return args, {**kwargs, "input_ids": torch.cat([ids[..., None], beside], 2)}

    @torch.no_grad()
    def _encoded(self, audio: Tensor) -> Tensor:
        """(batch, frames, codebooks)"""
        codec = self._model.codec_model
        wave = audio.view(torch.float32).to(next(codec.parameters()).dtype)
        return codec.encode(wave).audio_codes.transpose(1, 2)
