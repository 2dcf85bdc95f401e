"""Paths of the files that come with salsa-dist and are not Python modules of it.

    folder("shards")       recipes, one Python file per corpus
    folder("ds_configs")   DeepSpeed configs, one per placement
    folder("launchers")    slurm.py, and configs for `accelerate launch`

A repository, and the snapshot that a job runs from, have these folders beside the package. A wheel
has them inside this one: setup.py puts them there.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDERS = ("shards", "ds_configs", "launchers")
INSTALLED = any((HERE / name).is_dir() for name in FOLDERS)


def folder(name: str) -> Path:
    """The folder of that name, one of FOLDERS."""
    return (HERE if INSTALLED else HERE.parents[1]) / name


def ds_config(path: Path) -> Path:
    """`path` if it exists, else the built-in DeepSpeed config of that name.

    So `lean.json` and `ds_configs/lean.json` work in any working folder.
    """
    built_in = folder("ds_configs") / path.name
    named = path.parent in (Path(), Path("ds_configs"))
    return built_in if named and not path.exists() and built_in.is_file() else path
