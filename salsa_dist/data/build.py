"""Runs a recipe: `build("tuxpaint", source, out, ["bg", "el"], seed=0)`.

A recipe is one Python file in the repository's `shards/` folder, or any `.py` file named by its path.
It has one function that this module calls, and returns what it wrote:

    def build(source: Path, out: Path, languages: Sequence[str] | None, seed: int) -> ShardIndex

and its index's `recipe` facts name the `languages`, so that a finished folder is known again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from salsa_dist.data.index import FILE, ShardIndex
from salsa_dist.errors import UserError

RECIPES = Path(__file__).resolve().parents[2] / "shards"


def build(
    recipe: str,
    source: str | Path,
    out: str | Path,
    languages: Sequence[str] | None = None,
    seed: int = 0,
) -> ShardIndex:
    """The shards that `recipe` makes of `source`, built into `out` or found there."""
    module = load_recipe(recipe)
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise UserError(f"{source} is no folder: name the folder with the corpus")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _already_built(module.__name__, out, languages, seed)
    index = module.build(source, out, languages, seed)
    if not isinstance(index, ShardIndex):
        raise UserError(f"recipe {recipe!r}: its build() must return the ShardIndex that it wrote")
    return index


def load_recipe(recipe: str) -> ModuleType:
    """The module of a recipe in `shards/`, or of a path to a `.py` file."""
    known = {path.stem: path for path in sorted(RECIPES.glob("*.py"))}
    path = Path(recipe) if recipe.endswith(".py") else known.get(recipe)
    if path is None or not path.is_file():
        raise UserError(
            f"no recipe {recipe!r}: known are {', '.join(known) or 'none'}; or name a .py file"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"recipe {path} can't be imported: it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "build", None)):
        raise UserError(f"recipe {path} has no function build(source, out, languages, seed)")
    return module


def _already_built(recipe: str, out: Path, languages: Sequence[str] | None, seed: int) -> ShardIndex:
    if not (out / FILE).exists():
        raise UserError(f"{out} is not empty and holds no shards: name another folder")
    index = ShardIndex.load(out)
    there = (index.name, index.seed)
    if there != (recipe, seed):
        raise UserError(
            f"{out} holds {there[0]} built with seed {there[1]}, not {recipe} with seed {seed}: "
            "name another folder"
        )
    built = index.recipe.get("languages")
    if languages is not None and sorted(languages) != built:
        raise UserError(
            f"{out} holds the languages {built}, not {sorted(languages)}: name another folder"
        )
    for shard in index.shards:
        path = out / shard.path
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(f"{path} is missing or cut off: remove {out} and build it again")
    print(f"already built: {out}")
    return index
