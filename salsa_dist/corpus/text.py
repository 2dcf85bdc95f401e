"""The normalisation of every transcript in a shard, and the comparison of transcripts.

    "И\\u0306  Дума\\n" ──clean──► "Й Дума" ──same──► "й дума"

`RULES` says it in words for the dataset card; a recipe that does more adds its own words to them.
"""

from __future__ import annotations

import unicodedata

RULES = (
    "Unicode NFC (canonical composition)",
    "control characters and line breaks become spaces; no white space at the ends",
)


def clean(text: str) -> str:
    """`text` by `RULES`; empty where nothing is said."""
    composed = unicodedata.normalize("NFC", text)
    lined = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in composed)
    return "".join(lined).strip()


def same(text: str) -> str:
    """Equal for two texts with the same words: casefolded, without punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join("".join(letters).split())
