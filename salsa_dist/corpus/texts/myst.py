"""MyST's transcripts: the release's own guidelines are not public; these marks are those that its users
name, such as SpeechBrain's preparation of release 0.4.2 (non-speech events in angle brackets, `(*)` for
what can't be understood, a hyphen behind a truncated word). Fillers (um, uh) are words and stay: the
English normaliser of `evaluation.normaliser` passes over them on both sides. No public source tells how
the release writes several readings of one word, or whether it does: none is looked for.
"""

import re

from salsa_dist.corpus.texts import Rule

LICENCE = "MyST Children's Conversational Speech Agreement (licensed by the LDC; not to be passed on)"
RULES = (
    Rule(
        "discarded",
        "utterances marked <DISCARD> are dropped",
        re.compile(r"<discard>", re.I),
        drops=True,
    ),
    Rule(
        "not intelligible",
        "utterances with (*), speech that can't be understood, are dropped",
        re.compile(r"\(\*+\)"),
        drops=True,
    ),
    Rule(
        "noises",
        "marks in angle brackets (<BREATH>, <NOISE>, <SIDE_SPEECH>, …) go",
        re.compile(r"<[^<>]*>"),
    ),
    Rule("partial words", "truncated words (MAG-) go", re.compile(r"(?<!\S)[\w']+-(?!\S)")),
)
