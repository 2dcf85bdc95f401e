"""OGI Kids' spontaneous speech, after the CSLU Labeling Guide's word-level conventions: events stand in
angle brackets (<br> breath, <bn> background noise, <bs> background speech, …), a star is at a word that
is cut off or said otherwise. Only the brackets are read by other public recipes; what the star
means in this release is not documented outside it, so a starred word stays and its star goes. Nor is a
notation for several readings of one word: none is looked for.
"""

import re

from salsa_dist.corpus.texts import Rule

RULES = (
    Rule("noises", "marks in angle brackets (<br>, <bn>, <bs>, …) go", re.compile(r"<[^<>]*>")),
    Rule("starred words", "stars at words go, the words stay", re.compile(r"\*"), by=""),
)
