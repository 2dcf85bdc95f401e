"""The bytes of an adapter's vectors: a safetensors file, read without trusting a byte of it.

    8 bytes     length of the header
    header      JSON: dtype and shape of each vector, and the metadata
                    schema, name, base, revision, rule, sites, language
    vectors     encoder.0, encoder.attention.1, …    (hidden,) fp32, the vector of each site;
                                                     a rule may have several numbers per channel

A file is a few kilobytes, so it is read once and whole: what is hashed is what is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from salsa_dist.errors import UserError
from salsa_dist.json_file import of_another_release
from salsa_dist.steering.rules.registry import RULES

SCHEMA = "salsa-dist/adapter/1"

_MAX_HEADER = 1 << 20  # bytes; a thousand sites need less than a tenth
MAX_FILE = 256 << 20  # bytes; far more than any base's sites, far less than a base
_SITE = re.compile(r"[a-z]+(\.[a-z_]+)?\.\d+")


def pack(vectors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file's bytes.

    Args:
        vectors: site name to vector, (hidden,) fp32.
        metadata: as above, without `schema` and `sites`, which are added.
    """
    fields = {"schema": SCHEMA, **metadata, "sites": " ".join(vectors)}
    return save({site: v.contiguous() for site, v in vectors.items()}, fields)


def read(path: Path) -> bytes:
    """All bytes of a file that may be an adapter. Raises: UserError."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise UserError(
                f"adapter {path} has {size:,} bytes, an adapter has a few thousand: name another file"
            )
        return path.read_bytes()
    except OSError as e:
        raise UserError(f"adapter {path} can't be read: {e.strerror}") from e


def unpack(raw: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Vectors by site, in the model's order, and the metadata.

    Args:
        raw: the file's bytes.
        path: for errors.

    Raises:
        UserError: it is damaged, of another schema or rule, or its vectors are no vectors.
    """
    header = _header(raw, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its metadata is no table of texts")
    if metadata.get("schema") != SCHEMA:
        raise UserError(f"adapter {path} is {of_another_release(metadata.get('schema'), SCHEMA)}")
    if metadata.get("rule") not in RULES:
        known = ", ".join(RULES)
        raise UserError(
            f"adapter {path} has an unknown update rule {metadata.get('rule')!r}: known are {known}"
        )
    for site, entry in header.items():
        if not isinstance(entry, dict) or entry.get("dtype") != "F32":
            raise UserError(f"adapter {path}: the vector of {site!r} is not of dtype F32")
    try:
        vectors = load(raw)
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as e:
        raise _damaged(path, str(e)) from e
    # The file lists tensors by name; the metadata keeps the model's order.
    order = metadata.get("sites", "").split()
    if sorted(order) != sorted(vectors):
        raise UserError(f"adapter {path}: its list of sites does not match its vectors")
    vectors = {site: vectors[site] for site in order}
    if what := wrong(vectors):
        raise UserError(f"adapter {path}: {what}")
    return vectors, metadata


def wrong(vectors: Mapping[str, Tensor]) -> str | None:
    """The reason why `vectors` cannot be an adapter's; None if they can."""
    if not vectors:
        return "it holds no vector"
    widths: dict[str, int] = {}
    for site, vector in vectors.items():
        if not _SITE.fullmatch(site):
            return f"{site!r} is no site; sites are called encoder.0, llm.attention.3"
        if vector.ndim != 1 or not len(vector):
            return f"the vector of {site} has shape {tuple(vector.shape)}, it must be one row"
        if not torch.isfinite(vector).all():
            return f"the vector of {site} holds NaN or infinity"
        component = site.partition(".")[0]
        if widths.setdefault(component, len(vector)) != len(vector):
            return f"its vectors differ in width: {site} has {len(vector)}, not {widths[component]}"
    return None


def _header(raw: bytes, path: Path) -> dict[str, object]:
    # A safetensors file begins with its header's length, whose first byte may be a pickle's too.
    too_long = int.from_bytes(raw[:8], "little") > len(raw)
    if too_long and (raw[:1] == b"\x80" or raw[:4] == b"PK\x03\x04"):
        raise UserError(f"adapter {path} is a pickle, which is never opened: name a safetensors file")
    length = int.from_bytes(raw[:8], "little")
    if length > _MAX_HEADER and len(raw) >= 8:
        raise UserError(
            f"adapter {path} claims a header of {length:,} bytes, an adapter's has a few thousand: "
            "it is damaged, or no adapter"
        )
    if len(raw) < 8 + length or not length:
        raise _damaged(path, "it is cut off")
    try:
        header = json.loads(raw[8 : 8 + length].decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise _damaged(path, "its header is no JSON") from e
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no table")
    return header


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"adapter {path} is damaged ({' '.join(what.split())}): copy or train it again")
