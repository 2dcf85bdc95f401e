"""Whisper: an encoder over log-mel frames and a decoder with cross-attention.

    decoder input   <|startoftranscript|> <|bg|> <|transcribe|> <|notimestamps|>  текст …
    label                                                        текст …          <|endoftext|>

The encoder is built for 30 s whatever the clip's length. A shorter window keeps the first positions
of its embedding and pads the features to that window; it costs less and changes the base, so scores
are shown beside those at the base's own window. Training can thin out the trailing padding
(`thin_silence.py`); transcripts always use all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import generating_quietly
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import PromptBatch, SharedAudio, Transcript
from salsa_dist.speech_llms.drop_finished import KeepRows, NoCacheError, greedy
from salsa_dist.speech_llms.encoder_decoder import EncoderDecoder
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.thin_silence import kept_positions, thin_out
from salsa_dist.speech_llms.window import audio_of, fixed, shorten


class Whisper(EncoderDecoder):
    """Batches for Whisper, and its transcripts.

    The prompt names a language by its token. Where Whisper has none: mixed speech (`zh-en`) gets the
    token of its first part that has one, and so does a regional code (`pt-BR`); any other language,
    such as Twi, gets `<|en|>`, the token that was trained most. The vector is trained under that
    token, so it need not fit, only stay the same. `language_as` names another, such as `{"tw": "yo"}`,
    or several: `{"zh-en": "zh+en"}` puts both tokens into the prompt of mixed speech.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("whisper",)
    THINS_PADDING: bool = True

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        config, processor = checkpoint.config, checkpoint.processor
        ids = getattr(checkpoint.generation, "lang_to_id", None)
        if not ids:
            raise UserError(
                f"base {checkpoint.name}: its generation_config.json lists no languages (lang_to_id)"
            )
        if options.prompt is not None:
            raise UserError("base.prompt: Whisper takes no instruction: remove it")
        self.language_ids: dict[str, int] = {token.strip("<|>"): i for token, i in ids.items()}
        self.language_as = options.language_as
        self.languages = sorted(self.language_ids)
        self.tokenizer = processor.tokenizer
        self.eos: int = config.eos_token_id
        self.start: int = config.decoder_start_token_id
        self.max_tokens: int = config.max_target_positions
        self.features, self.positions = fixed(
            processor.feature_extractor, config.max_source_positions, options.window_s
        )
        self.window_s: float = self.features.n_samples / SAMPLE_RATE
        self.padded_to_s: float | None = self.window_s
        self.thins_padding = options.silence_stride != 1
        self.silence_stride = 1 if options.silence_stride == "auto" else options.silence_stride
        self.silence_strides: tuple[int, ...] = ()  # by row, where adapters have their own

    def fit(self, model: Any) -> None:
        """Shorten `model`'s encoder to the window, in place, before its weights are placed."""
        shorten(model.get_encoder(), self.positions)
        model.config.max_source_positions = self.positions
        if self.thins_padding:
            thin_out(model, model.get_encoder().layers, model.get_decoder().layers)

    def announced(self, language: str) -> str:
        """The language whose token the prompt has; of several the first."""
        return self._tokens(language)[0]

    def _tokens(self, language: str) -> list[str]:
        """The languages whose tokens the prompt has."""
        if asked := self.language_as.get(language):
            codes = asked.split("+")
            if unknown := [code for code in codes if code not in self.language_ids]:
                said, known = ", ".join(map(repr, unknown)), ", ".join(self.languages)
                raise UserError(f"base.language_as: no token for language {said}; known are {known}")
            return codes
        known_part = languages.first_known(language, self.language_ids)
        if known_part is None and "en" not in self.language_ids:
            raise UserError(
                f"this base has no token for language {language!r}: set base.language_as to one of "
                + ", ".join(self.languages)
            )
        return [known_part or "en"]

    def stand_in(self, language: str) -> str | None:
        """A line about the token that stands for a language without one of its own; else None."""
        told = self.announced(language)
        if language in self.language_as or told in languages.parts(language):
            return None
        return (
            f"language {language}: this base has no token for it, <|{told}|> is used; "
            f"base.language_as, or transcribe --language-as {language}=CODE, names another"
        )

    def prompt(self, language: str) -> list[int]:
        """Token ids up to where the transcript starts."""
        ids = self.tokenizer.convert_tokens_to_ids(["<|transcribe|>", "<|notimestamps|>"])
        return [self.start, *(self.language_ids[code] for code in self._tokens(language)), *ids]

    def audio(self, clips: Sequence[Clip], kept: bool = False) -> dict[str, Tensor]:
        """Features, and the positions that training keeps."""
        if kept:
            extractor = self.features
            features = torch.zeros(len(clips), extractor.feature_size, extractor.nb_max_frames)
        else:
            features = self._features(clips)
        return {"input_features": features, **self._kept_positions(clips)}

    def text_ids(self, clip: Clip) -> list[int]:
        text = clip.text.strip()
        if not text:
            return self.nothing_said(clip)
        # Whisper's transcripts begin with a space where words are written with one.
        space = "" if languages.has_no_spaces(self.announced(clip.language)) else " "
        return self.spelled(clip, space + text)

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        """Audio of `clips`; Whisper writes a prompt of one language's token itself."""
        rows = torch.tensor([clip.row for clip in clips])
        return PromptBatch(
            inputs={"input_features": self._features(clips), **self._begun(clips)},
            options={"language": [self.announced(c.language) for c in clips], "task": "transcribe"},
            rows={"encoder": rows, "llm": rows},
        )

    def languages_of(self, model: Any, batch: PromptBatch) -> list[str]:
        """The language whose token follows the start token with the highest score."""
        features = batch.inputs["input_features"]
        start = torch.full((len(features), 1), self.start, device=features.device)
        with torch.no_grad():
            scores = model(input_features=features, decoder_input_ids=start).logits[:, -1]
        names = list(self.language_ids)
        best = scores[:, list(self.language_ids.values())].argmax(-1)
        return [names[i] for i in best.tolist()]

    def in_languages(
        self, batch: PromptBatch, languages: Sequence[str], rows: Sequence[int]
    ) -> PromptBatch:
        """The same audio, to be transcribed in `languages` and steered by `rows`."""
        of = torch.tensor(list(rows))
        options = {**batch.options, "language": [self.announced(code) for code in languages]}
        return replace(batch, options=options, rows={"encoder": of, "llm": of})

    def shared_prompt_batch(self, clips: Sequence[Clip], distinct: Sequence[Clip]) -> PromptBatch:
        """The same, encoding only `distinct`, which has each clip of `clips` once."""
        rows = torch.tensor([clip.row for clip in clips])
        place = {(clip.language, clip.key): i for i, clip in enumerate(distinct)}
        one = torch.ones(len(distinct), dtype=torch.long)
        clip_of = torch.tensor([place[clip.language, clip.key] for clip in clips])
        keys, features = tuple(clip.key for clip in distinct), self._features(distinct)
        return PromptBatch(
            inputs=self._begun(clips),
            options={"language": [self.announced(c.language) for c in clips], "task": "transcribe"},
            rows={"encoder": rows, "llm": rows},
            shared=SharedAudio(keys, {"input_features": features}, one, one, clip_of),
        )

    def _begun(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """(batch, tokens) prompts, where one has the tokens of several languages; they are as long."""
        prompts = [self.prompt(clip.language) for clip in clips]
        if all(len(self._tokens(clip.language)) == 1 for clip in clips):
            return {}
        return {"decoder_input_ids": torch.tensor(prompts)}

    def in_context_batch(self, clip: Clip, examples: Sequence[Clip]) -> PromptBatch:
        """`clip` behind solved examples: their audio before its own, their texts before its text."""
        audio = np.concatenate([c.audio for c in (*examples, clip)])
        begun = [i for example in examples for i in self.text_ids(example)[:-1]]
        whole = replace(clip, audio=audio)
        batch = self.prompt_batch([whole])
        ids = torch.tensor([self.prompt(clip.language) + begun])
        return replace(batch, inputs={**batch.inputs, "decoder_input_ids": ids})

    def in_context_room(self, max_new_tokens: int) -> float:
        """Tokens left for examples' texts beside the prompt and an answer, for which half is kept."""
        prompt = max(map(len, map(self.prompt, {*self.languages[:1], *self.language_as})))
        return self.max_tokens - prompt - min(max_new_tokens, self.max_tokens // 2)

    def generate(
        self,
        model: Any,
        batch: PromptBatch,
        max_new_tokens: int,
        synced: bool = False,
        keep_rows: KeepRows | None = None,
    ) -> list[Transcript]:
        """Transcribe a batch greedily.

        Args:
            model: the Whisper model.
            batch: from `prompt_batch`; `encoder_outputs` in its options may stand for the features.
            max_new_tokens: limit of a transcript, in tokens; the base's own limit if that is lower.
            synced: keep stepping until all ranks are done, as sharded weights need.
            keep_rows: finished rows are dropped, and this is called with those that are kept; None: no
                row is dropped.
        """
        batch = batch.on(model)
        begun = batch.inputs.get("decoder_input_ids")
        prompt = len(self.prompt(self.languages[0])) if begun is None else begun.shape[1]
        max_new_tokens = min(max_new_tokens, self.max_tokens - prompt)
        transcribe = partial(
            model.generate,
            **batch.inputs,
            **batch.options,
            return_timestamps=False,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            synced_gpus=synced,
        )
        with generating_quietly():
            if keep_rows is None:
                ids: Tensor = transcribe()
            else:
                try:
                    ids = transcribe(custom_generate=greedy(keep_rows, synced))
                except NoCacheError:  # slower, the same tokens: no row is dropped
                    ids = transcribe()
        # What ended by itself holds an end token, or is padded with it, or is short.
        ended = ids.shape[1] < max_new_tokens
        finished = [ended or bool((row == self.eos).any()) for row in ids]
        return [
            Transcript(self.transcript(row), f) for row, f in zip(ids.tolist(), finished, strict=True)
        ]

    def _kept_positions(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """The positions that training keeps; empty if it keeps all."""
        strides = [self._stride(clip) for clip in clips]
        if set(strides) == {1}:
            return {}
        return kept_positions(clips, self.positions, self.positions / self.window_s, strides)

    def _stride(self, clip: Clip) -> int:
        own = self.silence_strides
        return own[clip.row] if 0 <= clip.row < len(own) else self.silence_stride

    def _features(self, clips: Sequence[Clip]) -> Tensor:
        """(batch, mel bins, frames) float32."""
        # One by one they take half the time of a batch, and are equal to the bit.
        options = {"sampling_rate": SAMPLE_RATE, "return_tensors": "pt"}
        audio = [audio_of(clip, self.window_s) for clip in clips]
        return torch.cat([self.features(own, **options).input_features for own in audio])
