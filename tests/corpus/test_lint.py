"""`shards lint` and `shards stats`: every planted defect is named, and sound shards are passed."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
from clips import tone, tree, wave
from hypothesis import example, given, settings
from hypothesis import strategies as st

from salsa_dist.corpus.build import build
from salsa_dist.corpus.doubts import KINDS
from salsa_dist.corpus.lint import Bounds, Problem, _each, lint
from salsa_dist.corpus.stats import rows
from salsa_dist.corpus.stats import said as stats_said
from salsa_dist.corpus.writer import Sample, ShardWriter
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.data.index import FILE, Entry, Shard, ShardIndex
from salsa_dist.errors import UserError


def make(folder: Path, shared_text: bool = False, speaker: str | None = None) -> Path:
    """Two shards of train and one of dev, three clips each."""
    with ShardWriter(folder, "corpus", seed=0) as writer:
        for split, count in (("train", 6), ("dev", 3)):
            clips = [
                Sample(
                    f"bg/{split}-{i}",
                    tone(0.3 + 0.1 * i, 400, SAMPLE_RATE),
                    "едно и също" if shared_text and i == 0 else f"{split} {i}",
                    "bg",
                    speaker if i == 1 else f"{split} {i}",
                    "CC0-1.0",
                    "made up",
                )
                for i in range(count)
            ]
            writer.write(split, "bg", clips, 3)
        writer.finish({"source": "made up"})
    return folder


def flac(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(seconds, 400, rate), rate, format="FLAC")
    return out.getvalue()


TEXT = json.dumps({"text": "дума", "language": "bg"}).encode()


def pack(path: Path, *files: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            tar.addfile(info, io.BytesIO(content))


def said(problems: list[Problem]) -> str:
    return "\n".join(map(str, problems))


def killed(item: object) -> Any:
    os._exit(9)


def test_a_process_that_was_killed_is_one_line() -> None:
    with pytest.raises(UserError, match=r"was killed .* fewer --workers"):
        _each(killed, [("a", None), ("b", None)], 2)


def test_sound_shards_have_no_problem(tmp_path: Path) -> None:
    assert lint(make(tmp_path / "out"), Bounds()) == ([], 9)


@pytest.mark.parametrize("speakers", [1, 2, 3, 5, 9, 10, 12])
def test_what_build_split_is_sound(tmp_path: Path, speakers: int) -> None:
    # All read the same few prompts, so that speakers and texts can't both be kept apart.
    rows = []
    for i in range(6 * speakers):
        wave(tmp_path / f"{i}.wav", seconds=0.2, hz=300 + 10 * i)
        row = {"audio": f"{i}.wav", "text": f"дума {i % 6}", "language": "bg", "speaker": f"s{i // 6}"}
        rows.append(json.dumps(row) + "\n")
    (tmp_path / "all.jsonl").write_text("".join(rows))
    index = build("jsonl", tmp_path / "all.jsonl", tmp_path / "out")
    how = "by speaker" if speakers > 2 else "by text"
    assert index.recipe["splits"] == {"bg": how}
    assert {shard.split for shard in index.shards} == {"train", "dev", "test"}
    assert lint(tmp_path / "out", Bounds())[0] == []
    # What was to be kept apart, and is not, is still named.
    tree = json.loads((tmp_path / "out" / FILE).read_text())
    tree["recipe"]["splits"] = {"bg": "by text" if speakers > 2 else "by speaker"}
    (tmp_path / "out" / FILE).write_text(json.dumps(tree))
    (tmp_path / "out" / "index.columns").unlink(missing_ok=True)
    assert {p.kind for p in lint(tmp_path / "out", Bounds())[0]} >= {"split"}


def test_speakers_and_texts_of_two_splits(tmp_path: Path) -> None:
    problems, _ = lint(make(tmp_path / "out", shared_text=True, speaker="мария"), Bounds())
    assert {p.kind for p in problems} == {"split"}
    assert "speaker 'мария' in bg is in dev (bg/dev-1), train (bg/train-1)" in said(problems)
    assert "text 'едно и също' in bg is in dev (bg/dev-0), train (bg/train-0)" in said(problems)
    assert len(problems) == 2


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


SHARD = "bg/train-000000.tar"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: flip(p, 700), ["another sha256", "bg/train-0: can't be read as audio"]),
        (lambda p: cut(p, 3000), ["bytes, the index says", "is cut off in", "not in the tar"]),
        (lambda p: cut(p, 9 * 512), ["the index says"]),
        (lambda p: p.unlink(), [f"{SHARD}: can't be read"]),
        (
            lambda p: p.write_bytes(b"rubbish" * 999),
            ["is damaged or no tar", "bg/train-1: is in the in"],
        ),
        (lambda p: p.write_bytes(b""), ["has 0 bytes"]),
        (
            lambda p: pack(p, ("bg/new.flac", flac()), ("bg/new.json", TEXT)),
            ["bg/new: is not in the in"],
        ),
        (
            lambda p: pack(p, ("bg/train-0.flac", flac(0.3)), ("bg/train-0.json", TEXT)),
            ["the index says", "bg/train-2: is in the index, not in the tar"],
        ),
    ],
)
def test_a_damaged_shard_is_named(
    tmp_path: Path, damage: Callable[[Path], None], says: list[str]
) -> None:
    folder = make(tmp_path / "out")
    damage(folder / SHARD)
    problems, _ = lint(folder, Bounds())
    assert {p.shard for p in problems} == {SHARD}
    for part in says:
        assert part in said(problems)


def test_tars_beside_the_index(tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    pack(folder / "bg/more.tar", ("x.flac", flac()), ("x.json", TEXT))
    problems, samples = lint(folder, Bounds())
    assert (said(problems), samples) == ("bg/more.tar: is not in index.json", 10)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([("k.flac", b"rubbish"), ("k.json", TEXT)], "k: can't be read as audio"),
        ([("k.flac", flac()[:-50]), ("k.json", TEXT)], "k: can't be read as audio"),
        ([("k.json", TEXT)], "k: lacks audio"),
        ([("k.flac", flac())], "k: has no text"),
        ([("k.flac", flac()), ("k.txt", b" \n")], "k: has an empty transcript"),
        ([("k.flac", flac()), ("k.json", b"{")], "k: has damaged JSON"),
        ([("k.flac", flac()), ("k.txt", b"\xff")], "k: has damaged JSON or text"),
        ([("k.flac", flac(rate=2_000)), ("k.json", TEXT)], "k: has a rate of 2000 Hz"),
        ([("k.flac", flac(rate=8_000)), ("k.json", TEXT)], "k: has 8000 Hz, not 16000"),
        ([("k.flac", flac(0.05)), ("k.json", TEXT)], "k: has 0.050 s, not 0.1 to 600"),
        ([("../k.flac", flac()), ("../k.json", TEXT)], "it points outside its folder"),
        ([("/k.flac", flac()), ("/k.json", TEXT)], "it points outside its folder"),
        ([("k\n.flac", flac()), ("k\n.json", TEXT)], "control characters"),
        ([("k.flac", flac()), ("k.json", TEXT), ("k.pkl", b"cos\nsystem")], "'k.pkl', which may run"),
        ([("k.flac", flac()), ("k.json", TEXT), ("k.seg.npy", b"x")], "'k.seg.npy', which may run"),
        ([("k.flac", flac()), ("k.flac", flac()), ("k.json", TEXT)], "holds 'k.flac' twice"),
        (
            [("k.flac", flac()), ("k.json", TEXT), ("l.json", TEXT), ("k.txt", b"x")],
            "k: is there twice",
        ),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, files: list[tuple[str, bytes]], says: str) -> None:
    pack(tmp_path / "a.tar", *files)
    problems, _ = lint(tmp_path, Bounds(rate=16_000))
    assert says in said(problems)
    assert all(p.shard == "a.tar" and p.sample for p in problems)


def test_links_are_named_and_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("k.flac")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    problems, _ = lint(tmp_path, Bounds())
    assert "holds 'k.flac', which is no plain file" in said(problems)


def test_a_minute_long_bomb_of_silence(tmp_path: Path) -> None:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(16_000 * 601), 16_000, format="FLAC")
    pack(tmp_path / "a.tar", ("k.flac", out.getvalue()), ("k.json", TEXT))
    problems, _ = lint(tmp_path, Bounds())
    assert [(p.sample, p.kind) for p in problems] == [("k", "length")]


def command(*args: object) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "salsa_dist", "shards", *map(str, args)]
    return subprocess.run(run, capture_output=True, text=True)


def test_exit_status_and_what_is_printed(tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    good = command("lint", folder, "--workers", 1)
    assert (good.returncode, good.stdout) == (0, f"{folder}: 9 samples, no problem\n")
    flip(folder / SHARD, 700)
    bad = command("lint", folder, "--workers", 1)
    assert bad.returncode == 1
    assert f"{SHARD}: bg/train-0: can't be read as audio" in bad.stdout
    as_json = json.loads(command("lint", folder, "--workers", 1, "--json").stdout)
    assert {p["kind"] for p in as_json["problems"]} == {"shard", "audio"}
    none = command("lint", tmp_path / "gone")
    assert (none.returncode, none.stdout) == (2, "")
    assert none.stderr.startswith("salsa-dist: ")
    assert none.stderr.count("\n") == 1


def test_nothing_to_lint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.tar"):
        lint(tmp_path, Bounds())
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        lint(tmp_path, Bounds())


def test_lint_changes_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    before = tree(folder)
    lint(folder, Bounds())
    assert tree(folder) == before


def test_stats(tmp_path: Path) -> None:
    dev, train = rows(ShardIndex.load(make(tmp_path / "out")))
    assert (dev["language"], dev["split"], dev["shards"], dev["samples"]) == ("bg", "dev", 1, 3)
    assert (train["shards"], train["samples"], train["longest_s"]) == (2, 6, 0.8)
    assert train["mean_s"] == pytest.approx(0.55, abs=0.001)
    assert train["hours"] == pytest.approx(3.3 / 3600, abs=1e-4)


def test_stats_fit_80_columns_and_nothing_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from salsa_dist.commands.shards import stats

    entries = [Entry(f"k{i}", 3.0 + i % 27, 10 * i, 10) for i in range(20_000)]
    shard = Shard("a/b.tar", "train", "cmn_hans_cn", 20_000, 3e5, 123_456_789_012, "0" * 64, entries)
    many = dict.fromkeys(("no text", *KINDS), 12_345)
    facts = {"dropped": {"cmn_hans_cn": many}, "touched": {"cmn_hans_cn": {"fillers": 7}}}
    ShardIndex(tmp_path, "x", 16_000, 0, facts, (shard,)).save(tmp_path)
    stats(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "language     split  shards  samples  hours   p5   p50   p95  longest      MB",
        "cmn_hans_cn  train       1    20000   88.9  4.0  16.0  28.0     29.0  123457",
        "dropped in cmn_hans_cn: 12345 no text, 12345 cut-off, 12345 silent, 12345",
        "  cancelling, 12345 clipped, 12345 text-too-long, 12345 text-too-short",
        "texts changed in cmn_hans_cn: 7 fillers",
    ]
    assert max(map(len, lines[1:])) <= 80
    stats(tmp_path, as_json=True)
    counted = json.loads(capsys.readouterr().out)
    assert counted.keys() == {"name", "hash", "rows", "dropped", "touched", "marked"}
    assert {name: counted[name] for name in facts} == facts


MIXED = "cmn_hans_cn+eng_latn"


def test_stats_of_a_long_language_code_and_millions_of_samples(tmp_path: Path) -> None:
    entries = [Entry("k", 3.0, 10, 10)] * 2_000_000
    shard = Shard("a.tar", "train", MIXED, 2_000_000, 6e6, 1_234_567_890_123, "0" * 64, entries)
    few = replace(shard, language="bg", bytes=5_000_000, entries=entries[:20])
    shards = (replace(few, split="dev"), few, shard)
    assert stats_said(ShardIndex(tmp_path, "x", 16_000, 0, {}, shards)).splitlines()[1:] == [
        "  split  shards  samples   hours   p5  p50  p95  longest       MB",
        "bg",
        "  dev         1       20  0.0167  3.0  3.0  3.0      3.0        5",
        "  train       1       20  0.0167  3.0  3.0  3.0      3.0        5",
        "cmn_hans_cn+eng_latn",
        "  train       1  2000000    1667  3.0  3.0  3.0      3.0  1234568",
    ]


SECONDS = st.integers(0, 9_999_999).map(lambda ms: ms / 1e3)
ROW = st.fixed_dictionaries(
    {
        "language": st.sampled_from(["bg", "zh-en", "cmn_hans_cn", MIXED, f"{MIXED}+yue_hant_hk"]),
        "split": st.sampled_from(["train", "dev", "test"]),
        "shards": st.integers(1, 999_999),
        "samples": st.integers(1, 999_999_999),
        "hours": st.integers(0, 9_999_999_999).map(lambda n: n / 1e4),
        **dict.fromkeys(("p5_s", "p50_s", "p95_s", "longest_s"), SECONDS),
        "megabytes": st.integers(0, 999_999_999_999).map(lambda kb: kb / 1e3),
    }
)
REASONS = ("no text", "no recording", "unreadable audio", "a transformed recording", *KINDS)
COUNTS = st.dictionaries(st.sampled_from(REASONS), st.integers(1, 999_999_999))


# Rounded up, its seconds have a digit more.
WIDEST = {
    "language": "cmn_hans_cn",
    "split": "train",
    "shards": 999_999,
    "samples": 999_999_999,
    "hours": 999_999.9999,
    "megabytes": 999_999_999.999,
    **dict.fromkeys(("p5_s", "p50_s", "p95_s", "longest_s"), 9_999.999),
}


@given(st.lists(ROW, min_size=1, max_size=6), COUNTS)
@example([WIDEST], {})
@settings(max_examples=40)
def test_stats_fit_whatever_they_say(found: list[dict[str, Any]], dropped: dict[str, int]) -> None:
    found.sort(key=lambda row: (row["language"], row["split"]))
    facts = {"dropped": {row["language"]: dropped for row in found}}
    index = ShardIndex(Path("out"), "x", 16_000, 0, facts, ())
    with mock.patch("salsa_dist.corpus.stats.rows", return_value=found):
        lines = stats_said(index).splitlines()
    assert max(map(len, lines)) <= 80
    cells = [cell for line in lines for cell in line.split()]
    for row in found:
        for name in ("language", "split", "shards", "samples"):
            assert str(row[name]) in cells
        assert f"{row['longest_s']:.1f}" in cells
    text = " ".join(cells)
    assert all(f"{count} {why}" in text for why, count in dropped.items())
