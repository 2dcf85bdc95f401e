"""training: steps, learning rate, what a step costs, checkpoints, measurements on dev clips."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from salsa_dist.config.decides import Neither, Place, Rate, RateScale, Stride, Vectors
from salsa_dist.config.sections.section import Folder, Section


class HalvingConfig(Section):
    """Successive halving: at each rung the worse adapters of a language stop."""

    rungs: Vectors[list[Annotated[int, Field(ge=1)]]] = Field(
        min_length=1, description="steps after which adapters are compared and stopped"
    )
    keep: Vectors[float] = Field(0.5, gt=0, lt=1, description="share of each group that continues")
    metric: Vectors[Literal["dev_loss", "cer", "wer", "mer"]] = Field(
        "dev_loss",
        description="measure on dev clips: mean loss per label, or an error rate with the evaluation "
        "settings, which costs more; mer is for mixed speech",
    )


class TrainingConfig(Section):
    steps: Vectors[int] = Field(160, ge=1, description="steps of each adapter")
    epochs: Vectors[float | None] = Field(
        None,
        gt=0,
        description="number of times that the adapter's training clips are sampled, instead of "
        "training.steps; null: training.steps",
    )
    lr: Rate[Literal["auto"] | Annotated[float, Field(gt=0)] | None] = Field(
        None,
        description="highest learning rate; null: with lr_scale auto that of the rule (gain: 0.01, "
        "others: 0.05), else 0.01. auto: for steering vectors, estimated per adapter in training "
        "(Prodigy), and 0.01 for other methods",
    )
    lr_scale: RateScale[Literal["auto"] | dict[str, Annotated[float, Field(gt=0)]]] = Field(
        "auto",
        description="per-site learning-rate multipliers. auto: the size of the layer's activations, "
        "measured on the adapter's first clips, so that `lr` is relative to it. Or "
        "{llm: 0.5, encoder:5: 3}, where the last match wins; {}: none",
    )
    warmup: Vectors[float] = Field(
        0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises"
    )
    decay: Vectors[Literal["cosine", "none"]] = "cosine"
    clip_norm: Vectors[float | None] = Field(
        1.0, gt=0, description="maximum norm of one adapter's gradient; null: off"
    )
    seed: Vectors[int] = 0
    window_s: Vectors[float | None] = Field(
        None,
        gt=0,
        description="audio window in training, in seconds; null: base.window_s. A shorter window costs "
        "less per step; evaluation still uses base.window_s",
    )
    silence_stride: Stride[Literal["auto"] | Annotated[int, Field(ge=1)]] = Field(
        "auto",
        description="keep 1 in this many encoder positions of the trailing padding, for Whisper, which "
        "pads every clip to 30 s. auto: per adapter the largest of 2, 4, 8 and 16 with a median "
        "cosine of at least 0.99 between gradients and the whole window's, on its first clips, else 1. "
        "1 keeps all",
    )
    silence_ends_s: Vectors[float | None] = Field(
        None,
        ge=0,
        description="with thinned padding: seconds at each of its two ends in which every position is "
        "kept. null: a sixtieth of the window with silence_stride auto, 0 with a number, as in release "
        "0.1",
    )
    micro_batch: Neither[Literal["auto"] | Annotated[int, Field(ge=1)]] = Field(
        16,
        description="audio windows per forward pass on one rank; halved if the device is out of "
        "memory. auto: the largest power of two that the planner has room for, in the placement that "
        "passes of one clip have",
    )
    pass_seconds: Neither[float | None] = Field(
        None,
        gt=0,
        description="maximum seconds of audio per forward pass on one rank, padding included; null: "
        "micro_batch alone limits a pass. A longer clip is a pass of its own",
    )
    deterministic: Neither[bool] = Field(
        False,
        description="use only deterministic kernels: on a GPU, equality to the bit after a kill needs "
        "them. Their cost in time was not measured",
    )
    activation_checkpointing: Neither[bool] = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    compile: Neither[Literal["off", "rule", "layers"]] = Field(
        "off",
        description="torch.compile for training. rule: the update rule is one kernel. layers: the "
        "base's layers too, where each rank has a whole copy. Results are the same up to rounding; "
        "the first steps take a minute longer",
    )
    share_prefix: Neither[bool] = Field(
        True,
        description="run the unsteered prefix once per clip, for all adapters that sample the clip",
    )
    prefix_cache: Neither[Literal["off", "memory", "disk"]] = Field(
        "off", description="store the output of the unsteered prefix, computed once per clip"
    )
    prefix_cache_gb: Neither[float] = Field(
        4, gt=0, description="maximum GB of the prefix cache: memory per rank, or disk in total"
    )
    prefix_folder: Place[Folder | None] = Field(
        None, description="folder of the prefix cache on disk; null: in the run's folder"
    )
    save_every_s: Neither[float] = Field(60, ge=0, description="seconds between two checkpoints")
    keep: Neither[int] = Field(2, ge=1, description="number of checkpoints to keep")
    max_skipped: Vectors[int] = Field(
        10, ge=0, description="steps in a row that may skip an adapter; after one more the run stops"
    )
    max_loss: Vectors[float | None] = Field(
        30.0,
        gt=0,
        description="skip steps with a larger loss or a NaN gradient; loss in nats per label: "
        "guessing among 150,000 tokens costs 12; null: off",
    )
    hang_after_s: Neither[float] = Field(
        300,
        gt=0,
        description="seconds without progress, in the start or in a step, before a rank counts as hung",
    )
    dev_clips: Vectors[int] = Field(
        0, ge=0, description="dev clips per language to measure adapters on; 0: do not measure"
    )
    dev_every: Vectors[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None] = (
        Field(
            None,
            description="steps between two measurements on dev clips, or a share of the steps, such as "
            "0.1. The best vectors are saved as the adapter, the last ones in last/. null: measure at "
            "the end only, save the last ones",
        )
    )
    dev_metric: Vectors[Literal["dev_loss", "cer", "wer", "mer"]] = Field(
        "dev_loss",
        description="measure for choosing the best vectors: mean loss per label, or an error rate with "
        "the evaluation settings, which costs more",
    )
    average: Vectors[Annotated[int, Field(ge=2)] | Annotated[float, Field(gt=0, lt=1)] | None] = Field(
        None,
        description="measure and save an average over an adapter's steps: over the last 20, for "
        "example, or an exponential average with a decay such as 0.98. null: the vectors themselves",
    )
    patience: Vectors[int | None] = Field(
        None,
        ge=1,
        description="stop an adapter after this many measurements in a row without an improvement; "
        "null: train to the end",
    )
    halving: HalvingConfig | None = Field(
        None, description="stop the worse adapters early; null: train all to the end"
    )

    @property
    def clips_per_pass(self) -> int:
        """`micro_batch`; 1 as long as `auto` is not settled, which a run does at its start."""
        return 1 if self.micro_batch == "auto" else self.micro_batch
