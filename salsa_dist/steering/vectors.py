"""One adapter by itself: kept in one safetensors file, put on a model, taken off again.

adapter.safetensors
├── encoder.0, encoder.1, …      (hidden,) fp32, the vector of each site
└── metadata                     schema, name, base, revision, rule, sites, language
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from salsa_dist.errors import UserError
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.rules import RULES
from salsa_dist.steering.sites import site_modules

SCHEMA = "salsa-dist/adapter/1"


class SteeringVectors:
    """One adapter: a vector for each of its sites, and what it was made for.

        vectors = SteeringVectors.load("bg.safetensors")
        with vectors.attach(base):
            ...

    Args:
        vectors: site name to vector, (hidden,) fp32.
        rule: `salsa` or `add`.
        name, base, revision, language: where it comes from; `base` and `revision` are checked when it
            is put on a model that knows its own.
    """

    def __init__(
        self,
        vectors: Mapping[str, Tensor],
        rule: str,
        *,
        name: str = "adapter",
        base: str = "",
        revision: str = "",
        language: str = "",
    ) -> None:
        self.vectors = {site: v.detach().float().cpu().clone() for site, v in vectors.items()}
        self.rule = rule
        self.name = name
        self.base = base
        self.revision = revision
        self.language = language

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; it appears whole or not at all."""
        path = Path(path)
        metadata = {
            "schema": SCHEMA,
            "name": self.name,
            "base": self.base,
            "revision": self.revision,
            "rule": self.rule,
            "sites": " ".join(self.vectors),
            "language": self.language,
        }
        temporary = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(self.vectors, temporary, metadata=metadata)
            os.replace(temporary, path)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            raise UserError(f"adapter {path} can't be written: {e.strerror}") from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> SteeringVectors:
        """Read an adapter; one that is damaged, or of another schema, is a `UserError`."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no adapter at {path}: name the .safetensors file of a trained adapter")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                vectors = {site: file.get_tensor(site) for site in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as e:
            raise UserError(f"adapter {path} is damaged ({e}): copy or train it again") from None
        if metadata.get("schema") != SCHEMA:
            found = metadata.get("schema", "no schema")
            raise UserError(f"adapter {path} is of {found}, this version reads {SCHEMA}")
        if metadata.get("rule") not in RULES:
            raise UserError(f"adapter {path} has an unknown rule {metadata.get('rule')!r}")
        for site, vector in vectors.items():
            if vector.ndim != 1 or not torch.isfinite(vector).all():
                raise UserError(f"adapter {path}: the vector of {site} is not a row of numbers")
        widths = {(site.partition(".")[0], len(vector)) for site, vector in vectors.items()}
        if len(widths) > len({component for component, _ in widths}):
            raise UserError(f"adapter {path}: its vectors differ in width, {sorted(widths)}")
        # The file lists tensors by name; the metadata keeps the model's order.
        order = metadata.get("sites", "").split()
        if sorted(order) != sorted(vectors):
            raise UserError(f"adapter {path}: its list of sites does not match its vectors")
        fields = {k: metadata.get(k, "") for k in ("name", "base", "revision", "language")}
        return cls({site: vectors[site] for site in order}, metadata["rule"], **fields)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Steer `model` with this adapter, for every sample, until the block ends.

        Args:
            model: what `load_speech_llm` returns, or a transformers model.

        Raises:
            UserError: the adapter was made for another base, or steers sites that the model lacks.
        """
        sites = self.check(model)
        module: nn.Module = model if isinstance(model, nn.Module) else model.model
        spec = AdapterSpec(self.name, tuple(self.vectors), self.rule)
        widths = {site: v.shape[0] for site, v in self.vectors.items()}
        bank = Bank([spec], widths, next(module.parameters()).device)
        bank.set_row(0, self.vectors)
        with bank.attached(sites), bank.rows(0):
            yield

    def check(self, model: Any) -> dict[str, nn.Module]:
        """The sites of `model`, if this adapter can be put on it; else a `UserError`."""
        revision = getattr(model, "revision", "")
        if self.revision and revision and revision != self.revision:
            raise UserError(
                f"adapter {self.name!r} was made for base {self.base} at revision {self.revision}, "
                f"not for {model.name} at {revision}: use the base that it was trained on"
            )
        sites = site_modules(model if isinstance(model, nn.Module) else model.model)
        if missing := [site for site in self.vectors if site not in sites]:
            raise UserError(
                f"adapter {self.name!r} steers {missing[0]}, which this base does not have; "
                f"its sites are {next(iter(sites))} to {list(sites)[-1]}"
            )
        return sites

    def digest(self) -> str:
        """SHA-256 over the rule and the vectors."""
        digest = hashlib.sha256(self.rule.encode())
        for site, vector in self.vectors.items():
            digest.update(site.encode() + vector.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"SteeringVectors({self.name!r}, {self.rule}, {list(self.vectors)})"
