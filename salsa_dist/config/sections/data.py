"""data: where the shards are, how many clips an adapter step has."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from salsa_dist.config.decides import Neither, Place, Vectors
from salsa_dist.config.sections.section import Folder, Section, Shards
from salsa_dist.places import Cache, Remote


def _range(lowest: float) -> Any:
    def check(value: tuple[float, float]) -> tuple[float, float]:
        if not lowest < value[0] <= value[1]:
            raise ValueError(f"a range needs two numbers above {lowest:g}, the smaller first")
        return value

    return AfterValidator(check)


class AugmentConfig(Section):
    speed: Vectors[Annotated[tuple[float, float], _range(0.1)] | None] = Field(
        None, description="range of speed factors, such as [0.9, 1.1]; null: off"
    )
    noise_db: Vectors[Annotated[tuple[float, float], _range(-100)] | None] = Field(
        None, description="range of signal-to-noise ratios in dB, such as [10, 30]; null: off"
    )
    time_masks: Vectors[int] = Field(
        0, ge=0, le=20, description="number of silenced time spans, a tenth of a clip each"
    )
    frequency_masks: Vectors[int] = Field(
        0,
        ge=0,
        le=20,
        description="number of removed frequency bands, at most an eighth of the spectrum each",
    )


class DataConfig(Section):
    shards: Place[Shards] = Field(
        description="folder with tar shards and their index.json, or a place in a store: s3://bucket/prefix"
    )
    cache: Place[Folder | None] = Field(
        None,
        description="folder on each node's own disk for the cache of shards from a store; default: "
        "~/.cache/salsa-dist",
    )
    cache_gb: Neither[float] = Field(64, gt=0, description="maximum size of this cache in gigabytes")
    retry_s: Neither[float] = Field(
        120, ge=1, description="seconds for which a failed read of a store is tried again"
    )
    clips_per_step: Vectors[int | None] = Field(
        None, ge=1, description="clips per adapter step, over all ranks; 8 if neither is set"
    )
    seconds_per_step: Vectors[float | None] = Field(
        None, gt=0, description="or seconds of audio per adapter step, in clips of similar lengths"
    )
    join_clips: Vectors[int] = Field(
        1,
        ge=1,
        description="maximum number of clips joined in one audio window; the number is sampled per "
        "window. For short clips and a base with a long window",
    )
    readers: Vectors[int] = Field(
        4, ge=1, description="virtual readers per adapter; batches depend on this, not on ranks"
    )
    workers: Neither[Annotated[int, Field(ge=0)] | Literal["auto"]] = Field(
        "auto",
        description="processes per rank that read ahead; 0: none; auto: by the cores of a rank with a "
        "GPU, and none on the CPU",
    )
    max_bad: Neither[int] = Field(
        100, ge=0, description="bad samples that are replaced before the run stops"
    )
    stage_to: Place[str | None] = Field(
        None,
        description="folder on each node's own disk for copies of the shards, such as $SLURM_TMPDIR",
    )
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_size(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        clips, seconds = tree.get("clips_per_step"), tree.get("seconds_per_step")
        if clips is not None and seconds is not None:
            raise ValueError("clips_per_step and seconds_per_step are both set: remove one")
        return {**tree, "clips_per_step": 8} if clips is None and seconds is None else tree

    @model_validator(mode="after")
    def _cached(self) -> DataConfig:
        if isinstance(self.shards, Remote):
            cache = Cache(self.cache, round(self.cache_gb * 1e9), self.retry_s)
            object.__setattr__(self, "shards", replace(self.shards, cache=cache))
        return self

    def clips_of_a_step(self, mean_s: float) -> int:
        """Approximate clips per adapter step, for clips of `mean_s` seconds on average."""
        if self.clips_per_step is not None:
            return self.clips_per_step
        return max(1, round((self.seconds_per_step or 0) / mean_s))
