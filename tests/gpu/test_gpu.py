"""What only a GPU can show, on one, in some minutes; results go into benchmarks/gpu.json.

    python -m pytest -m gpu tests/gpu                                on a GPU
    SALSA_GPU_CHECK=OUT.json python -m pytest -m gpu tests/gpu       the same on a CPU, tiny, to try it

What it needs beside torch, transformers and accelerate is in requirements.txt here. A figure that was
not taken is missing in the results; nothing else stands for it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conformance import apart, clips, gradients, random_bank
from resumed import killed
from tiny import make_base, make_config, make_shards
from tiny_families import FAMILIES

from salsa_dist import SteeringVectors, evaluate, load_config, train
from salsa_dist.config import PlacementConfig
from salsa_dist.libraries.deepspeed import start_deepspeed
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.run.kernels import settle_kernels
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.rules.salsa import salsa_compiled
from salsa_dist.training.optimizer import PackedAdam, Schedule

ROOT = Path(__file__).parents[2]
ON_GPU = torch.cuda.is_available()
TRIED = os.environ.get("SALSA_GPU_CHECK")
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
ALONE = Ranks(0, 1, 0, 1, DEVICE)
# Relative L2 distance of gradients on the GPU from those on the CPU.
CLOSE = {"float32": 1e-4, "bfloat16": 2e-2} if ON_GPU else {"float32": 1e-6, "bfloat16": 1e-6}
# Whisper-large-v3's.
LARGE = {
    "num_mel_bins": 80,
    "d_model": 1280,
    "encoder_layers": 32,
    "decoder_layers": 32,
    "encoder_attention_heads": 20,
    "decoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ON_GPU and not TRIED, reason="no CUDA GPU"),
]


@pytest.fixture(scope="module")
def told() -> Iterator[dict[str, Any]]:
    """What was found, by check; written at the end, beside what the benchmark has there."""
    checks: dict[str, Any] = {}
    yield checks
    out = ROOT / "benchmarks" / "gpu.json" if ON_GPU else Path(TRIED or "")
    before = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    names = ("torch", "transformers", "accelerate", "deepspeed", "salsa-dist")
    versions = {n: _version(n) for n in names} | {"python": platform.python_version()}
    if ON_GPU:
        versions["cuda"] = str(torch.version.cuda)
    card = torch.cuda.get_device_name() if ON_GPU else "none: tried on a CPU"
    made = {"date": str(date.today()), "card": card, "versions": versions, **checks}
    out.write_text(json.dumps({**before, "checks": made}, indent=1) + "\n", encoding="utf-8")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from its folder"


def test_collectives(told: dict[str, Any]) -> None:
    with join() as ranks:
        start_deepspeed()
        for kind in (torch.int64, torch.uint8, torch.float64, torch.bfloat16):
            numbers = torch.ones(8, dtype=kind, device=ranks.device)
            dist.all_reduce(numbers)
            assert numbers.tolist() == [1] * 8
        dist.all_reduce(torch.ones(8, device=ranks.device), group=dist.new_group([0]))
        named = [{"a": 1}]
        dist.broadcast_object_list(named, src=0, device=ranks.device)
        told["collectives"] = {"backend": dist.get_backend(), "with_nvcc": bool(_nvcc())}


def _nvcc() -> str | None:
    from shutil import which

    return which("nvcc")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_is_that_of_the_cpu(
    name: str, dtype: str, told: dict[str, Any], tmp_path: Path
) -> None:
    settle_kernels(False)
    folder = FAMILIES[name](tmp_path / name)
    found = []
    for device in (torch.device("cpu"), DEVICE):
        base = load_speech_llm(folder, dtype=dtype, device=device)
        bank = random_bank(base, ["salsa", "add", "salsa"], where=device)
        ranks = Ranks(0, 1, 0, 1, device)
        with FrozenBase(base, bank, ranks, PlacementConfig(kind="replicate")) as placed:
            losses, own = gradients(placed, clips(base))
        found.append((losses.cpu(), {site: g.cpu() for site, g in own.items()}))
    (on_cpu, wanted), (losses, got) = found
    far = max(apart(got[site], wanted[site]) for site in wanted)
    told.setdefault("families", {})[f"{name} {dtype}"] = {"gradients_apart": far}
    assert apart(losses, on_cpu) < CLOSE[dtype]
    # In bf16 a sum of another order is another number, layer upon layer.
    assert far < (CLOSE[dtype] if dtype == "float32" else 0.2), far
    zero = random_bank(base, ["salsa"] * 3, size=0.0, where=DEVICE)
    batch = base.family.training_batch(clips(base)).to(DEVICE, next(base.model.parameters()).dtype)
    with torch.no_grad():
        plain = base.model(**batch.inputs, use_cache=False).logits
        with zero.attached(base.sites), zero.rows(batch.rows):
            assert torch.equal(base.model(**batch.inputs, use_cache=False).logits, plain)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_killed_run_ends_as_one_that_was_not(
    deterministic: bool, told: dict[str, Any], tmp_path: Path
) -> None:
    base, shards = make_base(tmp_path / "base"), make_shards(tmp_path / "shards")
    asked = [f"training.deterministic={str(deterministic).lower()}", "training.steps=8"]
    ended = []
    for name, kills in (("whole", ()), ("killed", (2, 5))):
        (tmp_path / name).mkdir()
        config = load_config(make_config(tmp_path / name, base, shards), asked)
        for step in kills:
            killed(config, step)
        assert train(config).finished
        adapters = sorted((config.run / "adapters").iterdir())
        ended.append(
            [SteeringVectors.load(a).vectors[s] for a in adapters for s in ("encoder.1", "llm.2")]
        )
    equal = all(torch.equal(a, b) for a, b in zip(*ended, strict=True))
    told.setdefault("resumed", {})["deterministic" if deterministic else "default"] = equal
    assert equal or (ON_GPU and not deterministic)


def test_packing_changes_nothing(told: dict[str, Any], tmp_path: Path) -> None:
    base = load_speech_llm(make_base(tmp_path / "base"), dtype="float32", device=DEVICE)
    bank = random_bank(base, ["salsa", "add", "salsa"], where=DEVICE)
    with FrozenBase(base, bank, ALONE, PlacementConfig(kind="replicate")) as placed:
        _, packed = gradients(placed, clips(base))
        alone = [gradients(placed, [clip])[1] for clip in clips(base)]
    far = max(apart(sum(own[site] for own in alone), packed[site]) for site in packed)  # type: ignore[arg-type]
    told["packing_apart"] = far
    assert far < 1e-5


def test_compiled_kernels_change_rounding_alone(told: dict[str, Any], tmp_path: Path) -> None:
    base = load_speech_llm(make_base(tmp_path / "base"), dtype="float32", device=DEVICE)
    found = []
    for compiled in ("off", "rule", "layers"):
        bank = random_bank(base, ["salsa", "add", "salsa"], where=DEVICE)
        whole = PlacementConfig(kind="replicate")
        with FrozenBase(base, bank, ALONE, whole, compiled=compiled) as placed:
            found.append(gradients(placed, clips(base))[1])
    plain, *others = found
    far = [max(apart(own[site], plain[site]) for site in plain) for own in others]
    told["compiled_apart"] = dict(zip(("rule", "layers"), far, strict=True))
    assert max(far) < 1e-4
    for dtype in (torch.float32, torch.bfloat16):
        for width in (512, 3584, 8192):
            hidden = torch.randn(4, 300, width, device=DEVICE).to(dtype)
            zero = torch.zeros(4, 1, width, device=DEVICE)
            assert torch.equal(salsa_compiled(hidden, zero), hidden)


@pytest.mark.parametrize("lr", [1e-3, None], ids=["given", "estimated"])
@pytest.mark.parametrize("adapters", [1, 40, 160])
def test_stepping_waits_twice(adapters: int, lr: float | None, told: dict[str, Any]) -> None:
    widths = {"encoder": 1280, "llm": 4096} if ON_GPU else {"encoder": 8, "llm": 16}
    sites = {f"{part}.{i}": width for part, width in widths.items() for i in range(32)}
    with join() as ranks:
        bank = Bank(
            [AdapterSpec(str(i), tuple(sites), "salsa") for i in range(adapters)], sites, ranks.device
        )
        adam = PackedAdam(bank, [Schedule(lr, 100, 0.0, "none")] * adapters, 1.0)
        rows = list(range(adapters))
        sums = torch.ones(adapters, device=ranks.device)

        def step() -> None:
            for vectors in bank.vectors.values():
                vectors.grad = torch.ones_like(vectors)
            reduced = adam.reduce(rows, sums, sums, False, [1.0, 2.0])
            adam.step(reduced.gradients, rows)

        step()
        with Waits() as waited:
            step()
        seconds = timed(step)
    case = f"{adapters} adapters, {'estimated' if lr is None else 'given'} rates"
    told.setdefault("optimizer_step", {})[case] = {"waits": len(waited), "seconds": seconds}
    assert len(waited) <= 2, [str(w.message) for w in waited]


class Waits(warnings.catch_warnings):
    """The warnings of CUDA's own watch on what waits."""

    def __init__(self) -> None:
        super().__init__(record=True)

    def __enter__(self) -> Any:
        found = super().__enter__()
        # Not others: the watch itself says, once a process, that it is a prototype.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "called a synchronizing CUDA operation")
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("warn")
        return found

    def __exit__(self, *error: Any) -> None:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("default")
        super().__exit__(*error)


def test_nothing_but_waits_is_counted() -> None:
    prototype = "Synchronization debug mode is a prototype feature"  # torch says so the first time
    with Waits() as waited:
        for said in (prototype, "called a synchronizing CUDA operation"):
            warnings.warn(said, stacklevel=1)
    assert len(waited) == 1


def timed(run: Callable[[], None]) -> float:
    """Seconds of one call, on average of five."""
    for wait in (True, False):
        if ON_GPU:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(5):
            run()
        if ON_GPU:
            torch.cuda.synchronize()
        if not wait:
            break
    return (time.perf_counter() - started) / 5


@pytest.mark.parametrize("workers", [0, 8] if ON_GPU else [0])
def test_whisper_large_is_fed(
    workers: int, told: dict[str, Any], tmp_path: Path, large: tuple[Path, Path]
) -> None:
    asked = [
        "training.steps=12",
        "data.clips_per_step=16",
        f"data.workers={workers}",
        "base.dtype=auto",
    ]
    config = load_config(make_config(tmp_path, *large), asked)
    assert train(config).finished
    steps = [json.loads(line) for line in (config.run / "events.jsonl").read_text().splitlines()]
    steps = [event for event in steps if event["event"] == "step"][4:]
    told.setdefault("training", {})[f"{workers} workers"] = {
        "clips_per_second": sum(s["clips"] for s in steps) / sum(s["seconds"] for s in steps),
        "data_wait": sum(s["data_wait"] for s in steps) / len(steps),
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of Whisper-large-v3's shape but for the window, and shards of noise."""
    folder = tmp_path_factory.mktemp("large")
    return make_base(folder / "base", **(LARGE if ON_GPU else {})), make_shards(folder / "shards", 48)


def test_an_evaluation_holds_one_base_at_a_time(
    told: dict[str, Any], tmp_path: Path, large: tuple[Path, Path]
) -> None:
    asked = ["method.kind=zero-shot", "evaluation.windows_s=[null, 1.0]"]
    config = load_config(make_config(tmp_path, *large), asked)
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    evaluate(config)
    size = sum(f.stat().st_size for f in large[0].glob("*.safetensors"))
    peak = torch.cuda.max_memory_allocated() if ON_GPU else 0
    told["evaluation"] = {"base_bytes": size, "peak_bytes": peak}
    assert peak < 1.8 * size


@pytest.mark.parametrize(
    "attention", ["sdpa", *(["flash_attention_2"] if find_spec("flash_attn") else [])]
)
def test_omni_encoder(attention: str, told: dict[str, Any]) -> None:
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    count, frames = (16, 3000) if ON_GPU else (2, 200)
    small = {} if ON_GPU else {"encoder_layers": 2, "d_model": 64, "encoder_attention_heads": 2}
    config = omni.Qwen2_5OmniAudioEncoderConfig(**small)
    config._attn_implementation = attention
    encoder = omni.Qwen2_5OmniAudioEncoder(config).to(DEVICE, torch.bfloat16).eval()
    heard = torch.randn(config.num_mel_bins, count * frames, device=DEVICE, dtype=torch.bfloat16)
    lengths = torch.full((count,), frames, device=DEVICE)

    @torch.no_grad()
    def run() -> None:
        encoder(heard, feature_lens=lengths, aftercnn_lens=(lengths - 1) // 2 + 1)

    run()
    with Waits() as waited:
        run()
    told.setdefault("omni_encoder", {})[attention] = {"seconds": timed(run), "waits": len(waited)}


def test_seven_billion(told: dict[str, Any]) -> None:
    """Speed, MFU and peak memory at Qwen2-Audio-7B's shape, whole and under ZeRO-3."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu

    options = argparse.Namespace(tiny=not ON_GPU, clips=8, steps=3, peak_tflops=None)
    settle_kernels(False)
    with join() as ranks:
        for placement, again, compiled in gpu.WAYS:
            if compiled != "off":
                continue  # minutes of compiling
            row = gpu.measure(options, ranks, placement, again, compiled)
            told.setdefault("seven_billion", []).append(
                {"placement": placement, "checkpointing": again, **row}
            )


FAILS = """
import sys, time
from salsa_dist.cli import run_command
from salsa_dist.placement.frozen_base import FrozenBase
passes, plain = [], FrozenBase.logits
def logits(self, batch):
    passes.append(1)
    if len(passes) == 3:
        print("raised", time.time(), flush=True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return plain(self, batch)
FrozenBase.logits = logits
run_command("train", sys.argv[1], [])
"""


def test_a_rank_that_raises_ends_soon(told: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(tmp_path, make_base(tmp_path / "base"), make_shards(tmp_path / "shards"))
    words = [sys.executable, "-c", FAILS, str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    ended = time.time()
    assert done.returncode == 1, done.stderr
    raised = float(done.stdout.split("raised ")[1].split()[0])
    told["ends_after_s"] = ended - raised
    assert ended - raised < (5 if ON_GPU else 20)
