"""A job: adapters that are trained together over one base. These are all steering vectors of a run, or
one adapter that consists of the base's own weights.

    RUN/state/step-….safetensors        checkpoints of steering vectors
    RUN/state/NAME/step-….safetensors   checkpoints of one other adapter, until it is trained
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
from salsa_dist.placement.ranks import from_first
from salsa_dist.run.events import dev_loss_told
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.memory import is_full_memory
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
from salsa_dist.training.longest_pass import longest_pass
from salsa_dist.training.loss import label_weights, token_losses
from salsa_dist.training.pass_limit import halved
from salsa_dist.training.silence_stride import SilenceStrides
from salsa_dist.training.workers import ReadAhead, own_workers


@dataclass
class Job:
    """What the loop trains. `opened` (training/opening.py) makes it.

    Attributes:
        config: the run's config, with the adapters of this job only.
        names: the adapters' names, by row.
        trainable: the trained tensors and their optimizer: `PackedAdam` (training/optimizer.py) for
            vectors, `WeightsAdam` (methods/tuned.py) for the base's own weights.
        base: the frozen base with `trainable.bank` on it; the backward pass fills the bank's gradients.
        batches: this rank's share of each step; None if the method computes its vectors.
        first: the first step of this start.
        before: number of steps of the run's earlier jobs; curves continue from there.
        best: with `training.dev_every`, the best tensors of each adapter so far; else None.
        average: with `training.average`, the tensors that are measured and saved; else None.
        strides: with `training.silence_stride` auto, each adapter's stride; else None.
        copies: copies batches to the rank's device.
        following: the first batch of the next step; `steps` sets it if batches are copied ahead.
        waited_s: the seconds that this rank waited for the clips of this step.
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
        """Number of steps of the longest adapter, as far as is known: adapters may stop early."""
        return max(self._steps_of_rows(), default=0)

    def steps(self) -> Iterator[tuple[int, StepShare]]:
        """Each step with this rank's share. Reading ahead ends at a rung, which drops adapters."""
        first = self.first
        self._measure_if_due(first)
        if self.batches is None:
            return
        ranks = self.session.ranks
        workers = own_workers(self.config.data.workers, ranks)
        ahead = ReadAhead(self.batches, workers, pinned=ranks.device.type == "cuda")
        while first < len(self):
            end = len(self)
            if self.halving is not None:
                if self.halving.due(first):
                    self._drop_worse(first)
                end = self.halving.next_rung(first, end)
            gone = self._gone()
            self.batches.stop(gone)
            self.session.at(first, "reading clips")
            limits = self.batches.limits
            shares = with_next(ahead.shares(first, end), self.copies.works)
            asked = time.monotonic()
            for step, (share, self.following) in enumerate(shares, first):
                self.waited_s = time.monotonic() - asked
                yield step, share
                self._measure_if_due(step + 1)
                self._at(step + 1, "reading clips")
                # What was read ahead is in passes too large, or of adapters that are gone.
                if self.batches.limits != limits or self._gone() != gone:
                    end = step + 1
                    break
                asked = time.monotonic()
            first = end

    def _at(self, step: int, phase: str) -> None:
        """Tell the watchdog this rank's phase; after the last step, still with the last step."""
        self.session.at(max(0, min(step, len(self) - 1)), phase)

    def active(self, step: int) -> list[int]:
        """Rows of the adapters that take part in `step`."""
        return self.batches.active(step) if self.batches is not None else []

    def steps_left(self, done: int) -> int:
        """Steps after `done`, summed over the adapters; as far as is known, since some stop early."""
        steps = self._steps_of_rows()
        return sum(max(0, steps[row] - done) for row in self.active(done))

    def _steps_of_rows(self) -> list[int]:
        """Steps of each adapter in all, as far as is known."""
        if self.batches is None:
            return []
        return self.best.last if self.best is not None else [a.steps for a in self.batches.adapters]

    def try_longest(self) -> None:
        """Make a pass of the longest clips, and halve the limit of a pass where it is out of memory."""
        kept = self.config.training.prefix_cache != "off"
        if self.batches is None or self.first >= len(self) or kept:
            return
        self.session.at(None, "trying the longest clips")
        while (batch := longest_pass(self.batches, self.first)) is not None:
            share = StepShare([batch], 0, [], 0, 0.0, 0.0)
            found = self._passes(share)
            self.trainable.zero_grad()
            if isinstance(found, tuple):
                return
            self._halve(self.first, found, f"before step {self.first + 1}, with the longest clips")

    def forward_backward(self, step: int, share: StepShare) -> tuple[Tensor, Tensor]:
        """Compute the gradients of this rank's share; they stay in `.grad`. If a pass is out of memory,
        the step is repeated in smaller passes.

        Args:
            share: what `steps` gave; `run` of loop.py hands it on.

        Returns:
            Sums of the losses of this rank's labels, and of their weights; both (adapters,) fp32.
        """
        assert self.batches is not None
        while True:
            if isinstance(found := self._passes(share), tuple):
                return found
            # Not inside an `except`, whose traceback would hold the activations.
            self._halve(step, found, f"step {step + 1}")
            share = self.batches[step]

    def _halve(self, step: int, clips: int, where: str) -> None:
        """From now on at most half of `clips` in a pass."""
        assert self.batches is not None
        if self.session.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        where += f", rank {self.session.ranks.rank}"
        limit = halved(RunFolder(self.config.run), clips, where, shared=self.base.in_step)
        self.batches.limit_pass(limit)
        self.session.events.write("out_of_memory", step=step, clips=clips, limit=limit)
        log.warning(
            f"{where}: out of memory with {clips} clips in a pass: from now on at most {limit}. To "
            "choose for yourself, set training.micro_batch or training.pass_seconds"
        )

    def _passes(self, share: StepShare) -> tuple[Tensor, Tensor] | int:
        """What `forward_backward` returns. If a pass is out of memory: its number of clips."""
        losses = torch.zeros(len(self.names), device=self.session.ranks.device)
        labels = torch.zeros_like(losses)
        self.trainable.zero_grad()
        for batch, following in zip(share.batches, [*share.batches[1:], self.following], strict=True):
            try:
                batch = self.copies.on_device(batch, following)
                of_labels = token_losses(self.base, batch)
                weights = label_weights(batch, of_labels)
                of_labels = of_labels * weights
                of_labels.sum().backward()
            except RuntimeError as error:
                if not is_full_memory(error):
                    raise
                self.copies.forget()
                return len(batch.keys)
            self.base.after_backward()
            self.session.moved()
            rows = batch.label_rows.to(losses.device)
            losses.index_add_(0, rows, of_labels.detach())
            labels.index_add_(0, rows, weights)
        return losses, labels

    def save(self, step: int) -> None:
        """Write the state before `step`. All ranks hold the same state, so rank 0 writes it alone."""
        if self.session.ranks.is_first:
            self.session.check_lock()
            captured = states.capture(self, step)
            size = states.save(self.state, captured, self.identity, self.config.training.keep)
            self.session.events.write("checkpoint", step=step, bytes=size)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, by name; not copied."""
        parts = (self.best, self.average, self.strides)
        beside = (part.tensors() for part in parts if part is not None)
        return dict(ChainMap(self.trainable.tensors(), *beside))

    def finish(self) -> list[Path]:
        """Measure the adapters on dev clips and save them. Returns their folders."""
        session = self.session
        if self._measure_if_due(len(self)):
            self.save(len(self))
        if self.average is not None:
            self.average.put_in()
        if self.to_measure():
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

    def to_measure(self) -> bool:
        """Whether `finish` measures on dev clips: not where an earlier start of the run did, after all
        steps. All ranks call this."""
        if self.dev is None:
            return False
        if self.batches is None or self.first < len(self):
            return True
        return not from_first(self.session.ranks, lambda: dev_loss_told(self.config.run))

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
        """Measure the adapters on dev clips if due, and keep the best. Returns whether it was due."""
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
        """Inside the block, the trained tensors have the values that would be saved."""
        return self.average.instead() if self.average is not None else nullcontext()

    def _on_dev_clips(self, step: int, rows: Sequence[int], metric: str) -> dict[str, dict[int, float]]:
        """Dev losses of the adapters of `rows` before `step`. If `metric` is an error rate: all their
        error rates. All ranks call this."""
        assert self.dev is not None

        def moved() -> None:
            self._at(step, "measuring on dev clips")

        if metric == "dev_loss":
            return {metric: self.dev.losses(self.base, self.config, rows, moved)}
        return self.dev.error_rates(self.base, self.config, rows, moved)
