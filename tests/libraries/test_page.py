"""Each assumption about a library is complete, has its test, and stands in docs/libraries.md."""

from __future__ import annotations

import ast
from pathlib import Path

import libraries_page

ROOT = Path(__file__).parents[2]
# Of the standard library, with an underscore for want of another name.
ALLOWED = {"_exit", "_current_frames", "_asdict"}  # documented by Python


def test_each_assumption_is_complete_and_its_test_is_there() -> None:
    assert len(libraries_page.assumptions()) > 15
    for one in libraries_page.assumptions():
        assert one.assumes, one
        assert one.seen, one
        assert one.otherwise, one
        tests = (Path(__file__).parent / f"test_{one.library}.py").read_text(encoding="utf-8")
        assert f"def {one.test}(" in tests, one


def test_the_page_is_current() -> None:
    assert libraries_page.PAGE.read_text(encoding="utf-8") == libraries_page.page()


def test_no_private_name_of_another_package_is_used_elsewhere() -> None:
    """Every `_name` that our code asks an object for is defined in our code, but for libraries/."""
    own, used = set(ALLOWED), []
    for path in sorted((ROOT / "salsa_dist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                ours = isinstance(node.value, ast.Name) and node.value.id == "self"
                if ours and isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
                elif node.attr.startswith("_") and not node.attr.startswith("__"):
                    used.append((node.attr, path, node.lineno))
            elif isinstance(node, ast.ImportFrom) and "salsa_dist" not in (node.module or ""):
                used += [(a.name, path, node.lineno) for a in node.names if a.name.startswith("_")]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for name, path, line in used
        if name not in own and path.parent.name != "libraries"
    ]
    assert wrong == []


def test_deepspeed_is_imported_in_one_place() -> None:
    for path in (ROOT / "salsa_dist").rglob("*.py"):
        if path.parent.name != "libraries":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not [n for n in names if n.partition(".")[0] == "deepspeed"], path
