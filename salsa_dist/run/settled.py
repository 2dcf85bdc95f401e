"""Settings on `auto` that a run decides at its first start and then keeps.

settled(config, "cuda")     base.dtype: float32 or bfloat16 instead of auto
                            training.lr_scale: {} where the run's folder says so, from before auto
                            training.silence_stride, micro_batch: the number that the run's folder says
in_steps(config, index)     adapters[].steps instead of training.epochs

A run goes on, and is evaluated, in the precision that it began with, on whatever device: its folder
says which. So a run of a release that trained in float32 by default, with rates that were not relative
to the activations, does so to its end.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salsa_dist.config import BaseConfig, Config, read_yaml
from salsa_dist.data.entries import seconds_of
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.subset import training_shards
from salsa_dist.errors import UserError
from salsa_dist.run.folder import RunFolder
from salsa_dist.speech_llms.inspection import read_config
from salsa_dist.speech_llms.precision import own_dtype

_KNOWN = ("float32", "bfloat16", "float16")
# Of `training`: keys that may be auto, and what stood in their place before they could.
_BEFORE: dict[str, Any] = {"silence_stride": 1, "micro_batch": "auto", "lr_scale": {}}


def settled(config: Config, device: str) -> Config:
    """`config` with a precision that is not `auto`, and with the rates that the run began with.

    Args:
        device: kind of device that the run is on, such as cuda.

    Raises:
        UserError: no such base.
    """
    for key in _auto_keys(config):
        begun = _began_with(config.run, "training", key, _BEFORE[key])
        if isinstance(begun, int) or begun == {}:
            config = with_training(config, **{key: begun})
    if config.base.dtype != "auto":
        return config
    own = "float32" if config.method.in_fp32 else begun_in(config.run) or _own(config.base, device)
    return with_precision(config, own)


def settled_as(first: Config, config: Config) -> Config:
    """`config` with the values that rank 0 chose for `auto`.

    All else stays as it is: ranks that differ in it are to be refused.
    """
    if config.base.dtype == "auto":
        config = with_precision(config, first.base.dtype)
    return with_training(config, **{key: getattr(first.training, key) for key in _auto_keys(config)})


def in_steps(config: Config, index: ShardIndex) -> Config:
    """`config` with each adapter's own steps in place of `training.epochs`.

    An epoch is as many clips as the adapter samples from: those of its languages and minutes that fit
    the window, as far as the config says which window.
    """
    if (epochs := config.training.epochs) is None:
        return config
    window = config.base_in_training().window_s or math.inf
    adapters = []
    for adapter, own in zip(config.adapters, config.adapter_settings(), strict=True):
        shards = training_shards(index, own.languages, own.minutes, own.seed)
        lengths = np.concatenate([seconds_of(shard.entries) for shard in shards])
        fitting = lengths[lengths <= window]
        mean = float(fitting.mean()) if len(fitting) else 1.0
        steps = math.ceil(epochs * len(fitting) / config.data.clips_of_a_step(mean))
        adapters.append(adapter.model_copy(update={"steps": adapter.steps or max(1, steps)}))
    training = config.training.model_copy(update={"epochs": None})
    return config.model_copy(update={"adapters": adapters, "training": training})


def with_precision(config: Config, dtype: str) -> Config:
    """`config` with the precision `dtype`."""
    return config.model_copy(update={"base": config.base.model_copy(update={"dtype": dtype})})


def with_training(config: Config, **settings: Any) -> Config:
    """`config` with these values in its section `training`."""
    training = config.training.model_copy(update=settings)
    return config.model_copy(update={"training": training})


def begun_in(run: Path) -> str | None:
    """The precision that a run began in; None where it has not begun."""
    found = _began_with(run, "base", "dtype", None)
    return found if found in _KNOWN else None


def _auto_keys(config: Config) -> list[str]:
    return [key for key in _BEFORE if getattr(config.training, key) == "auto"]


def _began_with(run: Path, section: str, key: str, unknown: Any) -> Any:
    """A setting that a run began with; None where it has not begun.

    Args:
        unknown: what a release had in its place that did not know the key.
    """
    path = RunFolder(run).config
    try:
        tree = read_yaml(path, "config", "base …") if path.is_file() else {}
    except UserError:
        return None  # it is about to be written anew
    known = tree.get(section)
    return known.get(key, unknown) if isinstance(known, dict) else None


def _own(base: BaseConfig, device: str) -> str:
    if device == "cpu":
        return "float32"
    own = own_dtype(read_config(base.name, base.revision), torch.device(device))
    # Half precision of 16 bits is for decoding alone: without loss scaling small gradients are zero.
    return "float32" if own == torch.float32 else "bfloat16"
