"""Gemma 3n and Gemma 4: a conformer without its window's length, and Gemma; no vision.

    Gemma 3n   <start_of_turn>user Transcribe the following speech segment in Greek:
               <start_of_audio><audio_soft_token>×188<end_of_audio> <end_of_turn> …model καλημέρα
    Gemma 4    <|turn>user <|audio><|audio|>×25 a second<audio|>Transcribe the following … <turn|> …

Element of an encoder layer's output: one clip. A layer of Gemma 3n's LLM puts out four streams of each
sample, (streams, batch, tokens, hidden), which are steered alike.

Their processors want torchvision, and Gemma 3n's vision tower timm: audio needs neither, so tokenizer
and feature extractor are loaded by themselves, and Gemma 3n's vision tower is left out.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.chat import AUDIO, ChatFamily
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions, parts_of_processor
from salsa_dist.speech_llms.processed import Processed
from salsa_dist.speech_llms.window import longest

# As the authors ask: Gemma 4's model card, Audio; ai.google.dev/gemma/docs/capabilities/audio for 3n.
_FORMAT = (
    "Follow these specific instructions for formatting the answer:\n"
    "* Only output the transcription, with no newlines.\n"
    "* When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, and write "
    "3 instead of three."
)
_REQUEST = (
    f"Transcribe the following speech segment in {{language}} into {{language}} text.\n\n{_FORMAT}"
)
_NAMELESS = f"Transcribe the following speech segment in its original language.\n\n{_FORMAT}"
_REQUEST_3N = "Transcribe the following speech segment in {language}:"
_NAMELESS_3N = "Transcribe the following speech segment:"
# Beyond it the feature extractors drop what they are given.
_WINDOW_S = 30.0
_BEHIND = SAMPLE_RATE // 5


class Gemma(ChatFamily):
    """The instruction-tuned checkpoints: a pretrained one has no chat template. A language is named in
    English, mixed speech by all its parts. Gemma 4's larger models take no audio."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("gemma3n", "gemma4")

    load_processor = staticmethod(parts_of_processor)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        config, self.tokenizer = checkpoint.config, checkpoint.processor.tokenizer
        if config.audio_config is None:
            raise UserError(f"base {checkpoint.name} has no audio encoder: take E2B or E4B")
        if not self.tokenizer.chat_template:
            raise UserError(f"base {checkpoint.name} has no chat template: take the -it checkpoint")
        self.features = checkpoint.processor.feature_extractor
        self.is_3n = config.model_type == "gemma3n"
        self.soft_tokens: int | None = config.audio_soft_tokens_per_image if self.is_3n else None
        end = "<end_of_turn>" if self.is_3n else "<turn|>"
        window_s = longest(_WINDOW_S, options.window_s)
        super().__init__(checkpoint, options, window_s, self.tokenizer.audio_token, end)

    def prompt_text(self, language: str) -> str:
        own, nameless = (_REQUEST_3N, _NAMELESS_3N) if self.is_3n else (_REQUEST, _NAMELESS)
        request = {"type": "text", "text": self.instruction(language, own, nameless)}
        content = [request, AUDIO] if self.is_3n else [AUDIO, request]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        around = "\n\n" if self.is_3n else ""
        audio = f"{self.tokenizer.boa_token}{self.audio_token}{self.tokenizer.eoa_token}"
        return str(text).replace(self.audio_token, f"{around}{audio}{around}", 1)

    def process(self, audio: NDArray[np.float32]) -> Processed:
        # Gemma 3n's second convolution sees 80 ms behind a clip: of every clip the same silence.
        made = self.features(
            [audio],
            padding="max_length",
            max_length=len(audio) + _BEHIND,
            return_tensors="pt",
        )
        mask: Tensor = made["input_features_mask"].bool()
        features = {"input_features": made["input_features"], "input_features_mask": mask}
        # Two convolutions of stride 2; each keeps what stands at an even place.
        return Processed(features, self.soft_tokens or int(mask[0, ::2][::2].sum()))
