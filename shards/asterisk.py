"""Recipe: the English prompts of Asterisk, a telephone exchange: 8 kHz speech from the GSM codec.

Source: Debian's `asterisk-core-sounds-en` (texts) and `asterisk-core-sounds-en-gsm` (speech),
CC-BY-SA-3.0: the folder usr/share of both. `python demo/fetch.py asterisk` fetches and unpacks them.

    doc/asterisk-core-sounds-en/core-sounds-en.txt.gz    vm-deleted: Message deleted.     name: text
                                                         digits/h-11: eleventh
                                                         beep: [this is a simple beep tone]
    asterisk/sounds/en_US_f_Allison/vm-deleted.gsm       GSM 06.10 without a header, 8 kHz, mono
    asterisk/sounds/en_US_f_Allison/digits/h-11.gsm

All clips are of one speaker, Allison Smith. A third are numbers, months, letters and the words by which
letters are spelled. The others are prompts, whole or in parts, such as "Press 1 for" or "at".
Most clips are short; three have more than 30 s.

Prompts resemble each other, so those that share six words in a row are in one split, and no text is in
two. Splits share the speaker, the codec and shorter phrases ("followed by the pound key"): results are
in-domain.

Debian has such prompts in Spanish, French, Italian and Russian, too. This recipe does not read them:
the Spanish texts lack accents, the Italian ones some letters; French and Russian were not checked.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from salsa_dist.corpus.recipes import load_recipe
from salsa_dist.corpus.text import same
from salsa_dist.corpus.texts import Texts, asterisk
from salsa_dist.corpus.utterance import Ask, Corpus, Utterance, key
from salsa_dist.data.audio import flac, gsm
from salsa_dist.errors import UserError

LICENCE = "CC-BY-SA-3.0"
SOURCE = "Debian asterisk-core-sounds-en, asterisk-core-sounds-en-gsm"
SPEAKER = "Allison Smith"
LIST = "doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
SOUNDS = "asterisk/sounds/en_US_f_Allison"
# Texts with so many words in a row in common are in one split.
WORDS_IN_A_ROW = 6
BY_WORDS = f"by text, those that share {WORDS_IN_A_ROW} words in a row in one split"
# Folders of single words; what is elsewhere is a prompt.
_WORDS = ("digits", "letters", "phonetic")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The clips with a text, in splits of groups of texts."""
    written, sounds, fillets = source / LIST, source / SOUNDS, load_recipe("fillets")
    for place in (written, sounds):
        if not place.exists():
            raise UserError(
                f"{place} is not there: name the folder usr/share of asterisk-core-sounds-en and "
                "asterisk-core-sounds-en-gsm, unpacked into one folder"
            )
    texts = Texts(asterisk.RULES)
    found = list(utterances(written, sounds, texts)) if ask.wants("en") else []
    if found:
        groups = grouped([clip.text for clip in found])
        found = fillets.deal(found, lambda clip: groups[clip.text], ask.seed, texts.drops)
    facts = {
        "splits": {"en": BY_WORDS},
        "dev_clips": fillets.DEV_CLIPS,
        "test_clips": fillets.TEST_CLIPS,
    }
    return replace(texts.corpus(found, LICENCE, SOURCE), facts=facts)


def audio_of(utterance: Utterance) -> bytes:
    """The clip as FLAC; a `.gsm` has no header to know it by."""
    return flac(*gsm(utterance.audio))


def utterances(written: Path, sounds: Path, texts: Texts) -> Iterator[Utterance]:
    """Every line of the list whose text is clear and which is recorded; the others are counted."""
    for number, line in lines(written):
        name, _, text = line.partition(":")
        audio = sounds / f"{name}.gsm"
        cleaned = texts.clean(text.strip(), "en")
        if cleaned is None:
            continue
        if not audio.is_file():
            texts.drop("en", "not recorded", f"{written}, line {number}")
        else:
            folder = name.partition("/")[0]
            yield Utterance(
                key=key(name),
                audio=audio,
                text=cleaned,
                language="en",
                speaker=SPEAKER,
                table=written,
                line=number,
                extra={"kind": folder if folder in _WORDS else "prompts"},
            )


def lines(written: Path) -> Iterator[tuple[int, str]]:
    """Number and content of each line that is a prompt's."""
    try:
        content = gzip.decompress(written.read_bytes()).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise UserError(f"{written} can't be read ({e}): unpack its package again") from e
    for number, line in enumerate(content.splitlines(), 1):
        if ":" in line and not line.startswith(";"):
            yield number, line


def grouped(texts: Sequence[str]) -> Mapping[str, str]:
    """For each text, the text that names its group: one `WORDS_IN_A_ROW` in common is enough."""
    first = {text: text for text in texts}

    def group(text: str) -> str:
        while first[text] != text:
            text = first[text]
        return text

    seen: dict[tuple[str, ...], str] = {}
    for text in texts:
        words = same(text).split()
        for start in range(max(1, len(words) - WORDS_IN_A_ROW + 1)):
            row = tuple(words[start : start + WORDS_IN_A_ROW])
            first[group(text)] = group(seen.setdefault(row, text))
    return {text: group(text) for text in texts}
