"""Training a bank over a frozen base: the one loop, for every placement and number of ranks.

    RUN/
    ├── config.yaml                     the whole config of the run
    ├── events.jsonl                    what happened
    ├── state/step-….safetensors        to go on from
    ├── lock.json, ranks/               while it runs: whose it is, where each rank is
    └── adapters/NAME/                  one folder an adapter, at the end

Each step: this rank's share of every adapter's batch goes through the base, the sums of gradients,
losses and label counts are reduced once, and each adapter is stepped as if it were alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist.config import Config
from salsa_dist.config.fingerprint import digest
from salsa_dist.config.release_0_1 import digest_of_release_0_1
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.placement.choose import Placed, choose
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.loading import load_base
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.planner.links import slower_than_planned
from salsa_dist.run.agreement import agree, base_facts, settings_facts
from salsa_dist.run.console import Console
from salsa_dist.run.events import Events
from salsa_dist.run.lock import RunLock, held_for_all
from salsa_dist.run.preflight import preflight
from salsa_dist.run.start import open_run, refuse_unwritable, write_start
from salsa_dist.run.stop_signals import StopSignals
from salsa_dist.run.trackers import Trackers, refuse_missing
from salsa_dist.run.watchdog import Watchdog
from salsa_dist.training import state as states
from salsa_dist.training.bad_samples import BadSamples, counts_of
from salsa_dist.training.batches import StepBatches, StepShare, loader
from salsa_dist.training.dev_loss import DevClips, finite_losses
from salsa_dist.training.from_config import (
    make_bank,
    make_batches,
    schedule_of,
    site_scales,
    start_bank,
)
from salsa_dist.training.halving import Halving
from salsa_dist.training.optimizer import PackedAdam, Reduced, reduce_step
from salsa_dist.training.prefix_pass import keep_prefix
from salsa_dist.training.saved_adapters import save_adapters

# The placement is measured on this step after a start: DeepSpeed records the order of modules in the
# first, and prefetches by it from the second on.
_MEASURED_STEP = 2


@dataclass(frozen=True)
class Trained:
    """How a call of `train` ended: at which step, and whether that was the last."""

    step: int
    finished: bool
    adapters: list[Path]


def train(config: Config) -> Trained:
    """Train every adapter of `config`, or go on where its run folder stopped.

    On SIGTERM, SIGINT or SIGUSR2 all ranks stop after the same step and the state is saved.
    """
    hang_after_s = config.training.hang_after_s
    with join(hang_after_s) as ranks, ExitStack() as stack:
        refuse_unwritable(config.run)
        refuse_missing(config.trackers)
        watchdog = stack.enter_context(Watchdog(config.run, ranks.rank, ranks.world_size, hang_after_s))
        say = Console(ranks.is_first)
        stack.callback(say.close)
        index = ShardIndex.load(config.data.shards)
        watchdog.at(None, "comparing settings")
        agree(ranks, settings_facts(config, index.hash))
        watchdog.at(None, "checking the machines")
        several = ranks.world_size > 1
        checked = preflight(config.run, ranks, watchdog.whereabouts) if several else None
        for line in checked.lines() if checked else []:
            say(line)
        watchdog.at(None, "choosing a placement", reads=True)
        placed = choose(config, ranks)
        for line in placed.lines:
            say(line)
        if checked:
            links = (checked.slowest_link(between) for between in (False, True))
            for line in slower_than_planned(placed.row, *links):
                say(line)
        watchdog.at(None, "taking the run's lock")
        lock = stack.enter_context(held_for_all(config.run, ranks))
        watchdog.at(None, "loading the base", reads=True)
        stride = config.training.silence_stride
        speech_llm = load_base(config.base_in_training(), ranks, placed.placement, say, stride)
        bank = make_bank(config, speech_llm, ranks.device)
        start_bank(bank, config, speech_llm)
        optimizer = PackedAdam(
            bank,
            [schedule_of(adapter, config.training) for adapter in config.adapter_settings()],
            config.training.clip_norm,
            site_scales(config.training.lr_scale, speech_llm),
        )
        watchdog.at(None, "planning the steps", reads=True)
        batches = make_batches(config, index, speech_llm, ranks)
        identity = states.RunIdentity(
            adapters=[a.name for a in config.adapters],
            revision=speech_llm.revision,
            shards=index.hash,
            config=digest(config, "vectors"),
            config_0_1=digest_of_release_0_1(config),
        )
        found = states.newest(config.run / "state", identity)
        first = found.step if found else 0
        watchdog.at(None, "comparing what was loaded")
        agree(ranks, base_facts(speech_llm, bank, ranks, placed.placement, first))
        # Only now, when nothing that the user gave is refused, is anything written.
        run = open_run(config, ranks)
        events = Events(run, ranks.is_first)
        stack.callback(events.close)
        if found:
            states.restore(optimizer, found)
            say(f"going on at step {first} of {len(batches)}")
        write_start(events, ranks, speech_llm, first)
        if checked:
            events.write("preflight", **checked.event())
        for adapter, job in zip(config.adapters, batches.jobs, strict=True):
            plan = job.plan
            events.write(
                "data",
                adapter=adapter.name,
                clips=plan.clips,
                minutes=round(plan.seconds / 60, 3),
                left_out=plan.left_out,
                languages={name: round(share, 6) for name, share in plan.shares.items()},
            )
        watchdog.at(None, "placing the base", reads=True)
        base = FrozenBase(
            speech_llm, bank, ranks, placed.placement, config.training.activation_checkpointing, say
        )
        stack.callback(base.close)
        say(base.as_loaded())
        signals = stack.enter_context(StopSignals())
        halving = dev = None
        if config.training.halving is not None:
            halving = Halving(config.training.halving, config.adapter_settings(), run, first)
        if config.training.dev_clips:
            most = config.training.dev_clips
            dev = DevClips(index, config.adapter_settings(), most, speech_llm.window_s)
        if config.training.prefix_cache != "off" and first < len(batches):
            own = ((draw.shard, draw.entry) for draw in batches.drawn(first))
            drawn = [*own, *(dev.drawn() if dev else ())]
            kept = keep_prefix(
                *(config, base, identity.revision, identity.shards, drawn),
                lambda: watchdog.at(None, "keeping what lies below the first steered layer"),
            )
            batches.known = kept.known
            if dev:
                dev.known = kept.known
            events.write("prefix", site=base.shared.first, clips=len(kept.known))
        trackers = None
        if ranks.is_first:
            trackers = Trackers(config.trackers, run, config.model_dump(mode="json"), first)
            stack.callback(trackers.close)
        loop = _Loop(
            config=config,
            ranks=ranks,
            base=base,
            placed=placed,
            optimizer=optimizer,
            batches=batches,
            identity=identity,
            events=events,
            say=say,
            signals=signals,
            trackers=trackers,
            lock=lock,
            watchdog=watchdog,
            dev=dev,
            halving=halving,
        )
        step = first
        if first < len(batches):
            step = loop.run(first)
        finished = step == len(batches)
        adapters: list[Path] = []
        if finished:
            if dev and first < len(batches):
                loop.measure_dev(step)
            watchdog.at(step, "saving the adapters")
            if ranks.is_first:
                stopped = halving.dropped_at if halving else {}
                adapters = save_adapters(run / "adapters", bank, config, speech_llm, index, stopped)
            events.write("end", step=step)
            say(f"trained: {len(config.adapters)} adapters in {run / 'adapters'}")
        else:
            say(f"stopped at step {step} of {len(batches)}; the same command goes on from there")
        watchdog.at(step, "waiting for the other ranks to end")
        dist.barrier()
        say.close()
        signals.hand_over()
        return Trained(step, finished, adapters)


@dataclass
class _Loop:
    """The steps of one run, from where it is to its end or to a signal."""

    config: Config
    ranks: Ranks
    base: FrozenBase
    placed: Placed
    optimizer: PackedAdam
    batches: StepBatches
    identity: states.RunIdentity
    events: Events
    say: Console
    signals: StopSignals
    trackers: Trackers | None
    lock: RunLock | None
    watchdog: Watchdog
    dev: DevClips | None
    halving: Halving | None
    skipped_in_a_row: int = 0

    def __post_init__(self) -> None:
        self.bank = self.base.bank
        self.bad = BadSamples(self.config.data.max_bad, self.events, self.say)

    def run(self, first: int) -> int:
        """Do the steps from `first` on; returns the step to go on with."""
        measured = min(first + _MEASURED_STEP, len(self.batches) - 1)
        saved = time.monotonic()
        step = first
        started = time.monotonic()
        self.watchdog.at(first, "reading clips")
        for step, share in self._steps(first):
            self.watchdog.at(step, "forward and backward")
            active = self.batches.active(step)
            with ExitStack() as stack:
                traffic = stack.enter_context(self.base.watched()) if step == measured else None
                reduced = self._gradients(step, share, active, bool(self.signals.received))
            self.bad.after_step(step, share, reduced.counts[0])
            if traffic is not None:
                self._report_placement(self.base.measure(traffic, reduced.bytes))
            moving = self._not_exploded(active, reduced)
            norms, rates = self.optimizer.step(reduced.gradients, moving)
            now = time.monotonic()
            clips = self.batches.clips(step)
            self._record(step, now - started, clips, active, reduced, norms, rates)
            self._count_skipped(step, active, moving, norms)
            last = reduced.stop or step + 1 == len(self.batches)
            self._progress(step, now - started, clips, active, reduced)
            if last or now - saved >= self.config.training.save_every_s:
                self.watchdog.at(step, "saving the state")
                self._save(step + 1)
                saved = now
            if reduced.stop:
                break
            self.watchdog.at(step + 1, "reading clips")
            started = time.monotonic()
        return step + 1

    def _steps(self, first: int) -> Iterator[tuple[int, StepShare]]:
        """Each step with this rank's share. Nothing is read ahead past a rung: who goes on is open."""
        while first < len(self.batches):
            end = len(self.batches)
            if self.halving is not None:
                if self.halving.due(first):
                    self._drop_worse(first)
                gone = self.halving.dropped_at
                self.batches.dropped = {
                    row for row, spec in enumerate(self.bank.specs) if spec.name in gone
                }
                end = self.halving.next_rung(first, end)
            workers = self.config.data.workers
            yield from enumerate(loader(self.batches, first, workers, end), first)
            first = end

    def measure_dev(self, step: int) -> None:
        """Write each adapter's loss on the dev clips as it is now, after `step` steps."""
        assert self.dev is not None
        rows = range(len(self.bank.specs))
        losses = self.dev.losses(self.base, self.config, rows, self._on_dev_clips(step))
        names = [spec.name for spec in self.bank.specs]
        self.events.write("dev_loss", adapters=finite_losses(losses, names))

    def _drop_worse(self, step: int) -> None:
        assert self.halving is not None
        assert self.dev is not None
        metric = self.halving.config.metric
        measure = self.dev.losses if metric == "dev_loss" else self.dev.error_rates
        running = self.halving.running(step)
        losses = measure(self.base, self.config, running, self._on_dev_clips(step))
        dropped = self.halving.decide(step, losses, self.ranks.is_first)
        names = [spec.name for spec in self.bank.specs]
        by_name = finite_losses(losses, names)
        self.events.write("rung", step=step, **{metric: by_name}, dropped=dropped)
        how = "dev loss" if metric == "dev_loss" else "CER on dev clips"
        self.say(f"before step {step + 1}: dropped {len(dropped)} of {len(losses)} by their {how}")

    def _on_dev_clips(self, step: int) -> Callable[[], None]:
        return lambda: self.watchdog.at(step, "measuring on dev clips")

    def _gradients(self, step: int, share: StepShare, active: list[int], stop: bool) -> Reduced:
        """Sums over this step's labels, of this rank and then of all."""
        losses = torch.zeros(len(self.bank.specs), device=self.ranks.device)
        labels = torch.zeros_like(losses)
        for vector in self.bank.vectors.values():
            vector.grad = None
        for batch in share.batches:
            token_losses = self.base.token_losses(batch)
            token_losses.sum().backward()
            self.base.after_backward()
            rows = batch.label_rows.to(losses.device)
            losses.index_add_(0, rows, token_losses.detach())
            labels.index_add_(0, rows, torch.ones_like(token_losses))
        self.watchdog.at(step, "the sum over all ranks")
        return reduce_step(self.bank, active, losses, labels, stop, counts_of(share))

    def _record(
        self,
        step: int,
        seconds: float,
        clips: int,
        active: list[int],
        reduced: Reduced,
        norms: torch.Tensor,
        rates: torch.Tensor,
    ) -> None:
        adapters = {
            self.bank.specs[row].name: {
                "loss": _number(reduced.losses[row]),
                "labels": int(reduced.labels[row]),
                "lr": float(rates[row]),
                "grad_norm": _number(norms[row]),
            }
            for row in active
        }
        _, audio, padded = reduced.counts
        self.events.write(
            "step",
            step=step,
            seconds=round(seconds, 4),
            clips=clips,
            audio_seconds=round(audio, 3),
            padding=round(1 - audio / padded, 4) if padded else 0.0,
            adapters=adapters,
        )
        if self.trackers is not None:
            self.trackers.step(step, adapters)

    def _not_exploded(self, active: list[int], reduced: Reduced) -> list[int]:
        """Rows whose loss in this step is one to learn from."""
        limit = self.config.training.max_loss or math.inf
        return [row for row in active if not reduced.losses[row].item() > limit]  # NaN: no labels

    def _count_skipped(
        self, step: int, active: list[int], moving: list[int], norms: torch.Tensor
    ) -> None:
        broken = [
            self.bank.specs[row].name
            for row in active
            if row not in moving or not math.isfinite(norms[row].item())
        ]
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if broken else 0
        if not broken:
            return
        self.events.write("skipped", step=step, adapters=broken, keys=self.batches.keys(step))
        if self.skipped_in_a_row > self.config.training.max_skipped:
            raise UserError(
                f"adapter {broken[0]}: no finite gradient, or a loss above training.max_loss, in "
                f"{self.skipped_in_a_row} steps in a row, "
                f"up to step {step} (clips {', '.join(self.batches.keys(step)[:4])} …): lower its "
                "learning rate, or look at these clips"
            )

    def _report_placement(self, measured: dict[str, Any]) -> None:
        self.events.write(
            "placement", **measured, why=self.placed.why, planned_bytes=self.placed.row.base_bytes
        )
        share = measured["resident_bytes_between_steps"] / measured["base_bytes"]
        self.say(
            f"placement {measured['kind']} as measured: {measured['world_size']} ranks, "
            f"{measured['group_size']} share a copy; a rank holds "
            f"{measured['resident_bytes_between_steps'] / 1e6:.1f} MB of the base's "
            f"{measured['base_bytes'] / 1e6:.1f} between steps ({share:.0%}), "
            f"{measured['peak_bytes'] / 1e6:.1f} at the peak; a step gathers "
            f"{measured['gathered_bytes_per_step'] / 1e6:.1f} MB and reduces "
            f"{measured['reduced_bytes_per_step'] / 1e3:.1f} kB, "
            f"{measured['bytes_between_nodes_per_step'] / 1e6:.3f} MB of it between nodes"
        )

    def _progress(
        self, step: int, seconds: float, clips: int, active: list[int], reduced: Reduced
    ) -> None:
        def text() -> str:
            left = (len(self.batches) - step - 1) * seconds
            losses = "  ".join(f"{self.bank.specs[r].name} {reduced.losses[r]:.3f}" for r in active[:8])
            return (
                f"loss {losses}  {clips / seconds:.1f} clips/s  {left // 60:.0f}:{left % 60:02.0f} left"
            )

        self.say.progress(step + 1, len(self.batches), text)

    def _save(self, step: int) -> None:
        # Every rank holds the same vectors and moments: the first writes them, nobody waits.
        if self.ranks.is_first:
            assert self.lock is not None
            self.lock.check()
            training = self.config.training
            captured = states.capture(self.optimizer, step)
            folder = self.config.run / "state"
            size = states.save(folder, captured, self.identity, training.keep)
            self.events.write("checkpoint", step=step, bytes=size)


def _number(value: torch.Tensor) -> float | None:
    """As JSON has it: no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None
