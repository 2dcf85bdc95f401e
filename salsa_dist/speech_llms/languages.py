"""Language codes, as shards and command lines have them: `bg`, `pt-BR`, `zh-en` for mixed speech.

A country's code may be that of another language: BR is Brazil, br is Breton. So case counts: what is in
capitals behind small letters is a country, `wo-SN` is no Shona (sn), and `fr-CA` no Catalan (ca).
"""

from __future__ import annotations

import re
from collections.abc import Container

from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import whisper_languages

# Scripts written without spaces between words.
_SPACELESS = """
    zh zho chi cmn yue wuu nan hak gan hsn cdo ja jpn th tha lo lao my mya bur km khm bo bod tib dz dzo
"""
NO_SPACES = frozenset(_SPACELESS.split())
# ISO 639-1 and ISO 639-3; of a group of languages the one that SeamlessM4T means by it.
_CODES = """
    af:afr am:amh ar:arb as:asm az:azj be:bel bg:bul bn:ben bs:bos ca:cat cs:ces cy:cym da:dan
    de:deu el:ell en:eng es:spa et:est eu:eus fa:pes ff:fuv fi:fin fr:fra ga:gle gl:glg gu:guj
    he:heb hi:hin hr:hrv hu:hun hy:hye id:ind ig:ibo is:isl it:ita ja:jpn jv:jav ka:kat kk:kaz
    km:khm kn:kan ko:kor ky:kir lg:lug lo:lao lt:lit lv:lvs mk:mkd ml:mal mn:khk mr:mar ms:zlm
    mt:mlt my:mya nb:nob ne:npi nl:nld nn:nno no:nob ny:nya om:gaz or:ory pa:pan pl:pol ps:pbt
    pt:por ro:ron ru:rus sd:snd sk:slk sl:slv sn:sna so:som sr:srp sv:swe sw:swh ta:tam te:tel
    tg:tgk th:tha tl:tgl tr:tur uk:ukr ur:urd uz:uzn vi:vie yo:yor zh:cmn zu:zul
"""
THREE_LETTERS = dict(pair.split(":") for pair in _CODES.split())
_COUNTRY = re.compile(r"(?!EN)[A-Z]{2}|\d{3}")  # EN is none, and often the half of mixed speech
_CODE = re.compile(r"[A-Za-z]{2,4}(?:[-_][A-Za-z0-9]{2,4})*")


def parts(language: str) -> list[str]:
    """The codes of a language: one, or those of its mixed parts; of a script too, not of a country.

    Raises:
        UserError: `language` is no code.
    """
    if not _CODE.fullmatch(language):
        raise UserError(
            f"{language!r} is no language code: write it as bg, pt-BR, or zh-en for mixed speech"
        )
    first, *rest = re.split("[-_]", language)
    country = first.islower()
    return [
        first.lower(),
        *(part.lower() for part in rest if not (country and _COUNTRY.fullmatch(part))),
    ]


def first_known(language: str, known: Container[str]) -> str | None:
    """The first part of `language` that is in `known`; None if no part is."""
    return next((part for part in parts(language) if part in known), None)


def has_no_spaces(language: str) -> bool:
    """Whether words are written without spaces; mixed speech goes by its first part."""
    return parts(language)[0] in NO_SPACES


def english_name(language: str) -> str | None:
    """`Bulgarian`, or `Chinese and English` for mixed speech; None if no part's name is known."""
    # Every language that Whisper was trained on, which is the longest list at hand.
    known = whisper_languages()
    names = [known[part].title() for part in parts(language) if part in known]
    return " and ".join(dict.fromkeys(names)) or None


def named() -> list[str]:
    """Codes that `english_name` knows, sorted."""
    return sorted(whisper_languages())
