"""The same text for both sides, and the right token for each language."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salsa_dist.config import Alike, EvaluationConfig
from salsa_dist.errors import UserError
from salsa_dist.metrics.normalise import Rules, characters, mixed_tokens, normalise, unit, words


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("twi", "word"), ("en", "word"), ("ko", "word"), ("hi", "word"), ("cs", "word"),
        ("zh", "character"), ("zh-TW", "character"), ("cmn_hans_cn", "character"),
        ("ja_jp", "character"), ("th", "character"), ("my_mm", "character"),
        # `la` and `kh` are countries here, not a second language.
        ("lo_la", "character"), ("km_kh", "character"),
        ("nan-tw", "character"), ("hak", "character"), ("gan", "character"), ("dz", "character"),
        ("th-en", "mixed"), ("zh+en", "mixed"), ("zh-en", "mixed"), ("en-zh", "mixed"),
        ("ms/zh", "mixed"), ("lo-en", "mixed"), ("my_en", "mixed"), ("en-km", "mixed"),
        ("nan-en", "mixed"), ("hak+en", "mixed"), ("dz-en", "mixed"),
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
    for language in ("nan-tw", "hak", "gan", "nan_tw", "hak_hant_tw"):
        assert words("我欲去台北", language) == list("我欲去台北")
    assert words("ผมไป office", "th-en") == [*"ผมไป", "office"]
    assert words("ຂ້ອຍມັກ coffee", "lo+en") == [*"ຂ້ອຍມັກ", "coffee"]
    assert words("ကျွန်တော် office သွား", "my-en") == [*"ကျွန်တော်", "office", *"သွား"]
    assert words("ខ្ញុំ ok", "km+en") == [*"ខ្ញុំ", "ok"]
    assert words("ང་ school འགྲོ", "dz-en") == [*"ང", "school", *"འགྲོ"]
    assert len(words("ང་ལ་དགའ", "dz")) == 5  # the dots between syllables are no letters
    assert mixed_tokens("カタカナとenglish") == [*"カタカナと", "english"]


def test_a_space_is_a_character_only_where_words_are_spaced() -> None:
    assert characters("a b", "en") == ["a", " ", "b"]
    assert characters("我 们", "zh") == ["我", "们"]
    assert characters("我 ok", "zh+en") == ["我", "o", "k"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("fifty", "50"), ("don't", "do not"), ("colour", "color"), ("um so uh yes", "so yes")],
)
def test_english_is_scored_as_boards_score_it(one: str, other: str) -> None:
    for language in ("en", "en_us", "eng"):
        assert words(one, language, Rules("auto")) == words(other, language, Rules("auto"))
        assert words(one, language) != words(other, language)
    assert words(one, "", Rules("english")) == words(other, "", Rules("english"))


def test_auto_is_basic_for_other_languages_and_for_code_switching() -> None:
    for language in ("bg", "hi", "zh", "zh-en", "en-zh", "tr", "twi"):
        for text in ("don't नमस्ते fifty 国家", "IŞIK İstanbul"):
            assert words(text, language, Rules("auto")) == words(text, language)


@pytest.mark.parametrize(
    ("alike", "one", "other", "language"),
    [
        ("digits", "२० लोग", "20 लोग", "hi"),
        ("digits", "٤٢", "42", "ar"),
        ("chinese-numbers", "百分之五十", "50%", "zh"),
        ("chinese-numbers", "三千二百", "3200", "zh-en"),
        ("chinese-scripts", "國家", "国家", "zh"),
    ],
)
def test_what_counts_as_the_same_only_if_asked(
    alike: Alike, one: str, other: str, language: str
) -> None:
    asked = Rules("auto", (alike,))
    assert words(one, language, asked) == words(other, language, asked)
    assert words(one, language) != words(other, language)


def test_rules_say_what_they_are() -> None:
    assert str(Rules()) == "whisper-basic, combining marks kept"
    said = str(Rules("auto", ("digits", "chinese-scripts")))
    assert said.startswith("whisper-english (whisper_normalizer ")
    assert "for English, else whisper-basic, combining marks kept; digits alike; chinese" in said


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from salsa_dist.metrics import normalise as module

    module._english.cache_clear()
    module._alike.cache_clear()
    for name in ("whisper_normalizer.english", "opencc"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"or set evaluation\.normaliser=basic"):
        Rules.of(EvaluationConfig())
    asked = EvaluationConfig(normaliser="basic", alike=["chinese-scripts"])
    with pytest.raises(UserError, match=r"pip install 'salsa-dist\[chinese\]'"):
        Rules.of(asked)
    assert Rules.of(EvaluationConfig(normaliser="basic")) == Rules()


LANGUAGES = st.sampled_from(
    ["en", "tr", "hi", "ar", "zh", "th", "dz", "zh+en", "th-en", "lo-en", "my-en"]
)
TEXTS = st.text(
    st.one_of(st.characters(), st.sampled_from("aI İé ्ी我ど゙ำຳ့်\u200d\u0301<[(]")), max_size=40
)


@given(TEXTS, LANGUAGES)
def test_tokens_hold_the_whole_text_and_no_blanks(text: str, language: str) -> None:
    tokens = words(text, language)
    assert all(token and not token.isspace() for token in tokens)
    assert "".join(tokens) == normalise(text, language).replace(" ", "")
    # Both rates agree on which references are empty.
    assert (not tokens) == (not characters(text, language))


ALL_RULES = st.sampled_from(
    [Rules(), Rules("auto"), Rules("english"), Rules("auto", ("digits", "chinese-scripts"))]
)


@given(TEXTS, LANGUAGES, ALL_RULES)
def test_no_text_gives_other_tokens_composed_decomposed_or_spaced_wider(
    text: str, language: str, rules: Rules
) -> None:
    tokens = words(text, language, rules)
    for form in ("NFC", "NFD"):
        assert words(unicodedata.normalize(form, text), language, rules) == tokens
    assert words(text.replace(" ", "  "), language, rules) == tokens


@given(st.text(st.sampled_from("aIb .,!?é我ीन"), max_size=30), LANGUAGES)
def test_normalising_twice_changes_nothing(text: str, language: str) -> None:
    once = normalise(text, language)
    assert normalise(once, language) == once
