"""A file is replaced in one way: whole, flushed, and with nothing left behind."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

import salsa_dist
from salsa_dist.new_folder import made_beside
from salsa_dist.whole_file import replace_file, written_whole

# A file of the cache is read while it grows; libraries of torchaudio are only moved aside.
ELSEWHERE = {"whole_file.py", "new_folder.py", "data/cached_shard.py", "libraries/torchaudio.py"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens on the disk, in order."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushing(descriptor: int) -> None:
        seen.append("flush " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def replacing(one: Any, other: Any) -> None:
        seen.append(f"{Path(one).name} -> {Path(other).name}")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", replacing)
    return seen


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, calls: list[str]
) -> None:
    replace_file(tmp_path / "a.json", "new ü")
    assert calls == ["flush a.json.part", "a.json.part -> a.json", f"flush {tmp_path.name}"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new ü"
    calls.clear()
    replace_file(tmp_path / "a.json", b"b", flushed=False, writer="7")
    assert calls == ["a.json.7.part -> a.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_file(path, "old")

    def fail() -> None:
        with written_whole(path) as part:
            part.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_without_a_name_is_an_error_of_the_disk(path: str) -> None:
    with pytest.raises(IsADirectoryError):
        replace_file(Path(path), "text")


def test_a_folder_appears_when_all_of_it_is_on_the_disk(tmp_path: Path, calls: list[str]) -> None:
    with made_beside(tmp_path / "new") as folder:
        (folder / "below").mkdir()
        (folder / "below" / "a.txt").write_text("a")
    flushed, name, last = calls[:-2], calls[-2], calls[-1]
    assert sorted(flushed) == [f"flush {folder.name}", "flush a.txt", "flush below"]
    assert (name, last) == (f"{folder.name} -> new", f"flush {tmp_path.name}")


def test_no_module_replaces_a_file_by_itself() -> None:
    top = Path(salsa_dist.__file__).parent
    by_hand = re.compile(r"os\.(replace|rename|fsync)\(|\.rename\(|\b(part|temporary)\.replace\(")
    found = {
        str(path.relative_to(top))
        for path in top.rglob("*.py")
        if by_hand.search(path.read_text(encoding="utf-8"))
    }
    assert found == ELSEWHERE
