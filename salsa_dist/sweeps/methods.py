"""The methods that a sweep compares, each with its trials.

methods:
  - {kind: zero-shot}
  - {kind: in-context, choose: text, examples: [1, 2, 4]}
  - {kind: mean-difference, contrast: en, sites: encoder, scale: [0.5, 1, 2]}
  - {kind: bias, sites: encoder, lr: [0.001, 0.003, 0.01]}
  - {kind: lora, rank: 8, targets: [q_proj, v_proj], sites: encoder, lr: [0.0003, 0.001, 0.003]}
  - {kind: salsa, sites: encoder, rule: add, lr: [0.003, 0.01, 0.03]}

an entry ─► its Settings, one a trial, in the file's order
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from salsa_dist.config import (
    BeftMethod,
    BiasMethod,
    InContextMethod,
    LoraMethod,
    MeanDifferenceMethod,
    Method,
    Rule,
    SalsaMethod,
    Section,
    SteeringConfig,
    ZeroShotMethod,
)


@dataclass(frozen=True)
class Setting:
    """One trial of a method: everything that a job needs, except language, seed and steps.

    Attributes:
        tried: what tells it from the method's other trials; "" where there is none.
        seeded: whether a seed changes anything.
        seeds: its final rows take the first so many seeds of the grid; None: all.
        average_seeds: whether the mean of those seeds' vectors is a row of its own.
    """

    method: Method
    sites: str
    rule: Rule
    lr: float | None
    tried: str
    seeded: bool
    start_from: str | None = None
    seeds: int | None = None
    average_seeds: bool = False


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class _Entry(Section):
    name: str | None = Field(None, description="name in the report; null: made from the settings")
    seeds: int | None = Field(
        None, ge=1, description="number of seeds of the final rows, from the grid's first on; null: all"
    )


Positive = Annotated[float, Field(gt=0)]
Rates = Annotated[list[Positive], BeforeValidator(_listed), Field(min_length=1)]


class ZeroShot(_Entry):
    kind: Literal["zero-shot"]

    def label(self, steering: SteeringConfig) -> str:
        return "zero-shot"

    def settings(self, steering: SteeringConfig) -> list[Setting]:
        method = ZeroShotMethod(kind="zero-shot")
        return [Setting(method, steering.sites, steering.rule, None, "", False)]


class InContext(_Entry):
    kind: Literal["in-context"]
    examples: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_listed)] = Field(
        [4], min_length=1
    )
    choose: Annotated[list[Literal["random", "audio", "text"]], BeforeValidator(_listed)] = Field(
        ["random"], min_length=1
    )
    pool: int = Field(200, ge=1)

    def label(self, steering: SteeringConfig) -> str:
        return self.name or f"in-context by {' or '.join(self.choose)}"

    def settings(self, steering: SteeringConfig) -> list[Setting]:
        return [
            Setting(
                InContextMethod(kind="in-context", examples=examples, choose=choose, pool=self.pool),
                steering.sites,
                steering.rule,
                None,
                f"{examples} by {choose}",
                choose == "random",
            )
            for choose in self.choose
            for examples in self.examples
        ]


class MeanDifference(_Entry):
    kind: Literal["mean-difference"]
    contrast: str
    sites: str | None = None
    clips: int = Field(100, ge=1)
    scale: Annotated[list[float], BeforeValidator(_listed)] = Field([1.0], min_length=1)

    def label(self, steering: SteeringConfig) -> str:
        return self.name or f"mean difference to {self.contrast}, {self.sites or steering.sites}"

    def settings(self, steering: SteeringConfig) -> list[Setting]:
        sites = self.sites or steering.sites
        return [
            Setting(
                MeanDifferenceMethod(
                    kind="mean-difference", contrast=self.contrast, scale=scale, clips=self.clips
                ),
                *(sites, "add", None, f"scale{scale:g}", False),
            )
            for scale in self.scale
        ]


class Bias(_Entry):
    kind: Literal["bias"]
    sites: str | None = None
    lr: Rates | None = None

    def label(self, steering: SteeringConfig) -> str:
        return self.name or f"biases of {self.sites or steering.sites}"

    def settings(self, steering: SteeringConfig) -> list[Setting]:
        return _trained(BiasMethod(kind="bias"), self.sites or steering.sites, steering.rule, self.lr)


class Lora(_Entry):
    kind: Literal["lora"]
    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1)
    targets: list[str] = Field(["q_proj", "v_proj"], min_length=1)
    sites: str | None = None
    lr: Rates | None = None

    def label(self, steering: SteeringConfig) -> str:
        targets = ", ".join(self.targets)
        return self.name or f"LoRA r={self.rank} on {targets} of {self.sites or steering.sites}"

    def settings(self, steering: SteeringConfig) -> list[Setting]:
        method = LoraMethod(kind="lora", rank=self.rank, alpha=self.alpha, targets=self.targets)
        return _trained(method, self.sites or steering.sites, steering.rule, self.lr)


class Beft(_Entry):
    kind: Literal["beft"]
    targets: list[str] = Field(["v_proj"], min_length=1)
    sites: str | None = None
    lr: Rates | None = None

    def label(self, steering: SteeringConfig) -> str:
        return self.name or f"BEFT on {', '.join(self.targets)} of {self.sites or steering.sites}"

    def settings(self, steering: SteeringConfig) -> list[Setting]:
        method = BeftMethod(kind="beft", targets=self.targets)
        return _trained(method, self.sites or steering.sites, steering.rule, self.lr)


class Salsa(_Entry):
    kind: Literal["salsa"]
    sites: str | None = None
    rule: Rule | None = None
    lr: Rates | None = None
    start_from: str | None = Field(
        None, description="adapter to start training from; {language} becomes the code"
    )
    average_seeds: bool = Field(
        False, description="a further row: one adapter per language, the mean of its seeds' vectors"
    )

    def label(self, steering: SteeringConfig) -> str:
        rule, sites = self.rule or steering.rule, self.sites or steering.sites
        start = f" from {self.start_from}" if self.start_from else ""
        return self.name or f"SALSA ({rule}), {sites}{start}"

    def settings(self, steering: SteeringConfig) -> list[Setting]:
        rule, sites = self.rule or steering.rule, self.sites or steering.sites
        made = _trained(SalsaMethod(), sites, rule, self.lr)
        return [replace(s, start_from=self.start_from, average_seeds=self.average_seeds) for s in made]


MethodEntry = Annotated[
    ZeroShot | InContext | MeanDifference | Bias | Beft | Lora | Salsa, Field(discriminator="kind")
]


def _trained(method: Method, sites: str, rule: Rule, rates: Sequence[float] | None) -> list[Setting]:
    if rates is None:
        return [Setting(method, sites, rule, None, "", True)]
    return [Setting(method, sites, rule, lr, f"lr{lr:g}", True) for lr in rates]


class Tuning(Section):
    """How a method's setting is chosen among its trials. The test split is not used."""

    choose_by: Literal["cer", "wer", "mer", "loss"] = Field(
        "cer",
        description="measure on dev clips: error rate (mer for mixed speech), or mean loss per label",
    )
    per: Literal["language", "all"] = Field(
        "language", description="one setting for each language, or the best on average over all"
    )
    languages: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="languages of the trials, with per: all; null: all languages"
    )
    steps: int | None = Field(
        None, ge=1, description="steps of a trial; null: as many as in the final rows"
    )
    seed: int = Field(0, description="seed of the trials")
    uneven: bool = Field(False, description="methods may have unequal numbers of trials")

    @model_validator(mode="after")
    def _one_setting_serves_all(self) -> Tuning:
        if self.languages is not None and self.per != "all":
            raise ValueError("tuning.languages makes trials in some languages for all: set per: all")
        return self
