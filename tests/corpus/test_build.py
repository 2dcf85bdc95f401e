"""Builds: the same bytes however they are made, killed builds go on, nothing half-written is seen."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import pitch, samples, tree, wave

import salsa_dist
from salsa_dist.corpus import build as build_module
from salsa_dist.corpus.build import build
from salsa_dist.corpus.splits import deal, shuffled
from salsa_dist.corpus.utterance import Ask, Utterance, key, split_in
from salsa_dist.corpus.writer import is_key
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError

CLIPS = 40


def corpus(folder: Path, clips: int = CLIPS) -> Path:
    """A manifest of tones in two languages, at a rate that has to be changed."""
    rows = []
    for i in range(clips):
        wave(folder / f"{i}.wav", 0.2 + 0.01 * i, hz=300 + 10 * i, rate=44_100)
        row = {"audio": f"{i}.wav", "text": f"дума {i}", "language": ("bg", "el")[i % 2]}
        rows.append(json.dumps(row, ensure_ascii=False))
    (folder / "all.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder / "all.jsonl"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


ASK = Ask(samples_per_shard=4)


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes without being disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build("jsonl", manifest, out, ASK)
    return out


def test_what_a_build_leaves(manifest: Path, whole: Path) -> None:
    index = ShardIndex.load(whole)
    assert len(samples(index)) == CLIPS
    assert tree(whole).keys() == {
        "README.md",
        "index.columns",
        "index.json",
        *(s.path for s in index.shards),
    }
    assert [path.name for path in whole.parent.iterdir()] == ["out"]
    card = (whole / "README.md").read_text(encoding="utf-8")
    for said in ("| bg | train |", "Unicode NFC", "by text: bg, el", "not stated", "### el", "█"):
        assert said in card


def test_three_processes_make_the_same_bytes(manifest: Path, whole: Path, tmp_path: Path) -> None:
    build("jsonl", manifest, tmp_path / "out", ASK, workers=3)
    assert tree(tmp_path / "out") == tree(whole)


def test_another_seed_makes_others(manifest: Path, whole: Path, tmp_path: Path) -> None:
    other = build("jsonl", manifest, tmp_path / "out", Ask(samples_per_shard=4, seed=1))
    assert other.hash != ShardIndex.load(whole).hash


BUILD = """
import sys, time
from salsa_dist.corpus import make_tar
from salsa_dist.corpus.build import build
from salsa_dist.corpus.utterance import Ask
if __name__ == "__main__":
    slow = make_tar.flac  # so that there is a middle to be killed in
    make_tar.flac = lambda *args: (time.sleep(0.02), slow(*args))[1]
    build("jsonl", sys.argv[1], sys.argv[2], Ask(samples_per_shard=4), workers=int(sys.argv[3]))
"""


def started(manifest: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    root = Path(salsa_dist.__file__).parents[1]
    script = out.parent / "run.py"
    script.write_text(BUILD)
    return subprocess.Popen(
        [sys.executable, script, manifest, out, str(workers)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_killed_builds_go_on_to_the_same_bytes(manifest: Path, whole: Path, tmp_path: Path) -> None:
    """Killed at random moments, again and again: no half shard under a final name, none made twice."""
    rng = np.random.default_rng()
    out, work = tmp_path / "out", tmp_path / ".out.building"
    finished = tree(whole)
    made: dict[str, int] = {}
    for wanted in (1, 5, 9):
        process = started(manifest, out, workers=1)
        while process.poll() is None and len(list(work.glob("*/*.tar.json"))) < wanted:
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.1)))
        process.kill()
        process.wait()
        assert not out.exists()
        for path in work.rglob("*.tar"):
            name = path.relative_to(work).as_posix()
            if not path.name.startswith("."):
                assert path.read_bytes() == finished[name], f"{name} is half a shard"
        for name, inode in made.items():
            assert (work / name).stat().st_ino == inode, f"{name} was made again"
        kept = [path.with_suffix("") for path in work.glob("*/*.tar.json")]
        made = {path.relative_to(work).as_posix(): path.stat().st_ino for path in kept}
    assert len(made) >= 9
    build("jsonl", manifest, out, ASK)
    assert tree(out) == finished
    assert {p.name for p in tmp_path.iterdir()} == {"out", "run.py"}


def test_no_process_outlives_a_killed_build(manifest: Path, tmp_path: Path) -> None:
    process = started(manifest, tmp_path / "out", workers=2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 120
    while time.monotonic() < until and len(pids := children.read_text().split()) < 3:
        time.sleep(0.05)  # two workers and multiprocessing's resource tracker
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until + 60, f"one of {pids} goes on without its build"
        time.sleep(0.05)


def test_a_shard_that_was_changed_is_made_again(manifest: Path, whole: Path, tmp_path: Path) -> None:
    process = started(manifest, tmp_path / "out", workers=1)
    work = tmp_path / ".out.building"
    while process.poll() is None and len(list(work.glob("*/*.tar.json"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    note = next(work.glob("*/*.tar.json"))
    with note.with_suffix("").open("r+b") as file:
        file.seek(600)
        file.write(b"damage")
    (work / "bg/stale-000000.tar").write_bytes(b"of another build")
    build("jsonl", manifest, tmp_path / "out", ASK)
    assert tree(tmp_path / "out") == tree(whole)


def test_two_builds_of_one_folder(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(*args: object) -> object:
        with pytest.raises(UserError, match="is being built by another process"):
            build("jsonl", manifest, tmp_path / "out")
        return original(*args)

    original = build_module.make_all
    monkeypatch.setattr(build_module, "make_all", second)
    build("jsonl", manifest, tmp_path / "out")


def test_a_file_system_without_locks(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlockable(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unlockable)
    with pytest.raises(UserError, match=r"can't be locked \(No locks available\): build on another"):
        build("jsonl", manifest, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_a_finished_build_is_known_again(
    manifest: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("jsonl", manifest, whole, ASK).hash == ShardIndex.load(whole).hash
    assert "already built" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another samples_per_shard \(4\)"):
        build("jsonl", manifest, whole, Ask(samples_per_shard=5))


def test_rates_and_recordings_as_they_came(tmp_path: Path) -> None:
    stereo = np.stack([np.zeros(8_000), np.sin(np.arange(8_000) * 2 * np.pi * 500 / 8_000) / 2], 1)
    soundfile.write(tmp_path / "a.wav", stereo, 8_000)
    wave(tmp_path / "b.ogg", hz=700, rate=22_050)
    rows = [
        {"audio": "a.wav", "channel": 1, "text": "едно"},
        {"audio": "a.wav", "text": "две", "key": "c"},
        {"audio": "b.ogg", "text": "три"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    low = build("jsonl", tmp_path / "m.jsonl", tmp_path / "low", Ask(language="bg", rate=8_000))
    assert low.sample_rate == 8_000
    assert abs(pitch(samples(low)["bg/b"][1]) - 700) < 5  # read at 16,000 Hz
    kept = build("jsonl", tmp_path / "m.jsonl", tmp_path / "as-is", Ask(language="bg", rate=None))
    assert kept.sample_rate == 0
    found = samples(kept)
    assert abs(pitch(found["bg/b"][1]) - 700) < 5
    one, mean = found["bg/a"][1], found["bg/c"][1]
    assert np.abs(one).max() > 1.8 * np.abs(mean).max()
    (shard,) = [s for s in kept.shards if any(e.key == "bg/b" for e in s.entries)]
    assert (tmp_path / "b.ogg").read_bytes() in (kept.folder / shard.path).read_bytes()


def test_what_can_t_be_used_is_dropped_counted_and_named(tmp_path: Path) -> None:
    wave(tmp_path / "good.wav")
    wave(tmp_path / "long.wav", seconds=3)
    wave(tmp_path / "short.wav", seconds=0.05)
    (tmp_path / "rubbish.wav").write_bytes(b"rubbish")
    soundfile.write(tmp_path / "nan.wav", np.full(4_000, np.nan), 8_000, subtype="FLOAT")
    whole = wave(tmp_path / "cut.flac", seconds=1).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    rows = [
        {"audio": f"{name}.{'flac' if name == 'cut' else 'wav'}", "text": f"дума {name}"}
        for name in ("good", "long", "short", "rubbish", "nan", "cut", "gone")
    ]
    rows.append({"audio": "good.wav", "start": 5, "end": 6, "text": "извън"})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ask = Ask(language="bg", max_seconds=2)
    with pytest.raises(
        UserError, match=r"5 of 8 utterances in bg can't be used \(4 unreadable audio, 1 "
    ):
        build("jsonl", tmp_path / "m.jsonl", tmp_path / "out", ask)
    assert not (tmp_path / "out").exists()
    index = build("jsonl", tmp_path / "m.jsonl", tmp_path / "out", ask, max_dropped=0.7)
    assert samples(index).keys() == {"bg/good"}
    counts = {"audio file is missing": 1, "too long": 1, "too short": 1, "unreadable audio": 4}
    assert index.recipe["dropped"] == {"bg": counts}
    named = (tmp_path / "out/dropped.tsv").read_text(encoding="utf-8")
    assert len(named.splitlines()) == 7
    assert "bg/gone\taudio file is missing" in named
    assert "4 unreadable audio" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "gone.wav", "text": "x", "language": "bg"}')
    with pytest.raises(UserError, match=r"all 1 utterances were dropped, such as bg/gone \(audio file"):
        build("jsonl", tmp_path / "m.jsonl", tmp_path / "out")
    with pytest.raises(UserError, match=r"no utterances in el; it has bg \(1\)"):
        build("jsonl", tmp_path / "m.jsonl", tmp_path / "out", Ask(languages=("el",)))


def test_impossible_wishes_are_refused_all_at_once(tmp_path: Path) -> None:
    ask = Ask(rate=5, min_seconds=3, max_seconds=2, dev_share=0.9, test_share=0.2)
    says = r"a rate of 5 Hz.*seconds go from.*shares of dev and test.*share of drops is 7: 0 to 1"
    with pytest.raises(UserError, match=says):
        build("jsonl", tmp_path, tmp_path / "out", ask, max_dropped=7)


def people(speakers: int, clips: int, same_text: bool = False) -> list[Utterance]:
    return [
        Utterance(f"{s}-{i}", Path("x"), "едно" if same_text else f"дума {i}", "bg", speaker=f"s{s}")
        for s in range(speakers)
        for i in range(clips)
    ]


def test_splits_by_speaker_where_there_are_enough() -> None:
    parts, how = deal(people(40, 5), Ask(dev_share=0.1, test_share=0.2))
    assert how == "by speaker"
    who = {split: {u.speaker for u in part} for split, part in parts.items()}
    assert not who["train"] & who["test"]
    assert not who["dev"] & (who["train"] | who["test"])
    assert {split: len(part) for split, part in parts.items()} == {"train": 140, "dev": 20, "test": 40}


def test_splits_by_text_where_there_are_few_speakers() -> None:
    parts, how = deal(people(2, 150), Ask())
    assert how == "by text"
    texts = {split: {u.text for u in part} for split, part in parts.items()}
    assert not texts["train"] & (texts["dev"] | texts["test"])
    assert Counter({s: len(p) for s, p in parts.items()}) == {"train": 268, "dev": 16, "test": 16}
    assert deal(people(2, 9, same_text=True), Ask())[0].keys() == {"train"}


@pytest.mark.parametrize("speakers", range(3, 10))
def test_of_few_speakers_those_who_say_least_are_held_out(speakers: int) -> None:
    all_of_them = [
        u for u in people(speakers, 99) if int(u.key.split("-")[1]) <= 10 * int(u.speaker[1])
    ]
    parts, how = deal(all_of_them, Ask())
    assert how == "by speaker"
    who = {split: {u.speaker for u in part} for split, part in parts.items()}
    assert not who["test"] & (who["dev"] | who["train"])
    assert not who["dev"] & who["train"]
    assert len(parts["train"]) > max(len(parts["dev"]), len(parts["test"]))
    assert f"s{speakers - 1}" in who["train"]


def test_splits_and_order_do_not_depend_on_the_order_read() -> None:
    forward, backward = people(12, 9), people(12, 9)[::-1]
    one, _ = deal(forward, Ask())
    two, _ = deal(backward, Ask())
    assert {s: shuffled(p, 0) for s, p in one.items()} == {s: shuffled(p, 0) for s, p in two.items()}
    assert shuffled(forward, 0) != shuffled(forward, 1)


def test_keys_stay_two_and_safe() -> None:
    names = ["a.b", "a_b", "а", "б", "../../x", "/x", "x" * 500, "y/" * 300 + "z", "", "a//b", "..."]
    made = [key(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(is_key(f"language/{name}") for name in made)
    assert key("clips/a-1_b") == "clips/a-1_b"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.tsv", "train"),
        ("valid_manifest.json", "dev"),
        ("cuts_test.jsonl.gz", "test"),
        ("development", "dev"),
        ("testing", "test"),
        ("contest.csv", None),
        ("train_and_test.csv", None),
        ("validated.tsv", None),
    ],
)
def test_splits_in_names(name: str, split: str | None) -> None:
    assert split_in(name) == split


def test_a_recipe_of_an_older_version_is_told_the_new_name(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text("from salsa_dist.data.utterance import Ask\n")
    with pytest.raises(UserError, match=r"its name is salsa_dist\.corpus\.utterance now"):
        build(str(recipe), tmp_path, tmp_path / "out")
