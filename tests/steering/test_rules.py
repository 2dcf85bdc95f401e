"""The two rules: what they promise of norms, of zeros and of gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from salsa_dist.steering.rules import RULES, add, salsa

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-4, 1.0, 1e4])
def test_a_zero_vector_changes_no_bit(rule: str, dtype: torch.dtype, scale: float) -> None:
    hidden = (scale * draw(3, 7, 33)).to(dtype)
    hidden[0, 2] = 0.0
    out = RULES[rule](hidden, torch.zeros(3, 1, 33))
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
    vector = (draw(2, 1, 6, seed=1) * (start == "some")).double().requires_grad_()
    assert gradcheck(RULES[rule], (hidden, vector))
