"""base: which speech-LLM, its precision, its audio window."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from salsa_dist.config.decides import Both, Neither, Place, Precision, Vectors
from salsa_dist.config.sections.section import Section, expand


class BaseConfig(Section):
    name: Place[Annotated[str, BeforeValidator(expand)]] = Field(
        description="folder with a Hugging Face checkpoint, or a name on a hub"
    )
    revision: Neither[str | None] = Field(None, description="hub branch, tag or commit")
    dtype: Precision[Literal["auto", "float32", "bfloat16", "float16"]] = Field(
        "auto",
        description="precision of the weights. auto: float32 on the CPU; on a GPU the checkpoint's "
        "own, or bfloat16 if that is float16. A resumed run keeps its precision",
    )
    quantization: Both[Literal["int8", "bnb8", "nf4"] | None] = Field(
        None,
        description="quantise the linear weights while loading: int8 by torchao (weights only, the CPU "
        "too), bnb8 or nf4 by bitsandbytes; null: as they are stored",
    )
    attn_implementation: Neither[
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None
    ] = Field(
        None,
        description="attention kernels of transformers; null: its own choice",
    )
    window_s: Vectors[float | None] = Field(
        None, gt=0, description="audio window in seconds; null: the base's own"
    )
    stage_to: Place[str | None] = Field(
        None,
        description="folder on each node's own disk for a copy of the base, such as $SLURM_TMPDIR",
    )
    prompt: Both[str | None] = Field(
        None,
        description="instruction in place of the authors' own; {language} becomes the language's name",
    )
    layers: Both[dict[str, str]] = Field(
        {},
        description="paths of unusual layer lists, such as {encoder: model.audio_tower.layers}",
    )
    language_as: Both[dict[str, str]] = Field(
        {},
        description="languages to replace by others in the prompt, such as {tw: yo}; for Whisper also "
        "by several, {zh-en: zh+en}",
    )
