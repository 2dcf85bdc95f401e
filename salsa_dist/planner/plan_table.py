"""A plan as a table: one row per placement, as text and as JSON.

plan.rows      one a placement: replicate, node, islands of k nodes, full; each with CPU offload
plan.chosen    the row that `auto` takes, or None
plan.why       in words
plan.table()   for people;  plan.tree() for JSON
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from salsa_dist.columns import aligned
from salsa_dist.planner.base_shape import BaseShape
from salsa_dist.planner.step_work import USABLE, Machines, Work
from salsa_dist.planner.units import seconds, size


@dataclass(frozen=True)
class Row:
    """One placement. Bytes are per device unless named otherwise.

    Attributes:
        placement: as `placement.kind` has it.
        ranks_a_copy: consecutive ranks that share one copy.
        offload: where parts lie between uses: `none` (the device), `cpu` or `nvme`.
        base_bytes: held between steps.
        peak_base_bytes: held at the peak of a step, gathered weights with it.
        activation_bytes: kept for backward, logits with it (an estimate).
        steering_bytes: all vectors, their gradients and the buffer that is reduced.
        optimizer_bytes: Adam's two moments, and as much for estimated learning rates.
        device_bytes: all of these, with the base at its peak.
        offloaded_bytes_per_node: in host memory or on disk.
        gathered_bytes_per_step: weights that a rank receives from others.
        bytes_inside_node_per_step: that ranks of a node receive from each other.
        bytes_between_nodes_per_step: that one node sends to others.
        flops_per_step: of all ranks.
        compute_s, transfer_s: of one rank, in seconds.
        step_s: the larger of both: gathers run beside the arithmetic.
        fits: whether `device_bytes` are within the usable memory, and the host has room.
    """

    placement: str | int
    ranks_a_copy: int
    offload: str
    base_bytes: int
    peak_base_bytes: int
    activation_bytes: int
    steering_bytes: int
    optimizer_bytes: int
    device_bytes: int
    offloaded_bytes_per_node: int
    gathered_bytes_per_step: int
    bytes_inside_node_per_step: int
    bytes_between_nodes_per_step: int
    flops_per_step: float
    compute_s: float
    transfer_s: float
    step_s: float
    fits: bool

    @property
    def name(self) -> str:
        return f"{self.placement}" + ("" if self.offload == "none" else f" + {self.offload}")


@dataclass(frozen=True)
class Plan:
    """All placements of one base for one kind of step on given machines."""

    shape: BaseShape
    work: Work
    machines: Machines
    rows: tuple[Row, ...]
    chosen: Row | None
    why: str

    def row(self, placement: str | int, offload: str = "none") -> Row | None:
        return next((r for r in self.rows if (r.placement, r.offload) == (placement, offload)), None)

    def tree(self) -> dict[str, Any]:
        """The plan as JSON: `rows` are flat objects."""
        shape = self.shape
        return {
            "base": shape.name,
            "architecture": shape.architecture,
            "parameters": shape.parameters,
            "dtype": shape.dtype,
            "quantized": shape.quantized,
            "base_bytes": shape.bytes,
            "stored_bytes": shape.stored,
            "machines": asdict(self.machines),
            "work": asdict(self.work),
            "rows": [asdict(row) for row in self.rows],
            "auto": None if self.chosen is None else asdict(self.chosen),
            "why": self.why,
        }

    def table(self) -> str:
        """The plan as text: its subject, one line per placement, and the choice of `auto`."""
        s, m, w = self.shape, self.machines, self.work
        quantized = "" if s.quantized is None else f" quantised ({s.quantized})"
        stored = "" if s.stored is None else f", {size(s.stored)} on disk"
        what = (
            f"a step of {w.clips} clips" if w.training else f"decoding {w.micro_batch} clips per rank"
        )
        cells = [
            (
                *("placement", "ranks a copy", "base", "at peak", "activations", "vectors+Adam"),
                *("a device", "host", "inside node", "between nodes", "step", "fits"),
            )
        ]
        for r in self.rows:
            cells.append(
                (
                    r.name,
                    str(r.ranks_a_copy),
                    size(r.base_bytes),
                    size(r.peak_base_bytes),
                    size(r.activation_bytes),
                    size(r.steering_bytes + r.optimizer_bytes),
                    size(r.device_bytes),
                    size(r.offloaded_bytes_per_node) if r.offload != "none" else "-",
                    size(r.bytes_inside_node_per_step),
                    size(r.bytes_between_nodes_per_step),
                    seconds(r.step_s) if w.training else "-",
                    "yes" if r.fits else "no",
                )
            )
        lines = [
            f"{s.name}: {s.architecture}, {s.parameters / 1e6:,.1f} M parameters, {s.dtype}"
            f"{quantized}, {size(s.bytes)}{stored}",
            f"{m.nodes} nodes x {m.ranks_per_node} ranks, {size(m.memory)} a device, {USABLE:.0%} of "
            f"it usable; {what}, {self.rows[0].flops_per_step:.2e} FLOPs",
        ]
        return "\n".join([*lines, *aligned(cells), self.why])
