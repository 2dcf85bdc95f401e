"""The same text for both sides, and the right token for each language."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salsa_dist.metrics.normalise import characters, mixed_tokens, normalise, unit, words


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("twi", "word"), ("en", "word"), ("ko", "word"), ("hi", "word"), ("cs", "word"),
        ("zh", "character"), ("zh-TW", "character"), ("cmn_hans_cn", "character"),
        ("ja_jp", "character"), ("th", "character"), ("my_mm", "character"),
        # `la` and `kh` are countries here, not a second language.
        ("lo_la", "character"), ("km_kh", "character"),
        ("zh+en", "mixed"), ("zh-en", "mixed"), ("en-zh", "mixed"), ("ms/zh", "mixed"),
    ],
)  # fmt: skip
def test_the_unit_follows_the_language(language: str, expected: str) -> None:
    assert unit(language) == expected


def test_case_punctuation_and_remarks_do_not_count() -> None:
    assert normalise("  Ɛyɛ, [noise] ME (laughs)  dɛ!", "twi") == "ɛyɛ me dɛ"
    assert normalise("ＦＵＬＬ　ｗｉｄｔｈ１２") == "full width12"


@pytest.mark.parametrize(
    ("language", "word"),
    [("hi", "नमस्ते"), ("bn", "বাংলা"), ("ta", "தமிழ்"), ("yo", "ẹ̀kọ́"), ("km", "ភាសា"), ("th", "ที่นี่")],
)
def test_the_marks_of_a_script_survive(language: str, word: str) -> None:
    # Whisper's own normaliser makes spaces of them, so that "नमस्ते" turns into two words.
    assert normalise(word, language) == unicodedata.normalize("NFKC", word)
    assert len(normalise(word, language).split()) == 1


def test_a_wrong_vowel_sign_is_an_error() -> None:
    assert words("पानी", "hi") != words("पानि", "hi")


def test_marks_without_a_letter_and_invisible_characters_go() -> None:
    assert normalise("ok ❤️ 1️⃣ \u200bfine\u200e") == "ok 1 fine"
    assert normalise("\u0301a !\u0301 b") == "a b"
    # Persian with and without its joiner, Arabic with and without vowel points.
    assert normalise("می\u200cروم", "fa") == normalise("میروم", "fa")
    assert normalise("السَّلَامُ", "ar") == "السلام"


def test_turkish_keeps_its_two_letters_i() -> None:
    assert normalise("İstanbul IŞIK", "tr") == "istanbul ışık"
    assert normalise("IS", "en") == "is"


def test_tokens_of_each_unit() -> None:
    assert words("Me dɔ wo.", "twi") == ["me", "dɔ", "wo"]
    assert words("我们 走吧。", "zh") == ["我", "们", "走", "吧"]
    assert words("我们用App吧, OK", "zh+en") == ["我", "们", "用", "app", "吧", "ok"]
    assert mixed_tokens("カタカナとenglish") == [*"カタカナと", "english"]


def test_a_space_is_a_character_only_where_words_are_spaced() -> None:
    assert characters("a b", "en") == ["a", " ", "b"]
    assert characters("我 们", "zh") == ["我", "们"]
    assert characters("我 ok", "zh+en") == ["我", "o", "k"]


LANGUAGES = st.sampled_from(["en", "tr", "hi", "ar", "zh", "th", "zh+en"])
TEXTS = st.text(
    st.one_of(st.characters(), st.sampled_from("aI İé ्ी我ど゙ำ\u200d\u0301<[(]")), max_size=40
)


@given(TEXTS, LANGUAGES)
def test_tokens_hold_the_whole_text_and_no_blanks(text: str, language: str) -> None:
    tokens = words(text, language)
    assert all(token and not token.isspace() for token in tokens)
    assert "".join(tokens) == normalise(text, language).replace(" ", "")
    # Both rates agree on which references are empty.
    assert (not tokens) == (not characters(text, language))


@given(st.text(st.sampled_from("aIb .,!?é我ीन"), max_size=30), LANGUAGES)
def test_normalising_twice_changes_nothing(text: str, language: str) -> None:
    once = normalise(text, language)
    assert normalise(once, language) == once
