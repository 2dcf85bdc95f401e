"""Recipe: the spoken names of Tux Paint's stamps, short clips in a dozen languages.

Source: Debian's `tuxpaint-stamps-default` (GPL-2); `demo/fetch.py` fetches and unpacks it.

    stamps/animals/birds/owl.txt            An owl.            the first line is English
                                            bg.utf8=Сова.      the others name their language
    stamps/animals/birds/owl_desc.ogg       English speech
    stamps/animals/birds/owl_desc_bg.ogg    Bulgarian speech   (some few are .wav)

    clip ─► 16 kHz mono, NFC text ─► filters ─► groups of one text ─► train, dev, test ─► shards

Train, dev and test share no text. They do share speakers and subject: nearly every language has one
voice, so results on `test` are in-domain. Ages are not stated; these are not children's voices. A
language with no more clips than test and dev take, such as English, has a test split alone: it shows
what an adapter of another language does to it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from salsa_dist.corpus.text import clean, same
from salsa_dist.corpus.utterance import Ask, Corpus, Utterance
from salsa_dist.data.audio import header_seconds
from salsa_dist.errors import UserError

LICENCE = "GPL-2"
SOURCE = "Debian tuxpaint-stamps-default"
MIN_SECONDS = 0.3
# Some texts were rewritten after their recording, most of them Greek. Nobody speaks faster than this,
# so a longer text is not what is said.
MAX_CHARACTERS_PER_SECOND = 25
# Longer clips are stories told, not names.
MAX_SECONDS = 4.5
DEV_CLIPS = 60
TEST_CLIPS = 120
# A language needs this many for a test set, a dev set and something to learn from.
MIN_CLIPS = 300

_CLIP = re.compile(r"(?P<stem>.+)_desc(?:_(?P<language>[A-Za-z_]+))?(?:\.(?:ogg|wav|flac|mp3))+")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The usable clips of the languages asked for, or of all that have enough."""
    clips = find_clips(source)
    languages = ask.languages
    if languages is None:
        languages = tuple(sorted(lang for lang, found in clips.items() if len(found) >= MIN_CLIPS))
    unknown = [lang for lang in languages if lang not in clips]
    if unknown or not languages:
        there = ", ".join(f"{lang} ({len(found)})" for lang, found in sorted(clips.items()))
        raise UserError(
            f"{source} has no clips in {', '.join(unknown) or 'any language'}; it has "
            f"{there or 'none at all: name the folder of unpacked stamps'}"
        )
    dropped: dict[str, Counter[str]] = {}
    found: list[Utterance] = []
    for language in languages:
        counts = dropped.setdefault(language, Counter())
        usable = utterances(source, clips[language], language, counts)
        found += split_by_text(usable, ask.seed)
    return Corpus(
        found,
        LICENCE,
        SOURCE,
        text_rules=("the first line, or the line 'xx.utf8=', of a stamp's text file",),
        dropped=dropped,
        facts={
            "splits": "by casefolded words without punctuation: no text is in two splits",
            "dev_clips": DEV_CLIPS,
            "test_clips": TEST_CLIPS,
            "min_seconds": MIN_SECONDS,
            "max_seconds": MAX_SECONDS,
            "max_characters_per_second": MAX_CHARACTERS_PER_SECOND,
        },
        ordered=True,
    )


def find_clips(source: Path) -> dict[str, dict[str, Path]]:
    """For each language, the audio file of each stem (its path below `source`)."""
    clips: dict[str, dict[str, Path]] = {}
    for path in sorted(source.rglob("*_desc*")):
        if match := _CLIP.fullmatch(path.relative_to(source).as_posix()):
            clips.setdefault(match["language"] or "en", {}).setdefault(match["stem"], path)
    return clips


def utterances(
    source: Path, clips: dict[str, Path], language: str, dropped: Counter[str]
) -> list[Utterance]:
    """The usable clips, by key; why others were dropped is counted in `dropped`."""
    found = []
    for stem, path in sorted(clips.items()):
        text = read_text(source / f"{stem}.txt", language)
        if not same(text):
            dropped["no text"] += 1
            continue
        seconds = header_seconds(path)
        if seconds is None:
            dropped["unreadable audio"] += 1
        elif seconds > MAX_SECONDS:
            dropped[f"longer than {MAX_SECONDS} s"] += 1
        elif seconds < MIN_SECONDS:
            dropped[f"shorter than {MIN_SECONDS} s"] += 1
        elif len(text) > MAX_CHARACTERS_PER_SECOND * seconds:
            dropped[f"more than {MAX_CHARACTERS_PER_SECOND} characters a second"] += 1
        else:
            key = re.sub(r"[^A-Za-z0-9_/-]", "_", stem)
            found.append(Utterance(key, path, text, language))
    return found


def read_text(path: Path, language: str) -> str:
    """What the file says for `language`, cleaned; empty where it says nothing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    if language == "en":
        text = lines[0] if lines else ""
    else:
        prefix = f"{language}.utf8="
        text = next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "")
    return clean(text)


def split_by_text(usable: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Deal whole texts to test until it has `TEST_CLIPS`, then to dev, then to train.

    If nothing is left for train, all clips are test.
    """
    groups: dict[str, list[Utterance]] = {}
    for utterance in usable:
        groups.setdefault(same(utterance.text), []).append(utterance)
    texts = sorted(groups)
    random.Random(seed).shuffle(texts)
    dealt: list[Utterance] = []
    counts: Counter[str] = Counter()
    for text in texts:
        if counts["test"] < TEST_CLIPS:
            split = "test"
        elif counts["dev"] < DEV_CLIPS:
            split = "dev"
        else:
            split = "train"
        counts[split] += len(groups[text])
        dealt += [replace(utterance, split=split) for utterance in groups[text]]
    return dealt if counts["train"] else [replace(clip, split="test") for clip in dealt]
