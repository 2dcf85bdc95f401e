"""Voxtral-Realtime: a causal encoder with a token per 80 ms, added to the text's, and Mistral.

    audio   silence…………………… a0 a1 a2 a3 a4 a5 …      the last of the silence and the delay are heard
    text    <s> [P] [P] … [P] P  P  W  ▁no ch P …       before the first label
    label                  P  P  W  ▁no ch P  P …

Element of an encoder layer's output: one clip. The prompt is that of Mistral's tokenizer, silence and
delay included; it names no language. P is `[STREAMING_PAD]`, W `[STREAMING_WORD]` of mistral-common.

The authors (arXiv 2602.11298) publish no code for the alignment of words. The layout here is what users
of the weights measured in public: the first frame behind the prompt is the clip's first, the mark
stands in the frame in which a word ends, its pieces follow, with a space before them. Ours: padding
and marks weigh half, as Kyutai's do, and no `</s>` is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import decode_greedily
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import PromptBatch, Transcript
from salsa_dist.speech_llms.drop_finished import KeepRows
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import Processed, side_by_side
from salsa_dist.speech_llms.voxtral import Voxtral
from salsa_dist.speech_llms.window import audio_of, longest
from salsa_dist.speech_llms.word_frames import FRAMES_PER_S, FrameFamily

# It has no limit of its own. This is what shards hold.
_LONGEST_S = 600.0


class VoxtralRealtime(FrameFamily):
    """The delay is the tokenizer's own, 480 ms as published."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("voxtral_realtime",)
    UNREAD: ClassVar[int] = 1

    load_processor = staticmethod(Voxtral.load_processor)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        for key, value in (("prompt", options.prompt), ("language_as", options.language_as)):
            if value:
                raise UserError(f"base.{key}: Voxtral-Realtime reads no instruction: remove it")
        self.tokenizer = checkpoint.processor.tokenizer
        self.features = checkpoint.processor.feature_extractor
        request = self.tokenizer.tokenizer.instruct_tokenizer
        self.audio = request.audio_encoder
        self.start: list[int] = [*request.start(), *self.audio.encode_streaming_tokens()]
        self.padding = self.audio.special_ids.streaming_pad
        self.mark = self.tokenizer.convert_tokens_to_ids("[STREAMING_WORD]")
        self.delay: int = self.audio.audio_config.get_num_delay_tokens()
        self.per_token: int = checkpoint.config.audio_length_per_tok
        self.window_s = longest(_LONGEST_S, options.window_s)
        self.languages = languages.named()

    def fit(self, model: Any) -> None:
        """Tell the LLM the delay in every pass, in place."""

        def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "num_delay_tokens": self.delay}

        model.model.register_forward_pre_hook(tell, with_kwargs=True)

    def prompt(self, language: str) -> list[int]:
        languages.parts(language)  # refuses what is none
        return list(self.start)

    def pieces(self, word: str) -> list[int]:
        return list(self.tokenizer.encode(f" {word}", add_special_tokens=False))

    def first_frame(self, start: float, end: float) -> int:
        return int(end * FRAMES_PER_S) + 1

    def process_clip(self, clip: Clip) -> Processed:
        audio = self.audio.pad(audio_of(clip, self.window_s), SAMPLE_RATE)
        made = self.features(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        tokens = made["input_features"].shape[-1] // self.per_token
        return Processed({"input_features": made["input_features"]}, tokens - len(self.start))

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        processed = [self.process_clip(clip) for clip in clips]
        ids = torch.tensor([self.prompt(clip.language) for clip in clips])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **side_by_side(processed)}
        return PromptBatch.of(clips, inputs, {"frames": [h.tokens for h in processed]})

    def generate(
        self,
        model: Any,
        batch: PromptBatch,
        max_new_tokens: int,
        synced: bool = False,
        keep_rows: KeepRows | None = None,
    ) -> list[Transcript]:
        batch = batch.on(model)
        frames, options = self.without_frames(batch)
        inputs, first = dict(batch.inputs), batch.inputs["input_ids"].shape[1]
        if synced:  # ranks step along with the one that has the longest audio, and need as much
            most = torch.tensor(max(frames), device=inputs["input_ids"].device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            more = self.per_token * (int(most) - max(frames))
            inputs["input_features"] = pad(inputs["input_features"], (0, more))
        ids = decode_greedily(
            model,
            {**inputs, **options},
            max_new_tokens=inputs["input_features"].shape[-1] // self.per_token - first,
            synced=synced,
            stop=None,
            pad=self.padding,
        )
        return self.transcripts(ids[:, first:].tolist(), frames, max_new_tokens)
