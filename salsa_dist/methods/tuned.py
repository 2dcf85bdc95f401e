"""Training weights inside the base: on the very clips, steps and schedule that an adapter of vectors
would get, one adapter after another.

    RUN/adapters/NAME/tuned.safetensors     one that is done, and is left alone from then on
    RUN/state/NAME/step-….safetensors       to go on from inside the one that is not

The base is loaded once, whole on each rank: after each adapter it is again what it was.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salsa_dist.config import AdapterSettings, Config
from salsa_dist.data.index import ShardIndex
from salsa_dist.methods import tuned_file
from salsa_dist.methods.base import Attached, Method, Trainable
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.session import Session
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.adapter_folder import known_as
from salsa_dist.steering.bank import Bank
from salsa_dist.training.from_config import schedule_of
from salsa_dist.training.optimizer import BETAS, EPS, Schedule
from salsa_dist.training.reduce import Reduced, all_reduce


class Tuned(Method):
    """A method that trains weights of the base's own modules."""

    @abstractmethod
    def installed(
        self, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
    ) -> AbstractContextManager[dict[str, nn.Parameter]]:
        """The method's weights, trainable in `model` until the block ends; nothing else is."""

    def done(self, row: int) -> bool:
        return RunFolder(self.config.run).adapter(self.config.adapters[row].name).is_dir()

    @contextmanager
    def trainable(
        self, config: Config, speech_llm: SpeechLLM, device: torch.device
    ) -> Iterator[WeightsAdam]:
        (settings,) = config.adapter_settings()
        with self._weights(speech_llm, settings) as weights:
            schedule = schedule_of(settings, config.training)
            yield WeightsAdam(weights, schedule, config.training.clip_norm, device)

    def save(
        self,
        config: Config,
        index: ShardIndex,
        speech_llm: SpeechLLM,
        trainable: Trainable,
        made: Mapping[str, int],
        folder: Path,
    ) -> None:
        assert isinstance(trainable, WeightsAdam)
        (settings,) = config.adapter_settings()
        steps = made.get(settings.name, settings.steps)
        facts = _facts(config, settings, speech_llm, trainable.weights, index, steps)
        tuned_file.save(folder / settings.name, trainable.weights, facts)

    def digest(self, name: str) -> str:
        return tuned_file.digest(RunFolder(self.config.run).adapter(name))

    @contextmanager
    def attached(self, session: Session, speech_llm: SpeechLLM, row: int) -> Iterator[Attached]:
        settings = self.config.adapter_settings()[row]
        with self._weights(speech_llm, settings) as weights:
            folder = RunFolder(self.config.run).adapter(settings.name)
            tuned_file.restore(folder, weights, speech_llm.revision)
            yield Attached(Bank([], {}, session.ranks.device))

    def _weights(
        self, speech_llm: SpeechLLM, settings: AdapterSettings
    ) -> AbstractContextManager[dict[str, nn.Parameter]]:
        layers = {site: speech_llm.sites[site] for site in speech_llm.select(settings.sites)}
        return self.installed(speech_llm.model, layers, settings.seed)


class WeightsAdam:
    """torch's Adam over one adapter's weights.

    Args:
        weights: by name.
        schedule: of the adapter's own steps.
        clip_norm: largest gradient norm; None: not clipped.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        schedule: Schedule,
        clip_norm: float | None,
        device: torch.device,
    ) -> None:
        self.bank = Bank([], {}, device)
        self.weights = dict(weights)
        self.schedule = schedule
        self.clip_norm = float("inf") if clip_norm is None else clip_norm
        self.adam = torch.optim.Adam(list(self.weights.values()), betas=BETAS, eps=EPS)
        self.steps = torch.zeros(1, dtype=torch.int64)
        # Made before the first step, so that a state can be put there.
        for weight in self.weights.values():
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            self.adam.state[weight] = {"step": torch.tensor(0.0), **moments}

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)

    def reduce(
        self,
        active: Sequence[int],
        loss_sums: Tensor,
        label_counts: Tensor,
        stop: bool,
        counts: Sequence[float] = (),
    ) -> Reduced:
        own = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in self.weights.items()}
        weights = list(self.weights.values())
        compared = weights[int(self.steps) % len(weights)]
        reduced = all_reduce(own, active, loss_sums, label_counts, stop, counts, compared.float())
        labels = reduced.divisors[0]
        return replace(reduced, gradients={n: g / labels for n, g in reduced.gradients.items()})

    def step(self, gradients: Mapping[str, Tensor], active: Sequence[int]) -> tuple[Tensor, Tensor]:
        for name, weight in self.weights.items():
            weight.grad = gradients[name]
        norm = nn.utils.clip_grad_norm_(list(self.weights.values()), self.clip_norm)
        rates = torch.zeros(1, dtype=torch.float64)
        if active and torch.isfinite(norm) and norm > 0:
            rates[0] = self.schedule(int(self.steps))
            self.steps += 1
            for weight in self.weights.values():
                self.adam.state[weight]["step"].fill_(float(self.steps) - 1)
            self.adam.param_groups[0]["lr"] = float(rates[0])
            self.adam.step()
        return norm.reshape(1), rates

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Any] = {"steps": self.steps, **self.learned()}
        for name, weight in self.weights.items():
            moments = self.adam.state[weight]
            found[f"first/{name}"] = moments["exp_avg"]
            found[f"second/{name}"] = moments["exp_avg_sq"]
        return found

    def learned(self) -> dict[str, Tensor]:
        return {f"weights/{name}": weight for name, weight in self.weights.items()}


def _facts(
    config: Config,
    settings: AdapterSettings,
    speech_llm: SpeechLLM,
    weights: Mapping[str, nn.Parameter],
    index: ShardIndex,
    steps: int,
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
            "steps": steps,
            "lr": settings.lr,
            "seed": settings.seed,
            "window_s": speech_llm.window_s,
        },
    }
