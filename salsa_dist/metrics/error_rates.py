"""Error rates of decoded utterances: counts, corpus rates, intervals, gains.

    reference, hypothesis ──score──> Scored ─┬─ summarise ─────> Summary (rates, intervals, counts)
      (text, text)          one utterance    └─ relative_gain ─> Gain (baseline, steered, relative)

    Scored
    ├── words       Edits(substitutions, deletions, insertions, length) over `normalise.words`
    ├── characters  Edits over `normalise.characters`
    └── runaway, truncated, empty_reference, empty_hypothesis

- A *rate* is of the corpus: all errors over all reference tokens. It can pass 1.
- An *interval* is the 95% percentile bootstrap with a fixed seed (Bisani and Ney, ICASSP 2004):
  percentile, because it stays defined where BCa divides by zero (no errors at all). Drawn are whole
  speakers where two or more are known, since the errors of one speaker go together (Liu and Peng,
  arXiv 1912.09508); else utterances. One utterance gives no interval: None.
- A *reference without a token* (silence, or only "[noise]") has no length to divide by. It stays
  out of both rates and of every interval, and is counted as `empty_references`; the words that
  were made up over it are `empty_reference_insertions`. Added to the rate they would count errors
  against nothing, and the rate would depend on how many silent clips a corpus holds.
- A *runaway* is decoding that no longer listens: see `is_runaway`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jiwer
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from salsa_dist.errors import UserError
from salsa_dist.metrics import normalise

Metric = Literal["wer", "cer"]
Interval = tuple[float | None, float | None]

BOOTSTRAP = "percentile"
RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0


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
    """One utterance, compared."""

    key: str
    words: Edits
    characters: Edits
    runaway: bool
    truncated: bool
    empty_hypothesis: bool
    speaker: str | None = None

    @property
    def empty_reference(self) -> bool:
        return self.words.length == 0

    def edits(self, metric: Metric) -> Edits:
        return self.words if metric == "wer" else self.characters


@dataclass(frozen=True)
class Summary:
    """One row of a table. Rates are fractions; None where there is no reference token."""

    utterances: int
    ref_words: int
    wer: float | None
    wer_low: float | None
    wer_high: float | None
    cer: float | None
    cer_low: float | None
    cer_high: float | None
    substitutions: int
    deletions: int
    insertions: int
    runaways: int
    truncated: int
    empty_references: int
    empty_reference_insertions: int
    empty_hypotheses: int
    speakers: int
    """Known ones among the utterances that have a reference."""


@dataclass(frozen=True)
class Gain:
    """How much lower `steered` is than `baseline`, as a fraction of it; positive is better."""

    baseline: float | None
    steered: float | None
    relative: float | None
    relative_low: float | None
    relative_high: float | None


@dataclass(frozen=True)
class Piece:
    """A stretch of an alignment; one side is empty where the other stands alone."""

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
) -> Scored:
    """Compare one hypothesis with its reference, both as written."""
    ref, hyp = normalise.words(reference, language), normalise.words(hypothesis, language)
    runaway = is_runaway(reference, hypothesis, finished=finished)
    return Scored(
        key=key,
        words=_edits(ref, hyp),
        characters=_edits(
            normalise.characters(reference, language), normalise.characters(hypothesis, language)
        ),
        runaway=runaway,
        truncated=not finished and not runaway,
        empty_hypothesis=not hyp,
        speaker=speaker,
    )


def is_runaway(reference: str, hypothesis: str, *, finished: bool = True) -> bool:
    """Whether decoding lost the audio and went on by itself.

    Either it hit the token limit, and the text is already longer than the reference or loops; or it
    ended, but the text is more than twice as long as the reference plus 20 characters, and loops.
    A text loops when one piece, three times or more in a row, makes up over half of it.

    The limit alone is no proof: a limit too small for the language cuts good text short too. That
    is `truncated`, and a larger `evaluation.max_new_tokens` mends it. Length alone is none either:
    a reference can leave words out. Texts are taken as written, since normalising would hide an
    endless "!!!!!".
    """
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not finished and len(hypothesis) > len(reference):
        return True
    if finished and len(hypothesis) <= 2 * len(reference) + 20:
        return False
    return _looping(hypothesis)


def summarise(utterances: Sequence[Scored]) -> Summary:
    """Corpus rates, their intervals and the counts."""
    spoken = [u for u in utterances if not u.empty_reference]
    groups = clusters(spoken)
    wer, wer_low, wer_high = _rate([u.words for u in spoken], groups)
    cer, cer_low, cer_high = _rate([u.characters for u in spoken], groups)
    return Summary(
        utterances=len(utterances),
        ref_words=sum(u.words.length for u in spoken),
        wer=wer,
        wer_low=wer_low,
        wer_high=wer_high,
        cer=cer,
        cer_low=cer_low,
        cer_high=cer_high,
        substitutions=sum(u.words.substitutions for u in spoken),
        deletions=sum(u.words.deletions for u in spoken),
        insertions=sum(u.words.insertions for u in spoken),
        runaways=sum(u.runaway for u in utterances),
        truncated=sum(u.truncated for u in utterances),
        empty_references=len(utterances) - len(spoken),
        empty_reference_insertions=sum(u.words.insertions for u in utterances if u.empty_reference),
        empty_hypotheses=sum(u.empty_hypothesis for u in utterances),
        speakers=len({u.speaker for u in spoken} - {None}),
    )


def corpus_rate(utterances: Sequence[Scored], metric: Metric) -> float | None:
    """All errors over all reference tokens; None without a token."""
    edits = [u.edits(metric) for u in utterances if not u.empty_reference]
    length = sum(e.length for e in edits)
    return sum(e.errors for e in edits) / length if length else None


def clusters(utterances: Sequence[Scored]) -> NDArray[np.int64]:
    """`(utterances,)` number of the group that each is drawn with: its speaker's, or one of its own.

    An utterance of no known speaker is a group of its own, and so is each one where fewer than two
    speakers are known: there is nothing to draw among.
    """
    speakers = {u.speaker for u in utterances} - {None}
    names = [
        ("speaker", u.speaker) if u.speaker is not None and len(speakers) > 1 else ("clip", str(i))
        for i, u in enumerate(utterances)
    ]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], dtype=np.int64)


def by_cluster(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """`(groups,)` sums of `(utterances,)` values: all that a rate needs of a group."""
    return np.bincount(groups, weights=values).astype(np.float64)


def relative_gain(
    baseline: Sequence[Scored], steered: Sequence[Scored], metric: Metric = "wer"
) -> Gain:
    """Relative fall of the error rate, with a bootstrap that draws the same utterances for both.

    Both must hold the same keys and references: a gain over other utterances would be no gain.
    """
    spoken = sorted((u for u in baseline if not u.empty_reference), key=lambda u: u.key)
    before = {u.key: u.edits(metric) for u in spoken}
    after = {u.key: u.edits(metric) for u in steered if not u.empty_reference}
    if {k: e.length for k, e in before.items()} != {k: e.length for k, e in after.items()}:
        raise UserError(
            f"baseline ({len(before)} utterances) and steered ({len(after)}) were not decoded on "
            "the same utterances and references, so their gain means nothing: decode both again "
            "with `salsa-dist evaluate CONFIG`"
        )
    keys = list(before)
    length = sum(before[k].length for k in keys)
    b = np.array([before[k].errors for k in keys], dtype=np.float64)
    s = np.array([after[k].errors for k in keys], dtype=np.float64)
    if length == 0:
        return Gain(None, None, None, None, None)
    rates = float(b.sum()) / length, float(s.sum()) / length
    if b.sum() == 0:
        return Gain(*rates, None, None, None)  # nothing to gain on
    low, high = bootstrap(b, s, fall, clusters(spoken))
    return Gain(*rates, float(fall(b, s)), low, high)


def align(reference: str, hypothesis: str, language: str) -> list[Piece]:
    """The alignment behind the word errors, to be shown; the texts come out normalised."""
    ref, hyp = normalise.words(reference, language), normalise.words(hypothesis, language)
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


def _edits(ref: list[str], hyp: list[str]) -> Edits:
    counts = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in _aligned(ref, hyp):
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


def _rate(
    edits: Sequence[Edits], groups: NDArray[np.int64]
) -> tuple[float | None, float | None, float | None]:
    errors = np.array([e.errors for e in edits], dtype=np.float64)
    length = np.array([e.length for e in edits], dtype=np.float64)
    if not edits:
        return None, None, None
    return (float(errors.sum() / length.sum()), *bootstrap(errors, length, ratio, groups))


def ratio(
    errors: NDArray[np.float64], length: NDArray[np.float64], axis: int = -1
) -> NDArray[np.float64]:
    """Corpus rate of (…, utterances) errors and lengths."""
    return np.asarray(errors.sum(axis=axis) / length.sum(axis=axis))


def fall(
    before: NDArray[np.float64], after: NDArray[np.float64], axis: int = -1
) -> NDArray[np.float64]:
    """Relative fall from one to the other, of (…, utterances) errors."""
    b, s = before.sum(axis=axis), after.sum(axis=axis)
    # A draw may hold no error of the baseline: no change if the other has none either, else a fall
    # without bound.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where((b == 0) & (s == 0), 0.0, (b - s) / b))


def bootstrap(
    x: NDArray[np.float64], y: NDArray[np.float64], statistic: Any, groups: NDArray[np.int64]
) -> Interval:
    """Interval of a statistic of sums of two (utterances,) arrays, the same groups drawn from both."""
    x, y = by_cluster(x, groups), by_cluster(y, groups)
    if len(x) < 2:
        return None, None
    # A draw without bound (see `fall`) upsets only the standard error, which nobody reads.
    with np.errstate(invalid="ignore"):
        interval = stats.bootstrap(
            (x, y),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, 2_000_000 // len(x)),  # bounds the memory of the drawn indices
            confidence_level=CONFIDENCE,
            method=BOOTSTRAP,
            rng=np.random.default_rng(SEED),
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)
