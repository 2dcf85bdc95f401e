"""The Omnilingual ASR corpus' column raw_text
(https://huggingface.co/datasets/facebook/omnilingual-asr-corpus): spontaneous speech as it was said,
with events in angle brackets. The list of these marks was not at hand: whatever stands in them goes.
"""

import re

from salsa_dist.corpus.texts import Rule

RULES = (
    Rule(
        "events",
        "marks in angle brackets (up to 40 letters) go",
        re.compile(r"<[^<>]{1,40}>"),
    ),
)
