"""Invariant 1: where the base's weights live changes neither gradients nor losses.

The reference is one process, one clip at a time, with transformers' own loss and a vector added by
hand: no bank, no packing, no DeepSpeed.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import placed_gradients
import pytest
import torch
from safetensors.torch import load_file

from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.sites import site_modules

PLACEMENTS = ("replicate", "full")


def launch(script: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def placed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote under each placement, in fp32 and bf16."""
    out = tmp_path_factory.mktemp("placed")
    for dtype in ("float32", "bfloat16"):
        launch(Path(placed_gradients.__file__), str(tiny_base), str(out), dtype)
    return out


@pytest.fixture(scope="module")
def reference(tiny_base: Path) -> dict[str, torch.Tensor]:
    return reference_gradients(load_speech_llm(tiny_base))


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
            def steer(module: Any, args: Any, hidden: torch.Tensor) -> torch.Tensor:
                s = hidden + vectors[site]
                if rule == "add":
                    return s
                return s * hidden.norm(dim=-1, keepdim=True) / s.norm(dim=-1, keepdim=True)

            return steer

        hooks = [m.register_forward_hook(hook(s)) for s, m in modules.items()]
        labels = torch.tensor([llm.family.prompt(clip.language)[1:] + llm.family.text_ids(clip)])
        loss = llm.model(
            input_features=llm.family.training_batch([clip]).inputs["input_features"],
            decoder_input_ids=torch.cat([torch.tensor([[llm.family.start]]), labels[:, :-1]], dim=1),
            labels=labels.masked_fill(torch.arange(labels.shape[1]) < 3, -100),
        ).loss
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


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_and_losses_are_those_of_one_process(
    placed: Path, reference: dict[str, torch.Tensor], kind: str, rank: int
) -> None:
    found = load_file(placed / f"{kind}-float32-rank{rank}.safetensors")
    assert found.keys() == reference.keys()
    for name, wanted in reference.items():
        assert wanted.norm() > 0
        assert relative(found[name], wanted) < 1e-5, name


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_ranks_agree_to_the_bit(placed: Path, kind: str) -> None:
    zero, one = (load_file(placed / f"{kind}-float32-rank{r}.safetensors") for r in (0, 1))
    assert all(torch.equal(zero[name], one[name]) for name in zero)


def test_bf16_sharded_equals_bf16_replicated(placed: Path, reference: dict[str, torch.Tensor]) -> None:
    """Near each other, and both near fp32. Not nearer, since the linear layer that DeepSpeed puts in
    adds the bias after a rounding of its own."""
    replicated, sharded = (load_file(placed / f"{k}-bfloat16-rank0.safetensors") for k in PLACEMENTS)
    for name, wanted in reference.items():
        assert relative(sharded[name], replicated[name]) < 2e-2, name
        assert relative(sharded[name], wanted) < 5e-2, name


def test_weights_are_really_sharded(placed: Path) -> None:
    for rank in (0, 1):
        facts = json.loads((placed / f"full-float32-rank{rank}.json").read_text())
        assert facts["still_whole"] == []  # after a step nothing is left gathered
        assert facts["resident"] <= facts["base_bytes"] / 2 + 4096  # and a little padding
        # Every weight is needed, so at least the other half of the base must have come over.
        assert facts["gathered"] >= facts["base_bytes"] / 2 * 0.95
        assert facts["resident"] < facts["peak"]
        assert facts["unchanged"]
        assert facts["owned_gradients"] == []


def test_replicas_gather_nothing(placed: Path) -> None:
    facts = json.loads((placed / "replicate-float32-rank0.json").read_text())
    assert facts["gathered"] == 0
    assert facts["resident"] == facts["peak"] == facts["base_bytes"]


def test_transcripts_do_not_depend_on_placement(placed: Path) -> None:
    for rank in (0, 1):
        kinds = [json.loads((placed / f"{k}-float32-rank{rank}.json").read_text()) for k in PLACEMENTS]
        assert kinds[0]["transcripts"] == kinds[1]["transcripts"]
        assert any(kinds[0]["transcripts"])
