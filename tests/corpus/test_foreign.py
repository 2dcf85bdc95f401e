"""Others' tars are read by us, and ours by others; an index for tars without one; resharding."""

import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from clips import pitch, samples, tone, tree, wave

from salsa_dist.corpus.build import build
from salsa_dist.corpus.foreign import index_tars, reshard
from salsa_dist.corpus.lint import Bounds, lint
from salsa_dist.corpus.utterance import Ask
from salsa_dist.corpus.writer import Sample, ShardWriter
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError

COUNT = 7


def wav(hz: float, rate: int = 22_050) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(0.5, hz, rate), rate, format="WAV")
    return out.getvalue()


def by_webdataset(path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(path)) as tar:
        for i in range(COUNT):
            facts = {"sentence": f"дума {i}", "locale": "bg"}
            tar.write({"__key__": f"clips/{i:03d}", "wav": wav(300 + 50 * i), "json": facts})


def by_tarfile(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(COUNT):
            name = f"clips/{i:03d}"
            files = {".wav": wav(300 + 50 * i), ".txt": f"дума {i}\n".encode(), ".speaker.cls": b"3"}
            for ending, content in files.items():
                info = tarfile.TarInfo(name + ending)
                info.size = len(content)
                info.pax_headers = {"comment": "x" * 600}  # headers of several blocks
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("write", [by_webdataset, by_tarfile])
def test_tars_of_others_are_indexed_and_read(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "valid-00.tar")
    before = tree(tmp_path)
    _, left_out = index_tars(tmp_path, language="bg")
    assert left_out == []
    index = ShardIndex.load(tmp_path)
    found = samples(index)
    assert len(found) == COUNT
    raw = (tmp_path / "valid-00.tar").read_bytes()
    for entry in index.shards[0].entries:
        assert entry.crc32 == zlib.crc32(raw[entry.offset : entry.offset + entry.length])
    split, audio, facts = found["clips/003"]
    assert (split, facts["text"], index.sample_rate) == ("dev", "дума 3", 22_050)
    assert abs(pitch(audio) - 450) < 5
    assert tree(tmp_path).keys() == {*before, "index.json", "index.columns"}
    assert lint(tmp_path, Bounds())[0] == []
    with pytest.raises(UserError, match="is there: remove it"):
        index_tars(tmp_path)


def ours(folder: Path, count: int = COUNT, per_shard: int = 3) -> ShardIndex:
    with ShardWriter(folder, "corpus", seed=0) as writer:
        for language in ("bg", "el"):
            clips = [
                Sample(
                    f"{language}/{i}", tone(0.5, 300 + 50 * i, SAMPLE_RATE), f"дума {i}", language,
                    None, "CC0-1.0", "made up",
                )
                for i in range(count)
            ]  # fmt: skip
            writer.write("train", language, clips, per_shard)
        return writer.finish({"source": "made up"})


Read = Iterator[tuple[str, bytes, dict[str, Any]]]


def with_webdataset(paths: list[Path]) -> Read:
    import webdataset

    for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False):
        yield sample["__key__"], sample["flac"], json.loads(sample["json"])


def with_tarfile(paths: list[Path]) -> Read:
    for path in paths:
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar}
            for name in files:
                if name.endswith(".flac"):
                    facts = files[name.replace(".flac", ".json")]
                    yield name.removesuffix(".flac"), files[name].read(), json.load(facts)  # type: ignore


def with_datasets(paths: list[Path]) -> Read:
    """The reader of WebDataset tars in Hugging Face datasets, which shares no code with webdataset."""
    datasets = pytest.importorskip("datasets")
    text = datasets.Value("string")
    # Not as the type Audio: that wants a decoder of its own to be installed.
    features = datasets.Features(
        {
            "__key__": text,
            "__url__": text,
            "flac": datasets.Value("binary"),
            "json": {"text": text, "language": text},
        }
    )
    files = {"train": [str(path) for path in paths]}
    streamed = datasets.load_dataset(
        "webdataset", data_files=files, split="train", streaming=True, features=features
    )
    for sample in streamed:
        yield sample["__key__"], sample["flac"], sample["json"]


@pytest.mark.parametrize("read", [with_webdataset, with_tarfile, with_datasets])
def test_ours_are_read_by_others(tmp_path: Path, read: Callable[[list[Path]], Read]) -> None:
    index = ours(tmp_path / "out")
    found = list(read([index.folder / shard.path for shard in index.shards]))
    assert [key for key, _, _ in found] == [e.key for shard in index.shards for e in shard.entries]
    for key, flac, facts in found:
        audio, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
        number = int(key.split("/")[1])
        assert (rate, facts["text"], facts["language"]) == (16_000, f"дума {number}", key[:2])
        assert abs(pitch(audio) - (300 + 50 * number)) < 5


@pytest.mark.parametrize("rate", [16_000, None])
@pytest.mark.parametrize("read", [with_webdataset, with_tarfile, with_datasets])
def test_what_a_build_wrote_is_read_by_others(
    tmp_path: Path, read: Callable[[list[Path]], Read], rate: int | None
) -> None:
    rows = []
    for i in range(24):
        wave(tmp_path / f"{i}.flac", hz=300 + 50 * i, rate=16_000)
        row = {"audio": f"{i}.flac", "text": f"дума 我们 go {i}", "language": ("bg", "zh-en")[i % 2]}
        # Columns that some rows lack, and that are a number in one and a word in another.
        rows.append(row | ({"grade": (3, "K")[i % 2]} if i % 3 else {}))
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    index = build("jsonl", manifest, tmp_path / "out", Ask(rate=rate, samples_per_shard=4))
    expected = samples(index)
    found = list(read([index.folder / shard.path for shard in index.shards]))
    assert [key for key, _, _ in found] == list(expected)
    for key, flac, facts in found:
        language, number = key.split("/")
        assert (facts["text"], facts["language"]) == (f"дума 我们 go {number}", language)
        audio, _ = soundfile.read(io.BytesIO(flac), dtype="float32")
        assert (audio == expected[key][1]).all()
        if rate is None:
            assert flac == (tmp_path / f"{number}.flac").read_bytes()


def test_what_can_t_be_used_is_left_out_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("good.wav", wav(400)),
            ("good.txt", b"text"),
            ("mute.txt", b"text"),
            ("bad.wav", b"rubbish"),
            ("bad.txt", b"text"),
            ("evil.wav", wav(400)),
            ("evil.txt", b"text"),
            ("evil.pkl", b"cos\nsystem\n(S'touch ran'\ntR."),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    index, left_out = index_tars(tmp_path, language="bg")
    assert samples(index).keys() == {"good"}
    assert [why.split(": ")[1].split()[1] for why in left_out] == ["mute", "bad", "evil"]


def test_tars_that_can_t_be_indexed(tmp_path: Path) -> None:
    by_tarfile(tmp_path / "a.tar")
    with pytest.raises(UserError, match="names no language: give --language"):
        index_tars(tmp_path)
    by_tarfile(tmp_path / "b.tar")
    with pytest.raises(UserError, match=r"7 keys are in two samples, such as clips/000.*reshard"):
        index_tars(tmp_path, "bg")
    raw = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(raw[: len(raw) // 2 // 512 * 512])
    with pytest.raises(UserError, match=r"a\.tar is (cut off|damaged)"):
        index_tars(tmp_path, "bg")
    assert not (tmp_path / "index.json").exists()


def one_sample(path: Path, text: bytes = b"a word") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for ending, content in ((".wav", wav(300)), (".txt", text)):
            info = tarfile.TarInfo(path.name.partition(".")[0] + ending)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_compressed_tars_are_not_passed_over(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar.gz"):
        one_sample(tmp_path / "in" / name)
    says = r"in/train-1\.tar\.gz is compressed, and samples are read by their place"
    with pytest.raises(UserError, match=says):
        index_tars(tmp_path / "in", language="bg")
    with pytest.raises(UserError, match=says):
        reshard(tmp_path / "in", tmp_path / "out", samples_per_shard=1, language="bg")
    assert not (tmp_path / "out").exists()
    problems, _ = lint(tmp_path / "in", Bounds())
    assert [str(p) for p in problems] == ["train-1.tar.gz: is compressed: unpack it to a .tar"]


def test_tars_of_another_split_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("train-0.tar", "held-out-0.tar"):
        one_sample(tmp_path / "in" / name)
    says = r"in/held-out-0\.tar: 'held-out-0\.tar' is none of train, dev and test"
    with pytest.raises(UserError, match=says):
        index_tars(tmp_path / "in", language="bg")
    with pytest.raises(UserError, match=says):
        reshard(tmp_path / "in", tmp_path / "out", samples_per_shard=1, language="bg")
    index, _ = index_tars(tmp_path / "in", language="bg", split="test")
    assert {shard.split for shard in index.shards} == {"test"}


def test_texts_of_others_are_read_as_a_build_would_write_them(tmp_path: Path) -> None:
    one_sample(tmp_path / "train-0.tar", "\ufeffпе\u0438\u0306\r\nдва\n".encode())
    index, left_out = index_tars(tmp_path, language="bg")
    assert left_out == []
    assert [facts["text"] for _, _, facts in samples(index).values()] == ["пей два"]


def test_resharding_keeps_every_byte_of_the_samples(tmp_path: Path) -> None:
    old = ours(tmp_path / "old")
    new, _ = reshard(tmp_path / "old", tmp_path / "new", samples_per_shard=5)
    assert [(s.path, s.samples) for s in new.shards] == [
        ("bg/train-000000.tar", 5),
        ("bg/train-000001.tar", 2),
        ("el/train-000000.tar", 5),
        ("el/train-000001.tar", 2),
    ]
    paths = [[i.folder / s.path for s in i.shards] for i in (old, new)]
    assert list(with_webdataset(paths[0])) == list(with_webdataset(paths[1]))
    assert lint(tmp_path / "new", Bounds())[0] == []
    back, _ = reshard(tmp_path / "new", tmp_path / "back", samples_per_shard=3)
    assert back.hash == old.hash


def test_resharding_by_size(tmp_path: Path) -> None:
    ours(tmp_path / "old", count=12, per_shard=12)
    limit = 20_000
    new, _ = reshard(tmp_path / "old", tmp_path / "new", shard_bytes=limit)
    assert all(shard.bytes <= limit + 10_240 for shard in new.shards)
    assert sum(shard.samples for shard in new.shards) == 24
    assert len(new.shards) > 4


def test_resharding_tars_of_others_gives_keys_and_languages_of_their_own(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    by_webdataset(source / "train-0.tar")
    by_tarfile(source / "train-1.tar")
    new, left_out = reshard(source, tmp_path / "new", samples_per_shard=100, language="el")
    assert left_out == []
    assert [(s.path, s.samples) for s in new.shards] == [
        ("bg/train-000000.tar", COUNT),
        ("el/train-000000.tar", COUNT),
    ]
    assert {"clips/003", "train-1/clips/003"} <= samples(new).keys()


def test_resharding_refuses(tmp_path: Path) -> None:
    ours(tmp_path / "old")
    with pytest.raises(UserError, match="say how large"):
        reshard(tmp_path / "old", tmp_path / "new")
    with pytest.raises(UserError, match="is there"):
        reshard(tmp_path / "old", tmp_path, samples_per_shard=3)
    (tmp_path / "old/el/train-000001.tar").write_bytes(b"rubbish" * 200)
    with pytest.raises(UserError, match=r"el/train-000001\.tar is damaged"):
        reshard(tmp_path / "old", tmp_path / "new", samples_per_shard=3)
    assert {path.name for path in tmp_path.iterdir()} == {"old"}
