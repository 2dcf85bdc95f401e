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
from collections.abc import Callable, Sequence
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


def steer(base: Base) -> dict[str, Tensor]:
    """Put a zero vector on every layer; returns the vectors, by the names of their sites."""
    layers = {f"encoder.{i}": layer for i, layer in enumerate(base.get_encoder().layers)}
    layers |= {f"llm.{i}": layer for i, layer in enumerate(base.get_decoder().layers)}
    vectors = {site: torch.zeros(base.config.d_model, requires_grad=True) for site in layers}

    def hook(v: Tensor) -> Callable[..., Any]:
        def turn(layer: Any, inputs: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output  # (batch, positions, hidden)
            s = h + v
            turned = s * (h.norm(dim=-1, keepdim=True) / s.norm(dim=-1, keepdim=True).clamp_min(1e-10))
            return (turned, *output[1:]) if isinstance(output, tuple) else turned

        return turn

    for site, layer in layers.items():
        layer.register_forward_hook(hook(vectors[site]))
    return vectors


def mean_loss(base: Base, processor: Any, clips: Clips, language: str) -> Tensor:
    """Cross-entropy per label of `clips`."""
    words = processor.tokenizer
    control = ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]
    prompt = words.convert_tokens_to_ids(control)
    texts = [
        [*words(" " + t, add_special_tokens=False).input_ids, words.eos_token_id] for _, t in clips
    ]
    longest = len(prompt) + max(map(len, texts)) - 1
    tokens = torch.full((len(clips), longest), words.eos_token_id)
    labels = torch.full((len(clips), longest), -100)  # no label: the prompt, and what fills a row up
    for row, text in enumerate(texts):
        tokens[row, : len(prompt) + len(text) - 1] = torch.tensor(prompt + text[:-1])
        labels[row, len(prompt) - 1 : len(prompt) + len(text) - 1] = torch.tensor(text)
    audio = processor.feature_extractor(
        [a for a, _ in clips], sampling_rate=16_000, return_tensors="pt"
    )
    logits = base(audio.input_features, decoder_input_ids=tokens, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


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
    parser.add_argument("base")
    parser.add_argument("clips")
    parser.add_argument("out")
    parser.add_argument("--language", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    base, processor = load(args.base)
    lines = [json.loads(line) for line in Path(args.clips).read_text(encoding="utf-8").splitlines()]
    clips = [(soundfile.read(line["audio"], dtype="float32")[0], line["text"]) for line in lines]
    order = torch.randint(len(clips), (args.steps, args.batch)).tolist()
    vectors = steer(base)
    train(base, processor, vectors, [[clips[i] for i in row] for row in order], args.language)
    save_file({site: v.detach() for site, v in vectors.items()}, args.out)
