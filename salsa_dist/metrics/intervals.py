"""Bootstrap intervals of corpus rates, over speakers where they are known.

    (utterances,) errors, lengths ──by_cluster──> (groups,) sums ──bootstrap──> (low, high)

The 95% percentile bootstrap with a fixed seed (Bisani and Ney, ICASSP 2004): percentile, because it
stays defined where BCa divides by zero (no errors at all). Resampled are whole speakers where two or
more are known, since the errors of one speaker go together (Liu and Peng, arXiv 1912.09508); else
utterances. The resamples depend on the order of the groups: hand utterances over sorted by key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from salsa_dist.metrics.error_rates import Scored

Interval = tuple[float | None, float | None]

BOOTSTRAP = "percentile"
RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0


def clusters(utterances: Sequence[Scored]) -> NDArray[np.int64]:
    """`(utterances,)` number of the group that each is resampled with: its speaker's, or its own.

    An utterance of no known speaker is a group of its own, and so is each one where fewer than two
    speakers are known: there is nothing to choose among.
    """
    speakers = {u.speaker for u in utterances} - {None}
    names = [
        ("speaker", u.speaker) if u.speaker is not None and len(speakers) > 1 else ("clip", str(i))
        for i, u in enumerate(utterances)
    ]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], dtype=np.int64)


def by_cluster(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """`(groups,)` sums of `(utterances,)` values; a rate needs only these sums."""
    return np.bincount(groups, weights=values).astype(np.float64)


def ratio(
    errors: NDArray[np.float64], length: NDArray[np.float64], axis: int = -1
) -> NDArray[np.float64]:
    """Corpus rate of (…, utterances) errors and lengths."""
    # A resample may hold insertions alone, where few utterances have a token of a part.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(errors.sum(axis=axis) / length.sum(axis=axis))


def fall(
    before: NDArray[np.float64], after: NDArray[np.float64], axis: int = -1
) -> NDArray[np.float64]:
    """Relative fall from one to the other, of (…, utterances) errors."""
    b, s = before.sum(axis=axis), after.sum(axis=axis)
    # A resample may hold no error of the baseline: no change if the other has none either, else a
    # fall without bound.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where((b == 0) & (s == 0), 0.0, (b - s) / b))


def bootstrap(
    x: NDArray[np.float64], y: NDArray[np.float64], statistic: Any, groups: NDArray[np.int64]
) -> Interval:
    """Interval of a statistic of the sums of two `(utterances,)` arrays that are resampled together.

    `(None, None)` for fewer than two groups; one end is None where the statistic has no bound.
    """
    if not len(groups):
        return None, None
    x, y = by_cluster(x, groups), by_cluster(y, groups)
    if len(x) < 2:
        return None, None
    # A resample without bound (see `fall`) upsets only the standard error, which nobody reads.
    with np.errstate(invalid="ignore"):
        interval = stats.bootstrap(
            (x, y),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, 2_000_000 // len(x)),  # bounds the memory of the resampled indices
            confidence_level=CONFIDENCE,
            method=BOOTSTRAP,
            rng=np.random.default_rng(SEED),
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)
