"""An adapter's folder: its vectors, the facts about them, and a model card.

    NAME/
    ├── adapter.safetensors    the vectors, see `adapter_bytes.py`
    ├── adapter.json           `AdapterFacts`
    └── README.md              a model card, made from the same facts

The folder appears whole or not at all. `adapter.json` holds no path: what it describes lies beside it,
and its sha256 is that of the vectors' file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from salsa_dist.errors import UserError
from salsa_dist.json_file import first_problem, of_another_release
from salsa_dist.new_folder import replace_folder
from salsa_dist.steering import adapter_bytes
from salsa_dist.steering.model_card import Score, model_card

SCHEMA: Literal["salsa-dist/adapter/1"] = "salsa-dist/adapter/1"
VECTORS = "adapter.safetensors"
FACTS = "adapter.json"
CARD = "README.md"

_MAX_FACTS = 1 << 20  # bytes
LIMITS = {FACTS: _MAX_FACTS, VECTORS: adapter_bytes.MAX_FILE}
"""How many bytes each file of an adapter may have."""


def _no_path(text: str) -> str:
    parts = text.split("/")
    if len(parts) > 2 or not all(parts[:-1]) or ".." in parts or text[:1] == "~" or "\\" in text:
        raise ValueError(f"{text!r} is a path, and an adapter's facts hold none")
    if not text.isprintable():
        raise ValueError(f"{text!r} holds control characters")
    return text


_Name = Annotated[str, AfterValidator(_no_path)]


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class BaseFacts(_Facts):
    """The base of an adapter; unknown facts are empty strings.

    Attributes:
        name: hub name, or the name of its folder.
        revision: hub commit, or a hash of the folder.
        architecture: transformers class of the model.
        model_type: of its config.
        quantization: how it was quantised while it was loaded.
    """

    name: _Name = ""
    revision: _Name = ""
    architecture: _Name = ""
    model_type: _Name = ""
    quantization: _Name = ""


class DataFacts(_Facts):
    """The shards that an adapter was trained on.

    Attributes:
        name: of the corpus.
        shards: hash of the list of shards.
        languages: codes of the training clips' languages; an adapter of several has no `language`.
        licence: as its recipe states it; None: not stated.
        stand_ins: by language without a token or name of its own in the base, what its prompts said.
    """

    name: _Name
    shards: _Name
    languages: list[_Name] = []
    licence: str | None = None
    stand_ins: dict[_Name, str] = {}


class TrainingFacts(_Facts):
    """How an adapter was trained.

    Attributes:
        steps: of the optimizer.
        lr: the highest learning rate, given or as last estimated; 0 where nothing was stepped.
        lr_estimated: whether training estimated it.
        lr_scale: per site, what its rates were multiplied by; None: not recorded.
        seed: of its samples from the shards.
        window_s: audio window of the base, in seconds.
        silence_stride: 1 in this many encoder positions of the trailing padding was kept.
        silence_ends_s: seconds at each end of that padding whose positions were all kept.
        salsa_dist: version that trained it.
    """

    steps: int
    lr: FiniteFloat
    lr_estimated: bool = False
    lr_scale: dict[_Name, FiniteFloat] | None = None
    seed: int
    window_s: FiniteFloat
    silence_stride: int = 1
    silence_ends_s: FiniteFloat = 0.0
    salsa_dist: _Name


class AdapterFacts(_Facts):
    """`adapter.json`."""

    schema_: Literal["salsa-dist/adapter/1"] = Field(SCHEMA, alias="schema")
    name: Annotated[_Name, Field(min_length=1)]
    language: _Name
    base: BaseFacts
    rule: str
    sites: list[_Name]
    trained_numbers: int
    sha256: str
    data: DataFacts | None = None
    training: TrainingFacts | None = None


def known_as(base: str) -> str:
    """The public name of a base: its hub name, or the name of its folder without the path."""
    path = Path(base).expanduser()
    if base and (base.count("/") > 1 or base[:1] in ("/", "~", ".") or path.is_dir()):
        base = path.resolve().name
    return "".join(c if c.isprintable() and c != "\\" else "_" for c in base)


def is_mean(facts: Mapping[str, Any]) -> bool:
    """Whether facts of `adapter.json` are of a mean or sum of adapters, which was not trained."""
    return facts.get("training", "not said") is None


def write(folder: Path, vectors: Mapping[str, Tensor], facts: dict[str, Any]) -> Path:
    """Write an adapter's folder; one that is there already is replaced, if it is an adapter's.

    Args:
        folder: where it will be.
        vectors: site name to vector, (hidden,) fp32.
        facts: the fields of `AdapterFacts` that do not follow from `vectors`.
    """
    _check_place(folder)
    files = files_of(vectors, facts, str(folder))
    try:
        replace_folder(folder, files)
    except OSError as e:
        raise UserError(f"adapter {folder} can't be written: {e.strerror}") from e
    return folder


def files_of(
    vectors: Mapping[str, Tensor],
    facts: dict[str, Any],
    label: str,
    scores: Sequence[Score] = (),
    repository: str = "",
) -> dict[str, bytes]:
    """The content of an adapter's folder, by file name.

    Args:
        vectors, facts: as in `write`.
        label: names the adapter in errors.
        scores, repository: as in `model_card`.
    """
    if what := adapter_bytes.wrong(vectors):
        raise UserError(f"adapter {label} can't be saved: {what}")
    raw = adapter_bytes.pack(
        vectors,
        {
            "name": facts["name"],
            "base": facts["base"]["name"],
            "revision": facts["base"]["revision"],
            "rule": facts["rule"],
            "language": facts["language"],
        },
    )
    try:
        full = AdapterFacts(
            **facts,
            sites=list(vectors),
            trained_numbers=sum(v.numel() for v in vectors.values()),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
    except ValidationError as e:
        raise UserError(f"adapter {label} can't be saved: {first_problem(e)}") from e
    tree = full.model_dump(mode="json", by_alias=True)
    if not full.base.quantization:
        del tree["base"]["quantization"]  # releases that do not know it refuse what they do not know
    if full.data and not full.data.stand_ins:
        del tree["data"]["stand_ins"]  # the same
    return {
        VECTORS: raw,
        FACTS: (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode(),
        CARD: model_card(tree, scores, repository).encode(),
    }


def read(folder: Path) -> tuple[dict[str, Tensor], AdapterFacts]:
    """The vectors and facts of an adapter's folder.

    Raises:
        UserError: a file is missing, damaged or leads out of the folder; or the files disagree.
    """
    for name in (VECTORS, FACTS):
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"adapter {file} is a link out of its folder: put the file itself there")
        if not file.is_file():
            raise UserError(
                f"no adapter at {folder}: it has no {name}; name a trained adapter's folder"
            )
    facts = _facts_file(folder / FACTS)
    return unpack({FACTS: facts, VECTORS: adapter_bytes.read(folder / VECTORS)}, folder)


def unpack(files: Mapping[str, bytes], folder: Path) -> tuple[dict[str, Tensor], AdapterFacts]:
    """The vectors and facts in an adapter's two files.

    Args:
        files: the bytes of each.
        folder: where they are from, for errors: a folder, or a name on a hub.

    Raises:
        UserError: a file is damaged; or the two disagree.
    """
    facts = _read_facts(files[FACTS], folder / FACTS)
    raw = files[VECTORS]
    sha256 = hashlib.sha256(raw).hexdigest()
    vectors, metadata = adapter_bytes.unpack(raw, folder / VECTORS)
    found = {
        "schema": (facts.schema_, metadata["schema"]),
        "rule": (facts.rule, metadata["rule"]),
        "sites": (facts.sites, list(vectors)),
        "base": (facts.base.name, metadata.get("base", "")),
        "revision": (facts.base.revision, metadata.get("revision", "")),
        "language": (facts.language, metadata.get("language", "")),
        "name": (facts.name, metadata.get("name", "")),
        "number of trained numbers": (
            facts.trained_numbers,
            sum(v.numel() for v in vectors.values()),
        ),
        "sha256": (facts.sha256, sha256),
    }
    for what, (said, is_) in found.items():
        if said != is_:
            raise UserError(
                f"adapter {folder}: {FACTS} and {VECTORS} disagree on the {what} "
                f"({_short(said)} and {_short(is_)}): one was changed, copy or train it again"
            )
    return vectors, facts


def _facts_file(file: Path) -> bytes:
    try:
        if file.stat().st_size > _MAX_FACTS:
            raise UserError(f"{file} has more than {_MAX_FACTS:,} bytes: it is no adapter's")
        return file.read_bytes()
    except OSError as e:
        raise UserError(f"{file} can't be read: {e.strerror}") from e


def _read_facts(raw: bytes, file: Path) -> AdapterFacts:
    try:
        tree = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is damaged (no JSON): copy or train the adapter again") from e
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{file} is {of_another_release(schema, SCHEMA)}")
    try:
        return AdapterFacts.model_validate(tree)
    except ValidationError as e:
        wrong = first_problem(e)
        raise UserError(f"{file} is damaged ({wrong}): copy or train the adapter again") from e


def _check_place(folder: Path) -> None:
    """Refuse to replace a folder that is not an adapter."""
    if not folder.name:
        raise UserError(f"adapter {folder} can't be written: name a folder of its own")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"adapter {folder} can't be written: a file or link of that name is in the way")
    try:
        others = {p.name for p in folder.iterdir()} - {VECTORS, FACTS, CARD}
    except FileNotFoundError:
        return
    except OSError as e:
        raise UserError(f"adapter {folder} can't be written: {e.strerror}") from e
    if others:
        raise UserError(
            f"adapter {folder} can't be written: the folder holds {min(others)}, which is no part of "
            "an adapter; name another or move it away"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
