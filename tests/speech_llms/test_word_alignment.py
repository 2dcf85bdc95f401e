"""Word times: the likeliest alignment, and `salsa-dist shards align`."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import samples, tone, tree
from tiny_ctc import CTC

from salsa_dist import cli
from salsa_dist.corpus.writer import Sample, ShardWriter
from salsa_dist.data.augment import Augment
from salsa_dist.data.clip import Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.joining import PAUSE_S, joined
from salsa_dist.data.reading import ClipReader, first_clips
from salsa_dist.data.sampling import AdapterPlan
from salsa_dist.data.subset import training_shards
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.speech_llms.word_alignment import WordTimes, likeliest, refuse_without_ctc


def test_the_alignment_is_the_likeliest_of_all() -> None:
    rng = np.random.default_rng(0)
    for labels in 8 * ([1, 2, 2], [3], [], [1, 1], [2, 3, 1]):
        scores = np.log(rng.dirichlet(np.ones(4), size=4)).astype(np.float32)
        found = likeliest(scores, labels, blank=0)

        def written(path: tuple[int, ...]) -> list[int]:
            return [token for token, _ in itertools.groupby(path) if token]

        paths = [p for p in itertools.product(range(4), repeat=4) if written(p) == labels]
        said = [sum(scores[t, token] for t, token in enumerate(path)) for path in paths]
        best = paths[int(np.argmax(said))]
        assert [0 if i < 0 else labels[i] for i in found] == list(best)
        assert [i for i, _ in itertools.groupby(found) if i >= 0] == list(range(len(labels)))


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CTC["wav2vec2"](tmp_path_factory.mktemp("ctc") / "base")


def test_words_have_the_times_of_their_letters(ctc: Path) -> None:
    base = load_speech_llm(ctc)
    family: Any = base.family
    clip = Clip("a", tone(1.0, 400, 16_000), "Kon — vuk", "bg")
    frames = family.process_clip(clip).tokens
    ids = family.tokenizer.convert_tokens_to_ids(["k", "o", "n", "|", "v", "u", "k"])
    # Each letter two frames, a blank before it; the separator likewise.
    scores = torch.zeros(1, frames, len(family.tokenizer))
    for t in range(frames):
        scores[0, t, ids[t // 3] if t < 21 and t % 3 else family.blank] = 20.0

    base.model.forward = lambda **features: SimpleNamespace(logits=scores)
    words = WordTimes(base).of(clip)
    for space in ("  ", "\t", "\u00a0"):  # what divides words changes no time
        spaced = replace(clip, text=clip.text.replace(" ", space))
        assert WordTimes(base).of(spaced) == words
    seconds = 1.0 / frames
    assert [word for word, _, _ in words] == ["Kon", "—", "vuk"]
    times = np.array([w[1:] for w in words])
    assert times == pytest.approx(seconds * np.array([[1, 9], [9, 9], [13, 21]]), abs=1e-3)


def align(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["salsa-dist", "shards", "align", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_shards_get_word_times(
    ctc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"one": "kon ptica", "silent": "", "greek": "καλη νυχτα", "long": "kon" * 40}
    with ShardWriter(tmp_path / "old", "tiny", seed=0) as writer:
        clips = [
            Sample(f"bg/{k}", tone(0.5, 300, 16_000), t, "bg", None, "", "", speech=bool(t))
            for k, t in said.items()
        ]
        writer.write("train", "bg", clips, 2)
        old = writer.finish({"source": "made up"})
    before = tree(tmp_path / "old")
    command = (tmp_path / "old", tmp_path / "new", "--base", ctc)
    assert align(monkeypatch, *command) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert "bg: 2 of 4 samples were dropped, such as bg/train-000001.tar: clip bg/greek" in line
    assert not (tmp_path / "new").exists()

    assert align(monkeypatch, *command, "--max-dropped", "0.5") == 0
    out = capsys.readouterr().out
    assert "2 samples with word times, 2 dropped" in out
    assert "has no token for most characters of 'καλη νυχτα'" in out
    assert "clip bg/long: its transcript needs" in out
    assert tree(tmp_path / "old") == before
    index = ShardIndex.load(tmp_path / "new")
    assert index.recipe["source"] == "made up"
    assert index.recipe["aligned"]["dropped"] == {"bg": 2}
    assert index.recipe["aligned"]["from"] == old.hash
    found, first = samples(index), samples(old)
    assert sorted(found) == ["bg/one", "bg/silent"]
    for key, (_, audio, facts) in found.items():
        assert np.array_equal(audio, first[key][1])
        assert {**facts, "words": None} == {**first[key][2], "words": None}
    (clip,) = first_clips(index.folder, index, "bg", 5, 30.0)
    assert clip.words is not None
    assert [w for w, _, _ in clip.words] == ["kon", "ptica"]
    (a, b), (c, d) = (word[1:] for word in clip.words)
    assert 0 <= a < b <= c < d <= 0.5

    # Who has times keeps them, whatever the base; and joined clips have those of both.
    assert align(monkeypatch, tmp_path / "new", tmp_path / "again", "--base", ctc) == 0
    again = ShardIndex.load(tmp_path / "again")
    assert samples(again).keys() == found.keys()
    assert [s.sha256 for s in again.shards] == [s.sha256 for s in index.shards]
    two = joined([clip, clip]).words
    assert two is not None
    assert two[2][0] == "kon"
    assert two[2][1:] == pytest.approx((a + 0.5 + PAUSE_S, b + 0.5 + PAUSE_S))
    assert joined([clip, replace(clip, words=None)]).words is None
    # So does a clip that is said at half the speed.
    plan = AdapterPlan(training_shards(index, ("bg",), None, 0), 2, 1, 0, 30.0)
    reader = ClipReader(index.folder, plan, 1, 0, 1, 30.0, Augment(speed=(0.5, 0.5)))
    slow = next(own for own, _ in reader.step(0).clips if own.key == clip.key)
    assert slow.words is not None
    assert [w[0] for w in slow.words] == ["kon", "ptica"]
    assert np.array([w[1:] for w in slow.words]) == pytest.approx(2 * np.array([(a, b), (c, d)]), 1e-3)


def test_what_is_no_base_for_times(tiny_base: Path) -> None:
    with pytest.raises(UserError, match="is no encoder with CTC: name one with --base"):
        refuse_without_ctc(str(tiny_base), None)
