"""A new method is a class and a line, a new update rule a function and a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from run_results import events
from tiny import make_config
from torch import Tensor, nn

from salsa_dist import SteeringVectors, evaluate, load_config, train
from salsa_dist.config import Method
from salsa_dist.config.decides import Vectors
from salsa_dist.config.sections.method import _Method
from salsa_dist.evaluation import transcripts
from salsa_dist.methods.registry import METHODS, steers
from salsa_dist.methods.tuned import Tuned
from salsa_dist.steering.rules.registry import RULES
from salsa_dist.steering.rules.rule import UpdateRule


class GainsSection(_Method):
    """The method's section of a config."""

    kind: Vectors[Literal["gains"]] = "gains"


class Gains(Tuned):
    """Trains the gains of the layers' norms."""

    section = GainsSection
    title = "gains"

    @contextmanager
    def installed(
        self, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
    ) -> Iterator[dict[str, nn.Parameter]]:
        found = {
            f"{site}.{name}": p
            for site, layer in layers.items()
            for name, p in layer.named_parameters()
            if name.endswith("layer_norm.weight")
        }
        before = {name: p.detach().clone() for name, p in found.items()}
        for p in found.values():
            p.requires_grad_(True)
        yield found
        for name, p in found.items():
            p.requires_grad_(False).copy_(before[name])


@pytest.fixture
def path(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> Path:
    return make_config(tmp_path, tiny_base, tiny_shards)


def lines(run: Path) -> list[dict[str, Any]]:
    return list(transcripts.read(run))


def test_every_section_of_the_config_has_its_method() -> None:
    sections = {section: section.model_fields["kind"].annotation for section in get_args(Method)}
    kinds = {section: get_args(literal)[0] for section, literal in sections.items()}
    assert {method.section: kind for kind, method in METHODS.items()} == kinds
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_what_steers_is_asked_of_the_method() -> None:
    assert [kind for kind in METHODS if steers(kind)] == ["salsa", "mean-difference"]
    assert [kind for kind in METHODS if steers(kind, trained=True)] == ["salsa"]


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # the schema does not list its section
def test_a_new_method_trains_and_is_evaluated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "gains", Gains)
    config = load_config(path).model_copy(update={"method": GainsSection()})
    assert train(config).finished
    steps = events(config.run, "step")
    assert all(a["grad_norm"] > 0 for step in steps for a in step["adapters"].values())
    evaluate(config)
    assert {line["method"] for line in lines(config.run)} == {"zero-shot", "gains"}
    assert {line["adapter"] for line in lines(config.run)} == {None, "bg", "el"}


def test_a_new_rule_trains_beside_another_and_is_evaluated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(hidden: Tensor, vector: Tensor) -> Tensor:
        return (hidden + 0.5 * vector).to(hidden.dtype)

    alone = train(load_config(path, ["steering.rule=add", f"run={path.parent / 'add'}"]))
    monkeypatch.setitem(RULES, "half", UpdateRule(half, "h' = h + v / 2"))
    config = load_config(path)
    first, second = config.adapters
    mixed = [first.model_copy(update={"rule": "half"}), second.model_copy(update={"rule": "add"})]
    config = config.model_copy(update={"adapters": mixed})
    half_, add = (SteeringVectors.load(folder) for folder in train(config).adapters)
    assert (half_.rule, add.rule) == ("half", "add")
    of_alone = [SteeringVectors.load(folder) for folder in alone.adapters]
    close = [torch.allclose(add.vectors[s], of_alone[1].vectors[s], atol=1e-5) for s in add.vectors]
    assert all(close)  # a neighbour's rule changes nothing
    assert any(not torch.equal(half_.vectors[s], of_alone[0].vectors[s]) for s in half_.vectors)
    evaluate(config)
    assert {line["adapter"] for line in lines(config.run)} == {None, "bg", "el"}
