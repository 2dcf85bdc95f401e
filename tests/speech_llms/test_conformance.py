"""What every family must do, on a complete tiny checkpoint of it.

The checkpoints' makers are those of tests/every_family.py, where a new family adds its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conformance import (
    RULES,
    apart,
    clips,
    evenly,
    gradients,
    kept_bytes,
    loaded,
    noise,
    placed,
    random_bank,
)
from every_family import EVERY_FAMILY
from ranks import run_ranks
from tiny_ctc import CTC
from tiny_frames import FRAMES
from torch.nn.functional import cross_entropy, ctc_loss

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.placement.decode import generate
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.blocks import layer_of
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training.loss import token_losses

HERE = Path(__file__).parent


class _Folders(dict[str, Path]):
    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, family: str) -> Path:
        self[family] = EVERY_FAMILY[family](self.root / family)
        return self[family]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the tiny checkpoints are, by family; each is made when it is asked for."""
    return _Folders(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module", params=list(EVERY_FAMILY))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str, folders: dict[str, Path]) -> SpeechLLM:
    torch.set_num_threads(1)
    return loaded(family, folders[family])


@pytest.mark.parametrize("rules", [["salsa"] * 3, RULES], ids=["salsa", "all"])
def test_zero_vectors_change_no_logit(base: SpeechLLM, rules: list[str]) -> None:
    batch = base.family.training_batch(clips(base))
    bank = random_bank(base, rules, size=0.0)
    with torch.no_grad():
        plain = base.model(**batch.inputs, use_cache=False).logits
        with placed(base, bank), bank.rows(batch.rows):
            steered = base.model(**batch.inputs, use_cache=False).logits
        with torch.no_grad():
            bank.vectors[bank.sites[0]].add_(0.1)
        with placed(base, bank), bank.rows(batch.rows):
            moved = base.model(**batch.inputs, use_cache=False).logits
    assert torch.equal(plain, steered)
    assert not torch.equal(plain, moved)


def test_gradients_are_finite_differences(base: SpeechLLM, family: str) -> None:
    # At a longer step a token may go to another expert, whose loss is another.
    shorter = 0.02 if family == "qwen3_omni" else 1.0
    bank = random_bank(base, RULES)
    with placed(base, bank) as frozen:
        batch = base.family.training_batch(clips(base))
        _, found = gradients(frozen, clips(base))
        generator = torch.Generator().manual_seed(2)
        for site, vectors in bank.vectors.items():
            # Along the gradient, so that the difference stands out of fp32's noise, and a bit aside.
            aside = torch.randn(vectors.shape, generator=generator)
            direction = found[site] / found[site].norm() + 0.5 * aside / aside.norm()
            sums = []
            # A norm behind a block bends the loss more.
            length = shorter * (2e-2 if site == layer_of(site) else 1e-2)
            for step in (length, -length):
                with torch.no_grad():
                    vectors += step * direction
                    sums.append(token_losses(frozen, batch).double().sum())
                    vectors -= step * direction
            difference = float(sums[0] - sums[1]) / (2 * length)
            slope = float((found[site] * direction).sum())
            assert slope > 1e-3, site
            assert difference == pytest.approx(slope, rel=2e-2), site


def test_a_row_touches_only_its_own_vector(base: SpeechLLM) -> None:
    bank = random_bank(base, RULES)
    with placed(base, bank) as frozen:
        batch = base.family.training_batch(clips(base))
        with torch.no_grad():
            before = token_losses(frozen, batch)
        for row in range(3):
            own = batch.label_rows == row
            for vectors in bank.vectors.values():
                vectors.grad = None
            token_losses(frozen, batch)[own].sum().backward()
            for site, vectors in bank.vectors.items():
                assert vectors.grad is not None
                others = vectors.grad[[i for i in range(3) if i != row]]
                assert not others.any(), (site, row)
                assert vectors.grad[row].norm() > 1e-4, (site, row)
                with torch.no_grad():
                    kept = vectors[row].clone()
                    vectors[row, ::2] += 0.1  # not all: a norm behind it takes a constant away
                    after = token_losses(frozen, batch)
                    vectors[row] = kept
                assert torch.equal(after[~own], before[~own]), (site, row)
                assert not torch.equal(after[own], before[own]), (site, row)


def test_packing_changes_nothing(base: SpeechLLM) -> None:
    bank = random_bank(base, RULES)
    with placed(base, bank) as frozen:
        losses, packed = gradients(frozen, clips(base))
        alone_losses, alone = [], {site: torch.zeros_like(g) for site, g in packed.items()}
        for clip in clips(base):
            loss, gradient = gradients(frozen, [clip])
            alone_losses.append(loss)
            for site in alone:
                alone[site] += gradient[site]
        assert apart(losses, torch.cat(alone_losses)) < 1e-5
        for site, gradient in packed.items():
            for row in range(3):
                assert apart(gradient[row], alone[site][row]) < 1e-5, (site, row)


def test_activation_checkpointing_changes_nothing_but_memory(base: SpeechLLM) -> None:
    bank = random_bank(base, RULES)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel() * tensor.element_size()
        return tensor

    results = []
    for checkpointing in (False, True):
        kept.append(0)
        with (
            placed(base, bank, checkpointing) as frozen,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            results.append(gradients(frozen, clips(base)))
    (losses, plain), (again_losses, again) = results
    assert torch.equal(losses, again_losses)
    assert all(torch.equal(plain[site], again[site]) for site in plain)
    assert kept[1] < kept[0]
    assert not any("forward" in vars(m) for m in base.model.modules())  # taken off again


def test_cached_generation_equals_uncached(
    base: SpeechLLM, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = random_bank(base, RULES)
    audio = getattr(base.family, "audio_id", None)
    if audio is not None:  # random weights may write it, and without a cache it asks for more audio
        monkeypatch.setattr(base.model.generation_config, "suppress_tokens", [audio])
    with placed(base, bank), torch.inference_mode():
        batch = base.family.prompt_batch(clips(base))
        uncached = replace(batch, options={**batch.options, "use_cache": False})
        with bank.rows(batch.rows):
            one = base.family.generate(base.model, batch, 8)
            # VibeVoice of transformers 5.17 forgets its audio after the first token without a cache.
            forgets = family == "vibevoice_asr" and transformers.__version__ < "5.24"
            other = one if forgets else base.family.generate(base.model, uncached, 8)
        alone = []
        for clip in clips(base):
            single = base.family.prompt_batch([clip])
            with bank.rows(single.rows):
                alone += base.family.generate(base.model, single, 8)
    assert one == other
    assert one == alone
    assert len({t.text for t in one}) > 1


def test_generation_goes_on_where_training_starts(base: SpeechLLM, family: str) -> None:
    """The first token of a transcript is what training's logits say at the first label."""
    if family in CTC:
        pytest.skip("it reads no prompt")
    bank = random_bank(base, RULES)
    batch = base.family.training_batch(clips(base))
    first = batch.label_positions.int().argmax(1)
    with placed(base, bank), torch.inference_mode():
        with bank.rows(batch.rows):
            logits = base.model(**batch.inputs, use_cache=False).logits
        likely = logits[torch.arange(len(first)), first]
        never = getattr(base.model.generation_config, "begin_suppress_tokens", None) or []
        likely[:, never] = -torch.inf
        prompts = base.family.prompt_batch(clips(base))
        with bank.rows(prompts.rows):
            texts = [t.text for t in base.family.generate(base.model, prompts, 1)]
    assert texts == [base.family.transcript([i]) for i in likely.argmax(1).tolist()]


def test_the_prompt_is_a_masked_prefix(base: SpeechLLM, family: str) -> None:
    if family in CTC:
        pytest.skip("it reads no prompt")
    batch = base.family.training_batch(clips(base))
    prompts = base.family.prompt_batch(clips(base)).inputs
    ids = batch.inputs.get("input_ids", batch.inputs.get("decoder_input_ids"))
    for i, clip in enumerate(clips(base)):
        if "input_ids" in prompts:
            prompt = prompts["input_ids"][i][prompts["attention_mask"][i].bool()].tolist()
        else:
            prompt = base.family.prompt(clip.language)
        assert ids[i, : len(prompt)].tolist() == prompt
        labelled = batch.label_positions[i].nonzero().flatten().tolist()
        # The first label is predicted from the prompt's last token; the rest follow without a gap.
        assert labelled[0] == len(prompt) - 1
        assert labelled == list(range(labelled[0], labelled[0] + len(labelled)))
        text = ids[i, len(prompt) : labelled[-1] + 1].tolist()
        starts = int(batch.label_positions[:i].sum())
        assert batch.labels[starts : starts + len(text)].tolist() == text


def test_decoded_labels_are_the_reference(base: SpeechLLM, family: str) -> None:
    batch = base.family.training_batch(clips(base))
    counts = (
        batch.label_positions.sum(1) if batch.label_counts is None else batch.label_counts
    ).tolist()
    found = [base.family.transcript(part.tolist()) for part in batch.labels.split(counts)]
    assert found == [clip.text for clip in clips(base)]
    endless = family in CTC or family in FRAMES
    stop = [] if endless else base.model.generation_config.eos_token_id
    for part in batch.labels.split(counts) if not endless else ():
        assert part[-1] in (stop if isinstance(stop, list) else [stop]), (
            "the end of a transcript is learned"
        )
    assert batch.label_rows.tolist() == [
        c.row for c, n in zip(clips(base), counts, strict=True) for _ in range(n)
    ]


def test_an_adapter_survives_its_file(base: SpeechLLM, tmp_path: Path) -> None:
    bank = random_bank(base, RULES)
    batch = base.family.training_batch([replace(c, row=1) for c in clips(base)])
    vectors = bank.row(1)
    made = SteeringVectors(vectors, RULES[1], base=base.name, revision=base.revision)
    loaded = SteeringVectors.load(made.save(tmp_path / "adapter.safetensors"))
    with torch.no_grad():
        with placed(base, bank), bank.rows(batch.rows):
            wanted = base.model(**batch.inputs, use_cache=False).logits
        with loaded.attach(base):
            found = base.model(**batch.inputs, use_cache=False).logits
    assert torch.equal(found, wanted)


def test_the_base_is_untouched(base: SpeechLLM) -> None:
    def state() -> tuple[list[str], str]:
        tensors = base.model.state_dict()
        digest = hashlib.sha256()
        for tensor in tensors.values():
            digest.update(tensor.contiguous().numpy().tobytes())
        return list(tensors), digest.hexdigest()

    before = state()
    bank = random_bank(base, RULES)
    with placed(base, bank) as frozen:
        gradients(frozen, clips(base))
        generate(frozen, clips(base), 3)
        assert state() == before
    assert state() == before
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())
    assert not any(module.training for module in base.model.modules())


def test_the_narrowed_head_gives_the_full_logits(base: SpeechLLM) -> None:
    bank = random_bank(base, RULES)
    batch = base.family.training_batch(clips(base))
    with placed(base, bank) as frozen, torch.no_grad():
        narrowed, losses = frozen.logits(batch), token_losses(frozen, batch)
        with bank.rows(batch.rows):
            logits = base.model(**batch.inputs, use_cache=False).logits
    full = logits[batch.label_positions]
    assert apart(narrowed, full) < 1e-6
    if batch.label_counts is None:
        full_losses = cross_entropy(full, batch.labels, reduction="none")
    else:  # of one clip after the other, by torch's own reduction
        frames = batch.label_positions.sum(1).tolist()
        parts = zip(full.split(frames), batch.labels.split(batch.label_counts.tolist()), strict=True)
        full_losses = torch.cat(
            [
                ctc_loss(
                    one.log_softmax(-1)[:, None], own[None], [len(one)], [len(own)], base.family.blank
                ).expand(len(own))
                for one, own in parts
            ]
        )
    assert len(full_losses) == len(batch.labels) > 0
    assert apart(losses, full_losses) < 1e-6


def test_odd_audio(base: SpeechLLM) -> None:
    """Nothing, a few milliseconds, silence: each alone and together, trained and transcribed."""
    odd = [
        Clip("empty", np.zeros(0, np.float32), "a", "bg", 0),
        Clip("click", np.ones(80, np.float32), "b", "bg", 1),
        Clip("silence", np.zeros(SAMPLE_RATE, np.float32), "c", "bg", 2),
    ]
    odd = [replace(clip, words=evenly(clip.text, clip.seconds)) for clip in odd]
    bank = random_bank(base, RULES)
    with placed(base, bank) as frozen:
        for batch in ([odd[0]], [odd[1]], [odd[2]], odd):
            losses, found = gradients(frozen, batch)
            assert torch.isfinite(losses).all()
            assert all(torch.isfinite(g).all() for g in found.values())
            assert len(generate(frozen, batch, 2)) == len(batch)


def test_a_clip_without_text_has_no_labels(base: SpeechLLM) -> None:
    bank = random_bank(base, RULES)
    silent = replace(clips(base)[0], text=" ", row=-1)
    with placed(base, bank) as frozen:
        losses, found = gradients(frozen, [silent])
        assert len(losses) == 0
        assert not any(g.any() for g in found.values())
        wanted, _ = gradients(frozen, clips(base))
        packed, _ = gradients(frozen, [*clips(base), silent])
        assert apart(packed, wanted) < 1e-5


def test_a_clip_without_speech_has_the_end_as_its_only_label(base: SpeechLLM, family: str) -> None:
    silent = replace(clips(base)[0], text="", speech=False)
    if family in CTC:
        with pytest.raises(UserError, match="has no speech, and a CTC base has no label for that"):
            base.family.training_batch([silent])
        return
    batch = base.family.training_batch([clips(base)[1], silent])
    if family in FRAMES:
        own = int(batch.label_positions.sum(1)[1])
        assert batch.labels[-own:].tolist() == [base.family.padding] * own
        return
    assert batch.label_positions.sum(1)[1] == 1
    stop = base.model.generation_config.eos_token_id
    assert batch.labels[-1] in (stop if isinstance(stop, list) else [stop])
    # It is predicted where the transcript would start.
    alone = base.family.training_batch([silent]).label_positions
    said = base.family.training_batch([replace(silent, text="vuk")]).label_positions
    assert int(alone[0].nonzero()[0]) == int(said[0].nonzero()[0])


def test_a_clip_longer_than_the_window_is_refused(base: SpeechLLM) -> None:
    short = copy.copy(base.family)
    short.window_s = min(1.0, base.family.window_s)
    with pytest.raises(UserError, match=r"clip bg/0/1.5 lasts 1.5 s, the audio window is 1 s"):
        short.training_batch([noise(1.5, "a", "bg", 0)])


@pytest.mark.parametrize("language", ["tw", "zh-en", "pt-BR", "yue"])
def test_any_language_has_a_prompt(base: SpeechLLM, language: str) -> None:
    clip = replace(clips(base)[0], language=language)
    batch = base.family.training_batch([clip])
    assert base.family.transcript(batch.labels.tolist()) == clip.text
    with pytest.raises(UserError, match="no language code"):
        base.family.prompt("Bulgarian, I think")


def test_data_workers_can_have_a_copy(base: SpeechLLM) -> None:
    copied = pickle.loads(pickle.dumps(base.family))
    one, other = base.family.training_batch(clips(base)), copied.training_batch(clips(base))
    assert torch.equal(one.labels, other.labels)
    for name, tensor in one.inputs.items():
        assert torch.equal(tensor, other.inputs[name])


def test_half_precision(family: str, folders: dict[str, Path]) -> None:
    base = loaded(family, folders[family], "bfloat16")
    batch = base.family.training_batch(clips(base)).to(torch.device("cpu"), torch.bfloat16)
    bank = random_bank(base, ["salsa", "add", "salsa"], size=0.0)
    with placed(base, bank) as frozen:
        with torch.no_grad():
            plain = base.model(**batch.inputs, use_cache=False).logits
            with bank.rows(batch.rows):
                steered = base.model(**batch.inputs, use_cache=False).logits
        assert plain.dtype == torch.bfloat16
        assert torch.equal(plain, steered)
        losses, found = gradients(frozen, clips(base))
        assert losses.dtype == torch.float32
        for site, gradient in found.items():
            assert gradient.dtype == torch.float32
            assert gradient.isfinite().all(), site
            assert gradient.norm() > 0, site
        assert len(generate(frozen, clips(base), 2)) == 4


@pytest.fixture(scope="session")
def two_ranks(
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    """Every family that is to be tested on two ZeRO-3 ranks, in one launch; the folder with what they
    report."""
    wanted = [
        item.callspec.params["family"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.name.startswith("test_two_zero3_ranks_")
    ]
    out = tmp_path_factory.mktemp("zero")
    (out / "folders.json").write_text(json.dumps({family: str(folders[family]) for family in wanted}))
    settings = {
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "stage3_model_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
        }
    }
    (out / "ds.json").write_text(json.dumps(settings))
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = run_ranks(2, HERE / "zero_ranks.py", out, folder=out, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return out


def test_two_zero3_ranks_give_the_gradients_of_one_process(
    family: str, base: SpeechLLM, two_ranks: Path
) -> None:
    found = torch.load(two_ranks / f"{family}.pt", weights_only=True)
    assert found["resident"] == 0, "weights stayed gathered: nothing was partitioned"
    bank = random_bank(base, RULES)
    with placed(base, bank) as frozen:
        losses, wanted = gradients(frozen, clips(base))
        _, first_only = gradients(frozen, clips(base)[:3])
        kept = kept_bytes(frozen, clips(base)[:3])
        texts = [t.text for t in generate(frozen, clips(base), 4)]
    assert found["loss"] == pytest.approx(float(losses.sum()), rel=1e-5)
    assert found["texts"] == texts
    assert found["kept"] <= kept, "backward keeps gathered weights, or inputs of linear layers"
    for site, gradient in wanted.items():
        assert apart(found["gradients"][site], gradient) < 1e-5, site
        assert apart(found["first_only"][site], first_only[site]) < 1e-5, site
        assert apart(found["checkpointed"][site], gradient) < 1e-5, site
