"""One training or evaluation in a run's folder, from its first check to its last barrier.

    with Session.start(config, training=True) as session:
        refuse    the folder is writable, trackers are installed, all ranks have the same settings,
                  preflight passes, a placement fits
        lock      RUN/lock.json: no other job uses the folder
        load      session.load_base(…)                  again for each window of an evaluation
        agree     session.agree(…)                      all ranks would run the same modules
        write     session.begin(…)                      config.yaml, events.jsonl: not before this
        …         session.at(step, phase)               tells the watchdog this rank's phase
        …         session.moved()                       it goes on within the phase
        session.end()

Training with any method and evaluation use it. Nothing in the folder changes before `begin`. So a
refused job leaves no trace, and all files of earlier jobs stay.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch.distributed as dist

from salsa_dist.config import BaseConfig, Config
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.shard_cache import cache_of
from salsa_dist.placement import freed_memory
from salsa_dist.placement.choose import Placed, choose
from salsa_dist.placement.device_events import in_thread, reached
from salsa_dist.placement.loading import load_base
from salsa_dist.placement.node_disk import once_a_node
from salsa_dist.placement.ranks import Ranks, from_first, join
from salsa_dist.places import Remote
from salsa_dist.planner.links import slower_than_planned
from salsa_dist.run.agreement import agree, base_facts, settings_facts
from salsa_dist.run.console import Console
from salsa_dist.run.events import Events
from salsa_dist.run.failing import failure_first
from salsa_dist.run.kernels import settle_kernels
from salsa_dist.run.lock import RunLock, held_for_all
from salsa_dist.run.memory import IN_EVALUATION, IN_TRAINING, full_memory_in_one_line
from salsa_dist.run.preflight import Preflight, preflight
from salsa_dist.run.settled import in_steps, settled, settled_as, with_training
from salsa_dist.run.start import open_run, refuse_unwritable, write_start
from salsa_dist.run.stop_signals import StopSignals
from salsa_dist.run.trackers import Trackers, refuse_missing
from salsa_dist.run.watchdog import Watchdog
from salsa_dist.speech_llms.family import stand_ins
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.bank import Bank


class Session:
    """The resources of a running job; `start` makes it.

    Attributes:
        config: the run's config, with values in place of `auto`.
        ranks: this process's rank, and the world.
        index: the index of the run's shards.
        placed: the chosen placement.
        say: prints a line on rank 0.
        events: writes `events.jsonl`; exists after `begin`.
    """

    config: Config
    ranks: Ranks
    index: ShardIndex
    placed: Placed
    say: Console
    events: Events

    def __init__(self, config: Config, ranks: Ranks, stack: ExitStack) -> None:
        self.config = config
        self.ranks = ranks
        self._stack = stack
        self.say = Console(ranks.is_first)
        self._lock: RunLock | None = None
        self._checked: Preflight | None = None
        self._signals: StopSignals | None = None
        self._trackers: Trackers | None = None
        self._stand_ins: dict[str, str] = {}
        self._phase = ""
        self._watchdog = stack.enter_context(
            Watchdog(
                *(config.run, ranks.rank, ranks.world_size, config.training.hang_after_s),
                lambda: reached(ranks.device),
                lambda: in_thread(ranks.device),
            )
        )
        stack.callback(self.say.close)
        self.index = ShardIndex.load(config.data.shards)

    @classmethod
    @contextmanager
    def start(
        cls, config: Config, *, training: bool, facts: Mapping[str, Any] | None = None
    ) -> Iterator[Session]:
        """Do all checks that need no base, then lock the run's folder.

        Args:
            config: the run's config.
            training: True for training; False for evaluation, which has its own placement.
            facts: further values that must be equal on all ranks, by name for the error message.

        Raises:
            UserError: a check failed; on all ranks, and nothing was written.
        """
        settle_kernels(config.training.deterministic)
        with (
            join(config.training.hang_after_s, config.device) as ranks,
            ExitStack() as stack,
            failure_first(ranks),
        ):
            refuse_unwritable(config.run)
            if training:
                refuse_missing(config.trackers)
            # Only rank 0 reads the folder and asks the hub.
            first = from_first(ranks, lambda: settled(config, ranks.device.type))
            session = cls(settled_as(first, config), ranks, stack)
            if training:
                session._count_epochs()
            if config.base.dtype == "auto" and first.base.dtype != "float32":
                session.say(f"base.dtype auto takes {first.base.dtype}")
            for key in ("lr_scale", "silence_stride"):
                kept = getattr(session.config.training, key)
                if getattr(config.training, key) != kept:
                    session.say(f"training.{key} stays {kept}, as at the first start of the run")
            session._refuse(training, facts or {})
            session.at(None, "taking the run's lock")
            session._lock = stack.enter_context(held_for_all(config.run, ranks))
            with full_memory_in_one_line(
                lambda: f"{session._phase}, rank {ranks.rank}",
                IN_TRAINING if training else IN_EVALUATION,
            ):
                yield session

    def _count_epochs(self) -> None:
        if (epochs := self.config.training.epochs) is None:
            return
        self.config = in_steps(self.config, self.index)
        made = ", ".join(f"{a.name} {a.steps}" for a in self.config.adapters[:8])
        more = ", …" if len(self.config.adapters) > 8 else ""
        self.say(f"steps of {epochs:g} epochs: {made}{more}")

    def _refuse(self, training: bool, facts: Mapping[str, Any]) -> None:
        shards = self.config.data.shards
        if isinstance(shards, Remote):
            folder = cache_of(shards.cache).usable_folder
            once_a_node(self.ranks, "the cache of shards", lambda told: folder(), self.say)
        self.at(None, "comparing settings")
        agree(self.ranks, {**settings_facts(self.config, self.index.hash), **facts})
        self.at(None, "checking the machines")
        if self.ranks.world_size > 1:
            self._checked = preflight(self.config.run, self.ranks, self._watchdog.whereabouts)
            for line in self._checked.lines():
                self.say(line)
        self.at(None, "choosing a placement", reads=True)
        self.placed = choose(self.config, self.ranks, training=training, index=self.index)
        if training and self.config.training.micro_batch == "auto":
            self.config = with_training(self.config, micro_batch=self.placed.micro_batch)
            self.say(f"training.micro_batch auto takes {self.placed.micro_batch}")
        slow = []
        if self._checked:
            links = (self._checked.slowest_link(between) for between in (False, True))
            slow = slower_than_planned(self.placed.row, *links)
        for line in [*self.placed.lines, *slow]:
            self.say(line)

    def at(self, step: int | None, phase: str, *, reads: bool = False) -> None:
        """Tell the watchdog that this rank is in `phase` of `step`; see `Watchdog.at`."""
        self._phase = phase
        self._watchdog.at(step, phase, reads=reads)

    def moved(self) -> None:
        """Tell the watchdog that this rank goes on within its phase; see `Watchdog.moved`."""
        self._watchdog.moved()

    def load_base(self, base: BaseConfig, silence_stride: int | Literal["auto"] = 1) -> SpeechLLM:
        """Load the base, as its placement needs it."""
        self.at(None, "loading the base", reads=True)
        freed_memory.collect()
        loaded = load_base(base, self.ranks, self.placed.placement, self.say, silence_stride)
        # Each pass in any phase, and each token that is decoded.
        loaded.model.register_forward_hook(lambda *_: self.moved())
        told, self._stand_ins = self._stand_ins, stand_ins(loaded.family, self._languages)
        if self._stand_ins != told:
            for line in self._stand_ins.values():
                self.say(line)
        return loaded

    @property
    def _languages(self) -> list[str]:
        return sorted({code for adapter in self.config.adapters for code in adapter.languages})

    def agree(self, speech_llm: SpeechLLM, bank: Bank, first: int = 0) -> None:
        """Stop all ranks, with one line, if one would run other modules or start at another step."""
        self.at(None, "comparing what was loaded")
        agree(self.ranks, base_facts(speech_llm, bank, self.ranks, self.placed.placement, first))

    @property
    def begun(self) -> bool:
        """Whether `begin` was called, so that there are `events`."""
        return hasattr(self, "events")

    def begin(self, speech_llm: SpeechLLM, first: int = 0) -> None:
        """Write for the first time: config.yaml, and the `start` event with step `first`."""
        if self.begun:
            return
        self.events = Events(open_run(self.config, self.ranks), self.ranks.is_first)
        self._stack.callback(self.events.close)
        write_start(self.events, self.ranks, speech_llm, first)
        for language, said in self._stand_ins.items():
            self.events.write("stand_in", language=language, said=said)
        if self._checked:
            self.events.write("preflight", **self._checked.event())

    def watch_signals(self) -> None:
        """From now on, a stop signal sets `stop_asked`; all ranks then stop after the same step."""
        if self._signals is None:
            self._signals = self._stack.enter_context(StopSignals())

    @property
    def stop_asked(self) -> bool:
        """Whether this rank received a stop signal."""
        return self._signals is not None and bool(self._signals.received)

    @property
    def stopped_by(self) -> int:
        """The number of the stop signal; SIGTERM's on a rank that only followed another."""
        received = self._signals.received if self._signals is not None else []
        return received[0] if received else signal.SIGTERM

    def track(self, step: int, adapters: Mapping[str, Mapping[str, float | None]]) -> None:
        """Log one step's numbers to the run's trackers; see `Trackers.step`."""
        if not self.ranks.is_first:
            return
        if self._trackers is None:
            settings = self.config.model_dump(mode="json")
            self._trackers = Trackers(self.config.trackers, self.config.run, settings, step)
            self._stack.callback(self._trackers.close)
        self._trackers.step(step, adapters)

    def check_lock(self) -> None:
        """Check on rank 0 that the folder is still locked by this job, before a state is written.

        Raises:
            UserError: another job has taken over the lock.
        """
        assert self._lock is not None
        self._lock.check()

    def end(self, step: int | None) -> None:
        """Wait for all ranks; then pass a received stop signal on to the launcher."""
        self.at(step and step - 1, "waiting for the other ranks to end")
        dist.barrier()
        self.say.close()
        if self._signals is not None:
            self._signals.hand_over()
