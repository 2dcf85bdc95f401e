"""The training loop, for every method, placement and number of ranks.

    RUN/
    ├── config.yaml                     the whole config of the run
    ├── events.jsonl                    what happened
    ├── state/…/step-….safetensors      checkpoints
    ├── lock.json, ranks/               while it runs: the owner of the folder, the phase of each rank
    └── adapters/NAME/                  one folder per adapter, at the end of its job

In each step, the base computes this rank's share of every adapter's batch. One all-reduce sums
gradients, losses and label counts. Each adapter is then stepped as if it were alone. Steering vectors
of all adapters are one job. Methods that train the base's own weights run one job per adapter.

What `train` does, and where. M is the method's file, such as methods/steering.py:

    Session.start     run/session.py    joins the ranks, locks the folder, chooses the placement
    method.load       methods/base.py   loads the base: session.load_base, placement/loading.py
    opened            opening.py        per job:
      trainable         M                 the vectors, in a steering/bank.py
      make_batches      from_config.py    the clips of each step
      agree, begin      run/session.py    all ranks have the same settings; writing begins
      FrozenBase        placement/        the base in its placement
      before_steps      M                 learning rates, from the size of the activations
    run               this file         per step: forward_backward (job.py), all-reduce (optimizer.py,
                                        by reduce.py), checks (guard.py), Adam (optimizer.py), events
                                        (record.py), checkpoint (job.py)
    job.finish        job.py            M saves each adapter: saved_adapters.py, steering/vectors.py
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from salsa_dist.config import Config
from salsa_dist.errors import UserError
from salsa_dist.methods.registry import method_of
from salsa_dist.placement.measured import measured_facts, watched
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.session import Session
from salsa_dist.training.bad_sample_limit import BadSamples
from salsa_dist.training.guard import Guard
from salsa_dist.training.job import Job
from salsa_dist.training.longest_pass import shows_at_once
from salsa_dist.training.opening import opened
from salsa_dist.training.pass_limit import kept_limit
from salsa_dist.training.record import record_placement, record_step
from salsa_dist.training.saved_adapters import refuse_averaged
from salsa_dist.training.speed import Speed
from salsa_dist.training.step_counts import StepCounts

# The placement is measured on this step after a start: DeepSpeed records the order of modules in the
# first, and prefetches by it from the second on.
_MEASURED_STEP = 2


@dataclass(frozen=True)
class Trained:
    """The result of `train`: the last step, the adapters' folders, and the signal that stopped it."""

    step: int
    adapters: list[Path]
    stopped_by: int | None = None

    @property
    def finished(self) -> bool:
        """Whether every step was done."""
        return self.stopped_by is None


def train(config: Config) -> Trained:
    """Train every adapter of `config`, or resume from the newest checkpoint in its run folder.

    On SIGTERM, SIGINT or SIGUSR2 all ranks stop after the same step and the state is saved.

    >>> from salsa_dist import load_config
    >>> trained = train(load_config("config.yaml", ["training.steps=2"]))
    >>> trained.finished
    True
    """
    if not config.method.trains:
        raise UserError(
            f"method {config.method.kind} trains nothing: `salsa-dist evaluate` is all it needs"
        )
    if config.method.learns and config.base.dtype == "float16":
        raise UserError(
            "base.dtype float16 has no loss scaling here, so small gradients would become zero: train "
            "in bfloat16 or float32; the adapters can be decoded in float16"
        )
    refuse_averaged(config.run, [adapter.name for adapter in config.adapters])
    method = method_of(config)
    done = [a.name for row, a in enumerate(config.adapters) if method.done(row)]
    facts = {
        "trained before": " ".join(done),
        "clips per pass": kept_limit(RunFolder(config.run)),
    }
    with Session.start(config, training=True, facts=facts) as session:
        speech_llm, step, before = None, 0, 0
        settings = session.config.adapter_settings()
        for rows in method.together():
            steps = max(settings[row].steps for row in rows)
            if all(settings[row].name in done for row in rows):
                before += steps
                continue
            speech_llm = speech_llm or method.load(session)
            with opened(session, method, rows, speech_llm, before) as job:
                step = run(job)
                if step < len(job):
                    session.say(
                        f"stopped at step {step} of {len(job)}; the same command resumes from there"
                    )
                    session.end(step)
                    return Trained(step, [], session.stopped_by)
                job.finish()
            before += steps
        if session.begun:  # by the first job; if all adapters were trained before, there is no job
            session.events.write("end", step=step)
        folder = RunFolder(config.run)
        session.say(f"trained: {len(settings)} adapters in {folder.adapters}")
        session.end(step)
        return Trained(step, [folder.adapter(adapter.name) for adapter in settings])


def run(job: Job) -> int:
    """Do the remaining steps of `job`, up to a signal. Returns the number of finished steps."""
    session, config = job.session, job.config
    session.watch_signals()
    if shows_at_once(session.ranks.device):
        job.try_longest()
    guard, speed = Guard(job), Speed(job)
    bad = BadSamples(config.data.max_bad, session.events, session.say)
    measured = min(job.first + _MEASURED_STEP, len(job) - 1)
    step, saved = job.first - 1, time.monotonic()
    started = time.monotonic()
    for step, share in job.steps():
        session.at(step, "forward and backward")
        active = job.active(step)
        with watched(job.base) if step == measured else nullcontext() as traffic:
            losses, labels = job.forward_backward(step, share)
            session.at(step, "the sum over all ranks")
            counted = StepCounts.of(share, job.waited_s).numbers()
            reduced = job.trainable.reduce(active, losses, labels, session.stop_asked, counted)
        counts = StepCounts.from_numbers(reduced.counts)
        guard.alike(step, reduced)
        bad.after_step(step, share, counts.bad)
        if traffic is not None:
            record_placement(session, measured_facts(job.base, traffic, reduced.bytes))
        moving = guard.sound(active, reduced)
        norms, rates = job.trainable.step(reduced.gradients, moving)
        if job.average is not None:
            job.average.after_step(step, active)
        now = time.monotonic()
        record_step(job, step, now - started, active, reduced, counts, norms, rates, speed)
        guard.after_step(step, active, moving, norms)
        last = reduced.stop or step + 1 == len(job)
        if last or now - saved >= config.training.save_every_s:
            session.at(step, "saving the state")
            job.save(step + 1)
            saved = now
        if reduced.stop:
            break
        started = time.monotonic()
    return step + 1
