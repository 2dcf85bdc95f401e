"""The probe: it tells sites that work from those that don't, and what an output's shape means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salsa_dist.steering.probe import ProbeInputs, SiteReport, probe, usable


class Layers(nn.Module):
    """Six layers: two that work, and one for each way to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, use_cache: bool) -> Any:
        x = self.layers[0](x)
        with torch.no_grad():
            x = x + self.layers[1](x)  # cut off
        self.layers[2](x)  # its output is not used
        # layer 3 never runs
        x = x + 0.0 * self.layers[4](x)  # used, and worth nothing
        x = self.layers[5](x)
        return SimpleNamespace(logits=self.head(x))


class Shaped(nn.Module):
    """One layer whose output has the shape that `arrange` gives it."""

    def __init__(self, arrange: Any, mix: float = 0.0, after: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.arrange = arrange
        self.mix = mix
        self.after = after or (lambda x: x)
        self.layer.register_forward_hook(lambda m, a, output: arrange(output))

    def forward(self, x: Tensor, use_cache: bool) -> Any:
        x = x + self.mix * x.mean()
        out = self.layer(x)
        out = out[0] if isinstance(out, tuple) else out
        return SimpleNamespace(logits=self.after(out))


def clips(*lengths: int) -> dict[str, Tensor]:
    x = torch.zeros(len(lengths), max(lengths), 8)
    for i, n in enumerate(lengths):
        x[i, :n] = torch.randn(n, 8, generator=torch.Generator().manual_seed(i))
    return {"x": x}


def look(model: nn.Module, sites: dict[str, nn.Module], **more: Any) -> list[SiteReport]:
    model.eval().requires_grad_(False)
    return probe(sites, model, ProbeInputs(clips(3), clips(3, 5), **more))


def test_sites_that_do_not_work_are_dropped_with_the_reason() -> None:
    torch.manual_seed(0)
    model = Layers()
    reports = look(model, {f"encoder.{i}": layer for i, layer in enumerate(model.layers)})
    assert usable(reports) == ["encoder.5"]
    assert [(r.fires, r.gradient) for r in reports] == [
        *[(True, False)] * 3,
        (False, False),
        (True, False),
        (True, True),
    ]
    assert "does not run" in reports[3].reason
    assert all("no gradient" in reports[i].reason for i in (0, 1, 2, 4))
    assert reports[5].reason == ""


def test_a_gradient_that_is_not_a_number_does_not_count() -> None:
    model = Shaped(lambda x: x, after=lambda x: (x - x).sqrt())  # infinity - infinity
    (report,) = look(model, {"llm.0": model.layer})
    assert not report.gradient


@pytest.mark.parametrize(
    ("arrange", "rows", "dimension"),
    [
        (lambda x: x, "sample", 0),
        (lambda x: (x, None), "sample", 0),
        (lambda x: x.expand(4, *x.shape), "sample", 1),
        (lambda x: (x.flatten(0, 1),), "token", 0),
        (lambda x: x.flatten(0, 1), "token", 0),
    ],
)
def test_rows_are_told_from_shapes(arrange: Any, rows: str, dimension: int) -> None:
    model = Shaped(arrange)
    (report,) = look(model, {"encoder.0": model.layer})
    assert (report.rows, report.dimension, report.width) == (rows, dimension, 8)


@pytest.mark.parametrize("window", ["chunk", "window"])
def test_a_clip_of_two_windows_makes_two_rows(window: str) -> None:
    model = Shaped(lambda x: x)
    spanning = clips(3, 3, 3)
    (report,) = look(model, {"encoder.0": model.layer}, spanning=spanning, window=window)
    assert report.rows == window
    (report,) = look(model, {"llm.0": model.layer}, spanning=clips(3, 6), window=window)
    assert report.rows == "sample"


def test_padding_that_changes_a_sample_is_seen() -> None:
    clean, mixing = Shaped(lambda x: x), Shaped(lambda x: x, mix=0.5)
    assert look(clean, {"encoder.0": clean.layer})[0].padding_invariant
    report = look(mixing, {"encoder.0": mixing.layer})[0]
    assert report.padding_invariant is False
    assert report.padding_difference is not None
    assert report.padding_difference > 1e-3


def test_hooks_are_gone_afterwards() -> None:
    model = Layers()
    look(model, {"encoder.0": model.layers[0]})
    assert not model.layers[0]._forward_hooks
    assert all(p.grad is None for p in model.parameters())
