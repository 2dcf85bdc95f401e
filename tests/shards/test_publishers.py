"""Common Voice and FLEURS, on made-up trees of the layout that their publishers document."""

import io
import tarfile
from pathlib import Path

import pytest
from clips import pitch, samples, tree, wave

from salsa_dist.corpus.build import build
from salsa_dist.corpus.utterance import Ask
from salsa_dist.errors import UserError

# The header of release 17.0.
HEADER = (
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\t"
    "accents\tvariant\tlocale\tsegment\n"
)


def voice(client: str, clip: str, sentence: str) -> str:
    return f"{client}\t{clip}\tid1\t{sentence}\t\t2\t0\ttwenties\tfemale_feminine\t\t\tbg\t\n"


def common_voice(folder: Path) -> Path:
    release = folder / "cv-corpus-17.0-2024-03-15"
    clips = release / "bg/clips"
    for i in range(5):
        wave(clips / f"common_voice_bg_{i}.mp3", hz=300 + 100 * i, rate=32_000)
    rows = [voice(f"c{i}", f"common_voice_bg_{i}.mp3", f'Изречение "{i}.') for i in range(5)]
    (release / "bg/train.tsv").write_text(HEADER + rows[0] + rows[1], encoding="utf-8")
    (release / "bg/dev.tsv").write_text(HEADER + rows[2], encoding="utf-8")
    (release / "bg/test.tsv").write_text(HEADER + rows[3], encoding="utf-8")
    (release / "bg/validated.tsv").write_text(HEADER + "".join(rows), encoding="utf-8")
    return release


def test_common_voice_has_its_own_splits(tmp_path: Path) -> None:
    index = build("common_voice", common_voice(tmp_path), tmp_path / "out")
    found = samples(index)
    assert {key: split for key, (split, _, _) in found.items()} == {
        "bg/common_voice_bg_0": "train",
        "bg/common_voice_bg_1": "train",
        "bg/common_voice_bg_2": "dev",
        "bg/common_voice_bg_3": "test",
    }
    _, audio, facts = found["bg/common_voice_bg_2"]
    assert abs(pitch(audio) - 500) < 5
    assert (facts["text"], facts["speaker"]) == ('Изречение "2.', "c2")
    assert facts["licence"] == "CC0-1.0"
    assert facts["source"] == "Common Voice cv-corpus-17.0-2024-03-15"
    assert facts["extra"] == {"age": "twenties", "gender": "female_feminine"}


def test_common_voice_without_splits_is_dealt(tmp_path: Path) -> None:
    release = common_voice(tmp_path)
    for name in ("train", "dev", "test"):
        (release / f"bg/{name}.tsv").unlink()
    index = build("common_voice", release / "bg", tmp_path / "out")
    assert len(samples(index)) == 5
    assert index.recipe["splits"] == {"bg": "by speaker"}


def test_common_voice_paths_stay_in_clips(tmp_path: Path) -> None:
    release = common_voice(tmp_path)
    (release / "bg/dev.tsv").write_text(HEADER + voice("c", "../../secret.wav", "x"))
    with pytest.raises(UserError, match="is no name of a file in clips"):
        build("common_voice", release, tmp_path / "out")


def fleurs(folder: Path, packed: bool) -> Path:
    """data/bg_bg and data/cmn_hans_cn, with three clips in each split."""
    for language in ("bg_bg", "cmn_hans_cn"):
        home = folder / "data" / language
        for split, hz in (("train", 300), ("dev", 500), ("test", 700)):
            lines = []
            for i in range(3):
                wave(home / f"audio/{split}/{hz}{i}.wav", hz=hz, rate=16_000)
                text = f"Дума {i}, {split}."
                lines.append(f"{i}\t{hz}{i}.wav\t{text}\t{text.lower()}\tд у м а |\t8000\tFEMALE\n")
            (home / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
            if packed:
                with tarfile.open(home / f"audio/{split}.tar.gz", "w:gz") as tar:
                    tar.add(home / f"audio/{split}", arcname=split)
                for path in (home / f"audio/{split}").iterdir():
                    path.unlink()
                (home / f"audio/{split}").rmdir()
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_fleurs(tmp_path: Path, packed: bool) -> None:
    source = fleurs(tmp_path / "fleurs", packed)
    index = build("fleurs", source, tmp_path / "out", Ask(languages=("bg",)))
    found = samples(index)
    assert len(found) == 9
    split, audio, facts = found["bg/dev/5001"]
    assert (split, facts["text"], facts["extra"]["gender"]) == ("dev", "дума 1, dev.", "female")
    assert abs(pitch(audio) - 500) < 5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_fleurs_languages_and_the_other_text(tmp_path: Path) -> None:
    ask = Ask(languages=("zh",), columns={"text": "raw_transcription"})
    index = build("fleurs", fleurs(tmp_path / "fleurs", False) / "data", tmp_path / "out", ask)
    assert samples(index)["zh/train/3000"][2]["text"] == "Дума 0, train."
    assert "FLEURS's column raw_transcription" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("recipe", ["common_voice", "fleurs"])
def test_built_twice_to_the_same_bytes(tmp_path: Path, recipe: str) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        home = common_voice(folder) if recipe == "common_voice" else fleurs(folder / "in", packed=True)
        build(recipe, home, folder / "out")
    assert tree(tmp_path / "one/out") == tree(tmp_path / "two/out")


OTHER = "client_id\tclip\tsentence\n"


@pytest.mark.parametrize(
    ("recipe", "file", "text", "says"),
    [
        ("common_voice", "bg/dev.tsv", OTHER, r"bg/dev\.tsv has no column path: is it Common Voice's"),
        (
            "common_voice",
            "bg/dev.tsv",
            HEADER + "\n" + voice("c", "a.mp3", '"А') + "\n\n" + voice("c", "../a.mp3", "А"),
            r"bg/dev\.tsv, line 6: '\.\./a\.mp3' is no name of a file in clips",
        ),
        ("common_voice", "bg/clips", None, r"bg holds no clips: is it unpacked whole\?"),
        ("common_voice", "bg/dev.tsv", None, r"bg holds no dev\.tsv: is it unpacked whole\?"),
        ("fleurs", "data/bg_bg/test.tsv", None, r"bg_bg holds no test\.tsv: is it fetched whole\?"),
        (
            "fleurs",
            "data/bg_bg/dev.tsv",
            "\n\n1\ta.wav\tА\tа\n",
            r"bg_bg/dev\.tsv, line 3: 4 cells, FLEURS",
        ),
        ("fleurs", "data", None, r"holds no LANGUAGE/test\.tsv: name FLEURS's data folder"),
    ],
)
def test_the_layout_of_another_release_is_refused_and_what_was_expected_is_said(
    tmp_path: Path, recipe: str, file: str, text: str | None, says: str
) -> None:
    in_ = tmp_path / "in"
    home = common_voice(in_) if recipe == "common_voice" else fleurs(in_, packed=False)
    if text is None:
        (home / file).rename(tmp_path / "elsewhere")
    else:
        (home / file).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says) as caught:
        build(recipe, home, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_fleurs_archive_that_writes_outside_is_refused(tmp_path: Path) -> None:
    source = fleurs(tmp_path / "fleurs", True)
    with tarfile.open(source / "data/bg_bg/audio/dev.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("dev/../../../../evil.wav")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="points outside its folder"):
        build("fleurs", source, tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))
