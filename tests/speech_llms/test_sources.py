"""Weights that are made of several stored tensors: any run of them is read from what is stored."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from salsa_dist.speech_llms.sources import Source
from salsa_dist.speech_llms.weight_files import StoredTensor, stored_tensors

# What transformers' conversions do, of five stored tensors of (4, 6).
MADE: dict[str, Callable[[list[Any]], Any]] = {
    "experts": lambda t: torch.cat([torch.stack(t[:2], dim=0), torch.stack(t[2:4], dim=0)], dim=1),
    "stacked last": lambda t: torch.stack(t, dim=-1),
    "rows of one": lambda t: torch.chunk(t[0], 3, dim=0)[1],
    "columns of one": lambda t: torch.split(t[0], [1, 3, 2], dim=1)[1].contiguous(),
    "equal columns": lambda t: torch.split(t[0], 4, dim=-1)[1],
    "transposed": lambda t: torch.transpose(t[0], dim0=0, dim1=1).contiguous(),
    "experts transposed": lambda t: torch.transpose(torch.stack(t, dim=0), 1, 2),
    "outermost exchanged": lambda t: torch.transpose(torch.stack(t, dim=0), 0, 2),
    "one expert again": lambda t: torch.chunk(torch.stack(t, dim=0), 5, dim=0)[3].squeeze(0),
    "squeezed in vain": lambda t: t[0].squeeze(0),
}


@pytest.fixture
def stored(tmp_path: Path) -> tuple[list[StoredTensor], list[torch.Tensor]]:
    tensors = [torch.arange(24.0).view(4, 6) + 100 * i for i in range(5)]
    save_file({str(i): t for i, t in enumerate(tensors)}, tmp_path / "weights.safetensors")
    found = stored_tensors([tmp_path / "weights.safetensors"])
    return [found[str(i)] for i in range(5)], tensors


@pytest.mark.parametrize("name", MADE)
def test_any_run_is_that_of_the_tensor(
    name: str, stored: tuple[list[StoredTensor], list[torch.Tensor]]
) -> None:
    files, tensors = stored
    made, wanted = MADE[name](files), MADE[name](tensors)
    assert isinstance(made, Source)
    assert (made.shape, made.dtype, made.numel) == (wanted.shape, wanted.dtype, wanted.numel())
    assert made.size(-1) == wanted.shape[-1]
    assert made.paths == {files[0].path}
    for begin, end in combinations(range(0, made.numel + 1, 5 if made.numel > 40 else 1), 2):
        assert torch.equal(made.read(begin, end), wanted.reshape(-1)[begin:end]), (begin, end)
    assert made.read(3, 3).shape == (0,)
    assert made.equals(MADE[name](files))
    assert not made.equals(files[4])


def test_only_what_a_run_needs_is_read(
    stored: tuple[list[StoredTensor], list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    read = StoredTensor.read

    def counted(self: StoredTensor, begin: int, end: int) -> torch.Tensor:
        counts.append(end - begin)
        return read(self, begin, end)

    monkeypatch.setattr(StoredTensor, "read", counted)
    files, _ = stored
    experts = MADE["experts"](files)
    for begin, end in ((0, 48), (48, 96), (7, 55)):
        counts.clear()
        experts.read(begin, end)
        assert sum(counts) == end - begin
    # Of what is transposed, an expert that is needed in part is read whole.
    counts.clear()
    MADE["experts transposed"](files).read(24, 50)
    assert counts == [24, 24]


def test_what_is_not_followed_is_said(stored: tuple[list[StoredTensor], list[torch.Tensor]]) -> None:
    files, _ = stored
    with pytest.raises(NotImplementedError, match=r"torch\.permute"):
        torch.permute(files[0], (1, 0))
    with pytest.raises(ValueError, match="differ in dtype or shape"):
        torch.cat([files[0], MADE["rows of one"](files)], dim=1)
