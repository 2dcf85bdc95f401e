"""Shared encoding and dropped rows change no token of what transformers' own generate() says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from salsa_dist import load_speech_llm
from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import Clip
from salsa_dist.libraries import transformers as libraries
from salsa_dist.placement.decode import generate
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import join
from salsa_dist.speech_llms import drop_finished
from salsa_dist.speech_llms.batch import PromptBatch
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import site_modules

LIMIT = 24
SITES = {
    "all": tuple(f"{part}.{i}" for part in ("encoder", "llm") for i in range(3)),
    "late": ("encoder.2", "llm.1"),
    "llm": ("llm.0", "llm.2"),
}


@pytest.fixture
def base(tiny_base: Path) -> SpeechLLM:
    """A base whose transcripts end at many lengths, some of them never."""
    llm = load_speech_llm(tiny_base)
    head = llm.model.get_output_embeddings()
    head.register_forward_hook(_ends_at_times(llm.family.eos))
    return llm


def _ends_at_times(eos: int) -> Any:
    def hook(module: Any, args: Any, logits: Tensor) -> Tensor:
        # A function of the row's own state: the same whatever stands beside it.
        likes = (20 * args[0][..., 0].float()).sin()
        logits[..., eos] = torch.where(likes > 0.93, 1e4, -1e4).to(logits.dtype)
        return logits

    return hook


def _clips(count: int, rows: tuple[int, ...]) -> list[Clip]:
    rng = np.random.default_rng(3)
    audio = [rng.standard_normal(rng.integers(6_000, 30_000)).astype(np.float32) for _ in range(count)]
    return [
        Clip(f"clip{i}", 0.1 * audio[i], "", ("bg", "el")[i % 2], row)
        for i in range(count)
        for row in rows
    ]


def _bank() -> Bank:
    specs = [AdapterSpec(name, sites, "salsa") for name, sites in SITES.items()]
    bank = Bank(specs, dict.fromkeys(SITES["all"], 32))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for spec_row, spec in enumerate(specs):
            for site in spec.sites:
                bank.vectors[site][spec_row] = torch.randn(32, generator=generator)
    return bank


def _plainly(llm: SpeechLLM, bank: Bank, batch: PromptBatch) -> list[list[int]]:
    """Token ids by transformers' own generate(), every row by itself and kept to the end."""
    with (
        bank.attached(site_modules(llm.model, llm.layers)),
        bank.rows(batch.rows),
        torch.inference_mode(),
    ):
        ids = llm.model.generate(
            **batch.inputs, **batch.options, return_timestamps=False, max_new_tokens=LIMIT
        )
    return [row.tolist() for row in ids]


def _ours(
    llm: SpeechLLM, bank: Bank, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[int]], list[int], list[int]]:
    """Token ids of a placed base, and the batches of its first encoder and first decoder layer."""
    ids: list[list[int]] = []
    monkeypatch.setattr(
        llm.family, "transcript", lambda row: str(ids.append([int(i) for i in row])), raising=True
    )
    # What a layer that is left out does not run.
    layers = {part: getattr(llm.model.model, part).layers[0].fc1 for part in ("encoder", "decoder")}
    seen: dict[str, list[int]] = {part: [] for part in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, part=part: seen[part].append(len(args[0])))
        for part, layer in layers.items()
    ]
    with join() as ranks:
        frozen = FrozenBase(llm, bank, ranks, PlacementConfig(kind="replicate"))
        generate(frozen, clips, LIMIT)
        frozen.close()
    for hook in hooks:
        hook.remove()
    return ids, seen["encoder"], seen["decoder"]


# In bfloat16 the last bit of a sum depends on how many rows a batch has, in transformers' loop too.
@pytest.mark.parametrize(("dtype", "alike"), [(torch.float32, 24), (torch.bfloat16, 20)])
def test_the_same_tokens_as_plain_generate(
    base: SpeechLLM, dtype: torch.dtype, alike: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.model.to(dtype)
    bank, clips = _bank(), _clips(6, (-1, 0, 1, 2))
    plain = _plainly(base, bank, base.family.prompt_batch(clips).to(torch.device("cpu"), dtype))
    ours, encoded, decoded = _ours(base, bank, clips, monkeypatch)
    assert sum(a == b for a, b in zip(ours, plain, strict=True)) >= alike
    lengths = [len(row) if base.family.eos not in row else row.index(base.family.eos) for row in plain]
    assert len(set(lengths)) > 4  # they end at many lengths
    assert max(lengths) == LIMIT  # and one of them at the limit
    assert encoded == [6]  # each clip once, up to where its adapters part
    assert decoded[0] == 24
    assert decoded[-1] < 18
    assert decoded == sorted(decoded, reverse=True)


def test_a_clip_steered_in_the_llm_alone_is_encoded_once(
    base: SpeechLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = _clips(3, (-1, 2))
    bank = Bank([AdapterSpec("none", ("llm.1",), "add")] * 3, {"llm.1": 32})
    last = base.model.model.encoder.layers[-1].fc1
    seen: list[int] = []
    last.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    _, encoded, decoded = _ours(base, bank, clips, monkeypatch)
    assert encoded == seen == [3]
    assert decoded[0] == 6


def test_zero_shot_alone_is_the_base(base: SpeechLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = _clips(5, (-1,))
    bank = Bank([], {})
    plain = _plainly(base, bank, base.family.prompt_batch(clips))
    ours, encoded, decoded = _ours(base, bank, clips, monkeypatch)
    assert ours == plain
    assert encoded == [5]
    assert min(decoded) < 5


def test_a_rank_that_is_done_steps_along_and_changes_nothing(
    base: SpeechLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = _clips(5, (-1,))[:2]
    bank = Bank([], {})
    plain = _plainly(base, bank, base.family.prompt_batch(clips))
    steps = iter([True] * (LIMIT + 4) + [False])  # another rank goes on for longer
    monkeypatch.setattr(drop_finished, "_any", lambda mine, synced, device: next(steps))
    ours, _, decoded = _ours(base, bank, clips, monkeypatch)
    assert ours == plain
    assert len(decoded) == LIMIT + 5
    assert min(decoded) > 0


def test_a_cache_by_another_name_is_decoded_by_transformers_itself(
    base: SpeechLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = _clips(5, (-1,))
    bank = Bank([], {})
    plain = _plainly(base, bank, base.family.prompt_batch(clips))
    monkeypatch.setattr(libraries, "_CACHE_NAMES", ("some_later_name",))
    ours, encoded, decoded = _ours(base, bank, clips, monkeypatch)
    assert ours == plain
    assert encoded == [5]
    assert min(decoded) == 5
