"""Bases that write a token per frame: the layout of labels, and that it is what is generated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conformance import ALONE, apart, clips, noise, placed, random_bank
from tiny import make_config
from tiny_frames import FRAMES
from torch.nn.functional import cross_entropy

from salsa_dist.config.loading import load_config
from salsa_dist.data.audio import resample
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.placement.kept_prefix import KeptPrefix, Known, without_audio
from salsa_dist.planner.base_shape import shape_of
from salsa_dist.planner.step_work import Work, tokens_of
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.training import from_config
from salsa_dist.training.dev_loss import DevClips
from salsa_dist.training.from_config import make_batches
from salsa_dist.training.loop import train
from salsa_dist.training.loss import label_weights, token_losses

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=list(FRAMES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FRAMES[family](tmp_path_factory.mktemp(family) / "base")


@pytest.fixture(scope="module")
def base(folder: Path) -> SpeechLLM:
    return load_speech_llm(folder)


WORDS = (("лек", 0.1, 0.5), ("on", 0.5, 0.6), ("е", 1.3, 1.6))


def timed(*words: tuple[str, float, float], seconds: float = 2.0) -> Clip:
    clip = noise(seconds, " ".join(word for word, _, _ in words), "bg", 0)
    return replace(clip, words=words)


def test_pieces_stand_where_words_are_said(base: SpeechLLM, family: str) -> None:
    own: Any = base.family
    batch = own.training_batch([timed(*WORDS)])
    pieces = [own.pieces(word) for word, _, _ in WORDS]
    # Kyutai: 0.2 s of silence and 0.4 s of delay are 7.5 frames, from the starts; else from the ends.
    starts = [8, 13, 23] if family == "kyutai" else [7, 8, 21]
    wanted = [own.padding] * len(batch.labels)
    at = 0
    for start, ids in zip(starts, pieces, strict=True):
        at = max(at, start)
        if wanted[at - 1] == own.padding:
            wanted[at - 1] = own.mark
        wanted[at : at + len(ids)] = ids
        at += len(ids)
    assert batch.labels.tolist() == wanted
    assert wanted.count(own.mark) == (3 if family == "kyutai" else 2)  # `on` follows without a frame
    silent = {own.padding, own.mark}
    assert batch.label_weights is not None
    assert batch.label_weights.tolist() == [0.5 if i in silent else 1.0 for i in wanted]
    assert batch.weighted([3.0]).label_weights.tolist() == [3 * w for w in batch.label_weights.tolist()]


def test_what_can_not_be_learned_is_refused(base: SpeechLLM) -> None:
    family: Any = base.family
    with pytest.raises(UserError, match=r"^clip bg/0/2.0 has no word times.* 'salsa-dist shards align"):
        family.training_batch([replace(timed(*WORDS), words=None)])
    late = [("kon" * 9, 1.8, 1.9), ("vuk" * 9, 1.9, 2.0)]
    with pytest.raises(UserError, match=r"the end of its text, .* finds no frame of 80 ms"):
        family.training_batch([timed(*late)])


def test_shards_without_times_are_refused_at_once(
    folder: Path, base: SpeechLLM, tiny_shards: Path, tmp_path: Path
) -> None:
    config = load_config(make_config(tmp_path, folder, tiny_shards))
    with pytest.raises(
        UserError, match=r"^bg/train-.*: sample bg/train-.* has no word times, and this"
    ):
        make_batches(config, ShardIndex.load(tiny_shards), base, ALONE)


def test_dev_clips_without_times_are_refused_before_a_step(
    folder: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_config, "_refuse_untimed", lambda batches: None)
    training = {"steps": 2, "dev_clips": 2}
    steering = {"sites": "llm", "rule": "salsa"}
    config = load_config(
        make_config(tmp_path, folder, tiny_shards, training=training, steering=steering)
    )
    with pytest.raises(UserError, match=r"^bg: none of the 2 dev clips .* bg/dev-.* has no word times"):
        train(config)
    assert not (tmp_path / "run" / "state").exists()


def test_the_audio_is_what_the_processor_makes_of_it(
    base: SpeechLLM, family: str, folder: Path
) -> None:
    own: Any = base.family
    clip = clips(base)[1]
    if family == "kyutai":
        # transformers' own loop, on the whole clip.
        rate = own.features.sampling_rate
        made = own.features(
            resample(clip.audio, SAMPLE_RATE, rate), sampling_rate=rate, return_tensors="pt"
        )
        other = load_speech_llm(folder).model
        del other.generation_config.audio_window_size
        ids = other.generate(input_values=made["input_values"], do_sample=False)
        (found,) = own.generate(base.model, own.prompt_batch([clip]), 1000)
        assert own.transcript(ids[0, 1:].tolist()) == found.text
        return
    from transformers import AutoProcessor

    # Which writes a WAV file of 16 bits first.
    audio = np.round(clip.audio * 32768).astype(np.float32) / 32768
    wanted = AutoProcessor.from_pretrained(folder)(audio, return_tensors="pt")
    batch = own.prompt_batch([replace(clip, audio=audio)])
    assert batch.inputs["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert torch.allclose(batch.inputs["input_features"], wanted["input_features"], atol=1e-3)
    assert own.delay == wanted["num_delay_tokens"]


def test_adapters_share_clips_and_kept_prefixes(base: SpeechLLM, family: str) -> None:
    if family == "kyutai":
        pytest.skip("without encoder sites there is nothing to share")
    bank = random_bank(base, ["salsa", "add"])
    distinct = clips(base)[:2]
    taken = [replace(clip, row=row) for row in (0, 1) for clip in distinct]
    with placed(base, bank) as frozen, torch.no_grad():
        apart_batch = base.family.training_batch(taken)
        shared_batch = base.family.shared_batch(taken, distinct)
        wanted, found = token_losses(frozen, apart_batch), token_losses(frozen, shared_batch)
        assert apart(found, wanted) < 1e-6
        weights = [label_weights(batch, found) for batch in (apart_batch, shared_batch)]
        assert torch.equal(*weights)
        assert set(weights[0].tolist()) == {0.5, 1.0}
        kept = KeptPrefix(None)
        for clip, hidden in zip(distinct, frozen.prefix_of(distinct), strict=True):
            kept.put(clip.key, Known.of(clip), hidden)
        frozen.start_from(kept)
        silent = {c.key: without_audio(c.key, kept.known[c.key], c.language, -1) for c in distinct}
        known = [replace(silent[c.key], row=c.row) for c in taken]
        batch = base.family.shared_batch(known, list(silent.values()), kept=True)
        assert torch.equal(token_losses(frozen, batch), found)


def test_dev_loss_weighs_labels_as_training_does(
    folder: Path, base: SpeechLLM, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ShardIndex.load(tiny_shards)
    config = load_config(make_config(tmp_path, folder, tiny_shards))
    dev = DevClips(index, config.adapter_settings(), 2, base.window_s)
    clip = timed(*WORDS)
    monkeypatch.setattr(dev, "_clips", lambda samples: [replace(clip, row=row) for _, row in samples])
    monkeypatch.setattr(dist, "all_reduce", lambda sums: None)  # one process has all of it
    bank = random_bank(base, ["salsa", "add"])
    with placed(base, bank) as frozen, torch.no_grad():
        found = dev.losses(frozen, config, [0, 1], lambda: None)
        for row in (0, 1):
            batch = base.family.training_batch([replace(clip, row=row)])
            losses = token_losses(frozen, batch)
            weights = label_weights(batch, losses)
            wanted = float((losses * weights).sum() / weights.sum())
            assert found[row] == pytest.approx(wanted, rel=1e-5)


def test_a_plan_counts_a_label_per_frame(base: SpeechLLM) -> None:
    shape = shape_of(base.model, base.name, "float32")
    tokens = tokens_of(shape, Work(clips=1, micro_batch=1, sites=((),), clip_s=8.0))
    clip = timed(*WORDS, seconds=8.0)
    assert len(base.family.training_batch([clip]).labels) <= tokens["labels"] < 8 * 12.5 + 60
    assert tokens["llm"] == tokens["labels"] + 32  # the audio is added to the text, not beside it


def test_training_teaches_the_frames(folder: Path) -> None:
    """Vectors lower the loss; weights, which have room for it, learn two clips by heart."""
    base = load_speech_llm(folder)
    family: Any = base.family
    one = timed(("лек", 0.1, 0.5), ("on", 0.5, 0.6), seconds=0.7)
    learned = [one, replace(timed(("е", 0.2, 0.4), seconds=0.5), row=1)]
    batch = family.training_batch(learned)
    bank = random_bank(base, ["salsa", "add"], size=0.0)
    with placed(base, bank) as frozen:
        adam = torch.optim.Adam(bank.vectors.values(), lr=0.05)
        sums = []
        for _ in range(12):
            losses = token_losses(frozen, batch)
            sums.append(float((losses.detach() * label_weights(batch, losses)).sum()))
            adam.zero_grad()
            losses.sum().backward()
            adam.step()
        assert sums[-1] < 0.8 * sums[0]

    model = base.model.requires_grad_(True)
    trained = [p for name, p in model.named_parameters() if "codec" not in name]
    adam = torch.optim.Adam(trained, lr=5e-3)
    for _ in range(60):
        logits = model(**batch.inputs, use_cache=False).logits[batch.label_positions]
        loss = cross_entropy(logits, batch.labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.requires_grad_(False)
    found = family.generate(model, family.prompt_batch(learned), 100)
    assert [t.text for t in found] == [clip.text for clip in learned]
    assert all(t.finished for t in found)
