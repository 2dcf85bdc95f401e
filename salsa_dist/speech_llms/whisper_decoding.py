"""How Whisper transcribes: by transformers' own `generate` for it, which writes the prompt itself.

prompt_batch           features, and a language for each clip
in_context_batch       |example 1|example 2|clip|      <prompt> text 1 text 2 …
languages_of           the language token with the highest score behind <|startoftranscript|>
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salsa_dist.data.clip import Clip
from salsa_dist.libraries.transformers import generating_quietly
from salsa_dist.speech_llms.batch import PromptBatch, SharedAudio, Transcript
from salsa_dist.speech_llms.drop_finished import KeepRows, NoCacheError, greedy
from salsa_dist.speech_llms.encoder_decoder import EncoderDecoder


class WhisperDecoding(EncoderDecoder):
    """Transcripts of Whisper.

    Attributes:
        language_ids: tokens of the languages, by code.
    """

    language_ids: dict[str, int]

    @abstractmethod
    def tokens(self, language: str) -> list[str]:
        """The languages whose tokens the prompt has."""

    @abstractmethod
    def features_of(self, clips: Sequence[Clip]) -> Tensor:
        """(batch, mel bins, frames) float32."""

    def announced(self, language: str) -> str:
        """The language whose token the prompt has; of several the first."""
        return self.tokens(language)[0]

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        """Audio of `clips`; Whisper writes a prompt of one language's token itself."""
        inputs = {"input_features": self.features_of(clips), **self._begun(clips)}
        return PromptBatch.of(clips, inputs, self._asked(clips))

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
        place = {(clip.language, clip.key): i for i, clip in enumerate(distinct)}
        one = torch.ones(len(distinct), dtype=torch.long)
        clip_of = torch.tensor([place[clip.language, clip.key] for clip in clips])
        keys = tuple(clip.key for clip in distinct)
        audio = {"input_features": self.features_of(distinct)}
        shared = SharedAudio(keys, audio, one, one, clip_of)
        return replace(PromptBatch.of(clips, self._begun(clips), self._asked(clips)), shared=shared)

    def _asked(self, clips: Sequence[Clip]) -> dict[str, Any]:
        return {"language": [self.announced(c.language) for c in clips], "task": "transcribe"}

    def _begun(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """(batch, tokens) prompts, where one has the tokens of several languages; they are as long."""
        if all(len(self.tokens(clip.language)) == 1 for clip in clips):
            return {}
        prompts = [self.prompt(clip.language) for clip in clips]
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
        """Transcribe a batch greedily; arguments as in `Family.generate`.

        In the options of `batch`, `encoder_outputs` may stand for the features. Of `max_new_tokens` and
        the base's own limit, the lower one holds.
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
            loop = {} if keep_rows is None else {"custom_generate": greedy(keep_rows, synced)}
            try:
                ids: Tensor = transcribe(**loop)
            except NoCacheError:  # slower, the same tokens: no row is dropped
                ids = transcribe()
        # What ended by itself holds an end token, or is padded with it, or is short.
        ended = ids.shape[1] < max_new_tokens
        finished = [ended or bool((row == self.eos).any()) for row in ids]
        return [
            Transcript(self.transcript(row), f) for row, f in zip(ids.tolist(), finished, strict=True)
        ]
