"""`salsa_dist.transcribe`: recordings with a base in this process, steered or not.

transcribe(base, [clip, …], "bg")            list of texts, or the first error
transcribe_each(base, [clip, …], "bg")       a Result a recording, as it is there: times, errors
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from salsa_dist.data.audio_input import name_of
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.transcription.recording import Recording, Result
from salsa_dist.transcription.speech import detector
from salsa_dist.transcription.transcriber import Transcriber


def transcribe(
    base: SpeechLLM,
    files: Sequence[Any],
    language: str | Sequence[str],
    vectors: SteeringVectors | Sequence[SteeringVectors | None] | None = None,
    batch: int = 8,
    max_new_tokens: int = 128,
    *,
    force: bool = False,
    vad: bool = False,
) -> list[str]:
    """Transcripts of recordings, in order. Recordings of one pass may have different adapters.

    Args:
        base: from `load_speech_llm`.
        files: paths, bytes, open files, `(array, rate in Hz)`, arrays or tensors at 16,000 Hz, or
            mappings with `array` or `raw` and `sampling_rate`; see `audio_input.blocks`. One longer
            than the base's window is cut into pieces where it is quiet.
        language: the code of their language, or one per file; "auto": the base detects it if it can.
        vectors: an adapter to steer with, or one per file; None: the base as it is, or as it is already
            steered.
        batch: pieces of recordings of one pass.
        max_new_tokens: limit of a piece's transcript.
        force: take adapters of another base too, as long as their sites and widths are there.
        vad: skip pieces in which Silero VAD finds no speech.

    Raises:
        UserError: a recording can't be read; `transcribe_each` goes on with the others.

    >>> from salsa_dist import load_speech_llm
    >>> base, bg = load_speech_llm("whisper-base"), SteeringVectors.load("runs/demo/adapters/bg")
    >>> zero_shot, steered = transcribe(base, ["clip.wav", "clip.wav"], "bg", [None, bg])
    """
    texts = []
    for result in transcribe_each(
        base, files, language, vectors, batch, max_new_tokens, force=force, vad=vad
    ):
        if result.error is not None:
            raise UserError(result.error)
        texts.append(result.text)
    return texts


def transcribe_each(
    base: SpeechLLM,
    files: Sequence[Any],
    language: str | Sequence[str],
    vectors: SteeringVectors | Sequence[SteeringVectors | None] | None = None,
    batch: int = 8,
    max_new_tokens: int = 128,
    *,
    force: bool = False,
    vad: bool = False,
) -> Iterator[Result]:
    """One `Result` per recording, as soon as it is complete: text, segments with times in seconds,
    language, or the recording's error.

    >>> from salsa_dist import load_speech_llm
    >>> base = load_speech_llm("whisper-base")
    >>> for result in transcribe_each(base, ["clip.wav", "not-there.wav"], "bg"):
    ...     print(result.name, result.seconds, result.error)
    clip.wav 1.0 None
    not-there.wav 0.0 not-there.wav: no such file
    """
    if isinstance(files, (str, bytes, os.PathLike, Mapping)) or not isinstance(files, Iterable):
        raise UserError("files: give a list, of one recording too")
    count = len(files)
    languages = [language] * count if isinstance(language, str) else list(language)
    chosen: list[SteeringVectors | None]
    if vectors is None or isinstance(vectors, SteeringVectors):
        chosen = [vectors] * count
    else:
        chosen = list(vectors)
    for what, given in (("languages", languages), ("adapters", chosen)):
        if len(given) != count:
            raise UserError(f"{len(given)} {what} for {count} files: give one, or one per file")
    adapters = list({id(v): v for v in chosen if v is not None}.values())
    row = {id(v): i for i, v in enumerate(adapters)}
    recordings = (
        Recording(name_of(f), f, of, row.get(id(v), -1))
        for f, of, v in zip(files, languages, chosen, strict=True)
    )
    transcriber = Transcriber(
        base,
        adapters,
        batch=batch,
        max_new_tokens=max_new_tokens,
        force=force,
        speaks=detector() if vad else None,
    )
    return transcriber.run(recordings)
