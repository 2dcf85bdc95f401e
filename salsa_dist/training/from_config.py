"""Makes this rank's bank, learning rates and batches from a config."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

import torch

from salsa_dist.config import AdapterSettings, Config, TrainingConfig
from salsa_dist.data.augment import from_settings
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.mixing import Mix
from salsa_dist.data.reading import read_clip
from salsa_dist.data.sampling import AdapterPlan
from salsa_dist.data.shards import BadSample
from salsa_dist.data.subset import training_shards
from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks
from salsa_dist.places import Folder
from salsa_dist.run.console import Console
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.speech_llms.word_frames import untimed
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.rules.registry import rule_named
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.batches import AdapterClips, StepBatches
from salsa_dist.training.optimizer import Schedule
from salsa_dist.training.staged_shards import staged_shards


def make_bank(
    config: Config, speech_llm: SpeechLLM, device: torch.device, rule: str | None = None
) -> Bank:
    """The bank of a config's adapters, all vectors zero. `rule` replaces the adapters' own rules."""
    specs = [
        AdapterSpec(a.name, tuple(speech_llm.select(a.sites)), rule or a.rule)
        for a in config.adapter_settings()
    ]
    return Bank(specs, site_widths(speech_llm.layer_lists), device)


def start_bank(bank: Bank, config: Config, speech_llm: SpeechLLM) -> None:
    """Set the vectors of adapters that have `start_from`. Sites that the saved adapter lacks stay zero.

    Raises:
        UserError: it can't be read, is of another base, shares no site with the adapter, or has more
            numbers per channel.
    """
    for row, (spec, adapter) in enumerate(zip(bank.specs, config.adapter_settings(), strict=True)):
        if adapter.start_from is not None:
            saved = SteeringVectors.load(adapter.start_from)
            saved.check(speech_llm)
            if rule_named(saved.rule).parts > rule_named(spec.rule).parts:
                raise UserError(
                    f"adapter {spec.name}: start_from {adapter.start_from} has the rule {saved.rule}, "
                    f"with more numbers per channel than {spec.rule}: start from another, or set rule: "
                    f"{saved.rule}"
                )
            own = {site: vector for site, vector in saved.vectors.items() if site in spec.sites}
            if not own:
                raise UserError(
                    f"adapter {spec.name}: start_from {adapter.start_from} steers none of its sites, "
                    f"{adapter.sites}"
                )
            bank.set_row(row, own)


def schedule_of(adapter: AdapterSettings, training: TrainingConfig) -> Schedule:
    """An adapter's learning rate over its steps."""
    return Schedule(adapter.lr, adapter.steps, training.warmup, training.decay)


def site_scales(
    scales: Mapping[str, float] | Literal["auto"], speech_llm: SpeechLLM
) -> dict[str, float] | None:
    """Learning-rate multiplier per site; the last match wins. None for `auto`: they are measured."""
    if scales == "auto":
        return None
    return {site: scale for words, scale in scales.items() for site in speech_llm.select(words)}


def make_batches(config: Config, index: ShardIndex, speech_llm: SpeechLLM, ranks: Ranks) -> StepBatches:
    """This rank's share of each step, for all adapters of a config."""
    augment = from_settings(config.data.augment.model_dump())
    plans: dict[tuple[object, ...], AdapterPlan] = {}

    def clips_of(adapter: AdapterSettings) -> AdapterClips:
        for language in adapter.languages:
            speech_llm.family.prompt(language)  # refuses a language that the base lacks
        # Adapters that sample the same clips share one plan, so its pools are read once.
        drawn = (adapter.languages, adapter.minutes, adapter.seed, adapter.mix.model_dump_json())
        if drawn not in plans:
            plans[drawn] = AdapterPlan(
                training_shards(index, adapter.languages, adapter.minutes, adapter.seed),
                config.data.clips_per_step,
                config.data.readers,
                adapter.seed,
                speech_llm.window_s,
                seconds_per_step=config.data.seconds_per_step,
                mix=Mix(adapter.mix.temperature or 1.0, adapter.mix.weights),
            )
        join = config.data.join_clips
        return AdapterClips(plans[drawn], adapter.steps, adapter.languages, augment, join)

    adapters = [clips_of(adapter) for adapter in config.adapter_settings()]
    folder: Folder = index.folder
    if config.data.stage_to is not None:
        used = [s for a in config.adapters for x in a.languages for s in index.select("train", x)]
        folder = staged_shards(index, used, config.data.stage_to, ranks, Console(ranks.is_first))
    batches = StepBatches(
        adapters,
        folder,
        speech_llm.family,
        ranks.rank,
        ranks.world_size,
        config.training.clips_per_pass,
        # There is no unsteered prefix where a method trains weights inside the encoder, nor in a base
        # without encoder layers.
        share=config.training.share_prefix and config.method.steers and speech_llm.has_encoder_sites,
        pass_seconds=config.training.pass_seconds,
    )
    if speech_llm.family.LEARNS_WORD_TIMES:
        _refuse_untimed(batches)
    return batches


def _refuse_untimed(batches: StepBatches) -> None:
    """Refuse shards whose first clip has no word times: each of their clips would be a bad sample."""
    for own in batches.adapters:
        first = own.plan.step(0)[0]
        with suppress(BadSample):
            clip = read_clip(batches.folder, first.shard, first.entry)
            if clip.speech and clip.words is None:
                raise untimed(f"{first.shard.path}: sample {clip.key}")
