"""The interface of a method. Session, loop, checkpoints and transcripts are the same for all methods.

    method.trainable(…)     the tensors to train, in or beside the base, with their optimizer
    method.compute(…)       computes them instead, without training
    method.before_steps(…)  measures what the steps need
    method.save(…)          writes RUN/adapters/NAME
    method.digest(…)        hash of an adapter, for its transcripts
    method.attached(…)      puts adapters on the base, for decoding

Facts that are needed without torch (does it train, does it steer) are in the config's schema.
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
    """The tensors that a job trains, and their optimizer; equal on all ranks. `PackedAdam`
    (training/optimizer.py) is that of steering vectors, `WeightsAdam` (methods/tuned.py) of weights.

    Attributes:
        bank: steering vectors, one row per adapter; without rows if weights of the base are trained.
    """

    bank: Bank

    def zero_grad(self) -> None:
        """Clear all gradients."""

    def reduce(
        self,
        active: Sequence[int],
        loss_sums: Tensor,
        label_counts: Tensor,
        stop: bool,
        counts: Sequence[float] = (),
    ) -> Reduced:
        """Sum a step over all ranks; see `all_reduce`. The gradients of the result are means over each
        adapter's labels."""
        ...

    def step(self, gradients: Mapping[str, Tensor], active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Update the `active` adapters.

        Returns:
            (adapters,) gradient norms before clipping, and (adapters,) learning rates; the rate is 0
            for adapters that did not change.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, by name; not copied."""
        ...

    def learned(self) -> dict[str, Tensor]:
        """The tensors of `tensors` that make up the adapters, by name; not copied. With several
        adapters, one row per adapter."""
        ...


@dataclass(frozen=True)
class Attached:
    """Adapters on a base.

    Attributes:
        bank: the steering vectors for decoding, one row per adapter of the run.
        transcribe: decodes one clip. None: the base decodes, several clips at a time.
    """

    bank: Bank
    transcribe: Callable[[Clip, int, Mapping[str, Any]], Transcript] | None = None


class BaseParts(Protocol):
    """Facts of a base that are known without its weights."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Number of layers per component."""
        ...

    @property
    def linear(self) -> Mapping[str, Collection[str]]:
        """Names of the linear modules in the layers, per component."""
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
    """The languages of an adapter, for its label; empty if there is only one."""
    return f", trained in {'+'.join(adapter.languages)}" if len(adapter.languages) > 1 else ""


class Method:
    """One way to adapt a base.

    Args:
        config: of the run.

    Attributes:
        section: the method's section of the config; says whether it trains, and whether its adapters
            are steering vectors.
        title: its name in the legends of figures.
    """

    section: ClassVar[type[Any]]
    title: ClassVar[str]

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def label(cls, method: Any, adapter: AdapterSettings) -> str:
        """The name of an adapter's row in reports, without its minutes.

        Args:
            method: its section of the config.
        """
        return f"{method.kind}, {adapter.sites}{among(adapter)}"

    @classmethod
    def unfit(cls, method: Any, components: Collection[str], base: BaseParts, dtype: str) -> list[str]:
        """Reasons why an adapter cannot be made on a base. A message puts the adapter's name first.

        Args:
            method: its section of the config.
            components: the components of the adapter's sites.
            dtype: the base's precision.
        """
        return []

    def together(self) -> list[list[int]]:
        """Rows of the adapters of each job: all adapters in one job, or one job per adapter."""
        rows = list(range(len(self.config.adapters)))
        if self.config.method.steers:
            return [rows]
        return [[row] for row in rows] if self.config.method.adapts else []

    def load(self, session: Session) -> SpeechLLM:
        """Load the base for training."""
        config = session.config
        return session.load_base(config.base_in_training(), config.thinning)

    def done(self, row: int) -> bool:
        """Whether an adapter is already trained, so that it is skipped."""
        return False

    def trainable(
        self, config: Config, speech_llm: SpeechLLM, device: torch.device
    ) -> AbstractContextManager[Trainable]:
        """The tensors to train for the adapters of `config`; for vectors see steering.py.

        When the context ends, the base is unchanged.
        """
        raise NotImplementedError(f"method {self.config.method.kind} trains nothing")

    def compute(self, session: Session, speech_llm: SpeechLLM, trainable: Trainable) -> None:
        """Compute adapters that are not trained, such as mean differences (mean_difference.py). All
        ranks call this, before anything is written."""

    def before_steps(
        self,
        speech_llm: SpeechLLM,
        base: FrozenBase,
        batches: StepBatches,
        trainable: Trainable,
        moved: Callable[[], None],
    ) -> None:
        """Measure what the steps need, on the placed base. A run that resumes has it in its checkpoint.
        All ranks call this.

        Args:
            moved: called before each pass, equally often on all ranks.
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
        """Write the adapters of `config`, each to `folder`/NAME.

        Args:
            made: number of steps of each adapter that is not saved after its last step, by name.
        """
        raise NotImplementedError(f"method {self.config.method.kind} trains nothing")

    def digest(self, name: str) -> str:
        """A hash of the saved adapter: its transcripts depend on it, on the base and on the clips.

        Raises:
            UserError: the adapter does not exist.
        """
        return ""

    @contextmanager
    def attached(self, session: Session, speech_llm: SpeechLLM, row: int) -> Iterator[Attached]:
        """Put the adapter of `row`, and those that share its passes, on the base."""
        yield Attached(Bank([], {}, session.ranks.device))
