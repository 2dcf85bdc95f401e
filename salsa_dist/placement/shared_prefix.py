"""Prefix sharing: adapters that sample the same clip run its unsteered prefix once.

    unique clips  c0 c1 ─ encoder.0 … encoder.3 ┐ (the layers above pass their input on)   prefix
                                                ▼
    samples       c0·a c1·a c0·b c1·b           encoder.3 ─ vectors ─ encoder.4 …           the rest
    streams                                     │ c0·a c1·a c0 c1       │ c0·a c1·a c0·b c1·b
                                                  a steers from here on   b from here on

What a layer puts out before its vector is added is the same for every adapter that steers nothing
below. So up to the job's first steered layer there is one stream per clip; above it a hook before each
layer keeps one sample for all that are still alike, and a hook behind it gives its output to each of
them. A vector inside a layer changes its output, so there the prefix is what the layer below puts out;
inside the first layer it is that layer's input. Between layers every sample has its elements, as if
nothing were shared: the base makes its own masks and lengths, and the bank steers as ever.

Which layers run apart is decided once from the whole bank and is the same on all ranks; each
runs the same modules, only batches are smaller.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.blocks import last_layer_below


def stages(specs: Sequence[AdapterSpec], layers: int) -> list[int]:
    """For each adapter, the layer at whose output its clips get streams of their own; -1: before all.

    Args:
        specs: the adapters.
        layers: of the encoder.
    """
    return [
        min((last_layer_below(s) for s in spec.sites if s.startswith("encoder.")), default=layers - 1)
        for spec in specs
    ]


class SharedPrefix:
    """Runs the encoder in two parts, and shares what samples of one clip have in common in both.

    Args:
        bank: whose adapters share clips. Its own hooks must come after these.
        modules: every layer by its site.
        encoder: the module that holds the encoder's layers; its convolutions are below the first.

    Attributes:
        in_chunks: the encoder runs its layers several times a pass (Nemotron-3.5-Transcribe), so that
            nothing can be shared; known after the first pass.
    """

    def __init__(self, bank: Bank, modules: Mapping[str, nn.Module], encoder: nn.Module | None) -> None:
        self.sites = [site for site in modules if site.startswith("encoder.")]
        self._bank = bank
        self._modules = modules
        self._encoder = encoder
        self._tuples = False  # whether the encoder's layers put out a tuple
        self._alike: dict[str, _Alike] = {}
        self._input: Tensor | None = None  # of the first layer, where the prefix ends before it
        self._hooks = ExitStack()
        self._stage: list[int] = []
        self.in_chunks = False
        if not self.sites or not bank.specs:
            return
        self._stage = stages(bank.specs, len(self.sites))
        # The prefix ends behind this layer, or before it.
        self.first = self.sites[max(0, min(self._stage))]
        self.before_first = min(self._stage) < 0
        if self.before_first:
            hook = modules[self.first].register_forward_pre_hook(self._put_in, with_kwargs=True)
            self._hooks.callback(hook.remove)
        for site in self.sites[min(self._stage) + 1 :]:
            before, behind = self._before(site), self._behind(site)
            module = modules[site]
            for hook in (
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(behind),
            ):
                self._hooks.callback(hook.remove)

    @contextmanager
    def prefix_alone(self) -> Iterator[list[Tensor]]:
        """Run the unsteered layers alone; the block finds their output in the list."""
        found: list[Tensor] = []

        def note_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args[0] if args else kwargs[self._names(self.first)[0]]).clone())

        def note(module: nn.Module, args: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)
            if not self.before_first:
                # A copy: some encoders add to a layer's output in place.
                found.append((output[0] if self._tuples else output).clone())

        above = self.sites[self.sites.index(self.first) + 1 :]
        llm = [site for site in self._modules if site not in self.sites]
        with ExitStack() as stack:
            first = self._modules[self.first]
            stack.callback(first.register_forward_hook(note).remove)
            if self.before_first:
                hook = first.register_forward_pre_hook(note_input, with_kwargs=True)
                stack.callback(hook.remove)
            for site in above:
                stack.callback(_replaced(self._modules[site], self._pass_on))
            for site in llm:
                stack.callback(_replaced(self._modules[site], lambda hidden, *args, **kwargs: hidden))
            yield found

    @contextmanager
    def the_rest(self, batch: AdapterBatch | PromptBatch, prefix: Tensor) -> Iterator[None]:
        """Run only the layers above the first steered one, for all samples of `batch`.

        Args:
            prefix: (elements, …, hidden), the unsteered prefix's output for the clips.
        """
        assert batch.shared is not None
        clip_of = batch.shared.clip_of.tolist()
        sizes = batch.shared.elements.tolist()
        starts = _starts(sizes)
        own = torch.tensor([e for clip in clip_of for e in range(starts[clip], starts[clip + 1])])
        put_out = prefix.index_select(0, own.to(prefix.device, non_blocking=True))
        below = self.sites[: self.sites.index(self.first)]
        self._alike = {
            site: _Alike(streams, [sizes[clip] for clip in clip_of], prefix.device)
            for site, streams in self.plan(clip_of, batch.sample_rows.tolist()).items()
        }
        with ExitStack() as stack:
            for site in below:
                stack.callback(_replaced(self._modules[site], self._pass_on))
            first = self._modules[self.first]
            if self.before_first:
                self._input = put_out
            else:
                put = (put_out,) if self._tuples else put_out
                stack.callback(_replaced(first, lambda *args, **kwargs: put))
            for child in self._encoder.children() if self._encoder is not None else ():
                if isinstance(child, nn.Conv1d | nn.Conv2d):
                    stack.callback(_replaced(child, _zeros_of(child)))
            try:
                yield
            finally:
                self._alike, self._input = {}, None

    def plan(self, clip_of: Sequence[int], rows: Sequence[int]) -> dict[str, list[int]]:
        """For each layer above the first steered one: per sample, the sample that is computed for it.

        A layer is missing where each sample runs by itself.

        Args:
            clip_of: for each sample, the clip that it is of.
            rows: for each sample, its adapter's row; -1 for none.
        """
        last = len(self.sites) - 1
        stage = [self._stage[row] if row >= 0 else last for row in rows]
        plan = {}
        for level in range(min(self._stage) + 1, last + 1):
            runs: dict[int, int] = {}  # by clip, the sample for all that nothing has steered yet
            streams = [
                i if stage[i] < level else runs.setdefault(clip, i) for i, clip in enumerate(clip_of)
            ]
            if len(set(streams)) < len(streams):
                plan[self.sites[level]] = streams
        return plan

    def close(self) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def _pass_on(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden,) if self._tuples else hidden

    def _names(self, site: str) -> list[str]:
        """The arguments of a layer; the first is the activation."""
        return list(inspect.signature(type(self._modules[site]).forward).parameters)[1:]

    def _put_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A hook that gives the first layer the prefix in place of its input."""
        if self._input is None:
            return None
        if args:
            return (self._input, *args[1:]), kwargs
        return args, {**kwargs, self._names(self.first)[0]: self._input}

    def _before(self, site: str) -> Any:
        names = self._names(site)

        def gather(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            alike = self._alike.get(site)
            if alike is None:
                return None
            self._bank.keep_inside(site, alike.keep)
            given = tuple(
                alike.kept(name == names[0], name, v) for name, v in zip(names, args, strict=False)
            )
            return given, {name: alike.kept(name == names[0], name, v) for name, v in kwargs.items()}

        return gather

    def _behind(self, site: str) -> Any:
        def scatter(module: nn.Module, args: Any, output: Any) -> Any:
            alike = self._alike.get(site)
            if alike is None:
                return output
            if isinstance(output, tuple):
                return (output[0].index_select(0, alike.back), *output[1:])
            return output.index_select(0, alike.back)

        return scatter


class _Alike:
    """The shared samples: which sample is computed for which others, in elements.

    Args:
        streams: for each sample the one that runs for it.
        sizes: elements of each sample.
        device: where the base is.
    """

    def __init__(self, streams: Sequence[int], sizes: Sequence[int], device: torch.device) -> None:
        self.running = sorted(set(streams))
        self.starts = _starts(sizes)
        kept = [e for i in self.running for e in range(self.starts[i], self.starts[i + 1])]
        new = dict(zip(self.running, _starts([sizes[i] for i in self.running])[:-1], strict=True))
        back = [new[s] + e for i, s in enumerate(streams) for e in range(sizes[i])]
        self.keep = torch.tensor(kept).to(device, non_blocking=True)
        self.back = torch.tensor(back).to(device, non_blocking=True)

    def kept(self, is_hidden: bool, name: str, value: Any) -> Any:
        """An argument of the layer, for those that run."""
        if isinstance(value, tuple):
            return tuple(self.kept(False, name, part) for part in value)
        if not isinstance(value, Tensor):
            return value
        # Masks, and some encoders' positions, have a row for each element; tables of distances do not.
        by_element = "mask" in name or name == "position_embeddings"
        if is_hidden or (by_element and value.shape[0] == self.starts[-1]):
            return value.index_select(0, self.keep)
        return self._segments(value) if name == "cu_seqlens" else value

    def _segments(self, borders: Tensor) -> Tensor:
        """Borders of the segments that lie in the kept samples, moved to where these now are.

        Args:
            borders: (segments + 1,), where packed attention begins anew; no segment has two clips.
        """
        cuts = borders.tolist()
        lengths = []
        for i in self.running:
            inside = [c for c in cuts if self.starts[i] < c <= self.starts[i + 1]]
            lengths += [b - a for a, b in zip([self.starts[i], *inside], inside, strict=False)]
        return torch.tensor(_starts(lengths), dtype=borders.dtype, device=borders.device)


def _starts(sizes: Sequence[int]) -> list[int]:
    """The start of each of `sizes` in a concatenation, and its end."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts


def _zeros_of(conv: nn.Conv1d | nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """A forward that returns zeros of the right shape, because the real output is already known."""

    def zeros(features: Tensor) -> Tensor:
        sizes = [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, kernel, stride, dilation in zip(
                features.shape[2:],
                _pads(conv),
                conv.kernel_size,
                conv.stride,
                conv.dilation,
                strict=True,
            )
        ]
        return features.new_zeros(1).expand(features.shape[0], conv.out_channels, *sizes)

    return zeros


def _pads(conv: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    if isinstance(conv.padding, str):
        raise RuntimeError(f"{conv}: a padding in words is not known here")
    return conv.padding


def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Let `module` run `forward`; returns what undoes it."""
    before = module.__dict__.get("forward")
    module.forward = forward

    def back() -> None:
        if before is None:
            del module.forward  # the class's own is seen again
        else:
            module.forward = before

    return back
