"""Steering vectors on the frozen base: a bank with one row per adapter, trained in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from salsa_dist.config import AdapterSettings, Config, SalsaMethod
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.methods.base import Attached, Method, Trainable, among
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.session import Session
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.attachment import bank_of
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training.batches import StepBatches
from salsa_dist.training.from_config import make_bank, schedule_of, site_scales, start_bank
from salsa_dist.training.optimizer import PackedAdam
from salsa_dist.training.relative_rates import relative_rates
from salsa_dist.training.saved_adapters import save_adapters


class Steering(Method):
    """SALSA, or plain addition: each adapter's `rule` selects one."""

    section: ClassVar[type[Any]] = SalsaMethod
    title = "SALSA"

    @classmethod
    def label(cls, method: Any, adapter: AdapterSettings) -> str:
        return f"SALSA ({adapter.rule}), {adapter.sites}{among(adapter)}"

    @contextmanager
    def trainable(
        self, config: Config, speech_llm: SpeechLLM, device: torch.device
    ) -> Iterator[PackedAdam]:
        bank = make_bank(config, speech_llm, device)
        start_bank(bank, config, speech_llm)
        yield PackedAdam(
            bank,
            [schedule_of(adapter, config.training) for adapter in config.adapter_settings()],
            config.training.clip_norm,
            site_scales(config.training.lr_scale, speech_llm),
        )

    def before_steps(
        self,
        speech_llm: SpeechLLM,
        base: FrozenBase,
        batches: StepBatches,
        trainable: Trainable,
        moved: Callable[[], None],
    ) -> None:
        assert isinstance(trainable, PackedAdam)
        if trainable.own_scales:
            for row, scales in enumerate(relative_rates(speech_llm, base, batches, moved)):
                trainable.scale_by(row, scales)

    def save(
        self,
        config: Config,
        index: ShardIndex,
        speech_llm: SpeechLLM,
        trainable: Trainable,
        made: Mapping[str, int],
        folder: Path,
    ) -> None:
        assert isinstance(trainable, PackedAdam)
        save_adapters(folder, trainable, config, speech_llm, index, made)

    def digest(self, name: str) -> str:
        return self._saved(name).digest()

    @contextmanager
    def attached(self, session: Session, speech_llm: SpeechLLM, row: int) -> Iterator[Attached]:
        adapters = [self._saved(adapter.name) for adapter in self.config.adapters]
        for adapter in adapters:
            adapter.check(speech_llm)
        yield Attached(bank_of(adapters, session.ranks.device))

    def _saved(self, name: str) -> SteeringVectors:
        path = RunFolder(self.config.run).adapter(name)
        if not path.is_dir():
            raise UserError(f"no adapter at {path}: train it first (salsa-dist train CONFIG)")
        return SteeringVectors.load(path)
