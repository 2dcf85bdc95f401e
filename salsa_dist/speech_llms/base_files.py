"""The files of a base: the folder that they are in, and what pins its weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from salsa_dist.libraries.huggingface_hub import commit_of
from salsa_dist.speech_llms.built_in_lora import folders_of
from salsa_dist.speech_llms.reading_base import reading_base

UNKNOWN = "unknown"  # the revision of a base of which no commit is known; nothing is kept under it
# What a base is loaded from; a hub's folder may hold the same weights in three other forms too.
CHECKPOINT_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken")


def base_revision(name: str, revision: str | None = None, fetched: bool = False) -> str:
    """What pins a base's weights; of a hub name that was `fetched` just now the hub is not asked again.

    For a hub name its commit. For a folder, `local-` and 16 hex digits of a SHA-256 over config.json
    and, for each weight file, its name, size, first 64 KiB (the safetensors header) and 64 KiB at each
    of 16 places: a base of hundreds of gigabytes is told apart in milliseconds, though an edit
    between these places is not seen.
    """
    folder = Path(name)
    if not folder.is_dir():
        return commit_of(name, revision, fetched) or UNKNOWN
    digest = hashlib.sha256()
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings.pop("transformers_version", None)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(p for f in folders_of(folder) for p in f.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for place in range(17):
                file.seek(place * max(0, size - 65_536) // 16, os.SEEK_SET)
                digest.update(file.read(65_536))
    return "local-" + digest.hexdigest()[:16]


def source_folder(name: str, revision: str | None) -> Path:
    """The folder that a base's files are in; those of a hub name are fetched if need be.

    Raises:
        UserError: no such base.
    """
    if (folder := Path(os.path.expanduser(name))).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    kinds = [f"*{kind}" for kind in CHECKPOINT_FILES]
    # Some publishers put the same weights beside them a second time, in their own form.
    with reading_base(name):
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=kinds, ignore_patterns=["consolidated*"]
            )
        )
