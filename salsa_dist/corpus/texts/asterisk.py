"""Asterisk's list of prompts: its brackets, dots, signs and misspelt words.

    at [@]                                ──► at
    ... extension ...                     ──► extension
    [ascending tones]                         a sound: left out
    … press the pound key. (tone plays)       a note on the clip: left out
    press * to toggle pause                   "star" is said: left out
    SIP                                       a word or three letters, the list doesn't say: left out

The dots are where Asterisk puts several prompts together.
"""

import re

from salsa_dist.corpus.texts import Rule

_MISSPELT = {
    "umute": "unmute",
    "fourtieth": "fortieth",
    "represenatives": "representatives",
    "Un-indentified": "Unidentified",
    "witheld": "withheld",
    "exclaimation-point": "exclamation point",
}

RULES = (
    Rule("signs after their names", "a sign in brackets after its name goes", re.compile(r" \[.\]$")),
    Rule(
        "no speech",
        "what is in brackets as a whole is a sound or silence: left out",
        re.compile(r"^(?:\[.*\]|\(.*\)|<.*>)$"),
        drops=True,
    ),
    Rule(
        "a note in the text",
        "texts with a note in brackets are left out",
        re.compile(r"[\[(<]"),
        drops=True,
    ),
    Rule(
        "signs not read as written", "texts with * or # are left out", re.compile(r"[*#]"), drops=True
    ),
    Rule(
        "an abbreviation alone",
        "capital letters alone (DAHDI, H.323, P.M.) are left out",
        re.compile(r"^[A-Z][A-Z0-9. ]+$"),
        drops=True,
    ),
    Rule("dots", "dots where another prompt goes on are left out", re.compile(r"\.\.\.")),
    *(
        Rule("misspelt words", f"{wrong!r} is spelt {right!r}", re.compile(rf"\b{wrong}\b"), by=right)
        for wrong, right in _MISSPELT.items()
    ),
)
