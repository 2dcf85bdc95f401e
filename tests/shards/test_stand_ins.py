"""The stand-ins: splits and audio, on made-up sources; Festival itself where it is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salsa_dist.corpus.build import build
from salsa_dist.corpus.lint import Bounds, lint
from salsa_dist.corpus.make_tar import Task
from salsa_dist.corpus.recipes import load_recipe
from salsa_dist.corpus.tar_samples import found
from salsa_dist.corpus.utterance import Ask, Utterance
from salsa_dist.data.audio import channels
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.shards import read_facts
from salsa_dist.errors import UserError
from salsa_dist.metrics.switching import languages_of

CHILD, MIXED = load_recipe("stand_in_child"), load_recipe("stand_in_mixed")


def samples(index: ShardIndex) -> dict[str, tuple[str, dict[str, object]]]:
    """Split and facts of each key."""
    return {
        sample.key: (shard.split, read_facts(sample.files, shard.path, sample.key))
        for shard in index.shards
        for sample in found(Path(str(index.folder)) / shard.path)
    }


def tone(path: Path, hz: float, loud: float, silence: float = 0.0) -> None:
    """0.2 s of a tone, with `silence` seconds before and behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = loud * np.sin(np.arange(8_820) * 2 * np.pi * hz / 44_100)
    soundfile.write(path, np.pad(wave, round(silence * 44_100)), 44_100)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "mixed"
    for number, syllable in enumerate(sorted(set(MIXED.READINGS.values()))):
        for speaker in MIXED.SPEAKERS:
            tone(folder / "ogg" / syllable / f"{speaker}.ogg", 200 + number, 0.1)
    for number, word in enumerate("abcdefghijklmnopqrst"):
        tone(folder / "en" / f"moon_{word}x.ogg", 300 + number, 0.6, silence=0.3)
    tone(folder / "en/egypt_palmtree.ogg", 400, 0.6)
    return folder


def test_splits_of_spliced_sentences_share_no_syllable_and_no_word() -> None:
    syllables = {
        split: {MIXED.READINGS[c] for sentence in sentences for c in sentence if c in MIXED.READINGS}
        for split, sentences in MIXED.SENTENCES.items()
    }
    characters = "".join(sum(MIXED.SENTENCES.values(), ())).replace("{}", "").replace(" ", "")
    assert set(characters) == set(MIXED.READINGS)
    assert sum(map(len, syllables.values())) == len(set().union(*syllables.values()))
    dealt = MIXED.deal([f"w{i}" for i in range(30)], seed=3)
    assert {split: len(part) for split, part in dealt.items()} == {"test": 8, "dev": 8, "train": 14}
    assert len(set().union(*dealt.values())) == 30


def test_spliced_sentences(mixed: Path, tmp_path: Path) -> None:
    index = build("stand_in_mixed", mixed, tmp_path / "out")
    kept = samples(index)
    counts = {split: len(sentences) for split, sentences in MIXED.SENTENCES.items()}
    assert len(kept) == 4 * counts["train"] + 8 * (counts["dev"] + counts["test"])
    assert lint(index.folder, Bounds()) == ([], len(kept))
    assert languages_of(MIXED.LANGUAGE) == ("zh", "en")
    speakers = {
        (split, facts["extra"]["mandarin_speaker"])  # type: ignore[index]
        for split, facts in kept.values()
    }
    assert len(speakers) == 6
    assert not [key for key in kept if "palmtree" in key]
    assert build("stand_in_mixed", mixed, tmp_path / "again").hash == index.hash
    by_seed = [MIXED.deal(sorted(MIXED.words(mixed)), seed) for seed in (0, 1)]
    assert by_seed[0]["test"] != by_seed[1]["test"]


def test_pieces_are_joined_without_silence_and_equally_loud(mixed: Path) -> None:
    corpus = MIXED.read(mixed, Ask(), mixed)
    clip = next(u for u in corpus.utterances if u.text.startswith("今天我有 "))
    audio, rate = channels(MIXED.audio_of(clip))
    assert rate == 16_000
    # Four syllables and a word of 0.2 s, and margins at the word's ends.
    assert len(audio) / rate == pytest.approx(5 * 0.2 + 2 * MIXED.MARGIN_S, abs=0.02)
    first, word = audio[800:2_400], audio[-2_400:-800]
    assert np.sqrt(np.mean(first**2)) == pytest.approx(MIXED.LOUDNESS, rel=0.15)
    assert np.sqrt(np.mean(word**2)) == pytest.approx(MIXED.LOUDNESS, rel=0.15)


def test_a_changed_piece_makes_its_shards_anew(mixed: Path) -> None:
    corpus = MIXED.read(mixed, Ask(), mixed)
    task = Task(
        "stand_in_mixed", "a.tar", "train", "zh-en", tuple(corpus.utterances[:1]), Ask(), "", ""
    )
    before = task.digest
    assert task.digest == before
    piece, other = MIXED.made_of(corpus.utterances[0])[0], MIXED.made_of(corpus.utterances[-1])[0]
    os.utime(other, (1, 1))
    assert task.digest == before
    os.utime(piece, (1, 1))
    assert task.digest != before


def test_changed_code_of_a_recipe_that_makes_sound_makes_its_shards_anew(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(Path(str(MIXED.__file__)).read_text(encoding="utf-8"), encoding="utf-8")
    task = Task(str(recipe), "a.tar", "train", "zh-en", (), Ask(), "", "")
    before = task.digest
    with recipe.open("a", encoding="utf-8") as code:
        code.write("LOUDNESS = 0.04\n")
    assert task.digest != before


def test_the_childs_sound_is_made_of_festivals_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHILD, "VOICE_FOLDER", tmp_path)
    monkeypatch.setattr(CHILD.shutil, "which", lambda name: f"/usr/bin/{name}")
    (tmp_path / "group").mkdir()
    (tmp_path / "group/krb.group").write_bytes(b"diphones")
    clip = Utterance("a", tmp_path / "unused", "Ano.", "cs")
    assert CHILD.made_of(clip) == [
        Path("/usr/bin/text2wave"),
        tmp_path / "group",
        tmp_path / "group/krb.group",
    ]


def test_spliced_sentences_of_what_is_not_there(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 0 English words in its folder en.*fetch.py mixed"):
        build("stand_in_mixed", tmp_path, tmp_path / "out")
    shutil.copytree(mixed, tmp_path / "silent")
    for syllable in ("ㄋㄧ3", "ㄉㄜ1"):
        for speaker in MIXED.SPEAKERS:
            tone(tmp_path / f"silent/ogg/{syllable}/{speaker}.ogg", 200, 0.0)
    with pytest.raises(UserError, match="can't be used"):
        build("stand_in_mixed", tmp_path / "silent", tmp_path / "out")
    shutil.rmtree(mixed / "ogg/ㄕ4")
    with pytest.raises(UserError, match=r"ㄕ4/3\.ogg is not there: name the folder"):
        build("stand_in_mixed", mixed, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_name_that_is_no_word_is_left_out(mixed: Path, tmp_path: Path) -> None:
    known = set(MIXED.words(mixed))
    shutil.copytree(mixed, tmp_path / "more")
    for name in ("t-shirt", "tv2", "Hat"):
        tone(tmp_path / f"more/en/{name}.ogg", 200, 0.6)
    assert set(MIXED.words(tmp_path / "more")) == known


@pytest.fixture
def fillets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve levels of three lines, whose sound is none."""
    recipe = load_recipe("fillets")
    monkeypatch.setattr(recipe, "TEST_CLIPS", 6)
    monkeypatch.setattr(recipe, "DEV_CLIPS", 3)
    folder = tmp_path / "fillets-ng"
    for level in "abcdefghijkl":
        script = folder / f"script/{level}/dialogs_cs.lua"
        script.parent.mkdir(parents=True)
        text = ""
        for number, word in enumerate(("ryba", "voda", "ocel")):
            text += f'dialogId("{level}{number}", "font_small", "")\ndialogStr("Jé, {word} {level}…")\n'
            sound = folder / f"sound/{level}/cs/{level}{number}.ogg"
            sound.parent.mkdir(parents=True, exist_ok=True)
            sound.write_bytes(b"not read")
        script.write_text(text, encoding="utf-8")
    return folder


def test_the_child_reads_the_texts_of_fillets_in_its_splits(
    fillets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def festival(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == ["text2wave", "-eval", "(voice_czech_krb)"]
        read.append(Path(command[5]).read_bytes().decode("iso-8859-2"))
        soundfile.write(command[4], 0.3 * np.sin(np.arange(32_000) / 3), 32_000)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", festival)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(CHILD, "TRAIN_CLIPS", 10)
    index = build("stand_in_child", fillets, tmp_path / "out")
    kept = samples(index)
    assert len(read) == len(kept) + 1
    assert not any(set("…?") & set(text) for text in read)  # a character that the coding lacks
    assert [split for split, _ in kept.values()].count("train") == 10
    assert index.recipe["dropped"]["cs"] == {"more of train than is used": 36 - len(kept)}
    assert lint(index.folder, Bounds()) == ([], len(kept))
    adults = load_recipe("fillets").read(fillets, Ask(languages=("cs",)), fillets)
    same = {f"cs/{u.key}": u.split for u in adults.utterances}
    assert all(same[key] == split for key, (split, _) in kept.items())
    _, facts = next(iter(kept.values()))
    assert facts["speaker"] == "czech_krb"
    assert facts["extra"]["character"] == "small"  # type: ignore[index]
    assert "synthesised" in str(facts["source"])


def test_without_festival_or_its_voice(
    fillets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"text2wave is not there: install both.*festvox-czech-krb"):
        build("stand_in_child", fillets, tmp_path / "out")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    said = "SIOD ERROR: unbound variable : voice_czech_krb\n"
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", said)
    )
    with pytest.raises(UserError, match=r"no voice czech_krb.*unbound variable.*apt-get install"):
        build("stand_in_child", fillets, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    shutil.which("text2wave") is None or not CHILD.VOICE_FOLDER.is_dir(),
    reason="needs Debian's festival and festvox-czech-krb",
)
def test_festival_speaks() -> None:
    wave = CHILD.spoken("Jé, už zase... Proč?")
    audio, rate = channels(wave)
    assert rate == 32_000
    assert 1 < len(audio) / rate < 5
    assert np.abs(audio).max() > 0.05
    assert CHILD.spoken("Jé, už zase... Proč?") == wave
    with pytest.raises(UserError, match="made no sound of '…'"):
        CHILD.spoken("…")
