"""The output of a recipe, before any audio is decoded.

    recipe.read(source, ask) ──► Corpus ── licence, source, text_rules, dropped, facts
                                   └── utterances: Utterance ── key, audio (file), start, end (s), text,
                                                                language, speaker, split, extra

A recipe says what there is; `build` decides the rest: splits where the corpus has none, order, shards.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from salsa_dist.data.audio import MAX_SECONDS
from salsa_dist.errors import UserError
from salsa_dist.places import Folder

SPLITS = ("train", "dev", "test")

_UNSAFE = re.compile(r"[^A-Za-z0-9_/-]+")
_SPLIT_WORDS = {
    "train": ("train", "training", "tr", "trn"),
    "dev": ("dev", "devel", "development", "valid", "validation", "val"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}


@dataclass(frozen=True, slots=True)
class Utterance:
    """One piece of speech with its transcript.

    Attributes:
        key: name within its corpus, unique in its language; `key()` makes one of any text.
        audio: the file; where the recipe has `audio_of`, whatever that reads.
        text: the transcript as the corpus has it.
        language: code of the language.
        speaker: None where it is not known.
        split: the corpus's own train, dev or test; None where it has none.
        start, end: seconds in the file; None for its start or end.
        channel: the one that is spoken on, from 0; None for the mean of all.
        row: place in a file that holds many recordings; None for other files.
        table, line: where the corpus says all this, for errors; None where no file of its own does.
        extra: further facts, kept in the sample's JSON.
        speech: false where nobody speaks: the text is empty, and training teaches just that.
        loss_weight: what the clip's loss is multiplied by in training.
    """

    key: str
    audio: Path
    text: str
    language: str
    speaker: str | None = None
    split: str | None = None
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    row: int | None = None
    table: Path | None = None
    line: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    speech: bool = True
    loss_weight: float = 1.0

    @property
    def place(self) -> str:
        """Table and line in words; empty where they are not known."""
        line = "" if self.line is None else f", line {self.line}"
        return f"{self.table}{line}" if self.table else ""


@dataclass
class Drops:
    """Utterances that were left out.

    Attributes:
        counts: for each language, how many for each reason.
        first: for each language and reason, the file (and line) of the first, where that is known.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    first: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, language: str, why: str, place: str | Path = "") -> None:
        self.counts.setdefault(language, Counter())[why] += 1
        if place:
            self.first.setdefault(language, {}).setdefault(why, str(place))


@dataclass(frozen=True)
class Corpus:
    """The requested utterances of a corpus.

    Attributes:
        utterances: in any order, unless `ordered`.
        text_rules: what the recipe did to texts, beyond the rules of `text.py`.
        touched: for each language, how many utterances each rule for texts changed.
        dropped: for each language, how many utterances the recipe left out, and why.
        first: for each language and reason, where the first of these stands.
        facts: whatever else belongs into the dataset card.
        ordered: keep the order given, it was shuffled by the recipe; else `build` shuffles.
    """

    utterances: Sequence[Utterance]
    licence: str
    source: str
    text_rules: tuple[str, ...] = ()
    touched: Mapping[str, Counter[str]] = field(default_factory=dict)
    dropped: Mapping[str, Counter[str]] = field(default_factory=dict)
    first: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    ordered: bool = False


@dataclass(frozen=True)
class Ask:
    """The options of a build. All of them decide its bytes, and are in the index.

    Attributes:
        languages: those wanted; None for all.
        seed: of splits and order.
        language: that of a corpus that does not name its own.
        columns: the corpus's name for one of our fields: {"text": "sentence_clean"}.
        licence: replaces the recipe's.
        rate: Hz of the FLAC in the shards; None keeps recordings as they came.
        samples_per_shard: at most so many.
        min_seconds, max_seconds: what is shorter or longer is dropped.
        dev_share, test_share: of the utterances, where the corpus has no splits.
        keep: kinds of doubtful samples (`doubts.py`) that stay in.
        revision, subset, splits: of a data set on a hub; None and empty for its newest and all.
    """

    languages: tuple[str, ...] | None = None
    seed: int = 0
    language: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    rate: int | None = 16_000
    samples_per_shard: int = 1000
    min_seconds: float = 0.1
    max_seconds: float = MAX_SECONDS
    dev_share: float = 0.05
    test_share: float = 0.05
    keep: tuple[str, ...] = ()
    revision: str | None = None
    subset: str | None = None
    splits: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The options as JSON, without languages and seed, which the index has elsewhere."""
        facts = {**asdict(self), "columns": dict(self.columns), "keep": list(self.keep)}
        of_hub = {"revision": self.revision, "subset": self.subset, "splits": list(self.splits)}
        facts = {k: v for k, v in facts.items() if k not in ("languages", "seed", *of_hub)}
        return facts | {k: v for k, v in of_hub.items() if v}

    def wants(self, language: str) -> bool:
        return self.languages is None or language in self.languages


def key(name: str) -> str:
    """`name` as a key: letters, digits, `_`, `-` and `/`.

    A name that had to be changed ends with a hash of what it was, so that two names stay two keys.
    """
    safe = "/".join(part for part in _UNSAFE.sub("_", name).split("/") if part)
    parts = [part[-80:] for part in safe[-160:].split("/") if part]
    safe = "/".join(parts)
    if safe and safe == name:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe}-{digest}" if safe else digest


def split_in(name: str) -> str | None:
    """The split that a file's or folder's name speaks of: `valid_manifest` is dev, `data` none."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {split for split, known in _SPLIT_WORDS.items() if any(w in known for w in words)}
    return found.pop() if len(found) == 1 else None


def refuse_other_splits(named: Mapping[tuple[str, str], str | Folder], what_to_do: str) -> None:
    """Refuse names of splits if, in one language, one says train and another no split.

    What says none is divided into new splits, so held-out clips of another name would be trained on.

    Args:
        named: from language and name to the place that has it.
        what_to_do: the end of the error.
    """
    trained = {language: name for language, name in named if split_in(name) == "train"}
    for (language, name), place in named.items():
        if language in trained and split_in(name) is None:
            raise UserError(
                f"{place}: {name!r} is none of train, dev and test, and {trained[language]!r} is: "
                f"{what_to_do}"
            )
