"""The schema of a config; each section is documented in its file in `sections/`.

Config
├── run          folder of the run: events, state, adapters, report
├── device       cpu or cuda; auto: a GPU where there is one
├── base         base.py: which speech-LLM, its precision, its audio window
├── data         data.py: where the shards are, how many clips an adapter step has
├── method       method.py: salsa, or a method to compare with: lora, beft, mean-difference …
├── steering     adapters.py: sites and rule, the defaults of every adapter
├── adapters     adapters.py: a list: one entry, one adapter, one row of the bank
├── training     training.py: steps, learning rate, checkpoints
├── placement    placement.py: how many consecutive ranks share one copy of the base
├── evaluation   evaluation.py: split, windows, decoding
└── trackers     where losses are plotted
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from salsa_dist.config.decides import Neither, Place
from salsa_dist.config.sections.adapters import AdapterConfig, AdapterSettings, SteeringConfig
from salsa_dist.config.sections.base import BaseConfig
from salsa_dist.config.sections.data import AugmentConfig, DataConfig
from salsa_dist.config.sections.evaluation import EvaluationConfig
from salsa_dist.config.sections.method import Method, SalsaMethod
from salsa_dist.config.sections.placement import PlacementConfig
from salsa_dist.config.sections.section import Folder, Section
from salsa_dist.config.sections.training import TrainingConfig
from salsa_dist.steering.rules.registry import rule_named


class Config(Section):
    run: Place[Folder] = Field(description="folder of this run")
    device: Neither[Literal["auto", "cuda", "cpu"]] = Field(
        "auto",
        description="cuda: stop where a rank finds no GPU, as a launch that asks for GPUs does; cpu: "
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
        ["tensorboard"], description="where curves are plotted"
    )

    @model_validator(mode="before")
    @classmethod
    def _scored_at_the_window_of_the_base(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        base, evaluation = tree.get("base"), tree.get("evaluation") or {}
        window = base.get("window_s") if isinstance(base, dict) else None
        if window is None or not isinstance(evaluation, dict) or "windows_s" in evaluation:
            return tree
        return {**tree, "evaluation": {**evaluation, "windows_s": [window]}}

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        self._names_differ()
        self._dev_is_measured()
        self._rungs_fit()
        self._windows_nest()
        self._clips_may_be_kept()
        self._kernels_suit()
        self._rates_suit()
        self._languages_suit_the_method()
        return self

    def _names_differ(self) -> None:
        names = [a.name for a in self.adapters]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two adapters are called {', '.join(twice)}: names must differ")

    def _dev_is_measured(self) -> None:
        training = self.training
        if training.dev_every is not None and not training.dev_clips:
            raise ValueError("training.dev_every needs training.dev_clips, such as 32")
        if training.patience is not None and training.dev_every is None:
            raise ValueError("training.patience counts measurements: it needs training.dev_every")

    def _rungs_fit(self) -> None:
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

    def _windows_nest(self) -> None:
        short, compared = self.training.window_s, self.base.window_s
        if short is not None and compared is not None and short > compared:
            raise ValueError(
                f"training.window_s is {short:g} and base.window_s {compared:g}: "
                "training.window_s must not be longer than base.window_s"
            )

    def _clips_may_be_kept(self) -> None:
        if self.data.join_clips > 1 and self.training.prefix_cache != "off":
            raise ValueError(
                "data.join_clips makes new windows in each epoch, and training.prefix_cache stores "
                "clips: use one of them"
            )
        if self.training.prefix_cache == "off":
            return
        if self.data.augment != AugmentConfig():
            raise ValueError("training.prefix_cache stores clips as they are: turn data.augment off")
        if not self.training.share_prefix:
            raise ValueError("training.prefix_cache needs training.share_prefix: true")
        if self.training.silence_stride not in (1, "auto"):
            raise ValueError(
                "training.silence_stride keeps part of a window, and training.prefix_cache stores "
                "whole ones: use one of them"
            )

    def _kernels_suit(self) -> None:
        compiled = self.training.compile
        if compiled != "off" and self.method.learns and not self.method.steers:
            raise ValueError(
                f"training.compile is {compiled}, and is for training steering vectors, not for method "
                f"{self.method.kind}: set it to off"
            )
        if compiled == "layers" and self.base.quantization is not None:
            raise ValueError(
                "training.compile: layers are not compiled with base.quantization: set it to rule"
            )

    def _rates_suit(self) -> None:
        if self.training.lr == "auto" and self.training.lr_scale != "auto":
            raise ValueError(
                "training.lr: auto is relative to the activations: set training.lr_scale to auto"
            )

    def _languages_suit_the_method(self) -> None:
        several = [a.name for a in self.adapters if len(a.languages) > 1]
        if several and self.method.adapts and not self.method.learns:
            raise ValueError(
                f"adapter {several[0]} has several languages, and method {self.method.kind} takes one"
            )

    @property
    def thinning(self) -> int | Literal["auto"]:
        """`training.silence_stride`; 1 where `auto` measures nothing: for what is no bank of vectors,
        and where halving compares adapters, which takes one stride for all."""
        compared = self.training.halving is not None
        stride = self.training.silence_stride
        return 1 if stride == "auto" and (compared or not self.method.in_a_bank) else stride

    def rate(self, method: Method, rule: str) -> float | None:
        """Learning rate of an adapter that names none; None: estimated in training."""
        given = self.training.lr
        if given is not None and given != "auto":
            return given
        if not method.in_a_bank or self.training.lr_scale != "auto":
            return 0.01
        return rule_named(rule).lr if given is None else None

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
                lr=a.lr or self.rate(self.method, a.rule or self.steering.rule),
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
