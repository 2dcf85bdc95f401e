"""A rank's share of the work: each rank knows all of the work, in one order, and takes its own share.

items 0 1 2 3 4 5 6 on 3 ranks     in turn      0 3 6 │ 1 4   │ 2 5
                                   neighbours   0 1 2 │ 3 4 5 │ 6
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


def rank_of(number: int, world_size: int) -> int:
    """The rank of item, or virtual reader, `number`, in turn."""
    return number % world_size


def share_of(
    items: Sequence[_T], rank: int, world_size: int, *, neighbours: bool = False
) -> tuple[list[_T], int]:
    """The part of `items` that is `rank`'s, and the size of the largest part of any rank.

    Args:
        neighbours: items that follow each other stay together, such as those of one clip; else they are
            dealt in turn, so that each rank gets as many of the long ones, which come first.
    """
    most = -(-len(items) // world_size)
    if neighbours:
        return list(items[rank * most : (rank + 1) * most]), most
    return [item for number, item in enumerate(items) if rank_of(number, world_size) == rank], most
