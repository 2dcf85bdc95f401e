"""Copies the code and the config of a launch into the run's folder; the job runs from the copy.

    RUN/
    ├── submit.sh                      the newest launch again: same code, same config, same options
    └── snapshots/3f9a0c1d22ab/        named after its content: launching the same makes no second one
        ├── salsa_dist/ launchers/ ds_configs/
        ├── salsa_dist-0.1.0.dist-info/       its version and tested ranges, for a container
        ├── config.yaml                as it was given, without the overrides
        └── snapshot.json              {"schema", "version", "commit": of the source or null}

So the source, or the installed package, may change while a job waits in the queue, or between a job
and its requeue. A snapshot's time is that of its last use: each launch, and each start of a job,
renews it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import metadata, version
from pathlib import Path

import salsa_dist
from salsa_dist import built_in
from salsa_dist.errors import UserError
from salsa_dist.new_folder import made_beside
from salsa_dist.run.folder import RunFolder
from salsa_dist.whole_file import written_whole

SCHEMA = "salsa-dist/snapshot/1"
_PACKAGE = Path(salsa_dist.__file__).resolve().parent
_FOLDERS = {
    "salsa_dist": _PACKAGE,
    "launchers": built_in.folder("launchers"),
    "ds_configs": built_in.folder("ds_configs"),
}
_INSIDE = [("built_in", name) for name in built_in.FOLDERS]  # of an installed package


def take(run: Path, config: Path | None) -> Path:
    """The snapshot of this source and `config` in the run's folder, made if it is not there.

    Args:
        config: None: of a transcription, which has none.
    """
    files = {
        f"{name}/{path.relative_to(top)}": path
        for name, top in _FOLDERS.items()
        for path in _files(top)
    }
    if config is not None:
        files["config.yaml"] = config
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    folder = RunFolder(run.absolute()).snapshots / digest.hexdigest()[:12]
    if not folder.is_dir():
        try:
            with made_beside(folder) as new:
                for name, path in files.items():
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, new / name)
                number = version("salsa-dist")
                installed = new / f"salsa_dist-{number}.dist-info"
                installed.mkdir()
                (installed / "METADATA").write_text(_metadata(), encoding="utf-8")
                facts = {"schema": SCHEMA, "version": number, "commit": _commit()}
                (new / "snapshot.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        except OSError as e:
            if not folder.is_dir():  # else a launch beside this one was first
                raise UserError(f"snapshot {folder} can't be written: {e.strerror or e}") from e
    os.utime(folder)
    return folder


def clear_old(run: Path, days: int, newest: Path) -> None:
    """Remove the snapshots of `run` that nothing has used for `days`, but for the `newest`.

    That of this launch is used soon, even if `days` is 0 or the file system's clock is late.
    """
    for folder in sorted(RunFolder(run).snapshots.glob("*")):
        with suppress(FileNotFoundError):  # a launch beside this one was first
            if folder.name != newest.name and folder.stat().st_mtime < time.time() - days * 86400:
                shutil.rmtree(folder, ignore_errors=True)


def write_submit(run: Path, folder: Path, arguments: Sequence[str], config: Path | None) -> Path:
    """Write RUN/submit.sh: `arguments` of the launcher once more, with `config`.

    Args:
        folder: the snapshot that it runs.
    """
    script = RunFolder(run.absolute()).submit
    words = [sys.executable, str(folder / "launchers" / "slurm.py")]
    words += _without_config(arguments)
    words += [] if config is None else ["--config", str(config.absolute())]
    text = (
        "#!/usr/bin/env bash\n"
        "# The newest launch of this run again, with the code and the config that it had.\n"
        "# It goes on from what is there. More options and settings may follow.\n"
        "set -euo pipefail\n"
        f"cd {shlex.quote(str(Path.cwd()))}\n"
        f"export PYTHONPATH={shlex.quote(str(folder))}${{PYTHONPATH:+:$PYTHONPATH}}\n"
        f'exec {shlex.join(words)} "$@"\n'
    )
    with written_whole(script) as part:
        part.write_bytes(os.fsencode(text))  # a recording's name need not be UTF-8
        part.chmod(0o755)
    return script


def _files(top: Path) -> Iterator[Path]:
    for path in sorted(top.rglob("*")):
        within = path.relative_to(top).parts
        if path.is_file() and "__pycache__" not in within and within[:2] not in _INSIDE:
            yield path


def _without_config(arguments: Sequence[str]) -> list[str]:
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("--config="):
            kept.append(word)
    return kept


def _metadata() -> str:
    """pip's metadata of this package, without its description."""
    kept = ("Metadata-Version", "Name", "Version", "Requires-Python", "Requires-Dist")
    found = metadata("salsa-dist")
    return "".join(f"{key}: {value}\n" for key in kept for value in found.get_all(key) or [])


def _commit() -> str | None:
    """The commit of the source, with `-dirty` where files differ from it; None outside git."""
    if built_in.INSTALLED:  # a repository around it is somebody else's
        return None
    command = ["git", "-C", str(_PACKAGE.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
