"""Voxtral: Whisper's encoder over 30 s chunks, a projector that joins 4 positions, and Mistral.

    <s> [INST] [BEGIN_AUDIO] [AUDIO]… [/INST] lang:es [TRANSCRIBE] buenas noches </s>

Element of an encoder layer's output: one chunk. A clip has as many as it takes, the last padded with
silence.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.errors import UserError
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.chat import ChatFamily
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions, auto_processor
from salsa_dist.speech_llms.processed import Processed
from salsa_dist.speech_llms.window import longest

# "up to 30 minutes for transcription": model card of mistralai/Voxtral-Mini-3B-2507.
_LONGEST_S = 1800.0


class Voxtral(ChatFamily):
    """The prompt is the transcription request of Mistral's tokenizer. It names a language by its
    two-letter code; mixed speech is named by its first part, and a language that has no such code is
    left for the base to tell. It takes no instruction.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("voxtral",)

    @staticmethod
    def load_processor(name: str, revision: str | None) -> Any:
        try:
            import mistral_common  # noqa: F401
        except ImportError as e:
            raise UserError(
                f"base {name}: Voxtral's tokenizer needs mistral-common: pip install "
                "'salsa-dist[voxtral]'"
            ) from e
        return auto_processor(name, revision)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        if options.prompt is not None:
            raise UserError("base.prompt: Voxtral's transcription request takes none: remove it")
        self.processor = checkpoint.processor
        self.features = self.processor.feature_extractor
        encoder = checkpoint.config.audio_config
        self.tokens_per_chunk = encoder.max_source_positions * encoder.hidden_size
        self.tokens_per_chunk //= encoder.intermediate_size
        self._requests: dict[str | None, list[int]] = {}
        super().__init__(
            checkpoint,
            options,
            longest(_LONGEST_S, options.window_s),
            self.processor.audio_token,
            self.processor.tokenizer.eos_token,
        )
        self.padded_to_s = float(self.features.chunk_length)

    def prompt_text(self, language: str) -> str:
        return str(self.tokenizer.decode(self.prompt_ids(language, 1)))

    def prompt_ids(self, language: str, tokens: int) -> list[int]:
        code = languages.parts(self.announced(language))[0]
        request = self._request(code if len(code) == 2 else None)
        first = request.index(self.audio_id)
        after = len(request) - request[::-1].index(self.audio_id)
        return request[:first] + [self.audio_id] * tokens + request[after:]

    def rest_ids(self, language: str, transcript: str) -> list[int]:
        return [*self.tokenizer.encode(transcript, add_special_tokens=False), self.end_id]

    def process(self, audio: NDArray[np.float32]) -> Processed:
        made = self.features(
            audio,
            sampling_rate=SAMPLE_RATE,
            padding=True,
            truncation=False,
            pad_to_multiple_of=self.features.n_samples,
            return_tensors="pt",
        )
        # (1, bins, chunks * frames) -> (chunks, bins, frames)
        bins = made["input_features"].shape[1]
        chunked = made["input_features"].view(bins, -1, self.features.nb_max_frames).transpose(0, 1)
        chunks = len(chunked)
        return Processed({"input_features": chunked}, chunks * self.tokens_per_chunk, elements=chunks)

    def _request(self, code: str | None) -> list[int]:
        """A transcription request, with the placeholders of a short clip."""
        if code not in self._requests:
            try:
                made = self.processor.apply_transcription_request(
                    audio=[np.zeros(SAMPLE_RATE // 10, np.float32)],
                    model_id="",
                    language=code,
                    sampling_rate=SAMPLE_RATE,
                    format="WAV",
                )
                self._requests[code] = made["input_ids"][0].tolist()
            except ValueError:
                if code is None:
                    raise
                self._requests[code] = self._request(None)
        return list(self._requests[code])
