"""What a method must say of itself, and no more: the session, the loop, states and transcripts are the
same for all.

    method.trainable(…)   what is trained in or beside the base, with its optimizer
    method.compute(…)     or computed instead
    method.before_steps(…)  what is measured first
    method.save(…)        RUN/adapters/NAME
    method.digest(…)      what an adapter's transcripts depend on
    method.attached(…)    the adapters of a pass, put on the base to decode

What others ask of it before torch is needed (does it train, does it steer) is in the config's schema.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from salsa_dist.config import AdapterSettings, Config
from salsa_dist.data.clip import Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.run.session import Session
from salsa_dist.speech_llms.batch import Transcript
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.bank import Bank
from salsa_dist.training.batches import StepBatches
from salsa_dist.training.reduce import Reduced


class Trainable(Protocol):
    """What a job trains and how it is stepped; the same numbers on every rank.

    Attributes:
        bank: of steering vectors, one row per adapter; one without rows where the base's own weights
            are trained.
    """

    bank: Bank

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""

    def reduce(
        self,
        active: Sequence[int],
        loss_sums: Tensor,
        label_counts: Tensor,
        stop: bool,
        counts: Sequence[float] = (),
    ) -> Reduced:
        """Sum this step over all ranks; gradients come back as means over each adapter's labels."""
        ...

    def step(self, gradients: Mapping[str, Tensor], active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Move the `active` adapters.

        Returns:
            (adapters,) gradient norms before clipping, and (adapters,) rates, 0 where nothing moved.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All that a run goes on from, by name; in place."""
        ...

    def learned(self) -> dict[str, Tensor]:
        """What an adapter is of them, by name; in place. With several adapters, one row for each."""
        ...


@dataclass(frozen=True)
class Attached:
    """Adapters on a base.

    Attributes:
        bank: the steering vectors that are decoded with, one row per adapter of the run.
        transcribe: what decodes one clip; None: the base itself, many at a time.
    """

    bank: Bank
    transcribe: Callable[[Clip, int, Mapping[str, Any]], Transcript] | None = None


class BaseParts(Protocol):
    """What is known of a base without its weights."""

    @property
    def layers(self) -> Mapping[str, int]:
        """How many layers each component has."""
        ...

    @property
    def linear(self) -> Mapping[str, Collection[str]]:
        """Names of the linear modules in each component's layers."""
        ...

    @property
    def biased(self) -> Collection[str]:
        """Components whose layers have biases."""
        ...

    @property
    def in_context(self) -> bool:
        """Whether its prompt has room for examples."""
        ...


def among(adapter: AdapterSettings) -> str:
    """The languages that an adapter was trained in, for its label, where they are several."""
    return f", trained in {'+'.join(adapter.languages)}" if len(adapter.languages) > 1 else ""


class Method:
    """One way to adapt a base.

    Args:
        config: of the run.

    Attributes:
        section: of the config; says whether it trains, and whether its adapters are steering vectors.
        title: in the legends of figures.
    """

    section: ClassVar[type[Any]]
    title: ClassVar[str]

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def label(cls, method: Any, adapter: AdapterSettings) -> str:
        """What an adapter is compared as in reports, without the minutes that it was trained on.

        Args:
            method: its section of the config.
        """
        return f"{method.kind}, {adapter.sites}{among(adapter)}"

    @classmethod
    def unfit(cls, method: Any, components: Collection[str], base: BaseParts, dtype: str) -> list[str]:
        """Why an adapter can't be made on a base, each to follow the adapter's name; asked without it.

        Args:
            method: its section of the config.
            components: of its sites.
            dtype: of the base.
        """
        return []

    def together(self) -> list[list[int]]:
        """Rows of the adapters that share passes: all of them, or each alone."""
        rows = list(range(len(self.config.adapters)))
        if self.config.method.steers:
            return [rows]
        return [[row] for row in rows] if self.config.method.adapts else []

    def load(self, session: Session) -> SpeechLLM:
        """The base that it trains on."""
        config = session.config
        return session.load_base(config.base_in_training(), config.thinning)

    def done(self, row: int) -> bool:
        """Whether an adapter was trained before, and is left alone."""
        return False

    def trainable(
        self, config: Config, speech_llm: SpeechLLM, device: torch.device
    ) -> AbstractContextManager[Trainable]:
        """What is trained of the adapters of `config`; for vectors see steering.py.

        At the end the base is as it was.
        """
        raise NotImplementedError(f"method {self.config.method.kind} trains nothing")

    def compute(self, session: Session, speech_llm: SpeechLLM, trainable: Trainable) -> None:
        """Compute what is not trained. All ranks call this, before anything is written."""

    def before_steps(
        self,
        speech_llm: SpeechLLM,
        base: FrozenBase,
        batches: StepBatches,
        trainable: Trainable,
        moved: Callable[[], None],
    ) -> None:
        """Measure what the steps need, on the placed base, unless a state has it. All ranks call this.

        Args:
            moved: called before each pass, as often on all ranks.
        """

    def save(
        self,
        config: Config,
        index: ShardIndex,
        speech_llm: SpeechLLM,
        trainable: Trainable,
        made: Mapping[str, int],
        folder: Path,
    ) -> None:
        """Write the adapters of `config` to `folder`, each to one of its name.

        Args:
            made: adapters that are not those after their last step, and the steps that they made.
        """
        raise NotImplementedError(f"method {self.config.method.kind} trains nothing")

    def digest(self, name: str) -> str:
        """What an adapter's transcripts depend on, beside the base and the clips.

        Raises:
            UserError: it is not there.
        """
        return ""

    @contextmanager
    def attached(self, session: Session, speech_llm: SpeechLLM, row: int) -> Iterator[Attached]:
        """The adapters that share passes with that of `row`, on the base."""
        yield Attached(Bank([], {}, session.ranks.device))
