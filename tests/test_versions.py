"""`salsa-dist version`, a warning outside of what was tested, and versions in a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from run_results import events
from tiny import make_config

from salsa_dist import versions

ROOT = Path(__file__).parents[1]


def _pretend(folder: Path, name: str, installed: str) -> None:
    """Metadata of another version, found before that of the installed one; the code stays."""
    info = folder / f"{name}-{installed}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {installed}\n")


def _run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables}
    command = [sys.executable, "-m", "salsa_dist", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def _warned(folder: Path, **variables: str) -> str:
    """What a process with two commands says on standard error."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables}
    code = "from salsa_dist.versions import warn_if_outside as warn; warn(); warn()"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stderr


def test_each_library_is_shown_with_the_range_of_our_own_metadata(tmp_path: Path) -> None:
    shown = {line.split()[0]: line for line in _run(tmp_path, "version").stdout.splitlines()}
    assert shown["salsa-dist"].split()[1] == version("salsa-dist")
    for requirement in map(Requirement, requires("salsa-dist") or []):
        if "extra" not in str(requirement.marker):
            line = shown[requirement.name]
            assert line.split()[1] == version(requirement.name)
            assert all(str(part) in line for part in requirement.specifier)


def test_a_version_outside_is_marked_and_warned_of_once_by_the_first_rank(tmp_path: Path) -> None:
    _pretend(tmp_path, "transformers", "99.0")
    (line,) = (x for x in _run(tmp_path, "version").stdout.splitlines() if x.startswith("transformers"))
    assert line.split()[1] == "99.0"
    assert line.endswith("OUTSIDE")
    warning = "salsa-dist: warning: versions that were not tested: transformers 99.0 (tested: "
    done = _run(tmp_path, "inspect", "nowhere")
    assert done.stderr.count(warning) == 1
    assert done.returncode == 2, "a warning refuses nothing"
    assert _warned(tmp_path).count(warning) == 1
    assert _warned(tmp_path, RANK="1") == ""


def test_versions_inside_are_no_matter(tmp_path: Path) -> None:
    for library in versions.libraries():
        if library.is_outside:
            _pretend(tmp_path, library.name, library.tested.partition(",")[0].lstrip(">=<!"))
    assert _warned(tmp_path) == ""


def test_a_failure_inside_a_library_names_it_and_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import yaml\n"
        "def broken(*arguments, **named):\n"
        "    raise KeyError('a name of the next release')\n"
        "broken.__globals__['__name__'] = 'yaml.loader'\n"
        "yaml.safe_load = yaml.load = broken\n"
    )
    (tmp_path / "run.yaml").write_text("run: here\n")
    done = _run(tmp_path, "train", "run.yaml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'a name of the next release'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        f"salsa-dist: this failed inside pyyaml {version('pyyaml')} (tested: "
    )


def test_an_import_that_is_refused_names_the_version() -> None:
    with pytest.raises(ImportError) as caught:
        from transformers import AutoModelOfTheNextRelease  # noqa: F401
    assert "transformers " in (versions.named_in(caught.value) or "")
    import torch

    with pytest.raises(AttributeError) as missing:
        torch.a_function_of_the_next_release  # noqa: B018
    assert f"torch {version('torch')}" in (versions.named_in(missing.value) or "")


def test_a_base_that_the_library_can_not_load_any_more_names_the_version(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import WhisperForConditionalGeneration

    from salsa_dist import UserError, load_speech_llm

    def next_release(*arguments: object, **named: object) -> None:
        exec("raise TypeError('no argument of that name')", {"__name__": "transformers.modeling_utils"})

    monkeypatch.setattr(WhisperForConditionalGeneration, "from_pretrained", next_release)
    with pytest.raises(UserError, match="no argument of that name") as refused:
        load_speech_llm(tiny_base)
    assert f"this failed inside transformers {version('transformers')} (tested: " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_defect_of_ours_blames_no_library() -> None:
    with pytest.raises(KeyError) as caught:
        raise KeyError("ours")
    assert versions.named_in(caught.value) is None


def test_a_failed_rank_writes_the_version_beside_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from salsa_dist.launch.rank import _write_failure

    path = tmp_path / "failure.json"
    monkeypatch.setenv("SALSA_FAILURE_FILE", str(path))
    with pytest.raises(ImportError) as caught:
        from transformers import AutoModelOfTheNextRelease  # noqa: F401
    _write_failure(0, caught.value, user_error=False, final=False)
    text = json.loads(path.read_text(encoding="utf-8"))["text"]
    assert text.splitlines()[-1].startswith("this failed inside transformers ")


def test_a_run_starts_with_versions_and_ranges(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    from salsa_dist import load_config, train

    train(load_config(make_config(tmp_path, tiny_base, tiny_shards), ["training.steps=1"]))
    (start,) = events(tmp_path / "run", "start")
    assert start["environment"]["transformers"] == version("transformers")
    assert start["tested"]["transformers"].startswith(">=")
