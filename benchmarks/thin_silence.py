"""What a short clip costs in Whisper's window with trailing padding thinned out, and its gradient.

    python benchmarks/thin_silence.py --json OUT [--language bg] [--clips 12] [--dtype bfloat16]

Each clip, alone in its window, goes forward and backward through every variant, in random order, on one
thread: the whole window; one position of N of the silence behind (`training.silence_stride`); and
windows that are cut (`training.window_s`). Vectors at all layers are zero, as training begins.
Compared with the whole window: the loss, the gradient's direction and length, CPU seconds of the
process, with the making of the features.

{"rows": [{"silence_stride": 8, "window_s": 30.0, "loss_difference": …, "cosine": …, "cost": …}, …]}
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.loss import token_losses

CACHE = Path("~/.cache/salsa-dist").expanduser()
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    *({"silence_stride": n} for n in (2, 4, 8, 16, 32)),
    *({"window_s": s} for s in (5.0, 10.0)),
)


class Step(NamedTuple):
    """Mean loss of a clip's labels, its gradient, and the CPU seconds that they took."""

    loss: float
    gradient: Tensor
    seconds: float


class Variant:
    """A base with these `options`, with zero vectors at all its layers."""

    def __init__(self, options: dict[str, Any], name: str, dtype: str, ranks: Ranks) -> None:
        self.options = options
        self.llm = load_speech_llm(name, dtype=dtype, **options)
        widths = site_widths(find_layers(self.llm.model))
        self.bank = Bank([AdapterSpec("a", tuple(widths), "salsa")], widths)
        self.base = FrozenBase(self.llm, self.bank, ranks, PlacementConfig(kind="replicate"))

    def step(self, clip: Clip) -> Step:
        for vector in self.bank.vectors.values():
            vector.grad = None
        start = time.process_time()
        loss = token_losses(self.base, self.llm.family.training_batch([clip])).mean()
        loss.backward()
        seconds = time.process_time() - start
        gradients = [v.grad.flatten() for v in self.bank.vectors.values() if v.grad is not None]
        return Step(loss.item(), torch.cat(gradients), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--base", default=str(CACHE / "whisper-base"))
    parser.add_argument("--shards", type=Path, default=CACHE / "shards/tuxpaint-bg-el")
    parser.add_argument("--language", default="bg")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    index = ShardIndex.load(options.shards)
    found_clips = first_clips(options.shards, index, options.language, options.clips, 5.0)
    clips = [replace(clip, row=0) for clip in found_clips]  # of the one adapter
    with join() as ranks:
        variants = [Variant(v, options.base, options.dtype, ranks) for v in VARIANTS]
        for variant in variants:
            variant.step(clips[0])
        order = random.Random(0)
        found: list[list[Step]] = [[] for _ in variants]
        for clip in clips:
            for i in order.sample(range(len(variants)), len(variants)):
                found[i].append(variants[i].step(clip))
    rows = [row(variant, found[0], own) for variant, own in zip(variants, found, strict=True)]
    for line in rows:
        print(line)
    write_report(
        options.json,
        rows,
        base=Path(options.base).name,
        dtype=options.dtype,
        language=options.language,
        clips=len(clips),
        seconds_of_a_clip=statistics.median(clip.seconds for clip in clips),
    )


def row(variant: Variant, whole: list[Step], own: list[Step]) -> dict[str, Any]:
    """One variant beside the whole window: medians over the clips, and the worst direction."""
    pairs = list(zip(whole, own, strict=True))
    cosines = [cosine(w.gradient, o.gradient) for w, o in pairs]
    summed = [torch.stack([step.gradient for step in steps]).sum(0) for steps in (whole, own)]
    return {
        "silence_stride": variant.options.get("silence_stride", 1),
        "window_s": variant.llm.window_s,
        "loss": statistics.fmean(o.loss for o in own),
        "loss_difference": statistics.fmean(abs(o.loss - w.loss) for w, o in pairs),
        "cosine": statistics.median(cosines),
        "cosine_worst": min(cosines),
        "cosine_of_the_sum": cosine(*summed),
        "length": statistics.median((o.gradient.norm() / w.gradient.norm()).item() for w, o in pairs),
        "cpu_seconds": statistics.median(o.seconds for o in own),
        "cost": statistics.median(o.seconds / w.seconds for w, o in pairs),
    }


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a, b, dim=0).item()


if __name__ == "__main__":
    main()
