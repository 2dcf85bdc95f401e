"""A step is a pure function of seed, step and index; ranks and workers only share it out."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salsa_dist.data.index import Entry, Shard
from salsa_dist.data.plan import AdapterPlan
from salsa_dist.errors import UserError


def shards(sizes: list[int]) -> list[Shard]:
    return [
        Shard(
            path=f"bg/train-{i:06d}.tar",
            split="train",
            language="bg",
            samples=n,
            seconds=float(n),
            bytes=n * 512,
            sha256="",
            entries=tuple(Entry(f"{i}-{j}", 1.0, j * 512, 512) for j in range(n)),
        )
        for i, n in enumerate(sizes)
    ]


def keys(plan: AdapterPlan, steps: range) -> list[list[str]]:
    return [[draw.entry.key for draw in plan.step(t)] for t in steps]


plans = st.builds(
    lambda sizes, readers, clips, seed: (sizes, min(readers, len(sizes)), clips, seed),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(1, 8),
    st.integers(1, 7),
    st.integers(0, 5),
)


@settings(max_examples=60, deadline=None)
@given(plans, st.integers(0, 50))
def test_going_on_at_any_step_gives_the_same_draws(
    drawn: tuple[list[int], int, int, int], start: int
) -> None:
    sizes, readers, clips, seed = drawn
    through = keys(AdapterPlan(shards(sizes), clips, readers, seed, 9), range(start + 5))
    # A fresh plan that never saw the steps before, and shards given in another order.
    fresh = AdapterPlan(shards(sizes)[::-1], clips, readers, seed, 9)
    assert keys(fresh, range(start, start + 5)) == through[start:]


@settings(max_examples=60, deadline=None)
@given(plans)
def test_a_reader_draws_each_of_its_clips_once_an_epoch(
    drawn: tuple[list[int], int, int, int],
) -> None:
    sizes, readers, clips, seed = drawn
    plan = AdapterPlan(shards(sizes), clips, readers, seed, 9)
    by_reader: dict[int, list[str]] = {}
    for t in range(3 * sum(sizes) * readers // clips + 3):
        for draw in plan.step(t):
            by_reader.setdefault(draw.reader, []).append(draw.entry.key)
    for reader, drawn_keys in by_reader.items():
        own = sum(sizes[reader::readers])
        for epoch in range(len(drawn_keys) // own):
            counts = Counter(drawn_keys[epoch * own : (epoch + 1) * own])
            assert len(counts) == own
            assert set(counts.values()) == {1}


def test_epochs_and_seeds_differ_in_order() -> None:
    plan = AdapterPlan(shards([30]), 30, 1, 0, 9)
    first, second = keys(plan, range(2))
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != keys(AdapterPlan(shards([30]), 30, 1, 1, 9), range(1))[0]


def test_clips_longer_than_the_window_are_left_out_and_counted() -> None:
    long = [
        Shard(
            s.path,
            s.split,
            s.language,
            s.samples,
            s.seconds,
            s.bytes,
            s.sha256,
            tuple(Entry(e.key, 1.0 + i, e.offset, e.length) for i, e in enumerate(s.entries)),
        )
        for s in shards([5, 5])
    ]
    plan = AdapterPlan(long, 4, 2, 0, max_seconds=3.0)
    assert (plan.clips, plan.left_out) == (6, 4)
    assert {d.entry.seconds for t in range(9) for d in plan.step(t)} == {1.0, 2.0, 3.0}
    with pytest.raises(UserError, match=r"longer than the audio window of 0\.5 s"):
        AdapterPlan(long, 4, 2, 0, max_seconds=0.5)


def test_fewer_shards_than_readers_is_refused() -> None:
    with pytest.raises(UserError, match="bg has 2 for 3 readers"):
        AdapterPlan(shards([4, 4]), 2, 3, 0, 9)
