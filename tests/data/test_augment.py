"""Augmentation: what it does, and that it depends on adapter, clip and epoch alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from salsa_dist.data.augment import Augment, from_settings, mask
from salsa_dist.libraries import torchaudio

RATE = 16_000


def tone(hz: float = 1000, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def loudest_hz(audio: np.ndarray) -> float:
    return float(np.fft.rfft(audio).__abs__().argmax() * RATE / len(audio))


def test_speed_changes_length_and_pitch_and_keeps_to_the_window() -> None:
    faster = Augment(speed=(1.2, 1.2))(tone(), 0, "k", 0, 30)
    assert len(faster) == pytest.approx(RATE / 1.2, abs=2)
    assert loudest_hz(faster) == pytest.approx(1200, abs=3)
    slower = Augment(speed=(0.8, 0.8))
    assert len(slower(tone(), 0, "k", 0, 30)) == pytest.approx(RATE / 0.8, abs=2)
    assert len(slower(tone(), 0, "k", 0, 1.1)) <= 1.1 * RATE
    assert len(slower(tone(), 0, "k", 0, 1.0)) == RATE


def test_noise_is_as_loud_as_asked() -> None:
    noisy = Augment(noise_db=(20, 20))(tone(), 0, "k", 0, 30)
    noise = noisy - tone()
    ratio = 10 * np.log10(np.mean(tone() ** 2) / np.mean(noise**2))
    assert ratio == pytest.approx(20, abs=0.3)


def test_masks_take_out_a_stretch_or_a_band() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE * 2).astype(np.float32)
    silent = [np.mean(np.abs(Augment(time_masks=2)(noise, 0, str(i), 0, 30)) < 1e-4) for i in range(20)]
    assert 0.02 < np.mean(silent) < 0.2
    bands = []
    for i in range(20):
        changed = Augment(frequency_masks=2)(noise, 0, str(i), 0, 30)
        power = np.abs(np.fft.rfft(changed)).reshape(-1)[: RATE // 10 * 10].reshape(50, -1).mean(1)
        bands.append(np.mean(power < 0.1 * np.median(power)))
    assert 0.02 < np.mean(bands) < 0.3


@pytest.mark.skipif(not torchaudio.works(), reason="torchaudio can't be imported here")
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("widest", [0, 1, 7, 40])
def test_masks_of_torchaudio_and_ours_are_the_same(
    axis: int, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = torch.ones(41, 50)
    state = torch.get_rng_state()
    by_torchaudio = [mask(ones, widest, axis, seed) for seed in range(50)]
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(torchaudio, "works", lambda: False)
    by_us = [mask(ones, widest, axis, seed) for seed in range(50)]
    assert all(map(torch.equal, by_torchaudio, by_us))
    masked = {int((one == 0).sum()) // (50, 41)[axis] for one in by_us}
    assert min(masked) == 0
    assert max(masked) <= widest
    assert len(masked) > min(widest, 5)
    assert torch.equal(ones, torch.ones(41, 50))


def test_it_depends_on_adapter_clip_and_epoch() -> None:
    augment = Augment((0.9, 1.1), (10, 30), 1, 1)
    same = augment(tone(), 3, "k", 1, 30)
    assert np.array_equal(same, augment(tone(), 3, "k", 1, 30))
    for seed, key, epoch in ((4, "k", 1), (3, "l", 1), (3, "k", 2)):
        assert not np.array_equal(same, augment(tone(), seed, key, epoch, 30))


def test_it_is_off_unless_asked_for() -> None:
    assert from_settings({"speed": None, "noise_db": None, "time_masks": 0}) is None
    assert from_settings({"noise_db": (10, 20)}) == replace(Augment(), noise_db=(10, 20))
