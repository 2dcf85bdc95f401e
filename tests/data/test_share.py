"""Every item is one rank's, and no rank has more than the size that all are told."""

from __future__ import annotations

import pytest

from salsa_dist.data.share import rank_of, share_of


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize(("count", "world_size"), [(0, 3), (2, 3), (7, 3), (9, 3), (5, 1)])
def test_shares_are_a_partition(count: int, world_size: int, neighbours: bool) -> None:
    shares = [share_of(range(count), r, world_size, neighbours=neighbours) for r in range(world_size)]
    assert sorted(item for own, _ in shares for item in own) == list(range(count))
    assert {most for _, most in shares} == {max(len(own) for own, _ in shares)}


def test_in_turn_and_neighbours_are_dealt_as_they_say() -> None:
    assert [share_of("abcdefg", r, 3)[0] for r in range(3)] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    together = [share_of("abcdefg", r, 3, neighbours=True)[0] for r in range(3)]
    assert together == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert [rank_of(reader, 3) for reader in range(5)] == [0, 1, 2, 0, 1]
