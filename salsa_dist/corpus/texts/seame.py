"""SEAME's transcripts (SEAMEV3.7.doc of the release is not public). The marks are those that the public
recipe of its Interspeech 2019 split reads (github.com/zengzp0912/SEAME-dev-set, ESPnet's egs2/seame):
(ppl), (ppc), (ppb), (ppo) for laughter, coughs, breath and other sounds of the speaker, <v-noise>,
<unk> and <unl> for words unknown or of other languages. Discourse particles (la, lor) are words and
stay.
"""

import re

from salsa_dist.corpus.texts import Rule

RULES = (
    Rule(
        "sounds of the speaker",
        "(ppl), (ppc), (ppb), (ppo), with brackets of any kind or none, and <v-noise> go",
        re.compile(r"[(<\[（]\s*pp[a-z]+\s*[)>\]）]|(?<!\S)pp[lcbo](?!\S)|<v-noise>", re.I),
    ),
    Rule("unknown words", "<unk> and <unl> go", re.compile(r"<\s*un[kl][a-z ]*>", re.I)),
    Rule(
        "brackets",
        "brackets, # and other signs around words go, the words stay",
        re.compile(r"[\[\]()（）［］【】{}#~～%&*×_`｀\"「」\\]+"),
    ),
)
