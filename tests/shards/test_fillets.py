"""The recipes of Fish Fillets on a made-up tree in the package's layout."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from salsa_dist.corpus.build import build
from salsa_dist.corpus.lint import Bounds, lint
from salsa_dist.corpus.recipes import load_recipe
from salsa_dist.corpus.tar_samples import found
from salsa_dist.corpus.utterance import Ask
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.shards import read_facts
from salsa_dist.errors import UserError

LEVELS = ("airplane", "cellar", "gods", "key", "wreck")
WORDS = ("ryba", "voda", "ocel", "police", "kniha", "mapa")


def dialogue(name: str, character: str, text: str, english: str = "What?") -> str:
    return f'\ndialogId("{name}", "{character}", "{english}")\ndialogStr("{text}")\n\n'


def record(source: Path, folder: str, names: list[str]) -> None:
    wave = 0.3 * np.sin(np.arange(8_000) / 3)
    for name in names:
        path = source / f"sound/{folder}/{name}.ogg"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, 22_050)


def script(source: Path, name: str, text: str) -> None:
    path = source / "script" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    recipe = load_recipe("fillets")
    monkeypatch.setattr(recipe, "TEST_CLIPS", 6)
    monkeypatch.setattr(recipe, "DEV_CLIPS", 3)
    folder = tmp_path / "fillets-ng"
    for number, level in enumerate(LEVELS):
        lines = [("font_small", f"Jé, {word} {number}...") for word in WORDS]
        lines += [("font_big", f"Ta {word} {number}?") for word in WORDS]
        # Two lines of a character of the level's own, to hold out.
        lines += [(f"font_viking{number}", f"{word} Vikingů {number}") for word in WORDS[:2]]
        if level in ("airplane", "key", "wreck"):
            lines.append(("font_big", "Ano!"))  # in several levels, so perhaps in several splits
        names = [f"{level[:3]}-{i}" for i in range(len(lines))]
        text = "".join(dialogue(name, *line) for name, line in zip(names, lines, strict=True))
        if level == "gods":
            names += ["b1-a", "vit-hs", "dlouhy", "both", "quotes"]
            text += dialogue("b1-a", "font_yellow", "A%1.") + dialogue("vit-hs", "", "")
            text += '\ndialogId("dlouhy", "font_big",\n    "Long.")\ndialogStr(\n"Dlouhý\\ntext.")\n'
            text += dialogue("both", "font_both", "Tak jo!")
            text += dialogue("quotes", "font_big", r"V C:\\WINDOWS\\CONFIG \"spí\".", r"\"Sleeps\"")
            text += dialogue("silent", "font_big", "Nikdo nic neřekl.")
            text += '-- dialogId("quoted-out", "font_big", "No.")\n-- dialogStr("Ne.")\n'
        script(folder, f"{level}/dialogs_cs.lua", text)
        record(folder, f"{level}/cs", names)
        dutch = dialogue(names[0], "font_small", f"Hé, vis {number}") + dialogue(
            names[12], "font_viking0", "Nee"
        )
        script(folder, f"{level}/dialogs_nl.lua", dutch)
        record(folder, f"{level}/nl", names[:1])
    script(folder, "share/bore_dialogs_cs.lua", dialogue("ob-m-ach", "font_small", "Ach jo."))
    script(folder, "share/models.lua", "addModel()")
    record(folder, "share/borejokes/cs", ["ob-m-ach"])
    return folder


def samples(index: ShardIndex) -> dict[str, tuple[str, dict[str, str]]]:
    """Split and facts of each key."""
    return {
        sample.key: (shard.split, read_facts(sample.files, shard.path, sample.key))
        for shard in index.shards
        for sample in found(Path(str(index.folder)) / shard.path)
    }


def apart(kept: dict[str, tuple[str, dict[str, str]]], what: str) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for split, facts in kept.values():
        value = facts["extra"]["level"] if what == "level" else facts.get(what)  # type: ignore[index]
        if value is not None:
            parts[split].add(value)
    assert all(parts.values())
    return parts


def disjoint(parts: dict[str, set[str]]) -> bool:
    return len(set().union(*parts.values())) == sum(map(len, parts.values()))


def test_by_level(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Five levels are each more than a tenth of the clips.
    monkeypatch.setattr(load_recipe("fillets"), "MOST", 0.5)
    index = build("fillets", source, tmp_path / "out", Ask(languages=("cs",)))
    kept = samples(index)
    assert disjoint(apart(kept, "level"))
    assert disjoint(apart(kept, "text"))
    assert not disjoint(apart(kept, "speaker"))
    dropped = index.recipe["dropped"]["cs"]
    held = dropped.pop("its text is held out")
    assert held in (1, 2)
    assert dropped == {
        "a number that the game puts in": 1,
        "no text": 1,
        "not recorded in this language": 1,
    }
    assert len(kept) == 5 * 14 + 3 + 4 - held
    facts = kept["cs/gods/quotes"][1]
    assert facts["text"] == r'V C:\WINDOWS\CONFIG "spí".'
    assert facts["speaker"] == "big"
    assert facts["extra"] == {"level": "gods"}
    assert kept["cs/gods/both"][1]["speaker"] is None
    assert kept["cs/gods/dlouhy"][1]["text"] == "Dlouhý text."
    assert kept["cs/borejokes/ob-m-ach"][1]["text"] == "Ach jo."
    assert lint(index.folder, Bounds()) == ([], len(kept))


def test_by_character(source: Path, tmp_path: Path) -> None:
    index = build("fillets_characters", source, tmp_path / "out")
    kept = samples(index)
    speakers = apart(kept, "speaker")
    assert disjoint(speakers)
    assert disjoint(apart(kept, "text"))
    assert {"small", "big"} <= speakers["train"]
    assert lint(index.folder, Bounds()) == ([], len(kept))
    assert "by character and text: cs" in (tmp_path / "out/README.md").read_text()


def test_what_is_not_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are too few: test and dev take 9"):
        build("fillets", source, tmp_path / "out", Ask(languages=("nl",)))
    with pytest.raises(UserError, match=r"no clips in cs: name the folder with 'script'"):
        build("fillets", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no utterances in bg"):
        build("fillets", source, tmp_path / "out", Ask(languages=("bg",)))
    with pytest.raises(UserError, match="no utterances in nl"):
        build("fillets_characters", source, tmp_path / "out", Ask(languages=("nl",)))
