"""What a checkpoint of a steering run costs, beside DeepSpeed's and the HF Trainer's of the same.

    python benchmarks/checkpoint.py --json OUT [--base FOLDER] [--saves 5]

All three hold the vectors of one adapter at every layer and Adam's moments, after one step over the
frozen base, in one process:

    salsa-dist                    training/state.py, flushed to the disk
    deepspeed-exclude-frozen      ZeRO-3 engine that owns the vectors;
                                  save_checkpoint(exclude_frozen_parameters=True)
    hf-trainer                    the Trainer's own checkpoint of the steered model

Bytes are those of every file of one checkpoint, seconds the median of the saves.

{"rows": [{"system": "salsa-dist", "bytes": …, "seconds": …, "files": …, "base_bytes": …}, …]}
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report_file import write_report
from torch import Tensor, nn

from salsa_dist.placement.ranks import join
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.rules.salsa import salsa
from salsa_dist.steering.sites import find_layers, site_modules
from salsa_dist.steering.widths import site_widths
from salsa_dist.training import state as states
from salsa_dist.training.optimizer import PackedAdam, Schedule

DEFAULT_BASE = Path("~/.cache/salsa-dist/whisper-base").expanduser()


class Vector(nn.Module):
    """One steering vector as a module of the model's own, as DeepSpeed and the Trainer want it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` (..., width), steered."""
        return salsa(hidden, self.weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--base", default=str(DEFAULT_BASE))
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with join():
        for system, measure in (
            ("salsa-dist", ours),
            ("deepspeed-exclude-frozen", deepspeeds),
            ("hf-trainer", trainers),
        ):
            base = load_speech_llm(options.base)
            base_bytes = sum(p.numel() * p.element_size() for p in base.model.parameters())
            with tempfile.TemporaryDirectory() as folder:
                row = {
                    "system": system,
                    **measure(base, Path(folder), options.saves),
                    "vectors_bytes": 4 * sum(site_widths(find_layers(base.model)).values()),
                    "base_bytes": base_bytes,
                }
            print(row, flush=True)
            rows.append(row)
    write_report(
        options.json,
        rows,
        base=Path(options.base).name,
        saves=options.saves,
    )


def ours(base: SpeechLLM, folder: Path, saves: int) -> dict[str, Any]:
    widths = site_widths(find_layers(base.model))
    bank = Bank([AdapterSpec("a", tuple(widths), "salsa")], widths)
    optimizer = PackedAdam(bank, [Schedule(0.01, 10, 0.0, "none")], None)
    sites = site_modules(base.model)
    with bank.attached(sites), bank.rows(0):
        loss(base, base.model).backward()
    optimizer.step({site: v.grad for site, v in bank.vectors.items() if v.grad is not None}, [0])
    identity = states.RunIdentity(["a"], base.revision, "shards", "config")

    def save(i: int) -> None:
        states.save(folder / str(i), states.capture(optimizer, i), identity, keep=1)

    return timed(save, folder, saves)


def deepspeeds(base: SpeechLLM, folder: Path, saves: int) -> dict[str, Any]:
    from salsa_dist.libraries.deepspeed import start_deepspeed

    deepspeed = start_deepspeed()
    os.environ.setdefault("LOCAL_RANK", "0")  # the engine insists, in a single process too
    model = steered(base)
    settings = ds_settings(None, "full", torch.float32)
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(trained, lr=0.01),
        config={**settings, "zero_allow_untested_optimizer": True},
        dist_init_required=False,
    )
    engine.backward(loss(base, engine))
    engine.step()

    def save(i: int) -> None:
        engine.save_checkpoint(str(folder / str(i)), exclude_frozen_parameters=True)

    return timed(save, folder, saves)


def trainers(base: SpeechLLM, folder: Path, saves: int) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    seconds: list[float] = []

    class Timed(Trainer):
        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            started = time.perf_counter()
            super()._save_checkpoint(*args, **kwargs)
            seconds.append(time.perf_counter() - started)

    inputs = clip_inputs(base)
    sample = {**{k: v[0] for k, v in inputs.items()}, "labels": inputs["decoder_input_ids"][0]}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=saves,
        per_device_train_batch_size=1,
        learning_rate=0.01,
        save_strategy="steps",
        save_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    Timed(model=steered(base), args=arguments, train_dataset=[sample] * saves).train()
    return {**on_disk(folder / "checkpoint-1"), "seconds": statistics.median(seconds)}


def steered(base: SpeechLLM) -> Any:
    """The base's model with a vector at each layer that is a part of it and the one thing trained."""
    widths = site_widths(find_layers(base.model))
    names = {site: site.replace(".", "_") for site in widths}
    base.model.steering = nn.ModuleDict({names[site]: Vector(width) for site, width in widths.items()})

    def hook(site: str) -> Any:
        def steer(module: nn.Module, args: Any, output: Any) -> Any:
            vector = base.model.steering[names[site]]
            if isinstance(output, tuple):
                return (vector(output[0]), *output[1:])
            return vector(output)

        return steer

    for site, module in site_modules(base.model).items():
        module.register_forward_hook(hook(site))
    return base.model


def clip_inputs(base: SpeechLLM) -> dict[str, Tensor]:
    """One clip of noise with eight tokens."""
    config = base.model.config
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
    return {
        "input_features": torch.randn(shape, generator=generator),
        "decoder_input_ids": torch.randint(100, (1, 8), generator=generator),
    }


def loss(base: SpeechLLM, model: Any) -> Tensor:
    inputs = clip_inputs(base)
    total: Tensor = model(**inputs, labels=inputs["decoder_input_ids"], use_cache=False).loss
    return total


def timed(save: Callable[[int], None], folder: Path, saves: int) -> dict[str, Any]:
    """Save `saves` times, each in a folder of its own."""
    seconds = []
    for i in range(saves):
        started = time.perf_counter()
        save(i)
        seconds.append(time.perf_counter() - started)
    return {**on_disk(folder / "0"), "seconds": statistics.median(seconds)}


def on_disk(folder: Path) -> dict[str, int]:
    files = [f for f in folder.rglob("*") if f.is_file()]
    return {"bytes": sum(f.stat().st_size for f in files), "files": len(files)}


if __name__ == "__main__":
    main()
