"""`salsa_dist.transcribe`: audio files with a base in this process, steered or not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from salsa_dist.data.audio import read_audio
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms import long_audio
from salsa_dist.speech_llms.batch import Transcript
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.vectors import SteeringVectors, bank_of


def transcribe(
    base: SpeechLLM,
    files: Sequence[str | Path],
    language: str | Sequence[str],
    vectors: SteeringVectors | Sequence[SteeringVectors | None] | None = None,
    batch: int = 8,
    max_new_tokens: int = 128,
    *,
    force: bool = False,
) -> list[str]:
    """Transcripts of audio files, in their order; files of one pass may have adapters of their own.

    Args:
        base: from `load_speech_llm`.
        files: wav, flac, ogg or mp3 at any rate; one longer than the base's window is cut into pieces
            where it is quiet.
        language: their language's code, or one per file.
        vectors: an adapter to steer with, or one per file; None: the base as it is, or as it is already
            steered.
        batch: clips, or pieces of long ones, of one pass.
        max_new_tokens: limit of a transcript, or of a piece's.
        force: take adapters of another base too, as long as their sites and widths are there.
    """
    languages = [language] * len(files) if isinstance(language, str) else list(language)
    chosen: list[SteeringVectors | None]
    if vectors is None or isinstance(vectors, SteeringVectors):
        chosen = [vectors] * len(files)
    else:
        chosen = list(vectors)
    for what, given in (("languages", languages), ("adapters", chosen)):
        if len(given) != len(files):
            raise UserError(f"{len(given)} {what} for {len(files)} files: give one, or one per file")
    adapters = list({id(v): v for v in chosen if v is not None}.values())
    for adapter in adapters:
        adapter.check(base, force)
    row = {id(v): i for i, v in enumerate(adapters)}
    clips = [
        Clip(str(f), read_audio(f, SAMPLE_RATE), "", of, row.get(id(v), -1))
        for f, of, v in zip(files, languages, chosen, strict=True)
    ]
    weight = next(base.model.parameters())
    bank = bank_of(adapters, weight.device)
    cut = [long_audio.pieces(clip, base.window_s) for clip in clips]
    parts = [piece for pieces in cut for piece in pieces]
    transcripts: list[Transcript] = []
    with bank.attached(base.sites):
        for i in range(0, len(parts), batch):
            prompts = base.family.prompt_batch(parts[i : i + batch]).to(weight.device, weight.dtype)
            with bank.rows(prompts.rows):
                transcripts += base.family.generate(
                    base.model, prompts, max_new_tokens, stay=lambda kept: bank.keep("llm", kept)
                )
    of_piece = iter(transcripts)
    return [
        long_audio.joined(list(islice(of_piece, len(pieces))), clip.language).text
        for clip, pieces in zip(clips, cut, strict=True)
    ]
