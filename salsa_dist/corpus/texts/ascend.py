"""ASCEND's transcripts (https://huggingface.co/datasets/CAiRE/ASCEND): Chinese characters and English
words as they were said. Its card explains no marks; [UNK], for a word that was not understood, goes.
"""

import re

from salsa_dist.corpus.texts import Rule

RULES = (
    Rule("unknown words", "[UNK], a word that was not understood, goes", re.compile(r"\[unk\]", re.I)),
)
