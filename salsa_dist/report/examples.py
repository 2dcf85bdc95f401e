"""Selects the utterances to show, by rule, to avoid cherry-picking.

Those whose errors fell most, some nearest to the median change, those whose errors rose most. By
number of errors, which is what moves the corpus rate; ties go to the smaller key, so the same run
always shows the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from salsa_dist.evaluation.transcripts import ZERO_SHOT
from salsa_dist.metrics import error_rates
from salsa_dist.metrics.summary import rates, spoken_of
from salsa_dist.report.cases import Case
from salsa_dist.report.results import best_zero_shot

MOST = 2
"""Utterances of each kind, for one language."""


def chosen(
    before: Sequence[error_rates.Scored], after: Sequence[error_rates.Scored], most: int
) -> list[tuple[str, str]]:
    """(kind, key) of up to `most` utterances of each kind: improved, typical, worse."""
    then = {u.key: u for u in after}
    change = {u.key: u.words.errors - then[u.key].words.errors for u in before if not u.empty_reference}
    if not change:
        return []
    middle = median(change.values())
    fell = sorted((k for k in change if change[k] > 0), key=lambda k: (-change[k], k))[:most]
    rose = sorted((k for k in change if change[k] < 0), key=lambda k: (change[k], k))[:most]
    rest = change.keys() - {*fell, *rose}
    typical = sorted(rest, key=lambda k: (abs(change[k] - middle), k))[:most]
    kinds = (("improved", fell), ("typical", typical), ("worse", rose))
    return [(kind, key) for kind, keys in kinds for key in keys]


def of_language(own: Sequence[Case]) -> list[dict[str, Any]]:
    """Utterances of a language, with the best method of each kind, first seed.

    Which are shown is decided by the zero-shot and the best method over all.
    """
    known = sorted(
        (e for e in own if e.compared and e.method != ZERO_SHOT and rates(e.seeds, "wer")),
        key=lambda e: mean(rates(e.seeds, "wer")),
    )
    best_of_kind = list({e.kind: e for e in reversed(known)}.values())
    shown = sorted(best_of_kind, key=lambda e: mean(rates(e.seeds, "wer")))
    return of_cases(own, shown, MOST) if shown else []


def of_cases(cases: Sequence[Case], shown: Sequence[Case], most: int) -> list[dict[str, Any]]:
    """Up to `most` utterances of each kind, by zero-shot and each of `shown`; the first decides."""
    zero_shot = best_zero_shot(cases, shown[0], "wer")
    if zero_shot is None:
        return []
    rows = []
    for kind, key in chosen(spoken_of(zero_shot.seeds), spoken_of(shown[0].seeds), most):
        first = [(e, min(e.seeds)) for e in (zero_shot, *shown)]
        rows.append(
            {
                "language": zero_shot.language,
                "key": key,
                "kind": kind,
                "reference": zero_shot.texts[0][key].reference,
                "tokens": zero_shot.seeds[0][key].words.length,
                "heard": [
                    {
                        "method": e.method,
                        "window_s": e.window_s,
                        "seed": seed if e.kind != ZERO_SHOT else None,
                        "errors": e.seeds[seed][key].words.errors,
                        "parts": {n: p.errors for n, p in e.seeds[seed][key].parts.items()},
                        "text": e.texts[seed][key].hypothesis,
                    }
                    for e, seed in first
                ],
            }
        )
    return rows
