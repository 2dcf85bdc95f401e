"""Recipe: the dialogues of Fish Fillets, sentences acted in Czech and Dutch, dealt by level.

Source: Debian's `fillets-ng-data` (texts), `fillets-ng-data-cs` and `fillets-ng-data-nl` (speech),
GPL-2, unpacked into one folder; `python demo/fetch.py fillets` fetches and unpacks them.

    script/briefcase/dialogs_cs.lua     dialogId("kuf-m-je", "font_small", "Oh no, not again...")
                                        dialogStr("Jé, už zase...")       name, character, English; text
    sound/briefcase/cs/kuf-m-je.ogg     22.05 kHz, Czech
    script/share/bore_dialogs_cs.lua    lines of no level, whose sound is in sound/share/borejokes

The speaker is the character: the font in which the game shows the line. Nearly all lines are of two
fish, `small` and `big`; Dutch has no others. Some Czech characters have voice effects, and the names of
colours stand for whoever speaks in that colour in a level. One actor may speak several characters.

Whole levels are test and dev, the rest is train. A text that is held out is left out of train, too.
Splits share the two fish, so results are in-domain for voices; `fillets_characters` holds characters
out.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from salsa_dist.corpus.text import clean, same
from salsa_dist.corpus.utterance import Ask, Corpus, Drops, Utterance, key
from salsa_dist.errors import UserError

LICENCE = "GPL-2"
SOURCE = "Debian fillets-ng-data, fillets-ng-data-cs, fillets-ng-data-nl"
LANGUAGES = ("cs", "nl")
# At least so many clips a language are held out, in whole levels or characters.
TEST_CLIPS = 150
DEV_CLIPS = 75
# A level or character with more than this share of a language's clips is train.
MOST = 0.1
BY_LEVEL = "by text, in whole levels"

_STRING = r'"((?:[^"\\]|\\.)*)"'
# A line that begins otherwise, such as with "--", is no dialogue.
_NAME = rf"^[ \t]*dialogId\(\s*{_STRING}\s*,\s*{_STRING}\s*,\s*{_STRING}\s*\)"
_DIALOGUE = re.compile(rf"{_NAME}(?:\s*dialogStr\(\s*{_STRING}\s*\))?", re.MULTILINE)
_FILE = re.compile(r"(?:(?P<prefix>\w+)_)?dialogs_(?P<language>[a-z]+)\.lua")
# Where the sound of lines in script/share is; those of a level are in the level's folder.
_SHARED = {"bore": "borejokes", "black": "blackjokes", "border": "border", "shout": "border"}
# Both fish at once: no speaker of its own.
_BOTH = "both"


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The clips of the languages asked for, in splits of whole levels."""
    return dealt(source, ask, LANGUAGES, lambda clip: str(clip.extra["level"]), BY_LEVEL)


def dealt(
    source: Path, ask: Ask, languages: Sequence[str], unit: Callable[[Utterance], str | None], how: str
) -> Corpus:
    """The corpus, with no unit and no text in two splits; clips without a unit are train."""
    drops = Drops()
    found: list[Utterance] = []
    wanted = [language for language in languages if ask.wants(language)]
    for language in wanted:
        clips = list(utterances(source, language, drops))
        if not clips:
            raise UserError(
                f"{source} holds no clips in {language}: name the folder with 'script' and 'sound', "
                f"where fillets-ng-data and fillets-ng-data-{language} are unpacked"
            )
        found += deal(clips, unit, ask.seed, drops)
    return Corpus(
        found,
        LICENCE,
        SOURCE,
        text_rules=("Lua's escapes are resolved",),
        dropped=drops.counts,
        first=drops.first,
        facts={"splits": dict.fromkeys(wanted, how), "dev_clips": DEV_CLIPS, "test_clips": TEST_CLIPS},
    )


def utterances(source: Path, language: str, drops: Drops) -> Iterator[Utterance]:
    """Every dialogue that has a recording in `language` and a text; the others go to `drops`."""
    for script in sorted(source.glob(f"script/*/*dialogs_{language}.lua")):
        level, name = script.parent.name, _FILE.fullmatch(script.name)
        sound = source / "sound" / level
        if level == "share":
            level = _SHARED.get((name and name["prefix"]) or "", "")
            sound /= level
        for dialogue in _DIALOGUE.finditer(script.read_text(encoding="utf-8")):
            called, character, _, text = (_plain(part or "") for part in dialogue.groups())
            audio = sound / language / f"{called}.ogg"
            if not audio.is_file():
                # Only the two fish speak Dutch, and some lines were never recorded.
                drops.add(language, "not recorded in this language", script)
            elif not same(text):
                drops.add(language, "no text", script)
            elif "%1" in text:
                drops.add(language, "a number that the game puts in", script)
            else:
                speaker = character.removeprefix("font_")
                yield Utterance(
                    key=key(f"{level}/{called}"),
                    audio=audio,
                    text=clean(text),
                    language=language,
                    speaker=None if speaker == _BOTH else speaker,
                    table=script,
                    extra={"level": level},
                )


def deal(
    clips: Sequence[Utterance], unit: Callable[[Utterance], str | None], seed: int, drops: Drops
) -> list[Utterance]:
    """Deal whole units to test until it has `TEST_CLIPS`, then to dev, then to train.

    Units with more than the share `MOST` of all clips are train. A text of test is left out of dev and
    train, one of dev out of train.
    """
    sizes = Counter(name for clip in clips if (name := unit(clip)) is not None)
    small = sorted(name for name, size in sizes.items() if size <= MOST * len(clips))
    random.Random(seed).shuffle(small)
    splits: dict[str | None, str] = {}
    held = Counter[str]()
    for name in small:
        split = "test" if held["test"] < TEST_CLIPS else "dev" if held["dev"] < DEV_CLIPS else "train"
        splits[name] = split
        held[split] += sizes[name]
    language = clips[0].language
    if held["dev"] < DEV_CLIPS or sum(held.values()) == len(clips) == held["test"] + held["dev"]:
        raise UserError(
            f"{len(clips)} clips in {language} are too few: test and dev take "
            f"{TEST_CLIPS + DEV_CLIPS}, and nothing is left to train on"
        )
    kept: list[Utterance] = []
    taken: set[str] = set()
    for split in ("test", "dev", "train"):
        part = [clip for clip in clips if splits.get(unit(clip), "train") == split]
        for clip in part:
            if same(clip.text) in taken:
                drops.add(language, "its text is held out", str(clip.table))
            else:
                kept.append(replace(clip, split=split))
        taken |= {same(clip.text) for clip in part}
    return kept


def _plain(lua: str) -> str:
    """What a Lua string stands for; an escaped line break is a space here."""
    return re.sub(r"\\(.)", lambda escape: " " if escape[1] == "n" else escape[1], lua)
