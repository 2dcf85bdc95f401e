"""What users read has the terms of docs/glossary.md, and none of the words that stood for them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
MODULES = [
    p for folder in ("salsa_dist", "shards", "demo", "launchers") for p in (ROOT / folder).rglob("*.py")
]

INSTEAD = {
    r"hear|hears|heard|hearing": "keep, process, or trained on",
    r"walk|walks|walked|walking": "run",
    r"mend|mends|mended|mending": "fix",
    r"leave (it|them|one) out": "remove",
    r"(?<!which )(clips|seconds|samples|shards|bytes) a (rank|site|layer|language|step|node)": "per",
}
# Calls whose texts users see, beside the descriptions of config keys and options.
SHOWN = {"UserError", "ValueError", "Refused", "tell", "print", "warn", "Field", "Option", "Argument"}


@cache
def read() -> list[tuple[Path, int, str]]:
    """File, line and text of all that users read."""
    return [
        (path, number, text)
        for paths, lines in ((PAGES, in_plain_text), (MODULES, texts))
        for path in paths
        for number, text in lines(path)
    ]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The strings in errors, messages and descriptions of a module, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in SHOWN or name in {"info", "warning", "error"}:
            for part in ast.walk(node):
                # Names of fields, such as report.json's `heard`, are single words.
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value:
                    yield part.lineno, part.value


def in_plain_text(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page, without code."""
    code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.startswith("```")
        if not code and not line.startswith("    "):
            yield number, re.sub(r"`[^`]*`", "", line)


@pytest.mark.parametrize("words", INSTEAD)
def test_users_read_the_terms_of_the_glossary(words: str) -> None:
    bad = re.compile(rf"\b({words})\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {found[0]!r}"
        for path, number, text in read()
        if (found := bad.search(text))
    ]
    assert found == [], f"say {INSTEAD[words]}"
