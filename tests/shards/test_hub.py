"""Data sets of a hub: local folders in a hub's layout, which `datasets` streams by the same calls."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import soundfile
from clips import pitch, samples, tone, tree, wave
from hub_stand_in import COMMIT, hub

from salsa_dist.corpus import streamed
from salsa_dist.corpus.build import build
from salsa_dist.corpus.utterance import Ask
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError

datasets = pytest.importorskip("datasets")


def clip(hz: float) -> dict[str, Any]:
    out = io.BytesIO()
    soundfile.write(out, tone(0.5, hz, 16_000), 16_000, format="WAV")
    return {"bytes": out.getvalue(), "path": "clip.wav"}


def parquet(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    for name, part in rows.items():
        table = datasets.Dataset.from_list(part).cast_column("audio", datasets.Audio())
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def common_voice(folder: Path, count: int = 5) -> Path:
    def part(name: str, n: int) -> list[dict[str, Any]]:
        said = [f"{name} {i}" for i in range(n)]
        return [
            {
                "audio": clip(300 + 100 * i),
                "sentence": text,
                "locale": "bg",
                "client_id": name,
                "age": i,
            }
            for i, text in enumerate(said)
        ]

    rows = {name: part(name, n) for name, n in (("train", count), ("validation", 1), ("test", 2))}
    rows["train"][1]["sentence"] = None
    rows["train"][2]["audio"] = None
    return parquet(folder, {f"data/{name}": part for name, part in rows.items()})


def test_parquet_by_its_splits(tmp_path: Path) -> None:
    home = common_voice(tmp_path / "set")
    with pytest.raises(
        UserError, match=r"2 of 8 utterances in bg can't be used \(1 no text, 1 no audio"
    ):
        build("hub", home, tmp_path / "none")
    index = build("hub", home, tmp_path / "out", max_dropped=0.3)
    found = samples(index)
    assert {k: (split, f["text"], f["speaker"]) for k, (split, _, f) in found.items()} == {
        "bg/train-00000000": ("train", "train 0", "train"),
        "bg/train-00000003": ("train", "train 3", "train"),
        "bg/train-00000004": ("train", "train 4", "train"),
        "bg/validation-00000000": ("dev", "validation 0", "validation"),
        "bg/test-00000000": ("test", "test 0", "test"),
        "bg/test-00000001": ("test", "test 1", "test"),
    }
    assert abs(pitch(found["bg/train-00000003"][1]) - 600) < 5
    assert found["bg/train-00000003"][2]["extra"] == {"age": 3}
    assert index.recipe["dropped"] == {"bg": {"no audio": 1, "no text": 1}}
    assert not list(tmp_path.glob(".out*"))  # nothing of the fetch stays


def test_splits_that_are_no_train_dev_or_test_are_not_taken_unasked(tmp_path: Path) -> None:
    home = common_voice(tmp_path / "set")
    other = [{"audio": clip(900), "sentence": "unverified", "locale": "bg", "client_id": "x", "age": 1}]
    parquet(home, {"data/other": other})
    card = "configs:\n- config_name: default\n  data_files:\n"
    for name in ("train", "validation", "test", "other"):
        (part,) = home.rglob(f"{name}-*")
        card += f"  - split: {name}\n    path: {part.relative_to(home)}\n"
    (home / "README.md").write_text(f"---\n{card}---\n")
    with pytest.raises(UserError, match=r"'other' is none of .*: name those to take with --split"):
        build("hub", home, tmp_path / "out")
    build("hub", home, tmp_path / "out", Ask(splits=("train", "test")), max_dropped=0.5)


def test_one_split_and_columns_by_name(tmp_path: Path) -> None:
    rows = [{"audio": clip(500), "said": "едно", "who": 7}]
    home = parquet(tmp_path / "set", {"data/train": rows, "data/test": rows})
    columns = {"text": "said", "speaker": "who"}
    ask = Ask(language="bg", columns=columns, splits=("test",))
    ((split, _, facts),) = samples(build("hub", home, tmp_path / "out", ask)).values()
    assert (split, facts["text"], facts["speaker"]) == ("test", "едно", "7")
    with pytest.raises(UserError, match="was built with another splits"):
        build("hub", home, tmp_path / "out", Ask(language="bg", columns=columns))


def test_audio_files_beside_a_metadata_jsonl(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(2):
            wave(tmp_path / f"set/{split}/audio/{i}.wav", hz=300 + 100 * i)
        rows = [
            {"file_name": f"audio/{i}.wav", "text": f"{split} {i}", "language": "el"} for i in range(2)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"set/{split}/metadata.jsonl").write_text(text)
    found = samples(build("hub", tmp_path / "set", tmp_path / "out"))
    assert {(split, f["text"]) for split, _, f in found.values()} == {
        ("train", "train 0"),
        ("train", "train 1"),
        ("test", "test 0"),
        ("test", "test 1"),
    }
    assert abs(pitch(found["el/test-00000001"][1]) - 400) < 5


def test_a_stopped_fetch_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "SAVE_EVERY", 2)
    home = common_voice(tmp_path / "set", count=9)
    build("hub", home, tmp_path / "whole", max_dropped=0.2)
    keep, kept = streamed._keep, []

    def stops(raw: bytes | None, folder: Path, number: int) -> str | None:
        if len(kept) == 5:
            raise KeyboardInterrupt
        kept.append(number)
        return keep(raw, folder, number)

    monkeypatch.setattr(streamed, "_keep", stops)
    with pytest.raises(KeyboardInterrupt):
        build("hub", home, tmp_path / "out", max_dropped=0.2)
    assert not (tmp_path / "out").exists()
    again: list[int] = []
    monkeypatch.setattr(
        streamed, "_keep", lambda raw, folder, n: again.append(n) or keep(raw, folder, n)
    )
    build("hub", home, tmp_path / "out", max_dropped=0.2)
    assert again[:5] == [4, 5, 6, 7, 8]  # four rows were done and said so
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_path_in_a_table_is_not_opened(tmp_path: Path) -> None:
    secret = wave(tmp_path / "secret.wav")
    rows = [
        {"audio": {"bytes": None, "path": str(secret)}, "sentence": "mine", "locale": "bg"},
        {"audio": clip(500), "sentence": "theirs", "locale": "bg"},
    ]
    home = parquet(tmp_path / "set", {"data/train": rows})
    index = build("hub", home, tmp_path / "out", max_dropped=0.5)
    assert [f["text"] for _, _, f in samples(index).values()] == ["theirs"]
    assert index.recipe["dropped"] == {"bg": {"no audio": 1}}


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (Ask(splits=("dev",)), "has no split dev: there are train, validation, test"),
        (Ask(revision="main"), "is a folder, which has no --revision"),
        (Ask(subset="fr"), "BuilderConfig 'fr' not found"),
        (Ask(columns={"audio": "sound"}), "no column of audio among audio, sentence"),
        (Ask(columns={"text": "words"}), "train of the data set, row 0: no column 'words'"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(tmp_path: Path, ask: Ask, says: str) -> None:
    home = common_voice(tmp_path / "set")
    with pytest.raises(UserError, match=says) as caught:
        build("hub", home, tmp_path / "out", ask)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_loading_script_does_not_run(tmp_path: Path) -> None:
    home = tmp_path / "set"
    home.mkdir()
    (home / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="a loading script, which is never run"):
        build("hub", home, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_only_this_recipe_takes_a_revision(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are of recipe hub, not of jsonl"):
        build("jsonl", tmp_path, tmp_path / "out", Ask(revision="main"))


@pytest.fixture
def refusing() -> Iterator[str]:
    """A hub on loopback that knows no data set, and one that is gated."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gated = "gated" in self.path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "setting", "says"),
    [
        ("org/unknown", {}, "org/unknown: no folder here and no data set on the hub"),
        ("org/gated", {}, "org/gated: its publisher asks for consent: give it on its page"),
        ("org/any", {"HF_HUB_OFFLINE": "1"}, "the hub can't be reached: look at the network"),
        ("org/any", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub can't be reached"),
        ("org/a/b", {}, "org/a/b: can't be read (Repo id must be"),
    ],
)
def test_a_hub_that_refuses(
    tmp_path: Path, refusing: str, name: str, setting: dict[str, str], says: str
) -> None:
    env = {**os.environ, "HF_ENDPOINT": refusing, "HF_HOME": str(tmp_path / "hf"), **setting}
    command = [
        sys.executable,
        "-m",
        "salsa_dist",
        "shards",
        "build",
        "hub",
        name,
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.glob("*out*"))


def build_from(address: str, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    env.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", "salsa_dist", "shards", "build", "hub", "org/set", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)


def contents(shards: Path) -> dict[str, bytes | dict[str, Any]]:
    """Every file of every tar, in their order; of a sample's facts all but where it came from."""
    found: dict[str, bytes | dict[str, Any]] = {}
    for path in sorted(shards.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                raw = file.read()
                if member.name.endswith(".json"):
                    facts = json.loads(raw)
                    assert facts.pop("source")
                    found[member.name] = facts
                else:
                    found[member.name] = raw
    return found


def test_by_name_and_revision_only_the_splits_asked_for_are_fetched(tmp_path: Path) -> None:
    home = common_voice(tmp_path / "set", count=200)
    train, test = (home / f"data/{name}-00000-of-00001.parquet" for name in ("train", "test"))
    sent: Counter[str] = Counter()
    ask = ("--split", "test", "--revision", COMMIT)
    with hub("org/set", home, "datasets", sent) as (address, _):
        done = build_from(address, tmp_path / "hf", str(tmp_path / "out"), *ask)
        assert done.returncode == 0, done.stderr
        assert sent[test.name] >= test.stat().st_size
        assert sent[train.name] < train.stat().st_size / 10  # no more than its footer, for the columns
        wrong = build_from(address, tmp_path / "hf", str(tmp_path / "none"), "--revision", "v9")
    assert wrong.returncode == 2
    assert "the hub has no such --revision of it" in wrong.stderr
    local = build("hub", home, tmp_path / "local", Ask(splits=("test",)))
    index = ShardIndex.load(tmp_path / "out")
    assert f"commit {COMMIT}" in index.recipe["source"]
    assert [s.path for s in index.shards] == [s.path for s in local.shards]
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
    assert not list((tmp_path / "hf").rglob("*.parquet"))


def card(folder: Path, subset: str, place: str) -> None:
    """The head of a data set's card, which names its parts."""
    lines = [
        f"  - split: {s}\n    path: {place}/{s}-*\n" for s in ("train", "validation", "test", "dev")
    ]
    lines = [line for line in lines if list((folder / place).glob(f"{line.split()[2]}-*"))]
    head = f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n{''.join(lines)}---\n"
    (folder / "README.md").write_text(head)


def built(home: Path, out: Path, ask: Ask | None = None) -> ShardIndex:
    """A build, which was made twice to the same bytes."""
    build("hub", home, out.parent / "again", ask)
    index = build("hub", home, out, ask)
    assert tree(out) == tree(out.parent / "again")
    return index


def test_ascend(tmp_path: Path) -> None:
    def row(i: int, text: str, mark: str) -> dict[str, Any]:
        about = {"id": f"{i:05d}", "path": f"waves/{i}.wav", "duration": 0.5, "language": mark}
        who = {"original_speaker_id": i, "session_id": 1, "topic": "technology"}
        return {**about, "audio": clip(300), "transcription": text, **who}

    home = tmp_path / "CAiRE/ASCEND"
    rows = [row(1, "那个 [UNK] nice to meet you", "mixed"), row(2, "[UNK]", "zh")]
    parts = {"train": rows, "validation": [row(3, "嗯", "zh")], "test": [row(4, "okay", "en")]}
    parquet(home, {f"main/{name}": part for name, part in parts.items()})
    card(home, "main", "main")
    index = built(home, tmp_path / "out")
    assert {
        (s, f["text"], f["speaker"], f["extra"]["mark"]) for s, _, f in samples(index).values()
    } == {
        ("train", "那个 nice to meet you", "1", "mixed"),
        ("dev", "嗯", "3", "zh"),
        ("test", "okay", "4", "en"),
    }
    assert index.recipe["licence"] == "CC-BY-SA-4.0"
    assert index.recipe["languages"] == ["zh-en"]
    assert index.recipe["touched"] == {"zh-en": {"unknown words": 2}}


def test_cs_fleurs(tmp_path: Path) -> None:
    home = tmp_path / "byan/cs-fleurs"
    for part in ("read/test", "mms/test"):
        wave(home / part / "audio/1.wav", rate=16_000)
        about = {"id": "1", "duration": 0.5, "fluency": 4, "language": "cmn-eng", "speaker": "s1"}
        row = {**about, "file_name": "audio/1.wav", "text": f"今天 good {part[:3]}"}
        (home / part / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="is a collection: say which part with --subset read"):
        build("hub", home, tmp_path / "out")
    index = built(home, tmp_path / "out", Ask(subset="read"))
    ((key, (split, _, facts)),) = samples(index).items()
    assert (key, split, facts["text"]) == ("zh-en/test-00000000", "test", "今天 good rea")
    assert (facts["speaker"], facts["licence"]) == ("s1", "CC-BY-NC-4.0")


def test_omnilingual(tmp_path: Path) -> None:
    home = tmp_path / "facebook/omnilingual-asr-corpus"
    row = {"audio": clip(300), "raw_text": "ciao <laugh> mondo", "speaker_id": "7", "prompt_id": "12"}
    row |= {
        "prompt": "Tell of your day.",
        "segment_id": "s01",
        "duration": 0.5,
        "glottocode": "geno1240",
    }
    parquet(home, {f"data/lij_Latn/{name}": [row] for name in ("train", "dev", "test")})
    card(home, "lij_Latn", "data/lij_Latn")
    index = built(home, tmp_path / "out", Ask(subset="lij_Latn"))
    found = samples(index)
    assert {split for split, _, _ in found.values()} == {"train", "dev", "test"}
    assert {key.split("/")[0] for key in found} == {"lij_Latn"}
    assert {f["text"] for _, _, f in found.values()} == {"ciao mondo"}
    assert index.recipe["licence"] == "CC-BY-4.0"


def test_myst_of_a_hub(tmp_path: Path) -> None:
    home = tmp_path / "MagicLuke/MyST"
    row = {"audio": clip(300), "transcription": "a <breath> battery", "speaker_id": "002004"}
    rows = [row, {**row, "transcription": None}, {**row, "transcription": "(*)"}]
    parquet(home, {f"data/{name}": rows for name in ("train", "validation", "test")})
    index = built(home, tmp_path / "out")
    found = {(split, f["text"], f["speaker"]) for split, _, f in samples(index).values()}
    assert found == {(split, "a battery", "002004") for split in ("train", "dev", "test")}
    assert index.recipe["dropped"] == {"en": {"no transcript": 3, "not intelligible": 3}}
    assert index.recipe["touched"] == {"en": {"noises": 3}}
    assert "licensed by the LDC; not to be passed on" in index.recipe["licence"]


def test_redmond_sentence_recall(tmp_path: Path) -> None:
    whole = parquet(
        tmp_path / "xlab-ub/Redmond-Sentence-Recall", {"data/train": [{"audio": clip(300)}]}
    )
    with pytest.raises(UserError, match="holds recordings of whole tests and no transcripts: write a"):
        build("hub", whole, tmp_path / "out")
    home = tmp_path / "MagicLuke/Redmond-Sentence-Recall"
    said = "<he was> [/] he &-um was &+ki (.) kicked xxx &=laughs ."
    row = {"audio": clip(300), "text": said, "speaker_id": "RSR_1", "sentence_id": 4}
    other = {**row, "text": "xxx", "sentence_id": 5}
    parquet(home, {f"sentence/{name}": [row, other] for name in ("train", "validation", "test")})
    card(home, "sentence", "sentence")
    with pytest.raises(UserError, match="is a collection: say which part with --subset sentence"):
        build("hub", home, tmp_path / "out")
    index = built(home, tmp_path / "out", Ask(subset="sentence"))
    found = {
        (f["text"], f["speaker"], f["extra"]["sentence_id"]) for _, _, f in samples(index).values()
    }
    assert found == {("he was he um was kicked .", "RSR_1", 4)}
    assert index.recipe["dropped"] == {"en": {"nothing said": 3}}
    assert index.recipe["touched"]["en"]["codes"] == 3
    assert (index.recipe["languages"], index.recipe["splits"]) == (["en"], {"en": "the corpus's own"})


def test_a_bug_of_ours_does_not_read_as_a_fault_of_the_data_set() -> None:
    with pytest.raises(AttributeError), streamed.told("a/b"):
        streamed._bytes(7)
    with pytest.raises(UserError, match=r"^a/b: can't be read") as caught, streamed.told("a/b"):
        json.loads("{")
    assert isinstance(caught.value.__cause__, ValueError)
