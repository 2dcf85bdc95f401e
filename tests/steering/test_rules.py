"""The rules: what they promise of norms, of zeros and of gradients."""

from __future__ import annotations

from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from tiny import make_config
from torch import Tensor
from torch.autograd import gradcheck

from salsa_dist import SteeringVectors, load_config, train
from salsa_dist.errors import UserError
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.rules.add import add
from salsa_dist.steering.rules.registry import RULES
from salsa_dist.steering.rules.rule import UpdateRule
from salsa_dist.steering.rules.salsa import salsa, salsa_compiled

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-4, 1.0, 1e4])
def test_a_zero_vector_changes_no_bit(rule: str, dtype: torch.dtype, scale: float) -> None:
    hidden = (scale * draw(3, 7, 33)).to(dtype)
    hidden[0, 2] = 0.0
    out = RULES[rule].apply(hidden, torch.zeros(3, 1, 33 * RULES[rule].parts))
    assert out.dtype == dtype
    assert torch.equal(out, hidden)


def test_salsa_keeps_the_norm_and_turns() -> None:
    hidden, vector = draw(3, 7, 33), 2 * draw(3, 1, 33, seed=1)
    out = salsa(hidden, vector)
    assert torch.allclose(out.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-5)
    wanted = torch.nn.functional.normalize(hidden + vector, dim=-1)
    assert torch.allclose(torch.nn.functional.normalize(out, dim=-1), wanted, atol=1e-6)
    assert torch.equal(add(hidden, vector), hidden + vector)


def test_the_ratio_is_made_in_fp32() -> None:
    hidden = (60_000 * torch.ones(1, 2, 64)).half()  # its squares, and its norm, are beyond fp16
    out = salsa(hidden, draw(64))
    assert out.isfinite().all()
    assert torch.allclose(out.float(), hidden.float(), rtol=1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-15])
def test_rows_without_a_direction_stay_and_send_no_gradient(size: float) -> None:
    hidden = draw(2, 5, 16)
    hidden[0, 3] = size
    hidden[1] = size
    vector = draw(2, 1, 16, seed=1).requires_grad_()
    leaf = hidden.clone().requires_grad_()
    out = salsa(leaf, vector)
    assert torch.equal(out[0, 3], hidden[0, 3])
    assert torch.equal(out[1], hidden[1])
    out.sum().backward()
    assert vector.grad is not None
    assert leaf.grad is not None
    assert vector.grad.isfinite().all()
    assert leaf.grad.isfinite().all()
    assert not vector.grad[1].any()
    assert vector.grad[0].any()


def test_a_vector_that_cancels_the_activation_makes_no_nan() -> None:
    hidden = draw(1, 4, 16)
    vector = (-hidden[:, :1]).clone().requires_grad_()
    out = salsa(hidden, vector)
    out.sum().backward()
    assert out.isfinite().all()
    assert vector.grad is not None
    assert vector.grad.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("start", ["zero", "some"])
def test_gradients_equal_finite_differences(rule: str, start: str) -> None:
    hidden = draw(2, 3, 6).double().requires_grad_()
    vector = draw(2, 1, 6 * RULES[rule].parts, seed=1) * (start == "some")
    vector = vector.double().requires_grad_()
    assert gradcheck(RULES[rule].apply, (hidden, vector))


def written_out(hidden: Tensor, vector: Tensor) -> Tensor:
    """`salsa` by torch's own operations, differentiated by torch."""
    fp32 = torch.promote_types(hidden.dtype, torch.float32)
    before = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=fp32)
    steered = torch.addcmul(hidden, vector, (before > 1e-10).to(fp32))
    after = torch.linalg.vector_norm(steered, dim=-1, keepdim=True)
    return (steered * (before.clamp_min(1e-10) / after.clamp_min(1e-10))).to(hidden.dtype)


def gradients(apply: Any, hidden: Tensor, vector: Tensor, weights: Tensor) -> list[Tensor]:
    leaves = [hidden.clone().requires_grad_(), vector.clone().requires_grad_()]
    (apply(*leaves) * weights.to(hidden.dtype)).sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("size", [0.0, 0.01, 1.0, 10.0])
def test_salsas_own_gradient_is_that_of_the_formula(size: float) -> None:
    hidden, vector, weights = draw(3, 50, 64), size * draw(3, 1, 64, seed=1), draw(3, 50, 64, seed=2)
    hidden[0, :2], hidden[1, 3] = 0.0, -vector[1, 0]  # no direction; one that the vector cancels
    assert torch.equal(salsa(hidden, vector), written_out(hidden, vector))
    found = gradients(salsa, hidden, vector, weights)
    for own, wanted in zip(found, gradients(written_out, hidden, vector, weights), strict=True):
        keep = wanted.abs() < 1e3  # where the vector cancels the activation the slope has no end
        assert torch.allclose(own[keep], wanted[keep], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_rule_is_the_rule(dtype: torch.dtype) -> None:
    hidden, vector, weights = draw(3, 50, 64, dtype=dtype), draw(3, 1, 64, seed=1), draw(3, 50, 64)
    hidden[0, :2], hidden[2, 1] = 0.0, 1e-15  # rows without a direction
    vector[1] = 0.0
    out = salsa_compiled(hidden, vector)
    assert out.dtype == dtype
    assert torch.equal(out[1], hidden[1])
    assert torch.equal(out[0, :2], hidden[0, :2])
    near = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(out, salsa(hidden, vector), **near)
    pairs = (gradients(apply, hidden, vector, weights) for apply in (salsa_compiled, salsa))
    for own, wanted in zip(*pairs, strict=True):
        assert (own.double() - wanted.double()).norm() < (0.01 if dtype == torch.bfloat16 else 1e-5) * (
            wanted.double().norm()
        )
    # The vector alone, as at the first steered layer, and another number of clips and positions.
    one = vector[:2].clone().requires_grad_()
    salsa_compiled(hidden[:2, :7], one).sum().backward()
    other = vector[:2].clone().requires_grad_()
    salsa(hidden[:2, :7], other).sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_salsas_gradient_in_half_precision_is_as_near_as_torchs(dtype: torch.dtype) -> None:
    hidden, vector, weights = draw(4, 200, 64, dtype=dtype), draw(4, 1, 64, seed=1), draw(4, 200, 64)
    true = gradients(written_out, hidden.double(), vector.double(), weights.to(dtype).double())
    for own, torchs, wanted in zip(
        gradients(salsa, hidden, vector, weights),
        gradients(written_out, hidden, vector, weights),
        true,
        strict=True,
    ):
        off, torchs_off = ((g.double() - wanted).norm() / wanted.norm() for g in (own, torchs))
        assert off < 2 * torchs_off + 1e-6


@pytest.mark.parametrize(("apply", "most"), [(add, 2.0), (salsa, 4.1), (written_out, 8.1)])
def test_what_a_rule_keeps_for_backward(apply: Any, most: float) -> None:
    """Bytes for each number of an activation in bf16, with the result, which the next layer keeps."""
    hidden, kept = draw(8, 100, 1024, dtype=torch.bfloat16).requires_grad_(), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    vector = draw(8, 1, 1024, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = apply(hidden, vector)
        (out * out.detach()).sum()  # what is above keeps its input
    kept.pop(vector.untyped_storage().data_ptr(), None)
    assert most - 0.11 < sum(kept.values()) / hidden.numel() <= most


def test_a_model_may_write_into_what_a_rule_gave_it() -> None:
    """As Granite-Speech does between the halves of its encoder."""
    hidden, vector = draw(4, 8).requires_grad_(), draw(1, 8, seed=1).requires_grad_()
    written = salsa(hidden, vector)
    written += 1.0
    plain = salsa(hidden, vector) + 1.0
    weights = draw(4, 8, seed=2)
    got = torch.autograd.grad((written * weights).sum(), (hidden, vector))
    wanted = torch.autograd.grad((plain * weights).sum(), (hidden, vector))
    assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> str:
    """A rule that the package does not have: `h' = h (1 + tanh v)`."""
    rule = UpdateRule(lambda h, v: (h * (1 + torch.tanh(v))).to(h.dtype), "h' = h (1 + tanh v)")
    monkeypatch.setitem(RULES, "stretch", rule)
    return "stretch"


def steered(rules: list[str], rows: Tensor) -> tuple[Tensor, Tensor]:
    """(6, 5, 16) steered activations and the (adapters, 16 or 32) gradient of a loss."""
    bank = Bank([AdapterSpec(f"{i}", ("llm.0",), rule) for i, rule in enumerate(rules)], {"llm.0": 16})
    for row in range(3):
        bank.set_row(row, {"llm.0": draw(3, 32, seed=1)[row, : len(bank.row(row)["llm.0"])]})
    out = bank.steer("llm.0", draw(6, 5, 16), rows)
    (out * draw(6, 5, 16, seed=2)).sum().backward()
    gradient = bank.vectors["llm.0"].grad
    assert gradient is not None
    return out, gradient


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_each_row_of_a_mixed_bank_is_of_its_own_rule(third: str, order: tuple[int, ...]) -> None:
    rules = [("salsa", "gain", third)[i] for i in order]
    rows = torch.tensor([0, 1, 2, -1, 2, 0])
    out, gradient = steered(rules, rows)
    for row, rule in enumerate(rules):
        alone, of_alone = steered([rule] * 3, rows)
        assert torch.equal(out[rows == row], alone[rows == row])
        own = of_alone.shape[1]
        assert torch.equal(gradient[row, :own], of_alone[row])
        assert not gradient[row, own:].any()  # numbers of another's rule
        other = steered([rules[row - 1]] * 3, rows)[0]
        assert not torch.allclose(out[rows == row], other[rows == row], rtol=0.01)
    assert torch.equal(out[3], draw(6, 5, 16)[3])


def test_a_registered_rule_is_trained_and_saved_by_name(
    third: str, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    path = make_config(tmp_path, tiny_base, tiny_shards)
    done = train(load_config(path, [f"adapters.0.rule={third}", "training.steps=2"]))
    assert [SteeringVectors.load(a).rule for a in done.adapters] == [third, "add"]
    assert "h' = h (1 + tanh v)" in (done.adapters[0] / "README.md").read_text(encoding="utf-8")


def test_an_unknown_rule_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match="unknown update rule 'sing': known are salsa, add"):
        Bank([AdapterSpec("a", ("llm.0",), "sing")], {"llm.0": 16})
