"""The Tux Paint recipe on a made-up tree, through the registry that runs it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import read_range

from salsa_dist.corpus.build import build
from salsa_dist.corpus.recipes import load_recipe
from salsa_dist.corpus.text import same
from salsa_dist.corpus.utterance import Ask
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.shards import read_sample
from salsa_dist.errors import UserError

RECIPE = load_recipe("tuxpaint")


def stamp(folder: Path, name: str, lines: str, language: str = "bg", seconds: float = 0.5) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.txt").write_text(lines, encoding="utf-8")
    suffix = "_desc" if language == "en" else f"_desc_{language}"
    wave = 0.3 * np.sin(np.arange(int(8_000 * seconds)) / 3)
    soundfile.write(path.with_name(f"{path.name}{suffix}.ogg"), wave, 8_000)


@pytest.fixture
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RECIPE, "DEV_CLIPS", 6)
    monkeypatch.setattr(RECIPE, "TEST_CLIPS", 12)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "stamps"
    for i in range(40):  # every text is there twice, spelled a little otherwise
        word = f"дума {'абвгдежзий'[i % 10]}{i // 20}"
        stamp(folder, f"animals/a{i}", f"A word.\nbg.utf8={word}{'.' if i % 20 < 10 else ' !'}\n")
    stamp(folder, "plants/long one", "A.\nbg.utf8=дълго\n", seconds=5)
    stamp(folder, "plants/short", "A.\nbg.utf8=късо\n", seconds=0.2)
    stamp(folder, "plants/none", "A.\nel.utf8=ναι\n")
    stamp(folder, "plants/dots", "A.\nbg.utf8= ... \n")
    stamp(folder, "plants/bad", "A.\nbg.utf8=зле\n")
    (folder / "plants/bad_desc_bg.ogg").write_bytes(b"no audio")
    stamp(folder, "plants/tree", " A tree. \nbg.utf8=дърво\n", "en")
    stamp(folder, "plants/й", "A.\nbg.utf8=  И\u0306 \n")
    return folder


def few(source: Path, out: Path, seed: int = 0) -> ShardIndex:
    return build("tuxpaint", source, out, Ask(languages=("bg",), seed=seed))


def texts(index: ShardIndex, split: str) -> list[str]:
    return [
        read_sample(read_range(index.folder / shard.path, entry), shard.path, entry.key)[1]["text"]
        for shard in index.select(split, "bg")
        for entry in shard.entries
    ]


@pytest.mark.usefixtures("few_held_out")
def test_no_text_is_in_two_splits(source: Path, tmp_path: Path) -> None:
    index = few(source, tmp_path / "out")
    parts = {s: {same(t) for t in texts(index, s)} for s in ("train", "dev", "test")}
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["dev"]
    assert not parts["dev"] & parts["test"]
    counts = {split: len(texts(index, split)) for split in parts}
    assert sum(counts.values()) == 41
    assert counts["test"] >= 12
    assert counts["dev"] >= 6
    assert len(index.select("train", "bg")) >= 4
    assert index.recipe["dropped"]["bg"] == {
        "longer than 4.5 s": 1,
        "no text": 2,
        "shorter than 0.3 s": 1,
        "unreadable audio": 1,
    }


@pytest.mark.usefixtures("few_held_out")
def test_texts_and_keys(source: Path, tmp_path: Path) -> None:
    index = few(source, tmp_path / "out")
    every = [t for split in ("train", "dev", "test") for t in texts(index, split)]
    assert "Й" in every  # composed and stripped
    keys = {entry.key for shard in index.shards for entry in shard.entries}
    assert "bg/animals/a7" in keys
    assert "bg/plants/_" in keys


@pytest.mark.usefixtures("few_held_out")
def test_the_seed_decides(source: Path, tmp_path: Path) -> None:
    first = few(source, tmp_path / "a")
    assert few(source, tmp_path / "b").hash == first.hash
    assert few(source, tmp_path / "c", seed=1).hash != first.hash


def test_english_is_the_first_line(source: Path) -> None:
    assert RECIPE.find_clips(source)["en"].keys() == {"plants/tree"}
    assert RECIPE.read_text(source / "plants/tree.txt", "en") == "A tree."


def test_languages_that_are_not_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no clips in xx; it has bg \(46\), en \(1\)"):
        build("tuxpaint", source, tmp_path / "out", Ask(languages=("xx",)))
    assert not (tmp_path / "out").exists()


def test_a_language_with_few_clips(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for test_clips in (RECIPE.TEST_CLIPS, 20):  # fewer than test takes, and fewer than test and dev
        monkeypatch.setattr(RECIPE, "TEST_CLIPS", test_clips)
        index = few(source, tmp_path / str(test_clips))
        assert {shard.split for shard in index.shards} == {"test"}
        assert sum(shard.samples for shard in index.shards) == 41  # what the filters leave


@pytest.mark.usefixtures("few_held_out")
def test_a_finished_folder_is_kept(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = few(source, tmp_path / "out")
    capsys.readouterr()
    assert build("tuxpaint", source, tmp_path / "out", Ask(languages=("bg",))) == index
    assert "already built" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed 0, not tuxpaint with seed 1"):
        build("tuxpaint", source, tmp_path / "out", Ask(languages=("bg",), seed=1))
    with pytest.raises(UserError, match="languages"):
        build("tuxpaint", source, tmp_path / "out", Ask(languages=("bg", "el")))
    (tmp_path / "out" / index.shards[0].path).write_bytes(b"")
    with pytest.raises(UserError, match="cut off"):
        build("tuxpaint", source, tmp_path / "out", Ask(languages=("bg",)))


def test_other_folders_and_recipes(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no shards"):
        build("tuxpaint", source, source, Ask(languages=("bg",)))
    with pytest.raises(UserError, match=r"no recipe 'tuxpiant': known are .*tuxpaint"):
        build("tuxpiant", source, tmp_path / "out")
    with pytest.raises(UserError, match="is not there"):
        build("tuxpaint", tmp_path / "gone", tmp_path / "out")
    mine = tmp_path / "mine.py"
    mine.write_text("x = 1\n")
    with pytest.raises(UserError, match="no function read"):
        build(str(mine), source, tmp_path / "out")
