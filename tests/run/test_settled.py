"""The precision of the base where the config names none."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_base, make_config
from transformers import WhisperForConditionalGeneration

from salsa_dist import load_config, train
from salsa_dist.planner.plan_of_run import shape_of_run
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.settled import settled
from salsa_dist.sweeps.grid import load_sweep
from salsa_dist.sweeps.plan import make_plan


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny base by the precision that it is stored in."""
    found = {}
    for dtype in ("bfloat16", "float16"):
        folder = make_base(tmp_path_factory.mktemp(dtype))
        model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        model.save_pretrained(folder)
        found[dtype] = folder
    return found


def test_auto_is_what_the_checkpoint_has_on_a_gpu_and_float32_on_the_cpu(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, stored: dict[str, Path]
) -> None:
    for base, on_gpu in (
        (tiny_base, "float32"),
        (stored["bfloat16"], "bfloat16"),
        (stored["float16"], "bfloat16"),  # trained without loss scaling
    ):
        config = load_config(make_config(tmp_path, base, tiny_shards))
        assert settled(config, "cuda").base.dtype == on_gpu
        assert settled(config, "cpu").base.dtype == "float32"
    biases = load_config(tmp_path / "config.yaml", ["method={kind: bias}"])
    assert settled(biases, "cuda").base.dtype == "float32"  # which it trains in alone
    named = load_config(tmp_path / "config.yaml", ["base.dtype=float16"])
    assert settled(named, "cuda") == named
    planned = [[], ["device=cpu"]]
    shapes = [shape_of_run(load_config(tmp_path / "config.yaml", more)) for more in planned]
    assert [shape.dtype for shape in shapes] == ["float16", "float32"]


def test_a_run_goes_on_in_the_precision_that_it_began_with(
    tmp_path: Path, tiny_shards: Path, stored: dict[str, Path]
) -> None:
    path = make_config(tmp_path, stored["bfloat16"], tiny_shards)
    config = load_config(path, ["training.steps=1", "trackers=[]"])
    train(settled(config, "cuda"))
    train(config)  # on a CPU: refused, if it were in float32
    told = RunFolder(config.run).config
    assert yaml.safe_load(told.read_text())["base"]["dtype"] == "bfloat16"
    begun = config.model_copy(update={"run": tmp_path / "older"})
    begun.run.mkdir()
    RunFolder(begun.run).config.write_text("base: {dtype: float32}", encoding="utf-8")
    assert settled(begun, "cuda").base.dtype == "float32"
    told.write_text("no tree", encoding="utf-8")
    assert settled(config, "cuda").base.dtype == "bfloat16"


def test_a_sweep_has_one_precision(tmp_path: Path, tiny_shards: Path, stored: dict[str, Path]) -> None:
    tree: dict[str, Any] = {
        "sweep": str(tmp_path / "sweep"),
        "config": {
            "base": {"name": str(stored["bfloat16"]), "window_s": 2},
            "data": {"shards": str(tiny_shards), "clips_per_step": 2, "readers": 2},
            "training": {"steps": 3},
        },
        "grid": {"language": ["bg"], "sites": ["encoder"]},
        "dev_clips": 2,
    }
    path = tmp_path / "sweep.yaml"
    # The config's own device comes before what a launch asks for, and before this machine.
    for kind, dtype in (("cuda", "bfloat16"), ("cpu", "float32")):
        path.write_text(yaml.safe_dump(tree | {"config": {**tree["config"], "device": kind}}))
        for asked in (None, "cuda"):
            assert make_plan(load_sweep(path), device=asked).sweep.config.base.dtype == dtype
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    (job,) = make_plan(load_sweep(path), device="cuda").write()
    assert load_config(job.config).base.dtype == "bfloat16"
    # On a login node, which has no GPU, the same jobs are found.
    here = make_plan(load_sweep(path))
    assert [own.path for own in here.there] == [job.path]
    assert not here.new
