"""What pip installs is all there is: the main job from an empty folder, without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
FOLDERS = ("salsa_dist", "shards", "ds_configs", "launchers")
PROJECT = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta as b; b.build_wheel('.'); b.build_sdist('.')"

Salsa = Callable[..., str]


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What it printed; it must end well."""
    hidden = ("PYTHONPATH", "RANK", "WORLD_SIZE")
    own = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def names(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, with its wheel and its sdist in it."""
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PROJECT:
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-c", BUILD, cwd=source)
    return source


@pytest.fixture(scope="module")
def wheel(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip makes of the sdist."""
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps")
    run(*pip, "--no-build-isolation", "--wheel-dir", out, *built.glob("*.tar.gz"), cwd=out)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def salsa(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Salsa:
    """`salsa-dist …` of an environment with the wheel and what it depends on, in an empty folder."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Their own .pth files are not followed, so a salsa_dist installed there as editable is not seen.
    there = [path for path in sys.path if path.endswith("-packages")]
    (packages / "dependencies.pth").write_text("\n".join(there) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", "--force-reinstall", wheel, cwd=wheel.parent)
    empty = tmp_path_factory.mktemp("empty")

    def call(*arguments: object) -> str:
        return run(environment / "bin/salsa-dist", *arguments, cwd=empty, HOME=str(empty))

    where = "import salsa_dist; print(salsa_dist.__file__)"
    imported = run(environment / "bin/python", "-c", where, cwd=empty).strip()
    assert Path(imported) == packages / "salsa_dist/__init__.py"
    call.folder = empty  # type: ignore[attr-defined]
    return call


def test_the_wheel_holds_every_file(built: Path, wheel: Path) -> None:
    wanted = set()
    for folder in FOLDERS:
        inside = folder if folder == "salsa_dist" else f"salsa_dist/built_in/{folder}"
        files = (p.relative_to(built / folder) for p in (built / folder).rglob("*") if p.is_file())
        wanted |= {f"{inside}/{file.as_posix()}" for file in files}
    (direct,) = built.glob("*.whl")
    assert names(direct) == wanted
    assert names(wheel) == wanted, "the sdist holds as much"


@pytest.mark.timeout(600)
def test_the_main_job_from_an_empty_folder(salsa: Salsa, tiny_base: Path) -> None:
    folder: Path = salsa.folder  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    lines = []
    for n in range(12):
        audio = 0.1 * rng.standard_normal(int(16_000 * rng.uniform(0.4, 1.2)))
        soundfile.write(folder / f"{n}.wav", audio, 16_000)
        line = {"audio": f"{n}.wav", "text": "vuk lisa", "split": "test" if n < 2 else "train"}
        lines.append(json.dumps(line))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    assert "transformers" in salsa("version")
    salsa("shards", "build", "jsonl", "clips.jsonl", "speech", "--language", "bg", "--workers", 1)
    salsa("init", tiny_base, "speech", "--run", "runs/mine")
    few = ("training.steps=2", "data.clips_per_step=4", "evaluation.max_new_tokens=4")
    sharded = ("placement.kind=full", "placement.ds_config=ds_configs/lean.json")
    salsa("train", "config.yaml", *few, *sharded)
    salsa("evaluate", "config.yaml", *few)
    salsa("report", "runs/mine")
    steered = ("--language", "bg", "--adapter", "runs/mine/adapters/bg")
    told = salsa("transcribe", tiny_base, "0.wav", *steered)
    assert told.startswith("0.wav\t")
    assert json.loads((folder / "runs/mine/report.json").read_text())

    script = salsa("launch", "--config", "config.yaml", "--nodes", 4, "--dry-run")
    assert "#SBATCH --nodes=4\n" in script
    assert "\n# full " in script, "the plan reads the built-in DeepSpeed configs"
    here = ("--cluster", "local", "--tasks-per-node", 2, "run=runs/two", *few, *sharded)
    salsa("launch", "train", "--config", "config.yaml", *here)
    two = folder / "runs/two"
    assert (two / "adapters/bg/adapter.safetensors").is_file()
    (snapshot,) = (two / "snapshots").iterdir()
    for kept in ("salsa_dist/cli.py", "launchers/slurm.py", "ds_configs/lean.json"):
        assert (snapshot / kept).is_file()
    assert not (snapshot / "salsa_dist/built_in/shards").exists()
    again = run("bash", two / "submit.sh", "--cluster", "slurm", "--dry-run", cwd=folder)
    assert "#SBATCH --ntasks-per-node=2\n" in again
