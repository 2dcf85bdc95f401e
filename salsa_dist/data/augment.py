"""Changes to training clips, off by default: speed, noise, and masks in time and frequency.

    rng(adapter's seed, key, epoch)
    clip ──speed──► longer or shorter, pitch too ──noise──► white, so many dB below ──masks──► clip

What becomes of a clip depends on the adapter's seed, the clip's key and the epoch alone: not on ranks,
workers, or what else is in the run. All works on the waveform, so it suits any base; masks are
those of SpecAugment (arXiv 1904.08779, without time warping) on a short-time Fourier transform, set by
torchaudio where it is, else by the same rule here, to the same end. Speed is soxr's.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from salsa_dist.data.audio import Audio, resample
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.libraries import torchaudio

_FFT, _HOP = 512, 128  # samples
_BANDS = _FFT // 2 + 1


@dataclass(frozen=True)
class Augment:
    """The augmentations of a clip; each amount is uniform in its range.

    Attributes:
        speed: factors, such as (0.9, 1.1); None: off.
        noise_db: signal-to-noise ratios in dB, such as (10, 30); None: off.
        time_masks: stretches made silent, each of at most a tenth of the clip.
        frequency_masks: bands taken out, each of at most an eighth of the spectrum.
    """

    speed: tuple[float, float] | None = None
    noise_db: tuple[float, float] | None = None
    time_masks: int = 0
    frequency_masks: int = 0

    def __call__(self, audio: Audio, seed: int, key: str, epoch: int, max_seconds: float) -> Audio:
        """`audio`, (samples,) float32 at 16,000 Hz, changed, and never longer than `max_seconds`."""
        rng = np.random.default_rng([seed, zlib.crc32(key.encode()), epoch, _AUGMENT])
        if self.speed is not None:
            # No slower than the audio window has room for.
            factor = max(rng.uniform(*self.speed), len(audio) / (max_seconds * SAMPLE_RATE))
            # Steps of a hundredth, upwards: `resample` is quick for rates with a common divisor.
            audio = resample(audio, int(np.ceil(factor * 100)) * SAMPLE_RATE // 100, SAMPLE_RATE)
        if self.noise_db is not None:
            ratio = 10 ** (-rng.uniform(*self.noise_db) / 20)
            loudness = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
            noise = rng.standard_normal(len(audio), dtype=np.float32)
            audio = audio + np.float32(ratio * loudness) * noise
        if self.time_masks or self.frequency_masks:
            audio = self._masked(audio, rng)
        return audio

    def _masked(self, audio: Audio, rng: np.random.Generator) -> Audio:
        window = torch.hann_window(_FFT)
        wave = torch.from_numpy(np.ascontiguousarray(audio))
        spectrum = torch.stft(wave, _FFT, _HOP, window=window, pad_mode="constant", return_complex=True)
        kept = torch.ones(spectrum.shape)
        for _ in range(self.time_masks):
            kept = mask(kept, kept.shape[1] // 10, 1, int(rng.integers(1 << 62)))
        for _ in range(self.frequency_masks):
            kept = mask(kept, _BANDS // 8, 0, int(rng.integers(1 << 62)))
        masked = torch.istft(spectrum * kept, _FFT, _HOP, window=window, length=len(audio))
        return masked.numpy().astype(np.float32, copy=False)


def mask(kept: torch.Tensor, widest: int, axis: int, seed: int) -> torch.Tensor:
    """`kept`, (bands, frames), with at most `widest` neighbours along `axis` set to 0, by `seed`."""
    if torchaudio.works():
        from torchaudio.functional import mask_along_axis

        # It uses torch's own generator, which the rest of the program must find as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return mask_along_axis(kept, widest + 1, 0.0, axis)
    generator = torch.Generator().manual_seed(seed)
    width = torch.rand(1, generator=generator) * (widest + 1)
    start = torch.rand(1, generator=generator) * (kept.shape[axis] - width)
    masked = kept.clone()
    masked.narrow(axis, int(start), int(width)).zero_()
    return masked


def from_settings(settings: Mapping[str, object]) -> Augment | None:
    """The augmentation that a config's `data.augment` asks for; None where it changes nothing."""
    augment = Augment(**settings)  # type: ignore[arg-type]
    return None if augment == Augment() else augment


_AUGMENT = 0x415547  # keeps these random numbers apart from those of the plan
