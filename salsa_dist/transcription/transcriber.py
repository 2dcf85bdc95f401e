"""Recordings through a base, steered or not, in batches across recordings, in constant memory.

    recordings ──blocks──► pieces ──batches──► prompts ──► transcripts ──► results, in order
                 └─ one thread reads and prepares the next batch ─┘ while the base decodes this one

A recording that cannot be read gives a result with its error, and does not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from salsa_dist.data import audio_input
from salsa_dist.data.audio import Audio
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.log import log
from salsa_dist.placement.freed_memory import give_back_at_once
from salsa_dist.run.memory import IN_TRANSCRIBING, full_memory_in_one_line
from salsa_dist.speech_llms import long_audio
from salsa_dist.speech_llms.batch import PromptBatch, Transcript
from salsa_dist.speech_llms.family import EncodesApart, TellsLanguage
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.attachment import bank_of
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.transcription.recording import AUTO, Piece, Recording, Result, Segment

_EVENTS = 8  # silent or unreadable pieces that one batch takes along, for each that it decodes


@dataclass
class _Open:
    """The recording that is being put together."""

    recording: Recording
    language: str
    row: int
    segments: list[Segment] = field(default_factory=list)


class Transcriber:
    """A base and its adapters, ready for recordings.

    Args:
        base: from `load_speech_llm`.
        adapters: the rows of the bank, in order.
        by_language: the row for recordings that name none, by language; others get no adapter.
        batch: pieces of one pass.
        max_new_tokens: limit of a piece's transcript.
        force: take adapters of another base too, as long as their sites and widths are there.
        speaks: whether somebody speaks in `(samples,)` at 16,000 Hz; None: not asked.
    """

    def __init__(
        self,
        base: SpeechLLM,
        adapters: Sequence[SteeringVectors] = (),
        by_language: Mapping[str, int] | None = None,
        *,
        batch: int = 8,
        max_new_tokens: int = 128,
        force: bool = False,
        speaks: Callable[[Audio], bool] | None = None,
    ) -> None:
        for adapter in adapters:
            adapter.check(base, force)
        if batch < 1 or max_new_tokens < 1:
            raise UserError("a batch, and a transcript's limit of tokens, are at least 1")
        self.base = base
        self.adapters = adapters
        self.by_language = by_language or {}
        self.batch = batch
        self.max_new_tokens = max_new_tokens
        self.speaks = speaks
        self.weight = next(base.model.parameters())
        if self.weight.device.type == "cpu":
            give_back_at_once()  # else what the passes free keeps half as much again
        self.bank = bank_of(adapters, self.weight.device)
        self._known: dict[str, str | None] = {}

    def run(
        self,
        recordings: Iterable[Recording],
        progress: Callable[[Piece], None] = lambda piece: None,
        made: Callable[[Recording, str, Segment], None] = lambda recording, language, segment: None,
    ) -> Iterator[Result]:
        """The result of each recording, in order, as soon as it is complete.

        Args:
            recordings: read one after another, in a thread of their own.
            progress: is told each piece that is done.
            made: is given each segment, with its recording's language, of a recording that has more.
        """
        batches = self._batches(recordings)
        begun: _Open | None = None
        with (
            self.bank.attached(self.base.sites),
            ThreadPoolExecutor(1) as reader,
        ):
            coming = reader.submit(next, batches, None)
            while (now := coming.result()) is not None:
                coming = reader.submit(next, batches, None)
                pieces, prompts = now
                spoken = [piece for piece in pieces if piece.clip is not None]
                chosen: list[tuple[str, int]] = []
                texts: Iterator[tuple[Transcript, str, int]] = iter(())
                if prompts is not None:
                    with full_memory_in_one_line(lambda: "transcribing", IN_TRANSCRIBING):
                        prompts, chosen = self._told(spoken, prompts, begun)
                        decoded = self._decoded(prompts)
                    texts = iter((t, *c) for t, c in zip(decoded, chosen, strict=True))
                for piece in pieces:
                    if begun is None:
                        own = piece.recording
                        begun = _Open(own, own.language, self._row(own), list(own.done))
                    if piece.clip is not None:
                        text, begun.language, begun.row = next(texts)
                        segment = Segment(piece.start, piece.end, text.text, text.finished)
                        begun.segments.append(segment)
                        if not piece.last:
                            made(begun.recording, begun.language, segment)
                    progress(piece)
                    if piece.last:
                        yield self._result(piece, begun)
                        begun = None

    def _result(self, piece: Piece, begun: _Open) -> Result:
        adapter = self.adapters[begun.row].name if begun.row >= 0 else None
        segments = [] if piece.wrong else begun.segments
        return Result(piece.recording, begun.language, adapter, piece.end, segments, error=piece.wrong)

    def _decoded(self, prompts: PromptBatch) -> list[Transcript]:
        prompts = prompts.to(self.weight.device, self.weight.dtype)
        if self.weight.device.type == "cpu" and isinstance(self.base.family, EncodesApart):
            prompts = self._encoded(prompts)
        with self.bank.rows(prompts.rows):
            return self.base.family.generate(
                self.base.model,
                prompts,
                self.max_new_tokens,
                keep_rows=lambda kept: self.bank.keep("llm", kept),
            )

    @torch.no_grad()
    def _encoded(self, prompts: PromptBatch) -> PromptBatch:
        """`prompts` with the encoder's output in place of its input, made one piece at a time.

        The activations of one piece fit a CPU's cache better than those of a batch.
        """
        encoder, inputs = self.base.model.get_encoder(), dict(prompts.inputs)
        made: list[Any] = []
        for i, features in enumerate(inputs.pop("input_features").split(1)):
            with self.bank.rows({part: rows[i : i + 1] for part, rows in prompts.rows.items()}):
                made.append(encoder(features))
        output = made[0]
        output.last_hidden_state = torch.cat([one.last_hidden_state for one in made])
        return replace(prompts, inputs=inputs, options={**prompts.options, "encoder_outputs": output})

    def _batches(
        self, recordings: Iterable[Recording]
    ) -> Iterator[tuple[list[Piece], PromptBatch | None]]:
        pieces: list[Piece] = []
        spoken: list[Clip] = []
        apart = 0
        for recording in recordings:
            for piece in self._pieces(recording):
                if piece.clip is not None:
                    before, apart = apart, self.base.family.apart(piece.clip.language)
                    if spoken and apart != before:
                        yield pieces, self._prompts(spoken)
                        pieces, spoken = [], []
                pieces.append(piece)
                if piece.clip is not None:
                    spoken.append(piece.clip)
                if len(spoken) == self.batch or len(pieces) >= _EVENTS * self.batch:
                    yield pieces, self._prompts(spoken)
                    pieces, spoken = [], []
        if pieces:
            yield pieces, self._prompts(spoken)

    def _prompts(self, clips: Sequence[Clip]) -> PromptBatch | None:
        return self.base.family.prompt_batch(clips) if clips else None

    def _pieces(self, recording: Recording) -> Iterator[Piece]:
        at = 0  # samples
        until = recording.done[-1].end if recording.done else 0.0
        wrong = recording.wrong
        if wrong is None and (refused := self._refused(recording.language)) is not None:
            wrong = f"{recording.name}: {refused}"
        if wrong is None:
            # The base tells a language from the prompt of any other: see `_told`.
            language, row = recording.language, self._row(recording)
            if language == AUTO:
                language, row = self.base.family.languages[0], -1
            try:
                blocks, whole = audio_input.blocks(recording.source, recording.name), None
                for part in long_audio.parts(blocks, self.base.window_s):
                    start, at = at, at + len(part.audio)
                    end = at / SAMPLE_RATE
                    if not part.last and start == 0:
                        whole = audio_input.seconds(recording.source)
                    if end <= until and not part.last:
                        continue
                    clip: Clip | None = None
                    if end > until and (self.speaks is None or self.speaks(part.audio)):
                        clip = Clip(recording.name, part.audio, "", language, row)
                    share = min(1.0, end / whole) if whole else None
                    yield Piece(recording, start / SAMPLE_RATE, end, clip, part.last, share=share)
                return
            except UserError as e:
                wrong = str(e)
        yield Piece(recording, at / SAMPLE_RATE, at / SAMPLE_RATE, None, True, wrong)

    def _refused(self, language: str) -> str | None:
        """Why no prompt can be made in a language; says once what stands in for an unknown one."""
        if language not in self._known:
            self._known[language] = None
            try:
                if language == AUTO:
                    self.teller()
                else:
                    self.base.family.prompt(language)
                    if note := self.base.family.stand_in(language):
                        log.warning(note)
            except UserError as e:
                self._known[language] = str(e)
        return self._known[language]

    def teller(self) -> TellsLanguage:
        """The base's family, where it can tell languages. Raises: UserError: it can't."""
        if not isinstance(self.base.family, TellsLanguage):
            raise UserError(f"base {self.base.name} cannot detect languages: name them with --language")
        return self.base.family

    def _row(self, recording: Recording) -> int:
        if recording.row is not None:
            return recording.row
        return self.by_language.get(recording.language, -1)

    def _told(
        self, pieces: Sequence[Piece], prompts: PromptBatch, begun: _Open | None
    ) -> tuple[PromptBatch, list[tuple[str, int]]]:
        """The prompts, and the language and row of each piece, where the base has to tell it.

        A recording is told by its first piece in which somebody speaks, unsteered.
        """
        if all(piece.recording.language != AUTO for piece in pieces):
            return prompts, [(p.recording.language, self._row(p.recording)) for p in pieces]
        family = self.teller()
        languages = family.languages_of(
            self.base.model, prompts.to(self.weight.device, self.weight.dtype)
        )
        of: dict[int, str] = {}
        if begun is not None and begun.segments:
            of[id(begun.recording)] = begun.language
        chosen = []
        for piece, told in zip(pieces, languages, strict=True):
            language = piece.recording.language
            if language == AUTO:
                language = of.setdefault(id(piece.recording), told)
            row = piece.recording.row
            chosen.append((language, self.by_language.get(language, -1) if row is None else row))
        return family.in_languages(prompts, *zip(*chosen, strict=True)), chosen
