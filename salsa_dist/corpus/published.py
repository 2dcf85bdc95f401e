"""Data sets of a hub with known columns, licence and marks, by ORG/NAME, for recipe `hub`.

What a user says (`--column`, `--language`, `--licence`) goes before what is said here.

    CAiRE/ASCEND                       its card, and arXiv 2112.06223
    byan/cs-fleurs                     arXiv 2509.14161; licence: its card's tag at revision 0cdbf16, by
                                       a survey's word, not read here: read it on the card
    facebook/omnilingual-asr-corpus    arXiv 2511.09690; licence: github.com/facebookresearch/
                                       omnilingual-asr, README.md, "Using the HuggingFace Dataset"
    MagicLuke/MyST                     its card: a gated copy of LDC2021S05
    xlab-ub/Redmond-Sentence-Recall    its card (the publisher's; before at ai4exceptionaled/…)
    MagicLuke/Redmond-Sentence-Recall  a copy in sentences; its subset and columns are those that its
                                       owner's code reads (github.com/MagicLuke/AutoRSR,
                                       AutoRsr-NoBert/downstream_peritem.py), its marks: texts/rsr.py

Their cards are https://huggingface.co/datasets/ORG/NAME.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from salsa_dist.corpus.texts import Rule, ascend, myst, omnilingual, rsr


@dataclass(frozen=True)
class Published:
    """The facts about one data set.

    Attributes:
        columns: its names for our fields.
        language: of every row; None where a column or the subset tells it.
        languages: its codes that have others here.
        extra: columns kept under another name, since ours has a meaning of its own.
        licence, source: for the card.
        rules: what its marks mean.
        subsets: what a subset is: `config`, a named part of the data set; `folder` in it; or
            `language`, a named part that holds one language and is called by its code.
        say: what must be named, where a build of all of it is not meant.
        untranscribed: many rows have no text, which is no sign of damage.
        lacks: why no text can be read from it, and what to do; unless the user names a column.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    language: str | None = None
    languages: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    source: str | None = None
    rules: tuple[Rule, ...] = ()
    subsets: str = "config"
    say: str | None = None
    untranscribed: bool = False
    lacks: str | None = None


_RSR = Published(
    language="en",
    licence="CC-BY-NC-4.0",
    source="Redmond Sentence Recall",
    lacks="holds recordings of whole tests and no transcripts: write a manifest of its sentences, and "
    "build it with recipe jsonl; or name a column of texts with --column text=…",
)

KNOWN: dict[str, Published] = {
    # Its column `language` is zh, en or mixed, utterance by utterance; the corpus is code-switched.
    "CAiRE/ASCEND": Published(
        columns={"text": "transcription", "speaker": "original_speaker_id"},
        language="zh-en",
        extra={"language": "mark"},
        licence="CC-BY-SA-4.0",
        source="ASCEND, CAiRE",
        rules=ascend.RULES,
    ),
    # Folders read (people), xtts and mms (synthetic speech); language pairs as cmn-eng.
    "byan/cs-fleurs": Published(
        columns={"text": "text", "speaker": "speaker", "language": "language"},
        languages={"cmn-eng": "zh-en"},
        licence="CC-BY-NC-4.0",
        source="CS-FLEURS",
        subsets="folder",
        say="--subset read, xtts or mms",
    ),
    # 349 subsets, a language and script each (lij_Latn), with train, dev and test.
    "facebook/omnilingual-asr-corpus": Published(
        columns={"text": "raw_text", "speaker": "speaker_id"},
        licence="CC-BY-4.0",
        source="Omnilingual ASR corpus",
        rules=omnilingual.RULES,
        subsets="language",
        say="--subset, a language such as lij_Latn",
    ),
    # The default part is the corpus as it is; `finetune` has texts already cleaned, of 2 to 20 s. The
    # columns are not documented: they are found, or named with --column.
    "MagicLuke/MyST": Published(
        language="en",
        licence=myst.LICENCE,
        source="MyST Children's Conversational Speech, LDC2021S05, from the LDC, copy",
        rules=myst.RULES,
        untranscribed=True,
    ),
    # Each row of the publisher's is a child's whole test of 16 sentences, in one split, train.
    "xlab-ub/Redmond-Sentence-Recall": _RSR,
    "ai4exceptionaled/Redmond-Sentence-Recall": _RSR,
    # Cut into sentences by others: sentence/test-*.parquet with speaker_id, text and sentence_id, which
    # of the 16 it is. Other splits and subsets are not documented.
    "MagicLuke/Redmond-Sentence-Recall": Published(
        columns={"text": "text", "speaker": "speaker_id"},
        language="en",
        licence="not stated by this copy (the publisher's: CC-BY-NC-4.0)",
        source="Redmond Sentence Recall, copy in sentences",
        rules=rsr.RULES,
        say="--subset sentence",
    ),
}


def known(source: str) -> Published:
    """The facts about a data set, by its name, or by the name of a copy's folder ORG/NAME."""
    return KNOWN.get("/".join(PurePath(source).parts[-2:]), Published())
