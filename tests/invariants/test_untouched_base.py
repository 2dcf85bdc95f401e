"""Invariant 4: the base is untouched, and nothing that is saved holds a weight of it."""

import json
from pathlib import Path

import pytest
import torch
from placed_gradients import clips, weights_hash
from safetensors import safe_open
from tiny import make_config

from salsa_dist import SteeringVectors, load_config, load_speech_llm, train
from salsa_dist.config import PlacementConfig
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import join
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.rules.registry import RULES
from salsa_dist.steering.sites import site_modules
from salsa_dist.training.from_config import make_bank
from salsa_dist.training.loss import token_losses
from salsa_dist.training.optimizer import PackedAdam


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", list(RULES))
def test_zero_vectors_change_no_logit_by_one_bit(tiny_base: Path, rule: str, dtype: str) -> None:
    llm = load_speech_llm(tiny_base, dtype=dtype)
    batch = llm.family.training_batch(clips()).to(torch.device("cpu"), llm.model.dtype)
    plain = llm.model(**batch.inputs).logits
    sites, numbers = list(site_modules(llm.model)), 32 * RULES[rule].parts
    zero = SteeringVectors({site: torch.zeros(numbers) for site in sites}, rule)
    with zero.attach(llm):
        steered = llm.model(**batch.inputs).logits
    assert torch.equal(plain, steered)
    for site in sites:  # and any other vector does change them
        moved = SteeringVectors({site: torch.full((numbers,), 0.3)}, rule)
        with moved.attach(llm):
            assert not torch.equal(plain, llm.model(**batch.inputs).logits), site
    assert torch.equal(plain, llm.model(**batch.inputs).logits)  # taken off again


def test_a_clip_without_an_adapter_is_not_steered(tiny_base: Path) -> None:
    llm = load_speech_llm(tiny_base)
    batch = llm.family.training_batch(clips())
    plain = llm.model(**batch.inputs).logits
    modules = site_modules(llm.model)
    bank = Bank([AdapterSpec("a", tuple(modules), "salsa")], dict.fromkeys(modules, 32))
    bank.set_row(0, {site: torch.full((32,), 0.3) for site in modules})
    rows = torch.tensor([-1, 0, -1, -1, 0, -1, 0])
    with bank.attached(modules), bank.rows({"encoder": rows, "llm": rows}):
        mixed = llm.model(**batch.inputs).logits
    for i, row in enumerate(rows.tolist()):
        assert torch.equal(mixed[i], plain[i]) == (row == -1)


def test_training_leaves_the_base_as_it_was(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    files = {p: p.read_bytes() for p in tiny_base.iterdir()}
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards))
    llm = load_speech_llm(tiny_base)
    keys = list(llm.model.state_dict())
    with join() as ranks:
        bank = make_bank(config, llm, ranks.device)
        base = FrozenBase(llm, bank, ranks, PlacementConfig(kind="replicate"))
        before = weights_hash(base)
        optimizer = PackedAdam(bank, [], None)
        token_losses(base, llm.family.training_batch(clips())).sum().backward()
        assert all(v.grad is not None and v.grad.norm() > 0 for v in bank.vectors.values())
        assert weights_hash(base) == before
        assert list(llm.model.state_dict()) == keys
        assert all(p.grad is None and not p.requires_grad for p in llm.model.parameters())
        assert not any(m.training for m in llm.model.modules())
        moments = ("first/", "second/")
        owned = [t for name, t in optimizer.tensors().items() if name.startswith(moments)]
        assert sum(t.numel() for t in owned) == 2 * sum(v.numel() for v in bank.vectors.values())
    train(config)
    assert {p: p.read_bytes() for p in tiny_base.iterdir()} == files


def test_saved_files_hold_vectors_and_no_weights(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    done = train(load_config(make_config(tmp_path, tiny_base, tiny_shards)))
    bank_bytes = 2 * 6 * 32 * 4  # adapters, sites, width, fp32
    for folder in done.adapters:
        names = {p.name for p in folder.iterdir()}
        assert names == {"adapter.safetensors", "adapter.json", "README.md"}
        path = folder / "adapter.safetensors"
        with safe_open(path, framework="pt") as file:
            assert {tuple(file.get_tensor(k).shape) for k in file.keys()} == {(32,)}  # noqa: SIM118
            metadata = file.metadata()
        assert path.stat().st_size <= bank_bytes / 2 + 4096
        assert metadata["revision"] == load_speech_llm(tiny_base).revision
        assert metadata["sites"].split() == [f"{c}.{i}" for c in ("encoder", "llm") for i in range(3)]
    (state,) = sorted((tmp_path / "run/state").glob("*"))[-1:]
    assert state.stat().st_size <= 4 * bank_bytes + 65_536
    with safe_open(state, framework="pt") as file:
        shapes = {tuple(file.get_tensor(k).shape) for k in file.keys()}  # noqa: SIM118
        fields = json.loads(file.metadata()["state"])
    assert shapes == {(2, 32), (2,)}
    assert fields["step"] == 6
