"""Finding a recipe: a built-in Python file, in `shards/`, or any `.py` file by its path.

read(source: Path, ask: Ask) -> Corpus         what the corpus holds; decodes no audio
audio_of(utterance) -> Path | bytes            only where an utterance's audio is not a file
made_of(utterance) -> list[Path]               only where `audio_of` reads files that are not `audio`
"""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from salsa_dist import built_in
from salsa_dist.errors import UserError

RECIPES = built_in.folder("shards")


def load_recipe(recipe: str) -> ModuleType:
    """The module of a recipe in `shards/`, or of a path to a `.py` file. Raises: UserError."""
    return _load(_path(recipe).resolve())


def name_of(recipe: str) -> str:
    """The recipe's name: the name of its file."""
    return _path(recipe).stem


def _path(recipe: str) -> Path:
    known = {path.stem: path for path in sorted(RECIPES.glob("*.py"))}
    path = Path(recipe) if recipe.endswith(".py") else known.get(recipe)
    if path is None or not path.is_file():
        raise UserError(
            f"no recipe {recipe!r}: known are {', '.join(known) or 'none'}; or name a .py file"
        )
    return path


@lru_cache
def _load(path: Path) -> ModuleType:
    name = f"salsa_dist_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"recipe {path} can't be imported: it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as e:
        if not (e.name or "").startswith("salsa_dist.data."):
            raise
        now = str(e.name).replace(".data.", ".corpus.")
        raise UserError(f"recipe {path} imports {e.name}: its name is {now} now") from e
    if not callable(getattr(module, "read", None)):
        raise UserError(f"recipe {path} has no function read(source, ask, scratch)")
    return module
