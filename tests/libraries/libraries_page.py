"""docs/libraries.md, generated from the docstrings in salsa_dist/libraries/.

python tests/libraries/libraries_page.py     writes the page
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "libraries.md"
SECTIONS = ("Assumes", "Seen:", "Else:", "Test:")
HEAD = """# What we assume of other libraries

Our code relies on some undocumented behaviour of other libraries. Each line is one such assumption.
Only `salsa_dist/libraries/LIBRARY.py` relies on it, and the named test in `tests/libraries/` fails if a
new version breaks it. `salsa-dist version` shows the installed versions and the tested ranges.

`python tests/libraries/libraries_page.py` generates this page from the docstrings in these files.
"""


@dataclass(frozen=True)
class Assumption:
    """One public function or class, with the parts of its docstring."""

    library: str
    name: str
    assumes: str
    seen: str
    otherwise: str
    test: str


def assumptions() -> list[Assumption]:
    """All of them, by library and in the order of its file."""
    found = []
    for path in sorted((ROOT / "salsa_dist" / "libraries").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            parts = _parts(ast.get_docstring(node) or "")
            if parts:
                assumes, seen, otherwise, test = (parts.get(name, "") for name in SECTIONS)
                found.append(Assumption(path.stem, node.name, assumes, seen, otherwise, test))
    return found


def page() -> str:
    """The text of docs/libraries.md."""
    lines = [HEAD]
    for library in dict.fromkeys(a.library for a in assumptions()):
        lines += [
            f"\n## {library}\n",
            "| function | assumption | tested with | otherwise | test |",
        ]
        lines += ["|---|---|---|---|---|"]
        for a in assumptions():
            if a.library == library:
                cells = (f"`{a.name}`", a.assumes, a.seen, a.otherwise, f"`{a.test}`")
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _parts(docstring: str) -> dict[str, str]:
    """Section to its text on one line."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in docstring.splitlines():
        name = next((n for n in SECTIONS if line.startswith(n + " ")), None)
        if name is not None:
            current = found.setdefault(name, [])
            line = line.removeprefix(name)
        elif not line.strip():
            current = []
        current.append(line.strip())
    return {name: " ".join(lines).removeprefix("that ") for name, lines in found.items()}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
