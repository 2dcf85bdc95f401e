"""Errors of mixed speech by language and at switch points, counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salsa_dist.metrics.error_rates import Edits, score
from salsa_dist.metrics.normalise import is_spaceless, mixed_tokens
from salsa_dist.metrics.summary import summarise
from salsa_dist.metrics.switching import languages_by_token, languages_of


def errors(reference: str, hypothesis: str, language: str = "zh-en") -> dict[str, tuple[int, int]]:
    """(errors, tokens) by part."""
    parts = score(reference, hypothesis, language).parts
    return {name: (part.errors, part.length) for name, part in parts.items()}


def test_the_languages_of_a_code() -> None:
    assert languages_of("zh-en") == languages_of("ZH_en") == ("zh", "en")
    assert languages_of("en-zh") == ("zh", "en")
    assert languages_of("ms/zh") == ("zh", "ms")
    assert languages_of("th-en") == ("th", "en")
    assert languages_of("zh-TW") is languages_of("en") is languages_of("lo_la") is None
    assert score("a b", "a c", "en").parts == {}


def test_each_token_is_of_the_language_of_its_script() -> None:
    tokens = mixed_tokens("我们用 App 吧 50 okay")
    assert languages_by_token(tokens, "zh-en") == ["zh", "zh", "zh", "en", "zh", None, "en"]
    with pytest.raises(ValueError, match="en is one language"):
        languages_by_token(tokens, "en")


def test_errors_are_of_the_references_language_and_insertions_of_their_own() -> None:
    # 用 app 吧 stand at the two switches; 我 and 们 do not.
    assert errors("我们用app吧", "我们用map吧") == {"zh": (0, 4), "en": (1, 1), "switch": (1, 3)}
    assert errors("我们用app吧", "你们用app吧") == {"zh": (1, 4), "en": (0, 1), "switch": (0, 3)}
    assert errors("我们用app吧", "我们用吧") == {"zh": (0, 4), "en": (1, 1), "switch": (1, 3)}
    assert errors("我们", "我们 okay") == {"zh": (0, 2), "en": (1, 0), "switch": (0, 0)}
    assert errors("我 okay", "我 is okay") == {"zh": (0, 1), "en": (1, 1), "switch": (1, 2)}
    assert score("我 okay", "我 is okay", "zh-en").parts["switch"] == Edits(0, 0, 1, 2)


@pytest.mark.parametrize(
    ("language", "said", "letters"),
    [
        ("th", "ไป", 2),
        ("lo", "ໄປ", 2),
        ("km", "ខ្ញុំ", 5),
        ("my", "သွား", 4),
        ("dz", "འགྲོ", 4),
        ("nan", "欲去", 2),
    ],
)
def test_scripts_without_spaces_are_counted_by_character_beside_english(
    language: str, said: str, letters: int
) -> None:
    found = errors(f"{said} office", f"{said[:-1]} office", f"{language}-en")
    assert found == {language: (1, letters), "en": (0, 1), "switch": (1, 2)}


def test_a_number_is_of_no_language_and_hides_no_switch() -> None:
    assert errors("我有 50 apples", "我有 15 apples") == {"zh": (0, 2), "en": (0, 1), "switch": (0, 2)}


def test_rates_of_parts_and_their_intervals() -> None:
    pairs = [("我们 go", "我们 gone"), ("好", "好"), ("okay 好", "okay 好")] * 8
    seeds = {0: {str(i): score(r, h, "zh-en", key=str(i)) for i, (r, h) in enumerate(pairs)}}
    s = summarise(seeds)
    assert {name: (p.rate, p.tokens) for name, p in s.parts.items()} == {
        "zh": (0.0, 32),
        "en": (0.5, 16),
        "switch": (0.25, 32),
    }
    en = s.parts["en"]
    assert (en.substitutions, en.deletions, en.insertions) == (0.5, 0.0, 0.0)
    assert en.low is not None
    assert en.high is not None
    assert 0.1 < en.low < 0.5 < en.high < 0.9
    alone = {0: {"a": score("好", "好", "zh-en", key="a"), "b": score("好", "好 la", "zh-en", key="b")}}
    no_word = summarise(alone).parts["en"]
    assert (no_word.rate, no_word.low, no_word.tokens) == (None, None, 0)


TEXTS = st.text("ab c我们ไ5.", max_size=14)


@given(TEXTS, TEXTS, st.sampled_from(["zh-en", "en-zh", "th-en"]))
def test_the_parts_add_up(reference: str, hypothesis: str, language: str) -> None:
    u = score(reference, hypothesis, language)
    one, other = (u.parts[name] for name in languages_of(language) or ())
    numbers = sum(
        not is_spaceless(token[0]) and not any(c.isalpha() for c in token)
        for token in mixed_tokens(reference)
    )
    assert one.length + other.length + numbers == u.words.length
    assert one.errors + other.errors <= u.words.errors
    if "5" not in reference + hypothesis:
        assert one.errors + other.errors == u.words.errors
    switch = u.parts["switch"]
    assert switch.length <= one.length + other.length
    assert switch.errors <= u.words.errors
    assert (switch.length == 0) == (not one.length or not other.length)
