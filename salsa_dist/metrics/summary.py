"""A method's transcripts in numbers, over one seed or several: rates, intervals, counts, gains.

    {seed: {key: Scored}} ──summarise──> Summary (counts; Rate of words and of characters)
    two of them           ──gain───────> Gain (relative, with its interval)
                          ──p_value────> of no difference

Utterances are taken in the order of their keys, so the numbers do not depend on who decoded what or
when. A rate is the mean over seeds; its interval is a bootstrap of the mean errors of each utterance,
so it tells of speakers (or utterances), and the deviation tells of seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

from salsa_dist.errors import UserError
from salsa_dist.metrics import intervals, significance
from salsa_dist.metrics.error_rates import Metric, Scored, corpus_rate

Seeds = Mapping[int, Mapping[str, Scored]]
"""seed -> key -> utterance; all seeds have the same keys."""


@dataclass(frozen=True)
class Rate:
    """A corpus rate, as a fraction; None without any reference token."""

    rate: float | None
    deviation: float | None
    """Over seeds; None for one."""
    low: float | None
    high: float | None
    substitutions: float | None
    """Over the reference's tokens, the mean over seeds; so the next two."""
    deletions: float | None
    insertions: float | None


@dataclass(frozen=True)
class Part(Rate):
    """The rate of one language of mixed speech, or at its switch points."""

    tokens: int
    """Of the references."""


@dataclass(frozen=True)
class Summary:
    """Counts over all seeds, except for counts of utterances."""

    utterances: int
    ref_words: int
    speakers: int
    """Known ones among the utterances that have a reference."""
    empty_references: int
    wer: Rate
    cer: Rate
    substitutions: int
    """Of words; so the next two."""
    deletions: int
    insertions: int
    runaways: int
    truncated: int
    empty_reference_insertions: int
    empty_hypotheses: int
    parts: Mapping[str, Part]
    """By language and at switch points (`switching`); empty unless the language is mixed."""


@dataclass(frozen=True)
class Gain:
    """Relative reduction of a rate, as a fraction of the baseline's; positive is better."""

    baseline: float | None
    steered: float | None
    relative: float | None
    low: float | None
    high: float | None
    improved: int
    """Utterances with fewer errors, their means over seeds."""
    unchanged: int
    worse: int


def summarise(seeds: Seeds) -> Summary:
    """Corpus rates, their intervals and the counts."""
    every = [u for own in seeds.values() for u in own.values()]
    spoken = [u for u in every if not u.empty_reference]
    first = spoken_of(seeds)
    return Summary(
        utterances=len(next(iter(seeds.values()), {})),
        ref_words=sum(u.words.length for u in first),
        speakers=len({u.speaker for u in first} - {None}),
        empty_references=len(next(iter(seeds.values()), {})) - len(first),
        wer=_rate(seeds, "wer"),
        cer=_rate(seeds, "cer"),
        substitutions=sum(u.words.substitutions for u in spoken),
        deletions=sum(u.words.deletions for u in spoken),
        insertions=sum(u.words.insertions for u in spoken),
        runaways=sum(u.runaway for u in every),
        truncated=sum(u.truncated for u in every),
        empty_reference_insertions=sum(u.words.insertions for u in every if u.empty_reference),
        empty_hypotheses=sum(u.empty_hypothesis for u in every),
        parts={
            name: Part(**vars(_rate(seeds, name)), tokens=sum(u.parts[name].length for u in first))
            for name in (first[0].parts if first else ())
        },
    )


def spoken_of(seeds: Seeds) -> list[Scored]:
    """The first seed's utterances that have a reference, by key."""
    own = seeds[min(seeds)] if seeds else {}
    return [own[key] for key in sorted(own) if not own[key].empty_reference]


def rates(seeds: Seeds, metric: str) -> list[float]:
    """The corpus rate of each seed that has one."""
    made = (corpus_rate(list(own.values()), metric) for own in seeds.values())
    return [rate for rate in made if rate is not None]


def gain(baseline: Seeds, steered: Seeds, metric: Metric) -> Gain:
    """Relative fall of the rate, with a bootstrap that resamples the same utterances for both.

    Raises:
        UserError: they hold other keys or references: a gain over other utterances would be no gain.
    """
    before, after, length = _paired(baseline, steered, metric)
    change = before - after
    total, known = length.sum(), bool(before.sum())
    groups = intervals.clusters(spoken_of(baseline))
    low, high = intervals.bootstrap(before, after, intervals.fall, groups) if known else (None, None)
    return Gain(
        baseline=float(before.sum() / total) if total else None,
        steered=float(after.sum() / total) if total else None,
        relative=float(intervals.fall(before, after)) if known else None,
        low=low,
        high=high,
        improved=int((change > 0).sum()),
        unchanged=int((change == 0).sum()),
        worse=int((change < 0).sum()),
    )


def p_value(one: Seeds, other: Seeds, metric: Metric) -> float:
    """p value of no difference between two methods, by a paired permutation test.

    Raises:
        UserError: as `gain`.
    """
    a, b, _ = _paired(one, other, metric)
    return significance.permutation(b - a, intervals.clusters(spoken_of(one)))


def _rate(seeds: Seeds, metric: str) -> Rate:
    own = rates(seeds, metric)
    errors, length = _mean_errors(seeds, metric), _lengths(seeds, metric)
    # Only a part of mixed speech has utterances without a token: none of that part is in them.
    there = (length > 0) | (errors > 0)
    groups = intervals.clusters([u for u, own in zip(spoken_of(seeds), there, strict=True) if own])
    errors, length = errors[there], length[there]
    tokens = float(length.sum()) * len(seeds)
    kinds = {
        kind: sum(
            getattr(u.edits(metric), kind)
            for seed in seeds.values()
            for u in seed.values()
            if not u.empty_reference
        )
        / tokens
        if tokens
        else None
        for kind in ("substitutions", "deletions", "insertions")
    }
    low, high = intervals.bootstrap(errors, length, intervals.ratio, groups)
    return Rate(
        rate=mean(own) if own else None,
        deviation=stdev(own) if len(own) > 1 else None,
        low=low,
        high=high,
        **kinds,
    )


def _mean_errors(seeds: Seeds, metric: str) -> NDArray[np.float64]:
    """`(utterances,)` of `spoken_of`, the mean over seeds."""
    return np.array(
        [mean(own[u.key].edits(metric).errors for own in seeds.values()) for u in spoken_of(seeds)],
        dtype=np.float64,
    )


def _lengths(seeds: Seeds, metric: str) -> NDArray[np.float64]:
    return np.array([u.edits(metric).length for u in spoken_of(seeds)], dtype=np.float64)


def _paired(
    one: Seeds, other: Seeds, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean errors of both and the references' lengths, each `(utterances,)`."""
    a, b = ({u.key: u.edits(metric).length for u in spoken_of(seeds)} for seeds in (one, other))
    if a != b:
        raise UserError(
            f"decoded on different clips or references ({len(a)} and {len(b)} with a reference); "
            "evaluate both on the same shards and split"
        )
    return _mean_errors(one, metric), _mean_errors(other, metric), _lengths(one, metric)
