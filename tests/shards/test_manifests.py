"""Recipes for manifests: what is said in them arrives in the shards, and mistakes are named."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clips import pitch, samples, tree, wave

from salsa_dist.corpus.build import build
from salsa_dist.corpus.lint import Bounds, lint
from salsa_dist.corpus.stats import said
from salsa_dist.corpus.utterance import Ask
from salsa_dist.errors import UserError


def rows_to(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def tape(path: Path) -> Path:
    """Three seconds: one each of 300, 600 and 900 Hz."""
    import numpy as np
    import soundfile
    from clips import tone

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate([tone(1, hz, 16_000) for hz in (300, 600, 900)]), 16_000)
    return path


def test_jsonl_with_files_parts_and_splits(tmp_path: Path) -> None:
    wave(tmp_path / "in/clips/a.wav")
    tape(tmp_path / "in/tape.flac")
    rows = [
        {"audio": "clips/a.wav", "text": " И\u0306\n два ", "language": "bg", "speaker": "s1"},
        {"audio": "tape.flac", "start": 1, "end": 2, "text": "mid", "language": "el", "split": "valid"},
        {"audio": "tape.flac", "start": 2, "duration": 1, "text": "end", "language": "el", "id": "x.y"},
        {"audio": "tape.flac", "start": 0, "end": 1, "text": " ", "language": "el"},
    ]
    index = build("jsonl", rows_to(tmp_path / "in/all.jsonl", rows), tmp_path / "out", max_dropped=0.4)
    found = samples(index)
    split, audio, facts = found["bg/clips/a"]
    assert (facts["text"], facts["speaker"], len(audio)) == ("Й  два", "s1", 8_000)
    assert split == "train"  # the only text of its language
    (middle,) = [k for k in found if k.startswith("el/tape-")]
    split, audio, facts = found[middle]
    assert (split, facts["text"], round(facts["seconds"], 2)) == ("dev", "mid", 1.0)
    assert abs(pitch(audio) - 600) < 5
    (last,) = [k for k in found if k.startswith("el/x_y-")]
    assert abs(pitch(found[last][1]) - 900) < 5
    assert index.recipe["dropped"] == {"bg": {}, "el": {"no text": 1}}


def test_clips_without_speech_and_clips_with_a_weight(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    for name, loud in (("a", 0.1), ("b", 0.1), ("hum", 0.01), ("still", 0.0), ("long", 0.01)):
        audio = loud * rng.standard_normal(16_000 * (12 if name == "long" else 1))
        soundfile.write(tmp_path / f"{name}.wav", audio, 16_000)
    lines = [
        "audio,text,language,speech,loss_weight,split",
        "a.wav,да,bg,,2,",
        "b.wav,не,bg,true,,dev",
        "hum.wav,,bg,false,0.5,",
        "still.wav,,bg,no,,dev",
        "long.wav, ,bg,0,,dev",
    ]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    index = build("table", tmp_path / "m.csv", tmp_path / "out")
    found = {key: facts for key, (_, _, facts) in samples(index).items()}
    told = {k: (f["text"], f.get("speech"), f.get("loss_weight")) for k, f in found.items()}
    assert told == {
        "bg/a": ("да", None, 2),
        "bg/b": ("не", None, None),
        "bg/hum": ("", False, 0.5),
        "bg/still": ("", False, None),
        "bg/long": ("", False, None),
    }
    assert not any("extra" in facts for facts in found.values())
    counts = {"with a loss_weight": 2, "without speech": 3}
    assert index.recipe["marked"] == {"bg": counts}
    assert "marked in bg: 2 with a loss_weight, 3 without speech" in said(index)
    assert lint(tmp_path / "out", Bounds()) == ([], 5)
    (tmp_path / "m.csv").write_text("\n".join([lines[0], "a.wav,да,bg,,-1,"]), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"m\.csv, line 2: loss_weight is -1: it must be from 0 to 1000"
    ):
        build("table", tmp_path / "m.csv", tmp_path / "again")


def test_other_columns_go_along_as_words_and_numbers_alone(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    row = {
        "audio": "a.wav",
        "text": "да",
        "language": "bg",
        "id": "one",
        "duration": 0.5,
        "grade": " K ",
        "age": 7,
        "native": True,
        "room": "007",
        "height": "1.25",
        "source": "mine",
        "nothing": None,
        "blank": " ",
        "long": "x" * 201,
        "list": [1],
        "tree": {"a": 1},
        "n" * 201: 1,
        "huge": 10**300,
        "loud": float("inf"),
    }
    index = build("jsonl", rows_to(tmp_path / "a.jsonl", [row]), tmp_path / "o")
    ((_, _, facts),) = samples(index).values()
    kept = {"grade": "K", "age": 7, "native": True, "room": "007", "height": 1.25}
    assert facts["extra"] == kept
    assert facts["source"] != "mine"
    row |= {f"f{i:02}": i for i in range(40)}
    index = build("jsonl", rows_to(tmp_path / "a.jsonl", [row]), tmp_path / "p")
    ((_, _, facts),) = samples(index).values()
    assert len(facts["extra"]) == 32


def table(folder: Path) -> Path:
    for name in ("train", "dev", "test"):
        wave(folder / f"{name}.wav")
        (folder / f"{name}.tsv").write_text(
            f'path\twords\tclient_id\n{name}.wav\tшест "думи" {name}\tana\n', encoding="utf-8"
        )
    return folder


def test_file_names_tell_splits_and_columns_can_be_named(tmp_path: Path) -> None:
    ask = Ask(language="bg", columns={"text": "words"}, licence="CC0-1.0")
    index = build("table", table(tmp_path / "in"), tmp_path / "out", ask)
    found = samples(index)
    assert {key: split for key, (split, _, _) in found.items()} == {
        "bg/train": "train",
        "bg/dev": "dev",
        "bg/test": "test",
    }
    facts = found["bg/dev"][2]
    assert facts["text"] == 'шест "думи" dev'
    assert (facts["speaker"], facts["licence"]) == ("ana", "CC0-1.0")


def test_a_split_with_another_name_beside_train_is_no_part_of_it(tmp_path: Path) -> None:
    named = {"a": "train", "b": "development", "c": "testing", "d": "held-out", "e": None}
    rows = [
        {"audio": f"{key}.wav", "text": f"it is {key}", "lang": "bg", "split": split}
        for key, split in named.items()
    ]
    for key in named:
        wave(tmp_path / f"{key}.wav")
    path = rows_to(tmp_path / "m.jsonl", rows)
    with pytest.raises(
        UserError, match=r"m\.jsonl, line 4: 'held-out' is none of train, dev and test,"
    ):
        build("jsonl", path, tmp_path / "out")
    del rows[3]
    index = build("jsonl", rows_to(path, rows), tmp_path / "out")
    found = {key: split for key, (split, _, _) in samples(index).items()}
    assert found == {"bg/a": "train", "bg/b": "dev", "bg/c": "test", "bg/e": "train"}
    # Files of another language, or beside others than train, are still divided.
    for name, language in (("el", "el"), ("train", "bg")):
        row = {"audio": "../a.wav", "text": "it is a", "lang": language}
        rows_to(tmp_path / f"in/{name}.jsonl", [row])
    build("jsonl", tmp_path / "in", tmp_path / "two")


@pytest.mark.parametrize(
    ("recipe", "ask", "says"),
    [
        ("kaldi", Ask(language="bg"), r"in/rt03: 'rt03' is none of .*: rename the folder"),
        ("lhotse", Ask(), r"in/rt03\.jsonl: 'rt03\.jsonl' is none of"),
        ("huggingface", Ask(), "in/rt03: 'rt03' is none of"),
        ("jsonl", Ask(), r"in/rt03\.jsonl, line 1: 'rt03\.jsonl' is none of"),
    ],
)
def test_parts_of_a_corpus_that_name_no_split_are_refused_beside_train(
    tmp_path: Path, recipe: str, ask: Ask, says: str
) -> None:
    source = tmp_path / "in"
    for name in ("train", "rt03"):
        if recipe == "kaldi":
            kaldi(source / name)
        elif recipe == "lhotse":
            rows_to(source / f"{name}.jsonl", [cut()])
        elif recipe == "jsonl":
            row = {"audio": "a.wav", "text": name, "lang": "bg"}
            rows_to(source / f"{name}.jsonl", [row])
        else:
            datasets = pytest.importorskip("datasets")
            saved = datasets.load_from_disk(huggingface(tmp_path))
            datasets.DatasetDict({"train": saved["train"], "rt03": saved["train"]}).save_to_disk(source)
    with pytest.raises(UserError, match=says):
        build(recipe, source, tmp_path / "out", ask)
    assert not (tmp_path / "out").exists()


def test_a_tsv_of_pandas_has_no_quotation_marks_of_its_own(tmp_path: Path) -> None:
    said = {
        "a": ('"say ""yes"", now"', 'say "yes", now'),
        "b": ('"Hello," she said. "Bye"', '"Hello," she said. "Bye"'),
        "c": ('"all of it"', '"all of it"'),
        "d": ('""', '""'),
    }
    for key in said:
        wave(tmp_path / f"{key}.wav")
    rows = "".join(f"{key}.wav\t{cell} {key}\n".replace('" a', '"') for key, (cell, _) in said.items())
    (tmp_path / "m.tsv").write_text("path\ttext\n" + rows)
    index = build("table", tmp_path / "m.tsv", tmp_path / "out", Ask(language="en"))
    texts = {facts["text"].removesuffix(f" {key[3:]}") for key, (_, _, facts) in samples(index).items()}
    assert texts == {text for _, text in said.values()}


@pytest.mark.parametrize(
    ("said", "heard"),
    [("left", 0), ("B", 1), ("1", 1), (1, 1), (0.0, 0), ("1.0", 1), ("mic", None), ("", None)],
)
def test_a_channel_is_a_number_or_a_side(tmp_path: Path, said: object, heard: int | None) -> None:
    both = call(tmp_path / "a.wav")
    rows_to(tmp_path / "m.jsonl", [{"audio": "a.wav", "text": "x", "lang": "bg", "channel": said}])
    ((_, audio, _),) = samples(build("jsonl", tmp_path / "m.jsonl", tmp_path / "out")).values()
    expected = both.mean(axis=1) if heard is None else both[:, heard]
    assert abs(audio - expected).max() < 1e-3


def call(path: Path) -> Any:
    """Two sides of one second: (16_000, 2)."""
    import numpy as np
    import soundfile
    from clips import tone

    both = np.stack([tone(1, hz, 16_000) for hz in (300, 900)], 1) / 2
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, both, 16_000)
    return both


def test_the_sides_of_a_call_are_heard_apart_in_lhotses_cuts(tmp_path: Path) -> None:
    both = call(tmp_path / "in/call.wav")
    one = cut()
    source = {"type": "file", "channels": [0, 1], "source": "call.wav"}
    sides = [
        {**one["supervisions"][0], "id": f"s-{i}", "start": 0, "channel": channel}
        for i, channel in enumerate((0, [1], [0, 1]))
    ]
    changes = {"type": "MultiCut", "channel": [0, 1], "start": 0, "duration": 1.0}
    recording = {**one["recording"], "sources": [source], "channel_ids": [0, 1]}
    rows_to(tmp_path / "in/cuts.jsonl", [cut(**changes, recording=recording, supervisions=sides)])
    found = samples(build("lhotse", tmp_path / "in", tmp_path / "out"))
    for i, expected in enumerate((both[:, 0], both[:, 1], both.mean(axis=1))):
        assert abs(found[f"bg/s-{i}"][1] - expected).max() < 1e-3


def test_spaces_around_a_code_or_a_name_are_none_of_it(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    row = {"audio": "a.wav", "text": "x", "lang": " bg ", "speaker": "mia ", "split": " test"}
    index = build("jsonl", rows_to(tmp_path / "m.jsonl", [row]), tmp_path / "out")
    ((key, (split, _, facts)),) = samples(index).items()
    assert (key, split, facts["language"], facts["speaker"]) == ("bg/a", "test", "bg", "mia")


def test_what_nobody_sees_is_no_text(tmp_path: Path) -> None:
    said = {"a": "\ufeffпри\u00adмер", "b": "\u200b\u200f ", "c": "می\u200cروم", "d": "…"}
    for key in said:
        wave(tmp_path / f"{key}.wav")
    rows = [{"audio": f"{key}.wav", "text": text, "lang": "bg"} for key, text in said.items()]
    path = rows_to(tmp_path / "m.jsonl", rows)
    index = build("jsonl", path, tmp_path / "out", max_dropped=0.3)
    texts = {key: facts["text"] for key, (_, _, facts) in samples(index).items()}
    assert texts == {"bg/a": "пример", "bg/c": "می\u200cروم", "bg/d": "…"}
    assert index.recipe["dropped"] == {"bg": {"no text": 1}}


def test_csv_is_quoted(tmp_path: Path) -> None:
    wave(tmp_path / "a b.wav")
    table = tmp_path / "all.csv"
    head = "file,text,lang,grade,age,class,note\n"
    row = '"a b.wav","one, ""two""\n\nthree",en,K,7.5,007,"first\n\n\nfourth"\n'
    table.write_text(head + row, encoding="utf-8")
    ((_, _, facts),) = samples(build("table", table, tmp_path / "out")).values()
    assert facts["text"] == 'one, "two"  three', "a space per line end"
    assert facts["extra"].pop("note") == "first\n\n\nfourth", "empty lines in quotes are kept"
    assert facts["extra"] == {"grade": "K", "age": 7.5, "class": "007"}


def test_rows_without_a_text_and_rows_of_one_file_are_dropped_and_counted(tmp_path: Path) -> None:
    for name in "abc":
        wave(tmp_path / f"{name}.wav")
    rows = [
        {"audio": "a.wav", "text": "one", "language": "bg"},
        {"audio": "b.wav", "text": None, "language": "bg"},
        {"audio": "b.wav", "language": "bg"},
        {"audio": None, "text": "two", "language": "bg"},
        {"audio": "a.wav", "text": "the same file again", "language": "bg"},
        {"audio": "a.wav", "text": "under another name", "language": "bg", "id": "x"},
        {"audio": "a.wav", "text": "a part", "language": "bg", "start": 0.1, "end": 0.4},
        {"audio": "c.wav", "text": "three", "language": "bg"},
    ]
    manifest = rows_to(tmp_path / "m.jsonl", rows)
    with pytest.raises(
        UserError, match=r"5 of 8 utterances in bg can't be used \(2 no text, 2 same audio"
    ):
        build("jsonl", manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    index = build("jsonl", manifest, tmp_path / "out", max_dropped=0.7)
    texts = {facts["text"] for _, _, facts in samples(index).values()}
    assert texts == {"one", "a part", "three"}
    counts = {"no audio": 1, "no text": 2, "same audio again": 2}
    assert index.recipe["dropped"] == {"bg": counts}


def test_what_begins_alike_is_kept_as_parts_and_no_number_is_no_text(tmp_path: Path) -> None:
    import numpy as np
    import soundfile
    from clips import tone

    sides = np.stack([tone(1, hz, 16_000) for hz in (300, 600)], 1)
    soundfile.write(tmp_path / "call.wav", sides, 16_000)
    rows: list[dict[str, Any]] = [
        {"audio": "call.wav", "text": "caller", "channel": 0},
        {"audio": "call.wav", "text": "agent", "channel": 1},
        {"audio": "call.wav", "text": "word", "channel": 0, "start": 0, "end": 0.4},
        {"audio": "call.wav", "text": "two words", "channel": 0, "start": 0, "end": 0.8},
        {"audio": "call.wav", "text": "two words", "channel": 0, "start": 0, "end": 0.8},
        {"audio": "call.wav", "text": float("nan")},
    ]
    manifest = rows_to(tmp_path / "m.jsonl", rows)
    index = build("jsonl", manifest, tmp_path / "out", Ask(language="en"), max_dropped=0.4)
    found = samples(index)
    assert {f["text"] for _, _, f in found.values()} == {"caller", "agent", "word", "two words"}
    (agent,) = [audio for _, audio, f in found.values() if f["text"] == "agent"]
    assert abs(pitch(agent) - 600) < 5
    assert index.recipe["dropped"] == {"en": {"no text": 1, "same audio again": 1}}
    with pytest.raises(UserError, match=r"such as .*m\.jsonl, line 6 \(no text\): fix the source"):
        build("jsonl", manifest, tmp_path / "none", Ask(language="en"))


def test_keys_do_not_tell_where_on_the_disk_the_audio_lies(tmp_path: Path) -> None:
    made = []
    for home in ("one", "another/disk"):
        for name in ("x/a", "y/a"):
            wave(tmp_path / home / f"clips/{name}.wav")
        wave(tmp_path / home / "m/near.wav")
        rows = [
            {"audio": str(tmp_path / home / f"clips/{name}.wav"), "text": name, "language": "bg"}
            for name in ("x/a", "y/a")
        ]
        rows.append({"audio": str(tmp_path / home / "m/near.wav"), "text": "near", "language": "bg"})
        manifest = rows_to(tmp_path / home / "m/m.jsonl", rows)
        made.append(samples(build("jsonl", manifest, tmp_path / home / "out")).keys())
    assert made[0] == made[1] == {"bg/x/a", "bg/y/a", "bg/near"}


def nemo(folder: Path) -> Path:
    whole = str(tape(folder / "tape.wav"))
    rows = [
        {"audio_filepath": "tape.wav", "offset": 1.0, "duration": 1.0, "text": "b", "lang": "bg"},
        {"audio_filepath": whole, "duration": 3.0, "text": "all", "lang": "bg"},
    ]
    rows_to(folder / "train_manifest.json", rows)
    return folder


def test_nemo(tmp_path: Path) -> None:
    found = samples(build("nemo", nemo(tmp_path / "in"), tmp_path / "out")).values()
    (part,) = [audio for _, audio, facts in found if facts["text"] == "b"]
    (whole,) = [audio for _, audio, facts in found if facts["text"] == "all"]
    assert {split for split, _, _ in found} == {"train"}
    assert abs(pitch(part) - 600) < 5
    assert (len(part), len(whole)) == (16_000, 48_000)


def kaldi(folder: Path) -> Path:
    tape(folder / "rec/t1.wav")
    (folder / "wav.scp").write_text("t1 rec/t1.wav\n")
    (folder / "segments").write_text("mia-1 t1 0.0 1.0\nmia-2 t1 1.0 2.0\nleo-1 t1 2.0 -1\n")
    said = "mia-1 едно\nmia-2 две и три\nleo-1\nleo-2 без запис\n"
    (folder / "text").write_text(said, encoding="utf-8")
    (folder / "utt2spk").write_text("mia-1 mia\nmia-2 mia\nleo-1 leo\n")
    (folder / "spk2gender").write_text("mia f\n")
    return folder


def test_kaldi(tmp_path: Path) -> None:
    kaldi(tmp_path / "data/dev")
    index = build("kaldi", tmp_path / "data", tmp_path / "out", Ask(language="bg"), max_dropped=0.5)
    found = samples(index)
    assert found.keys() == {"bg/mia-1", "bg/mia-2"}
    split, audio, facts = found["bg/mia-2"]
    assert (split, facts["text"], facts["speaker"]) == ("dev", "две и три", "mia")
    assert facts["extra"] == {"gender": "f"}
    assert abs(pitch(audio) - 600) < 5
    assert index.recipe["dropped"] == {"bg": {"no recording": 1, "no text": 1}}


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ("t1 1.0 9.0", r"t1\.wav has 3 s, no part from 1 s to 9 s: .* \(\S+/segments, line 2\)"),
        ("t1 2.0 1.0", r"/segments, line 2: mia-2 has 't1 2\.0 1\.0', not a recording, its start and"),
        ("t1 nan -1", r"/segments, line 2: mia-2 has 't1 nan -1', not a recording"),
        ("t1 1.0 inf", r"/segments, line 2: mia-2 has 't1 1\.0 inf', not a recording"),
        ("t2 1.0 2.0", r"/segments, line 2: mia-2 is of t2, not in wav\.scp"),
    ],
)
def test_kaldi_times_outside_of_a_recording_are_named_with_their_line(
    tmp_path: Path, times: str, says: str
) -> None:
    segments = kaldi(tmp_path / "data") / "segments"
    segments.write_text(segments.read_text().replace("t1 1.0 2.0", times))
    with pytest.raises(UserError, match=says) as caught:
        build("kaldi", tmp_path / "data", tmp_path / "out", Ask(language="bg"), max_dropped=0.5)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_kaldi_commands_are_never_run(tmp_path: Path) -> None:
    folder = kaldi(tmp_path / "data")
    (folder / "wav.scp").write_text(f"t1 touch {tmp_path / 'ran'} |\n")
    with pytest.raises(UserError, match=r"wav\.scp, line 1: t1 is a command, and no command is run"):
        build("kaldi", folder, tmp_path / "out", Ask(language="bg"), max_dropped=0.4)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def cut(**changes: Any) -> dict[str, Any]:
    """As Lhotse 1.33 writes a MonoCut."""
    recording = {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "tape.wav"}],
        "sampling_rate": 16_000,
        "num_samples": 48_000,
        "duration": 3.0,
        "channel_ids": [0],
    }
    supervision = {
        "id": "s-1",
        "recording_id": "r",
        "start": 0.5,
        "duration": 1.0,
        "channel": 0,
        "text": "две",
        "language": "bg",
        "speaker": "mia",
        "gender": "F",
        "custom": {"age": 9, "words": ["две"]},
    }
    return {
        "id": "c",
        "start": 0.5,
        "duration": 2.0,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    } | changes


@pytest.mark.parametrize("name", ["cuts_test.jsonl", "cuts_test.jsonl.gz"])
def test_lhotse(tmp_path: Path, name: str) -> None:
    tape(tmp_path / "in/tape.wav")
    moved = {**cut()["recording"], "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}
    rows = [cut(), {"id": "m", "type": "MixedCut", "tracks": []}, cut(id="d", recording=moved)]
    rows_to(tmp_path / "in" / name, rows)
    index = build("lhotse", tmp_path / "in", tmp_path / "out", Ask(language="bg"))
    ((key, (split, audio, facts)),) = samples(index).items()
    assert (key, split, facts["text"], facts["speaker"]) == ("bg/s-1", "test", "две", "mia")
    assert facts["extra"] == {"age": 9, "gender": "F"}
    assert (round(pitch(audio), -1), len(audio)) == (600, 16_000)
    assert index.recipe["dropped"]["bg"] == {"a MixedCut": 1, "a transformed recording": 1}


def test_lhotse_reads_what_lhotse_writes(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    recording = lhotse.Recording.from_file(tape(tmp_path / "tape.wav"))
    supervision = lhotse.SupervisionSegment("s-1", recording.id, 1.0, 1.0, text="две", language="bg")
    one = lhotse.MonoCut("c", 0.0, 3.0, 0, supervisions=[supervision], recording=recording)
    lhotse.CutSet.from_cuts([one]).to_file(tmp_path / "cuts.jsonl.gz")
    ((_, audio, _),) = samples(build("lhotse", tmp_path / "cuts.jsonl.gz", tmp_path / "o")).values()
    assert abs(pitch(audio) - 600) < 5


def huggingface(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    clips = [wave(folder / f"{i}.wav", hz=300 + 100 * i) for i in range(4)]
    columns = {
        "sentence": ["едно", "две", None, "четири"],
        "audio": [str(clip) for clip in clips],
        "locale": ["bg", "bg", "bg", "el"],
        "client_id": list("abca"),
        "age": [6, 7, 8, 9],
    }
    part = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    both = datasets.DatasetDict({"train": part, "validation": part.select([1])})
    both.save_to_disk(folder / "saved")
    for clip in clips:
        clip.unlink()  # the audio lies in the tables
    return folder / "saved"


def test_huggingface_datasets_on_disk(tmp_path: Path) -> None:
    index = build("huggingface", huggingface(tmp_path), tmp_path / "out", max_dropped=0.4)
    assert index.recipe["dropped"] == {"bg": {"no text": 1}, "el": {}}
    found = samples(index)
    assert {k: (split, f["text"], f["speaker"]) for k, (split, _, f) in found.items()} == {
        "bg/train-00000000": ("train", "едно", "a"),
        "bg/train-00000001": ("train", "две", "b"),
        "el/train-00000003": ("train", "четири", "a"),
        "bg/validation-00000000": ("dev", "две", "b"),
    }
    assert abs(pitch(found["bg/validation-00000000"][1]) - 400) < 5
    assert found["bg/train-00000001"][2]["extra"] == {"age": 7}


def test_huggingface_classes_go_by_their_names_and_marks_are_kept(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "text": ["едно", "", "три"],
        "audio": [
            {"bytes": wave(tmp_path / f"{i}.wav", hz=300 + i).read_bytes(), "path": None}
            for i in range(3)
        ],
        "language": [0, 0, 1],
        "gender": [1, -1, 0],
        "speech": [True, False, True],
        "loss_weight": [1.0, 1.0, 2.5],
    }
    part = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    part = part.cast_column("language", datasets.ClassLabel(names=["bg", "el"]))
    part = part.cast_column("gender", datasets.ClassLabel(names=["male", "female"]))
    part.save_to_disk(tmp_path / "saved")
    part.to_parquet(tmp_path / "hub/train.parquet")
    for recipe, source in (("huggingface", "saved"), ("hub", "hub")):
        index = build(recipe, tmp_path / source, tmp_path / f"out-{recipe}")
        facts = sorted(
            (f["text"], f["language"], f.get("extra")) for _, _, f in samples(index).values()
        )
        assert facts == [
            ("", "bg", None),
            ("едно", "bg", {"gender": "female"}),
            ("три", "el", {"gender": "male"}),
        ]
        marked = {"bg": {"without speech": 1}, "el": {"with a loss_weight": 1}}
        assert index.recipe["marked"] == marked


def jsonl(folder: Path) -> Path:
    names = [wave(folder / f"{hz}.wav", hz=hz).name for hz in range(300, 1300, 100)]
    rows = [{"audio": name, "text": f"дума {name}", "language": "bg"} for name in names]
    return rows_to(folder / "all.jsonl", rows)


def lhotse(folder: Path) -> Path:
    tape(folder / "tape.wav")
    rows_to(folder / "cuts_test.jsonl.gz", [cut()])
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "jsonl": jsonl,
    "table": table,
    "nemo": nemo,
    "kaldi": kaldi,
    "lhotse": lhotse,
    "huggingface": huggingface,
}


@pytest.mark.parametrize("recipe", MAKERS)
def test_built_twice_to_the_same_bytes(tmp_path: Path, recipe: str) -> None:
    ask = Ask(language="bg", columns={"text": "words"} if recipe == "table" else {})
    for name in ("one", "two"):
        home = MAKERS[recipe](tmp_path / name / "in")
        build(recipe, home, tmp_path / name / "out", ask, max_dropped=0.5)
    made = tree(tmp_path / "one/out")
    assert any(path.endswith(".tar") for path in made)
    assert made == tree(tmp_path / "two/out")


def test_without_the_package_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from salsa_dist.corpus.recipes import load_recipe

    load_recipe("huggingface").load.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"salsa-dist\[datasets\]"):
        build("huggingface", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("recipe", "name", "content", "says"),
    [
        ("jsonl", "a.jsonl", "{", r"a\.jsonl, line 1: not a JSON object"),
        ("jsonl", "a.jsonl", '\n{"text": "x", "lang": "bg"}', r"line 2: no audio among text, lang"),
        ("jsonl", "a.jsonl", '{"audio": "a.wav", "lang": "bg"}', "no text among"),
        ("jsonl", "a.jsonl", '{"audio": "a.wav", "text": "x"}', "--language"),
        ("jsonl", "a.jsonl", '{"audio": "rm -rf x |", "text": "x", "lang": "bg"}', "is no file"),
        ("jsonl", "a.jsonl", '{"audio": "a.wav", "text": 3.5, "lang": "bg"}', "text is '3.5', no text"),
        (
            "jsonl",
            "a.jsonl",
            '{"audio": "a.wav", "text": "x", "lang": "bg", "start": 2, "end": 1}',
            "no part of a recording goes from 2.0 s to 1.0 s",
        ),
        (
            "jsonl",
            "a.jsonl",
            '{"audio": "a.wav", "text": "x", "lang": "bg", "start": "soon"}',
            "start is 'soon', no number of seconds",
        ),
        ("jsonl", "a.jsonl", '{"audio": "a.wav", "text": "x", "lang": "../e"}', "'../e' is no code"),
        ("jsonl", "a.jsonl", '{"audio": "gone.wav", "text": "x", "lang": "bg"}', "file is missing"),
        (
            "jsonl",
            "a.jsonl",
            '{"audio": "a\\u0000", "text": "x", "lang": "bg"}',
            "file is missing.*, line 1",
        ),
        ("jsonl", "a.jsonl", '{"audio": "a.jsonl", "text": "x", "lang": "bg"}', "unreadable audio"),
        (
            "jsonl",
            "a.jsonl",
            '{"audio": "a.wav", "text": "x", "lang": "bg", "id": "one"}\n'
            '{"audio": "b.wav", "text": "x", "lang": "bg", "id": "one"}',
            r"line 2: two utterances in bg are called one \(the first: \S+/a\.jsonl, line 1\)",
        ),
        (
            "jsonl",
            "a.jsonl",
            '{"audio": "a.wav", "text": "cut \\ud83d", "lang": "bg"}',
            r"a\.jsonl, line 1: '\\ud83d' is half a character",
        ),
        ("jsonl", "a.txt", "", r"holds no \*\.jsonl"),
        ("table", "a.csv", "path,text\na.wav\n", "line 2: 1 cells for 2 columns"),
        ("table", "a.csv", '\npath,text,lang\n\na,"x\n\ny",bg\n\na\n', "line 8: 1 cells for 3 columns"),
        ("table", "a.csv", '\npath,text\na.wav,"x\ny"\nb.wav,"\nz"\n', r"line 3: no language"),
        ("table", "a.tsv", 'path\ttext\tlang\n \t \n\na\t"x\tbg\na\n', "line 5: 1 cells for 3 columns"),
        ("table", "a.tsv", "path\tpath\n", "each once"),
        (
            "table",
            "a.csv",
            '\npath,text\na.wav,"x\n\n',
            r"a\.csv, line 3: no row of CSV \(.*\): fix the",
        ),
        ("nemo", "a.json", '{"audio": "a.wav"}', "is it a NeMo manifest"),
        ("nemo", "a.json", '{"audio_filepath": "a.wav", "shard_id": 0}', "shards index"),
        ("kaldi", "text", "", r"holds no wav\.scp"),
        ("kaldi", "wav.scp", "a a.wav\n", "text is missing"),
        ("lhotse", "a.jsonl", '{"id": "c", "start": 0}', "not a cut of Lhotse"),
        ("lhotse", "a.jsonl", json.dumps(cut(start=-9)), "line 1: supervision s-1 lies outside"),
        (
            "lhotse",
            "a.jsonl",
            json.dumps(cut(duration=9e999)).replace('"duration": 1.0', '"duration": Infinity'),
            "line 1: supervision s-1 lies outside",
        ),
        ("huggingface", "a.arrow", "", "no state.json"),
        ("common_voice", "a.tsv", "", "holds no LANGUAGE/clips"),
        ("fleurs", "a.tsv", "", r"holds no LANGUAGE/test\.tsv"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, recipe: str, name: str, content: str, says: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / name).write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        build(recipe, source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_gzip_of_rubbish_or_of_endless_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="can't be read"):
        build("jsonl", tmp_path, tmp_path / "out")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * 10_000_000))
    monkeypatch.setattr("salsa_dist.corpus.manifest.MAX_LINE", 1 << 20)
    with pytest.raises(UserError, match="has more than 1048576 characters"):
        build("jsonl", tmp_path, tmp_path / "out")
    assert tree(tmp_path).keys() == {"a.jsonl.gz"}
