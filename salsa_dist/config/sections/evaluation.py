"""evaluation: split, windows, decoding, scoring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from salsa_dist.config.decides import Coverage, Neither, Transcripts
from salsa_dist.config.sections.placement import PlacementConfig
from salsa_dist.config.sections.section import Section


class DecodingConfig(Section):
    """Greedy decoding; the keys are those of transformers' generate()."""

    repetition_penalty: Transcripts[float] = Field(1.0, gt=0)
    no_repeat_ngram_size: Transcripts[int] = Field(0, ge=0, description="0: off")


Normaliser = Literal["auto", "basic", "english"]
Alike = Literal["digits", "chinese-numbers", "chinese-scripts"]


class EvaluationConfig(Section):
    split: Transcripts[str] = "test"
    clips: Transcripts[int | None] = Field(
        None, ge=1, description="number of clips per language, the first that fit the window; null: all"
    )
    windows_s: Coverage[list[float | None]] = Field(
        [None],
        min_length=1,
        description="audio windows in seconds; null: the base's own. Default: base.window_s",
    )
    batch: Neither[int] = Field(16, ge=1, description="clips per generate() call")
    max_new_tokens: Transcripts[int] = Field(96, ge=1)
    decoding: DecodingConfig = DecodingConfig()
    zero_shot: Coverage[bool] = Field(True, description="decode the clips without an adapter too")
    normaliser: Neither[Normaliser] = Field(
        "auto",
        description="normaliser for scoring: Whisper's `english` or `basic`; auto: english for "
        "English, else basic. Stored transcripts do not change",
    )
    alike: Neither[list[Alike]] = Field(
        [],
        description="variants that count as equal: digits (of any script), chinese-numbers, "
        "chinese-scripts (traditional, simplified)",
    )
    forgetting: Coverage[bool | list[str]] = Field(
        False,
        description="decode each adapter in other languages too: true for all in the shards, or a "
        "list; also decode the base again without any adapter loaded",
    )
    scales: Coverage[list[Annotated[float, Field(ge=-10, le=10)]]] = Field(
        [],
        description="decode with every vector times these factors too, such as [0, 0.5, 1, 1.5]; the "
        "report shows the error rates by scale. 0: as zero-shot; 1: the adapter itself",
    )
    placement: PlacementConfig = PlacementConfig()
