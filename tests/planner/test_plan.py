"""The planner's numbers beside measured ones, which placement `auto` takes, and what is refused."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measured_placements
import placement_page
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tiny import make_base, make_config
from typer.testing import CliRunner

from salsa_dist.cli import app
from salsa_dist.config import PlacementConfig, load_config
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.placement.choose import decide
from salsa_dist.planner.base_shape import BaseShape, read_shape
from salsa_dist.planner.devices import device_of
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.planner.plan import make_plan
from salsa_dist.planner.plan_of_run import long_clip, plan_of, plan_text, with_offload, work_of
from salsa_dist.planner.plan_table import Plan
from salsa_dist.planner.step_cost import activation_bytes, flops
from salsa_dist.planner.step_work import Machines, Work, tokens_of
from salsa_dist.planner.units import parse_size
from salsa_dist.planner.weight_bytes import resident_bytes

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
CASES = range(len(measured_placements.CASES))
# What a step sends besides weights: the all-reduce, 2 x 3 messages of each of four ranks, each with
# the frames and acknowledgements of TCP around it.
FRAMES = 4 * 6 * 1000


@pytest.fixture(scope="module")
def shape(tiny_base: Path) -> BaseShape:
    return read_shape(tiny_base, dtype="float32")


def work(shape: BaseShape, sites: str = "encoder+llm", clips: int = 8, **other: Any) -> Work:
    return Work(clips, 16, (shape.sites(sites),), clip_s=1.0, **other)


@contextmanager
def own_network() -> Iterator[str]:
    """A network namespace with nothing but its loopback interface; "" where that needs root."""
    if os.geteuid() != 0:
        yield ""
        return
    words = ["unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec sleep 600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"up\n"
            yield f"/proc/{holder.pid}/ns/net"
        finally:
            holder.kill()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What four ranks held and sent, alone on a loopback interface of their own.

    Every width is odd in some way, so parts are padded; and wide enough that weights are more than
    the frames around them.
    """
    out = tmp_path_factory.mktemp("measured")
    base = make_base(
        out / "base",
        d_model=246,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=611,
        decoder_ffn_dim=611,
    )
    program = (measured_placements.__file__, base, out)
    with own_network() as network:
        done = run_ranks(4, *program, folder=out, env={"NETWORK": network})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found: list[dict[str, Any]] = json.loads((out / "measured.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_planned_bytes_of_the_base_are_those_measured(
    measured: list[dict[str, Any]], case: int
) -> None:
    """Parts of four ranks with their padding, small weights kept whole, a cut window, a tied head."""
    plan, found = measured[case]["planned"], measured[case]["measured"]
    assert plan["base_bytes"] == found["resident_bytes_between_steps"]
    # A layer is recomputed up to the last tensor that backward needs: not its last linear layer, here a
    # ninth of the peak. The plan counts the whole layer.
    again = measured_placements.CASES[case][-1]
    assert (
        found["peak_bytes"] <= plan["peak_base_bytes"] <= (1.12 if again else 1.0) * found["peak_bytes"]
    )
    # With checkpointing DeepSpeed keeps some of what is recomputed for the next module.
    rel = 0.10 if again else 0.0
    assert plan["gathered_bytes_per_step"] == pytest.approx(found["gathered_bytes_per_step"], rel=rel)
    assert plan["ranks_a_copy"] == found["group_size"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
@pytest.mark.parametrize("case", [c for c in CASES if measured_placements.CASES[c][0] != "node"])
def test_planned_traffic_is_what_the_interface_counts(
    measured: list[dict[str, Any]], case: int
) -> None:
    found = measured[case]
    plan, sent = found["planned"], found["sent_per_step"]
    total = plan["bytes_inside_node_per_step"] + plan["bytes_between_nodes_per_step"]
    assert total * found["nodes"] == pytest.approx(sent, rel=0.10, abs=FRAMES)


def test_a_plan_reads_headers_and_never_a_weight(
    tiny_base: Path, tmp_path: Path, shape: BaseShape
) -> None:
    """Weights that are all holes, and a folder with a config alone, give the same shape."""
    hollow, bare = tmp_path / "hollow", tmp_path / "bare"
    for folder in (hollow, bare):
        folder.mkdir()
        (folder / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    whole = (tiny_base / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    with open(hollow / "model.safetensors", "wb") as file:
        file.write(whole[:header])
        file.truncate(len(whole))
    tensors = load_file(tiny_base / "model.safetensors").values()
    assert shape.stored == sum(t.numel() * t.element_size() for t in tensors)
    for folder, stored in ((hollow, shape.stored), (bare, None)):
        found = read_shape(folder, dtype="float32")
        assert dataclasses.replace(found, name=shape.name, stored=shape.stored) == shape
        assert found.stored == stored
    assert read_shape(hollow).dtype == "float32"  # as its header says
    assert read_shape(bare).dtype == "bfloat16"


@pytest.mark.parametrize("length", [4, 5000, -100])
def test_a_cut_weight_file_is_refused(tiny_base: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    whole = (tiny_base / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file"):
        read_shape(tmp_path)


def test_flops_follow_the_first_steered_layer(shape: BaseShape) -> None:
    """Backward stops there; a frozen base has no gradients of weights; recomputing adds a forward."""
    none = flops(shape, work(shape, training=False))
    late, early = (flops(shape, work(shape, s)) for s in ("llm:2", "encoder"))
    again = flops(shape, work(shape, "encoder", checkpointing=True))
    assert none < late < early < again < 4 * none
    # By hand: the LLM's last layer steered, backward goes through the final norm and the head alone.
    head = 2 * 267 * 32 * 32 * 8
    assert late - none == pytest.approx(head)


@pytest.mark.parametrize("kind", ["replicate", "node", 4, "full"])
def test_auto_takes_the_fewest_ranks_a_copy_that_fit(shape: BaseShape, kind: str | int) -> None:
    row = by_memory(shape, 1e9).row(kind)
    assert row is not None
    plan = by_memory(shape, row.device_bytes / 0.9 + 10)  # just enough for this one
    assert plan.chosen is not None
    assert plan.chosen.placement == kind, plan.table()


def by_memory(shape: BaseShape, memory: float) -> Plan:
    """A plan for 4 x 2 devices, where what is not the base takes what it takes here."""
    return make_plan(shape, work(shape), Machines(4, 2, memory, host_memory=1e12), STRICT)


def test_evaluation_takes_the_smallest_placement_that_fits_it(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    """Less memory than training needs of a whole copy, and enough for transcribing with one."""
    training = {"steps": 1, "micro_batch": 64}
    evaluation = {"windows_s": [None], "batch": 1}
    path = make_config(tmp_path, tiny_base, tiny_shards, training=training, evaluation=evaluation)
    config = load_config(path)

    def plan(memory: float, training: bool) -> Plan:
        return plan_of(config, Machines(2, 2, memory, host_memory=1e12), training=training)

    needs = {t: plan(1e9, t).row("replicate").device_bytes for t in (True, False)}  # type: ignore[union-attr]
    assert needs[False] < needs[True]
    memory = (needs[True] - 1000) / 0.9
    trained, evaluated = plan(memory, True), plan(memory, False)
    assert decide(evaluated, config.evaluation.placement, "evaluation.placement").placement.kind == (
        "replicate"
    )
    assert trained.chosen is None or trained.chosen.ranks_a_copy > 1
    tight = plan((needs[False] - 1000) / 0.9, False)
    assert tight.chosen is None or tight.chosen.ranks_a_copy > 1


def test_memory_is_for_the_long_clips_of_the_run(
    shape: BaseShape, tiny_base: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards))
    index = ShardIndex.load(config.data.shards)
    seconds = [e.seconds for s in index.shards if s.split == "train" for e in s.entries]
    assert sorted(seconds)[-3] < long_clip(index, config) <= max(seconds)
    short = work(shape)
    long = dataclasses.replace(short, long_s=3 * short.clip_s)
    whole = dataclasses.replace(short, clip_s=3 * short.clip_s)
    assert activation_bytes(shape, long, 4) == activation_bytes(shape, whole, 4)
    assert activation_bytes(shape, long, 4) > activation_bytes(shape, short, 4)
    assert flops(shape, long) == flops(shape, short)
    # In three times as long a clip more is said.
    ten, thirty = (tokens_of(shape, dataclasses.replace(short, clip_s=s)) for s in (10.0, 30.0))
    assert thirty["labels"] == 3 * ten["labels"] == 3 * short.labels
    assert thirty["llm"] == ten["llm"] + 2 * short.labels  # the audio is not in its decoder
    assert work_of(config, shape, long_s=25.0).long_s == 2.0  # no longer than the window


STRICT = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_reuse_distance": 0,
}


def test_auto_offloads_only_where_nothing_else_fits(shape: BaseShape) -> None:
    least = min(r.device_bytes for r in by_memory(shape, 1e9).rows if r.offload == "none")
    plan = by_memory(shape, (least - 1000) / 0.9)
    assert plan.chosen is not None
    assert plan.chosen.offload == "cpu"
    assert "nothing fits without offload" in plan.why
    placed = decide(plan, PlacementConfig(), "placement")
    assert placed.placement.offload == "cpu"


@pytest.mark.parametrize(
    ("placement", "machines", "message"),
    [
        ({"kind": "replicate"}, Machines(1, 2, 1e5), r"needs .* on each device"),
        ({"kind": "auto"}, Machines(1, 2, 1e5), r"auto: nothing fits"),
        ({"kind": 3}, Machines(2, 2, 1e9), r"placement.kind is 3: 4 ranks can't be divided"),
        ({"kind": "full", "offload": "nvme"}, Machines(2, 2, 1e9), r"placement.nvme_path which folder"),
        (
            {"kind": "full", "offload": "nvme", "nvme_path": "/proc/none"},
            Machines(2, 2, 1e9),
            r"/proc/none can't be written|/proc/none has",
        ),
        (
            {"kind": "full", "offload": "cpu"},
            Machines(2, 2, 1e9, host_memory=1e4),
            r"offload is cpu: a node would need",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_table(
    shape: BaseShape, placement: dict[str, Any], machines: Machines, message: str
) -> None:
    config = PlacementConfig(**placement)
    extra = [config.kind] if isinstance(config.kind, int) else []
    plan = make_plan(shape, work(shape), machines, STRICT, config.offload, extra)
    with pytest.raises(UserError, match=message) as refused:
        decide(plan, config, "placement")
    assert "ranks a copy" in str(refused.value)


def test_uneven_nodes_are_refused_for_node_alone(shape: BaseShape) -> None:
    plan = by_memory(shape, 1e9)
    with pytest.raises(UserError, match="unequal numbers of ranks"):
        decide(plan, PlacementConfig(kind="node"), "placement", even=False)
    decide(plan, PlacementConfig(kind="full"), "placement", even=False)


def test_int8_that_would_come_back_as_zeros_is_refused(shape: BaseShape, tmp_path: Path) -> None:
    path = tmp_path / "int8.json"
    zero = {**STRICT, "zero_quantized_nontrainable_weights": True}
    path.write_text(json.dumps({"zero_optimization": zero}))
    plan = by_memory(shape, 1e9)
    with pytest.raises(UserError, match=r"zero_quantized_nontrainable_weights.*zeros"):
        decide(plan, PlacementConfig(kind="full", ds_config=path), "placement")
    # Where nothing is cut, nothing is quantised.
    decide(plan, PlacementConfig(kind="replicate", ds_config=path), "placement")
    quantised = dataclasses.replace(plan, shape=dataclasses.replace(shape, quantized="bitsandbytes"))
    with pytest.raises(UserError, match=r"quantised \(bitsandbytes\)"):
        decide(quantised, PlacementConfig(kind="full"), "placement")


@pytest.mark.parametrize(
    ("placement", "compiler", "message"),
    [
        ({"kind": 2}, True, r"placement\.kind is 2"),
        ({"kind": "replicate", "offload": "nvme"}, True, r"say in placement\.nvme_path which folder"),
        ({"kind": "replicate", "offload": "nvme", "nvme_path": "."}, True, "install libaio-dev"),
        ({"kind": "replicate", "offload": "nvme", "nvme_path": "."}, False, r"C\+\+ compiler.*g\+\+"),
        # It asks for the disk itself.
        ({"kind": "replicate", "ds_config": DS_CONFIGS / "nvme-offload.json"}, True, "libaio-dev"),
    ],
)
def test_a_run_is_refused_before_its_base_is_read(
    placement: dict[str, Any],
    compiler: bool,
    message: str,
    tiny_base: Path,
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from salsa_dist.run import session
    from salsa_dist.training import loop

    monkeypatch.setattr(session, "load_base", lambda *a, **k: pytest.fail("the base was read"))
    monkeypatch.setenv("CXX", sys.executable if compiler else "a-compiler-nobody-has")
    monkeypatch.setattr(
        "deepspeed.ops.op_builder.AsyncIOBuilder.is_compatible", lambda self, verbose: False
    )
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in placement.items()}
    path = make_config(tmp_path, tiny_base, tiny_shards, placement=settings)
    with pytest.raises(UserError, match=message) as refused:
        loop.train(load_config(path))
    assert "ranks a copy" in str(refused.value)  # the plan's table
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_each_deepspeed_config_can_be_planned_with_and_trained_with(
    path: Path, tiny_base: Path
) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    words = ["plan", "--base", str(tiny_base), "--nodes", "1", "--gpus-per-node", "2"]
    done = CliRunner().invoke(app, [*words, "--gpu-memory", "1GB", "--ds-config", str(path)])
    assert done.exit_code == 0, done.output
    offload = path.stem.removesuffix("-offload") if path.stem.endswith("-offload") else "none"
    found = with_offload(PlacementConfig(kind="full", ds_config=path))
    assert found.offload == offload
    row = "node" if offload == "none" else f"node + {offload}"
    assert row in done.output  # of one node: as good as full
    settings = ds_settings(path, "full", torch.bfloat16, found.offload, found.nvme_path)
    assert settings["bf16"]["enabled"]
    DeepSpeedZeroConfig(**settings["zero_optimization"])  # DeepSpeed itself knows every key


def test_a_tight_fit_is_a_warning(shape: BaseShape) -> None:
    """Activations are an estimate: by it alone nobody is turned away who named a placement."""
    row = by_memory(shape, 1e9).row("full")
    assert row is not None
    plan = by_memory(shape, row.device_bytes - row.activation_bytes + 1000)
    placed = decide(plan, PlacementConfig(kind="full"), "placement")
    assert placed.warning is not None
    assert "may not fit" in placed.warning


def test_resident_bytes_count_padding_and_small_weights_twice(shape: BaseShape) -> None:
    parts = sum(-(-w.numel // 7) * 4 for w in shape.weights)
    assert resident_bytes(shape, 7, settings=STRICT) == parts + shape.buffer_bytes
    small = {**STRICT, "stage3_param_persistence_threshold": 32}
    whole = sum(w.bytes for w in shape.weights if w.numel <= 32)
    assert resident_bytes(shape, 7, settings=small) == parts + whole + shape.buffer_bytes
    capped = {**small, "stage3_model_persistence_threshold": 64}
    assert resident_bytes(shape, 7, settings=capped) == parts + 2 * 32 * 4 + shape.buffer_bytes


def test_checkpointing_keeps_less(shape: BaseShape) -> None:
    kept = [activation_bytes(shape, work(shape, checkpointing=c), 8) for c in (False, True)]
    assert kept[1] < kept[0]


def test_plan_by_command(tiny_base: Path, tiny_shards: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    options = ["--nodes", "2", "--gpus-per-node", "4", "--gpu-memory", "24GB"]
    shown = run(app, ["plan", "--base", str(tiny_base), *options])
    assert shown.exit_code == 0, shown.output
    assert "2 nodes x 4 ranks, 24 GB a device" in shown.output
    assert "auto: replicate" in shown.output
    named = run(app, ["plan", "--base", str(tiny_base), "--gpu", "h200", "--gpu-memory", "24GB"])
    assert "H200 by its data sheet: 141 GB at 4.80 TB/s, 989 TFLOP/s" in named.output
    assert "24 GB a device" in named.output
    refused = run(app, ["plan", "--base", str(tiny_base), "--gpu", "h300"])
    assert "h300 is not known by name (A100, H100, H200, B200, MI300X)" in str(refused.exception)
    config = make_config(tmp_path, tiny_base, tiny_shards)
    tree = json.loads(run(app, ["plan", str(config), "--json", "--gpu", "mi300", *options]).output)
    assert tree["gpu"]["name"] == "MI300X"
    assert tree["machines"]["flops"] == 1307.4e12
    assert tree["work"]["clips"] == 10
    assert [r["placement"] for r in tree["rows"] if r["offload"] == "none"] == [
        "replicate",
        "node",
        "full",
    ]
    assert tree["auto"]["placement"] == "replicate"
    text = plan_text(load_config(config), 2, 4, parse_size("24GB"))
    assert "auto: replicate" in text


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_gpus_by_the_names_of_their_drivers(name: str, known: str | None) -> None:
    found = device_of(name)
    assert (found and found.name) == known


def test_the_page_about_placement_is_current(tmp_path: Path) -> None:
    written = placement_page.page(placement_page.shapes(tmp_path))
    if os.environ.get("SALSA_WRITE_DOCS"):
        placement_page.PAGE.write_text(written, encoding="utf-8")
    assert placement_page.PAGE.read_text(encoding="utf-8") == written
