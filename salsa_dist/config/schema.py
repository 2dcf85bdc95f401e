"""One typed tree for every run.

Config
├── run          folder of the run: events, state, adapters, report
├── base         which speech-LLM, its precision, its audio window
├── data         where the shards are, how much of them one adapter step takes
├── method       salsa, or what it is compared with: lora, bias, mean-difference, in-context …
├── steering     sites and rule, for every adapter that does not say otherwise
├── adapters     a list: one entry, one adapter, one row of the bank
├── training     steps, learning rate, checkpoints
├── placement    how many consecutive ranks share one copy of the base
├── evaluation   split, windows, decoding
└── trackers     where losses are drawn
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from salsa_dist.config.decides import (
    Both,
    Coverage,
    Neither,
    Place,
    Transcripts,
    Vectors,
    VectorsByOrder,
)


def _known_rule(name: str) -> str:
    from salsa_dist.steering.rules import RULES  # torch comes with it: only where a rule is named

    if name not in RULES:
        raise ValueError(f"no such update rule; known are {', '.join(RULES)}")
    return name


Rule = Annotated[str, AfterValidator(_known_rule)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def _expand(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) else value


Folder = Annotated[Path, BeforeValidator(_expand)]


class BaseConfig(_Section):
    name: Place[Annotated[str, BeforeValidator(_expand)]] = Field(
        description="folder with a Hugging Face checkpoint, or a name on a hub"
    )
    revision: Neither[str | None] = Field(None, description="hub branch, tag or commit")
    dtype: Both[Literal["float32", "bfloat16", "float16"]] = "float32"
    window_s: Vectors[float | None] = Field(
        None, gt=0, description="audio window in seconds; null: the base's own"
    )
    stage_to: Place[str | None] = Field(
        None,
        description="folder on each node's own disk for a copy of the base: $SLURM_TMPDIR",
    )
    prompt: Both[str | None] = Field(
        None, description="instruction instead of the authors' own; {language} becomes its name"
    )
    layers: Both[dict[str, str]] = Field(
        {}, description="layer lists of an odd base, such as {encoder: model.audio_tower.layers}"
    )
    language_as: Both[dict[str, str]] = Field(
        {}, description="languages announced to the base as another, such as {tw: yo}"
    )


def _range(lowest: float) -> Any:
    def check(value: tuple[float, float]) -> tuple[float, float]:
        if not lowest < value[0] <= value[1]:
            raise ValueError(f"a range is two rising numbers above {lowest:g}")
        return value

    return AfterValidator(check)


class AugmentConfig(_Section):
    speed: Vectors[Annotated[tuple[float, float], _range(0.1)] | None] = Field(
        None, description="range of factors, such as [0.9, 1.1]; null: off"
    )
    noise_db: Vectors[Annotated[tuple[float, float], _range(-100)] | None] = Field(
        None, description="range of signal-to-noise ratios in dB, such as [10, 30]; null: off"
    )
    time_masks: Vectors[int] = Field(
        0, ge=0, le=20, description="stretches made silent, a tenth of a clip each"
    )
    frequency_masks: Vectors[int] = Field(
        0, ge=0, le=20, description="bands taken out, an eighth of the spectrum each at most"
    )


class DataConfig(_Section):
    shards: Place[Folder] = Field(description="folder with tar shards and their index.json")
    clips_per_step: Vectors[int | None] = Field(
        None, ge=1, description="clips of one adapter step, over all ranks; 8 if neither is set"
    )
    seconds_per_step: Vectors[float | None] = Field(
        None, gt=0, description="or its seconds of audio, in clips of similar lengths"
    )
    join_clips: Vectors[int] = Field(
        1,
        ge=1,
        description="clips that are laid one behind the other in one audio window, at most; how many "
        "is drawn anew each time. For short clips and a base whose window is long",
    )
    readers: Vectors[int] = Field(
        4, ge=1, description="virtual readers an adapter; its batches depend on this, not on ranks"
    )
    workers: Neither[int] = Field(0, ge=0, description="processes a rank that read ahead; 0: none")
    max_bad: Neither[int] = Field(
        100, ge=0, description="samples that may be unusable, and are replaced, before the run stops"
    )
    stage_to: Place[str | None] = Field(
        None, description="folder on each node's own disk for copies of the shards: $SLURM_TMPDIR"
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

    def clips_of_a_step(self, mean_s: float) -> int:
        """Clips of one adapter step, about, where a clip lasts `mean_s` seconds on average."""
        if self.clips_per_step is not None:
            return self.clips_per_step
        return max(1, round((self.seconds_per_step or 0) / mean_s))


class SteeringConfig(_Section):
    sites: Vectors[str] = Field(
        "encoder", description="encoder, llm, encoder:0-3, encoder:last-half+llm …"
    )
    rule: Vectors[Rule] = Field("salsa", description="salsa keeps the activation's norm; add does not")


class MixConfig(_Section):
    """How often an adapter draws from each of its languages."""

    temperature: Vectors[float | None] = Field(
        None, gt=0, description="T of p ~ n^(1/T), n being a language's clips; 1 if neither is set"
    )
    weights: Vectors[dict[str, Annotated[float, Field(gt=0)]] | None] = Field(
        None, description="or a weight for each language, such as {bg: 2, el: 1}"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> MixConfig:
        if self.temperature is not None and self.weights is not None:
            raise ValueError("temperature and weights are both set: take one of them")
        return self


class AdapterConfig(_Section):
    """One adapter. What is left out is taken from `steering`, `training` and `data`."""

    name: Neither[str] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    language: Vectors[str | Annotated[list[str], Field(min_length=1)]] = Field(
        description="a language code, or a list of several to be mixed"
    )
    mix: MixConfig = MixConfig()
    sites: Vectors[str | None] = None
    rule: Vectors[Rule | None] = None
    lr: Vectors[float | None] = Field(None, gt=0)
    steps: Vectors[int | None] = Field(None, ge=1)
    seed: Vectors[int | None] = None
    minutes: Vectors[float | None] = Field(
        None, gt=0, description="of speech to train on, chosen by the seed; null: all there is"
    )
    scale: Vectors[float | None] = Field(None, description="of a mean difference; null: the method's")
    start_from: Vectors[Folder | None] = Field(
        None, description="an adapter's folder or file that training starts from; null: from zero"
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
    """One adapter with nothing left out."""

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
        min_length=1, description="steps before which adapters are dropped"
    )
    keep: Vectors[float] = Field(0.5, gt=0, lt=1, description="share of each group that goes on")
    metric: Vectors[Literal["dev_loss", "cer"]] = Field(
        "dev_loss",
        description="on dev clips: mean loss a label; or the character error rate of what evaluation's "
        "settings decode, which is dearer",
    )


class _Method(_Section):
    """What others ask of a method; how it is done is in `methods/`.

    Attributes:
        trains: `salsa-dist train` makes adapters, by gradient steps or otherwise.
        learns: it trains by gradient steps.
        steers: its adapters are vectors beside the base: all share one pass, wherever its weights are.
        adapts: it changes what the base writes.
    """

    trains: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    steers: ClassVar[bool] = False
    adapts: ClassVar[bool] = True

    @property
    def needs_whole_base(self) -> bool:
        """Each rank must hold the whole base, and its adapters come one after another."""
        return self.adapts and not self.steers


class SalsaMethod(_Method):
    """Steering vectors, trained: what this project is for."""

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

    kind: Vectors[Literal["bias"]]


class MeanDifferenceMethod(_Method):
    """Vectors that are not trained: mean activations of another language's speech less one's own."""

    learns = False
    steers = True
    kind: Vectors[Literal["mean-difference"]]
    contrast: Vectors[str] = Field(description="language that the base knows well, in the same shards")
    scale: Vectors[float] = Field(1.0, description="how much of the difference; chosen on dev")
    clips: Vectors[int] = Field(100, ge=1, description="training clips of each language")


class InContextMethod(_Method):
    """Solved examples before each utterance; nothing is trained."""

    trains = learns = False
    kind: Both[Literal["in-context"]]
    examples: Both[int] = Field(4, ge=1, description="fewer where they do not fit the window")
    choose: Both[Literal["random", "audio", "text"]] = Field(
        "random",
        description="at random; or nearest by the base's own encoder, or by the letters of its draft",
    )
    pool: Both[int] = Field(200, ge=1, description="training clips to choose from")


class ZeroShotMethod(_Method):
    """The base as it is."""

    trains = learns = adapts = False
    kind: Vectors[Literal["zero-shot"]]


Method = SalsaMethod | LoraMethod | BiasMethod | MeanDifferenceMethod | InContextMethod | ZeroShotMethod


class TrainingConfig(_Section):
    steps: Vectors[int] = Field(160, ge=1, description="steps of each adapter")
    lr: Vectors[float] = Field(1e-2, gt=0)
    lr_scale: VectorsByOrder[dict[str, Annotated[float, Field(gt=0)]]] = Field(
        {},
        description="by which the rate of some steering vectors is multiplied, such as {llm: 0.5, "
        "encoder:5: 3}; of two that name a layer the last. For layers whose activations differ in size",
    )
    warmup: Vectors[float] = Field(
        0.05, ge=0, lt=1, description="share of the steps with a rising rate"
    )
    decay: Vectors[Literal["cosine", "none"]] = "cosine"
    clip_norm: Vectors[float | None] = Field(
        1.0, gt=0, description="of one adapter's gradient; null: off"
    )
    seed: Vectors[int] = 0
    window_s: Vectors[float | None] = Field(
        None,
        gt=0,
        description="audio window of the clips that are trained on, in seconds; null: base.window_s. A "
        "shorter one costs less a step; what is learned there is used and compared at base.window_s",
    )
    silence_stride: Vectors[int] = Field(
        1,
        ge=1,
        description="for Whisper, whose window is 30 s whatever a clip's length: of the silence behind "
        "a clip training hears one position of so many, which stands for them. With 8 short clips are "
        "several times cheaper, and gradients nearly the same; 1 hears all",
    )
    micro_batch: Neither[int] = Field(
        16, ge=1, description="audio windows of one forward pass on one rank"
    )
    activation_checkpointing: Neither[bool] = Field(
        False, description="make activations again in backward: less memory, more time"
    )
    share_prefix: Neither[bool] = Field(
        True, description="a clip that several adapters take is heard once, up to their first layer"
    )
    prefix_cache: Neither[Literal["off", "memory", "disk"]] = Field(
        "off", description="keep what lies below the first steered layer, computed once a clip"
    )
    prefix_cache_gb: Neither[float] = Field(
        4, gt=0, description="room for it: of each rank's memory, or of the disk in all"
    )
    prefix_folder: Place[Folder | None] = Field(
        None, description="where it is kept on disk; null: in the run's folder"
    )
    save_every_s: Neither[float] = Field(60, ge=0, description="seconds between two checkpoints")
    keep: Neither[int] = Field(2, ge=1, description="checkpoints kept")
    max_skipped: Vectors[int] = Field(
        10, ge=0, description="skipped steps in a row before the run stops"
    )
    max_loss: Vectors[float | None] = Field(
        30.0,
        gt=0,
        description="a step of a larger loss is skipped, as one with a NaN gradient; nats a label, "
        "where guessing among 150,000 tokens costs 12; null: off",
    )
    hang_after_s: Neither[float] = Field(
        300,
        gt=0,
        description="seconds at one place, of the start or of a step, before a rank counts as hung",
    )
    dev_clips: Vectors[int] = Field(
        0, ge=0, description="dev clips a language that adapters are measured on; 0: not measured"
    )
    halving: HalvingConfig | None = Field(
        None, description="stop the worse adapters early; null: all go to their end"
    )


class PlacementConfig(_Section):
    kind: Neither[Literal["replicate", "node", "full", "auto"] | int] = Field(
        "auto",
        description="ranks that share one copy: replicate (1), node, full (all), or a number; auto: "
        "the fewest whose memory suffices",
    )
    ds_config: Place[Path | None] = Field(
        None,
        description="DeepSpeed config: a file, or one in ds_configs/ such as lean.json; null: the one "
        "there for this placement",
    )
    offload: Neither[Literal["none", "cpu", "nvme"]] = Field(
        "none", description="where a shared base's parts are between uses: the device, RAM, or a disk"
    )
    nvme_path: Place[Folder | None] = Field(
        None, description="folder on each node's own disk, for offload: nvme"
    )


class DecodingConfig(_Section):
    """Greedy decoding, as generate() of transformers understands these words."""

    repetition_penalty: Transcripts[float] = Field(1.0, gt=0)
    no_repeat_ngram_size: Transcripts[int] = Field(0, ge=0, description="0: off")


Normaliser = Literal["auto", "basic", "english"]
Alike = Literal["digits", "chinese-numbers", "chinese-scripts"]


class EvaluationConfig(_Section):
    split: Transcripts[str] = "test"
    clips: Transcripts[int | None] = Field(
        None, ge=1, description="the first so many of each language that fit the window; null: all"
    )
    windows_s: Coverage[list[float | None]] = Field(
        [None], min_length=1, description="audio windows in seconds; null: the base's own"
    )
    batch: Neither[int] = Field(16, ge=1, description="clips of one generate() call")
    max_new_tokens: Transcripts[int] = Field(96, ge=1)
    decoding: DecodingConfig = DecodingConfig()
    zero_shot: Coverage[bool] = Field(True, description="decode the clips without an adapter too")
    normaliser: Neither[Normaliser] = Field(
        "auto",
        description="what is done to texts before errors are counted, never to transcripts: Whisper's "
        "`english` normaliser, its `basic` one, or english for English alone",
    )
    alike: Neither[list[Alike]] = Field(
        [],
        description="what counts as the same besides: digits of any script, chinese-numbers, "
        "chinese-scripts (traditional, simplified)",
    )
    forgetting: Coverage[bool | list[str]] = Field(
        False,
        description="decode each adapter in other languages too, true: in all of the shards, or in "
        "those listed; and the base once more without adapters beside it",
    )
    placement: PlacementConfig = PlacementConfig()


class Config(_Section):
    run: Place[Folder] = Field(description="folder of this run")
    base: BaseConfig
    data: DataConfig
    method: Annotated[Method, Field(discriminator="kind")] = SalsaMethod()
    steering: SteeringConfig = SteeringConfig()
    adapters: list[AdapterConfig] = Field(min_length=1)
    training: TrainingConfig = TrainingConfig()
    placement: PlacementConfig = PlacementConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: Neither[list[Literal["tensorboard", "wandb", "trackio"]]] = Field(
        ["tensorboard"], description="where the curves are drawn: tensorboard, wandb, trackio"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Config:
        names = [a.name for a in self.adapters]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two adapters are called {', '.join(twice)}: names must differ")
        return self

    @model_validator(mode="after")
    def _rungs_fit(self) -> Config:
        halving = self.training.halving
        if halving is not None:
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
                "data.join_clips makes other windows each time, and training.prefix_cache keeps clips: "
                "take one of them"
            )
        if self.training.silence_stride > 1 and self.training.prefix_cache != "off":
            raise ValueError(
                "training.silence_stride hears part of a window, and training.prefix_cache keeps whole "
                "ones: take one of them"
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

    def adapter_settings(self) -> list[AdapterSettings]:
        """The adapters in row order, each with all that it did not say itself filled in."""
        t = self.training
        return [
            AdapterSettings(
                name=a.name,
                languages=a.languages,
                mix=a.mix,
                sites=a.sites or self.steering.sites,
                rule=a.rule or self.steering.rule,
                lr=a.lr or t.lr,
                steps=a.steps or t.steps,
                seed=t.seed if a.seed is None else a.seed,
                minutes=a.minutes,
                scale=getattr(self.method, "scale", 1.0) if a.scale is None else a.scale,
                start_from=a.start_from,
            )
            for a in self.adapters
        ]

    def base_in_training(self) -> BaseConfig:
        """The base with the audio window that training hears."""
        window = self.training.window_s or self.base.window_s
        return self.base.model_copy(update={"window_s": window})
