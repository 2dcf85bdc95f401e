"""Divides the samples of an adapter with several languages among these languages.

    clips of each language ──shares──► p ~ n^(1/T), or weights ──quotas──► whole samples of a window
    sample n = window · 4096 + i  ──mixed──► its language, and how many samples of it came before

Every window of 4,096 samples holds each language's quota exactly, in an order of its own. So how often
a language was sampled before any n is known without looking at those samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from salsa_dist.errors import UserError

WINDOW = 4096  # samples


@dataclass(frozen=True)
class Mix:
    """Explicit `weights` of the languages, or where there are none a temperature.

    At temperature 1 a language is sampled in proportion to its clips, at a high one about as often
    as the others: p ~ n^(1/T), as in multilingual BERT and XLM-R (arXiv 1911.02116, section 3.1,
    alpha = 1/T).
    """

    temperature: float = 1.0
    weights: Mapping[str, float] | None = None


def shares(clips: Mapping[str, int], mix: Mix) -> dict[str, float]:
    """Each language's share of the samples; the sum is 1.

    Args:
        clips: language -> clips that can be sampled.

    Raises:
        UserError: the weights are not of these languages.
    """
    if mix.weights is not None:
        if mix.weights.keys() != clips.keys():
            raise UserError(
                f"mix.weights are of {', '.join(sorted(mix.weights))}, the adapter's languages are "
                f"{', '.join(sorted(clips))}: give each one weight"
            )
        raw = {language: float(mix.weights[language]) for language in clips}
    else:
        raw = {language: n ** (1 / mix.temperature) for language, n in clips.items()}
    total = sum(raw.values())
    return {language: value / total for language, value in raw.items()}


def quotas(share: Sequence[float]) -> tuple[int, ...]:
    """Samples of each language in a window: largest remainders, and at least one each."""
    if len(share) > WINDOW:
        raise UserError(f"an adapter of {len(share)} languages: at most {WINDOW} can be mixed")
    exact = np.array(share) * WINDOW
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while (rest := WINDOW - int(counts.sum())) != 0:
        # Where the rounding up of the rare ones took too much, the commonest gives it back.
        i = int(np.argmax(exact - counts)) if rest > 0 else int(np.argmax(counts))
        counts[i] += 1 if rest > 0 else -1
    return tuple(int(c) for c in counts)


def mixed(seed: int, n: int, quota: tuple[int, ...]) -> tuple[int, int]:
    """The language of sample `n`, by number, and how many samples of it came before."""
    window, i = divmod(n, WINDOW)
    languages, before = _window(seed, window, quota)
    language = int(languages[i])
    return language, window * quota[language] + int(before[i])


@lru_cache(maxsize=256)
def _window(
    seed: int, window: int, quota: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    languages = np.repeat(np.arange(len(quota)), quota)
    before = np.zeros(WINDOW, np.int64)
    if len(quota) > 1:
        np.random.default_rng([seed, window, _MIXING]).shuffle(languages)
    for language, count in enumerate(quota):
        before[languages == language] = np.arange(count)
    return languages, before


_MIXING = 0x4D4958  # keeps these random numbers apart from those of orders in the plan
