"""One typed tree for every run.

Config
├── run          folder of the run: events, state, adapters, report
├── device       cpu or cuda; auto: a GPU where there is one
├── base         which speech-LLM, its precision, its audio window
├── data         where the shards are, how many clips an adapter step has
├── method       salsa, or a method to compare with: lora, bias, mean-difference, in-context …
├── steering     sites and rule: the defaults of every adapter
├── adapters     a list: one entry, one adapter, one row of the bank
├── training     steps, learning rate, checkpoints
├── placement    how many consecutive ranks share one copy of the base
├── evaluation   split, windows, decoding
└── trackers     where losses are plotted
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from salsa_dist.config.decides import (
    Both,
    Coverage,
    Neither,
    Place,
    Precision,
    Rate,
    RateScale,
    Transcripts,
    Vectors,
)
from salsa_dist.places import Cache, Remote, place
from salsa_dist.steering.rules import RULES


def _known_rule(name: str) -> str:
    if name not in RULES:
        raise ValueError(f"no such update rule; known are {', '.join(RULES)}")
    return name


Rule = Annotated[str, AfterValidator(_known_rule)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def _expand(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) else value


def _local(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError("it must be a folder here: in a store may lie only shards")
    return _expand(value)


Folder = Annotated[Path, BeforeValidator(_local)]
# A folder, or a place in an object store or on a hub, such as s3://bucket/prefix.
Shards = Annotated[
    Path | Remote,
    BeforeValidator(place),
    PlainSerializer(str, return_type=str, when_used="json"),
]


class BaseConfig(_Section):
    name: Place[Annotated[str, BeforeValidator(_expand)]] = Field(
        description="folder with a Hugging Face checkpoint, or a name on a hub"
    )
    revision: Neither[str | None] = Field(None, description="hub branch, tag or commit")
    dtype: Precision[Literal["auto", "float32", "bfloat16", "float16"]] = Field(
        "auto",
        description="precision of the weights; auto: as the run began, else on a GPU the checkpoint's "
        "own, with bfloat16 for float16, and float32 on the CPU",
    )
    attn_implementation: Neither[
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None
    ] = Field(
        None,
        description="attention kernels of transformers, where they are installed; null: its own choice",
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
        description="languages that the prompt replaces by another, such as {tw: yo}; for Whisper also "
        "by several, {zh-en: zh+en}",
    )


def _range(lowest: float) -> Any:
    def check(value: tuple[float, float]) -> tuple[float, float]:
        if not lowest < value[0] <= value[1]:
            raise ValueError(f"a range is two rising numbers above {lowest:g}")
        return value

    return AfterValidator(check)


class AugmentConfig(_Section):
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


class DataConfig(_Section):
    shards: Place[Shards] = Field(
        description="folder with tar shards and their index.json, or a place in a store: s3://bucket/prefix"
    )
    cache: Place[Folder | None] = Field(
        None,
        description="folder on each node's own disk for what is fetched of shards in a store; default: "
        "~/.cache/salsa-dist",
    )
    cache_gb: Neither[float] = Field(64, gt=0, description="gigabytes that this cache may take")
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
            raise ValueError("clips_per_step and seconds_per_step are both set: take one of them")
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


class SteeringConfig(_Section):
    sites: Vectors[str] = Field(
        "encoder", description="encoder, llm, encoder:0-3, encoder:last-half+llm …"
    )
    rule: Vectors[Rule] = Field("salsa", description="salsa keeps the activation's norm; add does not")


class MixConfig(_Section):
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
            raise ValueError("temperature and weights are both set: take one of them")
        return self


class AdapterConfig(_Section):
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
    """One adapter with all settings filled in."""

    name: str
    languages: tuple[str, ...]
    mix: MixConfig
    sites: str
    rule: str
    lr: float
    steps: int
    seed: int
    minutes: float | None = None
    scale: float = 1.0
    start_from: Path | None = None

    @property
    def language(self) -> str:
        """The adapter's language; empty where it has several."""
        return self.languages[0] if len(self.languages) == 1 else ""


class HalvingConfig(_Section):
    """Successive halving: at each rung the worse adapters of a language stop."""

    rungs: Vectors[list[Annotated[int, Field(ge=1)]]] = Field(
        min_length=1, description="steps after which adapters are compared and stopped"
    )
    keep: Vectors[float] = Field(0.5, gt=0, lt=1, description="share of each group that continues")
    metric: Vectors[Literal["dev_loss", "cer", "wer", "mer"]] = Field(
        "dev_loss",
        description="measure on dev clips: mean loss per label, or an error rate under the settings of "
        "evaluation, which costs more; mer is that of mixed speech",
    )


class _Method(_Section):
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
        """Each rank must hold the whole base, and adapters are trained one after another."""
        return self.adapts and not self.steers

    @property
    def in_a_bank(self) -> bool:
        """Its adapters are trained together, as many in a job as there is room for."""
        return self.steers and self.learns

    def clips_computed(self, languages: Collection[str]) -> int:
        """How many clips are processed, once, to compute the adapters of `languages`."""
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


Method = SalsaMethod | LoraMethod | BiasMethod | MeanDifferenceMethod | InContextMethod | ZeroShotMethod


class TrainingConfig(_Section):
    steps: Vectors[int] = Field(160, ge=1, description="steps of each adapter")
    epochs: Vectors[float | None] = Field(
        None,
        gt=0,
        description="in place of training.steps: as many steps as it takes to sample so many times the "
        "number of the adapter's training clips; null: steps",
    )
    lr: Rate[float | None] = Field(
        None,
        gt=0,
        description="highest learning rate; null: 0.03 with lr_scale auto, else 0.01",
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
    silence_stride: Vectors[int] = Field(
        1,
        ge=1,
        description="keep 1 in this many encoder positions of the trailing padding, for Whisper, which "
        "pads every clip to 30 s. With 8, short clips are several times cheaper and gradients nearly "
        "the same; 1 keeps all",
    )
    micro_batch: Neither[int] = Field(
        16,
        ge=1,
        description="audio windows per forward pass on one rank; halved where they are more than the "
        "device's memory holds",
    )
    pass_seconds: Neither[float | None] = Field(
        None,
        gt=0,
        description="maximum seconds of audio per forward pass on one rank, padding included; null: "
        "micro_batch alone limits a pass. A longer clip is a pass of its own",
    )
    deterministic: Neither[bool] = Field(
        False,
        description="deterministic kernels alone: on a GPU, equality to the bit after a kill needs "
        "them. They cost time, which was not measured",
    )
    activation_checkpointing: Neither[bool] = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
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
        10, ge=0, description="skipped steps in a row before the run stops"
    )
    max_loss: Vectors[float | None] = Field(
        30.0,
        gt=0,
        description="skip steps with a larger loss, as those with a NaN gradient; in nats per label: "
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
        description="measure that the best vectors are chosen by: mean loss per label, or an error "
        "rate under the settings of evaluation, which costs more",
    )
    average: Vectors[Annotated[int, Field(ge=2)] | Annotated[float, Field(gt=0, lt=1)] | None] = Field(
        None,
        description="measure and save an average over an adapter's steps: of the last ones, such as "
        "20, or an exponential one by its decay, such as 0.98. null: what the last step left",
    )
    patience: Vectors[int | None] = Field(
        None,
        ge=1,
        description="measurements in a row without a better one, after which an adapter stops; null: "
        "train to the end",
    )
    halving: HalvingConfig | None = Field(
        None, description="stop the worse adapters early; null: train all to the end"
    )


class PlacementConfig(_Section):
    kind: Neither[Literal["replicate", "node", "full", "auto"] | int] = Field(
        "auto",
        description="shard group size, the ranks that share one copy of the base: replicate (1), node, "
        "full (all), or a number; auto: the smallest that fits",
    )
    ds_config: Place[Path | None] = Field(
        None,
        description="DeepSpeed config: a file, or a name in ds_configs/ such as lean.json; null: the "
        "one for this placement",
    )
    offload: Neither[Literal["none", "cpu", "nvme"]] = Field(
        "none",
        description="where partitions are stored between uses: on the device, in RAM, or on a disk",
    )
    nvme_path: Place[Folder | None] = Field(
        None, description="folder on each node's own disk, for offload: nvme"
    )


class DecodingConfig(_Section):
    """Greedy decoding; the keys are those of transformers' generate()."""

    repetition_penalty: Transcripts[float] = Field(1.0, gt=0)
    no_repeat_ngram_size: Transcripts[int] = Field(0, ge=0, description="0: off")


Normaliser = Literal["auto", "basic", "english"]
Alike = Literal["digits", "chinese-numbers", "chinese-scripts"]


class EvaluationConfig(_Section):
    split: Transcripts[str] = "test"
    clips: Transcripts[int | None] = Field(
        None, ge=1, description="number of clips per language, the first that fit the window; null: all"
    )
    windows_s: Coverage[list[float | None]] = Field(
        [None],
        min_length=1,
        description="audio windows in seconds, null for the base's own; without this key base.window_s",
    )
    batch: Neither[int] = Field(16, ge=1, description="clips per generate() call")
    max_new_tokens: Transcripts[int] = Field(96, ge=1)
    decoding: DecodingConfig = DecodingConfig()
    zero_shot: Coverage[bool] = Field(True, description="decode the clips without an adapter too")
    normaliser: Neither[Normaliser] = Field(
        "auto",
        description="normaliser for scoring; stored transcripts do not change. Whisper's `english` or "
        "`basic` one; auto: english for English, else basic",
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
    placement: PlacementConfig = PlacementConfig()


class Config(_Section):
    run: Place[Folder] = Field(description="folder of this run")
    device: Neither[Literal["auto", "cuda", "cpu"]] = Field(
        "auto",
        description="cuda: stop where a rank finds no GPU, as a launch with --gpus-per-node does; cpu: "
        "use no GPU; auto: a GPU where there is one",
    )
    base: BaseConfig
    data: DataConfig
    method: Annotated[Method, Field(discriminator="kind")] = SalsaMethod()
    steering: SteeringConfig = SteeringConfig()
    adapters: list[AdapterConfig] = Field(min_length=1)
    training: TrainingConfig = TrainingConfig()
    placement: PlacementConfig = PlacementConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: Neither[list[Literal["tensorboard", "wandb", "trackio"]]] = Field(
        ["tensorboard"], description="where curves are plotted: tensorboard, wandb, trackio"
    )

    @model_validator(mode="before")
    @classmethod
    def _scored_at_the_window_of_the_base(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        base, evaluation = tree.get("base"), tree.get("evaluation") or {}
        if isinstance(base, dict) and isinstance(evaluation, dict) and "windows_s" not in evaluation:
            window = base.get("window_s")
            return (
                tree
                if window is None
                else {**tree, "evaluation": {**evaluation, "windows_s": [window]}}
            )
        return tree

    @model_validator(mode="after")
    def _names_differ(self) -> Config:
        names = [a.name for a in self.adapters]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two adapters are called {', '.join(twice)}: names must differ")
        return self

    @model_validator(mode="after")
    def _dev_is_measured(self) -> Config:
        training = self.training
        if training.dev_every is not None and not training.dev_clips:
            raise ValueError("training.dev_every needs training.dev_clips, such as 32")
        if training.patience is not None and training.dev_every is None:
            raise ValueError("training.patience counts measurements: it needs training.dev_every")
        return self

    @model_validator(mode="after")
    def _rungs_fit(self) -> Config:
        halving = self.training.halving
        if halving is not None:
            if self.training.epochs is not None:
                raise ValueError("training.halving counts steps: set training.steps, not epochs")
            if not self.training.dev_clips:
                raise ValueError("training.halving needs training.dev_clips, such as 32")
            steps = {a.steps for a in self.adapter_settings()}
            if len(steps) > 1 or max(halving.rungs) >= min(steps):
                raise ValueError(
                    "training.halving: all adapters must have the same number of steps, more than the "
                    f"last rung; rungs are {halving.rungs}, steps {sorted(steps)}"
                )
        return self

    @model_validator(mode="after")
    def _windows_nest(self) -> Config:
        short, compared = self.training.window_s, self.base.window_s
        if short is not None and compared is not None and short > compared:
            raise ValueError(
                f"training.window_s is {short:g} and base.window_s {compared:g}: the window that is "
                "trained on can't be the longer one"
            )
        return self

    @model_validator(mode="after")
    def _clips_may_be_kept(self) -> Config:
        if self.data.join_clips > 1 and self.training.prefix_cache != "off":
            raise ValueError(
                "data.join_clips makes new windows in each epoch, and training.prefix_cache stores "
                "clips: use one of them"
            )
        if self.training.silence_stride > 1 and self.training.prefix_cache != "off":
            raise ValueError(
                "training.silence_stride keeps part of a window, and training.prefix_cache stores "
                "whole ones: use one of them"
            )
        return self

    @model_validator(mode="after")
    def _languages_suit_the_method(self) -> Config:
        several = [a.name for a in self.adapters if len(a.languages) > 1]
        if several and self.method.adapts and not self.method.learns:
            raise ValueError(
                f"adapter {several[0]} has several languages, and method {self.method.kind} takes one"
            )
        return self

    def rate(self, method: Method) -> float:
        """Learning rate of an adapter of `method` that names none."""
        relative = method.in_a_bank and self.training.lr_scale == "auto"
        return self.training.lr or (0.03 if relative else 0.01)

    def adapter_settings(self) -> list[AdapterSettings]:
        """The adapters in row order, each with defaults filled in."""
        t = self.training
        return [
            AdapterSettings(
                name=a.name,
                languages=a.languages,
                mix=a.mix,
                sites=a.sites or self.steering.sites,
                rule=a.rule or self.steering.rule,
                lr=a.lr or self.rate(self.method),
                steps=a.steps or t.steps,
                seed=t.seed if a.seed is None else a.seed,
                minutes=a.minutes,
                scale=getattr(self.method, "scale", 1.0) if a.scale is None else a.scale,
                start_from=a.start_from,
            )
            for a in self.adapters
        ]

    def base_in_training(self) -> BaseConfig:
        """The base with the audio window of training."""
        window = self.training.window_s or self.base.window_s
        return self.base.model_copy(update={"window_s": window})
