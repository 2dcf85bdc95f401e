"""Every model is steered the same way: found, proved, harmless at zero; each a line of tiny_models.

docs/models.md keeps what these tests see; `SALSA_WRITE_DOCS=1 pytest tests/models` writes it again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from models_page import PAGE, page
from tiny_models import EVERY_MODEL, MODELS
from torch import Tensor, nn

from salsa_dist.speech_llms.inspection import takes_audio
from salsa_dist.speech_llms.noise_inputs import noise_inputs
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.blocks import layer_of
from salsa_dist.steering.probe import ProbeInputs, SiteReport, probe
from salsa_dist.steering.sites import find_layers, site_modules
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.steering.widths import site_widths

torch.set_num_threads(1)
every_model = pytest.mark.parametrize("name", MODELS)


@dataclass
class Case:
    """One tiny model, built once for all tests."""

    model: nn.Module
    inputs: ProbeInputs
    reports: list[SiteReport]
    logits: Tensor

    def steered(self, rule: str, scale: float) -> Tensor:
        """Logits with a vector of norm `scale` at every site."""
        vectors = {}
        for i, report in enumerate(self.reports):
            assert report.width is not None
            noise = torch.randn(report.width, generator=torch.Generator().manual_seed(i))
            vectors[report.site] = scale * noise / noise.norm()
        with SteeringVectors(vectors, rule).attach(self.model), torch.no_grad():
            return logits(self.model, self.inputs)


def logits(model: nn.Module, inputs: ProbeInputs) -> Tensor:
    return model(**inputs.together, use_cache=False).logits


@cache
def case(name: str) -> Case:
    model = MODELS[name].build()
    inputs = noise_inputs(model)
    reports = probe(site_modules(model), model, inputs)
    with torch.no_grad():
        return Case(model, inputs, reports, logits(model, inputs))


def path_of(model: nn.Module, module: nn.Module | None) -> str | None:
    return next((path for path, m in model.named_modules() if m is module), None)


@every_model
def test_the_layers_of_encoder_and_llm_are_found(name: str) -> None:
    model, expected = case(name).model, MODELS[name]
    found = find_layers(model)
    paths = {component: path_of(model, layers) for component, layers in found.items()}
    assert paths == {k: v for k, v in (("encoder", expected.encoder), ("llm", expected.llm)) if v}
    assert takes_audio(type(model))


@every_model
def test_every_site_fires_and_gets_a_gradient(name: str) -> None:
    reports = case(name).reports
    assert {r.site for r in reports} == set(site_modules(case(name).model))
    assert [(r.site, r.reason) for r in reports if not (r.fires and r.gradient)] == []


@every_model
def test_rows_of_an_output_are_known(name: str) -> None:
    rows = {r.component: r.rows for r in case(name).reports}
    assert rows.get("llm") == ("sample" if MODELS[name].llm else None)
    if MODELS[name].encoder:
        assert rows["encoder"] == MODELS[name].rows
    # Gemma3n's decoder keeps four streams of each sample on the first dimension; its blocks have one.
    layers = [r for r in case(name).reports if r.site == layer_of(r.site)]
    dimension = {r.dimension for r in layers if r.component == "llm"}
    assert dimension == ({1 if name == "Gemma3n" else 0} if MODELS[name].llm else set())


@every_model
def test_padding_is_seen(name: str) -> None:
    unlike = {r.component for r in case(name).reports if not r.padding_invariant}
    assert unlike == set(MODELS[name].minds_padding)


@every_model
@pytest.mark.parametrize("rule", ["salsa", "add"])
def test_zero_vectors_change_no_logit_by_one_bit(name: str, rule: str) -> None:
    assert torch.equal(case(name).steered(rule, 0.0), case(name).logits)


@every_model
@pytest.mark.parametrize("rule", ["salsa", "add"])
def test_vectors_change_the_logits_and_can_be_taken_off(name: str, rule: str) -> None:
    steered = case(name).steered(rule, 1.0)
    assert steered.isfinite().all()
    assert not torch.allclose(steered, case(name).logits, rtol=1e-3)
    with torch.no_grad():
        assert torch.equal(logits(case(name).model, case(name).inputs), case(name).logits)


@every_model
@pytest.mark.parametrize("rule", ["salsa", "add"])
def test_a_vectors_gradient_is_the_slope_of_the_loss(name: str, rule: str) -> None:
    """A step along the gradient changes the loss as much as its length says."""
    c = case(name)
    reports = [r for i, r in enumerate(c.reports) if i % 3 == 1]  # one site a component, to be quick
    spec = AdapterSpec("a", tuple(r.site for r in reports), rule)
    bank = Bank([spec], {r.site: r.width or 0 for r in reports})
    with torch.no_grad():
        for i, site in enumerate(bank.sites):
            random = torch.Generator().manual_seed(i)
            bank.vectors[site].copy_(0.3 * torch.randn(bank.vectors[site].shape, generator=random))
    weights = torch.randn(c.logits.shape, generator=torch.Generator().manual_seed(7)).double()

    def loss() -> Tensor:
        with bank.rows(0):
            return (logits(c.model, c.inputs).double() * weights).mean()

    with bank.attached({s: m for s, m in site_modules(c.model).items() if s in bank.sites}):
        loss().backward()
        for vector in bank.vectors.values():
            slope = vector.grad
            assert slope is not None
            direction, step = slope / slope.norm(), 2e-3
            with torch.no_grad():
                vector += step * direction
                above = loss()
                vector -= 2 * step * direction
                below = loss()
                vector += step * direction
            assert float((above - below) / (2 * step)) == pytest.approx(float(slope.norm()), rel=0.03)


@every_model
def test_the_keys_of_the_base_never_change(name: str) -> None:
    model = case(name).model
    keys = list(model.state_dict())
    site = next(iter(site_modules(model)))
    bank = Bank([AdapterSpec("a", (site,), "salsa")], {site: 32})
    with bank.attached(site_modules(model)):
        assert list(model.state_dict()) == keys
    assert keys == list(MODELS[name].build().state_dict())


@every_model
def test_widths_are_known_without_weights(name: str) -> None:
    with torch.device("meta"):
        widths = site_widths(find_layers(MODELS[name].build(fill=False)))
    assert widths == {r.site: r.width for r in case(name).reports}


@pytest.mark.skipif(len(MODELS) < len(EVERY_MODEL), reason="this transformers lacks some of the models")
def test_the_page_of_models_is_up_to_date() -> None:
    layers = {name: [r for r in case(name).reports if r.site == layer_of(r.site)] for name in MODELS}
    written = page(layers)
    if os.environ.get("SALSA_WRITE_DOCS"):
        PAGE.write_text(written, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == written, (
        f"{Path(PAGE).name} is out of date: SALSA_WRITE_DOCS=1 pytest tests/models writes it again"
    )
