"""Recipe: the spoken names of Tux Paint's stamps, short clips in a dozen languages.

Source: Debian's `tuxpaint-stamps-default` (GPL-2); `demo/fetch.py` fetches and unpacks it.

    stamps/animals/birds/owl.txt            An owl.            the first line is English
                                            bg.utf8=Сова.      the others name their language
    stamps/animals/birds/owl_desc.ogg       English speech
    stamps/animals/birds/owl_desc_bg.ogg    Bulgarian speech   (some few are .wav)

    clip ─► 16 kHz mono, NFC text ─► filters ─► groups of one text ─► train, dev, test ─► shards

Train, dev and test share no text. They do share speakers and subject: nearly every language has one
voice, so results on `test` are in-domain. Ages are not stated; these are not children's voices.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from salsa_dist.data.audio import decode, resample, resampler
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.shards import SAMPLE_RATE, Sample, ShardWriter
from salsa_dist.errors import UserError

NAME = "tuxpaint"
LICENCE = "GPL-2"
SOURCE = "Debian tuxpaint-stamps-default 2022.06.04-1"
MIN_SECONDS = 0.3
# Some texts were rewritten after their recording, most of them Greek. Nobody speaks faster than this,
# so a longer text is not what is said.
MAX_CHARACTERS_PER_SECOND = 25
# Each rank reads shards of its own, so there are several, however few clips a split has.
SHARDS_PER_SPLIT = {"train": 8, "dev": 1, "test": 2}
# A language needs this many for a test set, a dev set and something to learn from.
MIN_CLIPS = 300

_CLIP = re.compile(r"(?P<stem>.+)_desc(?:_(?P<language>[A-Za-z_]+))?(?:\.(?:ogg|wav|flac|mp3))+")


def build(
    source: Path,
    out: Path,
    languages: Sequence[str] | None = None,
    seed: int = 0,
    *,
    max_seconds: float = 4.5,
    dev_clips: int = 60,
    test_clips: int = 120,
) -> ShardIndex:
    """Write the shards of `languages` (all with enough clips where None) to the folder `out`."""
    clips = find_clips(source)
    if languages is None:
        languages = sorted(lang for lang, found in clips.items() if len(found) >= MIN_CLIPS)
    unknown = [lang for lang in languages if lang not in clips]
    if unknown or not languages:
        there = ", ".join(f"{lang} ({len(found)})" for lang, found in sorted(clips.items()))
        raise UserError(
            f"{source} has no clips in {', '.join(unknown) or 'any language'}; it has "
            f"{there or 'none at all: name the folder of unpacked stamps'}"
        )
    dropped: dict[str, dict[str, int]] = {}
    with ShardWriter(out, NAME, seed) as writer:
        for language in languages:
            counts: Counter[str] = Counter()
            read = samples(source, clips[language], language, max_seconds, counts)
            dropped[language] = dict(sorted(counts.items()))
            for split, part in split_by_text(read, seed, dev_clips, test_clips).items():
                writer.write(split, language, part, -(-len(part) // SHARDS_PER_SPLIT[split]))
        index = writer.finish(_facts(dropped, max_seconds, dev_clips, test_clips))
    _print_table(index)
    return index


def find_clips(source: Path) -> dict[str, dict[str, Path]]:
    """For each language, the audio file of each stem (its path below `source`)."""
    clips: dict[str, dict[str, Path]] = {}
    for path in sorted(source.rglob("*_desc*")):
        if match := _CLIP.fullmatch(path.relative_to(source).as_posix()):
            clips.setdefault(match["language"] or "en", {}).setdefault(match["stem"], path)
    return clips


def samples(
    source: Path, clips: dict[str, Path], language: str, max_seconds: float, dropped: Counter[str]
) -> list[Sample]:
    """The usable clips, by key; why others were dropped is counted in `dropped`."""
    found = []
    for stem, path in sorted(clips.items()):
        text = read_text(source / f"{stem}.txt", language)
        if not normalise(text):
            dropped["no text"] += 1
            continue
        try:
            audio, rate = decode(path)
        except UserError:
            dropped["unreadable audio"] += 1
            continue
        if len(audio) > max_seconds * rate:
            dropped[f"longer than {max_seconds} s"] += 1
        elif len(audio) < MIN_SECONDS * rate:
            dropped[f"shorter than {MIN_SECONDS} s"] += 1
        elif len(text) > MAX_CHARACTERS_PER_SECOND * len(audio) / rate:
            dropped[f"more than {MAX_CHARACTERS_PER_SECOND} characters a second"] += 1
        else:
            audio = resample(audio, rate, SAMPLE_RATE)
            key = f"{language}/" + re.sub(r"[^A-Za-z0-9_/-]", "_", stem)
            found.append(Sample(key, audio, text, language, None, LICENCE, SOURCE))
    return found


def read_text(path: Path, language: str) -> str:
    """What the file says for `language`, NFC and stripped; empty where it says nothing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    if language == "en":
        text = lines[0] if lines else ""
    else:
        prefix = f"{language}.utf8="
        text = next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "")
    return unicodedata.normalize("NFC", text).strip()


def normalise(text: str) -> str:
    """What makes two texts the same text: casefolded words, without punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join("".join(letters).split())


def split_by_text(
    all_samples: Sequence[Sample], seed: int, dev_clips: int, test_clips: int
) -> dict[str, list[Sample]]:
    """Deal whole texts to test until it has `test_clips`, then to dev, then to train."""
    groups: dict[str, list[Sample]] = {}
    for sample in all_samples:
        groups.setdefault(normalise(sample.text), []).append(sample)
    texts = sorted(groups)
    random.Random(seed).shuffle(texts)
    parts: dict[str, list[Sample]] = {"test": [], "dev": [], "train": []}
    for text in texts:
        if len(parts["test"]) < test_clips:
            split = "test"
        elif len(parts["dev"]) < dev_clips:
            split = "dev"
        else:
            split = "train"
        parts[split] += groups[text]
    if not parts["train"]:
        language = all_samples[0].language if all_samples else "this language"
        raise UserError(
            f"{len(all_samples)} usable clips in {language} are too few: test and dev take "
            f"{test_clips + dev_clips}, and nothing is left to train on"
        )
    seen = [{normalise(sample.text) for sample in part} for part in parts.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)), "a text is in two splits"
    return parts


def _facts(
    dropped: dict[str, dict[str, int]], max_seconds: float, dev_clips: int, test_clips: int
) -> dict[str, Any]:
    return {
        "source": SOURCE,
        "licence": LICENCE,
        "languages": sorted(dropped),
        "text": "first line or 'xx.utf8=' line, NFC, stripped",
        "splits": "by casefolded words without punctuation: no text is in two splits",
        "dev_clips": dev_clips,
        "test_clips": test_clips,
        "min_seconds": MIN_SECONDS,
        "max_seconds": max_seconds,
        "max_characters_per_second": MAX_CHARACTERS_PER_SECOND,
        "resampler": resampler(),
        "dropped": dropped,
    }


def _print_table(index: ShardIndex) -> None:
    table = Table("language", "split", "shards", "clips", "minutes", title=str(index.folder))
    rows: dict[tuple[str, str], list[float]] = {}
    for shard in index.shards:
        row = rows.setdefault((shard.language, shard.split), [0, 0, 0.0])
        row[0] += 1
        row[1] += shard.samples
        row[2] += shard.seconds / 60
    for (language, split), (shards, clips, minutes) in sorted(rows.items()):
        table.add_row(language, split, str(shards), str(clips), f"{minutes:.1f}")
    Console().print(table)
    for language, counts in index.recipe["dropped"].items():
        said = ", ".join(f"{n} {why}" for why, n in counts.items()) or "nothing"
        Console().print(f"dropped in {language}: {said}")
