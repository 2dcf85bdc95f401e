"""CTC: an encoder and a head that gives every frame a token or a blank; no decoder, no prompt.

Element of an encoder layer's output: one clip. Each label has an equal share of the loss of its clip
(`ctc_alignment.py`), so that an adapter's gradient is per label as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, Transcript
from salsa_dist.speech_llms.ctc_alignment import FrameCounts, best_path, shares, spread_over, written
from salsa_dist.speech_llms.drop_finished import KeepRows
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import ClipByClip, Processed, extracted, side_by_side
from salsa_dist.speech_llms.window import audio_of

# These encoders take any length. This is a guard on cost, and what most corpora are cut to.
_WINDOW_S = 30.0


class Ctc(ClipByClip):
    """Batches for encoders that were trained by CTC, and their transcripts.

    They read no prompt: a language is not announced. Where an encoder normalises over time, as
    wav2vec2-base and HuBERT-base do, padding changes a clip; so each is padded to the window.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("wav2vec2", "hubert", "parakeet_ctc", "omniasr_ctc")

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        for key, value in (("prompt", options.prompt), ("language_as", options.language_as)):
            if value:
                raise UserError(f"base.{key}: a base with CTC reads no prompt: remove it")
        config = checkpoint.config
        self.tokenizer = checkpoint.processor.tokenizer
        self.features = checkpoint.processor.feature_extractor
        self.window_s = _WINDOW_S if options.window_s is None else options.window_s
        self.languages = languages.named()
        own_blank = getattr(config, "blank_token_id", None)
        self.blank: int = config.pad_token_id if own_blank is None else own_blank
        of_group = getattr(config, "feat_extract_norm", "layer") == "group"
        self.padded_to_s = self.window_s if of_group else None

    def fit(self, model: Any) -> None:
        self.frames = FrameCounts(model, getattr(self.features, "hop_length", 1), self.window_s)

    def prompt(self, language: str) -> list[int]:
        languages.parts(language)  # refuses what is none
        return []

    def text_ids(self, clip: Clip) -> list[int]:
        """The transcript's tokens."""
        self.prompt(clip.language)
        return written(clip, self.tokenizer, self.blank, self.transcript)

    def batch_of(
        self, clips: Sequence[Clip], processed: Sequence[Processed], audio: dict[str, Tensor]
    ) -> AdapterBatch:
        labels = [self.text_ids(clip) for clip in clips]
        # Every frame of the batch's longest audio has a place, whatever clip it is of.
        longest = max(self.frames.made(h.features) for h in processed)
        spoken = spread_over(clips, labels, [h.tokens for h in processed], longest)
        batch = AdapterBatch.of(clips, audio, spoken, labels)
        return replace(batch, label_counts=torch.tensor([len(own) for own in labels]))

    def losses(self, logits: Tensor, batch: AdapterBatch) -> Tensor:
        assert batch.label_counts is not None
        frames, counts = batch.label_positions.sum(1).cpu(), batch.label_counts
        return shares(logits, frames[frames > 0], batch.labels, counts[counts > 0], self.blank)

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        processed = [self.process_clip(clip) for clip in clips]
        counts = [h.tokens for h in processed]
        return PromptBatch.of(clips, side_by_side(processed), {"frames": counts})

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        batch: PromptBatch,
        max_new_tokens: int,
        synced: bool = False,
        keep_rows: KeepRows | None = None,
    ) -> list[Transcript]:
        """Transcribe a batch greedily, in one pass."""
        batch = batch.on(model)
        best = model(**batch.inputs).logits.argmax(-1).tolist()
        counts = batch.options["frames"]
        found = [best_path(row[:own], self.blank) for row, own in zip(best, counts, strict=True)]
        return [
            Transcript(self.transcript(ids[:max_new_tokens]), len(ids) <= max_new_tokens)
            for ids in found
        ]

    def transcript(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, group_tokens=False)
        return str(text).strip()

    def process_clip(self, clip: Clip) -> Processed:
        """Features, and in place of placeholders the number of the clip's own frames."""
        audio = audio_of(clip, self.window_s)
        features = extracted(self.features, audio)
        own = self.frames.own(features)
        if self.padded_to_s is not None:
            behind = round(self.window_s * SAMPLE_RATE) - len(audio)
            # The authors give these encoders no mask.
            features = {"input_values": pad(features["input_values"], (0, behind))}
        return Processed(features, own)
