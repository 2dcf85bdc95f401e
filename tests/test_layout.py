"""Imports between our packages go one way: from a line below to the lines above it.

Imports inside functions count as well: a cycle that is put off is one all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "salsa_dist"

# A package or module of salsa_dist/ imports only what stands above it here.
ORDER = [
    *("errors", "log", "built_in", "full_disk", "whole_file"),
    *("json_file", "new_folder", "jsonl", "columns", "machine"),
    *("store_errors", "places", "libraries", "versions"),
    *("steering", "config", "data", "corpus", "speech_llms", "metrics"),
    *("planner", "placement", "run", "training", "methods", "loop", "evaluation", "transcription"),
    *("folding", "export", "requeue"),
    *("__init__", "runs", "report", "sweeps", "commands", "launch", "cli", "__main__"),
]


# What a method is made of (optimizer, reduction, batches) lies in training/ too, below the methods.
LOOP = ("loop", "opening", "job", "guard", "record", "speed")


def place_of(parts: list[str]) -> str:
    """The package, or the loop, which is above the methods."""
    return "loop" if parts[0] == "training" and parts[1:2] and parts[1] in LOOP else parts[0]


def imports() -> Iterator[tuple[str, str, str]]:
    """Who imports whom, by package or module of salsa_dist/, and where."""
    for path in sorted(ROOT.rglob("*.py")):
        importer = place_of(list(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                at_top = node.module == "salsa_dist"
                names = [f"salsa_dist.{a.name}" if at_top else node.module for a in node.names]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            else:
                continue
            for name in names:
                package, *rest = name.split(".")
                imported = place_of(rest) if rest else "__init__"
                if package == "salsa_dist" and imported != importer:
                    yield importer, imported, f"{path.relative_to(ROOT.parent)}:{node.lineno}"


def test_every_package_has_its_place_in_the_order() -> None:
    found = {path.relative_to(ROOT).with_suffix("").parts[0] for path in ROOT.rglob("*.py")}
    assert sorted(found - set(ORDER)) == [], "name its place in ORDER"


def test_no_import_runs_back_up() -> None:
    place = {name: i for i, name in enumerate(ORDER)}
    wrong = [
        f"{where}: {importer} imports {imported}"
        for importer, imported, where in imports()
        if imported in place and importer in place and place[imported] > place[importer]
    ]
    assert wrong == []


def test_the_planner_does_without_deepspeed() -> None:
    for path in (ROOT / "planner").glob("*.py"):
        assert "import deepspeed" not in path.read_text(encoding="utf-8"), path


def drawn() -> list[str]:
    """Every path of the tree in docs/layout.md, folders with a slash at their end."""
    page = (ROOT.parent / "docs" / "layout.md").read_text(encoding="utf-8")
    tree = page.partition("salsa_dist/\n")[2].partition("```")[0]
    paths: list[str] = []
    folders: list[str] = []
    for line in tree.splitlines():
        name, what = line.split(maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        assert depth, line
        assert what, line
        folders = folders[: depth - 1]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_the_page_of_the_layout_names_every_module_once() -> None:
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    real = [f"{f.parent}/" for f in files if f.name == "__init__.py" and f.parent != Path()]
    real += [str(f) for f in files if f.name != "__init__.py" or f.parent == Path()]
    assert sorted(drawn()) == sorted(real), "docs/layout.md"


def test_the_page_of_the_layout_is_in_the_order_of_imports() -> None:
    top = [path.removesuffix("/").removesuffix(".py") for path in drawn() if "/" not in path[:-1]]
    assert top == [name for name in ORDER if name != "loop"]
