"""method: salsa, or a method to compare with."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

from pydantic import Field

from salsa_dist.config.decides import Both, Vectors
from salsa_dist.config.sections.section import Section


class _Method(Section):
    """Properties of a method; `methods/` implements it.

    Attributes:
        trains: `salsa-dist train` produces adapters, by gradient steps or otherwise.
        learns: it trains by gradient steps.
        steers: its adapters are steering vectors: all share one pass, under any placement.
        adapts: it changes the transcripts of the base.
        in_fp32: it trains in no other precision.
    """

    trains: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    steers: ClassVar[bool] = False
    adapts: ClassVar[bool] = True
    in_fp32: ClassVar[bool] = False

    @property
    def needs_whole_base(self) -> bool:
        """Whether each rank must hold the whole base; adapters are then trained one after another."""
        return self.adapts and not self.steers

    @property
    def in_a_bank(self) -> bool:
        """Whether adapters are trained together, as many per job as fit."""
        return self.steers and self.learns

    def clips_computed(self, languages: Collection[str]) -> int:
        """Number of clips that are processed, once, to compute the adapters of `languages`."""
        return 0


class SalsaMethod(_Method):
    """Trained steering vectors, the purpose of this project."""

    steers = True
    kind: Vectors[Literal["salsa"]] = "salsa"


class LoraMethod(_Method):
    """Low-rank updates of linear weights in the layers of the sites, by PEFT."""

    kind: Vectors[Literal["lora"]]
    rank: Vectors[int] = Field(8, ge=1)
    alpha: Vectors[int] = Field(16, ge=1)
    targets: Vectors[list[str]] = Field(
        ["q_proj", "v_proj"], min_length=1, description="names of linear modules inside a layer"
    )


class BeftMethod(_Method):
    """A vector added to the output of linear modules in the layers of the sites, by PEFT."""

    kind: Vectors[Literal["beft"]]
    targets: Vectors[list[str]] = Field(
        ["v_proj"], min_length=1, description="names of linear modules inside a layer"
    )


class BiasMethod(_Method):
    """Every bias in the layers of the sites."""

    in_fp32 = True
    kind: Vectors[Literal["bias"]]


class MeanDifferenceMethod(_Method):
    """Untrained vectors: mean activations of the contrast language minus those of the adapter's."""

    learns = False
    steers = True
    kind: Vectors[Literal["mean-difference"]]
    contrast: Vectors[str] = Field(
        description="a language that the base knows well, in the same shards"
    )
    scale: Vectors[float] = Field(1.0, description="factor of the difference; choose it on dev")
    clips: Vectors[int] = Field(100, ge=1, description="training clips of each language")

    def clips_computed(self, languages: Collection[str]) -> int:
        return len({*languages, self.contrast}) * self.clips


class InContextMethod(_Method):
    """Solved examples before each utterance; nothing is trained."""

    trains = learns = False
    kind: Both[Literal["in-context"]]
    examples: Both[int] = Field(
        4, ge=1, description="examples per prompt; fewer if they do not fit the window"
    )
    choose: Both[Literal["random", "audio", "text"]] = Field(
        "random",
        description="random; audio: nearest in the base's own encoder; text: nearest in letters",
    )
    pool: Both[int] = Field(200, ge=1, description="training clips to choose from")


class ZeroShotMethod(_Method):
    """The base without an adapter."""

    trains = learns = adapts = False
    kind: Vectors[Literal["zero-shot"]]


Method = (
    SalsaMethod
    | LoraMethod
    | BeftMethod
    | BiasMethod
    | MeanDifferenceMethod
    | InContextMethod
    | ZeroShotMethod
)
