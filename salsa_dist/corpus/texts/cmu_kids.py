"""CMU Kids' transcripts (transcrp.tbl): words in capitals, noises in brackets ([begin_noise], …) and,
where a word was said otherwise, its phones between slashes (/F EH S T IH/). That transcripts hold phone
and noise symbols say ALIGNMNT.TXT and KIDS.TXT (https://catalog.ldc.upenn.edu/docs/LDC97S63/).
"""

import re

from salsa_dist.corpus.texts import Rule

RULES = (
    Rule(
        "not words",
        "utterances with phones between slashes, for words said otherwise, are dropped",
        re.compile(r"/[A-Z0-9 ]+/"),
        drops=True,
    ),
    Rule(
        "noises", "marks in brackets ([begin_noise], [human_noise], …) go", re.compile(r"\[[^\[\]]*\]")
    ),
)
