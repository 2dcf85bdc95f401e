"""Archives of others: nothing is written outside, and nothing that a header claims is believed."""

import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest

from salsa_dist.corpus import archive
from salsa_dist.corpus.archive import DamagedTar, members, unpack
from salsa_dist.errors import UserError


def tar_of(path: Path, *names: str, content: bytes = b"audio", **fields: object) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_wanted_files_are_unpacked(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar.gz", "train/a.wav", "train/b.txt")
    unpack(path, tmp_path / "out", lambda name: name.endswith(".wav"))
    assert [p.name for p in (tmp_path / "out").rglob("*.*")] == ["a.wav"]
    assert (tmp_path / "out/train/a.wav").read_bytes() == b"audio"


@pytest.mark.parametrize(
    "name", ["../a.wav", "/a.wav", "x/../../a.wav", "a\\b.wav", "C:/a.wav", "a\n.wav"]
)
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "a.tar.gz", "good.wav", name)
    with pytest.raises(UserError, match="don't use this archive"):
        unpack(path, tmp_path / "out", lambda name: True)
    assert {p.name for p in tmp_path.rglob("*")} <= {"a.tar.gz", "out", "good.wav"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_made(tmp_path: Path, kind: bytes) -> None:
    path = tar_of(tmp_path / "a.tar.gz", "x.wav", content=b"", type=kind, linkname="/etc/passwd")
    unpack(path, tmp_path / "out", lambda name: True)
    assert not (tmp_path / "out/x.wav").exists()


def test_a_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 1 << 20)
    path = tar_of(tmp_path / "a.tar.gz", *(f"{i}.wav" for i in range(9)), content=bytes(1 << 20))
    with pytest.raises(UserError, match="unpacks to more than 1048576 bytes"):
        unpack(path, tmp_path / "out", lambda name: True)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*.wav")) < 2 << 20


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_header_that_claims_terabytes(tmp_path: Path, kind: bytes, name: str) -> None:
    info = tarfile.TarInfo("x.wav")
    info.size, info.type = 1 << 42, kind
    raw = info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    with pytest.raises(DamagedTar, match="claims"):
        list(members(tmp_path / name))


def test_every_end_that_is_too_early_is_seen(tmp_path: Path) -> None:
    raw = tar_of(tmp_path / "a.tar", "a.wav", "b.wav").read_bytes()
    end = 4 * 512  # two headers, two contents
    for size in range(0, end + 1, 128):
        (tmp_path / "a.tar").write_bytes(raw[:size])
        with pytest.raises(DamagedTar):
            [member.read() for member in members(tmp_path / "a.tar")]
    (tmp_path / "a.tar").write_bytes(raw[: end + 512])
    assert [m.read() for m in members(tmp_path / "a.tar")] == [b"audio", b"audio"]


def test_a_packed_one_that_is_cut_off_or_damaged_is_seen(tmp_path: Path) -> None:
    raw = tar_of(
        tmp_path / "a.tar.gz", "a.wav", content=random.Random(1).randbytes(20_000)
    ).read_bytes()
    damaged = [raw[:size] for size in range(0, len(raw), 997)] + [raw[:200] + b"\xff" * 40 + raw[240:]]
    for content in damaged:
        (tmp_path / "a.tar.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.tar\.gz (is|can't be) .*"):
            unpack(tmp_path / "a.tar.gz", tmp_path / "out", lambda name: True)


def test_a_header_damaged_in_the_middle_is_no_end(tmp_path: Path) -> None:
    raw = bytearray(tar_of(tmp_path / "a.tar", "a.wav", "b.wav").read_bytes())
    raw[1024 + 150] ^= 0xFF  # in the checksum of the second header
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(DamagedTar, match="damaged header at byte 1024"):
        list(members(tmp_path / "a.tar"))
