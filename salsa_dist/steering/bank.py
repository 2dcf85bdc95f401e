"""A bank: all adapters of one run, added in one pass.

    vectors[site]   (adapters, hidden) fp32, one row per adapter; where a rule has several numbers per
                    channel, (adapters, parts * hidden), of which other rules use the first alone
    rows[component] (n,) int64, the row of each element of that component's batch; -1: no steering

    blocks          the same numbers: sites of one width that follow each other lie in one tensor

A forward hook on each steered layer adds `vectors[site][row]` to its output. The vectors live here,
outside the base's module tree, so the base's `state_dict` and its ZeRO partitions never see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from salsa_dist.steering.blocks import layer_of
from salsa_dist.steering.rules.registry import rule_named

Places = tuple[Tensor | slice, Tensor]

_KNOWN_PLACES = 8  # sets of adapters that take part in a step; they change seldom


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter of a bank: its sites and its rule."""

    name: str
    sites: tuple[str, ...]
    rule: str


@dataclass(frozen=True)
class Block:
    """Sites of one width that follow each other.

    Attributes:
        sites: their names.
        hidden: channels of their activations.
        values: (sites * adapters, parts * hidden) fp32, site by site.
    """

    sites: tuple[str, ...]
    hidden: int
    values: Tensor

    def by_site(self, values: Tensor) -> dict[str, Tensor]:
        """Site -> (adapters, …), views of a tensor with the rows of `values`; not copied."""
        each = values.view(len(self.sites), -1, *values.shape[1:]).unbind(0)
        return dict(zip(self.sites, each, strict=True))


class Bank:
    """Steering vectors of several adapters over one base.

    Args:
        specs: one entry per adapter, in row order.
        widths: hidden size of each site that any adapter steers.
        device: where the vectors live.

    Raises:
        UserError: a rule is unknown.
    """

    def __init__(
        self,
        specs: Sequence[AdapterSpec],
        widths: Mapping[str, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.specs = list(specs)
        self.sites = [s for s in widths if any(s in spec.sites for spec in specs)]
        names = sorted({spec.rule for spec in specs})
        self._rules = [rule_named(name) for name in names]
        self._parts = max((rule.parts for rule in self._rules), default=1)
        self.device = torch.device(device)
        # What steps all vectors needs few kernels for a block, and many for a site each.
        self.blocks = [
            Block(own, width, torch.zeros(len(own) * len(specs), self._parts * width, device=device))
            for width, group in groupby(self.sites, key=lambda site: widths[site])
            if (own := tuple(group))
        ]
        # The leaves that backward writes `.grad` to. An adapter that does not steer a site keeps a zero
        # vector there, which is the identity.
        self.vectors: dict[str, Tensor] = {
            site: vectors.detach().requires_grad_()
            for block in self.blocks
            for site, vectors in block.by_site(block.values).items()
        }
        self._hidden = {site: block.hidden for block in self.blocks for site in block.sites}
        self._places: dict[tuple[int, ...], list[Places]] = {}
        # (adapters,) the place of each row's rule among them.
        self._rule_of = torch.tensor([names.index(spec.rule) for spec in specs], device=device)
        self._rows: Mapping[str, Tensor] | int | None = None
        self.compiled = False  # apply rules in one kernel each, where they have it

    def set_row(self, row: int, vectors: Mapping[str, Tensor]) -> None:
        """Copy one adapter's numbers, (parts * hidden,) per site, into the bank; fewer: the first."""
        with torch.no_grad():
            for site, vector in vectors.items():
                self.vectors[site][row, : len(vector)].copy_(vector)

    def row(self, row: int) -> dict[str, Tensor]:
        """The numbers of one adapter, (parts * hidden,) per site that it steers; in place."""
        spec = self.specs[row]
        parts = rule_named(spec.rule).parts
        return {site: self.vectors[site][row, : parts * self._hidden[site]] for site in spec.sites}

    def trained_numbers(self, row: int) -> int:
        """Number of trained parameters of adapter `row`."""
        return sum(numbers.numel() for numbers in self.row(row).values())

    def places(self, rows: Sequence[int]) -> list[Places]:
        """For each block, where it has vectors of the adapters of `rows`, at their own sites only.

        Returns:
            for each block an index of n rows of its `values`, and (n,) int64, whose each is.
        """
        key = tuple(rows)
        if key not in self._places:
            if len(self._places) >= _KNOWN_PLACES:
                self._places.clear()
            steered = [(row, frozenset(self.specs[row].sites)) for row in key]
            self._places[key] = []
            for block in self.blocks:
                found = [
                    (number * len(self.specs) + row, row)
                    for number, site in enumerate(block.sites)
                    for row, own in steered
                    if site in own
                ]
                pair = torch.tensor(found, dtype=torch.int64).view(-1, 2).T.contiguous()
                at, of = pair.to(self.device, non_blocking=True)
                whole = [place for place, _ in found] == list(range(len(block.values)))
                self._places[key].append((slice(None) if whole else at, of))  # a slice copies nothing
        return self._places[key]

    @contextmanager
    def rows(self, rows: Mapping[str, Tensor] | int) -> Iterator[None]:
        """Say whose vector each element of the coming forward passes gets.

        Args:
            rows: for each component, (n,) int64 with the adapter's row for each element of the first
                dimension of its layers' outputs; -1 leaves that element unsteered. A site's own
                name stands before its component's, where its layer's output differs. A single
                number is that row for every element.
        """
        if self._rows is not None:
            raise RuntimeError("the bank is already in use: one batch at a time")
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def keep(self, component: str, kept: Tensor) -> None:
        """From now on the batch has only some of its elements, in a component whose pass continues.

        Args:
            component: `llm`, or `encoder`.
            kept: (n,) int64, the places of those that are kept.
        """
        if isinstance(self._rows, Mapping):
            self._rows = {**self._rows, component: self._rows[component][kept]}

    def keep_inside(self, layer: str, kept: Tensor) -> None:
        """In this batch, the blocks inside one layer see only some of its elements.

        Args:
            layer: its site.
            kept: (n,) int64, the places of those that are kept.
        """
        inside = [site for site in self.sites if site != layer and layer_of(site) == layer]
        if inside and isinstance(self._rows, Mapping):
            own = self._rows[layer.partition(".")[0]][kept]
            self._rows = {**self._rows, **dict.fromkeys(inside, own)}

    def rows_as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """For a part of this pass that is run again later: what sets the rows of now for as long."""
        rows = self._rows

        @contextmanager
        def again() -> Iterator[None]:
            before, self._rows = self._rows, rows
            try:
                yield
            finally:
                self._rows = before

        return again

    @contextmanager
    def attached(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Steer `modules` (by site name) until the block ends."""
        hooks = [modules[site].register_forward_hook(self._hook(site)) for site in self.sites]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, site: str) -> Any:
        component = site.partition(".")[0]

        def steer(module: nn.Module, args: Any, output: Any) -> Any:
            if self._rows is None:
                return output
            if isinstance(self._rows, int):
                return self.steer_output(site, output, self._rows)
            return self.steer_output(
                site, output, self._rows[site if site in self._rows else component]
            )

        # A site inside a compiled layer is a break in its kernel: whose row is whose is asked here.
        return torch.compiler.disable(steer) if self.compiled else steer

    def steer_output(self, site: str, output: Any, rows: Tensor | int) -> Any:
        """A layer's output, steered: a tensor, or a tuple whose first entry is the activation.

        Args:
            site: its name.
            output: (n, ..., hidden), alone or first.
            rows: (n,) int64, or one row for every element.
        """
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(rows, int):
            rows = torch.full(hidden.shape[:1], rows, device=hidden.device)
        steered = self.steer(site, hidden, rows)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    def steer(self, site: str, hidden: Tensor, rows: Tensor) -> Tensor:
        """The steered output of one layer.

        Args:
            site: its name.
            hidden: (n, ..., hidden), the layer's output; or (streams, n, tokens, hidden), as
                Gemma 3n's LLM has several streams of each sample, which are steered alike.
            rows: (n,) int64.
        """
        vectors, width = self.vectors[site], self._hidden[site]
        if hidden.ndim == 4 and hidden.shape[1] == rows.shape[0]:
            streams = hidden.shape[0]
            return self.steer(site, hidden.flatten(0, 1), rows.repeat(streams)).view_as(hidden)
        if hidden.shape[0] != rows.shape[0] or hidden.shape[-1] != width:
            raise RuntimeError(
                f"{site}: an output of shape {tuple(hidden.shape)} does not fit {rows.shape[0]} rows "
                f"of width {width}"
            )
        plain = rows < 0
        index = rows.clamp_min(0)
        # A lookup, not a one-hot product: a NaN in one adapter must not reach another's samples.
        vector = embedding(index, vectors).masked_fill(plain.unsqueeze(1), 0.0)
        shape = (rows.shape[0], *([1] * (hidden.ndim - 2)), vectors.shape[1])
        vector = vector.view(shape)
        # All rules for all, then the right one of each: asking which are here would make a GPU wait.
        steered, *others = [
            (rule.compiled if self.compiled and rule.compiled else rule.apply)(
                hidden, vector if rule.parts == self._parts else vector[..., : rule.parts * width]
            )
            for rule in self._rules
        ]
        if others:
            rule_of = self._rule_of[index].view(rows.shape[0], *([1] * (hidden.ndim - 1)))
            for number, other in enumerate(others, 1):
                steered = torch.where(rule_of == number, other, steered)
        return steered
