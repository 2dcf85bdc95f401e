"""Checkpoints: the training state on disk, kilobytes, for any number of ranks.

    RUN/state/step-00000120.safetensors
    ├── vectors/encoder.0, first/encoder.0, second/encoder.0, …    (adapters, hidden) fp32
    │   or weights/NAME, first/NAME, second/NAME, …                of the base's own weights
    ├── steps                                                      (adapters,) int64, Adam's
    ├── rate_found, rate_numerator, rate_gradients/…, rate_start/…  where rates are estimated
    └── metadata "state": JSON, and "digest": SHA-256 of the tensors
            schema, step, adapters, revision, shards, config

    States of release 0.1 have schema 1 and another digest of the settings in `config`.

All ranks hold the same state, so rank 0 writes it alone, and any number of ranks can resume from it. A
file is written whole or not at all. A damaged file is skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from salsa_dist.errors import UserError
from salsa_dist.json_file import of_another_release
from salsa_dist.whole_file import replace_file

SCHEMA = "salsa-dist/state/2"
SCHEMA_0_1 = "salsa-dist/state/1"


@dataclass(frozen=True)
class RunIdentity:
    """What a state belongs to. A run resumes only from a state with equal fields.

    Attributes:
        adapters: names, in row order.
        revision: revision of the frozen base.
        shards: hash of the shard list.
        config: digest of the settings that decide the vectors.
        config_0_1: the digest of release 0.1; None if that release lacks one of the settings.
    """

    adapters: list[str]
    revision: str
    shards: str
    config: str
    config_0_1: str | None = None

    def fields(self, schema: str = SCHEMA) -> dict[str, object]:
        """The fields as a state of `schema` stores them."""
        fields = asdict(self)
        older = fields.pop("config_0_1")
        return {**fields, "config": older} if schema == SCHEMA_0_1 else fields


class HasTensors(Protocol):
    """Anything with named tensors: a `Job`, or one of its parts."""

    def tensors(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class TrainState:
    """The next step, and all tensors."""

    step: int
    tensors: dict[str, Tensor]


def capture(trained: HasTensors, step: int) -> TrainState:
    """A copy of the tensors of `trained`, before step `step`."""
    tensors = {name: t.detach().cpu().clone() for name, t in trained.tensors().items()}
    return TrainState(step, tensors)


def restore(trained: HasTensors, state: TrainState) -> None:
    """Copy a state into the tensors of `trained`."""
    with torch.no_grad():
        for name, tensor in trained.tensors().items():
            tensor.copy_(state.tensors[name])


def save(folder: Path, state: TrainState, identity: RunIdentity, keep: int) -> int:
    """Write a state and remove all but the newest `keep`. Returns its size in bytes.

    Raises:
        UserError: it cannot be written; earlier states are unchanged.
    """
    path = folder / f"step-{state.step:08d}.safetensors"
    metadata = {
        "state": json.dumps({"schema": SCHEMA, "step": state.step, **identity.fields()}),
        "digest": _digest(state.tensors),
    }
    raw = serialized(state.tensors, metadata)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not by save_file: it writes a temporary file, which stays if the process is killed.
        replace_file(path, raw)
    except OSError as e:
        raise UserError(
            f"checkpoint {path} can't be written: {e.strerror}; the one before it is whole"
        ) from e
    # The lock is ours, so any .part file is of a process that was killed.
    for old in [*sorted(folder.glob("step-*.safetensors"))[:-keep], *folder.glob("step-*.part")]:
        old.unlink(missing_ok=True)
    return len(raw)


def newest(folder: Path, identity: RunIdentity) -> TrainState | None:
    """The newest intact state in `folder`; None if there is none.

    Raises:
        UserError: the state has another schema, or belongs to another run.
    """
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        found = _read(path)
        if found is None:
            continue
        fields, state = found
        schema = fields.get("schema")
        if schema not in (SCHEMA, SCHEMA_0_1):
            raise UserError(
                f"state {path} is {of_another_release(schema, SCHEMA, SCHEMA_0_1)}: "
                "resume with the version that wrote it, or name another run folder"
            )
        for name, mine in identity.fields(str(schema)).items():
            if fields.get(name) != mine:
                raise UserError(
                    f"state {path} was made with other {_WHAT[name]}: name another run folder, or "
                    f"remove {folder} to start again from step 1"
                )
        return state
    return None


_WHAT: Mapping[str, str] = {
    "adapters": "adapters",
    "revision": "weights of the base",
    "shards": "shards",
    "config": "settings (base, data, steering, adapters or training)",
}


def _read(path: Path) -> tuple[dict[str, object], TrainState] | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            fields = json.loads(metadata.get("state", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return None
    if fields.get("schema") in (SCHEMA, SCHEMA_0_1) and metadata.get("digest") != _digest(tensors):
        return None
    return fields, TrainState(int(fields.get("step", 0)), tensors)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
