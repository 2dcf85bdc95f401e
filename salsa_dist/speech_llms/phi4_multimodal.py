"""Phi-4-multimodal: a conformer with a token every 80 ms, and Phi-4-mini with the LoRA for speech.

    <|user|><|audio|>…Transcribe the audio clip into text.<|end|><|assistant|>lekker slapen<|end|>

Element of an encoder layer's output: one clip.

transformers adds the encoder's mask of padding to the attention's scores as 0 and 1, and its
convolutions read the padding: beside a longer clip, a clip's activations would differ. `own_frames` has
the encoder keep to each clip's own frames, as it does where the clip is alone.

The processor wants torchvision, for images: tokenizer and feature extractor are loaded by themselves.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.speech_llms.built_in_lora import SPEECH
from salsa_dist.speech_llms.chat import AUDIO, ChatFamily
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions, parts_of_processor
from salsa_dist.speech_llms.processed import Processed
from salsa_dist.speech_llms.window import longest

# As the authors ask: Phi-4-multimodal's technical report, arXiv 2503.01743, speech recognition.
_REQUEST = "Transcribe the audio clip into text."
# The model card's limit; the encoder cuts what is longer in parts.
_WINDOW_S = 40.0


class Phi4Multimodal(ChatFamily):
    """The checkpoint in transformers' own form, with its folder `speech-lora`: on the hub the revision
    `refs/pr/70` of microsoft/Phi-4-multimodal-instruct. The request names no language."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("phi4_multimodal",)
    LORA: ClassVar[str | None] = SPEECH

    load_processor = staticmethod(parts_of_processor)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        self.features = checkpoint.processor.feature_extractor
        tokenizer = checkpoint.processor.tokenizer
        window_s = longest(_WINDOW_S, options.window_s)
        super().__init__(checkpoint, options, window_s, tokenizer.audio_token, "<|end|>")

    def fit(self, model: Any) -> None:
        own_frames(model.model.embed_tokens_extend.audio_embed.encoder)

    def prompt_text(self, language: str) -> str:
        request = {"type": "text", "text": self.instruction(language, _REQUEST, _REQUEST)}
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": [AUDIO, request]}],
                tokenize=False,
                add_generation_prompt=True,
            )
        )

    def process(self, audio: NDArray[np.float32]) -> Processed:
        made = self.features([audio], sampling_rate=SAMPLE_RATE, return_tensors="pt")
        features: Tensor = made["audio_input_features"]
        tokens: Tensor = made["audio_embed_sizes"]
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
        named = {"audio_input_features": features, "audio_embed_sizes": tokens}
        return Processed({**named, "audio_attention_mask": mask}, int(tokens))


def own_frames(encoder: Any) -> None:
    """Have `encoder` read of each row its own frames alone, in place.

    Attention gives no weight to padding, and the convolutions that make one frame of eight see zeros
    there, as behind a clip that is alone. The layers' own convolutions see what is before a frame only.
    """
    own: list[Tensor | None] = [None]  # (batch,) int64, frames of each row, while a batch is encoded

    def tell(module: Any, args: Any) -> None:
        own[0] = None if args[1] is None else args[1].sum(1)

    def without_padding(step: int) -> Any:
        def cut(module: Any, args: Any) -> Any:
            if own[0] is None:
                return None
            frames = torch.arange(args[0].shape[2], device=args[0].device)
            there = frames < -(own[0] // -step)[:, None]
            return (args[0].masked_fill(~there[:, None, :, None], 0),)

        return cut

    def masked(module: Any, args: Any, scores: Tensor) -> Tensor | None:
        if own[0] is None:
            return None
        frames = torch.arange(scores.shape[-1], device=scores.device)
        padding = frames >= -(own[0] // -encoder.config.time_reduction)[:, None]
        return scores.masked_fill(padding[:, None, None], torch.finfo(scores.dtype).min)

    encoder.register_forward_pre_hook(tell)
    halving = [m for m in encoder.embed.conv if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for i, conv in enumerate(halving):
        conv.register_forward_pre_hook(without_padding(2**i))
    encoder.relative_attention_bias_layer.register_forward_hook(masked)
