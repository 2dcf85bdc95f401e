"""Audio longer than the window: cut where it is quiet, whole in its pieces, transcribed as they are."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from salsa_dist import load_speech_llm, transcribe
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.batch import Transcript
from salsa_dist.speech_llms.long_audio import joined, most_pieces, pieces


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


@settings(max_examples=60)
@given(st.floats(0.05, 9), st.floats(0.1, 3), st.integers(0, 99))
def test_pieces_are_the_clip_and_fit_the_window(seconds: float, window_s: float, seed: int) -> None:
    clip = Clip("a", noise(seconds, seed), "text", "bg", row=3)
    cut = pieces(clip, window_s)
    assert np.array_equal(np.concatenate([p.audio for p in cut]), clip.audio)
    assert max(p.seconds for p in cut) <= window_s + 1 / SAMPLE_RATE
    assert len(cut) <= most_pieces(clip.seconds, window_s)
    assert {p.row for p in cut} == {3}
    assert len({p.key for p in cut}) == len(cut)


def test_a_short_clip_stays_as_it_is() -> None:
    clip = Clip("a", noise(1), "text", "bg")
    assert pieces(clip, 1.0) == [clip]


def test_the_cut_is_in_the_pause() -> None:
    audio = noise(5)
    audio[round(2.6 * SAMPLE_RATE) : round(2.8 * SAMPLE_RATE)] = 0
    first, *_ = pieces(Clip("a", audio, "", "bg"), 3.0)
    assert 2.6 < first.seconds < 2.8


def test_words_are_joined_as_the_language_writes_them() -> None:
    parts = [Transcript("добро", True), Transcript("", True), Transcript("утро", False)]
    assert joined(parts, "bg") == Transcript("добро утро", False)
    assert joined([Transcript("早上", True), Transcript("好", True)], "zh-en").text == "早上好"


def test_a_long_file_is_transcribed_as_its_pieces(tiny_base: Path, tmp_path: Path) -> None:
    llm = load_speech_llm(tiny_base, window_s=1)
    audio = noise(2.5)
    soundfile.write(tmp_path / "long.flac", audio, SAMPLE_RATE)
    audio, _ = soundfile.read(tmp_path / "long.flac", dtype="float32")
    parts = pieces(Clip("a", audio, "", "bg"), 1.0)
    assert len(parts) > 2
    for i, part in enumerate(parts):
        soundfile.write(tmp_path / f"{i}.flac", part.audio, SAMPLE_RATE)
    files = [tmp_path / f"{i}.flac" for i in range(len(parts))]
    (whole,) = transcribe(llm, [tmp_path / "long.flac"], "bg", max_new_tokens=5)
    assert whole == " ".join(transcribe(llm, files, "bg", max_new_tokens=5))


def test_whisper_refuses_control_tokens_in_a_transcript(tiny_base: Path) -> None:
    llm = load_speech_llm(tiny_base)
    with pytest.raises(UserError, match=r"clip a: its transcript .* holds a control token"):
        llm.family.training_batch([Clip("a", noise(1), "добро <|el|> утро", "bg")])
