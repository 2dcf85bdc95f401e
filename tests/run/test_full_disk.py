"""A disk that takes no more, wherever a run writes, is one line that names the file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError
from tiny import make_config

from salsa_dist import UserError, cli, jsonl
from salsa_dist.new_folder import replace_folder
from salsa_dist.run.events import Events
from salsa_dist.run.failing import failure_first
from salsa_dist.whole_file import replace_file, written_whole

# A disk of few pages of 4 kB: each job comes a file further with one more.
JOBS = """
import os, shutil, subprocess, sys
from pathlib import Path
from salsa_dist import UserError, load_config, train
from salsa_dist.evaluation.run import evaluate

disk, config = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], check=True)

def attempt(pages, job, *words):
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (disk / "filler").write_bytes(bytes(4096 * (os.statvfs(disk).f_bavail - pages)))
    try:
        job(load_config(config, list(words)))
        print("said: nothing")
    except UserError as e:
        print("said:", e)

for pages in range(2, 9):
    attempt(pages, evaluate, f"run={disk}/run", "method.kind=zero-shot")
attempt(
    4, train, "training.prefix_cache=disk", f"training.prefix_folder={disk}/prefix",
    "steering.sites=encoder:last-half+llm",
)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_wherever_a_run_meets_a_full_disk_it_names_the_file(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    config = make_config(tmp_path, tiny_base, tiny_shards)
    words = ["unshare", "--mount", sys.executable, "-c", JOBS, str(disk), str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    if done.stderr.startswith("unshare: "):
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    *evaluated, trained = [
        line.removeprefix("said: ") for line in done.stdout.splitlines() if line.startswith("said: ")
    ]
    assert evaluated[-1] == "nothing"
    full = "can't be written: No space left on device; "
    for file in ("events.jsonl", "evaluation/settings.json", "evaluation/window2-rank0.jsonl"):
        assert any(f"{disk}/run/{file} {full}" in line for line in evaluated), evaluated
    assert trained.startswith(f"{disk}/prefix/")
    assert f".safetensors {full}" in trained


def in_a_rank() -> Any:
    return failure_first(SimpleNamespace(rank=0, peers=None))  # type: ignore[arg-type]


@contextmanager
def refused(path: Path, why: int, advice: str) -> Iterator[None]:
    line = f"^{path} can't be written: {os.strerror(why)}; {advice}, and run the same command again$"
    with pytest.raises(UserError, match=line), in_a_rank():
        yield


ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EROFS: "make it writable",
}


@pytest.mark.parametrize("why", ADVICE)
def test_errors_without_a_name_get_that_of_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    def fails(path: Path, data: Any) -> int:
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(Path, "write_bytes", fails)
    file, folder = tmp_path / "halving.json", tmp_path / "adapter"
    with refused(file, why, ADVICE[why]):
        replace_file(file, "{}")
    with refused(folder, why, ADVICE[why]):
        replace_folder(folder, {"adapter.json": b"{}"})
    with refused(file, why, ADVICE[why]), written_whole(file):
        raise SafetensorError(f"Error while serializing: {os.strerror(why)} (os error {why})")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_lines_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.symlink_to("/dev/full")
    with refused(file, errno.ENOSPC, ADVICE[errno.ENOSPC]), jsonl.appending(file) as out:
        out.write("{}\n")  # fails when it is closed
    events = Events(tmp_path, True)
    with pytest.raises(UserError, match=r"events.jsonl can't be written"):
        events.write("step", step=1)
    events.close()  # else its error would be the last, and a traceback


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "broken"), SafetensorError("header too large"), ValueError("other")]
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, in_a_rank(), written_whole(tmp_path / "file"):
        raise error
    assert raised.value is error
    assert getattr(error, "filename", None) is None


def test_the_command_line_says_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report.html")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == (
        "salsa-dist: report.html can't be written: No space left on device; free some space there, and "
        "run the same command again"
    )
