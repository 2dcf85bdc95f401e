"""Clips with a weight of their own, and clips in which nobody speaks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import samples
from conformance import clips, noise, placed, random_bank
from run_results import events
from tiny import make_config, make_shards

from salsa_dist import SteeringVectors, load_config, train
from salsa_dist.corpus.writer import Packed, write_tar
from salsa_dist.data.audio import flac
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.joining import joined
from salsa_dist.data.reading import first_clips
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import join
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.training.from_config import make_batches
from salsa_dist.training.loss import label_weights, token_losses
from salsa_dist.training.optimizer import reduce_step


@pytest.fixture(scope="module")
def llm(tiny_base: Path) -> SpeechLLM:
    return load_speech_llm(tiny_base)


def remarked(folder: Path, shards: Path, marks: Callable[[str], dict[str, Any]]) -> Path:
    """`shards` again, with more in each sample's JSON."""
    index = ShardIndex.load(shards)
    made = samples(index)
    again = tuple(
        write_tar(
            *(folder, shard.path, shard.split, shard.language),
            [
                Packed(
                    *(entry.key, "flac", flac(made[entry.key][1], SAMPLE_RATE)),
                    {**made[entry.key][2], **marks(entry.key)},
                    entry.seconds,
                )
                for entry in shard.entries
            ],
        )
        for shard in index.shards
    )
    replace(index, folder=folder, shards=again).save(folder)
    return folder


def means(frozen: FrozenBase, batch: Sequence[Clip]) -> dict[str, torch.Tensor]:
    """What a step of `batch` gives to the optimizer, (adapters, hidden) a site."""
    bank = frozen.bank
    for vectors in bank.vectors.values():
        vectors.grad = None
    made = frozen.family.training_batch(batch).weighted([clip.weight for clip in batch])
    losses = token_losses(frozen, made)
    weights = label_weights(made, losses)
    losses = losses * weights
    losses.sum().backward()
    sums, counts = torch.zeros(2, len(bank.specs)).unbind()
    sums.index_add_(0, made.label_rows, losses.detach())
    counts.index_add_(0, made.label_rows, weights)
    with join(60):
        return dict(reduce_step(bank, range(len(bank.specs)), sums, counts, False).gradients)


def test_a_weight_is_how_often_a_clip_counts(llm: SpeechLLM) -> None:
    first, second, third, fourth = clips(llm)  # of the rows 0, 1, 2, 1
    with placed(llm, random_bank(llm, ["salsa", "add", "salsa"])) as frozen:
        plain = means(frozen, [first, second, third, fourth])
        none = means(frozen, [first, second, third, replace(fourth, weight=0.0)])
        without = means(frozen, [first, second, third])
        twice = means(frozen, [first, second, third, fourth, fourth])
        double = means(frozen, [first, second, third, replace(fourth, weight=2.0)])
        tiny = means(frozen, [replace(c, weight=1e-3) for c in (first, second, third, fourth)])
    for site, wanted in plain.items():
        near = torch.testing.assert_close
        near(none[site], without[site], rtol=1e-4, atol=1e-7)
        near(double[site], twice[site], rtol=1e-4, atol=1e-7)
        near(tiny[site], wanted, rtol=1e-4, atol=1e-7)  # a sum of weights below 1 divides too
        # Its neighbours of the other rows keep their bits.
        for weighted in (none, double):
            assert torch.equal(weighted[site][[0, 2]], wanted[[0, 2]])
            assert not torch.allclose(weighted[site][1], wanted[1], rtol=1e-2)


def test_a_clip_without_speech_has_the_end_of_text_as_its_only_label(llm: SpeechLLM) -> None:
    family: Any = llm.family
    silent = replace(noise(0.5, "", "bg", 0), speech=False)
    batch = family.training_batch([noise(0.5, "da", "bg", 0), silent, noise(0.5, "", "bg", 0)])
    assert batch.label_positions.sum(1).tolist() == [4, 1, 0]  # ' da' and the end; the end; not known
    assert batch.labels[-1] == family.eos
    assert batch.weighted([2.0, 3.0, 4.0]).label_weights.tolist() == [2.0] * 4 + [3.0]
    said = noise(0.5, "da", "bg", 0)
    assert [(c.text, c.speech) for c in (joined([said, silent, said]), joined([silent, silent]))] == [
        ("da da", True),
        ("", False),
    ]


def run(folder: Path, base: Path, shards: Path, *more: str) -> dict[str, torch.Tensor]:
    folder.mkdir()
    config = load_config(make_config(folder, base, shards, trackers=[]), ["training.steps=3", *more])
    return {
        f"{path.name} {site}": vector
        for path in train(config).adapters
        for site, vector in SteeringVectors.load(path).vectors.items()
    }


def test_all_clips_of_one_weight_train_as_all_of_another(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    """A power of two leaves every bit as it is."""
    plain = run(tmp_path / "plain", tiny_base, tiny_shards)
    halves = remarked(tmp_path / "halves", tiny_shards, lambda key: {"loss_weight": 0.5})
    found = run(tmp_path / "half", tiny_base, halves)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], vector) for name, vector in plain.items())
    counted, wanted = (
        [step["adapters"]["bg"]["labels"] for step in events(tmp_path / name / "run", "step")]
        for name in ("half", "plain")
    )
    assert counted == [n / 2 for n in wanted]


def test_clips_of_a_window_have_one_weight(tmp_path: Path, tiny_base: Path) -> None:
    """Else a clip's weight would be its neighbour's too."""
    shards = make_shards(tmp_path / "shards", weighted=True)
    data = {"shards": str(shards), "clips_per_step": 8, "readers": 4, "join_clips": 3}
    config = load_config(make_config(tmp_path, tiny_base, shards, data=data))
    facts = {key: own for key, (_, _, own) in samples(ShardIndex.load(shards)).items()}
    with join(60) as ranks:
        batches = make_batches(config, ShardIndex.load(shards), load_speech_llm(tiny_base), ranks)
        parts = [part for step in range(6) for part in batches[step].batches]
    seen = set()
    for part in parts:
        counts = part.label_positions.sum(1).tolist()
        every = torch.ones(len(part.labels)) if part.label_weights is None else part.label_weights
        for keys, weights in zip(part.keys, every.split(counts), strict=True):
            own = {facts[key].get("loss_weight", 1.0) for key in keys.split(" + ")}
            assert {round(w, 4) for w in weights.tolist()} == own, keys
            seen |= {(len(keys.split(" + ")), w) for w in own}
    assert {(1, 0.3), (1, 2.5), (1, 1.0), (2, 1.0)} <= seen
    # Examples and measured activations are of speech.
    assert all(clip.text for clip in first_clips(shards, ShardIndex.load(shards), "bg", 4, 30))
