"""Steering without training: mean activations of the contrast language minus the own.

    v = scale * (mean activation over the contrast language - mean over the adapter's language)

It is the contrastive way that SALSA turns from; for accents: arXiv 2603.05813. The means are over all
positions of the first training clips of each language, at each of the adapter's sites, with the
reference as the LLM's text. The result is an adapter like any other, of rule `add`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from salsa_dist.config import AdapterSettings, Config, MeanDifferenceMethod
from salsa_dist.data.clip import Clip
from salsa_dist.data.reading import first_clips
from salsa_dist.methods.base import Trainable
from salsa_dist.methods.steering import Steering
from salsa_dist.run.session import Session
from salsa_dist.speech_llms.activations import each_output
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.training.from_config import make_bank
from salsa_dist.training.optimizer import PackedAdam


class MeanDifference(Steering):
    """Vectors of rule `add` that are computed instead of trained."""

    section = MeanDifferenceMethod
    title = "mean difference"

    @classmethod
    def label(cls, method: MeanDifferenceMethod, adapter: AdapterSettings) -> str:
        return f"mean difference to {method.contrast}, {adapter.sites}"

    def load(self, session: Session) -> SpeechLLM:
        return session.load_base(session.config.base)

    @contextmanager
    def trainable(
        self, config: Config, speech_llm: SpeechLLM, device: torch.device
    ) -> Iterator[PackedAdam]:
        yield PackedAdam(make_bank(config, speech_llm, device, rule="add"), [], None)

    def compute(self, session: Session, speech_llm: SpeechLLM, trainable: Trainable) -> None:
        method, bank = self.config.method, trainable.bank
        assert isinstance(method, MeanDifferenceMethod)
        adapters = self.config.adapter_settings()
        means = {}
        for language in dict.fromkeys([method.contrast, *(a.language for a in adapters)]):
            session.at(None, f"mean activations of {language}")
            clips = first_clips(
                *(self.config.data.shards, session.index, language, method.clips, speech_llm.window_s)
            )
            means[language] = mean_activations(speech_llm, bank.sites, clips)
        session.at(None, "waiting for the other ranks")
        dist.barrier()  # every rank has the same means
        for row, (spec, adapter) in enumerate(zip(bank.specs, adapters, strict=True)):
            own = means[adapter.language]
            vectors = {s: adapter.scale * (means[method.contrast][s] - own[s]) for s in spec.sites}
            bank.set_row(row, vectors)


def mean_activations(
    speech_llm: SpeechLLM, sites: Sequence[str], clips: Sequence[Clip]
) -> dict[str, Tensor]:
    """Mean output of each site's layer over all positions of `clips`, (hidden,) fp64."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(sites, 0)

    def add(site: str, output: Tensor) -> None:
        sums[site] = sums.get(site, 0) + output.double().sum(0)
        counts[site] += len(output)

    each_output(speech_llm, sites, clips, add)
    return {site: sums[site] / counts[site] for site in sites}
