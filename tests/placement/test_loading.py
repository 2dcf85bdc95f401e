"""Loading a shared base: every rank reads its own part, and together they have what is stored."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import apart, clips, gradients, random_bank
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from tiny import make_base
from tiny_families import FAMILIES
from tiny_nemotron import NEMOTRON
from torch import nn

from salsa_dist import UserError
from salsa_dist.config import BaseConfig, PlacementConfig
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.loading import Part, fill, load_base, silent
from salsa_dist.placement.measured import as_loaded
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms import sources
from salsa_dist.speech_llms.load import SpeechLLM, family_of, load_speech_llm, model_class
from salsa_dist.speech_llms.unfilled import Unfilled, unfilled
from salsa_dist.speech_llms.weight_files import StoredTensor

HERE = Path(__file__).parent
MAKERS = {**FAMILIES, **NEMOTRON}
# Their experts are made of several stored tensors.
EXPERTS = {name: MAKERS[name] for name in ("qwen3_omni", *NEMOTRON)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: make(root / family) for family, make in MAKERS.items()}


@pytest.fixture(scope="module")
def four_ranks(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of four ranks on two pretended nodes says of the bases that it loaded."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "folders.json").write_text(json.dumps({k: str(v) for k, v in folders.items()}))
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    (out / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    path = [str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {"PYTHONPATH": os.pathsep.join(path)}
    done = run_ranks(4, HERE / "loading_ranks.py", out, folder=out, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(4)]


def parts_of(folder: Path, count: int, **options: Any) -> list[tuple[SpeechLLM, dict[str, Any]]]:
    """A base as each rank of a group would read it, and the elements of each weight that it keeps."""
    found = []
    for index in range(count):
        base = load_speech_llm(folder, filled=False, **options)
        assert base.sources is not None
        kept: dict[int, torch.Tensor] = {}

        def keep(p: nn.Parameter, kept: Any = kept, part: Part = Part(index, count)) -> None:
            kept[id(p)] = p.detach().view(-1)[slice(*part.run(p.numel()))].clone()

        fill(base.model, base.sources, Part(index, count), keep, silent)
        found.append((base, {n: kept[id(p)] for n, p in base.model.named_parameters()}))
    return found


@pytest.mark.parametrize("family", MAKERS)
def test_parts_put_together_are_what_transformers_loads(family: str, folders: dict[str, Path]) -> None:
    # Voxtral keeps some weights in fp32; the logits test below is in fp32 throughout.
    dtype = "bfloat16"
    parts = parts_of(folders[family], 3, dtype=dtype)
    whole = load_speech_llm(folders[family], dtype=dtype)
    first = parts[0][0]
    for name, wanted in whole.model.named_parameters():
        found = torch.cat([kept[name] for _, kept in parts])
        assert found.dtype == wanted.dtype, name
        assert torch.equal(found, wanted.view(-1)), name
    for name, wanted in whole.model.named_buffers():
        for base, _ in parts:
            found = dict(base.model.named_buffers())[name]
            assert found.dtype == wanted.dtype, name
            assert torch.equal(found, wanted), name
    tied = [
        sorted(n for n, q in whole.model.named_parameters(remove_duplicate=False) if q is p)
        for p in whole.model.parameters()
    ]
    assert tied == [
        sorted(n for n, q in first.model.named_parameters(remove_duplicate=False) if q is p)
        for p in first.model.parameters()
    ]
    assert (first.revision, first.parameters) == (whole.revision, whole.parameters)
    assert first.model.config.to_dict() == whole.model.config.to_dict()
    assert first.model.generation_config.to_dict() == whole.model.generation_config.to_dict()


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("change", ["none", "one lacks", "one is odd", "one too much"])
def test_loading_info_is_that_of_transformers(
    family: str, change: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(folders[family], tmp_path / "changed", change)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    cls = model_class(config, family_of(config.model_type).MODEL_CLASS)
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    _, wanted = cls.from_pretrained(folder, **told)
    found = unfilled(cls, config, str(folder), None, torch.float32)
    assert isinstance(found, Unfilled)
    assert found.loading_info == wanted
    assert bool(wanted["missing_keys"]) == (change == "one lacks")
    assert bool(wanted["mismatched_keys"]) == (change == "one is odd")
    assert bool(wanted["unexpected_keys"]) == (change == "one too much")


@pytest.mark.parametrize("family", EXPERTS)
def test_two_ranks_read_half_of_the_experts_each(
    family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, counts = StoredTensor.read, dict.fromkeys(range(2), 0)

    def counted(self: StoredTensor, begin: int, end: int) -> torch.Tensor:
        counts[index] += (end - begin) * self.dtype.itemsize
        return read(self, begin, end)

    monkeypatch.setattr(StoredTensor, "read", counted)
    base = load_speech_llm(folders[family], filled=False)
    assert base.sources is not None
    experts = {n: s for n, s in base.sources.items() if n.rpartition(".")[0].endswith("experts")}
    assert len(experts) >= 2
    for index in counts:
        for source in experts.values():
            source.read(*Part(index, 2).run(source.numel))
    stored = sum(source.bytes for source in experts.values())
    assert list(counts.values()) == [stored / 2, stored / 2]


def test_a_base_that_is_loaded_whole_says_why(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sources._FOLLOWED, torch.cat)
    lines: list[str] = []
    ranks = Ranks(0, 2, 0, 2, torch.device("cpu"))
    name = str(folders["qwen3_omni"])
    base = load_base(BaseConfig(name=name), ranks, PlacementConfig(kind="node"), lines.append)
    assert base.sources is None
    assert not any(p.is_meta for p in base.model.parameters())
    assert lines[-1] == (
        "each rank loads the whole base before it keeps its part: transformers converts its tensors "
        "by more than can be followed here (torch.cat)"
    )


def changed(source: Path, folder: Path, change: str) -> Path:
    """A copy of a checkpoint with one weight changed."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(n for n in sorted(weights) if n.endswith("q_proj.weight") or "to_q.weight" in n)
    if change == "one lacks":
        del weights[name]
    elif change == "one is odd":
        weights[name] = weights[name][:-1].clone()
    elif change == "one too much":
        weights["spare.weight"] = torch.zeros(3)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("filled", [True, False])
def test_a_checkpoint_that_lacks_weights_is_refused(
    filled: bool, tiny_base: Path, tmp_path: Path
) -> None:
    folder = changed(tiny_base, tmp_path / "changed", "one lacks")
    with pytest.raises(UserError, match=r"lacks 1 weights, such as model\..*q_proj\.weight"):
        load_speech_llm(folder, filled=filled)


def test_a_shorter_window_keeps_the_first_positions(tiny_base: Path) -> None:
    parts = parts_of(tiny_base, 2, window_s=1.0)
    whole = load_speech_llm(tiny_base, window_s=1.0)
    wanted = whole.model.get_encoder().embed_positions.weight
    assert wanted.shape[0] == 50
    found = torch.cat([kept["model.encoder.embed_positions.weight"] for _, kept in parts])
    assert torch.equal(found, wanted.view(-1))


@pytest.mark.parametrize("equal", [True, False])
def test_tied_weights_that_are_both_stored(equal: bool, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    path = folder / "model.safetensors"
    weights = load_file(path)
    head = weights["model.decoder.embed_tokens.weight"].clone()
    head[-1, -1] += 0 if equal else 1
    save_file({**weights, "proj_out.weight": head}, path, metadata={"format": "pt"})
    for base, _ in [*parts_of(folder, 1), (load_speech_llm(folder), {})]:
        embedding = base.model.get_input_embeddings().weight
        assert (base.model.proj_out.weight is embedding) == equal
        assert torch.equal(base.model.proj_out.weight, head)


def test_a_file_that_is_cut_short_is_named(tiny_base: Path, tmp_path: Path) -> None:
    folder = changed(tiny_base, tmp_path / "changed", "none")
    file = folder / "model.safetensors"
    base = load_speech_llm(folder, filled=False)
    file.write_bytes(file.read_bytes()[:-100])
    assert base.sources is not None
    with pytest.raises(UserError, match=r"model\.safetensors is cut short"):
        fill(base.model, base.sources, Part(0, 1), lambda p: None, silent)


def test_progress_is_told_while_reading(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salsa_dist.placement.loading._PERIOD_S", 0)
    lines: list[str] = []
    base = load_speech_llm(tiny_base, filled=False)
    assert base.sources is not None
    fill(base.model, base.sources, Part(0, 2), lambda p: None, lines.append)
    assert "of this rank's 0.00 GB of the base" in lines[0]
    assert lines[-1].startswith("base loaded: this rank read 0.2 MB")


@pytest.mark.parametrize(
    ("family", "kind", "sharing"),
    [
        *((family, "node", 2) for family in MAKERS),
        ("whisper", "full", 4),
        ("granite_speech", "full", 4),
    ],
)
def test_ranks_that_share_a_base_hold_and_read_their_part_of_it(
    family: str, kind: str, sharing: int, four_ranks: list[Any]
) -> None:
    facts = [rank[f"{family} {kind}"] for rank in four_ranks]
    assert all(f["logits_equal"] for f in facts)
    weights = facts[0]["base_bytes"] - facts[0]["buffer_bytes"]
    for first in range(0, 4, sharing):
        group = facts[first : first + sharing]
        # BatchNorm's numbers are read by every rank; all else once a group.
        together = sum(f["read"] for f in group)
        assert weights <= together <= weights + sharing * facts[0]["buffer_bytes"]
    for f in facts:
        # Parts are rounded up to whole elements.
        assert f["parts"] <= f["buffer_bytes"] + weights / sharing + 4 * 200
        assert f["read"] <= f["buffer_bytes"] + weights / sharing + 4 * 200


@pytest.mark.parametrize("kind", ["replicate", "full"])
def test_a_base_in_cpu_memory_gives_the_same_gradients(kind: str, four_ranks: list[Any]) -> None:
    for facts in (rank[f"offloaded {kind}"] for rank in four_ranks):
        assert facts["apart"] < 1e-5
        assert facts["held_on"] == ["cpu"]
        assert facts["resident"] == facts["buffer_bytes"], "parts still count as on the device"
        assert facts["parts"] >= facts["parameters"] / (1 if kind == "replicate" else 4)


def test_a_process_that_no_launcher_started_offloads_too(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = tmp_path / "ds.json"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    strict.write_text(json.dumps({"zero_optimization": zero}))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    found = []
    for offload in ("none", "cpu"):
        placement = PlacementConfig(kind="replicate", offload=offload, ds_config=strict)
        with join() as ranks:
            base = load_base(BaseConfig(name=str(tiny_base)), ranks, placement, silent)
            frozen = FrozenBase(base, random_bank(base, ["salsa", "add", "salsa"]), ranks, placement)
            found.append(gradients(frozen, clips(base))[1])
            line = as_loaded(frozen)
            frozen.close()
    assert "a rank holds 0.0 MB" in line
    assert all(apart(found[1][site], wanted) < 1e-5 for site, wanted in found[0].items())
