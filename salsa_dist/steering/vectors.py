"""One adapter: saved, loaded, attached to a model, scaled, averaged with others.

    SteeringVectors ── vectors[site]    (hidden,) fp32
                    ── rule             how they change an activation
                    ── base …           what it was made for; another base is refused
                    ── data, training   where they come from, for `adapter.json`

`adapter_folder.py` says what lies on disk.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salsa_dist.errors import UserError
from salsa_dist.steering import adapter_file, adapter_folder
from salsa_dist.steering.adapter_folder import DataFacts, TrainingFacts
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers, site_modules
from salsa_dist.steering.widths import site_widths


class SteeringVectors:
    """One adapter: a vector for each of its sites, and what it was made for.

        vectors = SteeringVectors.load("runs/demo/adapters/bg")
        with vectors.attach(base, scale=0.5):
            ...

    Args:
        vectors: site name to vector, (hidden,) fp32.
        rule: a name in `rules.RULES`, such as `salsa`.
        name, language: what it is called, and for which language it is.
        base, revision, architecture, model_type: what it was made for, as far as known; all but the
            name are checked when it is put on a model.
        data, training: where it comes from; None: not known.
    """

    def __init__(
        self,
        vectors: Mapping[str, Tensor],
        rule: str,
        *,
        name: str = "adapter",
        language: str = "",
        base: str = "",
        revision: str = "",
        architecture: str = "",
        model_type: str = "",
        data: DataFacts | None = None,
        training: TrainingFacts | None = None,
    ) -> None:
        self.vectors = {site: v.detach().float().cpu().clone() for site, v in vectors.items()}
        self.rule = rule
        self.name = name
        self.language = language
        self.base = base
        self.revision = revision
        self.architecture = architecture
        self.model_type = model_type
        self.data = data
        self.training = training

    def save(self, folder: str | Path) -> Path:
        """Write the adapter's folder; it appears whole or not at all, in place of an older one."""
        facts = {
            "name": self.name,
            "language": self.language,
            "base": {
                "name": adapter_folder.known_as(self.base),
                "revision": self.revision,
                "architecture": self.architecture,
                "model_type": self.model_type,
            },
            "rule": self.rule,
            "data": self.data,
            "training": self.training,
        }
        return adapter_folder.write(Path(folder), self.vectors, facts)

    @classmethod
    def load(cls, path: str | Path) -> SteeringVectors:
        """Read an adapter; one that is damaged, changed or of another schema is a `UserError`.

        Args:
            path: its folder, or the `.safetensors` file alone, which does not say what it was trained
                on, nor the architecture of its base.
        """
        path = Path(path)
        if path.is_dir():
            vectors, facts = adapter_folder.read(path)
            return cls(
                vectors,
                facts.rule,
                name=facts.name,
                language=facts.language,
                base=facts.base.name,
                revision=facts.base.revision,
                architecture=facts.base.architecture,
                model_type=facts.base.model_type,
                data=facts.data,
                training=facts.training,
            )
        if not path.is_file():
            raise UserError(f"no adapter at {path}: name the folder of a trained adapter")
        vectors, metadata = adapter_file.unpack(adapter_file.read(path), path)
        name, language, base, revision = (
            metadata.get(k, "") for k in ("name", "language", "base", "revision")
        )
        return cls(
            vectors, metadata["rule"], name=name, language=language, base=base, revision=revision
        )

    def scaled(self, scale: float) -> SteeringVectors:
        """This adapter with every vector times `scale`: 0 steers nothing, 1 is the adapter itself."""
        if not math.isfinite(scale):
            raise UserError(f"adapter {self.name!r} can't be scaled by {scale}: give a finite number")
        if scale == 1:
            return self
        vectors = {site: v * scale for site, v in self.vectors.items()}
        if what := adapter_file.wrong(vectors):
            raise UserError(f"adapter {self.name!r} can't be scaled by {scale:g}: {what}")
        return self._derived(vectors, f"{self.name}-x{scale:g}", self.language, self.data)

    @classmethod
    def average(
        cls, adapters: Sequence[SteeringVectors], weights: Sequence[float] | None = None
    ) -> SteeringVectors:
        """The mean of adapters with one rule, the same sites and the same base.

        Args:
            adapters: at least one.
            weights: one for each, none negative, not all zero; None: all alike. Only
                their ratios count.
        """
        if not adapters:
            raise UserError("an average needs at least one adapter")
        weights = [1.0] * len(adapters) if weights is None else list(weights)
        if len(weights) != len(adapters):
            raise UserError(f"{len(weights)} weights were given for {len(adapters)} adapters")
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not 0 < sum(weights) < math.inf:
            raise UserError(f"the weights {weights} of an average must be positive numbers")
        first = adapters[0]
        for other in adapters[1:]:
            for what, one, two in first._differences(other):
                raise UserError(
                    f"adapters {first.name!r} and {other.name!r} can't be averaged: they differ in "
                    f"their {what} ({one} and {two})"
                )
        total = sum(weights)
        # In fp64, so that the mean of equal vectors is that vector to the bit.
        shares = torch.tensor(weights, dtype=torch.float64) / total
        vectors = {
            site: shares @ torch.stack([a.vectors[site].double() for a in adapters])
            for site in first.vectors
        }
        languages = {a.language for a in adapters}
        sources = {a.data for a in adapters}
        return first._derived(
            vectors,
            "+".join(a.name for a in adapters),
            first.language if len(languages) == 1 else "",
            first.data if len(sources) == 1 else None,
        )

    @contextmanager
    def attach(self, model: Any, scale: float = 1.0, force: bool = False) -> Iterator[None]:
        """Steer `model` with this adapter, for every sample, until the block ends.

        Args:
            model: what `load_speech_llm` returns, or a transformers model.
            scale: how much of the adapter; see `scaled`.
            force: put it on another base too, as long as its sites and widths are there.

        Raises:
            UserError: the adapter was made for another base, or steers sites that the model lacks.
        """
        sites = self.check(model, force)
        bank = bank_of([self.scaled(scale)], next(_module(model).parameters()).device)
        with bank.attached(sites), bank.rows(0):
            yield

    def check(self, model: Any, force: bool = False) -> dict[str, nn.Module]:
        """The sites of `model`, if this adapter can be put on it; else a `UserError`."""
        module = _module(model)
        here = describe(model)
        differ = [
            f"{what} {mine} where this base has {theirs}"
            for what in ("architecture", "model_type", "revision")
            if (mine := getattr(self, what)) and (theirs := here[what]) and mine != theirs
        ]
        if differ and not force:
            raise UserError(
                f"adapter {self.name!r} was made for another base, {self.base or 'not named'}: "
                f"{', '.join(differ)}; use its own base, or force it if you know that it fits"
            )
        # What `load_speech_llm` returns knows the layer lists of an odd base.
        layers = {} if module is model else model.layers
        sites = site_modules(module, layers)
        if missing := [site for site in self.vectors if site not in sites]:
            raise UserError(
                f"adapter {self.name!r} steers {missing[0]}, which this base does not have; "
                f"its sites are {next(iter(sites))} to {list(sites)[-1]}"
            )
        widths = site_widths(find_layers(module, layers))
        for site, vector in self.vectors.items():
            if widths[site] != len(vector):
                raise UserError(
                    f"adapter {self.name!r} has width {len(vector)} at {site} where this base has "
                    f"{widths[site]}: use the base that it was trained on"
                )
        return sites

    def digest(self) -> str:
        """SHA-256 over the rule and the vectors."""
        digest = hashlib.sha256(self.rule.encode())
        for site, vector in self.vectors.items():
            digest.update(site.encode() + vector.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _derived(
        self, vectors: Mapping[str, Tensor], name: str, language: str, data: DataFacts | None
    ) -> SteeringVectors:
        """Other vectors for the same base, of no training run of their own."""
        return SteeringVectors(
            vectors,
            self.rule,
            name=name,
            language=language,
            base=self.base,
            revision=self.revision,
            architecture=self.architecture,
            model_type=self.model_type,
            data=data,
        )

    def _differences(self, other: SteeringVectors) -> Iterator[tuple[str, object, object]]:
        """What keeps two adapters from being mixed: its name, and both values."""
        known_by = "revision" if self.revision and other.revision else "base"
        for what in ("rule", known_by, "architecture", "model_type"):
            one, two = getattr(self, what), getattr(other, what)
            if one != two:
                yield what, one, two
        if self.vectors.keys() != other.vectors.keys():
            yield "sites", " ".join(self.vectors), " ".join(other.vectors)
            return
        for site, vector in self.vectors.items():
            if vector.shape != other.vectors[site].shape:
                yield f"width at {site}", len(vector), len(other.vectors[site])

    def __repr__(self) -> str:
        return f"SteeringVectors({self.name!r}, {self.rule}, {list(self.vectors)})"


def bank_of(adapters: Sequence[SteeringVectors], device: torch.device | str) -> Bank:
    """A bank with these adapters as its rows; none makes one that steers nothing."""
    specs = [AdapterSpec(a.name, tuple(a.vectors), a.rule) for a in adapters]
    widths = {site: len(v) for a in adapters for site, v in a.vectors.items()}
    bank = Bank(specs, widths, device)
    for row, adapter in enumerate(adapters):
        bank.set_row(row, adapter.vectors)
    return bank


def describe(model: Any) -> dict[str, str]:
    """What an adapter remembers of its base, as `SteeringVectors` takes it; "" for what is not known.

    Args:
        model: what `load_speech_llm` returns, or a transformers model.
    """
    module = _module(model)
    return {
        "base": "" if module is model else adapter_folder.known_as(model.name),
        "revision": "" if module is model else model.revision,
        "architecture": type(module).__name__,
        "model_type": getattr(getattr(module, "config", None), "model_type", None) or "",
    }


def _module(model: Any) -> nn.Module:
    return model if isinstance(model, nn.Module) else model.model
