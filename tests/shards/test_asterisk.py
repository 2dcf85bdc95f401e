"""The recipe of Asterisk's prompts on a made-up tree in the packages' layout."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import read_range

from salsa_dist.corpus.build import build
from salsa_dist.corpus.lint import Bounds, lint
from salsa_dist.corpus.recipes import load_recipe
from salsa_dist.corpus.utterance import Ask
from salsa_dist.data.shards import read_sample
from salsa_dist.errors import UserError

FRUITS = ("apple", "cherry", "grape", "lemon", "mango", "olive", "peach", "plum")
SECONDS = 0.8


def listed() -> dict[str, str]:
    """What the list says of each prompt."""
    texts = {f"digits/{fruit}": fruit for fruit in FRUITS}
    texts |= {f"menu-{fruit}": f"One {fruit}, two {fruit}, three {fruit}, four." for fruit in FRUITS}
    # The last six words of a prompt above.
    texts |= {f"menu-{fruit}-b": f"... {fruit} two {fruit} three {fruit} four" for fruit in FRUITS}
    return texts | {
        "again": "Ripe plum",
        "again-b": "... ripe plum ...",
        "letters/at": "at [@]",
        "loud": "3 users umute the  conference",
        "beep": "[a beep tone]",
        "silence/1": "(1 second of silence)",
        "join": "<beep ascending>",
        "noted": 'IAX (note: does not say "2")',
        "toggle": "press * to toggle pause",
        "spy-sip": "SIP",
        "spy-misdn": "M I S D N",
        "unrecorded": "Nobody said this.",
        "dots": "...",
    }


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(load_recipe("fillets"), "TEST_CLIPS", 9)
    monkeypatch.setattr(load_recipe("fillets"), "DEV_CLIPS", 6)
    folder = tmp_path / "share"
    sounds = folder / "asterisk/sounds/en_US_f_Allison"
    wave = 0.3 * np.sin(np.arange(int(8_000 * SECONDS)) / 3)
    for name in listed().keys() - {"unrecorded"}:
        path = sounds / f"{name}.gsm"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, 8_000, format="RAW", subtype="GSM610")
    lines = "".join(f"{name}: {text}\n" for name, text in listed().items())
    written = folder / "doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    written.parent.mkdir(parents=True)
    written.write_bytes(gzip.compress(f"; Core: sounds in English\n\n{lines}".encode()))
    return folder


def test_clips_texts_and_splits(source: Path, tmp_path: Path) -> None:
    index = build("asterisk", source, tmp_path / "out")
    assert lint(index.folder, Bounds()) == ([], 3 * len(FRUITS) + 4)
    split, facts, audio = {}, {}, {}
    for shard in index.shards:
        for entry in shard.entries:
            raw = read_range(index.folder / shard.path, entry)
            audio[entry.key], facts[entry.key] = read_sample(raw, shard.path, entry.key)
            split[entry.key] = shard.split
    assert set(split.values()) == {"train", "dev", "test"}
    for fruit in FRUITS:
        assert split[f"en/menu-{fruit}"] == split[f"en/menu-{fruit}-b"]
    assert split["en/again"] == split["en/again-b"]

    texts = {key.removeprefix("en/"): fact["text"] for key, fact in facts.items()}
    assert texts["menu-plum-b"] == "plum two plum three plum four"
    assert texts["again-b"] == "ripe plum"
    assert texts["letters/at"] == "at"
    assert texts["loud"] == "3 users unmute the conference"
    kinds = {key: facts[f"en/{key}"]["extra"] for key in ("letters/at", "loud")}
    assert kinds == {"letters/at": {"kind": "letters"}, "loud": {"kind": "prompts"}}
    assert {(f["speaker"], f["licence"]) for f in facts.values()} == {("Allison Smith", "CC-BY-SA-3.0")}
    assert index.recipe["dropped"]["en"] == {
        "no speech": 3,
        "a note in the text": 1,
        "signs not read as written": 1,
        "an abbreviation alone": 2,
        "not recorded": 1,
        "nothing said": 1,
    }
    assert index.recipe["touched"]["en"] == {
        "dots": len(FRUITS) + 2,
        "signs after their names": 1,
        "misspelt words": 1,
    }


def test_the_codec_is_decoded(source: Path, tmp_path: Path) -> None:
    index = build("asterisk", source, tmp_path / "out", Ask(rate=None))
    shard = index.shards[0]
    entry = shard.entries[0]
    audio, facts = read_sample(read_range(index.folder / shard.path, entry), shard.path, entry.key)
    assert facts["seconds"] == SECONDS
    wave = np.sin(np.arange(len(audio)) / 6)
    assert len(audio) == 16_000 * SECONDS
    assert np.corrcoef(audio[4_000:], wave[4_000:])[0, 1] > 0.9


def test_what_is_not_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no utterances in bg: look at the source"):
        build("asterisk", source, tmp_path / "out", Ask(languages=("bg",)))
    written = source / "doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    written.write_bytes(written.read_bytes()[:50])
    with pytest.raises(UserError, match=r"core-sounds-en\.txt\.gz can't be read"):
        build("asterisk", source, tmp_path / "out")
    with pytest.raises(UserError, match=r"is not there: name the folder usr/share of asterisk"):
        build("asterisk", source / "doc", tmp_path / "out")
