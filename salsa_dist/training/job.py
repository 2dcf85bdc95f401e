"""Adapters that are trained together over one base: a whole bank of steering vectors, or one adapter of
the base's own weights.

    RUN/state/step-….safetensors        to go on from; where adapters are trained one after another,
    RUN/state/NAME/step-….safetensors   one folder each, until it is done
"""

from __future__ import annotations

import shutil
import time
from collections import ChainMap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from salsa_dist.config import Config
from salsa_dist.log import log
from salsa_dist.methods.base import Method, Trainable
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.session import Session
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.training import state as states
from salsa_dist.training.average import Average
from salsa_dist.training.batches import StepBatches, StepShare
from salsa_dist.training.best import Best
from salsa_dist.training.copies import CopiesAhead, with_next
from salsa_dist.training.dev_loss import DevClips, finite_losses
from salsa_dist.training.halving import Halving
from salsa_dist.training.loss import token_losses
from salsa_dist.training.pass_limit import halved
from salsa_dist.training.silence_stride import SilenceStrides
from salsa_dist.training.workers import loader, own_workers


@dataclass
class Job:
    """What the loop trains.

    Attributes:
        config: of the run, with the job's adapters alone.
        names: of the adapters, by row.
        trainable: what is trained and how it is stepped: `PackedAdam` (training/optimizer.py) for
            vectors, `WeightsAdam` (methods/tuned.py) for the base's own weights.
        base: frozen, with `trainable.bank` on it: its backward pass fills the gradients there.
        batches: this rank's share of each step; None where nothing is trained by steps.
        first: the step that this start begins with.
        before: steps of the adapters that this run trained before, for curves that go on.
        best: what is saved of each adapter where dev clips are measured in between, else None.
        strides: of each adapter's trailing padding, where they were measured, else None.
        average: what is measured and saved in place of what is trained, else None.
        copies: of batches on the rank's device.
        following: the first batch of the next step, where it is copied ahead.
        waited_s: for how many seconds this rank waited for the clips of the step.
    """

    session: Session
    method: Method
    config: Config
    names: list[str]
    speech_llm: SpeechLLM
    trainable: Trainable
    base: FrozenBase
    batches: StepBatches | None
    identity: states.RunIdentity
    state: Path
    first: int
    before: int
    dev: DevClips | None
    halving: Halving | None
    best: Best | None
    average: Average | None
    strides: SilenceStrides | None
    copies: CopiesAhead
    following: AdapterBatch | None = None
    waited_s: float = 0.0

    def __len__(self) -> int:
        """Steps in all, as far as is known: adapters may stop before their last."""
        if self.batches is None:
            return 0
        return max(self.best.last) if self.best is not None else len(self.batches)

    def steps(self) -> Iterator[tuple[int, StepShare]]:
        """Each step with this rank's share. Nothing is read ahead past a rung: who goes on is open."""
        first = self.first
        self._measure_if_due(first)
        while self.batches is not None and first < len(self):
            end = len(self)
            if self.halving is not None:
                if self.halving.due(first):
                    self._drop_worse(first)
                end = self.halving.next_rung(first, end)
            gone = self._gone()
            self.batches.stop(gone)
            self.session.at(first, "reading clips")
            workers = own_workers(self.config.data.workers, self.session.ranks)
            limit = self.batches.micro_batch
            pinned = self.session.ranks.device.type == "cuda"
            shares = with_next(loader(self.batches, first, workers, end, pinned), self.copies.works)
            asked = time.monotonic()
            for step, (share, self.following) in enumerate(shares, first):
                self.waited_s = time.monotonic() - asked
                yield step, share
                self._measure_if_due(step + 1)
                self._at(step + 1, "reading clips")
                # What was read ahead is in passes too large, or of adapters that are gone.
                if self.batches.micro_batch != limit or self._gone() != gone:
                    end = step + 1
                    break
                asked = time.monotonic()
            first = end

    def _at(self, step: int, phase: str) -> None:
        """Say where this rank is; what comes behind the last step still counts as of it."""
        self.session.at(max(0, min(step, len(self) - 1)), phase)

    def active(self, step: int) -> list[int]:
        """Rows of the adapters that take part in `step`."""
        return self.batches.active(step) if self.batches is not None else []

    def forward_backward(self, step: int, share: StepShare) -> tuple[Tensor, Tensor]:
        """Leave the gradients of this rank's labels; the sums of their losses, and how many they are,
        (adapters,) fp32 both. A pass that is out of memory makes this step's passes smaller."""
        assert self.batches is not None
        while True:
            if isinstance(found := self._passes(share), tuple):
                return found
            # Not inside an `except`, whose traceback would hold the activations.
            if self.session.ranks.device.type == "cuda":
                torch.cuda.empty_cache()
            where = f"step {step + 1}, rank {self.session.ranks.rank}"
            run, shared = RunFolder(self.config.run), self.base.in_step
            limit = halved(run, found, where, shared=shared)
            self.batches.limit_pass(limit)
            self.session.events.write("out_of_memory", step=step, clips=found, limit=limit)
            log.warning(
                f"{where}: out of memory with {found} clips in a pass: from now on at most {limit}. To "
                "choose for yourself, set training.micro_batch or training.pass_seconds"
            )
            share = self.batches[step]

    def _passes(self, share: StepShare) -> tuple[Tensor, Tensor] | int:
        """What `forward_backward` returns; where a pass is out of memory, how many clips it had."""
        losses = torch.zeros(len(self.names), device=self.session.ranks.device)
        labels = torch.zeros_like(losses)
        self.trainable.zero_grad()
        for batch, following in zip(share.batches, [*share.batches[1:], self.following], strict=True):
            try:
                batch = self.copies.on_device(batch, following)
                of_labels = token_losses(self.base, batch)
                of_labels.sum().backward()
            except torch.OutOfMemoryError:
                self.copies.forget()
                return len(batch.keys)
            self.base.after_backward()
            rows = batch.label_rows.to(losses.device)
            losses.index_add_(0, rows, of_labels.detach())
            labels.index_add_(0, rows, torch.ones_like(of_labels))
        return losses, labels

    def save(self, step: int) -> None:
        """Write the state before `step`. Every rank holds the same: the first writes, nobody waits."""
        if self.session.ranks.is_first:
            self.session.check_lock()
            captured = states.capture(self, step)
            size = states.save(self.state, captured, self.identity, self.config.training.keep)
            self.session.events.write("checkpoint", step=step, bytes=size)

    def tensors(self) -> dict[str, Tensor]:
        """All that a run goes on from, by name; in place."""
        parts = (self.best, self.average, self.strides)
        beside = (part.tensors() for part in parts if part is not None)
        return dict(ChainMap(self.trainable.tensors(), *beside))

    def finish(self) -> list[Path]:
        """Measure what was trained on dev clips, and save the adapters; their folders."""
        session = self.session
        if self._measure_if_due(len(self)):
            self.save(len(self))
        if self.average is not None:
            self.average.put_in()
        if self.dev is not None and (self.first < len(self) or self.batches is None):
            if self.best is not None:
                losses = self.best.losses
            else:
                rows = range(len(self.names))
                losses = self._on_dev_clips(len(self), rows, "dev_loss")["dev_loss"]
            session.events.write("dev_loss", adapters=finite_losses(losses, self.names))
        self._at(len(self), "saving the adapters")
        folder = RunFolder(self.config.run)
        made: dict[str, int] = self.halving.dropped_at if self.halving else {}
        if self.best is not None:
            made = {**dict(zip(self.names, self.best.last, strict=True)), **made}
            self._save(made, folder.last)
            self.best.put_back()
            made = dict(zip(self.names, self.best.steps, strict=True))
        self._save(made, folder.adapters)
        if session.ranks.is_first and not self.config.method.steers:
            shutil.rmtree(self.state, ignore_errors=True)
        dist.barrier()
        return [folder.adapter(name) for name in self.names]

    def _save(self, made: dict[str, int], folder: Path) -> None:
        if self.session.ranks.is_first:
            self.method.save(
                *(self.config, self.session.index, self.speech_llm, self.trainable, made, folder)
            )

    def _gone(self) -> set[int]:
        """Rows of the adapters that stopped early."""
        dropped = self.halving.dropped_at if self.halving is not None else {}
        stopped = self.best.stopped if self.best is not None else {}
        return {row for row, name in enumerate(self.names) if name in dropped or row in stopped}

    def _measure_if_due(self, step: int) -> bool:
        """Measure on dev clips what is trained, and keep what is best; whether it was due."""
        gone = self._gone()
        rows = [row for row in self.best.due(step) if row not in gone] if self.best is not None else []
        if self.best is None or not rows:
            return False
        metric = self.config.training.dev_metric
        with self._averaged():
            found = self._on_dev_clips(step, rows, metric)
            if metric != "dev_loss":
                found |= self._on_dev_clips(step, rows, "dev_loss")
            stop = self.best.measured(step, found["dev_loss"], found[metric])
        stopped = [self.names[row] for row in stop]
        by_name = {kind: finite_losses(values, self.names) for kind, values in found.items() if values}
        best = {self.names[row]: self.best.steps[row] for row in rows}
        self.session.events.write("dev", step=step, **by_name, best=best, stopped=stopped)
        curves = {name: {k: v[name] for k, v in by_name.items() if name in v} for name in best}
        self.session.track(self.before + step, curves)
        if stopped:
            self.session.say(
                f"before step {step + 1}: {', '.join(stopped)} stopped, nothing better in "
                f"{self.config.training.patience} measurements on dev clips"
            )
        return True

    def _drop_worse(self, step: int) -> None:
        assert self.halving is not None
        halving = self.halving
        metric = halving.config.metric
        with self._averaged():
            losses = self._on_dev_clips(step, halving.running(step), metric)[metric]
        dropped = halving.decide(step, losses, self.session.ranks.is_first)
        by_name = finite_losses(losses, self.names)
        self.session.events.write("rung", step=step, **{metric: by_name}, dropped=dropped)
        how = "dev loss" if metric == "dev_loss" else f"{metric.upper()} on dev clips"
        self.session.say(
            f"before step {step + 1}: dropped {len(dropped)} of {len(losses)} by their {how}"
        )

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside the block, what is trained is what would be saved."""
        return self.average.instead() if self.average is not None else nullcontext()

    def _on_dev_clips(self, step: int, rows: Sequence[int], metric: str) -> dict[str, dict[int, float]]:
        """The loss of the adapters of `rows` before `step`; or, where `metric` is an error rate, all
        their rates. All ranks call this."""
        assert self.dev is not None

        def moved() -> None:
            self._at(step, "measuring on dev clips")

        if metric == "dev_loss":
            return {metric: self.dev.losses(self.base, self.config, rows, moved)}
        return self.dev.error_rates(self.base, self.config, rows, moved)
