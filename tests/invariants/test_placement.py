"""Invariants 1 and 4 on four ranks: where the base's weights live changes neither gradients nor losses,
and leaves the base as it was.

The reference is one process, one clip at a time, with transformers' own loss and a vector added by
hand: no bank, no packing, no DeepSpeed.
"""

import json
import os
from pathlib import Path
from typing import Any

import placed_gradients
import pytest
import torch
from placed_gradients import ACTIVE, COMBINATIONS, DTYPES, MEMORY, PLACEMENTS, RANKS
from ranks import run_ranks
from safetensors.torch import load_file

from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.sites import site_modules

SHARDED = {"node": [(0, 1), (2, 3)], "island": [(0, 1), (2, 3)], "full": [(0, 1, 2, 3)]}
BOTH_WAYS = [name for name in PLACEMENTS if name != "island"]
EVERY = pytest.mark.parametrize(("name", "dtype", "memory"), COMBINATIONS)
CUT = pytest.mark.parametrize(("name", "dtype", "memory"), [c for c in COMBINATIONS if c[0] in SHARDED])


@pytest.fixture(scope="module")
def placed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks wrote under each placement, all in one start."""
    out = tmp_path_factory.mktemp("placed")
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = run_ranks(
        RANKS, placed_gradients.__file__, tiny_base, out, folder=out, env={"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return out


@pytest.fixture(scope="module")
def reference(tiny_base: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients and losses of one process, by precision."""
    return {dtype: reference_gradients(load_speech_llm(tiny_base, dtype=dtype)) for dtype in DTYPES}


def facts(placed: Path, name: str, dtype: str, memory: str) -> list[dict[str, Any]]:
    """What each rank saw."""
    paths = [placed / f"{name}-{dtype}-{memory}-rank{r}.json" for r in range(RANKS)]
    return [json.loads(p.read_text()) for p in paths]


def tensors(placed: Path, name: str, dtype: str, memory: str) -> list[dict[str, torch.Tensor]]:
    """Each rank's gradients and losses."""
    return [load_file(placed / f"{name}-{dtype}-{memory}-rank{r}.safetensors") for r in range(RANKS)]


def reference_gradients(llm: SpeechLLM) -> dict[str, torch.Tensor]:
    """Gradients and losses of the step, from first principles."""
    modules = site_modules(llm.model)
    bank = placed_gradients.make_bank(list(modules))
    leaves = [
        {s: bank.vectors[s][row].detach().clone().requires_grad_() for s in modules} for row in (0, 1)
    ]
    sums, counts = torch.zeros(2), torch.zeros(2)
    for clip in placed_gradients.clips():
        vectors, rule = leaves[clip.row], bank.specs[clip.row].rule

        def hook(site: str, vectors: Any = vectors, rule: str = rule) -> Any:
            def steer(module: Any, args: Any, output: Any) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                h = hidden.float()
                s = h + vectors[site]
                if rule == "salsa":
                    s = s * h.norm(dim=-1, keepdim=True) / s.norm(dim=-1, keepdim=True)
                s = s.to(hidden.dtype)
                return (s, *output[1:]) if isinstance(output, tuple) else s

            return steer

        hooks = [m.register_forward_hook(hook(s)) for s, m in modules.items()]
        labels = torch.tensor([llm.family.prompt(clip.language)[1:] + llm.family.text_ids(clip)])
        features = llm.family.training_batch([clip]).inputs["input_features"]
        logits = llm.model(
            input_features=features.to(llm.model.dtype),
            decoder_input_ids=torch.cat([torch.tensor([[llm.family.start]]), labels[:, :-1]], dim=1),
        ).logits.float()
        text = labels.masked_fill(torch.arange(labels.shape[1]) < 3, -100)
        loss = llm.model.loss_function(logits, text, logits.shape[-1], shift_labels=text)
        n = labels.shape[1] - 3
        (loss * n).backward()
        sums[clip.row] += loss.detach() * n
        counts[clip.row] += n
        for handle in hooks:
            handle.remove()
    gradients = {}
    for site in modules:
        rows = [
            leaf[site].grad / counts[row] if site in bank.specs[row].sites else torch.zeros(32)
            for row, leaf in enumerate(leaves)
        ]
        gradients[site] = torch.stack(rows)
    return {**gradients, "losses": sums / counts}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(("name", "memory"), [(n, m) for n, d, m in COMBINATIONS if d == "float32"])
def test_gradients_and_losses_are_those_of_one_process(
    placed: Path, reference: dict[str, dict[str, torch.Tensor]], name: str, memory: str
) -> None:
    for found in tensors(placed, name, "float32", memory):
        assert found.keys() == reference["float32"].keys()
        for site, wanted in reference["float32"].items():
            assert wanted.norm() > 0
            assert relative(found[site], wanted) < 1e-5, site


@CUT
def test_backward_keeps_no_more_where_weights_are_sharded(
    placed: Path, name: str, dtype: str, memory: str
) -> None:
    """DeepSpeed's own linear layers would keep their inputs, torch's their gathered weights.

    What a checkpointed layer is given may be added to what autograd keeps of it: the weights of norms.
    """
    alone = facts(placed, "replicate", dtype, memory)
    for rank, found in enumerate(facts(placed, name, dtype, memory)):
        assert 0 < found["kept"] < 1.02 * alone[rank]["kept"]


@pytest.mark.parametrize(("name", "memory"), [(n, m) for n, d, m in COMBINATIONS if d == "bfloat16"])
def test_in_bf16_they_are_no_further_apart_than_bf16_is_from_fp32(
    placed: Path, reference: dict[str, dict[str, torch.Tensor]], name: str, memory: str
) -> None:
    """Clips packed together are rounded elsewhere than one clip alone. That may not cost more than
    rounding itself: what separates one process in bf16 from one process in fp32, measured."""
    for found in tensors(placed, name, "bfloat16", memory):
        for site, exact in reference["float32"].items():
            alone = reference["bfloat16"][site]
            rounding = relative(alone, exact)
            assert 1e-4 < rounding < 5e-2, site  # real roundings, and small
            assert relative(found[site], alone) < 2 * rounding, site
            assert relative(found[site], exact) < 2 * rounding, site


@EVERY
def test_ranks_agree_to_the_bit(placed: Path, name: str, dtype: str, memory: str) -> None:
    first, *others = tensors(placed, name, dtype, memory)
    assert all(torch.equal(other[site], first[site]) for other in others for site in first)


@pytest.mark.parametrize("name", BOTH_WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_checkpointing_changes_no_bit(placed: Path, name: str, dtype: str) -> None:
    kept, again = (tensors(placed, name, dtype, memory)[0] for memory in MEMORY)
    assert all(torch.equal(kept[site], again[site]) for site in kept)


@CUT
def test_weights_are_really_sharded(placed: Path, name: str, dtype: str, memory: str) -> None:
    ranks = len(SHARDED[name][0])
    for seen in facts(placed, name, dtype, memory):
        assert seen["still_whole"] == {}  # after a step nothing is left gathered
        part = seen["base_bytes"] / ranks
        assert part <= seen["resident"] <= part + 4096  # and a little padding
        # Every weight is needed, so at least the other parts of the base must have come over.
        assert seen["gathered"] >= seen["base_bytes"] * (1 - 1 / ranks) * 0.95
        assert seen["resident"] < seen["peak"] < seen["resident"] + seen["base_bytes"] / 2


@CUT
def test_weights_travel_inside_their_group_alone(
    placed: Path, name: str, dtype: str, memory: str
) -> None:
    everyone = list(range(RANKS))
    for rank, seen in enumerate(facts(placed, name, dtype, memory)):
        group = next(list(g) for g in SHARDED[name] if rank in g)
        steering = [c for c in seen["collectives"] if c[0] == "allreduce"]
        weights = [c for c in seen["collectives"] if c[0] != "allreduce"]
        # One small buffer is all that leaves the group.
        assert steering == [["allreduce", everyone, seen["reduced"]]]
        assert {c[0] for c in weights} == {"all_gather_single"}
        assert all(c[1] == group for c in weights)
        # What the run reports as gathered is what came over from the others.
        received = sum(c[2] for c in weights) * (len(group) - 1) // len(group)
        assert received == seen["gathered"]


@EVERY
def test_what_a_run_tells_of_its_placement_is_what_was_seen(
    placed: Path, name: str, dtype: str, memory: str
) -> None:
    ranks_a_node = PLACEMENTS[name][1]
    every = facts(placed, name, dtype, memory)
    for rank, seen in enumerate(every):
        told, sharing = seen["told"], len(SHARDED.get(name, [(0,)])[0])
        assert (told["world_size"], told["group_size"]) == (RANKS, sharing)
        assert told["resident_bytes_between_steps"] == max(s["resident"] for s in every)
        least = seen["base_bytes"] / sharing if sharing > 1 else 0
        assert least - 4096 <= told["partitioned_bytes"] <= least + 4096
        node = range(rank // ranks_a_node * ranks_a_node, (rank // ranks_a_node + 1) * ranks_a_node)
        # On a ring of k ranks each gather sends k - 1 parts over each link, and a sum 2 (k - 1) of k.
        crossing = sum(
            (2 if kind == "allreduce" else 1) * count * (len(group) - 1) / len(group)
            for kind, group, count in seen["collectives"]
            if not set(group) <= set(node)
        )
        assert told["bytes_between_nodes_per_step"] == pytest.approx(crossing, abs=1)


@pytest.mark.parametrize("memory", MEMORY)
def test_replicas_gather_nothing(placed: Path, memory: str) -> None:
    for seen in facts(placed, "replicate", "float32", memory):
        assert [c[0] for c in seen["collectives"]] == ["allreduce"]
        assert seen["gathered"] == 0
        assert seen["resident"] == seen["peak"] == seen["base_bytes"]


@pytest.mark.parametrize("name", ["node", "full"])
def test_checkpointed_layers_gather_their_frozen_weights_again(placed: Path, name: str) -> None:
    """ZeRO-3 with frozen weights under non-reentrant checkpointing: DeepSpeed before 0.19.3 found
    them empty, of shape [0], when it came to make the activations again (DeepSpeed#8148,
    transformers#47254). The gradients above are right, and they were got by gathering once more: what
    no gradient goes through is made again too. Sites inside the first layer leave little of that."""
    kept, again = (facts(placed, name, "float32", memory) for memory in MEMORY)
    assert all(a["gathered"] > 1.05 * k["gathered"] for k, a in zip(kept, again, strict=True))


@EVERY
def test_the_base_is_untouched(placed: Path, name: str, dtype: str, memory: str) -> None:
    for seen in facts(placed, name, dtype, memory):
        assert seen["unchanged"]
        assert seen["changed_weights"] == []  # put together again, they are the checkpoint's
        assert seen["owned_gradients"] == []


@pytest.mark.parametrize("name", PLACEMENTS)
def test_uneven_generation_ends_and_training_goes_on(placed: Path, name: str) -> None:
    """Three batches on one rank, two on another, none on a third."""
    replicated = facts(placed, "replicate", "float32", "kept")
    for rank, seen in enumerate(facts(placed, name, "float32", "kept")):
        clips = placed_gradients.TRANSCRIBED[rank]
        assert len(seen["transcripts"]) == sum(map(len, clips))
        assert seen["transcripts"] == replicated[rank]["transcripts"]
        assert all(difference == 0 for difference in seen["again"])
    assert any(replicated[0]["transcripts"])


def test_only_weights_under_the_threshold_stay_whole(placed: Path, tiny_base: Path) -> None:
    model = load_speech_llm(tiny_base).model
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    for rank in range(RANKS):
        seen = json.loads((placed / f"threshold-rank{rank}.json").read_text())
        whole = seen["still_whole"]
        assert whole  # some are: a test without any would pass on anything
        assert all(count == sizes[weight] <= 40 for weight, count in whole.items())
        assert sum(whole.values()) <= 500
        assert seen["threshold_bytes"] == 4 * sum(whole.values())
        parts = seen["base_bytes"] / RANKS
        assert seen["resident"] <= parts + seen["threshold_bytes"] + 4096


def test_a_large_bank_reduces_only_the_rows_of_the_step(placed: Path) -> None:
    active, (first, second) = len(ACTIVE), ACTIVE
    numbers = 32 + 48 + 48  # the second adapter steers one of the two sites
    for rank in range(RANKS):
        seen = json.loads((placed / f"many-rank{rank}.json").read_text())
        assert seen["collectives"] == {"allreduce": 1}
        # Gradients, a loss and a count for each active adapter, whether to stop, and a digest of the
        # vectors and its square; 256 adapters are there.
        assert seen["bytes"] == seen["reported"] == 4 * (numbers + 2 * active + 1 + 2)
        assert seen["moved_rows"] == {"encoder.0": [first], "llm.0": [first, second]}
        # Row r's gradient is r + 1 on rank 0, twice that on rank 1 …; two labels on each rank.
        ranks = sum(range(1, RANKS + 1))
        for row in seen["moved_rows"]["llm.0"]:
            assert seen["values"]["llm.0"][row] == (row + 1) * ranks / (2 * RANKS)
