"""Redmond Sentence Recall's transcripts in sentences keep marks of CHAT, whose manual is
https://talkbank.org/manuals/CHAT.html: by normalization.md of github.com/MagicLuke/RSR-leaderboard its
references are cleaned of speaker and time marks, codes in brackets, marks for unintelligible speech and
other signs. Fillers (&-um, um@x) are words and stay. What else CHAT has is not looked for.
"""

import re

from salsa_dist.corpus.texts import Rule

RULES = (
    Rule("speaker and time marks", "*CHI: and times go", re.compile(r"^\*\w+:|\x15[^\x15]*\x15")),
    Rule("codes", "codes in brackets ([/], [//], [: text], [+ 03], …) go", re.compile(r"\[[^\[\]]*\]")),
    Rule(
        "events and fragments",
        "events (&=laughs) and fragments of words (&+fr) go",
        re.compile(r"&[=+][^\s<>]*"),
    ),
    Rule("pauses", "(.), (..), (1.5) go", re.compile(r"\((?:\.+|\d+(?:\.\d*)?)\)")),
    Rule("not intelligible", "xxx, yyy and www go", re.compile(r"\b(?:xxx|yyy|www)\b")),
    Rule(
        "signs",
        "angle brackets, &- before fillers, @ with letters behind words, + with signs at ends go",
        re.compile(r"[<>]|&-|(?<=\w)@[\w:]+|(?<!\S)\+[^\w\s]+"),
        by="",
    ),
)
