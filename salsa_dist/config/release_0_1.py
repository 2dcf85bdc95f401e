"""The digest that release 0.1 wrote into its states, so that they are still gone on from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from salsa_dist.config.fingerprint import settings
from salsa_dist.config.schema import Config

_MIX = ("temperature", "weights")
_ADAPTER = (
    *("name", "language", "sites", "rule", "lr"),
    *("steps", "seed", "minutes", "scale", "start_from"),
)
_TRAINING = ("steps", "lr", "warmup", "decay", "clip_norm", "seed", "max_skipped", "max_loss")
_METHOD = (
    *("kind", "rank", "alpha", "targets", "contrast"),
    *("scale", "clips", "examples", "choose", "pool"),
)
_AUGMENT = ("speed", "noise_db", "time_masks", "frequency_masks")
# Its keys, as pydantic's `include` wants them.
_KEYS: dict[str, Any] = {
    "base": dict.fromkeys(("dtype", "window_s", "prompt", "layers", "language_as"), True),
    "data": {
        **dict.fromkeys(("clips_per_step", "seconds_per_step", "readers", "join_clips"), True),
        "augment": dict.fromkeys(_AUGMENT, True),
    },
    "method": dict.fromkeys(_METHOD, True),
    "steering": {"sites": True, "rule": True},
    "adapters": {
        "__all__": {**dict.fromkeys(_ADAPTER, True), "mix": dict.fromkeys(_MIX, True)},
    },
    "training": {
        **dict.fromkeys((*_TRAINING, "window_s", "lr_scale", "silence_stride", "dev_clips"), True),
        "halving": dict.fromkeys(("rungs", "keep", "metric"), True),
    },
    "evaluation": {
        "max_new_tokens": True,
        "decoding": dict.fromkeys(("repetition_penalty", "no_repeat_ngram_size"), True),
    },
}


def digest_of_release_0_1(config: Config) -> str | None:
    """Hash of the settings that decide the vectors; None where later keys decide them too."""
    if not all(_knew(key.split("."), _KEYS) for key in settings(config, "vectors")):
        return None
    tree = config.model_dump(mode="json", include=_KEYS)
    # Then never left to the method.
    tree["training"]["lr"] = config.rate(config.method, config.steering.rule)
    data, training, halving = config.data, config.training, config.training.halving
    # It left these out where they were off.
    off = {
        "data": {"join_clips": data.join_clips == 1},
        "training": {
            "window_s": not training.window_s,
            "lr_scale": not training.lr_scale,
            "silence_stride": training.silence_stride == 1,
            "dev_clips": halving is None,
        },
    }
    for section, keys in off.items():
        for key in [k for k, is_off in keys.items() if is_off]:
            del tree[section][key]
    if halving is None or halving.metric != "cer":
        del tree["evaluation"]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _knew(parts: list[str], keys: Any) -> bool:
    """Whether a dotted key is among `keys`."""
    if keys is True or not parts:
        return True
    name = "__all__" if "__all__" in keys else parts[0]
    return name in keys and _knew(parts[1:], keys[name])
