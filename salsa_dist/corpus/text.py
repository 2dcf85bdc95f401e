"""The normalisation of every transcript in a shard, and the comparison of transcripts.

    "И\\u0306  Дума\\n" ──clean──► "Й Дума" ──same──► "й дума"

`RULES` says it in words for the dataset card; a recipe that does more adds its own words to them.
"""

from __future__ import annotations

import unicodedata

RULES = (
    "Unicode NFC (canonical composition)",
    "control characters and line breaks become spaces; no white space at the ends",
    "no byte order marks and soft hyphens; a text that shows nothing is none",
)
_NO_PART = {"\ufeff", "\u00ad"}  # left by files and by typesetting; nobody reads or says them


def clean(text: str) -> str:
    """`text` by `RULES`; empty where nothing is said."""
    composed = unicodedata.normalize("NFC", "".join(c for c in text if c not in _NO_PART))
    lined = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in composed)
    cleaned = "".join(lined).strip()
    # Joiners and direction marks belong to words, but are none by themselves.
    return cleaned if any(unicodedata.category(c) not in ("Cf", "Zs") for c in cleaned) else ""


def same(text: str) -> str:
    """Equal for two texts with the same words: casefolded, without punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join("".join(letters).split())
