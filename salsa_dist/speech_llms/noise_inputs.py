"""Batches of noise that any speech-LLM takes, made from its config and its forward signature alone.

    inputs = noise_inputs(model)
    inputs.alone      one short sample                       its audio: 80 frames
    inputs.together   the same sample beside a longer one               80 and 160 frames
    inputs.spanning   the longer one given as two windows               80, and 80 + 80; None where
                                                                        the model can't take that

No processor is needed, so a model without a family file can be probed. What a signature can't tell
(the number of mel bins, the axis that they are on, whether the window is fixed, how many audio tokens
the prompt must hold) is found by trying: a model refuses what does not fit, most of them with the count
that they expected.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from salsa_dist.errors import UserError
from salsa_dist.steering.probe import ProbeInputs

SHORT, LONG = 80, 160  # frames of 10 ms
_SAMPLES_PER_FRAME = 160

_FEATURES = ("input_features", "audio_input_features", "input_values", "audio_values")
_MASKS = ("input_features_mask", "feature_attention_mask", "audio_attention_mask")
_MEL_BINS = (
    "num_mel_bins",
    "input_feat_size",
    "feature_projection_input_dim",
    "input_dim",
    "input_size",
)
_AUDIO_TOKEN = ("audio_token_id", "audio_token_index")
# What transformers says when the prompt holds another number of audio tokens than the encoder made.
_EXPECTED = (
    re.compile(r"tokens: \d+, features: (\d+)"),
    re.compile(r"mask \[1, \d+\] at index 1 does not match .* tensor \[1, (\d+),"),
)


@dataclass(frozen=True)
class _Layout:
    """How features are given.

    Attributes:
        mel_bins: 0 stands for raw samples, (batch, samples).
        mel_first: (batch, mel bins, frames), not (batch, frames, mel bins); for raw samples,
            (batch, 1, samples).
        multiple: every row is padded to a multiple of so many frames.
        full: the padding counts as audio: every row fills its window.
        token_mask: the feature mask is over the audio tokens that the encoder makes, not over frames.
    """

    mel_bins: int
    mel_first: bool
    multiple: int = 1
    full: bool = False
    token_mask: bool = False


class _Unfit(Exception):
    """The model does not take inputs of this layout."""


def noise_inputs(model: nn.Module) -> ProbeInputs:
    """Probe batches for `model`, on its device and in its precision.

    Raises:
        UserError: no layout of features was taken; names the last complaint of the model.
    """
    return _Maker(model).probe_inputs()


class _Maker:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.config: Any = model.config
        self.parameters = set(inspect.signature(model.forward).parameters)
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.features = next((n for n in _FEATURES if n in self.parameters), "")
        self.audio_token = _first(self.config, _AUDIO_TOKEN)
        self.vocabulary = min(_first(self.config, ("vocab_size",)) or 100, 32_000)
        if self.vocabulary < 32:  # of images or audio alone
            self.vocabulary = max(_own(c, "vocab_size") for c in _configs(self.config))

    def probe_inputs(self) -> ProbeInputs:
        if not self.features:
            return ProbeInputs(self._codes([SHORT]), self._codes([SHORT, LONG]))
        complaints: list[str] = []
        for layout in self._layouts():
            try:
                counts = {n: self._count(n, layout) for n in (SHORT, LONG)}
                alone = self._batch([[SHORT]], layout, counts)
                together = self._batch([[SHORT], [LONG]], layout, counts)
                if "input_ids" not in self.parameters:  # else tried when its tokens were counted
                    self._try(alone)
                self._try(together)
            except _Unfit as e:
                complaints.append(str(e))
                continue
            spanning = self._batch([[SHORT], [SHORT, SHORT]], layout, counts)
            try:
                # A layer mixes rows in silence where a decoder attends to them, so only ask where
                # rows are spread over the prompt.
                if "input_ids" not in self.parameters or not (layout.full or splits_audio(self.config)):
                    raise _Unfit
                self._try(spanning)
            except _Unfit:
                return ProbeInputs(alone, together)
            return ProbeInputs(alone, together, spanning, "chunk" if layout.full else "window")
        raise UserError(
            f"no audio input that {type(self.model).__name__} takes was found "
            f"({' '.join(complaints[0].split())[:200]}): it needs a family file"
        )

    def _layouts(self) -> Iterator[_Layout]:
        """Layouts to try, the most usual first."""
        if "values" in self.features:
            yield _Layout(0, False)
            yield _Layout(0, True)
            return
        configs = _configs(self.config)
        bins = [n for c in configs for k in _MEL_BINS if (n := _own(c, k))]
        # Gemma 4 names no bins: its first convolution has as many channels.
        bins += [c.subsampling_conv_channels[0] for c in configs if c.model_type == "gemma4_audio"]
        stacked = [b * n for c in configs if (n := _own(c, "num_stacked_frames")) for b in bins]
        multiples = [2 * _first(self.config, (k,)) for k in ("n_window", "max_source_positions")]
        masked = any(name in self.parameters for name in (*_MASKS, "decoder_input_ids"))
        for multiple in (1, *(m for m in multiples if m)):
            for mel_bins in dict.fromkeys([*stacked, *bins, 80, 128]):
                for mel_first in (True, False):
                    full = multiple > 1 and not masked
                    yield _Layout(mel_bins, mel_first, multiple, full)
                    if "input_features_mask" in self.parameters:
                        yield _Layout(mel_bins, mel_first, multiple, full, token_mask=True)

    def _count(self, frames: int, layout: _Layout) -> int:
        """Audio tokens that the prompt of one row with `frames` frames must hold."""
        if "input_ids" not in self.parameters:
            return 0
        if per_token := _first(self.config, ("audio_length_per_tok",)):
            return -(-frames // per_token)
        if "audio_embed_sizes" in self.parameters:
            return -(-frames // (_first(self.config, ("time_reduction",)) or 8))
        if hop := self._hop():
            return -(-frames * _SAMPLES_PER_FRAME // hop)
        count = 2  # two, side by side: one alone means "expand me" to some models
        for _ in range(2):
            try:
                self._try(self._batch([[frames]], layout, {frames: count}))
                return count
            except _Unfit as e:
                found = _EXPECTED[layout.token_mask].search(str(e))
                if found is None:
                    raise
                count = int(found[1])
                if count > frames:  # Gemma 4 says how many numbers its tokens have
                    model: Any = self.model
                    count //= model.get_input_embeddings().weight.shape[-1]
        raise _Unfit(f"the prompt of {frames} frames can't be matched with {count} audio tokens")

    def _batch(
        self, samples: Sequence[Sequence[int]], layout: _Layout, counts: dict[int, int]
    ) -> dict[str, Any]:
        """Model inputs for `samples`, each the frames of its windows."""
        rows = [frames for windows in samples for frames in windows]
        row_tokens = torch.tensor([counts[frames] for frames in rows])
        longest = -(-max(rows) // layout.multiple) * layout.multiple
        if layout.full:
            rows = [longest] * len(rows)
        unit = 1 if layout.mel_bins else _SAMPLES_PER_FRAME
        features = [
            _pad(self._noise(i, frames, layout), longest * unit) for i, frames in enumerate(rows)
        ]
        stacked = torch.stack(features)
        if layout.mel_first:
            stacked = stacked.transpose(1, 2).contiguous() if layout.mel_bins else stacked.unsqueeze(1)
        lengths = torch.tensor(rows)
        mask = (torch.arange(longest * unit) < unit * lengths[:, None]).long()
        inputs: dict[str, Any] = {self.features: stacked.to(self.device, self.dtype)}
        token_mask = torch.arange(int(row_tokens.max())) < row_tokens[:, None]
        for name in _MASKS:
            if name in self.parameters:
                frame_mask = mask.bool() if name == "input_features_mask" else mask
                inputs[name] = token_mask if layout.token_mask else frame_mask
        tokens = [sum(counts[frames] for frames in windows) for windows in samples]
        if "audio_embed_sizes" in self.parameters:
            inputs["audio_embed_sizes"] = torch.tensor(tokens)
        if "padding_mask" in self.parameters:
            if layout.mel_bins:  # of raw audio, a row a sample
                total = torch.tensor([sum(windows) for windows in samples]) * _SAMPLES_PER_FRAME
                inputs["padding_mask"] = (torch.arange(int(total.max())) < total[:, None]).long()
            else:
                inputs["padding_mask"] = mask.bool()
        if "sample" in self.parameters:
            inputs["sample"] = False
        if "input_ids" in self.parameters:
            inputs |= self._prompts(tokens)
        else:
            if "attention_mask" in self.parameters:
                inputs["attention_mask"] = mask
            if "decoder_input_ids" in self.parameters:
                texts = [self._text(i, 6) for i in range(len(samples))]
                inputs["decoder_input_ids"] = torch.stack(texts)
        if self._takes_no_text():
            inputs["input_ids"] = torch.full((len(samples), max(tokens)), 5)
            inputs.pop("attention_mask")
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}

    def _prompts(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        """Text, audio tokens, text; padded right."""
        rows = [
            torch.cat(
                [self._text(i, 3), torch.full((n,), self.audio_token or 0), self._text(i + 100, 5)]
            )
            for i, n in enumerate(tokens)
        ]
        longest = max(map(len, rows))
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
        return {"input_ids": torch.stack([_pad(r, longest) for r in rows]), "attention_mask": mask}

    def _codes(self, frames: Sequence[int]) -> dict[str, Any]:
        """For a model that takes discrete codes beside each text token: (batch, tokens, 1 + codes)."""
        codebooks = _first(self.config, ("num_codebooks",))
        if not codebooks:
            raise UserError(
                f"{type(self.model).__name__} takes no audio features: it needs a family file"
            )
        size = _first(self.config, ("codebook_vocab_size",)) - 1
        longest = max(frames) // 8
        ids = torch.zeros(len(frames), longest, codebooks + 1, dtype=torch.long)
        mask = torch.zeros(len(frames), longest, dtype=torch.long)
        for i, n in enumerate(frames):
            random = torch.Generator().manual_seed(i)
            ids[i, : n // 8] = torch.randint(5, size, (n // 8, codebooks + 1), generator=random)
            mask[i, : n // 8] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def _noise(self, row: int, frames: int, layout: _Layout) -> Tensor:
        random = torch.Generator().manual_seed(row)
        if not layout.mel_bins:
            return 0.1 * torch.randn(frames * _SAMPLES_PER_FRAME, generator=random)
        return torch.randn(frames, layout.mel_bins, generator=random)

    def _text(self, row: int, length: int) -> Tensor:
        """Token ids that are no audio token; low ids, where the special ones are seldom."""
        random = torch.Generator().manual_seed(row)
        special = {_own(c, k) for c in _configs(self.config) for k in vars(c) if _IS_TOKEN.search(k)}
        usual = [i for i in range(5, self.vocabulary) if i not in special][:250]
        return torch.tensor(usual)[torch.randint(len(usual), (length,), generator=random)]

    def _try(self, inputs: dict[str, Any]) -> None:
        try:
            with torch.no_grad():
                self.model(**inputs, use_cache=False)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, KeyError) as e:
            raise _Unfit(str(e)) from e

    def _takes_no_text(self) -> bool:
        """A model that streams: each text token is read beside one stretch of audio."""
        return bool(_first(self.config, ("audio_length_per_tok",)))

    def _hop(self) -> int:
        """Raw samples of one audio token, where a codec makes them."""
        codec = next((c for c in _configs(self.config) if "downsampling_ratios" in vars(c)), None)
        hop = 1
        for ratio in getattr(codec, "downsampling_ratios", ()):
            hop *= ratio
        return hop if codec is not None else 0


def splits_audio(config: Any) -> bool:
    """Whether the model's own processor gives long audio as several windows."""
    if _own(config, "audio_chunk_size"):
        return True
    name = type(config).__name__.removesuffix("Config") + "Processor"
    try:
        return "max_audio_len" in inspect.signature(getattr(transformers, name).__init__).parameters
    except (AttributeError, ImportError):  # no such class, or one that needs another library
        return False


_IS_TOKEN = re.compile(r"token_(id|index)$")


def _configs(config: Any) -> list[Any]:
    """A config with all its sub-configs, those of audio before the others."""
    below = [v for v in vars(config).values() if hasattr(v, "to_dict") and hasattr(v, "model_type")]
    below.sort(key=lambda c: "text" in c.model_type or "vision" in c.model_type)
    return [config, *(c for sub in below for c in _configs(sub))]


def _own(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def _first(config: Any, names: Sequence[str]) -> int:
    """The first number under one of `names` in a config or its sub-configs; 0 if there is none."""
    return next((n for c in _configs(config) for name in names if (n := _own(c, name))), 0)


def _pad(rows: Tensor, length: int) -> Tensor:
    """`rows`, (n, …), with zeros up to (length, …)."""
    out = rows.new_zeros(length, *rows.shape[1:])
    out[: len(rows)] = rows
    return out
