"""The frozen base as the training loop uses it, under any placement.

    base = FrozenBase(speech_llm, bank, ranks, config.placement)
    losses = base.token_losses(batch)     (labels,) fp32
    losses.sum().backward()               reaches bank.vectors and nothing else
    base.after_backward()

Placement is one number, how many consecutive ranks share one copy: 1 keeps the whole base on each
rank, more cuts it with ZeRO-3 (`zero.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.libraries.deepspeed import part_of
from salsa_dist.placement.kept_prefix import KeptPrefix
from salsa_dist.placement.loading import Say, silent
from salsa_dist.placement.ranks import Ranks, group_size
from salsa_dist.placement.recompute import recompute_in_backward
from salsa_dist.placement.shared_prefix import SharedPrefix
from salsa_dist.placement.zero import StepTraffic, ZeroShards
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.speech_llms import long_audio
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, Transcript
from salsa_dist.speech_llms.family import EncodesApart
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.bank import Bank


@dataclass(frozen=True)
class Prompts:
    """What is ready to be transcribed: of each clip its language and pieces, and all pieces' batch."""

    languages: list[str]
    pieces: list[int]
    batch: PromptBatch | None


class FrozenBase:
    """A placed base with a bank of steering vectors on it.

    Args:
        speech_llm: the base, whole on this rank or with its weights unread (`load_base`); a shared
            placement leaves this rank with its part of them.
        bank: the vectors, on the rank's device.
        ranks: this process.
        placement: how many ranks share one copy.
        activation_checkpointing: make the layers' inner activations again in backward.
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
    ) -> None:
        self.model: Any = speech_llm.model
        self.family = speech_llm.family
        self.bank = bank
        self.ranks = ranks
        self.kind = placement.kind
        self.size = group_size(placement.kind, ranks)
        self.dtype = next(self.model.parameters()).dtype
        self.base_bytes = sum(
            t.numel() * t.element_size() for t in [*self.model.parameters(), *self.model.buffers()]
        )
        self._zero: ZeroShards | None = None
        if self.size > 1 or placement.offload != "none":
            settings = ds_settings(
                placement.ds_config,
                placement.kind,
                self.dtype,
                placement.offload,
                placement.nvme_path,
            )
            self._zero = ZeroShards(
                self.model, speech_llm.sources, self.size, settings, ranks.device, say
            )
        sites = speech_llm.sites
        # Where layers are named by hand, `encoder` sites may be no part of what encodes.
        within = self.model.get_encoder().modules() if isinstance(self.family, EncodesApart) else ()
        self._encodes_apart = any(module is sites.get("encoder.0") for module in within)
        self._kept: KeptPrefix | None = None
        self._hooks = ExitStack()
        # Before the bank: what it gives to each sample is not yet steered.
        self.shared = SharedPrefix(bank, sites, _holder(self.model, sites.get("encoder.0")))
        self._hooks.callback(self.shared.close)
        self._hooks.enter_context(bank.attached(sites))
        if activation_checkpointing:
            self._hooks.callback(recompute_in_backward(sites.values()))

    @torch.no_grad()
    def prefix_of(self, clips: Sequence[Clip]) -> list[Tensor]:
        """What the job's first steered layer makes of each of `clips`, (elements, …, hidden) each."""
        batch = self.family.shared_batch(clips, clips).to(self.ranks.device, self.dtype)
        assert batch.shared is not None
        return list(self._prefix(batch).split(batch.shared.elements.tolist()))

    def start_from(self, kept: KeptPrefix) -> None:
        """From now on take what the first steered layer puts out from `kept`."""
        self._kept = kept

    def token_losses(self, batch: AdapterBatch) -> Tensor:
        """Cross-entropy of each label of `batch`, (labels,) fp32, with each sample's own adapter on."""
        batch = batch.to(self.ranks.device, self.dtype)
        with ExitStack() as stack:
            if batch.shared is not None:
                kept = self._kept
                found = kept.get(batch.shared.keys, self.ranks.device) if kept else self._prefix(batch)
                stack.enter_context(self.shared.the_rest(batch, found))
            stack.enter_context(self.bank.rows(batch.rows))
            stack.enter_context(_narrowed_head(self.model, batch.label_positions))
            logits = self.model(**batch.whole(), use_cache=False).logits
        return cross_entropy(logits.squeeze(0).float(), batch.labels, reduction="none")

    @torch.no_grad()
    def _prefix(self, batch: AdapterBatch) -> Tensor:
        """(elements, …, hidden) of the clips of `batch`, each once."""
        inputs = batch.of_clips()
        clips = len(batch.shared.keys) if batch.shared else 0
        nothing = torch.zeros_like(batch.label_positions[:1]).expand(clips, -1)
        with self.shared.prefix_alone() as found, _narrowed_head(self.model, nothing):
            self.model(**inputs, use_cache=False)
        return found[0]

    def generate(
        self, clips: Sequence[Clip], max_new_tokens: int, decoding: Mapping[str, Any] | None = None
    ) -> list[Transcript]:
        """Transcribe `clips`, each with its own adapter on. All ranks call this equally often; a
        rank that has no clips left passes none. Clips longer than the window are cut and joined."""
        return self.answer(self.prompts(clips), max_new_tokens, decoding)

    def prompts(self, clips: Sequence[Clip]) -> Prompts:
        """What `answer` needs of `clips`; it runs no part of the base, so it can be made in advance."""
        # Under ZeRO-3 every rank must step along, so an empty batch is one silent clip.
        taking_part = list(clips) or [silent_clip(self.family.languages[0])] * self.in_step
        if not taking_part:
            return Prompts([], [], None)
        cut = [long_audio.pieces(clip, self.family.window_s) for clip in taking_part]
        parts = [piece for pieces in cut for piece in pieces]
        if self._encodes_apart:
            assert isinstance(self.family, EncodesApart)
            distinct = list({(piece.language, piece.key): piece for piece in parts}.values())
            batch = self.family.shared_prompt_batch(parts, distinct)
        else:
            batch = self.family.prompt_batch(parts)
        return Prompts([clip.language for clip in clips], [len(pieces) for pieces in cut], batch)

    # Not inference_mode: small weights stay once ZeRO-3 gathered them, and such ones have no backward.
    @torch.no_grad()
    def answer(
        self, prompts: Prompts, max_new_tokens: int, decoding: Mapping[str, Any] | None = None
    ) -> list[Transcript]:
        """Transcripts of the clips that `prompts` was made of; called as often by all ranks."""
        if prompts.batch is None:
            return []
        batch = prompts.batch.to(self.ranks.device, self.dtype)
        options = {**batch.options, **(decoding or {})}
        if batch.shared is not None:
            options["encoder_outputs"] = self._encoded(batch)
        batch = replace(batch, options=options)
        with self.bank.rows(batch.rows):
            transcripts = self.family.generate(
                self.model,
                batch,
                max_new_tokens,
                synced=self.in_step,
                keep_rows=lambda kept: self.bank.keep("llm", kept),
            )
        of_piece = iter(transcripts)
        return [
            long_audio.joined(list(islice(of_piece, pieces)), language)
            for language, pieces in zip(prompts.languages, prompts.pieces, strict=False)
        ]

    def _encoded(self, batch: PromptBatch) -> Any:
        """The encoder's output, of which the first entry is (samples, positions, hidden).

        A clip goes once through what its adapters share.
        """
        assert batch.shared is not None
        encoder = self.model.get_encoder()
        with ExitStack() as stack:
            if self.bank.specs:
                with self.shared.prefix_alone() as found:
                    encoder(**batch.shared.inputs)
                stack.enter_context(self.shared.the_rest(batch, found[0]))
            stack.enter_context(self.bank.rows(batch.rows))
            return encoder(**batch.shared.of_samples())

    def after_backward(self) -> None:
        """Release what backward left gathered."""
        if self._zero is not None:
            self._zero.release()

    @property
    def in_step(self) -> bool:
        """Whether all ranks must run the same modules: DeepSpeed compares them, between groups too."""
        return self._zero is not None

    @contextmanager
    def watched(self) -> Iterator[StepTraffic]:
        """Measure the passes inside the block; see `StepTraffic`."""
        if self._zero is None:
            yield StepTraffic(peak_bytes=self.base_bytes)
        else:
            with self._zero.watched() as traffic:
                yield traffic

    def measure(self, traffic: StepTraffic, reduced_bytes: int) -> dict[str, Any]:
        """The placement as measured, over all ranks: each number is of the rank with the most.

        Between nodes goes what was gathered, if the ranks of a copy are on several, and what was
        reduced, on a ring: a node sends 2 (w - 1) / w of it, w ranks. Frames are not counted.
        """
        world, on_node = self.ranks.world_size, self.ranks.local_world_size
        between = traffic.gathered_bytes if self.size > on_node else 0
        if world > on_node:
            between += round(2 * (world - 1) / world * reduced_bytes)
        own = torch.tensor(
            [
                self.resident_bytes(),
                self._zero.part_bytes() if self._zero else 0,
                traffic.peak_bytes,
                traffic.gathered_bytes,
                reduced_bytes,
                between,
            ],
            dtype=torch.int64,
            device=self.ranks.device,
        )
        dist.all_reduce(own, op=dist.ReduceOp.MAX)
        names = (
            "resident_bytes_between_steps",
            "partitioned_bytes",
            "peak_bytes",
            "gathered_bytes_per_step",
            "reduced_bytes_per_step",
            "bytes_between_nodes_per_step",
        )
        return {
            "kind": str(self.kind),
            "world_size": self.ranks.world_size,
            "group_size": self.size,
            "base_bytes": self.base_bytes,
            "threshold_bytes": self._zero.threshold_bytes if self._zero else 0,
            **dict(zip(names, own.tolist(), strict=True)),
        }

    def as_loaded(self) -> str:
        """The placement as measured before the first step, for the log; all ranks call this."""
        held = torch.tensor(self.resident_bytes(), dtype=torch.int64, device=self.ranks.device)
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        most, whole = int(held), self.base_bytes
        sharing = f"{self.size} share a copy" if self.size > 1 else "each has a copy"
        return (
            f"placement {self.kind} as loaded: {self.ranks.world_size} ranks, {sharing}; a rank holds "
            f"{most / 1e6:.1f} MB of the base's {whole / 1e6:.1f} ({most / whole:.0%}) on its device"
        )

    def resident_bytes(self) -> int:
        """Bytes of the base on this rank now."""
        return self.base_bytes if self._zero is None else self._zero.resident_bytes()

    def weights_hash(self) -> str:
        """SHA-256 of what this rank holds of the base: its whole weights, or its parts of them."""
        digest = hashlib.sha256()
        for p in self.model.parameters():
            held = part_of(p) if self._zero else p.data
            digest.update(held.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def close(self, failed: bool = False) -> None:
        """Take the bank off the base. A base that was cut over ranks is gone then, its weights free.

        Args:
            failed: this rank stops alone, so it waits for no other.
        """
        self._hooks.close()
        if self._zero is not None:
            self._zero.close(failed)
            self._zero = None

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
def _narrowed_head(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Make the head of `model` see only the positions that are labels.

    Logits over a large vocabulary are the largest activation of a step; prompts and padding need
    none. It works through the model's own forward, whatever that does after its head.

    Args:
        positions: (batch, tokens) bool.
    """

    def keep_labels(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][positions].unsqueeze(0), *args[1:])

    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_pre_hook(keep_labels)
    try:
        yield
    finally:
        hook.remove()
