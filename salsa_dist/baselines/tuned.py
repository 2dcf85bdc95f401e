"""Training LoRA or biases on the very clips, steps and schedule that an adapter of vectors would get.

    RUN/
    ├── config.yaml, events.jsonl           as any run
    └── adapters/NAME/tuned.safetensors     one adapter after another, each on a fresh base

It is the baseline's loop: a base is loaded anew for each adapter, whole on each rank, and an adapter
is kept only when it is done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from salsa_dist.baselines import tuned_file
from salsa_dist.baselines.tunable import install
from salsa_dist.config import AdapterSettings, BiasMethod, Config, LoraMethod, PlacementConfig
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.loading import load_base
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.run.agreement import agree, base_facts, settings_facts
from salsa_dist.run.console import Console
from salsa_dist.run.events import Events
from salsa_dist.run.lock import held_for_all
from salsa_dist.run.start import open_run, write_start
from salsa_dist.run.watchdog import Watchdog
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.adapter_folder import known_as
from salsa_dist.steering.bank import Bank
from salsa_dist.steering.sites import find_layers, layer_counts, select, site_modules
from salsa_dist.training.bad_samples import BadSamples, counts_of
from salsa_dist.training.batches import StepBatches, loader
from salsa_dist.training.dev_loss import DevClips, finite_losses
from salsa_dist.training.from_config import make_batches, schedule_of
from salsa_dist.training.optimizer import BETAS, EPS


def tune(config: Config) -> list[Path]:
    """Train every adapter of a config whose method is `lora` or `bias`; those done are left alone."""
    hang_after_s = config.training.hang_after_s
    with join(hang_after_s) as ranks, ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config.run, ranks.rank, ranks.world_size, hang_after_s))
        index = ShardIndex.load(config.data.shards)
        there = [a.name for a in config.adapters if (config.run / "adapters" / a.name).is_dir()]
        watchdog.at(None, "comparing settings")
        agree(ranks, {**settings_facts(config, index.hash), "trained before": " ".join(there)})
        if config.placement.kind not in ("replicate", "auto"):
            raise UserError(
                f"method {config.method.kind} trains weights of the base, which a sharded placement "
                "keeps frozen: set placement.kind to replicate"
            )
        stack.enter_context(held_for_all(config.run, ranks))
        say = Console(ranks.is_first)
        events: Events | None = None
        folders = []
        whole = PlacementConfig(kind="replicate")
        for adapter, settings in zip(config.adapters, config.adapter_settings(), strict=True):
            folder = config.run / "adapters" / adapter.name
            folders.append(folder)
            if adapter.name in there:
                continue
            own = config.model_copy(update={"adapters": [adapter]})
            watchdog.at(None, "loading the base", reads=True)
            stride = config.training.silence_stride
            speech_llm = load_base(config.base_in_training(), ranks, whole, say, stride)
            weights = installed(own, speech_llm, settings)
            batches = make_batches(own, index, speech_llm, ranks)
            watchdog.at(None, "comparing what was loaded")
            agree(ranks, base_facts(speech_llm, Bank([], {}, ranks.device), ranks, whole))
            if events is None:
                # Only now, when nothing that the user gave is refused, is anything written.
                events = Events(open_run(config, ranks), ranks.is_first)
                write_start(events, ranks, speech_llm, 0)
            dev = None
            if config.training.dev_clips:
                dev = DevClips(index, [settings], config.training.dev_clips, speech_llm.window_s)
            _train(own, settings, speech_llm, weights, batches, dev, ranks, events, say, watchdog)
            watchdog.at(settings.steps, f"saving {adapter.name}")
            if ranks.is_first:
                tuned_file.save(folder, weights, _facts(config, settings, speech_llm, weights, index))
            dist.barrier()
        if events is not None:
            events.write("end", step=max(a.steps for a in config.adapter_settings()))
            events.close()
        say(f"trained: {len(folders)} adapters in {config.run / 'adapters'}")
        return folders


def installed(
    config: Config, speech_llm: SpeechLLM, settings: AdapterSettings
) -> dict[str, nn.Parameter]:
    """The trainable weights of one adapter, in a freshly loaded base."""
    if not isinstance(config.method, LoraMethod | BiasMethod):
        raise ValueError(f"method {config.method.kind} trains no weights of the base")
    found = find_layers(speech_llm.model, speech_llm.layers)
    chosen = select(settings.sites, layer_counts(found))
    modules = site_modules(speech_llm.model, speech_llm.layers)
    layers = {site: modules[site] for site in chosen}
    return install(config.method, speech_llm.model, layers, settings.seed)


def _train(
    config: Config,
    settings: AdapterSettings,
    speech_llm: SpeechLLM,
    weights: Mapping[str, nn.Parameter],
    batches: StepBatches,
    dev: DevClips | None,
    ranks: Ranks,
    events: Events,
    say: Console,
    watchdog: Watchdog,
) -> None:
    training = config.training
    base = FrozenBase(speech_llm, Bank([], {}, ranks.device), ranks, PlacementConfig(kind="replicate"))
    parameters = list(weights.values())
    schedule = schedule_of(settings, training)
    adam = torch.optim.Adam(parameters, betas=BETAS, eps=EPS)
    trained = sum(p.numel() for p in parameters)
    say(f"{settings.name}: method {config.method.kind}, {trained:,} trained numbers")
    said = 0.0
    bad = BadSamples(config.data.max_bad, events, say)
    for step, share in enumerate(loader(batches, 0, config.data.workers)):
        watchdog.at(step, f"training {settings.name}")
        started = time.monotonic()
        adam.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=ranks.device)
        for batch in share.batches:
            losses = base.token_losses(batch)
            losses.sum().backward()
            sums += torch.stack([losses.detach().sum(), sums.new_tensor(float(len(losses)))])
        loss, labels, (unusable, *_) = _reduce(parameters, sums, counts_of(share))
        bad.after_step(step, share, unusable)
        norm = nn.utils.clip_grad_norm_(parameters, training.clip_norm or float("inf"))
        adam.param_groups[0]["lr"] = schedule(step)
        if torch.isfinite(norm) and labels:
            adam.step()
        seconds = time.monotonic() - started
        events.write(
            "step",
            step=step,
            seconds=round(seconds, 4),
            clips=batches.clips(step),
            adapters={settings.name: {"loss": loss, "labels": labels, "lr": schedule(step)}},
        )
        if time.monotonic() - said >= 5 or step + 1 == len(batches):
            said = time.monotonic()
            say(f"{settings.name}: step {step + 1}/{len(batches)}  loss {loss:.3f}  {seconds:.2f} s")
    if dev is not None:
        losses_on_dev = dev.losses(
            base, config, [0], lambda: watchdog.at(settings.steps, "measuring on dev clips")
        )
        events.write("dev_loss", adapters=finite_losses(losses_on_dev, [settings.name]))
    base.close()


def _reduce(
    parameters: list[nn.Parameter], sums: Tensor, counts: Sequence[float]
) -> tuple[float, int, list[float]]:
    """Sum gradients, loss, label count and other counts over all ranks; make the gradients means over
    labels."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    buffer = torch.cat([*(g.flatten() for g in gradients), sums, sums.new_tensor(counts)])
    dist.all_reduce(buffer)
    *parts, total, others = buffer.split([*(g.numel() for g in gradients), 2, len(counts)])
    labels = total[1].clamp_min(1)
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter) / labels
    return float(total[0] / labels), int(total[1]), others.tolist()


def _facts(
    config: Config,
    settings: AdapterSettings,
    speech_llm: SpeechLLM,
    weights: Mapping[str, nn.Parameter],
    index: ShardIndex,
) -> dict[str, object]:
    return {
        "name": settings.name,
        "language": settings.language,
        "method": config.method.model_dump(),
        "sites": settings.sites,
        "trained_numbers": sum(p.numel() for p in weights.values()),
        "base": known_as(speech_llm.name),
        "revision": speech_llm.revision,
        "shards": index.hash,
        "training": {
            "steps": settings.steps,
            "lr": settings.lr,
            "seed": settings.seed,
            "window_s": speech_llm.window_s,
        },
    }
