"""Where a weight's numbers come from, when it is made of stored tensors.

    experts.0.gate_proj ─┐
    experts.1.gate_proj ─┴─ stack ─┐
                                   ├─ cat ─  experts.gate_up_proj     |····rank 0····|····rank 1····|
    experts.0.up_proj   ─┐         │
    experts.1.up_proj   ─┴─ stack ─┘

transformers makes some weights by stacking, joining, cutting or transposing what is stored. A `Source`
stands for a stored tensor in these functions of torch and records them. For a range of the weight's
elements, it then reads only the ranges of the stored tensors that they come from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_COMPARED = 1 << 22  # elements compared at once


@dataclass(frozen=True)
class Source(ABC):
    """Numbers of a known dtype and shape, in row-major order, of which any run can be read.

    Attributes:
        dtype: as stored.
        shape: of the whole.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @abstractmethod
    def read(self, begin: int, end: int) -> Tensor:
        """Elements `begin` to `end`, (end - begin,), of `dtype`.

        Raises:
            UserError: a file ends before them, or can't be read.
        """

    @property
    @abstractmethod
    def paths(self) -> frozenset[Path]:
        """The files that it is read from."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * self.numel

    def equals(self, other: Source) -> bool:
        """Whether both hold the same numbers."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        ends = ((i, min(i + _COMPARED, self.numel)) for i in range(0, self.numel, _COMPARED))
        return all(torch.equal(self.read(*run), other.read(*run)) for run in ends)

    # What follows is called by transformers' conversions.

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func not in _FOLLOWED:
            raise NotImplementedError(f"torch.{func.__name__}")
        return _FOLLOWED[func](*args, **(kwargs or {}))

    def size(self, dim: int) -> int:
        return self.shape[dim]

    def contiguous(self) -> Source:
        return self

    def squeeze(self, dim: int) -> Source:
        dim %= len(self.shape)
        if self.shape[dim] != 1:
            return self
        return Reshaped(self.dtype, self.shape[:dim] + self.shape[dim + 1 :], self)


class _Made(Source):
    """Numbers of other sources in another order."""

    @abstractmethod
    def pieces(self, begin: int, end: int) -> Iterator[Tensor]:
        """The same elements as `read`, as they are read."""

    def read(self, begin: int, end: int) -> Tensor:
        whole = torch.empty(end - begin, dtype=self.dtype)
        place = 0
        for piece in self.pieces(begin, end):
            whole[place : place + piece.numel()] = piece
            place += piece.numel()
        return whole


@dataclass(frozen=True)
class Reshaped(Source):
    """The same numbers in the same order, in another shape."""

    source: Source

    @property
    def paths(self) -> frozenset[Path]:
        return self.source.paths

    def read(self, begin: int, end: int) -> Tensor:
        return self.source.read(begin, end)


@dataclass(frozen=True)
class Joined(_Made):
    """Parts one after another along a dimension; in all others, and in dtype, they are equal."""

    parts: tuple[Source, ...]
    dim: int

    @property
    def paths(self) -> frozenset[Path]:
        return frozenset().union(*(part.paths for part in self.parts))

    @cached_property
    def _ends(self) -> list[int]:
        """Where each part ends in one row of all."""
        return list(accumulate(math.prod(part.shape[self.dim :]) for part in self.parts))

    def pieces(self, begin: int, end: int) -> Iterator[Tensor]:
        for row, first, last in _rows(begin, end, self._ends[-1]):
            i = bisect_right(self._ends, first)
            while first < last:
                start = self._ends[i - 1] if i else 0
                block, stop = self._ends[i] - start, min(last, self._ends[i])
                yield self.parts[i].read(row * block + first - start, row * block + stop - start)
                first, i = stop, i + 1


@dataclass(frozen=True)
class Cut(_Made):
    """What lies from `start` on along a dimension."""

    source: Source
    dim: int
    start: int

    @property
    def paths(self) -> frozenset[Path]:
        return self.source.paths

    def pieces(self, begin: int, end: int) -> Iterator[Tensor]:
        inner = math.prod(self.shape[self.dim + 1 :])
        for row, first, last in _rows(begin, end, self.shape[self.dim] * inner):
            place = (row * self.source.shape[self.dim] + self.start) * inner
            yield self.source.read(place + first, place + last)


@dataclass(frozen=True)
class Transposed(_Made):
    """Two dimensions exchanged, `low` before `high`.

    Along the dimensions before `low`, such as experts, what a run covers in part is read whole.
    """

    source: Source
    low: int
    high: int

    @property
    def paths(self) -> frozenset[Path]:
        return self.source.paths

    def pieces(self, begin: int, end: int) -> Iterator[Tensor]:
        block = self.source.shape[self.low :]
        size = math.prod(block)
        for row, first, last in _rows(begin, end, size):
            read = self.source.read(row * size, (row + 1) * size).view(block)
            yield read.transpose(0, self.high - self.low).reshape(-1)[first:last]


def _rows(begin: int, end: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Each row of `size` elements that a run touches, with the run's first and last element in it."""
    while begin < end:
        row, first = divmod(begin, size)
        last = min(size, first + end - begin)
        yield row, first, last
        begin += last - first


def _with(shape: tuple[int, ...], dim: int, length: int) -> tuple[int, ...]:
    """`shape` with another length along a dimension."""
    return (*shape[:dim], length, *shape[dim + 1 :])


def _cat(tensors: Sequence[Source], dim: int = 0) -> Source:
    first = tensors[0]
    dim %= len(first.shape)
    if len({(part.dtype, _with(part.shape, dim, 0)) for part in tensors}) > 1:
        raise ValueError("torch.cat of tensors that differ in dtype or shape")
    length = sum(part.shape[dim] for part in tensors)
    return Joined(first.dtype, _with(first.shape, dim, length), tuple(tensors), dim)


def _stack(tensors: Sequence[Source], dim: int = 0) -> Source:
    dim %= len(tensors[0].shape) + 1
    single = [(*part.shape[:dim], 1, *part.shape[dim:]) for part in tensors]
    parts = [Reshaped(t.dtype, shape, t) for t, shape in zip(tensors, single, strict=True)]
    return _cat(parts, dim)


def _split(tensor: Source, sizes: int | Sequence[int], dim: int = 0) -> tuple[Source, ...]:
    dim %= len(tensor.shape)
    length = tensor.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(
        Cut(tensor.dtype, _with(tensor.shape, dim, size), tensor, dim, start)
        for start, size in zip(starts, sizes, strict=True)
    )


def _chunk(tensor: Source, chunks: int, dim: int = 0) -> tuple[Source, ...]:
    return _split(tensor, -(-tensor.shape[dim] // chunks), dim)


def _transpose(tensor: Source, dim0: int, dim1: int) -> Source:
    low, high = sorted((dim0 % len(tensor.shape), dim1 % len(tensor.shape)))
    shape = _with(_with(tensor.shape, low, tensor.shape[high]), high, tensor.shape[low])
    return Transposed(tensor.dtype, shape, tensor, low, high)


_FOLLOWED: dict[Any, Callable[..., Any]] = {
    torch.cat: _cat,
    torch.stack: _stack,
    torch.split: _split,
    torch.chunk: _chunk,
    torch.transpose: _transpose,
}
