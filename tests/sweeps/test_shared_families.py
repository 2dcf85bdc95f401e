"""In each family clips that adapters share, and prefixes that are kept, change no gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conformance import ALONE, apart, noise
from every_family import EVERY_FAMILY
from tiny_ctc import CTC
from tiny_families import FAMILIES

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import Clip
from salsa_dist.errors import UserError
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.kept_prefix import KeptPrefix, Known, without_audio
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers, whole_layers
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.loss import token_losses

# Where the adapters of a job steer: the prefix ends at the lowest encoder layer among them.
JOBS = {
    "early and late": [("encoder.0",), ("encoder.1", "llm.0"), ("llm.1",)],
    "late": [("encoder.1",), ("encoder.1", "llm.0"), ("llm.1",)],
    "inside the first": [("encoder.attention.0",), ("encoder.1", "llm.0"), ("llm.1",)],
    "inside the second": [("encoder.feed_forward.1",), ("encoder.1", "llm.attention.0"), ("llm.1",)],
    "llm alone": [("llm.0",), ("llm.1",), ("llm.0", "llm.1")],
}
Result = tuple[torch.Tensor, dict[str, torch.Tensor]]


@pytest.fixture(scope="module", params=[*FAMILIES, "wav2vec2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SpeechLLM:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("families") / request.param
    return load_speech_llm((FAMILIES | CTC)[request.param](folder))


def frozen_base(base: SpeechLLM, job: str) -> FrozenBase:
    widths = site_widths(find_layers(base.model))
    # Where there is no LLM, the last layer stands for it.
    own = [
        tuple(dict.fromkeys(s if s in widths else "encoder.1" for s in sites)) for sites in JOBS[job]
    ]
    specs = [AdapterSpec(str(i), s, ("salsa", "add")[i % 2]) for i, s in enumerate(own)]
    bank = Bank(specs, widths)
    generator = torch.Generator().manual_seed(1)
    for row, spec in enumerate(specs):
        bank.set_row(
            row,
            {s: 0.3 * torch.randn(bank.vectors[s].shape[1], generator=generator) for s in spec.sites},
        )
    return FrozenBase(base, bank, ALONE, PlacementConfig(kind="replicate"))


def samples(base: SpeechLLM) -> tuple[list[Clip], list[Clip]]:
    """Three clips of unequal lengths, one of two windows where the base has them; who takes which."""
    long = 4.37 if base.window_s > 5 else 1.97
    distinct = [
        replace(noise(seconds, text, "bg", 0), key=text)
        for seconds, text in ((0.52, "лека нощ"), (long, "kon ptica leti"), (1.13, "vuk"))
    ]
    taken = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (2, 0), (1, 2), (0, 2)]
    return distinct, [replace(distinct[clip], row=row) for clip, row in taken]


def losses_and_gradients(frozen: FrozenBase, batch: object) -> Result:
    for vectors in frozen.bank.vectors.values():
        vectors.grad = None
    losses = token_losses(frozen, batch)  # type: ignore[arg-type]
    losses.sum().backward()
    found = {
        f"{site} {row}": vectors.grad[row].clone()
        for site, vectors in frozen.bank.vectors.items()
        for row, spec in enumerate(frozen.bank.specs)
        if site in spec.sites and vectors.grad is not None
    }
    return losses.detach(), found


@pytest.mark.parametrize("job", list(JOBS))
def test_shared_clips_give_the_gradients_of_clips_apart(base: SpeechLLM, job: str) -> None:
    frozen = frozen_base(base, job)
    distinct, taken = samples(base)
    losses, wanted = losses_and_gradients(frozen, base.family.training_batch(taken))
    shared_losses, found = losses_and_gradients(frozen, base.family.shared_batch(taken, distinct))
    assert apart(shared_losses, losses) < 1e-6
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.norm() > 1e-3, name
        assert apart(found[name], gradient) < 1e-5, name
    frozen.close()


@pytest.mark.parametrize("family", [name for name in EVERY_FAMILY if name not in FAMILIES])
def test_so_do_those_of_the_other_families(family: str, tmp_path: Path) -> None:
    base = load_speech_llm(EVERY_FAMILY[family](tmp_path / "base"))
    if "encoder" not in base.layer_lists or base.family.LEARNS_WORD_TIMES:
        pytest.skip("clips have nothing to share, or no word times here")
    test_shared_clips_give_the_gradients_of_clips_apart(base, "early and late")
    if family == "nemotron_transcribe":
        with pytest.raises(UserError, match="encodes a window in chunks"):
            frozen_base(base, "late").prefix_of(samples(base)[0])


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("job", list(JOBS))
def test_a_kept_prefix_is_the_computed_one_to_the_bit(
    base: SpeechLLM, job: str, where: str, tmp_path: Path
) -> None:
    frozen = frozen_base(base, job)
    distinct, taken = samples(base)
    losses, wanted = losses_and_gradients(frozen, base.family.shared_batch(taken, distinct))
    kept = KeptPrefix(tmp_path if where == "disk" else None)
    # In another order, by another call: a clip's prefix is its own.
    for clip, hidden in zip(distinct[::-1], frozen.prefix_of(distinct[::-1]), strict=True):
        kept.put(clip.key, Known(clip.text, len(clip.audio)), hidden)
    frozen.start_from(kept)
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *a, site=site: calls.append(site))
        for site, layer in whole_layers(base.layer_lists).items()
        for module in list(layer.modules())[1:2]
    ]
    silent = {c.key: without_audio(c.key, kept.known[c.key], c.language, -1) for c in distinct}
    batch = base.family.shared_batch(
        [replace(silent[c.key], row=c.row) for c in taken], list(silent.values()), kept=True
    )
    kept_losses, found = losses_and_gradients(frozen, batch)
    assert torch.equal(kept_losses, losses)
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())
    # Nothing below the first steered layer runs, nor that layer itself, if no vector is inside it.
    sites = [site for site in whole_layers(base.layer_lists) if site.startswith("encoder.")]
    above = sites[sites.index(frozen.shared.first) + (not frozen.shared.before_first) :]
    assert [site for site in calls if site.startswith("encoder.")] == above
    for hook in hooks:
        hook.remove()
    frozen.close()
    assert not any("forward" in vars(module) for module in base.model.modules())
