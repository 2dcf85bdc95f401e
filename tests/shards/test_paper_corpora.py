"""The corpora of the paper's domains, tiny, in the layouts that their publishers document."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import samples, tone, tree, wave

from salsa_dist.corpus.build import build
from salsa_dist.errors import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def myst(home: Path) -> Path:
    texts = {
        "train": ["it's <BREATH> a mag- magnet um", "it sticks (*)", None, "<NOISE>", "<discard> x"],
        "development": ["the <side_speech> battery"],
        "test": ["wires"],
    }
    for number, (partition, said) in enumerate(texts.items()):
        session = f"myst_00200{number}_2013-11-04_09-58-45_MX_1.1"
        folder = home / "myst_child_conv_speech/data" / partition / f"00200{number}" / session
        for i, text in enumerate(said):
            clip = wave(folder / f"{session}_{i:03}.flac", rate=16_000)
            if text is not None:
                write(clip.with_suffix(".trn"), text + "\n")
    return home


LICENSED = {
    "myst": "MyST Children's Conversational Speech Agreement",
    "ogi_kids": "CSLU Agreement",
    "cmu_kids": "CMU Kids Agreement",
    "seame": "LDC User Agreement for Non-Members",
}


def ogi(home: Path) -> Path:
    write(home / "docs/all.map", 'AB "apple"\n\nC1 "one two three"\n')
    marks = []
    for child in range(12):
        folder = home / f"speech/scripted/0{child % 2}/0/ks0{child:02x}".replace("x", "")
        for prompt in ("ab", "c1"):
            wave(folder / f"ks0{child:02x}{prompt}0.wav", rate=16_000)
    for name, mark in (("ks000ab0", 3), ("ks001ab0", 2), ("ks002ab0", 4), ("ks003ab0", 1)):
        marks.append(f"/speech/{name}.wav {mark}\n")
    write(home / "verify/00-verified.txt", "".join(marks))
    place = "spontaneous/00/0/ks000"
    wave(home / f"speech/{place}/ks000xx0.wav", seconds=1, rate=16_000)
    wave(home / f"speech/{place}/ks000xy0.wav", seconds=1, rate=16_000)
    write(home / f"trans/{place}/ks000xx0.txt", "a b <br> c\n<bn> my dog* is\n")
    return home


def cmu(home: Path) -> Path:
    rows = ["fabm2aa1\tA SEA OTTER [human_noise]", "fabm2ab2\tIT /F EH S/ FLOATS", "mcfl2aa1\tA SEA"]
    write(home / "cmu_kids/tables/transcrp.tbl", "\n".join(rows) + "\n")
    write(
        home / "cmu_kids/tables/speaker.tbl",
        "ID\tLOC\tGR/AGE\tTOT\tBIN2\n\nfabm\tSUM95\t3/9\t100\t62\nmcfl\tFP\tNA/NA\t1\t1\n",
    )
    for row in rows:
        path = home / "cmu_kids/kids" / row[:4] / "signal" / f"{row[:8]}.sph"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(0.5, 300, 16_000), 16_000, format="NIST", subtype="PCM_16")
    return home


def seame(home: Path) -> Path:
    lines = {
        "conversation/01NC01FBX_0101": [
            (0, 900, "CS", "那个 then (ppl) 我们 go lor"),
            (1000, 1900, "ZH", "我们 <unk> [走] 吧"),
            (2000, 2500, "EN", "<v-noise>"),
        ],
        "interview/NI01MAX_0101": [(0, 900, "EN", "okay ppb lah"), (1000, 1999, "CS", "不要 lah")],
    }
    for name, rows in lines.items():
        part, recording = name.split("/")
        tape = np.concatenate([tone(1, hz, 16_000) for hz in (300, 600, 900)])
        path = home / f"data/{part}/audio/{recording}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tape, 16_000)
        said = "".join(f"{recording}\t{a}\t{b}\t{mark}\t{text}\n" for a, b, mark, text in rows)
        write(home / f"data/{part}/transcript/phaseII/{recording}.txt", said)
        write(home / f"data/{part}/transcript/phaseI/{recording}.txt", f"{recording}\t0\t900\tx\n")
    return home


def mls(home: Path) -> Path:
    write(home / "mls_polish/metainfo.txt", " SPEAKER | GENDER | PARTITION\n 6892 | F | train\n")
    for split, speaker in (("train", 6892), ("dev", 1), ("test", 2)):
        name = f"{speaker}_10049_000000"
        wave(home / f"mls_polish/{split}/audio/{speaker}/10049/{name}.flac", rate=16_000)
        write(home / f"mls_polish/{split}/transcripts.txt", f"{name}\tzażółć {split}\n")
    return home


def voxpopuli(home: Path) -> Path:
    for split in ("train", "dev", "test"):
        rows = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\n"
        for i, text in enumerate((f'ein "{split}" satz', "")):
            name = f"20090112-0900-PLENARY-3-de_20090112-17:0{i}:2{len(split)}_0"
            wave(home / f"transcribed_data/de/2009/{name}.ogg", rate=16_000)
            rows += f"{name}\t\t{text}\t{split}1\t{split}\tmale\tTrue\n"
        write(home / f"transcribed_data/de/asr_{split}.tsv", rows)
    return home


MAKERS: dict[str, Callable[[Path], Path]] = {
    "myst": myst,
    "ogi_kids": ogi,
    "cmu_kids": cmu,
    "seame": seame,
    "mls": mls,
    "voxpopuli": voxpopuli,
}


@pytest.mark.parametrize("recipe", MAKERS)
def test_built_twice_to_the_same_bytes_and_nothing_else_is_one(tmp_path: Path, recipe: str) -> None:
    for name in ("one", "two"):
        build(recipe, MAKERS[recipe](tmp_path / name / "in"), tmp_path / name / "out")
    assert tree(tmp_path / "one/out") == tree(tmp_path / "two/out")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="name ") as caught:
        build(recipe, tmp_path / "other", tmp_path / "none")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_myst(tmp_path: Path) -> None:
    index = build("myst", myst(tmp_path), tmp_path / "out")
    found = {(split, f["text"], f["speaker"]) for split, _, f in samples(index).values()}
    assert found == {
        ("train", "it's a magnet um", "002000"),
        ("dev", "the battery", "002001"),
        ("test", "wires", "002002"),
    }
    counts = {"discarded": 1, "no transcript": 1, "not intelligible": 1, "nothing said": 1}
    assert index.recipe["dropped"] == {"en": counts}
    assert index.recipe["touched"] == {"en": {"noises": 3, "partial words": 1}}
    assert next(iter(samples(index).values()))[2]["extra"] == {"module": "MX"}
    assert "Agreement (licensed by the LDC" in (tmp_path / "out/README.md").read_text()


def test_ogi_kids(tmp_path: Path) -> None:
    index = build("ogi_kids", ogi(tmp_path), tmp_path / "out")
    found = samples(index)
    assert index.recipe["dropped"]["en"] == {
        "no transcript": 1,
        "verified as 2": 1,
        "verified as 3": 1,
    }
    assert {f["text"] for _, _, f in found.values()} == {"apple", "one two three", "a b c my dog is"}
    assert found["en/spontaneous/ks000xx0"][2]["extra"] == {"grade": 0, "style": "spontaneous"}
    assert index.recipe["splits"] == {"en": "by speaker"}
    parts: dict[str, set[str]] = {}
    for split, _, facts in found.values():
        parts.setdefault(split, set()).add(facts["speaker"])
    assert not parts["train"] & (parts["dev"] | parts["test"])


def test_cmu_kids(tmp_path: Path) -> None:
    index = build("cmu_kids", cmu(tmp_path), tmp_path / "out")
    found = samples(index)
    assert {f["text"] for _, _, f in found.values()} == {"A SEA OTTER", "A SEA"}
    extra = {"bin": "1", "group": "SUM95", "grade": 3, "age": 9}
    assert found["en/fabm2aa1"][2]["extra"] == extra
    assert index.recipe["dropped"] == {"en": {"not words": 1}}


def test_seame_with_its_dev_sets(tmp_path: Path) -> None:
    home = seame(tmp_path)
    tape = home / "data/interview/audio/NI01MAX_0101.flac"
    for name in ("NI02MAX_0101", "NI03FAX_0101", "NI04FAX_0101"):
        shutil.copy(tape, tape.with_name(f"{name}.flac"))
        lines = "".join(f"{name}\t{a}\t{a + 900}\tCS\t{name[:5]} {a} 不要\n" for a in (0, 1000))
        write(home / f"data/interview/transcript/phaseII/{name}.txt", lines)
    # Rounded otherwise than by us, as in the published lists.
    write(home / "SEAME-dev-set/dev_man/text", "ni01m-ni01max_0101-00100-00201 不要 lah\n")
    write(home / "SEAME-dev-set/dev_sge/text", "\n")
    heads = ("01nc01fbx_0101", "ni02max_0101", "ni03fax_0101")
    lines = "".join(f"./seame/phasei/original/interview/{x}/{x}.wav\n" for x in heads)
    write(home / "SEAME-dev-set/train/wav_file.txt", lines)
    index = build("seame", home, tmp_path / "out")
    found = samples(index).values()
    assert [(f["text"], f["extra"]["set"]) for split, _, f in found if split == "test"] == [
        ("不要 lah", "dev_man")
    ]
    speakers = {s: {f["speaker"] for split, _, f in found if split == s} for s in ("train", "dev")}
    assert len(speakers["dev"]) == 1
    assert speakers["train"] | speakers["dev"] == {"nc01f", "ni02m", "ni03f"}
    assert not speakers["train"] & speakers["dev"]
    dropped = {"nothing said": 1, "speaker of a dev set": 1, "not in the train list": 2}
    assert index.recipe["dropped"] == {"zh-en": dropped}
    assert index.recipe["splits"] == {"zh-en": "the corpus's own and by speaker"}
    assert "那个 then 我们 go lor" in {f["text"] for _, _, f in found}
    touched = {"brackets": 1, "sounds of the speaker": 2, "unknown words": 1}
    assert index.recipe["touched"] == {"zh-en": touched}


def test_dev_sets_of_another_seame_are_refused(tmp_path: Path) -> None:
    home = seame(tmp_path / "in")
    write(home / "SEAME-dev-set/dev_sge/text", "ni01m-ni01max_0101-00500-00601 不要\n")
    with pytest.raises(UserError, match="1 of 1 segments of dev_sge are in no transcript: is the list"):
        build("seame", home, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", LICENSED)
def test_a_licensed_corpus_has_its_licence_and_provider_in_the_card(
    tmp_path: Path, recipe: str
) -> None:
    index = build(recipe, MAKERS[recipe](tmp_path / "in"), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert f"- Licence: {LICENSED[recipe]} (licensed by the LDC; not to be passed on)\n" in card
    assert re.search(r"^- Source: .*LDC\d+S\d+, from the LDC$", card, re.M)
    assert {f["licence"] for _, _, f in samples(index).values()} == {index.recipe["licence"]}


def test_seame_in_sphere_files(tmp_path: Path) -> None:
    home = seame(tmp_path / "in")
    for path in sorted(home.rglob("*.flac")):
        audio, rate = soundfile.read(path, dtype="float32")
        soundfile.write(path.with_suffix(".sph"), audio, rate, format="NIST", subtype="PCM_16")
        path.unlink()
    index = build("seame", home, tmp_path / "out")
    assert index.recipe["languages"] == ["zh-en"]
    assert sum(shard.samples for shard in index.shards) == 4


def gone(home: Path, pattern: str) -> None:
    found = sorted(home.rglob(pattern))
    assert found
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("recipe", "pattern", "says"),
    [
        ("myst", "development", r"data holds no development: is it unpacked whole\?"),
        ("myst", "*.flac", r"no STUDENT/SESSION/\*\.flac with a \.trn: is it unpacked whole\?"),
        (
            "myst",
            "myst_002001*_000.flac",
            r"1 of 3 .* \(1 no recording\), such as /.*_000\.trn ",
        ),
        ("ogi_kids", "speech/scripted", r"speech holds no scripted: is it unpacked whole\?"),
        ("ogi_kids", "ks000x*0.wav", r"1 of \d+ utterances in en can't be used \(1 no recording\)"),
        ("cmu_kids", "*.sph", "all 2 utterances were dropped, such as .*audio file is missing"),
        ("cmu_kids", "mcfl2aa1.sph", "1 of 2 utterances in en can't be used .1 audio file is missing"),
        (
            "seame",
            "interview/audio",
            r"interview holds no audio and transcript: is it unpacked whole\?",
        ),
        ("seame", "NI01MAX_0101.flac", r"2 of 4 .*2 audio file is missing.* \(/.*_0101\.txt, line \d"),
        ("mls", "test/transcripts.txt", r"test/transcripts\.txt is missing: is .*mls_polish unpacked"),
        ("mls", "*.flac", "all 3 utterances were dropped"),
        ("voxpopuli", "*.ogg", "all 3 utterances were dropped"),
        ("voxpopuli", "asr_dev.tsv", r"de/asr_dev\.tsv is missing: run get_asr_data\.py again"),
    ],
)
def test_a_corpus_that_is_half_there_is_an_error(
    tmp_path: Path, recipe: str, pattern: str, says: str
) -> None:
    home = MAKERS[recipe](tmp_path / "in")
    gone(home, pattern)
    with pytest.raises(UserError, match=says) as caught:
        build(recipe, home, tmp_path / "out", max_dropped=0.01)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def moved(home: Path, pattern: str, to: str) -> None:
    """Rename what fits `pattern` by `to`, in which {} is its name without its ending."""
    found = sorted(home.rglob(pattern))
    assert found
    for path in found:
        target = path.parent / to.format(path.stem)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


@pytest.mark.parametrize(
    ("recipe", "pattern", "to", "says"),
    [
        ("myst", "development", "dev", r"conv_speech/data holds no development: is it unpacked whole"),
        ("myst", "data", "corpus", "in holds no train, development and test: name MyST's data folder"),
        ("myst", "myst_0*.flac", "../{}.flac", r"data holds no STUDENT/SESSION/\*\.flac with a \.trn"),
        ("ogi_kids", "all.map", "all.txt", r"in holds no speech and docs/all\.map: name the folder of"),
        ("ogi_kids", "ks*.wav", "{}.flac", r"speech holds no STYLE/GRADE/GROUP/CHILD/\*\.wav"),
        ("cmu_kids", "tables", "table", "in holds no kids and tables/transcrp.tbl: name the folder of"),
        ("seame", "transcript", "trans", "conversation holds no audio and transcript: is it unpacked"),
        ("seame", "phaseII/*.txt", "{}.TextGrid", r"data has no transcript/phaseII/\*\.txt with"),
        ("mls", "train/transcripts.txt", "trans.txt", r"mls_polish/train/transcripts\.txt is missing"),
        ("mls", "mls_polish", "polish", "in holds no mls_LANGUAGE/train/transcripts.txt: name an"),
        (
            "voxpopuli",
            "asr_*.tsv",
            "s2s_{}.tsv",
            "in holds no LANGUAGE/asr_train.tsv: name VoxPopuli's",
        ),
    ],
)
def test_the_layout_of_another_release_is_refused_and_what_was_expected_is_said(
    tmp_path: Path, recipe: str, pattern: str, to: str, says: str
) -> None:
    home = MAKERS[recipe](tmp_path / "in")
    moved(home, pattern, to)
    with pytest.raises(UserError, match=says) as caught:
        build(recipe, home, tmp_path / "out", max_dropped=0.01)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", MAKERS)
@pytest.mark.parametrize("name", ["corpus.tgz", "corpus.tar.gz", "corpus.zip"])
def test_an_archive_is_to_be_unpacked_first(tmp_path: Path, recipe: str, name: str) -> None:
    (tmp_path / name).write_bytes(b"half of it")
    with pytest.raises(UserError, match=f"{name} is an archive: unpack it, and name the folder"):
        build(recipe, tmp_path / name, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_mls_and_voxpopuli_keep_their_splits(tmp_path: Path) -> None:
    found = samples(build("mls", mls(tmp_path / "mls"), tmp_path / "a"))
    assert {key: split for key, (split, _, _) in found.items()} == {
        "pl/6892_10049_000000": "train",
        "pl/1_10049_000000": "dev",
        "pl/2_10049_000000": "test",
    }
    assert found["pl/6892_10049_000000"][2]["extra"] == {"book": "10049", "gender": "F"}
    index = build("voxpopuli", voxpopuli(tmp_path / "vox"), tmp_path / "b")
    texts = {split: f["text"] for split, _, f in samples(index).values()}
    assert texts == {"train": 'ein "train" satz', "dev": 'ein "dev" satz', "test": 'ein "test" satz'}
    assert index.recipe["dropped"] == {"de": {"empty normalized_text": 3}}


@pytest.mark.parametrize(
    ("recipe", "file", "content", "says"),
    [
        ("ogi_kids", "docs/all.map", "AB apple\n", r"all\.map, line 2: not a code and a text"),
        ("ogi_kids", "verify/a-verified.txt", "x.wav 7\n", r"line 2: ends with '7'"),
        ("cmu_kids", "cmu_kids/tables/transcrp.tbl", "fabm\tX\n", r"line 2: 'fabm' is not the 8"),
        (
            "seame",
            "data/interview/transcript/phaseII/NI01MAX_0101.txt",
            "NI01MAX_0101\t900\t900\tEN\tx\n",
            r"line 2: no segment goes from 0\.9 s to 0\.9 s",
        ),
        (
            "seame",
            "data/interview/transcript/phaseII/NI01MAX_0101.txt",
            "NI01MAX_0101 0 900 EN x\n",
            "line 2: not a recording, start",
        ),
        (
            "seame",
            "data/interview/transcript/phaseII/NI01MAX_0101.txt",
            "NI01MAX_0101\t0\t90000\tEN\tx\n",
            r"1 of 3 .*NI01MAX_0101\.flac has 3 s, no part from 0 s to 90 s.*_0101\.txt, line 2\)",
        ),
        (
            "seame",
            "data/interview/transcript/phaseII/NI01MAX_0101.txt",
            "NI01MAX_0101\tEN\t0\t900\tx\n",
            "line 2: not a recording, start, end .ms., language and text between tabs",
        ),
        (
            "ogi_kids",
            "docs/all.map",
            "AB\tapple\n",
            r"all\.map, line 2: not a code and a text in quotes",
        ),
        ("cmu_kids", "cmu_kids/tables/transcrp.tbl", "fabm2aa1.sph A\n", r"line 2: 'fabm2aa1\.sph' is"),
        (
            "mls",
            "mls_polish/dev/transcripts.txt",
            "1_2_3 x\n",
            "line 2: not SPEAKER_BOOK_NUMBER, a tab",
        ),
        ("mls", "mls_polish/dev/transcripts.txt", "1_2 x\n", "line 2: not SPEAKER_BOOK_NUMBER"),
        ("voxpopuli", "transcribed_data/de/asr_dev.tsv", "id\traw_text\n", "no column normalized_text"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(
    tmp_path: Path, recipe: str, file: str, content: str, says: str
) -> None:
    home = MAKERS[recipe](tmp_path / "in")
    write(home / file, "\n" + content)  # an empty line counts
    with pytest.raises(UserError, match=says) as caught:
        build(recipe, home, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
