"""Recipe: Fish Fillets' Czech dialogues, dealt by character: voices of test and dev are not in train.

Source and texts as in `fillets`. Characters with more than a tenth of all clips are train: the two
fish. Of the others, whole characters are test and dev, and what is left is train. No text is in two
splits.
One actor may speak several characters, and some have voice effects.
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.corpus.recipes import load_recipe
from salsa_dist.corpus.utterance import Ask, Corpus

LANGUAGES = ("cs",)  # Dutch has two characters
BY_CHARACTER = "by character and text"


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The Czech clips, in splits of whole characters."""
    return load_recipe("fillets").dealt(source, ask, LANGUAGES, lambda clip: clip.speaker, BY_CHARACTER)
