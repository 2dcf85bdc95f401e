"""A step is a pure function of seed, step and index; ranks and workers only share it out."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salsa_dist.data.index import Entry, Shard
from salsa_dist.data.mixing import Mix
from salsa_dist.data.sampling import LANES, POOL_STEPS, AdapterPlan, Sample, pool_of, steps_of
from salsa_dist.errors import UserError


def shard(number: int, seconds: Sequence[float], language: str = "bg") -> Shard:
    return Shard(
        path=f"{language}/train-{number:06d}.tar",
        split="train",
        language=language,
        samples=len(seconds),
        seconds=sum(seconds),
        bytes=len(seconds) * 512,
        sha256="",
        entries=tuple(
            Entry(f"{language}-{number}-{j}", s, j * 512, 512) for j, s in enumerate(seconds)
        ),
    )


def shards(sizes: list[int], language: str = "bg") -> list[Shard]:
    """Clips of 1.0, 1.1, … 1.9, 1.0 … seconds."""
    return [
        shard(i, [1 + (j * 7 + i) % 10 / 10 for j in range(n)], language) for i, n in enumerate(sizes)
    ]


def keys(plan: AdapterPlan, steps: range) -> list[list[str]]:
    return [[sample.entry.key for sample in plan.step(t)] for t in steps]


def in_order(plan: AdapterPlan, pools: int) -> list[Sample]:
    """All samples of the first pools, as they are numbered."""
    samples = [d for k in range(pools) for t in steps_of(k) for d in plan.step(t)]
    return sorted(samples, key=lambda d: d.number)


plans = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 9), min_size=1, max_size=8),
        "other": st.lists(st.integers(1, 9), max_size=4),  # a second language's
        "readers": st.integers(1, 8),
        "clips": st.integers(1, 7) | st.none(),  # None: by seconds
        "seed": st.integers(0, 5),
        "temperature": st.sampled_from([1.0, 3.0]),
    }
)


def make(shape: dict[str, object], reverse: bool = False) -> AdapterPlan:
    all_shards = shards(shape["sizes"]) + shards(shape["other"], "el")  # type: ignore[arg-type]
    return AdapterPlan(
        all_shards[::-1] if reverse else all_shards,
        shape["clips"],  # type: ignore[arg-type]
        min(shape["readers"], len(all_shards)),  # type: ignore[type-var]
        shape["seed"],  # type: ignore[arg-type]
        9.0,
        seconds_per_step=5.0 if shape["clips"] is None else None,
        mix=Mix(shape["temperature"]),  # type: ignore[arg-type]
    )


@settings(max_examples=40)
@given(plans, st.integers(0, 50))
def test_going_on_at_any_step_gives_the_same_samples(shape: dict[str, object], start: int) -> None:
    through = keys(make(shape), range(start + 5))
    # A fresh plan that never saw the steps before, and shards given in another order.
    assert keys(make(shape, reverse=True), range(start, start + 5)) == through[start:]


@settings(max_examples=40)
@given(plans, st.integers(1, 8), st.integers(1, 8), st.integers(1, 7), st.integers(0, 40))
def test_stopping_and_going_on_with_other_ranks_and_workers_changes_no_step(
    shape: dict[str, object], world: int, other_world: int, workers: int, stop: int
) -> None:
    """What each worker of each rank would read, put together again."""
    wanted = [sorted(step) for step in keys(make(shape), range(stop + 10))]

    def shared(world: int, workers: int, steps: range) -> list[list[str]]:
        found: dict[int, list[str]] = {t: [] for t in steps}
        for rank, worker in itertools.product(range(world), range(workers)):
            plan = make(shape)  # each process has its own
            for t in steps[worker::workers]:
                found[t] += [d.entry.key for d in plan.step(t) if d.reader % world == rank]
        return [sorted(found[t]) for t in steps]

    before = shared(world, workers, range(stop))
    after = shared(other_world, 1 + workers % 3, range(stop, stop + 10))
    assert before + after == wanted


@settings(max_examples=40)
@given(plans)
def test_each_sample_is_in_one_step_and_a_reader_has_each_clip_once_per_epoch(
    shape: dict[str, object],
) -> None:
    sizes, readers = shape["sizes"], shape["readers"]
    assert isinstance(sizes, list)
    assert isinstance(readers, int)
    shape = {**shape, "other": []}
    plan = make(shape)
    samples = in_order(plan, 6)
    assert [d.number for d in samples] == list(range(len(samples)))
    readers = min(readers, len(sizes))
    for reader in range(readers):
        theirs = [d for d in samples if d.reader == reader]
        own = sum(sizes[reader::readers])
        for start in range(0, len(theirs), own):
            epoch = theirs[start : start + own]
            assert len({d.entry.key for d in epoch}) == len(epoch)
            assert {d.epoch for d in epoch} == {start // own}
            # Each shard is gone through forward, and left only at its end.
            runs = [(p, list(g)) for p, g in itertools.groupby(epoch, key=lambda d: d.shard.path)]
            assert len({p for p, _ in runs}) == len(runs)
            for _, run in runs:
                assert [d.entry.offset for d in run] == [512 * i for i in range(len(run))]


def test_epochs_and_seeds_differ_in_order() -> None:
    sizes = [6] * 8
    plan = AdapterPlan(shards(sizes), 6, 1, 0, 9)  # a pool is an epoch
    first, second = ([d.entry.key for d in in_order(plan, 2)][i : i + 48] for i in (0, 48))
    assert sorted(first) == sorted(second)
    assert first != second
    steps = [keys(AdapterPlan(shards(sizes), 6, 1, seed, 9), range(1)) for seed in (0, 1)]
    assert steps[0] != steps[1]


def test_neighbours_in_a_shard_are_seldom_used_together() -> None:
    plan = AdapterPlan(shards([200] * 4), 8, 4, 0, 9)
    together = 0
    for t in range(96):
        places = sorted((d.shard.path, d.entry.offset // 512) for d in plan.step(t))
        together += sum(a[0] == b[0] and b[1] - a[1] == 1 for a, b in itertools.pairwise(places))
    # Of the two clips that a step has from each shard, 1 pair in 8 by chance, 1 in 1 if unshuffled.
    assert together / (96 * 4) < 0.2


def test_workers_have_pools_of_their_own() -> None:
    for workers in (1, 2, 3, 4, 6, 12):
        owners: dict[int, set[int]] = {}
        for t in range(5 * LANES * POOL_STEPS):
            owners.setdefault(pool_of(t), set()).add(t % workers)
            assert t in steps_of(pool_of(t))
        assert all(len(found) == 1 for found in owners.values())


def test_clips_longer_than_the_window_are_left_out_and_counted() -> None:
    long = [shard(i, [1.0, 2.0, 3.0, 4.0, 5.0]) for i in range(2)]
    plan = AdapterPlan(long, 4, 2, 0, max_seconds=3.0)
    assert (plan.clips, plan.left_out) == (6, 4)
    assert {d.entry.seconds for t in range(9) for d in plan.step(t)} == {1.0, 2.0, 3.0}
    with pytest.raises(UserError, match=r"longer than the audio window of 0\.5 s"):
        AdapterPlan(long, 4, 2, 0, max_seconds=0.5)


def test_fewer_shards_than_readers_is_refused() -> None:
    with pytest.raises(UserError, match="bg has 2 for 3 readers"):
        AdapterPlan(shards([4, 4]), 2, 3, 0, 9)


# Batches by duration.


def speech(count: int, each: int, seed: int = 0) -> list[Shard]:
    """Shards of clips whose lengths are spread as read speech is: 1 to 20 s, most of them short."""
    rng = np.random.default_rng(seed)
    return [shard(i, list(np.clip(rng.lognormal(1.5, 0.5, each), 1, 20))) for i in range(count)]


def padding(passes: list[list[float]]) -> float:
    """Share of the frames that is padding, each pass being as long as its longest clip."""
    padded = sum(len(p) * max(p) for p in passes if p)
    return 1 - sum(map(sum, passes)) / padded


@pytest.mark.parametrize("world", [1, 4])
def test_padding_is_at_most_half_of_that_of_random_batches(world: int) -> None:
    budget = 60.0
    plan = AdapterPlan(speech(16, 100), None, 8, 0, 30, seconds_per_step=budget)
    steps = [plan.step(t) for t in range(2 * LANES * POOL_STEPS)]
    ours = [
        [d.entry.seconds for d in step if d.reader % world == rank]
        for step in steps
        for rank in range(world)
    ]
    # The same clips, shuffled and cut by the same budget for each rank's pass.
    clips = [d.entry.seconds for step in steps for d in step]
    np.random.default_rng(0).shuffle(clips)
    random: list[list[float]] = [[]]
    for seconds in clips:
        if sum(random[-1]) + seconds > budget / world:
            random.append([])
        random[-1].append(seconds)
    assert padding(ours) <= 0.5 * padding(random)


def test_steps_keep_to_their_budget_and_ranks_share_it() -> None:
    plan = AdapterPlan(speech(16, 100), None, 8, 0, 30, seconds_per_step=240.0)
    steps = [plan.step(t) for t in range(LANES * POOL_STEPS)]
    used = [sum(d.entry.seconds for d in step) for step in steps]
    assert np.mean(used) == pytest.approx(240, rel=0.05)
    assert max(used) < 1.35 * 240
    assert min(used) > 0.65 * 240
    by_rank = [[0.0] * 4 for _ in steps]
    for own, step in zip(by_rank, steps, strict=True):
        for d in step:
            own[d.reader % 4] += d.entry.seconds
    # What the slowest rank has beyond an even share: little, step for step.
    assert np.mean([max(own) / (sum(own) / 4) for own in by_rank]) < 1.35


def test_long_and_short_clips_are_all_used_in_an_epoch() -> None:
    plan = AdapterPlan(speech(4, 40), None, 2, 0, 30, seconds_per_step=50)
    counts = Counter(d.entry.key for d in in_order(plan, 60) if d.epoch == 0)
    assert len(counts) == 160
    assert set(counts.values()) == {1}


def test_no_step_is_empty_where_the_budget_is_one_clip() -> None:
    plan = AdapterPlan(speech(8, 20), None, 8, 0, 30, seconds_per_step=6)
    assert all(plan.step(t) for t in range(200))
    with pytest.raises(UserError, match="set it to several clips"):
        AdapterPlan(speech(8, 20), None, 8, 0, 30, seconds_per_step=2)


def test_a_replacement_depends_on_the_sample_alone() -> None:
    first, again = (AdapterPlan(shards([9] * 4), 4, 4, 3, 9) for _ in range(2))
    samples = first.step(7)
    wanted = [first.replacement(d, a).entry.key for d in samples for a in range(3)]
    assert [again.replacement(d, a).entry.key for d in samples for a in range(3)] == wanted
    assert len(set(wanted)) > 6
    assert all(first.replacement(d, 0).reader == d.reader for d in samples)
