"""Weighted sums of adapters for one base, and what keeps adapters from being mixed.

combined([bg, el], [0.75, 0.25], "bg-el")    each site of either; a missing vector counts as zero
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from salsa_dist.errors import UserError
from salsa_dist.steering.vector_facts import site_order

if TYPE_CHECKING:
    from salsa_dist.steering.vectors import SteeringVectors


def combined(
    adapters: Sequence[SteeringVectors], weights: Sequence[float], name: str
) -> SteeringVectors:
    """The weighted sum of adapters for one base; what one does not know of it, another may.

    Raises:
        UserError: they differ in rule, base or width.
    """
    first = adapters[0]
    for a, b in combinations(adapters, 2):
        for what, one, two in _differences(a, b):
            raise _unlike(a, b, what, one, two)
    about_base: dict[str, Any] = {
        what: next((known for a in adapters if (known := getattr(a, what))), "")
        for what in ("base", "revision", "architecture", "model_type")
    }
    vectors: dict[str, Tensor] = {}
    for site in sorted({site for a in adapters for site in a.vectors}, key=site_order):
        have = [
            (w, a.vectors[site]) for w, a in zip(weights, adapters, strict=True) if site in a.vectors
        ]
        # In fp64, so that the mean of equal vectors is that vector to the bit.
        shares = torch.tensor([w for w, _ in have], dtype=torch.float64)
        vectors[site] = shares @ torch.stack([v.double() for _, v in have])
    return replace(
        first,
        vectors=vectors,
        name=name,
        **about_base,
        language=first.language if all(a.language == first.language for a in adapters) else "",
        data=first.data if all(a.data == first.data for a in adapters) else None,
        training=None,
    )


def shares(adapters: Sequence[SteeringVectors], weights: Sequence[float] | None) -> list[float]:
    """The share of each adapter in their mean.

    Args:
        adapters: with the same sites.
        weights: one for each, none negative, not all zero; None: all alike.

    Raises:
        UserError: there is no such mean.
    """
    if not adapters:
        raise UserError("an average needs at least one adapter")
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if len(weights) != len(adapters):
        raise UserError(f"{len(weights)} weights were given for {len(adapters)} adapters")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not 0 < sum(weights) < math.inf:
        raise UserError(f"the weights {weights} of an average must be positive numbers")
    first = adapters[0]
    for other in adapters[1:]:
        if first.vectors.keys() != other.vectors.keys():
            raise _unlike(first, other, "sites", " ".join(first.vectors), " ".join(other.vectors))
    return [weight / sum(weights) for weight in weights]


def _differences(
    first: SteeringVectors, other: SteeringVectors
) -> Iterator[tuple[str, object, object]]:
    """The fact that prevents two adapters from being combined: its name, and both values."""
    known_by = "revision" if first.revision and other.revision else "base"
    for what in ("rule", known_by, "architecture", "model_type"):
        one, two = getattr(first, what), getattr(other, what)
        # A vectors' file alone does not say the architecture: not known is no difference.
        unknown = what in ("architecture", "model_type") and not (one and two)
        if one != two and not unknown:
            yield what, one, two
    for site, vector in first.vectors.items():
        if site in other.vectors and vector.shape != other.vectors[site].shape:
            yield f"width at {site}", len(vector), len(other.vectors[site])


def _unlike(
    one: SteeringVectors, two: SteeringVectors, what: str, first: object, second: object
) -> UserError:
    return UserError(
        f"adapters {one.name!r} and {two.name!r} can't be mixed: they differ in their {what} "
        f"({first} and {second})"
    )
