"""CTC: an encoder and a head that gives every frame a token or a blank; no decoder, no prompt.

    frames       ∅  k  k  ∅  o  n  n  ∅      greedy: repeats become one, blanks are dropped
    transcript      k        o  n

Element of an encoder layer's output: one clip. The loss of a clip is that of all alignments of its
transcript with its frames (Graves et al. 2006). Each label has an equal share of it, so that an
adapter's gradient is per label as everywhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import frames_of
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, SharedAudio, Transcript
from salsa_dist.speech_llms.chat import Processed, side_by_side
from salsa_dist.speech_llms.drop_finished import KeepRows
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions, auto_processor
from salsa_dist.speech_llms.window import audio_of

# These encoders take any length. This is a guard on cost, and what most corpora are cut to.
_WINDOW_S = 30.0
_MASKS = ("attention_mask", "padding_mask")


class Ctc:
    """Batches for encoders that were trained by CTC, and their transcripts.

    They read no prompt: a language is not announced. Where an encoder normalises over time, as
    wav2vec2-base and HuBERT-base do, padding changes a clip; so each is padded to the window.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("wav2vec2", "hubert", "parakeet_ctc", "omniasr_ctc")
    MODEL_CLASS: ClassVar[str | None] = None
    THINS_PADDING: bool = False
    RESAMPLES: bool = False

    @staticmethod
    def load_processor(name: str, revision: str | None) -> Any:
        return auto_processor(name, revision)

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
        self.shortest: list[int] = []

    def fit(self, model: Any) -> None:
        """Learn how many frames the encoder makes; the model is not changed."""
        hop = getattr(self.features, "hop_length", 1)
        counts = frames_of(model, torch.arange(round((self.window_s + 1) * SAMPLE_RATE / hop)))
        # The shortest audio of each number of frames: what data workers need of the model.
        self.shortest = [int(i) + 1 for i in counts.clamp_min(0).diff().nonzero()]

    def prompt(self, language: str) -> list[int]:
        languages.parts(language)  # refuses what is none
        return []

    def apart(self, language: str) -> int:
        return 0

    def stand_in(self, language: str) -> str | None:
        return None

    def text_ids(self, clip: Clip) -> list[int]:
        """The transcript's tokens, in capitals or small letters where the base has these alone, without
        characters that it can't write.

        Raises:
            UserError: it can't write most of the letters and digits; or nobody speaks, for which CTC
                has no label.
        """
        self.prompt(clip.language)
        if not clip.speech:
            raise UserError(
                f"clip {clip.key}: it has no speech, and a CTC base has no label for that: remove it "
                "from the shards"
            )
        text = clip.text.strip()
        not_said = (self.blank, self.tokenizer.unk_token_id)
        ids: list[int] = max(
            (
                [i for i in self.tokenizer(t, add_special_tokens=False).input_ids if i not in not_said]
                for t in (text, text.lower(), text.upper())
            ),
            key=len,
        )
        # Not the tokens: those of spaces are there in every script.
        written, said = (sum(map(str.isalnum, t)) for t in (self.transcript(ids), text))
        if text and (not written or 2 * written < said):
            raise UserError(
                f"clip {clip.key}: this base has no token for most characters of {text[:40]!r}: take a "
                "base for this language's script"
            )
        return ids

    def training_batch(self, clips: Sequence[Clip]) -> AdapterBatch:
        processed = [self._process(clip) for clip in clips]
        return self._batch(clips, processed, side_by_side(processed))

    def shared_batch(
        self, clips: Sequence[Clip], distinct: Sequence[Clip], kept: bool = False
    ) -> AdapterBatch:
        once = [self._process(clip) for clip in distinct]
        keys = tuple(clip.key for clip in distinct)
        clip_of = [keys.index(clip.key) for clip in clips]
        one = torch.ones(len(distinct), dtype=torch.long)
        shared = SharedAudio(keys, side_by_side(once), one, one, torch.tensor(clip_of))
        return replace(self._batch(clips, [once[c] for c in clip_of], {}), shared=shared)

    def _batch(
        self, clips: Sequence[Clip], processed: Sequence[Processed], audio: dict[str, Tensor]
    ) -> AdapterBatch:
        labels = [self.text_ids(clip) for clip in clips]
        # Every frame of the batch's longest audio has a place, whatever clip it is of.
        longest = max(self._frames(_width(h.features)) for h in processed)
        spoken = torch.zeros(len(clips), longest, dtype=torch.bool)
        for i, (clip, own, h) in enumerate(zip(clips, labels, processed, strict=True)):
            needed = len(own) + sum(a == b for a, b in pairwise(own))
            if needed > h.tokens:
                raise UserError(
                    f"clip {clip.key}: its transcript needs {needed} frames, its audio gives "
                    f"{h.tokens}: remove it from the shards"
                )
            spoken[i, : h.tokens] = bool(own)
        rows = torch.tensor([clip.row for clip in clips])
        counts = torch.tensor([len(own) for own in labels])
        return AdapterBatch(
            keys=[clip.key for clip in clips],
            inputs=audio,
            label_positions=spoken,
            labels=torch.tensor([i for own in labels for i in own], dtype=torch.long),
            label_rows=rows.repeat_interleave(counts),
            rows={"encoder": rows, "llm": rows},
            label_counts=counts,
        )

    def losses(self, logits: Tensor, batch: AdapterBatch) -> Tensor:
        """Each label's share of its clip's CTC loss, (labels,) fp32.

        Args:
            logits: (frames, vocabulary) of all clips with a transcript, one behind the other.
            batch: from `training_batch`.
        """
        assert batch.label_counts is not None
        frames = batch.label_positions.sum(1)
        frames, counts = frames[frames > 0].cpu(), batch.label_counts[batch.label_counts > 0]
        if not len(counts):
            return logits.float().sum(-1)[:0]
        # In fp64: the sum over alignments is in logarithms of some hundreds, whose rounding in fp32 is
        # a relative error of 1e-5 in the gradient.
        each = pad_sequence(list(logits.double().log_softmax(-1).split(frames.tolist())))
        # On a GPU its backward pass has no kernel whose sums are always in the same order.
        device = "cpu" if torch.are_deterministic_algorithms_enabled() else logits.device
        losses = ctc_loss(
            each.to(device), batch.labels.to(device), frames, counts, self.blank, reduction="none"
        )
        shares = (losses / counts.to(losses)).repeat_interleave(counts.to(device))
        return shares.to(logits.device, torch.float32)

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        processed = [self._process(clip) for clip in clips]
        rows = torch.tensor([clip.row for clip in clips])
        return PromptBatch(
            inputs=side_by_side(processed),
            options={"frames": [h.tokens for h in processed]},
            rows={"encoder": rows, "llm": rows},
        )

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
        found = [
            [token for token, _ in groupby(row[:frames]) if token != self.blank]
            for row, frames in zip(best, batch.options["frames"], strict=True)
        ]
        return [
            Transcript(self.transcript(ids[:max_new_tokens]), len(ids) <= max_new_tokens)
            for ids in found
        ]

    def transcript(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, group_tokens=False)
        return str(text).strip()

    def _process(self, clip: Clip) -> Processed:
        """Features, and in place of placeholders the number of the clip's own frames."""
        audio = audio_of(clip, self.window_s)
        made = self.features(
            audio, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
        )
        features = {name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor)}
        own = max(1, self._frames(_length(features)))
        if self.padded_to_s is not None:
            samples = torch.zeros(1, round(self.window_s * SAMPLE_RATE))
            samples[:, : len(audio)] = features["input_values"]
            features = {"input_values": samples}  # the authors give these encoders no mask
        return Processed(features, own)

    def _frames(self, length: int) -> int:
        return bisect_right(self.shortest, length)


def _length(features: dict[str, Tensor]) -> int:
    """Samples, or frames of features, that one clip has."""
    mask = next((features[name] for name in _MASKS if name in features), None)
    return _width(features) if mask is None else int(mask.sum())


def _width(features: dict[str, Tensor]) -> int:
    """Samples, or frames of features, that the encoder is given: Parakeet's gets a frame of padding."""
    made = features.get("input_features")
    return features["input_values"].shape[-1] if made is None else made.shape[1]
