"""Text normalisation and tokens, per language.

    "Ɛyɛ, [noise] ME dɛ!"  --normalise-->  "ɛyɛ me dɛ"  --words-->  ["ɛyɛ", "me", "dɛ"]

    unit         languages                      `words` gives               the rate is called
    "word"       all that write spaces          ["good", "morning"]         WER
    "character"  zh yue ja th lo my km …        ["早", "上", "好"]           CER
    "mixed"      zh+en and the like             ["早", "上", "good", "啊"]   MER

References and hypotheses go through the same function. Which one it is, `Rules` says:

    basic      Whisper's `BasicTextNormalizer` (lower case, NFKC, no bracketed remarks, punctuation and
               symbols to spaces) for every language, with one repair: see `_clean`
    english    Whisper's `EnglishTextNormalizer`: numbers, spellings, short forms and fillers too
    auto       english for English, basic for all other languages and for code-switching
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Literal

from salsa_dist.config import Alike, EvaluationConfig, Normaliser
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import text_normaliser
from salsa_dist.speech_llms.languages import NO_SPACES

Unit = Literal["word", "character", "mixed"]

_BASIC = "whisper-basic, combining marks kept"
_ENGLISH = frozenset(["en", "eng"])
_DOTTED_I = frozenset(["tr", "tur", "az", "aze"])
# Han with its extensions, its iteration mark and zero, kana.
_CJK = "\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CJK += "\U00020000-\U0003ffff"
# Thai, Lao, Tibetan (of Dzongkha too), Burmese, Khmer.
_OTHERS = "\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"
_SPACELESS = _CJK + _OTHERS + "\u1780-\u17ff\u19e0-\u19ff"
_SPACELESS_CHARACTER = re.compile(f"[{_SPACELESS}]")
_MIXED_TOKEN = re.compile(f"[{_SPACELESS}]|[^\\s{_SPACELESS}]+")


@dataclass(frozen=True)
class Rules:
    """How texts are normalised; every report names it.

    Attributes:
        alike: what counts as the same besides: `digits` of any script (२०, 20), `chinese-numbers`
            (百分之五十, 50%), `chinese-scripts` (國家, 国家: traditional and simplified).
    """

    normaliser: Normaliser = "basic"
    alike: tuple[Alike, ...] = ()

    @classmethod
    def of(cls, config: EvaluationConfig) -> Rules:
        """The rules of a config. Raises: UserError: a package that they need is not installed."""
        rules = cls(config.normaliser, tuple(config.alike))
        if rules.normaliser != "basic":
            _english()
        for name in rules.alike:
            _alike(name)
        return rules

    def english(self, language: str) -> bool:
        """Whether texts in `language` go through Whisper's English normaliser."""
        by_language = _code(language) in _ENGLISH and unit(language) == "word"
        return self.normaliser == "english" or (self.normaliser == "auto" and by_language)

    def __str__(self) -> str:
        if self.normaliser == "basic":
            said = _BASIC
        else:
            said = f"whisper-english ({_ENGLISH_PACKAGE} {version(_ENGLISH_PACKAGE)})"
            said += f" for English, else {_BASIC}" if self.normaliser == "auto" else ""
        for name in self.alike:
            package = {"chinese-numbers": "cn2an", "chinese-scripts": "opencc"}.get(name)
            said += f"; {name} alike" + (f" ({package} {version(package)})" if package else "")
        return said


BASIC = Rules()
_ENGLISH_PACKAGE = "whisper_normalizer"


def unit(language: str) -> Unit:
    """Token unit of a language code: `th`, `th_th`, `cmn_hans_cn`, `zh-TW`; `zh+en` is mixed.

    Only `+`, `/` or an English half (`zh-en`) makes a code-switched pair: in `lo_la` the second
    half is a country.
    """
    parts = [part for part in re.split(r"[-_+/\s]+", language.lower()) if part]
    spaceless = [part in NO_SPACES for part in parts]
    if any(spaceless) and (re.search(r"[+/]", language) or {"en", "eng"} & set(parts)):
        return "mixed"
    return "character" if spaceless and spaceless[0] else "word"


def normalise(text: str, language: str = "", rules: Rules = BASIC) -> str:
    """`text` after normalisation: one space between words, none at the ends."""
    text = unicodedata.normalize("NFC", text)
    for name in rules.alike:
        text = _alike(name)(text)
    if rules.english(language):
        return " ".join(_english()(" ".join(text.split())).split())
    if _code(language) in _DOTTED_I:
        # str.lower() knows no Turkish: it would turn both I and İ into other letters.
        text = text.replace("İ", "i").replace("I", "ı")
    return " ".join(_NORMALISE(text).split())


def words(text: str, language: str, rules: Rules = BASIC) -> list[str]:
    """Tokens of the error rate over words.

    Where no spaces are written a "word" by spaces would be a sentence, right or wrong as a whole;
    a token is then a character, and the rate over words equals the rate over characters.
    """
    kind = unit(language)
    if kind == "mixed":
        return mixed_tokens(text, rules)
    if kind == "character":
        return characters(text, language, rules)
    return normalise(text, language, rules).split()


def characters(text: str, language: str = "", rules: Rules = BASIC) -> list[str]:
    """Code points of the normalised text, the tokens of CER.

    A space between words counts as a character, as in jiwer and in most published numbers; not so
    in languages without spaces and in code-switching, where a space is a habit of the transcriber.
    """
    text = normalise(text, language, rules)
    return list(text if unit(language) == "word" else text.replace(" ", ""))


def mixed_tokens(text: str, rules: Rules = BASIC) -> list[str]:
    """Tokens of code-switched text (MER): each word, and each character of a script without spaces."""
    return _MIXED_TOKEN.findall(normalise(text, "", rules))


def is_spaceless(character: str) -> bool:
    """Whether a character belongs to a script without spaces between words."""
    return bool(_SPACELESS_CHARACTER.fullmatch(character))


@lru_cache
def _english() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as e:
        raise UserError(
            "evaluation.normaliser: the English normaliser needs the package whisper_normalizer: "
            "install it, or set evaluation.normaliser=basic"
        ) from e
    made: Callable[[str], str] = EnglishTextNormalizer()
    return made


@lru_cache
def _alike(name: Alike) -> Callable[[str], str]:
    """A function after which what `name` says is equal."""
    if name == "digits":
        return lambda text: "".join(str(unicodedata.decimal(c, c)) for c in text)
    try:
        if name == "chinese-numbers":
            from cn2an import transform

            return lambda text: str(transform(text, "cn2an"))
        from opencc import OpenCC
    except ImportError as e:
        raise UserError(
            f"evaluation.alike: {name} needs packages that are not installed: "
            "pip install 'salsa-dist[chinese]'"
        ) from e
    convert = OpenCC("t2s").convert
    # It takes no half of a character, which only damaged texts hold.
    return lambda text: str(convert(text.encode("utf-8", "replace").decode("utf-8")))


def _code(language: str) -> str:
    return re.split(r"[-_+/\s]", language.lower(), maxsplit=1)[0]


def _clean(text: str) -> str:
    """Replace punctuation and symbols by spaces, like Whisper, but keep combining marks.

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


_NORMALISE = text_normaliser(_clean)
