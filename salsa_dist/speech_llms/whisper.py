"""Whisper: an encoder over log-mel frames and a decoder with cross-attention.

    decoder input   <|startoftranscript|> <|bg|> <|transcribe|> <|notimestamps|>  текст …
    label                                                        текст …          <|endoftext|>

The encoder is built for 30 s whatever the clip's length. A shorter window keeps the first positions
of its embedding and pads the features to that window; it costs less and changes the base, so scores
are shown beside those at the base's own window.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, Transcript

MODEL_TYPES = ("whisper",)

# Scripts written without spaces: Whisper's transcripts of these do not begin with one.
_NO_SPACES = {"zh", "yue", "ja", "th", "lo", "my", "km", "bo"}


class Whisper:
    """Batches for Whisper, and its transcripts. Holds no weights, so data workers can have a copy.

    Args:
        config: the model's config.
        processor: feature extractor and tokenizer.
        language_ids: token id of each language token, such as `{"<|bg|>": 50292}`.
        window_s: audio window in seconds; None: the model's own.
    """

    def __init__(
        self, config: Any, processor: Any, language_ids: dict[str, int], window_s: float | None
    ) -> None:
        self.features = copy.deepcopy(processor.feature_extractor)
        self.tokenizer = processor.tokenizer
        self.language_ids = language_ids
        self.languages = sorted(token.strip("<|>") for token in language_ids)
        self.eos: int = config.eos_token_id
        self.start: int = config.decoder_start_token_id
        self.max_tokens: int = config.max_target_positions
        hop = self.features.hop_length
        own = 2 * config.max_source_positions * hop / SAMPLE_RATE
        self.window_s = own if window_s is None else window_s
        if self.window_s > own:
            raise UserError(f"base.window_s is {window_s}, this base's window is {own:g} s at most")
        frames = 2 * round(self.window_s * SAMPLE_RATE / hop / 2)
        self.positions = frames // 2
        self.window_s = frames * hop / SAMPLE_RATE
        self.features.n_samples = frames * hop
        self.features.nb_max_frames = frames
        self.features.chunk_length = self.window_s

    def fit(self, model: nn.Module) -> None:
        """Shorten `model`'s encoder to the window, in place, before its weights are placed."""
        encoder: Any = model.get_encoder()  # type: ignore[operator]
        old = encoder.embed_positions
        if self.positions == old.num_embeddings:
            return
        new = nn.Embedding(self.positions, old.embedding_dim, dtype=old.weight.dtype)
        new.weight.data.copy_(old.weight.data[: self.positions])
        new.requires_grad_(False)
        encoder.embed_positions = new
        encoder.max_source_positions = self.positions
        encoder.config.max_source_positions = self.positions
        model.config.max_source_positions = self.positions  # type: ignore[union-attr]

    def prompt(self, language: str) -> list[int]:
        """Token ids up to where the transcript starts."""
        token = f"<|{language}|>"
        if token not in self.language_ids:
            known = ", ".join(self.languages)
            raise UserError(f"this base has no token for language {language!r}; it knows {known}")
        ids = self.tokenizer.convert_tokens_to_ids(["<|transcribe|>", "<|notimestamps|>"])
        return [self.start, self.language_ids[token], *ids]

    def training_batch(self, clips: Sequence[Clip]) -> AdapterBatch:
        """Audio, prompt and transcript of `clips`; a clip without text has no labels."""
        rows = torch.tensor([clip.row for clip in clips])
        sequences, labels = [], []
        for clip in clips:
            prompt = self.prompt(clip.language)
            text = self.text_ids(clip)
            sequences.append(prompt + text[:-1])
            labels.append(text)
        longest = max(map(len, sequences))
        if longest > self.max_tokens:
            worst = max(clips, key=lambda c: len(c.text))
            raise UserError(
                f"clip {worst.key}: prompt and transcript take {longest} tokens, the base has "
                f"{self.max_tokens}"
            )
        ids = torch.full((len(clips), longest), self.eos)
        positions = torch.zeros(len(clips), longest, dtype=torch.bool)
        for i, (sequence, label) in enumerate(zip(sequences, labels, strict=True)):
            ids[i, : len(sequence)] = torch.tensor(sequence)
            positions[i, len(sequence) - len(label) : len(sequence)] = bool(label)
        lengths = torch.tensor([len(label) for label in labels])
        return AdapterBatch(
            keys=[clip.key for clip in clips],
            inputs={"input_features": self._features(clips), "decoder_input_ids": ids},
            label_positions=positions,
            labels=torch.tensor([i for label in labels for i in label], dtype=torch.long),
            label_rows=rows.repeat_interleave(lengths),
            rows={"encoder": rows, "llm": rows},
        )

    def text_ids(self, clip: Clip) -> list[int]:
        """The transcript's token ids with the end-of-text; empty for a clip without a transcript."""
        text = clip.text.strip()
        if not text:
            return []
        space = "" if clip.language in _NO_SPACES else " "
        return [*self.tokenizer(space + text, add_special_tokens=False).input_ids, self.eos]

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        """Audio of `clips`; Whisper writes the prompt itself, from the languages."""
        for clip in clips:
            self.prompt(clip.language)  # refuses an unknown language
        rows = torch.tensor([clip.row for clip in clips])
        return PromptBatch(
            inputs={"input_features": self._features(clips)},
            options={"language": [clip.language for clip in clips], "task": "transcribe"},
            rows={"encoder": rows, "llm": rows},
        )

    def generate(
        self, model: Any, batch: PromptBatch, max_new_tokens: int, synced: bool = False
    ) -> list[Transcript]:
        """Transcribe a batch greedily.

        Args:
            model: the Whisper model.
            batch: from `prompt_batch`.
            max_new_tokens: limit of a transcript, in tokens; the base's own limit if that is lower.
            synced: keep stepping until all ranks are done, as sharded weights need.
        """
        weight = next(model.parameters())
        batch = batch.to(weight.device, weight.dtype)
        prompt = len(self.prompt(self.languages[0]))
        max_new_tokens = min(max_new_tokens, self.max_tokens - prompt)
        ids: Tensor = model.generate(
            **batch.inputs,
            **batch.options,
            return_timestamps=False,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            synced_gpus=synced,
        )
        # What ended by itself holds an end token, or is padded with it, or is short.
        ended = ids.shape[1] < max_new_tokens
        finished = [ended or bool((row == self.eos).any()) for row in ids]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [Transcript(t.strip(), f) for t, f in zip(texts, finished, strict=True)]

    def _features(self, clips: Sequence[Clip]) -> Tensor:
        """(batch, mel bins, frames) float32."""
        for clip in clips:
            if clip.seconds > self.window_s + 1e-6:
                raise UserError(
                    f"clip {clip.key} lasts {clip.seconds:.1f} s, the audio window is "
                    f"{self.window_s:g} s: cut it, or set a longer base.window_s"
                )
        return self.features(
            [clip.audio for clip in clips], sampling_rate=SAMPLE_RATE, return_tensors="pt"
        ).input_features
