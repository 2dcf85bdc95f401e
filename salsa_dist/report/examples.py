"""Which utterances are shown: selected by rule, to avoid cherry-picking.

Those whose errors fell most, some nearest to the median change, those whose errors rose most. By
number of errors, which is what moves the corpus rate; ties go to the smaller key, so the same run
always shows the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from salsa_dist.metrics import error_rates


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
