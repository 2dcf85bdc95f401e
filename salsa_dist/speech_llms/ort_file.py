"""A graph in onnxruntime's file format (`.ort`), read in plain Python: its weights and who uses them.

    u32 root │ "ORTM" │ tables of the schema `ort.fbs`, in FlatBuffers' layout, little-endian

    session ─ model ─ graph ── initializers   name, sizes, type, bytes
                            ├─ node_args      name, type: the sizes of inputs
                            └─ nodes          name, operator, inputs, outputs, attributes ─ graphs

A slot is a field's place in its table's list of offsets, as the schema orders them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from salsa_dist.errors import UserError

_IDENTIFIER = b"ORTM"
_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
}
_MAX_DEPTH = 8  # graphs in graphs


@dataclass(frozen=True)
class Node:
    """One operation; its name is the path of the module that was exported, and the operator."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class OrtGraph:
    """All of a file, with the graphs inside its nodes laid together.

    Attributes:
        tensors: the initializers by name.
        sizes: of each named value whose type is known: its sizes, 0 where one is open.
        nodes: in the order of the file.
    """

    where: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)


def read_ort(path: Path) -> OrtGraph:
    """The graph in `path`. Raises: UserError: it can't be read, or is no such file."""
    try:
        blob = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path} can't be read ({e.strerror})") from e
    if blob[4:8] != _IDENTIFIER:
        raise UserError(f"{path} is no onnxruntime file: its first bytes are not those of an .ort")
    graph = OrtGraph(str(path))
    try:
        session = _Table(blob, _u32(blob, 0))
        _read_graph(session.table(6).table(18), graph, 0)
    except (struct.error, UnicodeDecodeError, _Damaged) as e:
        raise UserError(f"{path} is damaged ({e}): get the file again") from e
    return graph


class _Damaged(Exception):
    """What in the file can't be."""


@dataclass(frozen=True)
class _Table:
    """A FlatBuffers table at byte `at`; a field is asked for by its slot."""

    blob: bytes
    at: int

    def _place(self, slot: int) -> int | None:
        offsets = self.at - struct.unpack_from("<i", self.blob, self.at)[0]
        if offsets < 0:
            raise _Damaged(f"a table at byte {self.at} has its offsets before the file")
        if slot >= struct.unpack_from("<H", self.blob, offsets)[0]:
            return None
        offset = struct.unpack_from("<H", self.blob, offsets + slot)[0]
        return self.at + offset if offset else None

    def _behind(self, slot: int) -> int | None:
        place = self._place(slot)
        return None if place is None else place + _u32(self.blob, place)

    def number(self, slot: int, code: str) -> int:
        place = self._place(slot)
        return 0 if place is None else int(struct.unpack_from("<" + code, self.blob, place)[0])

    def table(self, slot: int) -> _Table:
        place = self._behind(slot)
        if place is None:
            raise _Damaged(f"a table at byte {self.at} lacks its field {slot}")
        return _Table(self.blob, place)

    def has(self, slot: int) -> bool:
        return self._place(slot) is not None

    def raw(self, slot: int, width: int = 1) -> bytes:
        """The bytes of a vector whose elements have `width` bytes each; empty where there is none."""
        place = self._behind(slot)
        if place is None:
            return b""
        start, size = place + 4, _u32(self.blob, place) * width
        if start + size > len(self.blob):
            raise _Damaged(f"{size} bytes from byte {start} go beyond its end")
        return self.blob[start : start + size]

    def text(self, slot: int) -> str:
        return self.raw(slot).decode("utf-8")

    def _places(self, slot: int) -> list[int]:
        start = (self._behind(slot) or 0) + 4
        count = len(self.raw(slot, 4)) // 4
        return [start + 4 * i + _u32(self.blob, start + 4 * i) for i in range(count)]

    def tables(self, slot: int) -> list[_Table]:
        return [_Table(self.blob, place) for place in self._places(slot)]

    def texts(self, slot: int) -> tuple[str, ...]:
        found = []
        for place in self._places(slot):
            found.append(self.blob[place + 4 : place + 4 + _u32(self.blob, place)].decode("utf-8"))
        return tuple(found)


def _u32(blob: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", blob, at)[0])


def _read_graph(table: _Table, graph: OrtGraph, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _Damaged("its graphs lie in each other without end")
    graph.tensors.update(_tensors(table))
    for value in table.tables(6):
        # A type of kind 1 is a tensor's; other kinds have no sizes.
        if value.has(8) and value.table(8).number(6, "B") == 1:
            graph.sizes[value.text(4)] = _sizes(value.table(8).table(8))
    for node in table.tables(8):
        graph.nodes.append(Node(node.text(4), node.text(14), node.texts(20), node.texts(22)))
        for attribute in node.tables(24):
            if attribute.has(18):
                _read_graph(attribute.table(18), graph, depth + 1)


def _tensors(table: _Table) -> Iterator[tuple[str, torch.Tensor]]:
    for tensor in table.tables(4):
        name, dims = tensor.text(4), tensor.raw(8, 8)
        shape = struct.unpack(f"<{len(dims) // 8}q", dims)
        dtype = _TYPES.get(tensor.number(10, "i"))
        raw = tensor.raw(12)
        if dtype is None or not raw:
            continue  # texts, and what lies in another file
        if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
            raise _Damaged(f"{name!r} of sizes {list(shape)} can't have {len(raw)} bytes")
        yield name, torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def _sizes(type_: _Table) -> tuple[int, ...]:
    if not type_.has(6):
        return ()
    sizes = []
    for dimension in type_.table(6).tables(4):
        known = dimension.has(4)
        sizes.append(dimension.table(4).number(6, "q") if known else 0)
    return tuple(sizes)
