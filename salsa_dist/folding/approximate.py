"""Biases that come near an adapter which no bias holds exactly: `salsa-dist fold --approximate`.

    train clips ─┬─ steered base ──> p   (labels, vocabulary)
                 └─ base, biases b ──> q(b)      b minimises the mean over labels of KL(p ‖ q(b))
    dev clips ─── base, steered, with biases ──> error rates of each, before anything is written

b is one bias per steered layer where one moves its output by c · b. It starts at the least squares
solution for that layer, the mean over positions of (h' - h) / c, with h and h' before and after the
steering. A layer without such a bias gets all biases of its own, unchanged at the start. Then L-BFGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import first_clips
from salsa_dist.errors import UserError
from salsa_dist.folding.targets import Target, own_biases
from salsa_dist.metrics import error_rates, normalise
from salsa_dist.places import Folder
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.speech_llms.sources import Source
from salsa_dist.steering.rules.registry import rule_named
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.transcription.transcribe import transcribe

_STEPS = 10  # of L-BFGS

Biases = dict[str, Tensor]


@dataclass(frozen=True)
class Accuracy:
    """Error rates on dev clips, which were not used for fitting.

    Attributes:
        clips: how many.
        rates: "CER" and "WER" (or "MER") to fractions of the base, steered, and with the biases.
    """

    clips: int
    rates: Mapping[str, tuple[float, float, float]]

    def lines(self) -> list[str]:
        """The error rates as text, for a terminal and for the card."""
        names = ("base", "steered", "folded")
        return [f"On {self.clips} dev clips, no bias was fitted on any of them:"] + [
            f"{rate}  " + ", ".join(f"{n} {100 * x:.1f}%" for n, x in zip(names, three, strict=True))
            for rate, three in self.rates.items()
        ]


@dataclass
class Approximate:
    """Fits biases on speech, and measures the error rates before and after.

    Attributes:
        shards: with train and dev clips in the adapter's language; in all their languages where the
            adapter has none.
        clips: how many of each split, at most.
        tell: gets the lines of `accuracy`, before anything is written.
        accuracy: once it was called.
    """

    shards: Folder
    clips: int
    tell: Callable[[str], None]
    accuracy: Accuracy = field(init=False)

    def __call__(
        self,
        base: SpeechLLM,
        vectors: SteeringVectors,
        layers: Mapping[str, nn.Module],
        found: Mapping[str, Target],
        files: Mapping[str, Source],
    ) -> tuple[dict[str, Sequence[str]], Biases]:
        """The biases of each site by name, and their fitted values as their file will hold them.

        Args:
            base: whole, in fp32; unchanged afterwards.
            layers: the steered ones, by site.
            found: the bias of a layer that moves its output by a constant.
            files: where each weight lies.

        Raises:
            UserError: the shards have no such clips, or a layer has no bias at all.
        """
        train, dev = (self._speech(base, vectors.language, split) for split in ("train", "dev"))
        into: dict[str, Sequence[str]] = {}
        biases: dict[str, nn.Parameter] = {}
        for site, layer in layers.items():
            own = own_biases(base.model, layer)
            if site in found:
                own = {found[site].name: found[site].bias}
            if not own:
                raise UserError(
                    f"{site} can't be folded: its layer, {type(layer).__name__}, has no bias at all; "
                    "serve this base with its adapter beside it"
                )
            into[site] = tuple(own)
            biases |= own
        moved = fitted(base, vectors, layers, found, biases, train)
        moved = {name: bias.to(files[name].dtype).float() for name, bias in moved.items()}
        self.accuracy = accuracy(base, vectors, moved, dev)
        for line in self.accuracy.lines():
            self.tell(line)
        return into, moved

    def _speech(self, base: SpeechLLM, language: str, split: str) -> list[Clip]:
        index = ShardIndex.load(self.shards)
        languages = [language] if language else sorted({shard.language for shard in index.shards})
        share = -(-self.clips // len(languages))
        clips = [
            clip
            for code in languages
            for clip in first_clips(self.shards, index, code, share, base.window_s, split)
            if clip.text.strip()
        ][: self.clips]
        if not clips:
            raise UserError(
                f"--clips {self.shards} has no {split} clips in {', '.join(languages)}: biases are "
                "fitted on train clips and measured on dev clips"
            )
        return clips


def fitted(
    base: SpeechLLM,
    vectors: SteeringVectors,
    layers: Mapping[str, nn.Module],
    found: Mapping[str, Target],
    biases: Mapping[str, nn.Parameter],
    clips: Sequence[Clip],
) -> Biases:
    """The values of `biases` with which the base's output is closest to the steered base's."""
    batches = [base.family.training_batch([clip]) for clip in clips]
    sums: dict[str, Tensor] = {}
    wanted: list[Tensor] = []
    with torch.no_grad(), ExitStack() as stack:
        for site, layer in layers.items():
            hook = layer.register_forward_hook(_steering(site, vectors, sums))
            stack.callback(hook.remove)
        wanted += [_log_probabilities(base, batch) for batch in batches]
    shift = {site: total[:-1] / total[-1] for site, total in sums.items()}
    start = {t.name: t.bias.detach() + shift[site] / t.multiplier for site, t in found.items()}
    labels = sum(len(one) for one in wanted)
    with biases_set(base.model, {**biases, **start}):
        optimizer = torch.optim.LBFGS(biases.values(), max_iter=_STEPS, line_search_fn="strong_wolfe")

        def mean_divergence() -> float:
            optimizer.zero_grad()
            total = 0.0
            with torch.enable_grad():
                for batch, p in zip(batches, wanted, strict=True):
                    q = _log_probabilities(base, batch)
                    loss = kl_div(q, p, reduction="sum", log_target=True) / labels
                    loss.backward()
                    total += float(loss.detach())
            return total

        for bias in biases.values():
            bias.requires_grad_(True)
        try:
            optimizer.step(mean_divergence)
        finally:
            for bias in biases.values():
                bias.requires_grad_(False)
                bias.grad = None
        return {name: bias.detach().clone() for name, bias in biases.items()}


def accuracy(
    base: SpeechLLM, vectors: SteeringVectors, moved: Biases, clips: Sequence[Clip]
) -> Accuracy:
    """Error rates of the base, of the steered base and of the base with `moved`."""
    audio = [(clip.audio, SAMPLE_RATE) for clip in clips]
    languages = [clip.language for clip in clips]
    texts = [transcribe(base, audio, languages, own, force=True) for own in (None, vectors)]
    with biases_set(base.model, moved):
        texts.append(transcribe(base, audio, languages))
    scored = [
        [error_rates.score(c.text, t, c.language) for c, t in zip(clips, own, strict=True)]
        for own in texts
    ]
    mixed = any(normalise.unit(language) == "mixed" for language in languages)
    rates = {}
    for name, metric in (("CER", "cer"), ("MER" if mixed else "WER", "wer")):
        base_rate, steered, folded = (error_rates.corpus_rate(own, metric) or 0.0 for own in scored)
        rates[name] = (base_rate, steered, folded)
    return Accuracy(len(clips), rates)


@contextmanager
def biases_set(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """`model` with other values of some of its weights, until the block ends."""
    weights = dict(model.named_parameters())
    before = {name: weights[name].detach().clone() for name in values}
    try:
        with torch.no_grad():
            for name, value in values.items():
                weights[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                weights[name].copy_(value)


def _steering(site: str, vectors: SteeringVectors, sums: dict[str, Tensor]) -> Any:
    """A hook that steers a layer, and adds up by how much: (hidden + 1,), the last the positions."""
    rule, vector = rule_named(vectors.rule), vectors.vectors[site]

    def steer(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        steered = rule.apply(hidden, vector)
        moved = (steered - hidden).flatten(0, -2)
        total = torch.cat([moved.sum(0), torch.tensor([float(len(moved))])])
        sums[site] = sums.get(site, 0) + total
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    return steer


def _log_probabilities(base: SpeechLLM, batch: Any) -> Tensor:
    """The base's log-probabilities at the positions of the labels, (labels, vocabulary)."""
    logits = base.model(**batch.inputs, use_cache=False).logits
    return log_softmax(logits[batch.label_positions].float(), dim=-1)
