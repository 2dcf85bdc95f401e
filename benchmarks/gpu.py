"""A training step over a base of Qwen2-Audio-7B's true shape on one GPU: speed, MFU, memory, costs.

    python benchmarks/gpu.py --json OUT [--clips 8] [--steps 5] [--peak-tflops 989]
    python benchmarks/gpu.py --json OUT --tiny          the same on a tiny shape, on the CPU too

Weights are random, in bf16; every layer of the encoder and of the LLM is steered. The rows are the base
whole (`replicate`) and kept by ZeRO-3 in a group of one rank, each with and without activation
checkpointing; and whole with the update rule, or the layers too, compiled (`training.compile`). Where
there is no CUDA GPU the rows say 'not measured'.

The shape is that of the config.json of Qwen/Qwen2-Audio-7B on the Hugging Face hub: Whisper-large-v3's
encoder, pooled to 750 tokens a clip, and Qwen-7B.

MFU (model FLOPs utilisation, Chowdhery et al., arXiv 2204.02311, appendix B) counts what the method
needs and nothing that is done twice, so checkpointing can only lower it. A multiplication by a frozen
matrix W costs 2 |W| FLOPs a position forward; backward makes the gradient of the activation alone,
2 |W| once more, where training W would take 4 |W|. Attention over n positions of width d costs
4 n^2 d forward and, as both of its factors are activations, 8 n^2 d backward; half of that where it is
causal.

    flops = sum over parts of positions * 4 * |W|  +  12 * layers * n^2 * d * (1/2 if causal)
    mfu   = clips a second * flops of a clip / peak FLOPs of the GPU

{"rows": [{"placement": "replicate", "checkpointing": false, "compile": "off", "status": "measured",
           "clips_per_second": …, "mfu": …, "peak_bytes": …, "cost_1": "aten::mm", "share_1": …}, …]}
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from report_file import write_report
from torch.profiler import ProfilerActivity, profile

import salsa_dist  # noqa: F401 -- before transformers
from salsa_dist.config import PlacementConfig
from salsa_dist.libraries.deepspeed import forget, start_deepspeed
from salsa_dist.placement.freed_memory import collect
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.planner.devices import device_of
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.loss import token_losses
from salsa_dist.training.optimizer import PackedAdam, Schedule, reduce_step

SHAPE: dict[str, Any] = {
    "audio_config": {
        "num_mel_bins": 128,
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "max_source_positions": 1500,
    },
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "vocab_size": 156032,
    },
    "audio_token_index": 151646,
}
TINY: dict[str, Any] = {
    "audio_config": {
        "num_mel_bins": 16,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "max_source_positions": 40,
    },
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "vocab_size": 128,
    },
    "audio_token_index": 127,
}
PROMPT, LABELS = 12, 40
# Dense bf16 without sparsity, in TFLOP/s, from NVIDIA's data sheets.
NOT_COUNTED = 2
Compiled = Literal["off", "rule", "layers"]
WAYS: tuple[tuple[str, bool, Compiled], ...] = (
    *((placement, again, "off") for placement in ("replicate", "zero-3") for again in (False, True)),
    ("replicate", False, "rule"),
    *(("replicate", again, "layers") for again in (False, True)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--clips", type=int, default=8, help="clips of a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bf16, where it is not known")
    parser.add_argument("--tiny", action="store_true", help="try everything on a tiny shape")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with join() as ranks:
        for way in WAYS:
            row: dict[str, Any] = dict(zip(("placement", "checkpointing", "compile"), way, strict=True))
            if options.tiny or ranks.device.type == "cuda":
                row |= {"status": "measured", **measure(options, ranks, *way)}
            else:
                row |= {"status": "not measured", "why": "no CUDA GPU at hand"}
            print(row, flush=True)
            rows.append(row)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    write_report(
        options.json,
        rows,
        on=f"{gpu}, torch {torch.__version__}" if gpu else None,
        shape="tiny" if options.tiny else "Qwen2-Audio-7B",
        clips_per_step=options.clips,
    )


def measure(
    options: argparse.Namespace, ranks: Ranks, placement: str, checkpointing: bool, compiled: Compiled
) -> dict[str, Any]:
    """One row's numbers; nothing of it stays on the GPU, the next row needs the memory."""
    collect()  # also what a caller's last tests left
    row = _measured(options, ranks, placement, checkpointing, compiled)
    collect()
    return row


def _measured(
    options: argparse.Namespace, ranks: Ranks, placement: str, checkpointing: bool, compiled: Compiled
) -> dict[str, Any]:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    on_gpu = ranks.device.type == "cuda"
    shape = TINY if options.tiny else SHAPE
    config = Qwen2AudioConfig(**shape)
    torch.manual_seed(0)
    with ranks.device:
        model = Qwen2AudioForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    flops = options.clips * flops_of_a_clip(model, shape)
    layers = find_layers(model)
    parameters = sum(p.numel() for p in model.parameters())
    release, forgotten = cut(model) if placement == "zero-3" else (lambda: None, lambda: None)
    widths = site_widths(layers)
    bank = Bank([AdapterSpec("a", tuple(widths), "salsa")], widths, ranks.device)
    optimizer = PackedAdam(bank, [Schedule(1e-3, 100, 0.0, "none")], 1.0)
    llm = SpeechLLM(model, None, "random", "random", parameters)  # type: ignore[arg-type]
    whole = PlacementConfig(kind="replicate")
    base = FrozenBase(llm, bank, ranks, whole, checkpointing, compiled=compiled)
    batch = make_batch(shape, options.clips)

    def step() -> None:
        for vector in bank.vectors.values():
            vector.grad = None
        losses = token_losses(base, batch)
        losses.sum().backward()
        release()
        counts = losses.new_full((1,), len(losses))
        reduced = reduce_step(bank, [0], losses.detach().sum().view(1), counts, stop=False)
        optimizer.step(reduced.gradients, [0])
        if on_gpu:
            torch.cuda.synchronize()

    for _ in range(NOT_COUNTED):
        step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    peak_flops = peak_of_gpu(options)
    row = {
        "parameters": parameters,
        "clips_per_second": options.clips / median,
        "seconds_per_step": median,
        "flops_per_step": flops,
        "mfu": flops / median / peak_flops if peak_flops else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        **largest_costs(step, on_gpu),
    }
    base.close()
    forgotten()
    return row


def cut(model: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Give `model` to ZeRO-3 in a group of this one rank; returns what lets go after backward, and
    what takes hooks and weights away at the end.

    A run never does this, one rank sharing with nobody; here it shows what the machinery itself costs.
    """
    deepspeed = start_deepspeed()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed's engine insists
    settings = ds_settings(None, "full", torch.bfloat16)
    group = dist.new_group([0])
    deepspeed.zero.Init(
        module=model, data_parallel_group=group, config_dict_or_path=settings, dtype=torch.bfloat16
    )
    engine, *_ = deepspeed.initialize(model=model, config=settings, dist_init_required=False)
    model.eval()
    release: Callable[[], None] = engine.optimizer.release_backward_leftovers

    def forgotten() -> None:
        forget(engine, model)
        dist.destroy_process_group(group)

    return release, forgotten


def make_batch(shape: dict[str, Any], clips: int) -> AdapterBatch:
    """Noise in place of speech, as many audio tokens as the window has, a prompt and random labels."""
    audio = shape["audio_config"]
    positions, token = audio["max_source_positions"], shape["audio_token_index"]
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(token, (clips, PROMPT + LABELS), generator=generator)
    ids = torch.cat([torch.full((clips, positions // 2), token), text], dim=1)
    labelled = torch.zeros(ids.shape, dtype=torch.bool)
    labelled[:, -LABELS - 1 : -1] = True  # each position predicts the next token
    rows = torch.zeros(clips, dtype=torch.int64)
    return AdapterBatch(
        keys=[str(i) for i in range(clips)],
        inputs={
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "input_features": torch.randn(
                clips, audio["num_mel_bins"], 2 * positions, generator=generator
            ),
            "feature_attention_mask": torch.ones(clips, 2 * positions, dtype=torch.int64),
        },
        label_positions=labelled,
        labels=text[:, -LABELS:].flatten(),
        label_rows=torch.zeros(clips * LABELS, dtype=torch.int64),
        rows={"encoder": rows, "llm": rows},
    )


def flops_of_a_clip(model: Any, shape: dict[str, Any]) -> int:
    """Forward and activation-only backward of one clip; see the formula above."""
    audio, text = shape["audio_config"], shape["text_config"]
    frames = audio["max_source_positions"]
    read = frames // 2 + PROMPT + LABELS
    layers = find_layers(model)
    matrices = {
        part: sum(p.numel() for p in stack.parameters() if p.ndim == 2)
        for part, stack in layers.items()
    }
    head = text["hidden_size"] * text["vocab_size"]
    projector = audio["d_model"] * text["hidden_size"]
    products = (
        frames * matrices["encoder"]
        + frames // 2 * projector
        + read * matrices["llm"]
        + LABELS * head  # labels are all that the head sees
    )
    attention = (
        audio["encoder_layers"] * frames**2 * audio["d_model"]
        + text["num_hidden_layers"] * read**2 * text["hidden_size"] // 2
    )
    return 4 * products + 12 * attention


def peak_of_gpu(options: argparse.Namespace) -> float | None:
    """FLOP/s of this GPU in dense bf16; None where it is not known."""
    if options.peak_tflops:
        return float(options.peak_tflops) * 1e12
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = device_of(name)
    return known.flops if known else None


def largest_costs(step: Callable[[], None], on_gpu: bool) -> dict[str, Any]:
    """The three operations that took most of one step, by their own time on the device."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as seen:
        step()
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    costs = sorted(seen.key_averages(), key=lambda e: -getattr(e, time_of))
    total = sum(getattr(e, time_of) for e in costs)
    row: dict[str, Any] = {}
    for i, event in enumerate(costs[:3], 1):
        row |= {f"cost_{i}": event.key, f"share_{i}": getattr(event, time_of) / total}
    return row


if __name__ == "__main__":
    main()
