"""steering and adapters: sites, rule, languages, and an adapter's own settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from salsa_dist.config.decides import Neither, Vectors
from salsa_dist.config.sections.section import Folder, Rule, Section


class SteeringConfig(Section):
    sites: Vectors[str] = Field(
        "encoder",
        description="encoder, llm, encoder:0-3, encoder:last-half+llm; inside a layer: "
        "encoder.attention, encoder.feed_forward, llm.attention, llm.cross_attention, "
        "llm.feed_forward:0-3 …",
    )
    rule: Vectors[Rule] = Field(
        "salsa",
        description="salsa keeps the activation's norm; add does not; gain also scales each channel",
    )


class MixConfig(Section):
    """How often an adapter samples each of its languages."""

    temperature: Vectors[float | None] = Field(
        None, gt=0, description="T in p ~ n^(1/T), n being the clips of a language; 1 if neither is set"
    )
    weights: Vectors[dict[str, Annotated[float, Field(gt=0)]] | None] = Field(
        None, description="or one weight per language, such as {bg: 2, el: 1}"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> MixConfig:
        if self.temperature is not None and self.weights is not None:
            raise ValueError("temperature and weights are both set: remove one")
        return self


class AdapterConfig(Section):
    """One adapter. Missing keys are taken from `steering`, `training` and `method`."""

    name: Neither[str] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    language: Vectors[str | Annotated[list[str], Field(min_length=1)]] = Field(
        description="a language code, or a list of codes to mix"
    )
    mix: MixConfig = MixConfig()
    sites: Vectors[str | None] = None
    rule: Vectors[Rule | None] = None
    lr: Vectors[float | None] = Field(None, gt=0)
    steps: Vectors[int | None] = Field(None, ge=1)
    seed: Vectors[int | None] = None
    minutes: Vectors[float | None] = Field(
        None, gt=0, description="minutes of speech to train on, chosen by the seed; null: all"
    )
    scale: Vectors[float | None] = Field(
        None, description="scale of a mean difference; null: the method's"
    )
    start_from: Vectors[Folder | None] = Field(
        None,
        description="adapter to start training from: folder, file, or user/name@revision of a hub; "
        "null: start from zero",
    )

    @property
    def languages(self) -> tuple[str, ...]:
        """The adapter's languages, sorted."""
        return (self.language,) if isinstance(self.language, str) else tuple(sorted(self.language))

    @model_validator(mode="after")
    def _languages_fit(self) -> AdapterConfig:
        if len(set(self.languages)) < len(self.languages):
            raise ValueError(f"adapter {self.name} names a language twice")
        if self.mix.weights is not None and tuple(sorted(self.mix.weights)) != self.languages:
            raise ValueError(
                f"adapter {self.name}: mix.weights are of {', '.join(sorted(self.mix.weights))}, its "
                f"languages are {', '.join(self.languages)}: give each one weight"
            )
        return self


@dataclass(frozen=True)
class AdapterSettings:
    """One adapter with all settings filled in; `lr` is None where the rate is estimated in training."""

    name: str
    languages: tuple[str, ...]
    mix: MixConfig
    sites: str
    rule: str
    lr: float | None
    steps: int
    seed: int
    minutes: float | None = None
    scale: float = 1.0
    start_from: Path | None = None

    @property
    def language(self) -> str:
        """The adapter's language; empty where it has several."""
        return self.languages[0] if len(self.languages) == 1 else ""
