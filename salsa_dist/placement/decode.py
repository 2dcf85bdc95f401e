"""Transcripts of clips by a frozen base, each clip steered by its own adapter.

    prompts = prompts_of(base, clips)     a thread can make them while other clips are decoded
    answer(base, prompts, max_new_tokens)
    generate(base, clips, max_new_tokens) both

All ranks call these equally often: under ZeRO-3 each pass is a collective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.speech_llms import long_audio
from salsa_dist.speech_llms.batch import PromptBatch, Transcript
from salsa_dist.speech_llms.family import EncodesApart


@dataclass(frozen=True)
class Prompts:
    """Clips ready to be transcribed: language and pieces per clip, one batch of all pieces."""

    languages: list[str]
    pieces: list[int]
    batch: PromptBatch | None


def generate(
    base: FrozenBase,
    clips: Sequence[Clip],
    max_new_tokens: int,
    decoding: Mapping[str, Any] | None = None,
) -> list[Transcript]:
    """Transcribe `clips`, each with its own adapter on. All ranks call this equally often; a rank that
    has no clips left passes none. Clips longer than the window are cut and joined."""
    return answer(base, prompts_of(base, clips), max_new_tokens, decoding)


def prompts_of(base: FrozenBase, clips: Sequence[Clip]) -> Prompts:
    """Prepare `clips` for `answer`. This does not run the base, so it can be done ahead."""
    family = base.family
    # Under ZeRO-3 every rank must step along, so an empty batch is one silent clip.
    taking_part = list(clips) or [silent_clip(family.languages[0])] * base.in_step
    if not taking_part:
        return Prompts([], [], None)
    cut = [long_audio.pieces(clip, family.window_s) for clip in taking_part]
    parts = [piece for pieces in cut for piece in pieces]
    if isinstance(family, EncodesApart) and _has_encoder_sites(base):
        distinct = list({(piece.language, piece.key): piece for piece in parts}.values())
        batch = family.shared_prompt_batch(parts, distinct)
    else:
        batch = family.prompt_batch(parts)
    return Prompts([clip.language for clip in clips], [len(pieces) for pieces in cut], batch)


# Not inference_mode: small weights stay once ZeRO-3 gathered them, and such ones have no backward.
@torch.no_grad()
def answer(
    base: FrozenBase,
    prompts: Prompts,
    max_new_tokens: int,
    decoding: Mapping[str, Any] | None = None,
) -> list[Transcript]:
    """Transcripts of the clips in `prompts`. All ranks call this equally often."""
    if prompts.batch is None:
        return []
    batch = prompts.batch.to(base.ranks.device, base.dtype)
    options = {**batch.options, **(decoding or {})}
    if batch.shared is not None:
        options["encoder_outputs"] = _encoded(base, batch)
    batch = replace(batch, options=options)
    with base.bank.rows(batch.rows):
        transcripts = base.family.generate(
            base.model,
            batch,
            max_new_tokens,
            synced=base.in_step,
            keep_rows=lambda kept: base.bank.keep("llm", kept),
        )
    of_piece = iter(transcripts)
    return [
        long_audio.joined(list(islice(of_piece, pieces)), language)
        for language, pieces in zip(prompts.languages, prompts.pieces, strict=False)
    ]


def _has_encoder_sites(base: FrozenBase) -> bool:
    """Whether the `encoder` sites are in the model's encoder; sites given by path may not be."""
    first = base.sites.get("encoder.0")
    return any(module is first for module in base.model.get_encoder().modules())


def _encoded(base: FrozenBase, batch: PromptBatch) -> Any:
    """The encoder's output; its first entry is (samples, positions, hidden).

    The prefix that adapters share is run once per clip.
    """
    assert batch.shared is not None
    encoder = base.model.get_encoder()
    with ExitStack() as stack:
        if base.bank.specs:
            with base.shared.prefix_alone() as found:
                encoder(**batch.shared.inputs)
            stack.enter_context(base.shared.the_rest(batch, found[0]))
        stack.enter_context(base.bank.rows(batch.rows))
        return encoder(**batch.shared.of_samples())
