"""After every step of a sharded run nothing of the base stays gathered but weights under the threshold.

Most weights are released by the hook behind their own module's backward. That hook never comes for a
module whose input carries no gradient while its output does: Qwen2-Audio's encoder, which reads the
weights of its convolution and positions itself. These stay until the loop lets go of them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import released_ranks
import yaml
from placed_gradients import STRICT
from ranks import run_ranks
from tiny import make_config
from tiny_families import FAMILIES

STEPS = 4
# Weights of up to 40 elements may stay, 200 elements in all.
THRESHOLD = {
    **STRICT,
    "stage3_param_persistence_threshold": 40,
    "stage3_model_persistence_threshold": 200,
}
# Both sample the same clips.
ALIKE = [{"name": "a", "language": "bg"}, {"name": "b", "language": "bg", "rule": "add"}]
CASES: dict[str, dict[str, Any]] = {
    "every-layer": {"sites": "encoder+llm"},
    "every-layer-checkpointed": {"sites": "encoder+llm", "activation_checkpointing": True},
    # The layers below are run without autograd, and their clips once for both adapters.
    "last-half": {"sites": "encoder:last-half", "adapters": ALIKE},
    "last-half-checkpointed": {
        "sites": "encoder:last-half",
        "adapters": ALIKE,
        "activation_checkpointing": True,
    },
    # They are run before training; in it the encoder starts at its first steered layer.
    "prefix-kept": {"sites": "encoder:last-half", "prefix_cache": "memory"},
    "threshold": {"sites": "encoder+llm", "zero": THRESHOLD},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """What two ranks saw in a run of each case, all in one start."""
    out = tmp_path_factory.mktemp("released")
    base = FAMILIES["qwen2_audio"](out / "base")
    for name, case in CASES.items():
        given = dict(case)
        sites, zero = given.pop("sites"), given.pop("zero", STRICT)
        adapters = {"adapters": given.pop("adapters")} if "adapters" in given else {}
        (out / f"{name}.ds.json").write_text(json.dumps({"zero_optimization": zero}))
        (out / name).mkdir()
        path = make_config(
            out / name,
            base,
            tiny_shards,
            **adapters,
            data={"shards": str(tiny_shards), "clips_per_step": 2, "readers": 2},
            steering={"sites": sites, "rule": "salsa"},
            # Two passes a step: what the first leaves, the second meets.
            training={"steps": STEPS, "lr": 0.02, "micro_batch": 2, **given},
            placement={"kind": "full", "ds_config": str(out / f"{name}.ds.json")},
        )
        (out / f"{name}.yaml").write_text(yaml.safe_dump(yaml.safe_load(path.read_text())))
    done = run_ranks(2, released_ranks.__file__, out, folder=out, timeout_s=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return out


def facts(runs: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((runs / f"{name}-rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", CASES)
def test_nothing_stays_gathered_after_a_step(runs: Path, name: str) -> None:
    for seen in facts(runs, name):
        assert seen["after"] == [{}] * STEPS


@pytest.mark.parametrize("name", CASES)
def test_backward_had_left_weights_to_release(runs: Path, name: str) -> None:
    """Else the test above would pass on a loop that releases nothing."""
    for seen in facts(runs, name):
        assert len(seen["left"]) >= STEPS
        assert any(seen["left"])


@pytest.mark.parametrize("name", CASES)
def test_from_the_third_step_on_the_order_of_modules_is_known(runs: Path, name: str) -> None:
    """DeepSpeed prefetches only then. A pass with shared clips calls the model twice."""
    for seen in facts(runs, name):
        for step in seen["fetches"][2:]:
            assert set(step) == {"complete"}, seen["fetches"]
            assert step["complete"] > 50
        if name.startswith("last-half"):  # else the sharing would not have been tried
            assert seen["apart"] == len(seen["left"])


@pytest.mark.parametrize("name", CASES)
def test_a_run_tells_that_only_its_part_is_resident(runs: Path, name: str) -> None:
    events = [json.loads(x) for x in (runs / name / "run/events.jsonl").read_text().splitlines()]
    (told,) = (event for event in events if event["event"] == "placement")
    for seen in facts(runs, name):
        assert told["threshold_bytes"] == seen["persistent_bytes"]
        held = told["partitioned_bytes"] + seen["buffer_bytes"] + seen["persistent_bytes"]
        assert told["resident_bytes_between_steps"] == held
    assert bool(told["threshold_bytes"]) == (name == "threshold")
