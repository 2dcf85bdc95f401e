"""Error rates against numbers worked out by hand, and the properties that any rate must have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from salsa_dist.errors import UserError
from salsa_dist.metrics.error_rates import Edits, Scored, align, is_runaway, score
from salsa_dist.metrics.intervals import clusters
from salsa_dist.metrics.summary import Gain, Summary, p_value
from salsa_dist.metrics.summary import gain as gain_of
from salsa_dist.metrics.summary import summarise as summarise_seeds


def scored(pairs: list[tuple[str, str]], language: str = "en") -> list[Scored]:
    return [score(r, h, language, key=str(i)) for i, (r, h) in enumerate(pairs)]


def one_seed(utterances: list[Scored]) -> dict[int, dict[str, Scored]]:
    return {0: {u.key: u for u in utterances}}


def summarise(utterances: list[Scored]) -> Summary:
    return summarise_seeds(one_seed(utterances))


def relative_gain(before: list[Scored], after: list[Scored]) -> Gain:
    return gain_of(one_seed(before), one_seed(after), "wer")


def test_edits_of_one_utterance() -> None:
    # words:      b replaced by x, c left out, e added (in place it would be five replaced)
    # characters: b→x, "c " left out, " e" added, or five replaced in place: 5 either way
    u = score("A b, c d f g.", "a X d f g e", "en")
    assert u.words == Edits(substitutions=1, deletions=1, insertions=1, length=6)
    assert (u.characters.errors, u.characters.length) == (5, 11)


def test_rates_are_of_the_corpus_not_the_mean_of_utterances() -> None:
    # 1 error in 1 word and 0 in 3: 1/4, where the mean of 1.0 and 0.0 would be 1/2.
    # Characters: "no" -> "yes" 3 errors (2 replaced, 1 added) in 2; 0 in "a b c" (5): 3/7.
    s = summarise(scored([("no", "yes"), ("a b c", "a b c")]))
    assert (s.utterances, s.ref_words) == (2, 4)
    assert s.wer.rate == pytest.approx(1 / 4)
    assert s.cer.rate == pytest.approx(3 / 7)
    assert (s.substitutions, s.deletions, s.insertions) == (1, 0, 0)
    # Resampling draws (no, no): 1, (no, abc): 1/4 or (abc, abc): 0.
    assert (s.wer.low, s.wer.high) == (0.0, 1.0)


def test_chinese_is_not_one_word_per_sentence() -> None:
    # One of four characters is wrong; by spaces it would be one of one.
    s = summarise(scored([("今天很好", "今天真好"), ("好", "好")], "zh"))
    assert s.wer.rate == s.cer.rate == pytest.approx(1 / 5)
    mixed = summarise(scored([("我们用app吧", "我们用map吧"), ("好", "好")], "zh+en"))
    assert mixed.wer.rate == pytest.approx(1 / 6)  # 我 们 用 app 吧, 好
    assert mixed.cer.rate == pytest.approx(2 / 8)  # a→m, p→a or the like: 2 of 7 + 1 characters


def test_empty_references_are_counted_apart() -> None:
    spoken = [("a b", "a x"), ("c d", "c d")]
    with_silence = summarise(scored([*spoken, ("[noise]", "made up words"), ("...", "")]))
    without = summarise(scored(spoken))
    assert with_silence.utterances == 4
    assert with_silence.empty_references == 2
    assert with_silence.empty_reference_insertions == 3
    assert with_silence.empty_hypotheses == 1
    for name in ("wer", "cer", "insertions"):
        assert getattr(with_silence, name) == getattr(without, name)


def test_no_reference_at_all_gives_no_rate() -> None:
    s = summarise(scored([("", "a")]))
    assert (s.utterances, s.wer.rate, s.cer.rate, s.wer.low, s.ref_words) == (1, None, None, None, 0)
    assert summarise([]).wer.rate is None


def test_one_utterance_gives_a_rate_without_an_interval() -> None:
    s = summarise(scored([("a b", "a")]))
    assert (s.wer.rate, s.wer.low, s.wer.high) == (0.5, None, None)


def test_no_errors_give_an_interval_of_zero() -> None:
    s = summarise(scored([("a b", "a b"), ("c", "c")]))
    assert (s.wer.rate, s.wer.low, s.wer.high) == (0.0, 0.0, 0.0)


def test_the_interval_of_a_known_case() -> None:
    # 400 utterances of one word, a quarter wrong: the standard error is sqrt(.25 * .75 / 400) =
    # 0.02165, so the interval is near 0.25 ± 1.96 * 0.02165 = 0.2076 to 0.2924.
    s = summarise(scored([("a", "b")] * 100 + [("a", "a")] * 300))
    assert s.wer.rate == 0.25
    assert s.wer.low == pytest.approx(0.2076, abs=0.006)
    assert s.wer.high == pytest.approx(0.2924, abs=0.006)
    assert s == summarise(scored([("a", "b")] * 100 + [("a", "a")] * 300))  # a fixed seed


def test_the_interval_is_of_the_corpus_rate_too() -> None:
    # Short utterances wrong, long ones right: 1/10 of the words, though half of the utterances.
    s = summarise(scored([("a", "b"), ("a b c d e f g h i", "a b c d e f g h i")] * 50))
    assert s.wer.rate == 0.1
    assert s.wer.low is not None
    assert s.wer.high is not None
    assert 0.05 < s.wer.low < 0.1 < s.wer.high < 0.2


def by_speakers(errors: list[list[int]]) -> list[Scored]:
    """Utterances of four words, by speaker the words of each that are wrong."""
    return [
        score("a a a a", " ".join("x" * n + "a" * (4 - n)), "en", key=f"{s}-{i}", speaker=f"s{s}")
        for s, own in enumerate(errors)
        for i, n in enumerate(own)
    ]


def test_the_interval_agrees_with_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(5)
    utterances = by_speakers([list(rng.integers(0, 5, size)) for size in (3, 9, 4, 7, 2, 6, 8, 5)])
    s = summarise(utterances)
    own = np.random.default_rng(1)
    speakers = sorted({u.speaker or "" for u in utterances})
    rates = []
    for _ in range(4000):
        sampled = own.choice(speakers, len(speakers))
        spoken = [u.words for speaker in sampled for u in utterances if u.speaker == speaker]
        rates.append(sum(e.errors for e in spoken) / sum(e.length for e in spoken))
    low, high = np.percentile(rates, [2.5, 97.5])
    assert (s.wer.low, s.wer.high) == (pytest.approx(low, abs=0.012), pytest.approx(high, abs=0.012))
    assert s.speakers == 8


def test_speakers_that_differ_widen_the_interval_and_equal_ones_do_not() -> None:
    def width(errors: list[list[int]], known: bool) -> float:
        made = by_speakers(errors)
        s = summarise(made if known else [replace(u, speaker=None) for u in made])
        assert s.wer.low is not None
        assert s.wer.high is not None
        return s.wer.high - s.wer.low

    different = [[4] * 10, [0] * 10, [4] * 10, [0] * 10, [4] * 10, [0] * 10]
    alike = [[4, 0] * 5] * 6
    assert width(different, known=True) > 2 * width(different, known=False)
    assert width(alike, known=True) == 0 < width(alike, known=False)


def test_one_speaker_alone_is_resampled_by_utterance() -> None:
    s = summarise(by_speakers([[4, 0] * 10]))
    assert (s.speakers, s.wer.rate) == (1, 0.5)
    assert s.wer.low is not None
    assert 0.2 < s.wer.low < 0.5
    # Utterances of no known speaker are each a group of their own.
    half = [replace(u, speaker=None) if i % 2 else u for i, u in enumerate(by_speakers([[4, 0]] * 3))]
    assert len(set(clusters(half))) == 6
    assert len(set(clusters(by_speakers([[4, 0]] * 3)))) == 3


def test_relative_gain_by_hand() -> None:
    # 4 reference words; 4 errors before, 1 after: (1 - 1/4) / 1 = 3/4.
    before = scored([("a b", "x y"), ("c d", "x y")])
    after = scored([("a b", "a b"), ("c d", "c y")])
    gain = relative_gain(before, after)
    assert (gain.baseline, gain.steered, gain.relative) == (1.0, 0.25, 0.75)
    # Draws: first twice: 1, once each: 3/4, second twice: 1/2.
    assert (gain.low, gain.high) == (0.5, 1.0)
    # Worse is negative, and the order of the utterances does not matter.
    back = relative_gain(list(reversed(after)), before)
    assert back.relative == pytest.approx(-3.0)


def test_a_gain_is_paired() -> None:
    # Hard and easy utterances differ a lot, but each one's errors halve: the gain is certain.
    before = scored([("a b c d e f", "u v w x y z"), ("a b c d e f", "a b c d y z")] * 20)
    after = scored([("a b c d e f", "a b c x y z"), ("a b c d e f", "a b c d e z")] * 20)
    gain = relative_gain(before, after)
    assert gain.low == gain.relative == gain.high == pytest.approx(0.5)


def test_a_gain_over_other_utterances_is_refused() -> None:
    one, two = scored([("a", "b"), ("a", "a")]), scored([("a", "b")])
    with pytest.raises(UserError, match=r"2 and 1 with a reference"):
        relative_gain(one, two)
    with pytest.raises(UserError, match="references"):
        relative_gain(two, scored([("a b", "b")]))


def test_a_gain_over_a_perfect_baseline_is_none() -> None:
    gain = relative_gain(scored([("a", "a"), ("b", "b")]), scored([("a", "a"), ("b", "c")]))
    assert (gain.baseline, gain.steered, gain.relative, gain.low) == (0, 0.5, None, None)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "finished", "expected"),
    [
        ("good morning", "thank you " * 9, True, True),
        ("good morning", "ha" * 60, True, True),
        ("good morning", "!" * 90, False, True),
        ("good morning", "good morning to all of you and many more words than said", False, True),
        # Long, but it does not loop: the reference may have left words out.
        ("good morning", "good morning to all of you and many more words than were said", True, False),
        # A loop that was said.
        ("no no no no no no", "no no no no no no no", True, False),
        # The limit cut off good text: truncated, no runaway.
        ("good morning to all of you", "good morning to", False, False),
        ("good morning to all of you and welcome", "to to to to to to", False, True),
        ("今天", "谢谢" * 30, True, True),
        ("", "", True, False),
    ],
)  # fmt: skip
def test_runaways(reference: str, hypothesis: str, finished: bool, expected: bool) -> None:
    assert is_runaway(reference, hypothesis, finished=finished) is expected
    u = score(reference, hypothesis, "en", finished=finished)
    assert u.truncated == (not finished and not expected)


PIECES = st.text("abc dé我", min_size=1, max_size=8).map(lambda s: " ".join(s.split())).filter(bool)


@given(PIECES, PIECES, st.text("xyz", max_size=5))
def test_any_piece_repeated_long_enough_runs_away(reference: str, piece: str, tail: str) -> None:
    repeats = 40 + len(reference)
    assert is_runaway(reference, piece * repeats + tail)


@given(PIECES, PIECES, st.booleans())
def test_text_no_longer_than_the_reference_runs_away_only_in_an_unfinished_loop(
    reference: str, hypothesis: str, finished: bool
) -> None:
    assume(len(hypothesis) <= len(reference))
    if is_runaway(reference, hypothesis, finished=finished):
        assert not finished
        # Straight from the definition: some piece of it stands there three times in a row.
        n = len(hypothesis)
        assert any(
            hypothesis[i : i + p] * 3 == hypothesis[i : i + 3 * p]
            for p in range(1, n // 3 + 1)
            for i in range(n - 3 * p + 1)
        )


TEXTS = st.text("ab c.我é", max_size=14)


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5), st.sampled_from(["en", "zh", "zh+en"]))
def test_counts_always_add_up(pairs: list[tuple[str, str]], language: str) -> None:
    utterances = scored(pairs, language)
    for (_, hypothesis), u in zip(pairs, utterances, strict=True):
        hits = u.words.length - u.words.substitutions - u.words.deletions
        tokens = hits + u.words.substitutions + u.words.insertions
        assert hits >= 0
        assert (tokens == 0) == u.empty_hypothesis
        assert hypothesis or u.empty_hypothesis
    s = summarise(utterances)
    assert s.utterances == len(pairs)
    if s.wer.rate is not None:
        errors = s.substitutions + s.deletions + s.insertions
        assert s.wer.rate == pytest.approx(errors / s.ref_words)
        if s.wer.low is not None and s.wer.high is not None:
            assert s.wer.low <= s.wer.high
    same = scored([(r, r) for r, _ in pairs], language)
    assert summarise(same).wer.rate in (0.0, None)


@given(TEXTS, TEXTS, st.sampled_from(["en", "zh", "zh+en"]))
def test_an_alignment_shows_every_error_once(r: str, h: str, language: str) -> None:
    pieces = align(r, h, language)
    edits = score(r, h, language).words
    assert sum(p.kind == "substitute" for p in pieces) == edits.substitutions
    assert any(p.kind == "insert" for p in pieces) == (edits.insertions > 0)
    assert any(p.kind == "delete" for p in pieces) == (edits.deletions > 0)
    for p in pieces:
        assert (p.reference == "") == (p.kind == "insert")
        assert (p.hypothesis == "") == (p.kind == "delete")


def test_numbers_do_not_depend_on_the_order_of_utterances() -> None:
    rng = np.random.default_rng(3)
    before = by_speakers([list(rng.integers(0, 5, size)) for size in (3, 9, 4, 7, 2, 6)])
    after = by_speakers([list(rng.integers(0, 4, size)) for size in (3, 9, 4, 7, 2, 6)])
    shuffled = [before[i] for i in rng.permutation(len(before))]
    assert summarise(shuffled) == summarise(before)
    assert relative_gain(shuffled, after[::-1]) == relative_gain(before, after)
    seeds = one_seed(before), one_seed(shuffled)
    assert p_value(seeds[0], one_seed(after), "wer") == p_value(seeds[1], one_seed(after[::-1]), "wer")
