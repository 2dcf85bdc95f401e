"""Opens a job: its bank or weights, the newest checkpoint, and the placed base.

refuse ─► bank or weights, clips of each step, newest state ─► begin: config.yaml, events.jsonl
       ─► base in its placement, learning rates, prefix cache ─► Job
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from salsa_dist.config import Config
from salsa_dist.config.fingerprint import digest
from salsa_dist.config.release_0_1 import digest_of_release_0_1
from salsa_dist.data.reading import Bad
from salsa_dist.errors import UserError
from salsa_dist.methods.base import Method, Trainable
from salsa_dist.metrics.error_rates import misnamed
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.measured import as_loaded
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.session import Session
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.speech_llms.thin_silence import ThinsPadding
from salsa_dist.training import state as states
from salsa_dist.training.average import Average
from salsa_dist.training.bad_sample_limit import NAMED
from salsa_dist.training.batches import StepBatches
from salsa_dist.training.best import Best
from salsa_dist.training.copies import CopiesAhead
from salsa_dist.training.dev_loss import DevClips
from salsa_dist.training.from_config import make_batches
from salsa_dist.training.halving import Halving
from salsa_dist.training.job import Job
from salsa_dist.training.pass_limit import kept_limit
from salsa_dist.training.prefix_pass import keep_prefix
from salsa_dist.training.silence_stride import SilenceStrides


@contextmanager
def opened(
    session: Session, method: Method, rows: list[int], speech_llm: SpeechLLM, before: int
) -> Iterator[Job]:
    """The job of the adapters of `rows`, resumed from its newest checkpoint. Every rank calls this.

    All checks come first. Then `session.begin` writes for the first time; from then on the loop may use
    `session.events`.

    Args:
        before: number of steps of the run's earlier jobs; curves continue from there.

    Raises:
        UserError: the config, the shards or the base cannot be used; nothing was written.
    """
    ranks, index, whole = session.ranks, session.index, session.config
    config = whole.model_copy(update={"adapters": [whole.adapters[row] for row in rows]})
    _refuse_metrics(config)
    names = [adapter.name for adapter in config.adapters]
    state = RunFolder(config.run).state
    if not config.method.steers:
        state /= names[0]
    identity = states.RunIdentity(
        adapters=names,
        revision=speech_llm.revision,
        shards=index.hash,
        config=digest(config, "vectors"),
        config_0_1=digest_of_release_0_1(config),
    )
    with ExitStack() as stack:
        trainable = stack.enter_context(method.trainable(config, speech_llm, ranks.device))
        batches = found = None
        if config.method.learns:
            session.at(None, "planning the steps", reads=True)
            batches = make_batches(config, index, speech_llm, ranks)
            if (limit := kept_limit(RunFolder(config.run))) is not None:
                batches.limit_pass(limit)
            found = states.newest(state, identity)
        first = found.step if found else 0
        session.agree(speech_llm, trainable.bank, first)
        method.compute(session, speech_llm, trainable)
        dev = best = average = halving = strides = None
        left_out: list[Bad] = []
        if config.training.dev_clips:
            dev = DevClips(
                index, config.adapter_settings(), config.training.dev_clips, speech_llm.window_s
            )
            trying = partial(session.at, None, "trying the dev clips", reads=True)
            left_out = dev.leave_out_bad(speech_llm.family, ranks, trying)
        if config.training.dev_every is not None and batches is not None:
            best = _best(config, trainable)
        if config.training.average is not None and batches is not None:
            average = Average(trainable, config.training.average, _ends(config))
        family = speech_llm.family
        if (ends_s := config.training.silence_ends_s) is not None:
            if not isinstance(family, ThinsPadding):
                raise UserError(
                    f"training.silence_ends_s is {ends_s:g}, and base {config.base.name} has no "
                    "trailing padding that can be thinned, which Whisper has: remove it"
                )
            family.silence_ends_s = ends_s
        if batches is not None and config.thinning == "auto" and isinstance(family, ThinsPadding):
            strides = SilenceStrides(family, config.adapter_settings())
            if found:
                states.restore(strides, found)
        kept = config.training.prefix_cache != "off"
        stride = config.thinning if strides is None else max(strides.by_row)
        if kept and not speech_llm.has_encoder_sites:
            raise UserError(
                f"training.prefix_cache stores the output of the encoder's unsteered layers, and base "
                f"{config.base.name} has no encoder sites: set it to off"
            )
        if kept and batches is not None and stride not in (1, "auto"):
            raise UserError(
                "training.prefix_cache stores whole windows, and this run began with "
                f"training.silence_stride {stride}: set training.prefix_cache to off"
            )
        session.begin(speech_llm, first)
        if found:
            # One file has the tensors of all; each part copies its own, by name.
            states.restore(trainable, found)
            for part in (best, average):
                if part is not None:
                    states.restore(part, found)
            session.say(f"resuming after step {first} of {len(batches or ())}")
        if batches is not None:
            _tell_clips(session, names, batches, first)
        if dev is not None:
            _tell_dev_clips(session, dev, left_out)
        session.at(None, "placing the base", reads=True)
        base = stack.enter_context(
            FrozenBase(
                *(speech_llm, trainable.bank, ranks, session.placed.placement),
                *(config.training.activation_checkpointing, session.say, config.training.compile),
            )
        )
        session.say(as_loaded(base))
        if batches is not None and not found:
            moved = partial(session.at, None, "measuring activations for the learning rates")
            method.before_steps(speech_llm, base, batches, trainable, moved)
        if batches is not None and strides is not None:
            if not found and not kept:
                moved = partial(session.at, None, "measuring gradients with thinned padding")
                cosines = strides.measure(base, batches, moved)
                trainable.zero_grad()
                told = dict(zip(names, strides.by_row, strict=True))
                session.events.write("silence_stride", adapters=told, cosines=cosines)
                session.say(f"training.silence_stride auto takes {_few(told)}")
            strides.apply(batches, dev)
        if config.method.steers and batches is not None and config.training.halving is not None:
            halving = Halving(config.training.halving, config.adapter_settings(), config.run, first)
        made = Job(
            session=session,
            method=method,
            config=config,
            names=names,
            speech_llm=speech_llm,
            trainable=trainable,
            base=base,
            batches=batches,
            identity=identity,
            state=state,
            first=first,
            before=before,
            dev=dev,
            halving=halving,
            best=best,
            average=average,
            strides=strides,
            copies=CopiesAhead(ranks.device, base.dtype),
        )
        if config.method.steers and kept and (first < len(made) or made.to_measure()):
            _keep_prefix(made)
        yield made


def _few(told: dict[str, int]) -> str:
    """One number where all adapters have the same, else each adapter's."""
    if len(set(told.values())) == 1:
        return str(next(iter(told.values())))
    return ", ".join(f"{n} for {name}" for name, n in list(told.items())[:8]) + ", …" * (len(told) > 8)


def _refuse_metrics(config: Config) -> None:
    """Refuse error rates that the languages of the adapters do not have."""
    if config.training.halving is not None:
        _check_rate(config, "training.halving.metric", config.training.halving.metric)
    _check_rate(config, "training.dev_metric", config.training.dev_metric)


def _check_rate(config: Config, key: str, metric: str) -> None:
    for language in (x for adapter in config.adapter_settings() for x in adapter.languages):
        if why := misnamed(metric, language):
            raise UserError(f"{key} is {metric}, and {why}")


def _best(config: Config, trainable: Trainable) -> Best:
    steps = [adapter.steps for adapter in config.adapter_settings()]
    return Best(trainable, steps, [_every(config, own) for own in steps], config.training.patience)


def _every(config: Config, steps: int) -> int:
    """Steps between two measurements of an adapter of `steps`."""
    every = config.training.dev_every or steps
    return every if isinstance(every, int) else max(1, round(every * steps))


def _ends(config: Config) -> list[list[int]]:
    """Steps of each adapter after which it is measured or ends."""
    halving = config.training.halving
    return [
        [*range(0, a.steps, _every(config, a.steps)), a.steps, *(halving.rungs if halving else [])]
        for a in config.adapter_settings()
    ]


def _tell_clips(session: Session, names: list[str], batches: StepBatches, first: int) -> None:
    """Write the `data` event of each adapter, and say so if some ranks have no clips."""
    for name, clips in zip(names, batches.adapters, strict=True):
        session.events.write(
            "data",
            adapter=name,
            clips=clips.plan.clips,
            minutes=round(clips.plan.seconds / 60, 3),
            left_out=clips.plan.left_out,
            languages={code: round(share, 6) for code, share in clips.plan.shares.items()},
        )
    if idle := batches.idle(first):
        world = session.ranks.world_size
        session.say(
            f"step {first + 1} has clips for {world - idle} of {world} ranks, the others wait: more "
            "clips per step cost no more time"
        )


def _tell_dev_clips(session: Session, dev: DevClips, left_out: list[Bad]) -> None:
    """Write the `dev_clips` event, and say which clips are left out."""
    session.events.write(
        "dev_clips",
        clips={language: len(clips) for language, clips in dev.clips.items()},
        left_out=[{"kind": b.kind, "shard": b.shard, "key": b.key, "why": b.why} for b in left_out],
    )
    if left_out:
        more = "; the others are in events.jsonl" if len(left_out) > NAMED else ""
        session.say(
            f"dev clips that can't be used are left out, {len(left_out)} in all: "
            + "; ".join(bad.why for bad in left_out[:NAMED])
            + more
        )


def _keep_prefix(job: Job) -> None:
    """Fill the prefix cache with all clips that this rank will sample."""
    assert job.batches is not None
    own = ((sample.shard, sample.entry) for sample in job.batches.samples_from(job.first))
    clips = [*own, *(job.dev.all_clips() if job.dev else ())]
    kept = keep_prefix(
        *(job.config, job.base, job.identity.revision, job.identity.shards, clips),
        lambda: job.session.at(None, "keeping what lies below the first steered layer"),
    )
    job.batches.use_kept_prefix(kept.known)
    if job.dev:
        job.dev.use_kept_prefix(kept.known)
    job.session.events.write("prefix", site=job.base.shared.first, clips=len(kept.known))
