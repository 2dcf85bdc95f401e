"""SALSA without this package: the whole method in PyTorch and transformers, to read before the rest.

    python examples/plain_salsa.py openai/whisper-base clips.jsonl bg.safetensors --language bg

`clips.jsonl` has one line per clip: {"audio": "clip.wav", "text": "what is said"}, at 16,000 Hz. The
file that is written holds one vector (hidden,) per layer, under the names that salsa-dist uses.

    1. Load a speech-LLM and freeze it.
    2. Give each layer a vector v, zero at first. A hook turns the layer's output h towards h + v and
       keeps its norm: s = h + v, h' = s |h| / |s|.
    3. Train the vectors, and nothing else, with cross-entropy on the transcripts.

salsa-dist does the same for many adapters at once, over a base that many GPUs share. A test holds both
together: on the same clips they give the same vectors (tests/invariants/test_plain_twin.py).
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor
from transformers import WhisperForConditionalGeneration as Base

Clips = Sequence[tuple[Any, str]]  # audio (samples,) and text


def load(name: str) -> tuple[Base, Any]:
    """The frozen base, and what makes its inputs."""
    base = Base.from_pretrained(name, dtype=torch.float32)
    return base.eval().requires_grad_(False), AutoProcessor.from_pretrained(name)


def turned(h: Tensor, v: Tensor) -> Tensor:
    """`h` (batch, positions, hidden) towards `h + v`, as long as it was."""
    s = h + v
    return s * (h.norm(dim=-1, keepdim=True) / s.norm(dim=-1, keepdim=True).clamp_min(1e-10))


def steer(base: Base) -> dict[str, Tensor]:
    """Put a zero vector on every layer; returns the vectors, by the names of their sites."""
    layers = {f"encoder.{i}": layer for i, layer in enumerate(base.get_encoder().layers)}
    layers |= {f"llm.{i}": layer for i, layer in enumerate(base.get_decoder().layers)}
    vectors = {site: torch.zeros(base.config.d_model, requires_grad=True) for site in layers}
    for site, layer in layers.items():
        layer.register_forward_hook(lambda _, inputs, h, v=vectors[site]: turned(h, v))
    return vectors


def mean_loss(base: Base, processor: Any, clips: Clips, language: str) -> Tensor:
    """Cross-entropy per label of `clips`."""
    sounds, texts = zip(*clips, strict=True)
    audio = processor.feature_extractor(sounds, sampling_rate=16_000, return_tensors="pt")
    prompt = ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]
    rows = ["".join(prompt) + f" {text}<|endoftext|>" for text in texts]
    tokens = processor.tokenizer(rows, add_special_tokens=False, padding=True, return_tensors="pt")
    ids, is_label = tokens.input_ids, tokens.attention_mask.bool()
    is_label[:, : len(prompt)] = False
    logits = base(audio.input_features, decoder_input_ids=ids[:, :-1], use_cache=False).logits
    return cross_entropy(logits[is_label[:, 1:]], ids[is_label])


def rate(step: int, steps: int, lr: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine to zero."""
    rising = warmup * steps
    if step < rising:
        return lr * (step + 1) / (rising + 1)
    return lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def train(
    base: Base,
    processor: Any,
    vectors: dict[str, Tensor],
    batches: Sequence[Clips],
    language: str,
    lr: float = 0.01,
    warmup: float = 0.05,
    clip_norm: float = 1.0,
) -> None:
    """One step of Adam per batch."""
    adam = torch.optim.Adam(vectors.values())
    for step, clips in enumerate(batches):
        loss = mean_loss(base, processor, clips, language)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vectors.values(), clip_norm)
        adam.param_groups[0]["lr"] = rate(step, len(batches), lr, warmup)
        adam.step()
        print(f"step {step + 1} of {len(batches)}: loss {loss.item():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("base", "clips", "out", "--language"):
        parser.add_argument(name)
    for name, usual in (("--steps", 100), ("--batch", 8)):
        parser.add_argument(name, type=int, default=usual)
    args = parser.parse_args()
    base, processor = load(args.base)
    lines = [json.loads(line) for line in Path(args.clips).read_text(encoding="utf-8").splitlines()]
    clips = [(soundfile.read(line["audio"], dtype="float32")[0], line["text"]) for line in lines]
    order = torch.randint(len(clips), (args.steps, args.batch)).tolist()
    vectors = steer(base)
    train(base, processor, vectors, [[clips[i] for i in row] for row in order], args.language)
    save_file({site: v.detach() for site, v in vectors.items()}, args.out)
