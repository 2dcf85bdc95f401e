"""Where several adapters take the same clip, its way up to their first steered layer is walked once.

    clips heard   c0 c1 │ encoder.0 … encoder.3 │ encoder.4             │ encoder.5 …
    rows          c0 c1 │ c0 c1                 │ c0 c1 c0·a c1·a       │ c0·a c1·a c0·b c1·b
                                                  a steers from here on   b from here on

What a layer puts out before its vector is added is the same for every adapter that steers nothing
below. So a clip goes in once, unsteered (row -1), and gets a row of its own for each adapter at the
first layer that this adapter steers; at the encoder's last layer at the latest, since what follows
reads as many transcripts as there are rows.

Which layers may add rows is decided once from the whole bank and is the same on all ranks; no module
is left out anywhere, only batches are smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch
from salsa_dist.steering.bank import AdapterSpec, Bank


@dataclass(frozen=True)
class Split:
    """What one layer's output becomes: of its first `plain` elements `keep` go on plain, what follows
    them stays, and `begin` get rows of their own; `order` sorts the result as the transcripts are."""

    plain: int
    keep: Tensor
    begin: Tensor
    order: Tensor | None


def stage_sites(specs: Sequence[AdapterSpec], encoder: Sequence[str]) -> list[str]:
    """For each adapter, the layer at whose output its clips get rows of their own.

    Args:
        specs: the adapters.
        encoder: the encoder's sites, lowest first.
    """
    return [next((s for s in encoder if s in spec.sites), encoder[-1]) for spec in specs]


class SharedPrefix:
    """Gives shared clips their rows, layer by layer.

    Args:
        bank: whose adapters share clips. Its own hooks must come after these.
        modules: every site's module.
    """

    def __init__(self, bank: Bank, modules: Mapping[str, nn.Module]) -> None:
        self.sites = [site for site in modules if site.startswith("encoder.")]
        self._splits: dict[str, Split] = {}
        self._hooks = ExitStack()
        self._stage: list[int] = []
        if not self.sites or not bank.specs:
            return
        self._stage = [self.sites.index(s) for s in stage_sites(bank.specs, self.sites)]
        self.first = self.sites[min(self._stage)]
        for level in sorted({*self._stage, len(self.sites) - 1}):
            site = self.sites[level]
            hook = modules[site].register_forward_hook(self._hook(site))
            self._hooks.callback(hook.remove)

    @contextmanager
    def sharing(self, batch: AdapterBatch | PromptBatch) -> Iterator[dict[str, Tensor]]:
        """The bank's rows for `batch`, by component and, where clips are shared, by site."""
        if batch.clip_of is None:
            yield batch.rows
            return
        splits, rows = self.plan(batch.clip_of.tolist(), batch.rows["encoder"].tolist())
        device = batch.rows["encoder"].device
        self._splits = {
            site: Split(
                s.plain,
                s.keep.to(device),
                s.begin.to(device),
                None if s.order is None else s.order.to(device),
            )
            for site, s in splits.items()
        }
        try:
            yield {**batch.rows, **{site: r.to(device) for site, r in rows.items()}}
        finally:
            self._splits = {}

    def plan(
        self, clip_of: Sequence[int], rows: Sequence[int]
    ) -> tuple[dict[str, Split], dict[str, Tensor]]:
        """What happens to a batch at each layer.

        Args:
            clip_of: for each transcript, which of the clips that were heard it belongs to.
            rows: for each transcript, its adapter's row; -1 for none.

        Returns:
            by site, the split of its output; and by site, (n,) int64 rows for the bank after it.
        """
        last = len(self.sites) - 1
        stage = [self._stage[row] if row >= 0 else last for row in rows]
        plain = sorted(set(clip_of))
        walking: list[int] = []
        splits, site_rows = {}, {}
        for level in range(min(self._stage), last + 1):
            begin = [e for e, s in enumerate(stage) if s == level]
            needed = {clip_of[e] for e, s in enumerate(stage) if s > level}
            if begin or level == last:
                place = {clip: i for i, clip in enumerate(plain)}
                keep = [place[clip] for clip in plain if clip in needed]
                walking += begin
                order = None
                if level == last:
                    position = {e: i for i, e in enumerate(walking)}
                    order = torch.tensor([position[e] for e in range(len(rows))])
                splits[self.sites[level]] = Split(
                    len(plain),
                    torch.tensor(keep, dtype=torch.long),
                    torch.tensor([place[clip_of[e]] for e in begin], dtype=torch.long),
                    order,
                )
                plain = [clip for clip in plain if clip in needed]
                if level == last:
                    walking = list(range(len(rows)))
            site_rows[self.sites[level]] = torch.tensor(
                [-1] * len(plain) + [rows[e] for e in walking], dtype=torch.long
            )
        return splits, site_rows

    def close(self) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def _hook(self, site: str) -> Any:
        def split(module: nn.Module, args: Any, output: Any) -> Any:
            s = self._splits.get(site)
            if s is None:
                return output
            hidden = output[0] if isinstance(output, tuple) else output
            # Detached: no vector lies on a plain element's way, and every rank cuts at the same place.
            plain, own = hidden[: s.plain].detach(), hidden[s.plain :]
            hidden = torch.cat([plain[s.keep], own, plain[s.begin]])
            if s.order is not None:
                hidden = hidden[s.order]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return split
