"""Two methods on the same clips: errors averaged over seeds, their gain, interval and test."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

import numpy as np

from salsa_dist.errors import UserError
from salsa_dist.metrics import error_rates, significance
from salsa_dist.report.entries import Entry


def _mean_errors(entry: Entry, metric: error_rates.Metric) -> dict[str, tuple[float, int]]:
    """key -> errors, averaged over seeds, and reference length, of the clips that have a reference."""
    return {
        u.key: (
            mean(scored[u.key].edits(metric).errors for scored in entry.seeds.values()),
            u.edits(metric).length,
        )
        for u in entry.utterances
        if not u.empty_reference
    }


def interval(entry: Entry, metric: error_rates.Metric) -> error_rates.Interval:
    """Of its rate, over speakers, or utterances where they are not known."""
    values = list(_mean_errors(entry, metric).values())
    return error_rates.bootstrap(
        np.array([errors for errors, _ in values], dtype=np.float64),
        np.array([length for _, length in values], dtype=np.float64),
        error_rates.ratio,
        _groups(entry),
    )


def gain(baseline: Entry, entry: Entry, metric: error_rates.Metric) -> list[float | None]:
    """The share of the baseline's errors that is gone, and its interval; None where it has none."""
    before, after = _mean_errors(baseline, metric), _mean_errors(entry, metric)
    _same_clips(baseline, entry, before, after)
    b = np.array([before[k][0] for k in before], dtype=np.float64)
    a = np.array([after[k][0] for k in before], dtype=np.float64)
    if not b.sum():
        return [None, None, None]
    return [
        float(error_rates.fall(b, a)),
        *error_rates.bootstrap(b, a, error_rates.fall, _groups(baseline)),
    ]


def p_value(one: Entry, other: Entry, metric: error_rates.Metric) -> float:
    """Of no difference between two methods in a language: a paired permutation test."""
    a, b = _mean_errors(one, metric), _mean_errors(other, metric)
    _same_clips(one, other, a, b)
    apart = np.array([b[key][0] - a[key][0] for key in a], dtype=np.float64)
    return significance.permutation(apart, _groups(one))


def _groups(entry: Entry) -> np.ndarray:
    """What is drawn together, for the clips of `_mean_errors`."""
    return error_rates.clusters([u for u in entry.utterances if not u.empty_reference])


def _same_clips(one: Entry, other: Entry, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    if {k: v[1] for k, v in a.items()} != {k: v[1] for k, v in b.items()}:
        raise UserError(
            f"{one.language}: {one.method} and {other.method} were decoded on different clips or "
            "references; evaluate both on the same shards and split"
        )
