"""Languages are sampled as often as asked, without a pattern, and counted without looking back."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from salsa_dist.data.mixing import WINDOW, Mix, mixed, quotas, shares
from salsa_dist.errors import UserError

CLIPS = {"be": 200, "bg": 10_000, "el": 1_500, "ro": 40}


@pytest.mark.parametrize(
    ("mix", "wanted"),
    [
        (Mix(), CLIPS),
        (Mix(3.0), {name: n ** (1 / 3) for name, n in CLIPS.items()}),
        (Mix(weights={"be": 1, "bg": 2, "el": 3, "ro": 4}), {"be": 1, "bg": 2, "el": 3, "ro": 4}),
    ],
    ids=["as they are", "temperature 3", "weights"],
)
def test_languages_are_sampled_as_often_as_asked(mix: Mix, wanted: dict[str, float]) -> None:
    share = shares(CLIPS, mix)
    assert sum(share.values()) == pytest.approx(1)
    quota = quotas(list(share.values()))
    assert sum(quota) == WINDOW
    # Any stretch, not only whole windows: from the middle of one into another.
    n = range(1000, 1000 + 5 * WINDOW // 2)
    sampled = Counter(mixed(7, i, quota)[0] for i in n)
    expected = np.array(list(wanted.values())) / sum(wanted.values()) * len(n)
    assert chisquare([sampled[i] for i in range(4)], expected).pvalue > 0.01


def test_the_order_of_languages_has_no_pattern() -> None:
    quota = quotas([0.25] * 4)
    order = [mixed(0, i, quota)[0] for i in range(4 * WINDOW)]
    pairs = Counter(zip(order[::2], order[1::2], strict=True))
    counts = [pairs[a, b] for a in range(4) for b in range(4)]
    assert chisquare(counts).pvalue > 0.01


@settings(max_examples=30)
@given(
    st.lists(st.floats(0.001, 100), min_size=1, max_size=50),
    st.integers(0, 3),
    st.integers(0, 3 * WINDOW),
)
def test_how_often_a_language_came_before_is_known(weights: list[float], seed: int, start: int) -> None:
    quota = quotas([w / sum(weights) for w in weights])
    assert (sum(quota), min(quota) >= 1) == (WINDOW, True)
    seen = Counter(mixed(seed, i, quota)[0] for i in range(start - start % WINDOW, start))
    window = start // WINDOW
    for i in range(start, start + 20):
        language, before = mixed(seed, i, quota)
        if i // WINDOW == window:
            assert before == window * quota[language] + seen[language]
            seen[language] += 1


def test_weights_of_other_languages_are_refused() -> None:
    with pytest.raises(UserError, match=r"mix.weights are of bg, the adapter's languages are be, bg"):
        shares(CLIPS, Mix(weights={"bg": 1}))
