"""Environments are made from exact versions, again where they are stale, and refused in one line."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module over a small repository; `installed` lists what pip was asked for."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = ModuleType("environment")
    module.__dict__.update(importlib.util.module_from_spec(spec).__dict__)
    spec.loader.exec_module(module)
    (tmp_path / "lock.txt").write_text("torch==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(module, "ROOT", str(tmp_path))
    monkeypatch.setattr(module, "_venv", lambda folder: Path(folder).mkdir(parents=True))
    module.installed = []
    monkeypatch.setattr(module, "_run", lambda command, folder: module.installed.append(command))
    return module


def test_made_once_and_again_where_the_lock_changed(environment: Any, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    environment.make(str(folder), "lock.txt", "")
    assert [c[-2:] for c in environment.installed] == [
        ["-r", str(tmp_path / "lock.txt")],
        ["-e", str(tmp_path)],
        ["-m", "salsa_dist.libraries.torchaudio"],
    ]
    (folder / "left").touch()
    environment.make(str(folder), "lock.txt", "")
    assert len(environment.installed) == 3
    (tmp_path / "lock.txt").write_text("torch==2\n")
    environment.make(str(folder), "lock.txt", "")
    assert len(environment.installed) == 6
    assert not (folder / "left").exists()


def test_half_made_is_made_again(
    environment: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "left").touch()
    environment.make(str(folder), "lock.txt", "")
    assert not (folder / "left").exists()
    assert "half made" in capsys.readouterr().out


def test_only_the_project_is_installed_again_where_it_alone_changed(
    environment: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "venv"
    environment.make(str(folder), "lock.txt", "")
    (tmp_path / "pyproject.toml").write_text("[project]\nname='x'\n")
    environment.make(str(folder), "lock.txt", "")
    assert [c[-2] for c in environment.installed] == ["-r", "-e", "-m", "-e", "-m"]


def test_too_old_a_python_and_too_full_a_disk_are_one_line(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "NEEDS_BYTES", 10**18)
    with pytest.raises(environment.Refused, match=r"GB free; .* make room"):
        environment.make(str(tmp_path / "venv"), "lock.txt", "")
    monkeypatch.setattr(environment, "NEEDS_PYTHON", (9, 9))
    with pytest.raises(environment.Refused, match=r"too old, .* 9\.9 or newer: name one"):
        environment.make(str(tmp_path / "venv"), "lock.txt", "")
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("lock", "why"),
    [("nothing-like-this==1", "pip reaches no package index"), ("no/such file", "pip failed")],
)
def test_what_pip_can_not_do_is_told_in_one_line_and_leaves_no_mark(
    lock: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "lock.txt").write_text(lock + "\n")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/environment.py", tmp_path / "venv", tmp_path / "lock.txt"],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
        | {"PIP_CONFIG_FILE": "/dev/null", "HOME": str(tmp_path)},
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"environment: {why}")
    assert last.endswith("then the same command again")
    assert not (tmp_path / "venv/.installed").exists()


@pytest.mark.parametrize("lock", ["requirements.txt", "requirements-lowest.txt"])
def test_a_lock_serves_any_build_of_torch_and_is_within_the_ranges(lock: str) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    admitted = [
        Requirement(r) for r in re.findall(r'^  "([a-z][^"]*[<>=][^"]*)",$', text, re.MULTILINE)
    ]
    assert {"torch", "transformers", "deepspeed", "pytest"} <= {r.name for r in admitted}
    locked: dict[str, list[Version]] = {}
    for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
        requirement = Requirement(line)
        assert not requirement.name.startswith(("nvidia", "cuda", "triton")), "torch names its own"
        (exact,) = requirement.specifier
        assert exact.operator == "=="
        assert "+" not in exact.version
        locked.setdefault(canonicalize_name(requirement.name), []).append(Version(exact.version))
    outside = {
        r.name for r in admitted for v in locked[canonicalize_name(r.name)] if v not in r.specifier
    }
    assert outside == set(), "`make lock` renews the lock"
