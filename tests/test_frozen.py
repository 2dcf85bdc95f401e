"""What users write, config keys and command-line options, changes on purpose only."""

import runpy
from pathlib import Path

import pytest

FROZEN = Path(__file__).parent / "frozen"
NOW = runpy.run_path(str(FROZEN / "surface.py"))


@pytest.mark.parametrize(
    ("name", "now"), [("config-keys.txt", "config_keys"), ("options.txt", "options")]
)
def test_it_is_as_it_was(name: str, now: str) -> None:
    before = set((FROZEN / name).read_text(encoding="utf-8").splitlines())
    found = set(NOW[now]())
    changes = [*(f"- {x}" for x in sorted(before - found)), *(f"+ {x}" for x in sorted(found - before))]
    if changes:
        how = "if it is meant, run `python tests/frozen/surface.py` and tell it in CHANGELOG.md"
        pytest.fail(f"{'; '.join(changes)}: {how}", pytrace=False)
