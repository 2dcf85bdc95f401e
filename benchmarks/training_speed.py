"""How fast is training beside Hugging Face's Trainer with PEFT's LoRA, on the same clips?

    python benchmarks/training_speed.py --json OUT [--language bg] [--clips 8] [--rounds 3]
    python benchmarks/training_speed.py --json OUT --base DIR --device cuda --dtype bfloat16

Every way takes the same batches of clips forward and backward and makes an optimizer step, in random
order in each round, after one round that is not counted. The Trainer's own step is taken
(`training_step`, AdamW), with features made in each round as in ours; LoRA has r = 8 on q and v of all
layers. SALSA has vectors at all layers or at the late half of the encoder, on the whole window and with
`training.silence_stride` 2, 4, 8, 16, 24, without and with both ends of the padding kept
(`training.silence_ends_s`), as `auto` keeps them. The cosine is between the gradient of its vectors
and that on the whole window, clip by clip, as training begins: its median, and the worst.

On the CPU seconds are of the process, on one thread; on a GPU by the clock. `times` is the median over
rounds of the Trainer's seconds divided by the way's, of the same round.

{"rows": [{"way": "encoder+llm", "silence_stride": 8, "silence_ends_s": 0.0, "times": 7.1,
           "quartiles": [7.0, 7.3], "cosine": 0.97, "cosine_worst": 0.91}, …]}
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from report_file import write_report
from torch import Tensor

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import first_clips
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.speech_llms.thin_silence import ThinsPadding
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.loss import token_losses

CACHE = Path("~/.cache/salsa-dist").expanduser()
SITES = ("encoder+llm", "encoder:last-half")
# Stride, and seconds of each end of the padding that are kept.
THINNED = ((1, 0.0), *((stride, ends) for stride in (2, 4, 8, 16, 24) for ends in (0.0, 0.5)))
Step = Callable[[list[Clip]], None]


class Salsa:
    """SALSA's vectors at `sites` of a base, and Adam."""

    def __init__(
        self, options: argparse.Namespace, sites: str, stride: int, ends_s: float, ranks: Ranks
    ) -> None:
        self.way, self.stride, self.ends_s = sites, stride, ends_s
        llm = load_speech_llm(
            options.base, dtype=options.dtype, device=options.device, silence_stride=stride
        )
        assert isinstance(llm.family, ThinsPadding)
        llm.family.silence_ends_s = ends_s
        spec = AdapterSpec("a", tuple(llm.select(sites)), "salsa")
        self.bank = Bank([spec], site_widths(llm.layer_lists), ranks.device)
        whole = PlacementConfig(kind="replicate")
        self.base = FrozenBase(llm, self.bank, ranks, whole, compiled=options.compile)
        self.adam = torch.optim.Adam(self.bank.vectors.values(), 1e-6)

    def backward(self, clips: list[Clip]) -> None:
        self.adam.zero_grad()
        batch = self.base.family.training_batch(clips)
        token_losses(self.base, batch).mean().backward()

    def step(self, clips: list[Clip]) -> None:
        self.backward(clips)
        self.adam.step()

    def gradient(self, clip: Clip) -> Tensor:
        self.backward([clip])
        own = [v.grad.flatten() for v in self.bank.vectors.values() if v.grad is not None]
        return torch.cat(own).double().cpu()


def trainer_step(options: argparse.Namespace, folder: str) -> Step:
    """A step of the Trainer, on a base with LoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    llm = load_speech_llm(options.base, dtype=options.dtype, device=options.device)
    weights = next(llm.model.parameters())
    targets = ["q_proj", "v_proj"]
    model: Any = get_peft_model(llm.model, LoraConfig(r=8, target_modules=targets))
    arguments = TrainingArguments(
        output_dir=folder, report_to=[], use_cpu=options.device == "cpu", learning_rate=1e-6
    )
    trainer = Trainer(model=model.train(), args=arguments)
    trainer.current_gradient_accumulation_steps = 1  # its loop sets this before the steps of an epoch
    optimizer = trainer.create_optimizer()

    def step(clips: list[Clip]) -> None:
        batch = llm.family.training_batch(clips).to(weights.device, weights.dtype)
        inputs = dict(batch.inputs)
        positions = batch.label_positions.to(weights.device)
        # The Trainer's models take the label of each position; those of Whisper are not shifted.
        labels = torch.full(positions.shape, -100, device=weights.device)
        labels[positions] = batch.labels.to(weights.device)
        trainer.training_step(model, {**inputs, "labels": labels})
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(step: Step, batches: list[list[Clip]], device: str) -> float:
    """Seconds for all `batches`: of the process, on a GPU by the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    for batch in batches:
        step(batch)
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--base", default=str(CACHE / "whisper-base"), help="a Whisper")
    parser.add_argument("--shards", type=Path, default=CACHE / "shards/tuxpaint-bg-el")
    parser.add_argument("--language", default="bg")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="that are counted")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", default="off", choices=["off", "rule", "layers"], help="SALSA's")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    index = ShardIndex.load(options.shards)
    found = first_clips(options.shards, index, options.language, options.clips, 5.0)
    clips = [replace(clip, row=0) for clip in found]
    size = options.micro_batch
    batches = [clips[i : i + size] for i in range(0, len(clips), size)]
    with tempfile.TemporaryDirectory() as folder, join(wanted=options.device) as ranks:
        ways = [Salsa(options, sites, *thinned, ranks) for sites in SITES for thinned in THINNED]
        cosines = cosines_of(ways, clips)
        steps: list[Step] = [trainer_step(options, folder), *(way.step for way in ways)]
        order = random.Random(0)
        seconds: list[list[float]] = [[] for _ in steps]
        for number in range(options.rounds + 1):
            for i in order.sample(range(len(steps)), len(steps)):
                taken = seconds_of(steps[i], batches[:1] if number == 0 else batches, options.device)
                if number:
                    seconds[i].append(taken)
    rows = []
    for way, near, own in zip(ways, cosines, seconds[1:], strict=True):
        times = [trainer / mine for trainer, mine in zip(seconds[0], own, strict=True)]
        quartiles = (
            statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        )
        row = {
            "way": way.way,
            "silence_stride": way.stride,
            "silence_ends_s": way.ends_s,
            "seconds_per_clip": statistics.median(own) / len(clips),
            "times": statistics.median(times),
            "quartiles": [quartiles[0], quartiles[2]],
            "cosine": statistics.median(near),
            "cosine_worst": min(near),
        }
        rows.append(row)
        print(row)
    write_report(
        options.json,
        rows,
        base=Path(options.base).name,
        dtype=options.dtype,
        device=options.device,
        compile=options.compile,
        clips=len(clips),
        seconds_of_a_clip=statistics.median(clip.seconds for clip in clips),
        trainer_seconds_per_clip=statistics.median(seconds[0]) / len(clips),
    )


def cosines_of(ways: list[Salsa], clips: list[Clip]) -> list[list[float]]:
    """Per way, of each clip: the gradient's cosine with that of the same sites on the whole window."""
    whole = {way.way: [way.gradient(clip) for clip in clips] for way in ways if way.stride == 1}
    return [
        [
            torch.cosine_similarity(a, way.gradient(clip), dim=0).item()
            for a, clip in zip(whole[way.way], clips, strict=True)
        ]
        for way in ways
    ]


if __name__ == "__main__":
    main()
