"""The docs site builds without a warning, with every config key, option and public name."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import salsa_dist

ROOT = Path(__file__).parents[1]


def test_builds_and_is_complete(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    pages = {p.name: html.unescape(p.read_text(encoding="utf-8")) for p in tmp_path.rglob("*.html")}

    keys = (ROOT / "tests/frozen/config-keys.txt").read_text(encoding="utf-8").splitlines()
    names = {line.split(":")[0].split(".")[-1] for line in keys}
    assert {n for n in names if f"<code>{n}</code>" not in pages["config.html"]} == set()

    options = (ROOT / "tests/frozen/options.txt").read_text(encoding="utf-8").splitlines()
    told = re.sub(r"<[^>]*>", "", pages["commands.html"])
    assert {o for o in options if o.split()[-1] not in told} == set()

    assert {n for n in salsa_dist.__all__ if f'id="salsa_dist.{n}"' not in pages["api.html"]} == set()

    fetched = {
        p for p, text in pages.items() if re.search(r"<(script|link|img)[^>]*=\"(https?:)?//", text)
    }
    assert fetched == set(), "a reader behind a firewall sees the site whole"
