"""Paired tests: does a method differ from another by more than chance?

    errors of A less those of B, per clip ──summed per speaker──> (groups,) ──random signs──> p

Paired, and clustered as the intervals are: where speakers are known a speaker's clips change sides
together, since their errors go together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from salsa_dist.metrics import intervals


def permutation(apart: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Two-sided p of no difference, for (utterances,) paired differences and the group of each."""
    sums = intervals.by_cluster(apart, groups)
    if not sums.any():
        return 1.0
    if len(sums) == 1:
        return 1.0  # either sign is as far from zero
    found = stats.permutation_test(
        (sums,),
        lambda x, axis=-1: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=intervals.RESAMPLES,
        rng=np.random.default_rng(intervals.SEED),
    )
    return float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics, 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, most = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = most
    return adjusted
