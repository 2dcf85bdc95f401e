"""The sites of a base, each tested by a probe on noise: it needs no processor.

    inspection = inspect_base("openai/whisper-base")
    inspection.sites      reports of the sites that can be steered
    inspection.dropped    reports of the others, each with its reason
    inspection.table()    for people
    inspection.tree()     for JSON

Any model that transformers itself has can be inspected, with a family file or without. A folder that
holds config.json and no weights is inspected on the meta device: its layers and widths are shown, and
nothing is probed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salsa_dist.columns import aligned
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import listed_class, without_weights
from salsa_dist.speech_llms.any_chat import AnyChat
from salsa_dist.speech_llms.base_config import advice, known_config
from salsa_dist.speech_llms.base_files import base_revision
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.load import family_of, refuse_authors_layout, takes_audio
from salsa_dist.speech_llms.noise_inputs import noise_inputs
from salsa_dist.speech_llms.processor import (
    load_processor,
    refuse_failing,
    refuse_incomplete,
    refuse_other_features,
)
from salsa_dist.speech_llms.reading_base import NO_MODEL, reading_base
from salsa_dist.speech_llms.weight_files import refuse_other_weights
from salsa_dist.steering.probe import SiteReport, probe
from salsa_dist.steering.sites import find_layers, site_modules
from salsa_dist.steering.widths import site_widths


@dataclass
class Inspection:
    """The sites of one base.

    Attributes:
        base: folder or hub name.
        architecture: its transformers class.
        revision: what pins its weights.
        parameters: how many numbers it has.
        probed: false where it was built from its config alone.
        lacks: what training would need beside, in a line; empty if nothing is known to be missing.
    """

    base: str
    architecture: str
    revision: str
    parameters: int
    probed: bool
    lacks: str = ""
    sites: list[SiteReport] = field(default_factory=list)
    dropped: list[SiteReport] = field(default_factory=list)

    def tree(self) -> dict[str, Any]:
        """As JSON: `sites` and `dropped` are lists of flat objects."""
        return asdict(self)

    def table(self) -> str:
        """As text, one line per site."""
        lines = [
            f"{self.base}: {self.architecture}, {self.parameters / 1e6:.1f} M parameters, "
            f"revision {self.revision}"
        ]
        for word, reports in groupby(self.sites, key=lambda report: report.site.rpartition(".")[0]):
            own = [report.site for report in reports]
            lines.append(f"{word}: {len(own)} sites, {own[0]} to {own[-1]}")
        if not self.probed:
            lines.append("not probed: no weights here, built from config.json alone")
        if self.lacks:
            lines.append(f"for training: {self.lacks}")
        rows = [["component", "site", "width", "fires", "gradient", "rows", "padding-invariant"]]
        rows += [_cells(report, self.probed) for report in self.sites]
        lines += aligned(rows)
        lines += [f"dropped {report.site}: {report.reason}" for report in self.dropped]
        return "\n".join(lines)


def inspect_base(
    name: str | Path, layers: Mapping[str, str] | None = None, revision: str | None = None
) -> Inspection:
    """Find the sites of a base, and probe them if its weights are at hand.

    Args:
        name: folder with a Hugging Face checkpoint or only its config.json, or a hub name.
        layers: paths of the layer lists of an odd model; see `find_layers`.
        revision: hub branch, tag or commit.

    Raises:
        UserError: no such base; one that transformers does not know, that wants code of its own, that
            takes no audio, or whose weights are damaged.
    """
    name = str(name)
    config = read_config(name, revision)
    model_class = class_of(config, name)
    if not takes_audio(model_class):
        raise UserError(
            f"base {name} is a {model_class.__name__}, which takes no audio: name a speech-LLM"
        )
    has_weights = _has_weights(Path(name))
    if has_weights:
        written_by = getattr(config, "transformers_version", None)
        model = _load(name, revision, model_class, written_by)
    else:
        model = _empty(config, model_class, name)
    model.eval().requires_grad_(False)
    lacks = _lacks(name, revision, model) if has_weights else ""
    if has_weights:
        reports = probe(site_modules(model, layers), model, noise_inputs(model))
    else:
        widths = site_widths(find_layers(model, layers))
        reports = [SiteReport(s, s.partition(".")[0], width=width) for s, width in widths.items()]
    return Inspection(
        base=name,
        architecture=model_class.__name__,
        revision=base_revision(name, revision),
        parameters=sum(p.numel() for p in model.parameters()),
        probed=has_weights,
        lacks=lacks,
        sites=[r for r in reports if not r.reason],
        dropped=[r for r in reports if r.reason],
    )


def _lacks(name: str, revision: str | None, model: Any) -> str:
    """What a base with weights lacks for training: its processor's files, or what they should tell
    where it has no family file; "": nothing."""
    config = model.config
    family = family_of(config.model_type)
    try:
        processor = load_processor(name, (name, revision), family.load_processor)
        refuse_other_features(name, config, processor, family.RESAMPLES)
        if family is AnyChat:
            refuse_incomplete(name, config, processor)
        checkpoint = Checkpoint(name, config, processor, getattr(model, "generation_config", None))
        refuse_failing(name, family(checkpoint, FamilyOptions(None, None, {}, 1)))
    except UserError as e:
        return str(e)
    return ""


def read_config(name: str, revision: str | None = None) -> Any:
    """The config of a base, of a class that transformers has."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"base {name} holds no config.json: name the folder of a Hugging Face checkpoint"
        )
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise UserError(
            f"base {name} can't be loaded: no such folder; name one with a Hugging Face checkpoint"
        )
    config = known_config(name, (name, revision))
    refuse_authors_layout(name, config)
    thinker = getattr(config, "thinker_config", None)
    # Of a model that also talks, the part that listens and writes.
    return config if thinker is None else thinker


def class_of(config: Any, name: str) -> Any:
    """The transformers class that a base is loaded with."""
    import transformers

    if (listed := listed_class(config)) is not None:
        return listed
    architecture = (config.architectures or [""])[0]
    if architecture and (found := getattr(transformers, architecture, None)) is not None:
        return found
    raise UserError(
        f"base {name} is a {config.model_type!r} model and names no architecture that transformers has "
        f"({architecture or 'none'}): name a speech-LLM"
    )


def _has_weights(folder: Path) -> bool:
    if not folder.is_dir():  # a hub name: its weights can be had
        return True
    if any(folder.glob("*.safetensors*")):
        return True
    if pickled := [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]:
        raise UserError(
            f"base {folder} has its weights in {pickled[0].name}, a pickle, which can run code when "
            "it is opened: convert them to safetensors"
        )
    return False


def _load(name: str, revision: str | None, model_class: Any, written_by: object) -> Any:
    with reading_base(name, advice=advice(written_by)):
        model, info = model_class.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    refuse_other_weights(name, model, info)
    return model


def _empty(config: Any, model_class: Any, name: str) -> nn.Module:
    """The model without weights."""
    with reading_base(name, NO_MODEL, advice(getattr(config, "transformers_version", None), "")):
        model: nn.Module = without_weights(model_class, config)
    return model


def _cells(report: SiteReport, probed: bool) -> list[str]:
    width = "?" if report.width is None else str(report.width)
    if not probed:
        return [report.component, report.site, width, *["not probed"] * 4]
    rows = report.rows or "?"
    if report.dimension:
        rows += f" (dimension {report.dimension})"
    padding = "?" if report.padding_invariant is None else _yes(report.padding_invariant)
    if report.padding_difference is not None:
        padding += f" ({report.padding_difference:.1g})"
    fires, gradient = _yes(report.fires), _yes(report.gradient)
    return [report.component, report.site, width, fires, gradient, rows, padding]


def _yes(value: bool | None) -> str:
    return "yes" if value else "no"
