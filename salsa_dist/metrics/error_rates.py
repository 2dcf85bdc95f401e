"""Errors of one transcript against its reference: counts, kinds, and the alignment behind them.

    reference, hypothesis ──score──> Scored
      (text, text)
    Scored
    ├── words       Edits(substitutions, deletions, insertions, length) over `normalise.words`
    ├── characters  Edits over `normalise.characters`
    ├── parts       of code-switched speech: Edits of each language, and at switch points (`switching`)
    └── runaway, truncated, empty_reference, empty_hypothesis

- A *rate* is of the corpus: all errors over all reference tokens. It can pass 1.
- A *reference without a token* (silence, or only "[noise]") has no length to divide by. It stays
  out of both rates and of every interval, and is counted apart: added to the rate its insertions
  would be errors over nothing, and the rate would depend on how many silent clips a corpus holds.
- A *runaway* is decoding that no longer follows the audio: see `is_runaway`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jiwer
import numpy as np

from salsa_dist.metrics import normalise, switching

Metric = Literal["wer", "cer"]
METRICS: tuple[Metric, ...] = ("cer", "wer")
# What a rate is over, by the name that users choose by.
CHOSEN_BY: dict[str, Metric] = {"cer": "cer", "wer": "wer", "mer": "wer"}


@dataclass(frozen=True)
class Edits:
    substitutions: int
    deletions: int
    insertions: int
    length: int
    """Tokens of the reference."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class Scored:
    """The errors of one utterance."""

    key: str
    words: Edits
    characters: Edits
    runaway: bool
    truncated: bool
    empty_hypothesis: bool
    speaker: str | None = None
    parts: Mapping[str, Edits] = field(default_factory=dict)
    """By language and at switch points; empty unless the language is mixed."""

    @property
    def empty_reference(self) -> bool:
        return self.words.length == 0

    def edits(self, over: str) -> Edits:
        """Over words ("wer"), over characters ("cer"), or of one of the `parts`."""
        if over == "wer":
            return self.words
        return self.characters if over == "cer" else self.parts[over]


@dataclass(frozen=True)
class Piece:
    """A part of an alignment; one side is empty for insertions and deletions."""

    kind: Literal["equal", "substitute", "delete", "insert"]
    reference: str
    hypothesis: str


def score(
    reference: str,
    hypothesis: str,
    language: str,
    *,
    finished: bool = True,
    key: str = "",
    speaker: str | None = None,
    rules: normalise.Rules = normalise.BASIC,
) -> Scored:
    """Compare one hypothesis with its reference, both as written."""
    ref = normalise.words(reference, language, rules)
    hyp = normalise.words(hypothesis, language, rules)
    runaway = is_runaway(reference, hypothesis, finished=finished)
    chunks = _aligned(ref, hyp)
    letters = normalise.characters(reference, language, rules)
    return Scored(
        key=key,
        words=_edits(ref, chunks),
        characters=_edits(
            letters, _aligned(letters, normalise.characters(hypothesis, language, rules))
        ),
        runaway=runaway,
        truncated=not finished and not runaway,
        empty_hypothesis=not hyp,
        speaker=speaker,
        parts={
            name: Edits(*(own[kind] for kind in ("substitutions", "deletions", "insertions", "length")))
            for name, own in switching.counts(ref, hyp, chunks, language).items()
        },
    )


def misnamed(rate: str, language: str) -> str | None:
    """Why "wer" or "mer" is the wrong rate for `language`; None if `rate` is right."""
    if rate not in ("wer", "mer"):
        return None
    if normalise.unit(language) == "mixed":
        return f"{language} is mixed speech: its rate is mer, or cer" if rate == "wer" else None
    return f"{language} is not mixed speech: its rate is wer, or cer" if rate == "mer" else None


def is_runaway(reference: str, hypothesis: str, *, finished: bool = True) -> bool:
    """Whether decoding lost the audio and went on by itself.

    Either it hit the token limit, and the text is already longer than the reference or loops; or it
    ended, but the text is more than twice as long as the reference plus 20 characters, and loops.
    A text loops when one piece, three times or more in a row, makes up over half of it.

    The limit alone is no proof: a limit too small for the language cuts good text short too. That
    is `truncated`, and a larger `evaluation.max_new_tokens` lets it end. Length alone is none either:
    a reference can leave words out. Texts are taken as written, since normalising would hide an
    endless "!!!!!".
    """
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not finished and len(hypothesis) > len(reference):
        return True
    if finished and len(hypothesis) <= 2 * len(reference) + 20:
        return False
    return _looping(hypothesis)


def corpus_rate(utterances: Sequence[Scored], metric: str) -> float | None:
    """All errors over all reference tokens; None without a token."""
    edits = [u.edits(metric) for u in utterances if not u.empty_reference]
    length = sum(e.length for e in edits)
    return sum(e.errors for e in edits) / length if length else None


def align(
    reference: str, hypothesis: str, language: str, rules: normalise.Rules = normalise.BASIC
) -> list[Piece]:
    """The alignment of the word errors, for display; the texts are normalised."""
    ref = normalise.words(reference, language, rules)
    hyp = normalise.words(hypothesis, language, rules)
    # A substitution's two sides have the same length, so it is shown token by token.
    join = " " if normalise.unit(language) != "character" else ""
    pieces: list[Piece] = []
    for chunk in _aligned(ref, hyp):
        r = ref[chunk.ref_start_idx : chunk.ref_end_idx]
        h = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "substitute":
            pieces += [Piece("substitute", x, y) for x, y in zip(r, h, strict=True)]
        else:
            pieces.append(Piece(chunk.type, join.join(r), join.join(h)))
    return pieces


def _aligned(ref: list[str], hyp: list[str]) -> list[Any]:
    # Tokens are ours, so jiwer's transforms only hand them through; its `process_characters` is
    # `process_words` on tokens of one character.
    out = jiwer.process_words("", "", lambda _: [ref], lambda _: [hyp])  # type: ignore[arg-type]
    return list(out.alignments[0])


def _edits(ref: Sequence[str], chunks: Sequence[Any]) -> Edits:
    counts = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in chunks:
        counts[chunk.type] += max(
            chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
        )
    return Edits(counts["substitute"], counts["delete"], counts["insert"], len(ref))


def _looping(text: str) -> bool:
    """Whether one piece repeated back to back at least three times is over half of `text`."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    n = len(codes)
    for period in range(1, n // 3 + 1):
        same = codes[period:] == codes[:-period]
        # The longest stretch that equals itself one period on, and the period before it.
        breaks = np.flatnonzero(np.concatenate(([True], ~same, [True])))
        loop = int(np.diff(breaks).max()) - 1 + period
        if loop >= 3 * period and 2 * loop > n:
            return True
    return False
