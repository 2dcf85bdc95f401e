"""Steering without training: the mean activation of well understood speech less that of one's own.

    v = scale * (mean activation over the contrast language - mean over the adapter's language)

It is the contrastive way that SALSA turns from; for accents: arXiv 2603.05813. The means are over all
positions of the first training clips of each language, at each of the adapter's sites, with the
reference as the LLM's text. The result is an adapter like any other, of rule `add`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from salsa_dist.config import Config, MeanDifferenceMethod, PlacementConfig
from salsa_dist.data.clip import Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import first_clips
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.loading import load_base, silent
from salsa_dist.placement.ranks import join
from salsa_dist.run.agreement import agree, base_facts, settings_facts
from salsa_dist.run.events import Events
from salsa_dist.run.lock import held_for_all
from salsa_dist.run.start import open_run, write_start
from salsa_dist.run.watchdog import Watchdog
from salsa_dist.speech_llms.activations import listen
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers, layer_counts, select
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.dev_loss import DevClips, finite_losses
from salsa_dist.training.saved_adapters import save_adapters


def make_vectors(config: Config) -> list[Path]:
    """Compute and save the vectors of every adapter of a config whose method is `mean-difference`."""
    method = config.method
    if not isinstance(method, MeanDifferenceMethod):
        raise ValueError(f"method {method.kind} takes no mean differences")
    hang_after_s = config.training.hang_after_s
    with join(hang_after_s) as ranks, ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config.run, ranks.rank, ranks.world_size, hang_after_s))
        index = ShardIndex.load(config.data.shards)
        watchdog.at(None, "comparing settings")
        agree(ranks, settings_facts(config, index.hash))
        stack.enter_context(held_for_all(config.run, ranks))
        whole = PlacementConfig(kind="replicate")
        watchdog.at(None, "loading the base", reads=True)
        speech_llm = load_base(config.base, ranks, whole, silent)
        layers = find_layers(speech_llm.model, speech_llm.layers)
        counts = layer_counts(layers)
        specs = [
            AdapterSpec(a.name, tuple(select(a.sites, counts)), "add")
            for a in config.adapter_settings()
        ]
        bank = Bank(specs, site_widths(layers), ranks.device)
        watchdog.at(None, "comparing what was loaded")
        agree(ranks, base_facts(speech_llm, bank, ranks, whole))
        languages = dict.fromkeys([method.contrast, *(a.language for a in config.adapter_settings())])
        means = {}
        for number, language in enumerate(languages):
            watchdog.at(number, f"mean activations of {language}")
            clips = first_clips(config.data.shards, index, language, method.clips, speech_llm.window_s)
            means[language] = mean_activations(speech_llm, bank.sites, clips)
        watchdog.at(len(languages), "waiting for the other ranks")
        dist.barrier()
        for row, (spec, adapter) in enumerate(zip(specs, config.adapter_settings(), strict=True)):
            own = means[adapter.language]
            vectors = {s: adapter.scale * (means[method.contrast][s] - own[s]) for s in spec.sites}
            bank.set_row(row, vectors)
        dev = None
        if config.training.dev_clips:
            most = config.training.dev_clips
            dev = DevClips(index, config.adapter_settings(), most, speech_llm.window_s)
        run = open_run(config, ranks)
        folder = run / "adapters"
        events = Events(run, ranks.is_first)
        stack.callback(events.close)
        write_start(events, ranks, speech_llm, 0)
        if dev is not None:
            base = FrozenBase(speech_llm, bank, ranks, PlacementConfig(kind="replicate"))
            stack.callback(base.close)
            losses = dev.losses(
                *(base, config, range(len(specs))),
                lambda: watchdog.at(len(languages), "measuring on dev clips"),
            )
            events.write("dev_loss", adapters=finite_losses(losses, [s.name for s in specs]))
        if ranks.is_first:  # every rank has the same means
            save_adapters(folder, bank, config, speech_llm, index, {})
        events.write("end", step=0)
        watchdog.at(len(languages), "waiting for the other ranks to end")
        dist.barrier()
        return [folder / spec.name for spec in specs]


def mean_activations(
    speech_llm: SpeechLLM, sites: Sequence[str], clips: Sequence[Clip]
) -> dict[str, Tensor]:
    """Mean output of each site's layer over all positions of `clips`, (hidden,) fp64."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(sites, 0)

    def heard(site: str, output: Tensor) -> None:
        sums[site] = sums.get(site, 0) + output.double().sum(0)
        counts[site] += len(output)

    listen(speech_llm, sites, clips, heard)
    return {site: sums[site] / counts[site] for site in sites}
