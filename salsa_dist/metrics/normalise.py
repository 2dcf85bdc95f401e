"""What counts as the same text, and what counts as one token of it, for each language.

    "Ɛyɛ, [noise] ME dɛ!"  --normalise-->  "ɛyɛ me dɛ"  --words-->  ["ɛyɛ", "me", "dɛ"]

    unit         languages                      `words` gives               the rate is called
    "word"       all that write spaces          ["good", "morning"]         WER
    "character"  zh yue ja th lo my km …        ["早", "上", "好"]           CER
    "mixed"      zh+en and the like             ["早", "上", "good", "啊"]   MER

References and hypotheses go through the same function. It is Whisper's `BasicTextNormalizer`
(lower case, NFKC, no bracketed remarks, punctuation and symbols to spaces) for *every* language,
English too, so that numbers compare across languages, with one repair: see `_clean`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from transformers.models.whisper.english_normalizer import BasicTextNormalizer

Unit = Literal["word", "character", "mixed"]

NORMALISER = "whisper-basic, combining marks kept"

_NO_SPACES = frozenset(
    re.findall("[a-z]+", "zh zho chi cmn yue wuu ja jpn th tha lo lao my mya bur km khm bo bod")
)
_DOTTED_I = frozenset(["tr", "tur", "az", "aze"])
# Han with its extensions, its iteration mark and zero, kana.
_CJK = "\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CJK += "\U00020000-\U0003ffff"
_MIXED_TOKEN = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")


def unit(language: str) -> Unit:
    """Token unit of a language code: `th`, `th_th`, `cmn_hans_cn`, `zh-TW`; `zh+en` is mixed.

    Only `+`, `/` or an English half (`zh-en`) makes a code-switched pair: in `lo_la` the second
    half is a country.
    """
    parts = [part for part in re.split(r"[-_+/\s]+", language.lower()) if part]
    spaceless = [part in _NO_SPACES for part in parts]
    if any(spaceless) and (re.search(r"[+/]", language) or {"en", "eng"} & set(parts)):
        return "mixed"
    return "character" if spaceless and spaceless[0] else "word"


def normalise(text: str, language: str = "") -> str:
    """`text` as it is compared: one space between words, none at the ends."""
    if _code(language) in _DOTTED_I:
        # str.lower() knows no Turkish: it would turn both I and İ into other letters.
        text = text.replace("İ", "i").replace("I", "ı")
    return " ".join(_NORMALISE(text).split())


def words(text: str, language: str) -> list[str]:
    """Tokens of the error rate over words.

    Where no spaces are written a "word" by spaces would be a sentence, right or wrong as a whole;
    a token is then a character, and the rate over words equals the rate over characters.
    """
    kind = unit(language)
    if kind == "mixed":
        return mixed_tokens(text)
    return characters(text, language) if kind == "character" else normalise(text, language).split()


def characters(text: str, language: str = "") -> list[str]:
    """Code points of the normalised text, the tokens of CER.

    A space between words counts as a character, as in jiwer and in most published numbers; not so
    in languages without spaces and in code-switching, where a space is a habit of the transcriber.
    """
    text = normalise(text, language)
    return list(text if unit(language) == "word" else text.replace(" ", ""))


def mixed_tokens(text: str) -> list[str]:
    """Tokens of code-switched text (MER): each CJK character, and each word of another script."""
    return _MIXED_TOKEN.findall(normalise(text))


def _code(language: str) -> str:
    return re.split(r"[-_+/\s]", language.lower(), maxsplit=1)[0]


def _clean(text: str) -> str:
    """Punctuation and symbols to spaces, like Whisper's, but the marks of a script stay.

    Whisper's own function turns every combining mark into a space. That cuts Hindi, Bengali, Tamil
    or Yoruba words to pieces (नमस्ते becomes two words without vowels) and hides every error in a
    vowel sign. Marks that Arabic and Hebrew writers leave out at will are dropped without a gap,
    and so are characters that nobody sees: joiners, direction marks, variation selectors.
    """
    kept: list[str] = []
    for c in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(c)
        if category[0] in "PS":
            kept.append(" ")
        elif category == "Cf":
            continue
        elif category[0] == "M":
            # A mark on nothing (after a space or a dropped emoji) is not a letter's mark.
            if kept and kept[-1] != " " and not _left_out(c, category):
                kept.append(c)
        else:
            kept.append(c)
    # Letters that a dropped joiner kept apart from their marks may compose only now.
    return unicodedata.normalize("NFKC", "".join(kept))


def _left_out(mark: str, category: str) -> bool:
    name = unicodedata.name(mark, "")
    return category == "Me" or name.startswith(("ARABIC ", "HEBREW ", "VARIATION SELECTOR"))


_NORMALISE = BasicTextNormalizer()
# The class calls whatever function it holds under this name; its own choice of two loses marks.
_NORMALISE.clean = _clean  # type: ignore[assignment]
