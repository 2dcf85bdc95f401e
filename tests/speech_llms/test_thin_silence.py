"""Keeping 1 in N positions of the trailing padding: what is exact in it, what must not change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_config
from tiny_families import make_qwen2_audio
from torch import Tensor

from salsa_dist import load_config, train
from salsa_dist.config import PlacementConfig
from salsa_dist.config.fingerprint import digest
from salsa_dist.data.clip import SAMPLE_RATE, Clip, silent_clip
from salsa_dist.errors import UserError
from salsa_dist.placement.decode import generate
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.run.settled import settled
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.speech_llms.thin_silence import ThinsPadding, kept_positions
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.sweeps.cost import base_facts
from salsa_dist.training.loss import token_losses

INSIDE = ("encoder.attention.0", "llm.cross_attention.1")
SITES = (*(f"{component}.{i}" for component in ("encoder", "llm") for i in range(3)), *INSIDE)


def clip(seconds: float, row: int = 0, text: str = "vuk lisa", seed: int = 0) -> Clip:
    noise = np.random.default_rng(seed).standard_normal(round(SAMPLE_RATE * seconds))
    audio = (0.1 * noise).astype(np.float32)
    return replace(silent_clip("bg"), key=f"{seconds}-{seed}", audio=audio, text=text, row=row)


class Base:
    """A tiny Whisper with two rows of vectors that steer, keeping one position of `stride`."""

    def __init__(self, folder: Path, ranks: Ranks, stride: int, again: bool = False) -> None:
        self.llm = load_speech_llm(folder, silence_stride=stride)
        specs = [AdapterSpec("a", SITES, "salsa"), AdapterSpec("b", SITES[2:], "add")]
        self.bank = Bank(specs, dict.fromkeys(SITES, 32))
        generator = torch.Generator().manual_seed(1)
        for vector in self.bank.vectors.values():
            vector.data.copy_(0.3 * torch.randn(vector.shape, generator=generator))
        placement = PlacementConfig(kind="replicate")
        self.frozen = FrozenBase(self.llm, self.bank, ranks, placement, again)

    def losses(self, clips: list[Clip], share: bool = False) -> tuple[Tensor, Tensor]:
        """Losses of the labels, and the gradient of their sum, one behind the other."""
        distinct = list({c.key: c for c in clips}.values())
        family = self.llm.family
        batch = family.shared_batch(clips, distinct) if share else family.training_batch(clips)
        for vector in self.bank.vectors.values():
            vector.grad = None
        losses = token_losses(self.frozen, batch)
        losses.sum().backward()
        gradients = [v.grad.flatten() for v in self.bank.vectors.values() if v.grad is not None]
        return losses.detach(), torch.cat(gradients)


@pytest.fixture
def ranks() -> Any:
    with join() as ranks:
        yield ranks


def test_every_position_is_stood_for_once() -> None:
    clips = [clip(s) for s in (0.3, 0.75, 1.9)]
    batch = kept_positions(clips, window=100, per_second=50, strides=[7, 7, 7])
    kept, stand_for = batch["kept_positions"], batch["stand_for"]
    assert stand_for.sum(1).tolist() == [100, 100, 100]
    assert stand_for.gt(0).sum(1).tolist() == [40 + 9, 62 + 6, 100]
    for row, seconds in zip(range(3), (0.3, 0.75, 1.9), strict=True):
        sounding = min(100, round((seconds + 0.5) * 50))
        own = kept[row][stand_for[row] > 0]
        assert own[:sounding].tolist() == list(range(sounding))
        assert stand_for[row][:sounding].eq(1).all()
        assert own.diff().gt(0).all()
        assert own.max() < 100


@pytest.mark.parametrize("stride", [2, 7])
def test_it_is_exact_where_silence_is_alike(tiny_base: Path, ranks: Ranks, stride: int) -> None:
    whole, thin = Base(tiny_base, ranks, 1), Base(tiny_base, ranks, stride)
    clips = [clip(0.3), clip(0.6, row=1, text="kon", seed=1)]
    batch = kept_positions(clips, window=100, per_second=50, strides=[stride, stride])
    kept = batch["kept_positions"], batch["stand_for"]
    # What each position's representative is, for all positions.
    of = torch.stack([h.repeat_interleave(n) for h, n in zip(*kept, strict=True)])
    whole.llm.model.get_encoder().layers[0].register_forward_pre_hook(
        lambda module, args: (args[0].gather(1, of[..., None].expand_as(args[0])), *args[1:])
    )
    expected, gradient = whole.losses(clips)
    found, own = thin.losses(clips)
    assert torch.allclose(found, expected, atol=1e-5)
    # What reaches one that stands for n is what would reach all of them.
    assert torch.allclose(own, gradient, atol=1e-5)


@pytest.mark.parametrize("with_ends", [False, True])
def test_what_is_kept_is_computed_as_in_the_whole_window(
    tiny_base: Path, ranks: Ranks, with_ends: bool
) -> None:
    """By convolutions over the kept positions and their neighbours alone."""
    base, clips = Base(tiny_base, ranks, 16), [clip(0.1), clip(1.1, row=1, seed=1), clip(1.9)]
    family, encoder = base.llm.family, base.llm.model.get_encoder()
    assert isinstance(family, ThinsPadding)
    convolved: list[int] = []
    inputs: list[Tensor] = []
    encoder.conv2.register_forward_pre_hook(lambda m, args: convolved.append(args[0].shape[-1] // 2))
    encoder.layers[0].register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    family.silence_ends_s = 0.08 if with_ends else 0.0
    kept = family.training_batch(clips).inputs["kept_positions"]
    base.losses(clips)
    family.silence_stride = 1
    base.losses(clips)
    thin, whole = inputs
    found = whole.gather(1, kept.unsqueeze(-1).expand_as(thin))
    assert torch.allclose(thin, found, atol=1e-5)
    # Without the longest clip, most of the window is not computed.
    family.silence_stride = 16
    base.losses(clips[:1])
    assert convolved[2] < 60 < convolved[1] == 100
    end = 4 if with_ends else 0
    assert kept[0].tolist()[: 30 + end + 1] == [*range(30 + end), 30 + end + 8]
    assert (99 in kept[0]) == (98 in kept[0]) == with_ends


def test_a_clip_is_processed_alike_in_any_batch(tiny_base: Path, ranks: Ranks) -> None:
    base = Base(tiny_base, ranks, 5)
    short, long = clip(0.3), clip(1.4, row=1, text="kotka ptica riba", seed=1)
    alone = [base.losses([c]) for c in (short, long)]
    losses, gradient = base.losses([short, long])
    assert torch.allclose(losses, torch.cat([losses for losses, _ in alone]), atol=1e-5)
    assert torch.allclose(gradient, alone[0][1] + alone[1][1], atol=1e-5)


def test_sharing_clips_and_checkpointing_change_nothing(tiny_base: Path, ranks: Ranks) -> None:
    clips = [clip(0.3), clip(0.3, row=1), clip(1.1, row=1, seed=1)]
    losses, gradient = Base(tiny_base, ranks, 5).losses(clips)
    for base, share in ((Base(tiny_base, ranks, 5), True), (Base(tiny_base, ranks, 5, True), False)):
        again = base.losses(clips, share)
        assert torch.allclose(again[0], losses, atol=1e-5)
        assert torch.allclose(again[1], gradient, atol=1e-5)


def test_transcripts_are_of_the_whole_window(tiny_base: Path, ranks: Ranks) -> None:
    whole, thin = Base(tiny_base, ranks, 1), Base(tiny_base, ranks, 5)
    clips = [clip(0.3), clip(1.1, row=1, seed=1)]
    thin.losses(clips)
    features = torch.zeros(2, 80, 200)
    assert thin.llm.model.get_encoder()(features).last_hidden_state.shape[1] == 100
    texts = [[t.text for t in generate(base.frozen, clips, 12)] for base in (whole, thin)]
    assert texts[0] == texts[1]
    assert not torch.allclose(whole.losses(clips)[0], thin.losses(clips)[0], atol=1e-4)


def test_training_by_it_is_another_run(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    path = make_config(tmp_path, tiny_base, tiny_shards)
    configs = [
        load_config(path, [f"run={tmp_path / str(stride)}", f"training.silence_stride={stride}"])
        for stride in (1, 4)
    ]
    every = [settled(config, "cpu") for config in [load_config(path), *configs]]
    own = [digest(config, "vectors") for config in every]
    assert own[0] == own[1] != own[2]
    whole, thin = (SteeringVectors.load(train(c).adapters[0]).vectors for c in configs)
    assert not torch.allclose(whole["encoder.0"], thin["encoder.0"])
    for setting, said in (
        ("training.silence_stride=4", "silence_stride keeps part of a window"),
        ("data.augment.time_masks=1", r"stores clips as they are: turn data\.augment off"),
        ("training.share_prefix=false", r"prefix_cache needs training\.share_prefix: true"),
    ):
        with pytest.raises(UserError, match=said):
            load_config(path, [setting, "training.prefix_cache=memory"])


def test_a_base_without_trailing_padding_refuses_it_unread(tmp_path: Path, tiny_shards: Path) -> None:
    folder = make_qwen2_audio(tmp_path / "base")
    for weights in Path(folder).glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UserError, match=r"silence_stride is 8, and base .* has no trailing padding"):
        load_speech_llm(folder, silence_stride=8)
    path = make_config(tmp_path, folder, tiny_shards, training={"steps": 2, "silence_stride": 8})
    with pytest.raises(UserError, match=r"silence_stride is 8, and base .* has no trailing padding"):
        base_facts(load_config(path))


def test_ends_of_a_padding_that_is_not_there_are_refused(tmp_path: Path, tiny_shards: Path) -> None:
    folder = make_qwen2_audio(tmp_path / "base")
    path = make_config(tmp_path, folder, tiny_shards, training={"steps": 2, "silence_ends_s": 0.5})
    with pytest.raises(UserError, match=r"silence_ends_s is 0\.5, and base .* has no trailing padding"):
        train(load_config(path))
    assert not (tmp_path / "run" / "state").exists()
