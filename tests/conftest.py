"""Imported before any test: salsa_dist guards the import of transformers, so it comes first."""

import os

# On two cores, torch's own threads in several processes only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

import salsa_dist  # noqa: F401


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a complete tiny Whisper."""
    from tiny import make_base

    return make_base(tmp_path_factory.mktemp("base") / "tiny-whisper")


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tiny shards in two languages."""
    from tiny import make_shards

    return make_shards(tmp_path_factory.mktemp("shards") / "tiny")
