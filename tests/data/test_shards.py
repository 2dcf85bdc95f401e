"""Shards: samples come back, WebDataset reads them too, and damage is named."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from clips import read_range

from salsa_dist.corpus.writer import Sample, ShardWriter
from salsa_dist.data import shards as shards_module
from salsa_dist.data.index import Entry, ShardIndex
from salsa_dist.data.shards import BadSample, read_ranges, read_sample
from salsa_dist.errors import UserError


def make_samples(count: int, language: str = "bg") -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(
            key=f"{language}/clip-{i}",
            audio=rng.uniform(-1, 1, 1000 + 37 * i).astype(np.float32),
            text=f"дума {i}",
            language=language,
            speaker=None if i % 2 else "мария",
            licence="GPL-2",
            source="here",
        )
        for i in range(count)
    ]


def write(out: Path, count: int = 5, per_shard: int = 2) -> ShardIndex:
    with ShardWriter(out, "corpus", seed=0) as writer:
        writer.write("train", "bg", make_samples(count), per_shard)
        return writer.finish({"source": "made up"})


def test_samples_come_back(tmp_path: Path) -> None:
    write(tmp_path / "out")
    index = ShardIndex.load(tmp_path / "out")
    assert [s.samples for s in index.shards] == [2, 2, 1]
    originals = {s.key: s for s in make_samples(5)}
    for shard in index.shards:
        path = index.folder / shard.path
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
        assert path.stat().st_size == shard.bytes
        for entry in shard.entries:
            audio, facts = read_sample(read_range(path, entry), path, entry.key)
            sample = originals.pop(entry.key)
            np.testing.assert_allclose(audio, sample.audio, atol=2**-15)
            assert entry.seconds == facts["seconds"] == len(sample.audio) / 16_000
            assert (facts["text"], facts["speaker"]) == (sample.text, sample.speaker)
            assert set(facts) == {"text", "language", "speaker", "seconds", "licence", "source"}
    assert not originals


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a").hash == write(tmp_path / "b").hash
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()


def test_webdataset_reads_them(tmp_path: Path) -> None:
    import webdataset

    index = write(tmp_path / "out")
    urls = [str(index.folder / shard.path) for shard in index.shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in found] == [e.key for shard in index.shards for e in shard.entries]
    audio, rate = soundfile.read(io.BytesIO(found[3]["flac"]))
    assert (len(audio), rate) == (1000 + 37 * 3, 16_000)
    assert json.loads(found[3]["json"])["text"] == "дума 3"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def breaks() -> Iterator[Sample]:
        yield from make_samples(3, "el")
        raise KeyboardInterrupt

    def build() -> None:
        with ShardWriter(tmp_path / "out", "corpus", 0) as writer:
            writer.write("dev", "bg", make_samples(1), 2)
            assert not (tmp_path / "out").exists()
            writer.write("train", "el", breaks(), 2)

    with pytest.raises(KeyboardInterrupt):
        build()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        ShardWriter(tmp_path, "corpus", 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": " \n"}, "no text"),
        ({"loss_weight": 1001}, "loss_weight 1001: it must be a number from 0 to 1000"),
        ({"key": "a.b"}, "can't be a key"),  # WebDataset would cut it at the dot
        ({"key": "../a"}, "can't be a key"),
        ({"key": "/a"}, "can't be a key"),
        ({"key": "bg/clip-1"}, "two samples"),
        ({"language": "el"}, "among those in bg"),
        ({"audio": np.zeros((2, 5), np.float32)}, "shape"),
        ({"audio": np.zeros(0, np.float32)}, "shape"),
        ({"audio": np.full(9, np.nan, np.float32)}, "NaN"),
    ],
)
def test_a_recipe_is_told_what_it_did_wrong(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    good = make_samples(3)
    bad = dataclasses.replace(good[2], **change)  # type: ignore[arg-type]
    with ShardWriter(tmp_path / "out", "corpus", 0) as writer, pytest.raises(UserError, match=says):
        writer.write("train", "bg", [*good[:2], bad], 10)


def test_no_samples_at_all(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "out", "corpus", 0) as writer:
        writer.write("train", "bg", [], 10)
        with pytest.raises(UserError, match="no sample"):
            writer.finish({})


def flac(samples: int = 800, rate: int = 16_000, channels: int = 1, format: str = "FLAC") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros((samples, channels), np.float32), rate, format=format)
    return out.getvalue()


def claims(frames: int) -> bytes:
    """A FLAC whose header claims so many samples, in the 36 bits that it has for them."""
    raw = bytearray(flac())
    raw[21] = (raw[21] & 0xF0) | (frames >> 32)
    raw[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(raw)


def claims_wav(rate: int, channels: int) -> bytes:
    raw = bytearray(flac(format="WAV"))
    raw[22:24] = channels.to_bytes(2, "little")
    raw[24:28] = rate.to_bytes(4, "little")
    return bytes(raw)


class Harm:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return exec, ("raise SystemExit('a pickle was loaded')",)


def numpy_objects() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Harm()], dtype=object), allow_pickle=True)
    return out.getvalue()


TEXT = json.dumps({"text": "дума"}).encode()


def pack(*files: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def piece(raw: bytes) -> bytes:
    """A tar without the zeros at its end."""
    while raw.endswith(bytes(512)):
        raw = raw[:-512]
    return raw


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_others_tars_have_other_kinds_and_rates(kind: str) -> None:
    out = io.BytesIO()
    stereo = np.zeros((8_000, 2), np.float32)
    soundfile.write(out, stereo, 8_000, format=kind.upper())
    extra = ("k.info.txt", b"not the text"), ("k.jpg", b"\xff")
    raw = pack((f"k.{kind.upper()}", out.getvalue()), ("k.txt", "дума\n".encode()), *extra)
    audio, facts = read_sample(raw, "s.tar", "k")
    assert abs(len(audio) - 16_000) < 3_000  # mp3 pads
    assert facts["text"] == "дума"


def huge_member() -> bytes:
    """A tar whose header claims a member of a terabyte."""
    info = tarfile.TarInfo("k.flac")
    info.size = 1 << 40
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def test_a_good_sample_made_by_hand() -> None:
    audio, facts = read_sample(pack(("k.flac", flac()), ("k.json", TEXT)), "s.tar", "k")
    assert (len(audio), facts["text"]) == (800, "дума")


@pytest.mark.parametrize("kind", ["flac", "wav", "ogg", "mp3"])
def test_samples_of_others_tars(kind: str) -> None:
    """Other formats, rates and channels; a plain text; files beside them that mean nothing to us."""
    raw = pack(
        (f"a.b/k.{kind}", flac(44_100, 44_100, 2, kind.upper())),
        ("a.b/k.txt", "дума\n".encode()),
        ("a.b/k.face.png", b"not looked at"),
    )
    audio, facts = read_sample(raw, "s.tar", "a.b/k")
    assert len(audio) == pytest.approx(16_000, abs=1200)  # mp3 pads
    assert (audio.ndim, audio.dtype, facts["text"]) == (1, np.float32, "дума")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "tar"),
        (b"\0" * 1024, "lacks"),
        (b"rubbish" * 300, "tar"),
        (pack(("k.flac", flac())), "no text"),
        (pack(("k.flac", flac()), ("k.json", TEXT), ("k.pkl", b"x")), "k.pkl"),
        (pack(("k.json", TEXT)), "lacks"),
        *(
            (pack(("k.flac", flac()), ("k.json", TEXT), (f"k.{kind}", content)), f"k.{kind}")
            for kind, content in (
                ("pkl", pickle.dumps(Harm())),
                ("pyd", pickle.dumps(Harm())),
                ("pth", pickle.dumps(Harm())),
                ("vector.npy", numpy_objects()),
                ("npz", numpy_objects()),
            )
        ),
        (pack(("k.flac", flac()), ("k.json", TEXT), ("l.json", TEXT)), "l.json"),
        (pack(("l.flac", flac()), ("l.json", TEXT)), "l.flac"),
        (pack(("k.flac", b""), ("k.json", TEXT), kind=tarfile.SYMTYPE), "no plain"),
        (pack(("k.flac", b"rubbish"), ("k.json", TEXT)), "can't be read as audio"),
        (pack(("k.flac", flac()[:-20]), ("k.json", TEXT)), "can't be read as audio"),
        (pack(("k.flac", flac(rate=2_000)), ("k.json", TEXT)), "rate of 2000 Hz"),
        (pack(("k.flac", flac(rate=1_000)), ("k.json", TEXT)), "1000 Hz"),
        (pack(("k.wav", claims_wav(2**31 - 1, 1)), ("k.json", TEXT)), "2147483647 Hz"),
        (pack(("k.wav", claims_wav(16_000, 1000)), ("k.json", TEXT)), "holds no audio"),
        (pack(("k.flac", claims(1_000_000_000)), ("k.json", TEXT)), "has more than 600 s"),
        (pack(("k.flac", claims(16_000 * 599)), ("k.json", TEXT)), "can't be read as audio"),
        (pack(("../../k.flac", flac()), ("../../k.json", TEXT)), "../../k.flac"),
        (pack(("/k.flac", flac()), ("/k.json", TEXT)), "/k.flac"),
        (huge_member(), "piece of a tar"),
        (pack(("k.flac", flac(16_000 * 601)), ("k.json", TEXT)), "more than 600 s"),
        (pack(("k.flac", flac()), ("k.json", b"{")), "damaged JSON"),
        (pack(("k.flac", flac()), ("k.json", b"[" * 100_000)), "damaged JSON"),
        (pack(("k.flac", flac()), ("k.json", b'{"text": " "}')), 'no "speech": false in its JSON'),
        (pack(("k.flac", flac()), ("k.json", b'{"text": "", "speech": 0}')), "empty transcript"),
        (
            pack(("k.flac", flac()), ("k.json", b'{"text": "a", "loss_weight": -1}')),
            "loss_weight -1: it",
        ),
        (pack(("k.flac", flac()), ("k.json", b'{"text": "a", "loss_weight": NaN}')), "loss_weight nan"),
        (pack(("k.flac", flac()), ("k.json", b'{"text": "a", "loss_weight": "2"}')), "loss_weight '2'"),
        (pack(("k.flac", flac()), ("k.json", b'{"text": 3}')), "no text"),
    ],
)
def test_bad_samples_are_named(raw: bytes, says: str) -> None:
    # As a tar of its own, and as a piece of one, which has no end mark.
    for form in (raw, piece(raw) or raw):
        with pytest.raises(BadSample) as caught:
            read_sample(form, "bg/s.tar", "k")
        assert says in str(caught.value)
        assert str(caught.value).startswith("bg/s.tar: sample k ")


def test_absurd_claims_take_no_memory() -> None:
    """A few bytes that claim gigabytes are refused before anything of that size is made."""
    tracemalloc.start()
    for frames in (16_000 * 599, 1_000_000_000, (1 << 36) - 1):
        with pytest.raises(BadSample):
            read_sample(pack(("k.flac", claims(frames)), ("k.json", TEXT)), "s.tar", "k")
    with pytest.raises(BadSample):
        read_sample(huge_member(), "s.tar", "k")
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_a_range_outside_the_tar(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(b"x" * 100)
    assert read_range(path, Entry("k", 1, 10, 90)) == b"x" * 90
    for entry in (Entry("k", 1, 10, 91), Entry("k", 1, 0, 1 << 40)):
        with pytest.raises(BadSample, match="sample k"):
            read_range(path, entry)
    with pytest.raises(BadSample, match="can't be read"):
        read_range(tmp_path / "gone.tar", Entry("k", 1, 0, 10))


def test_reads_that_stop_early_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = write(tmp_path / "out", count=6, per_shard=6)
    (shard,) = index.shards
    path = index.folder / shard.path
    whole = path.read_bytes()
    wanted = [shard.entries[i] for i in (0, 1, 3, 4, 5)]
    wanted[3] = Entry(wanted[3].key, 1, wanted[3].offset + 100, wanted[3].length - 100)  # a gap

    def slowly(fd: int, buffers: list[memoryview], offset: int) -> int:
        return os.preadv(fd, [buffers[0][:700]], offset)

    monkeypatch.setattr(shards_module, "os", SimpleNamespace(preadv=slowly))
    for entry, raw in read_ranges(path, wanted):
        assert raw == whole[entry.offset : entry.offset + entry.length]


def float_wav(value: float) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.full(800, value, np.float32), 16_000, format="WAV", subtype="FLOAT")
    return out.getvalue()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(value: float) -> None:
    with pytest.raises(BadSample, match="NaN or infinite") as caught:
        read_sample(pack(("k.wav", float_wav(value)), ("k.json", TEXT)), "s.tar", "k")
    assert caught.value.kind == "audio"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("stem", ["k", "a/" * 45 + "k", "дума/" * 30 + "k"])
def test_tars_of_every_format_and_long_names(format: int, stem: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for kind, content in (("flac", flac()), ("json", TEXT)):
            info = tarfile.TarInfo(f"{stem}.{kind}")
            info.size = len(content)
            try:
                tar.addfile(info, io.BytesIO(content))
            except ValueError:
                pytest.skip("this format has no room for such a name")
    for raw in (out.getvalue(), piece(out.getvalue())):
        audio, facts = read_sample(raw, "s.tar", stem)
        assert (len(audio), facts["text"]) == (800, "дума")


def test_a_header_with_another_checksum_is_damage() -> None:
    raw = bytearray(piece(pack(("k.flac", flac()), ("k.json", TEXT))))
    assert len(read_sample(bytes(raw), "s.tar", "k")[0]) == 800
    raw[108] ^= 1  # in the owner's number, which nothing else looks at
    with pytest.raises(BadSample) as caught:
        read_sample(bytes(raw), "s.tar", "k")
    assert caught.value.kind == "tar"


def test_no_damage_goes_by_another_name(tmp_path: Path) -> None:
    """Any flipped byte gives a sample or a BadSample, never another error."""
    index = write(tmp_path / "out", count=1)
    path = index.folder / index.shards[0].path
    raw = read_range(path, index.shards[0].entries[0])
    rng = np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(raw)
        broken[rng.integers(len(raw))] = rng.integers(256)
        with contextlib.suppress(BadSample):
            read_sample(bytes(broken), path, "bg/clip-0")
