"""The frozen base on its ranks with a bank of steering vectors on it: the forward pass.

    base = FrozenBase(speech_llm, bank, ranks, config.placement)
    logits = base.logits(batch)           (labels, vocabulary), in the base's dtype
    token_losses(base, batch)             their losses, in training/loss.py
    base.after_backward()

Placement is one number, how many consecutive ranks share one copy: 1 keeps the whole base on each
rank, more shards it by ZeRO-3 (`zero.py`). Decoding is in `decode.py`, measurements in `measured.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import Clip
from salsa_dist.errors import UserError
from salsa_dist.placement.compiled_layers import compile_layers, prepare_compiler
from salsa_dist.placement.kept_prefix import KeptPrefix
from salsa_dist.placement.loading import Say, silent
from salsa_dist.placement.ranks import Ranks, group_size
from salsa_dist.placement.recompute import recompute_in_backward
from salsa_dist.placement.shared_prefix import SharedPrefix
from salsa_dist.placement.zero import ZeroShards
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.speech_llms.quantization import bytes_of
from salsa_dist.steering.bank import Bank
from salsa_dist.steering.sites import output_head, whole_layers


class FrozenBase:
    """A placed base with a bank of steering vectors on it.

    Args:
        speech_llm: the base, whole on this rank or with its weights unread (`load_base`); a shared
            placement leaves this rank with its part of them.
        bank: the vectors, on the rank's device.
        ranks: this process.
        placement: how many ranks share one copy.
        activation_checkpointing: recompute the layers' inner activations in the backward pass.
        compiled: what torch.compile makes kernels of: nothing, the update rule, or the layers too.
        say: gets a line every few seconds while weights are read.
    """

    def __init__(
        self,
        speech_llm: SpeechLLM,
        bank: Bank,
        ranks: Ranks,
        placement: PlacementConfig,
        activation_checkpointing: bool = False,
        say: Say = silent,
        compiled: Literal["off", "rule", "layers"] = "off",
    ) -> None:
        self.model: Any = speech_llm.model
        self.family = speech_llm.family
        self.bank = bank
        self.ranks = ranks
        self.kind = placement.kind
        self.size = group_size(placement.kind, ranks)
        self.dtype = self.model.dtype
        self.base_bytes = bytes_of(self.model)
        self.zero: ZeroShards | None = None
        shared = self.size > 1 or placement.offload != "none"
        if compiled == "layers" and shared:
            raise UserError(
                "training.compile: layers need a whole copy of the base on each rank, and placement "
                f"{placement.kind} has none: set it to rule, or placement.kind to replicate"
            )
        if compiled != "off":
            prepare_compiler(ranks.device)
        if shared:
            settings = ds_settings(
                placement.ds_config,
                placement.kind,
                self.dtype,
                placement.offload,
                placement.nvme_path,
            )
            self.zero = ZeroShards(
                self.model, speech_llm.sources, self.size, settings, ranks.device, say
            )
        self.sites = sites = speech_llm.sites
        self._kept: KeptPrefix | None = None
        self._hooks = ExitStack()
        layers = whole_layers(speech_llm.layer_lists)
        # Before the bank: what it gives to each sample is not yet steered.
        self.shared = SharedPrefix(bank, layers, _holder(self.model, layers.get("encoder.0")))
        self._hooks.callback(self.shared.close)
        bank.compiled = compiled != "off"
        self._hooks.enter_context(bank.attached(sites))
        if compiled == "layers":
            self._hooks.callback(compile_layers(layers.values()))
        if activation_checkpointing:
            self._hooks.callback(recompute_in_backward(layers.values(), bank))

    @torch.no_grad()
    def prefix_of(self, clips: Sequence[Clip]) -> list[Tensor]:
        """The unsteered prefix's output for each of `clips`, (elements, …, hidden) each."""
        batch = self.family.shared_batch(clips, clips).to(self.ranks.device, self.dtype)
        assert batch.shared is not None
        prefix = self._prefix(batch)
        if prefix is None:
            raise UserError(
                "training.prefix_cache: this base encodes a window in chunks, one after the other: set "
                "it to off"
            )
        return list(prefix.split(batch.shared.elements.tolist()))

    def start_from(self, kept: KeptPrefix) -> None:
        """From now on take the unsteered prefix's output from `kept`."""
        self._kept = kept

    def logits(self, batch: AdapterBatch) -> Tensor:
        """The base's logits at each label of `batch`, (labels, vocabulary); each sample is steered by
        its own adapter."""
        batch = batch.to(self.ranks.device, self.dtype)
        assert batch.marked is not None
        with ExitStack() as stack:
            if batch.shared is not None and not self.shared.in_chunks:
                if self.zero is not None:
                    stack.enter_context(self.zero.one_pass())
                kept = self._kept
                found = kept.get(batch.shared.keys, self.ranks.device) if kept else self._prefix(batch)
                if found is not None:
                    stack.enter_context(self.shared.the_rest(batch, found))
            stack.enter_context(self.bank.rows(batch.rows))  # for the hooks that add the vectors
            stack.enter_context(_narrowed_head(self.model, batch.label_positions, batch.marked))
            logits: Tensor = self.model(**batch.whole(), use_cache=False).logits
        return logits.squeeze(0)

    @torch.no_grad()
    def _prefix(self, batch: AdapterBatch) -> Tensor | None:
        """(elements, …, hidden) of the clips of `batch`, each once; None if it is in chunks."""
        inputs = batch.of_clips()
        clips = len(batch.shared.keys) if batch.shared else 0
        nothing = torch.zeros_like(batch.label_positions[:1]).expand(clips, -1)
        with self.shared.prefix_alone() as found, _narrowed_head(self.model, nothing, 0):
            self.model(**inputs, use_cache=False)
        # All ranks find the same: where they share weights, they run as many chunks.
        self.shared.in_chunks = len(found) > 1
        return None if self.shared.in_chunks else found[0]

    def after_backward(self) -> None:
        """Release what backward left gathered."""
        if self.zero is not None:
            self.zero.release()

    @property
    def in_step(self) -> bool:
        """Whether all ranks must run the same modules: DeepSpeed compares them, between groups too."""
        return self.zero is not None

    def close(self, failed: bool = False) -> None:
        """Take the bank off the base. A base that was sharded is gone then, its memory free.

        Args:
            failed: this rank stops alone, so it waits for no other.
        """
        self._hooks.close()
        if self.zero is not None:
            self.zero.close(failed)
            self.zero = None

    def __enter__(self) -> FrozenBase:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


def _holder(model: nn.Module, layer: nn.Module | None) -> nn.Module | None:
    """The module that holds the list of layers that `layer` is of."""
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and any(own is layer for own in child):
                return module
    return None


@contextmanager
def _narrowed_head(model: nn.Module, positions: Tensor, labels: int) -> Iterator[None]:
    """Make the head of `model` see only the positions that are labels.

    Logits over a large vocabulary are the largest activation of a step; prompts and padding need
    none. It works through the model's own forward, whatever that does after its head.

    Args:
        positions: (batch, tokens) bool.
        labels: how many of them are true.
    """

    def keep_labels(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if labels:
            # A mask as the index would make a GPU count first, forward and backward.
            kept = args[0][positions.nonzero_static(size=labels).unbind(1)]
        else:
            kept = args[0][0, :1]  # a convolution refuses no position
        return (kept.unsqueeze(0), *args[1:])

    def drop_the_rest(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output[:, :labels]

    head = output_head(model)
    assert head is not None, f"{type(model).__name__} has no head"
    hooks = (
        head.register_forward_pre_hook(keep_labels),
        head.register_forward_hook(drop_the_rest),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
