#!/usr/bin/env python3
"""Make a virtual environment for this repository, or leave it alone where it is up to date.

    tools/environment.py .venv                                  the lock: requirements.txt
    tools/environment.py build/lowest requirements-lowest.txt   other exact versions
    tools/environment.py build/newest --ranges                  the newest that pyproject.toml admits

    FOLDER/.installed    what the environment was made from; written last, so a half-made one has none

Only the standard library, and syntax that an old Python reads: it has to say that it is too old.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NEEDS_PYTHON = (3, 10)
# Measured: 2.3 GB with torch's CPU build. Its CUDA build, which plain PyPI serves on Linux, takes
# 5.7 GB after a download of 2.4 GB.
NEEDS_BYTES = 3 * 10**9


class Refused(Exception):
    """What stands against it, and what to do, in one line."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of the virtual environment")
    parser.add_argument("lock", nargs="?", default="requirements.txt", help="file of exact versions")
    parser.add_argument(
        "--ranges", action="store_true", help="no file: the newest that pyproject.toml admits"
    )
    parser.add_argument("--index", default="", help="index to ask beside pip's own, such as torch's")
    options = parser.parse_args()
    try:
        make(options.folder, None if options.ranges else options.lock, options.index)
    except Refused as refusal:
        print(f"environment: {refusal}", file=sys.stderr)
        return 2
    return 0


def make(folder: str, lock: "str | None", index: str) -> None:
    """Bring `folder` to what `lock` says; None: to the newest within the ranges."""
    if sys.version_info < NEEDS_PYTHON:
        raise Refused(
            "Python {}.{} is too old, salsa-dist needs {}.{} or newer: name one, such as "
            "`make demo PYTHON=python3.12`".format(*(sys.version_info[:2] + NEEDS_PYTHON))
        )
    wanted = {
        "python": sys.version.split()[0],
        "index": index,
        "lock": _hash(os.path.join(ROOT, lock)) if lock else f"newest on {datetime.date.today()}",
        "project": _hash(os.path.join(ROOT, "pyproject.toml")),
    }
    found = _installed(folder)
    same = all(found.get(key) == wanted[key] for key in ("python", "index", "lock"))
    if same and found["project"] == wanted["project"]:
        return
    pip = [_python(folder), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off"]
    pip += ["--no-compile"]  # Python compiles what is imported, which is a small part
    pip += ["--extra-index-url", index] if index else []
    if not (same and lock):
        if os.path.lexists(folder):
            why = "made from other versions" if found else "half made"
            print(f"== {folder} is {why}: making it again", flush=True)
            shutil.rmtree(folder)
        _room(folder)
        what = lock or "the newest versions that pyproject.toml admits"
        print(f"== installing {what} into {folder}: some minutes", flush=True)
        _venv(folder)
        _run(pip + (["-r", os.path.join(ROOT, lock)] if lock else ["-e", ROOT + "[dev]"]), folder)
    if lock:
        _run([*pip, "--no-deps", "-e", ROOT], folder)
    # torchaudio's CUDA wheel beside torch's CPU build: its compiled files are set aside.
    _run([_python(folder), "-m", "salsa_dist.libraries.torchaudio"], folder)
    with open(_stamp(folder), "w") as file:
        json.dump(wanted, file)


def _installed(folder: str) -> "dict[str, str]":
    try:
        with open(_stamp(folder)) as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return {}


def _stamp(folder: str) -> str:
    return os.path.join(folder, ".installed")


def _python(folder: str) -> str:
    return os.path.join(folder, "bin", "python")


def _hash(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as e:
        raise Refused(f"{path}: {e.strerror}") from e


def _room(folder: str) -> None:
    there = os.path.dirname(os.path.abspath(folder))
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    free = shutil.disk_usage(there).free
    if free < NEEDS_BYTES:
        raise Refused(
            f"{there} has {free / 1e9:.1f} GB free; installing takes {NEEDS_BYTES / 1e9:.0f} GB with "
            "torch's CPU build and 8 GB with its CUDA build: make room, or clone onto another disk"
        )


def _venv(folder: str) -> None:
    import venv

    try:
        venv.create(folder, with_pip=True)
    except (Exception, SystemExit) as e:
        raise Refused(
            f"python -m venv fails ({e}): on Debian or Ubuntu `apt-get install python3-venv`"
        ) from e


def _run(command: "list[str]", folder: str) -> None:
    """Run pip; its own last lines say what it is about, ours what to do."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        text = line.decode("utf-8", "replace").strip()
        said = [*said[-200:], text]
        if text.startswith(("Collecting", "Downloading", "Installing", "Building", "ERROR", "error")):
            print("  ", text[:100], flush=True)
    if process.wait() == 0:
        return
    print(*said[-12:], sep="\n", file=sys.stderr)
    raise Refused(f"{_why(' '.join(said), folder)}; then the same command again")


def _why(said: str, folder: str) -> str:
    if "No space left on device" in said or "Errno 28" in said:
        return f"no room left on the disk of {folder}: make room"
    if re.search(r"NewConnectionError|Max retries|Temporary failure|ConnectTimeout|ProxyError", said):
        return "pip reaches no package index: check the network, or name a mirror by PIP_INDEX_URL"
    found = re.search(r"No matching distribution found for (\S+)", said)
    if found:
        return (
            f"the package index has no {found.group(1)} for Python {sys.version.split()[0]}: "
            "name another Python by PYTHON=…, or another index by PIP_INDEX_URL"
        )
    return "pip failed, its last lines are above: fix what they name"


if __name__ == "__main__":
    sys.exit(main())
