"""Whisper: an encoder over log-mel frames and a decoder with cross-attention.

    decoder input   <|startoftranscript|> <|bg|> <|transcribe|> <|notimestamps|>  текст …
    label                                                        текст …          <|endoftext|>

The encoder is built for 30 s whatever the clip's length. A shorter window keeps the first positions
of its embedding and pads the features to that window; it costs less and changes the base, so scores
are shown beside those at the base's own window. Training can thin out the trailing padding
(`thin_silence.py`); transcripts always use all of it. `training_batch` is in encoder_decoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.thin_silence import ThinsPadding, thin_out
from salsa_dist.speech_llms.whisper_decoding import WhisperDecoding
from salsa_dist.speech_llms.window import audio_of, fixed, shorten


class Whisper(ThinsPadding, WhisperDecoding):
    """Features and labels for Whisper; `EncoderDecoder` calls this class for them.

    The prompt names a language by its token. Where Whisper has none: mixed speech (`zh-en`) gets the
    token of its first part that has one, and so does a regional code (`pt-BR`); any other language,
    such as Twi, gets `<|en|>`, the token that was trained most. The vector is trained under that
    token, so it need not fit, only stay the same. `language_as` names another, such as `{"tw": "yo"}`,
    or several: `{"zh-en": "zh+en"}` puts both tokens into the prompt of mixed speech.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("whisper",)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        super().__init__(checkpoint, options)
        ids = getattr(checkpoint.generation, "lang_to_id", None)
        if not ids:
            raise UserError(
                f"base {checkpoint.name}: its generation_config.json lists no languages (lang_to_id)"
            )
        if options.prompt is not None:
            raise UserError("base.prompt: Whisper takes no instruction: remove it")
        self.language_ids: dict[str, int] = {token.strip("<|>"): i for token, i in ids.items()}
        self.languages = sorted(self.language_ids)
        config, extractor = checkpoint.config, checkpoint.processor.feature_extractor
        self.max_tokens: int = config.max_target_positions
        self.features, self.positions = fixed(extractor, config.max_source_positions, options.window_s)
        self.window_s: float = self.features.n_samples / SAMPLE_RATE
        self.padded_to_s: float | None = self.window_s
        self.thin(options.silence_stride)

    def fit(self, model: Any) -> None:
        """Shorten `model`'s encoder to the window, in place, before its weights are placed."""
        encoder, decoder = model.get_encoder(), model.get_decoder()
        shorten(encoder, self.positions)
        model.config.max_source_positions = self.positions
        if self.thins_padding:
            thin_out(model, (encoder.conv1, encoder.conv2), encoder.layers, decoder.layers)

    def tokens(self, language: str) -> list[str]:
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
        return [self.start, *(self.language_ids[code] for code in self.tokens(language)), *ids]

    def audio(self, clips: Sequence[Clip], kept: bool = False) -> dict[str, Tensor]:
        """Features, and the positions that training keeps."""
        if kept:
            extractor = self.features
            features = torch.zeros(len(clips), extractor.feature_size, extractor.nb_max_frames)
        else:
            features = self.features_of(clips)
        return {"input_features": features, **self.kept(clips)}

    def text_ids(self, clip: Clip) -> list[int]:
        text = clip.text.strip()
        if not text:
            return self.nothing_said(clip)
        # Whisper's transcripts begin with a space where words are written with one.
        space = "" if languages.has_no_spaces(self.announced(clip.language)) else " "
        return self.spelled(clip, space + text)

    def features_of(self, clips: Sequence[Clip]) -> Tensor:
        # One by one they take half the time of a batch, and are equal to the bit.
        options = {"sampling_rate": SAMPLE_RATE, "return_tensors": "pt"}
        audio = [audio_of(clip, self.window_s) for clip in clips]
        return torch.cat([self.features(own, **options).input_features for own in audio])
