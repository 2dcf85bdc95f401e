"""What the conformance tests share, in this process and in the ranks that torchrun starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import SAMPLE_RATE, Clip, Word
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.blocks import layer_of
from salsa_dist.steering.sites import find_layers
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.loss import token_losses

RULES = ["salsa", "add", "gain"]
ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


# Where every clip is padded to the window, the suite's longest clip and no more.
_WINDOWS = dict.fromkeys(
    ("granite_speech", "granite_speech_plus", "hubert", "nemotron_transcribe"), 5.5
)


def loaded(family: str, folder: Path | str, dtype: str | None = None) -> SpeechLLM:
    """The tiny base of a family."""
    return load_speech_llm(folder, dtype=dtype, window_s=_WINDOWS.get(family))


def noise(seconds: float, text: str, language: str, row: int) -> Clip:
    """A clip of noise with a transcript."""
    rng = np.random.default_rng(round(1000 * seconds))
    audio = 0.1 * rng.standard_normal(round(SAMPLE_RATE * seconds))
    key = f"{language}/{row}/{seconds}"
    return Clip(key, audio.astype(np.float32), text, language, row, words=evenly(text, seconds))


def evenly(text: str, seconds: float) -> tuple[Word, ...]:
    """The words of `text`, each with as much of `seconds` as any other."""
    words = text.split()
    each = seconds / max(1, len(words))
    return tuple((word, i * each, (i + 1) * each) for i, word in enumerate(words))


def clips(base: SpeechLLM) -> list[Clip]:
    """Three adapters' clips, of different lengths, languages and label counts.

    One takes several chunks or attention windows where the base's window lets it.
    """
    return [
        noise(0.52, "лека нощ", "bg", 0),
        noise(4.37 if base.window_s > 5 else 1.97, "one two three", "el", 1),
        noise(1.13, "kon ptica", "bg", 2),
        noise(0.71, "vuk", "en", 1),
    ]


def random_bank(
    base: SpeechLLM,
    rules: Sequence[str],
    size: float = 0.3,
    where: torch.device | str = "cpu",
) -> Bank:
    """One adapter a rule at every layer and in the blocks of the first, its numbers random."""
    widths = {
        site: width
        for site, width in site_widths(find_layers(base.model)).items()
        if site == layer_of(site) or site.endswith(".0")
    }
    bank = Bank([AdapterSpec(f"a{i}", tuple(widths), r) for i, r in enumerate(rules)], widths, where)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for vectors in bank.vectors.values():
            vectors.copy_(size * torch.randn(vectors.shape, generator=generator))
    return bank


@contextmanager
def placed(base: SpeechLLM, bank: Bank, activation_checkpointing: bool = False) -> Iterator[FrozenBase]:
    """`base` with `bank` on it, whole in this process."""
    frozen = FrozenBase(base, bank, ALONE, PlacementConfig(kind="replicate"), activation_checkpointing)
    try:
        yield frozen
    finally:
        frozen.close()


def gradients(frozen: FrozenBase, batch: Sequence[Clip]) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses, (labels,), of `batch` and the gradient of their sum, (adapters, hidden) a site."""
    for vectors in frozen.bank.vectors.values():
        vectors.grad = None
    losses = token_losses(frozen, frozen.family.training_batch(batch))
    losses.sum().backward()
    frozen.after_backward()
    zero = torch.zeros
    return losses.detach(), {
        site: zero(v.shape, device=v.device) if v.grad is None else v.grad.clone()
        for site, v in frozen.bank.vectors.items()
    }


def kept_bytes(frozen: FrozenBase, batch: Sequence[Clip]) -> int:
    """Bytes of all that autograd keeps of one pass; a view of a gathered weight counts too.

    A sharded weight itself is empty again after its layer. A view of it would hold what was gathered.
    """
    parameters = list(frozen.model.parameters())
    seen: dict[int, torch.UntypedStorage] = {}  # held, so that no later one has its address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        of = next((p for p in parameters if p.untyped_storage()._cdata == storage._cdata), None)
        if of is None or (frozen.zero and (tensor.shape, tensor.stride()) != (of.shape, of.stride())):
            seen[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = token_losses(frozen, frozen.family.training_batch(batch))
    losses.sum().backward()  # whoever gathered for one pass gathers for the other
    frozen.after_backward()
    return sum(storage.nbytes() for storage in seen.values())


def apart(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 distance."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
