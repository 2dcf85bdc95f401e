"""The input of a plan: the machines, and the work of one step on them.

Machines(nodes=4, ranks_per_node=8, memory=80e9)
Work(clips=64, micro_batch=8, sites=(("encoder.0", …), …))      one tuple of sites an adapter
tokens_of(shape, work)         {"encoder": 500, "llm": 314, "labels": 32}, of one clip
first_layer(shape, work)       backward goes back to here, and no further
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from salsa_dist.planner.base_shape import ENCODER_TOKENS_PER_SECOND, BaseShape
from salsa_dist.planner.modules import Module
from salsa_dist.steering.blocks import layer_of

# Of a device's memory: the rest is for the CUDA context, the collectives' buffers and fragmentation.
USABLE = 0.9
# Tokens that a second of audio takes in the LLM: Qwen2-Audio and Qwen2.5-Omni 25, the most of the
# known families (Voxtral and GLM-ASR 12.5, Qwen3-ASR 13, Granite 10).
_LLM_TOKENS_PER_SECOND = 25
# What a base that writes a token per frame reads around a clip: silence, a delay, the second behind it.
# Most has kyutai/stt-2.6b-en, by its config.json: 1 s, 2.5 s and 1 s.
_SILENCE_S = 4.5
DEFAULT_CLIP_S = 10.0
# Frames and acknowledgements around each message of gloo's ring all-reduce, as counted by
# benchmarks/bytes_between_nodes.py: 849 with four ranks, 876 with eight.
GLOO_MESSAGE_BYTES = 860


@dataclass(frozen=True)
class Machines:
    """The machines of a job.

    Attributes:
        nodes, ranks_per_node: a rank drives one device.
        memory: bytes of one device.
        host_memory: bytes of one node's memory; None: not known, and taken to be enough.
        node_bandwidth: bytes/s that one device receives from others of its node. Default: NVLink 3
            (A100: 600e9 both ways on paper, so 300e9 one way), four fifths of it.
        network_bandwidth: bytes/s that one node sends. Default: one 200 Gb/s InfiniBand HDR port.
        flops: peak FLOP/s of one device. Default: A100, dense bf16, by its data sheet.
        message_bytes: frames and acknowledgements around each message of an all-reduce. Default 0, as
            RDMA has next to none; `GLOO_MESSAGE_BYTES` for gloo over TCP.
        mfu: share of them that a step makes use of. Default 0.4: Llama 3 reports 38% to 43%
            (arXiv 2407.21783, table 4), PaLM 46% (arXiv 2204.02311).
    """

    nodes: int
    ranks_per_node: int
    memory: float
    host_memory: float | None = None
    node_bandwidth: float = 240e9
    network_bandwidth: float = 25e9
    flops: float = 312e12
    mfu: float = 0.4
    message_bytes: float = 0.0

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Work:
    """The work of one step.

    Attributes:
        clips: of all adapters, over all ranks.
        micro_batch: most clips of one pass on one rank.
        sites: of each adapter in the bank.
        parts: numbers per channel, the most that an adapter's rule has.
        clip_s: length of a clip in seconds.
        long_s: of a long clip, for which memory must suffice; None: `clip_s`.
        window_s: audio window of a base with a fixed window, in seconds; None: the base's own.
        text_tokens, labels: of a clip of 10 s at most: prompt with transcript, and of the transcript
            alone; a longer one has more labels, in proportion.
        checkpointing: activations are made again in backward.
        training: with a backward pass; false: decoding.
    """

    clips: int
    micro_batch: int
    sites: tuple[tuple[str, ...], ...]
    clip_s: float = DEFAULT_CLIP_S
    long_s: float | None = None
    window_s: float | None = None
    text_tokens: int = 64
    labels: int = 32
    checkpointing: bool = False
    training: bool = True
    parts: int = 1


def tokens_of(shape: BaseShape, work: Work) -> dict[str, int]:
    """Number of tokens of one clip in each part of a base."""
    if shape.encoder_tokens is None:
        encoder = round(work.clip_s * ENCODER_TOKENS_PER_SECOND)
    else:
        # An encoder with a fixed window processes whole windows, trailing padding included.
        windows = -(-round(work.clip_s * ENCODER_TOKENS_PER_SECOND) // shape.encoder_tokens)
        encoder = max(1, windows) * shape.encoder_tokens
    if shape.labels_per_s is not None:  # a label per frame; the audio is added to the text
        labels = round((work.clip_s + _SILENCE_S) * shape.labels_per_s)
        return {"encoder": encoder, "llm": work.text_tokens - work.labels + labels, "labels": labels}
    audio = 0 if shape.encoder_decoder else round(work.clip_s * _LLM_TOKENS_PER_SECOND)
    # More is said in a longer clip.
    labels = round(work.labels * max(1.0, work.clip_s / DEFAULT_CLIP_S))
    text = work.text_tokens + labels - work.labels
    return {"encoder": encoder, "llm": audio + text, "labels": labels}


def first_layer(shape: BaseShape, work: Work) -> float:
    """Index of the first steered layer: backward stops above it. Past the last without sites.

    A half less where its first vector is inside it, so that backward goes through the layer.
    """
    steered = {site for sites in work.sites for site in sites}
    found = [shape.place(site) - 0.5 * (site != layer_of(site)) for site in steered]
    return min(found, default=len(shape.layers))


def differentiated(module: Module, first: float) -> bool:
    """Whether a gradient goes back through `module`; of a layer with a vector inside, all count."""
    return first <= module.after or (first % 1 > 0 and module.layer == ceil(first))


def recomputed(module: Module, work: Work, first: float) -> bool:
    """Whether checkpointing recomputes `module`: a whole layer, if any of it needs gradients."""
    return work.checkpointing and module.layer is not None and module.layer > first


def steering_numbers(shape: BaseShape, work: Work) -> tuple[int, int]:
    """Numbers of the bank, (adapters, hidden) per site, and of what one step reduces."""
    steered = {site for sites in work.sites for site in sites}
    bank = len(work.sites) * sum(shape.width(site) for site in steered)
    # With each adapter's gradient travel its loss and label count, and one flag.
    own = sum(shape.width(site) for sites in work.sites for site in sites)
    return work.parts * bank, work.parts * own + 2 * len(work.sites) + 1
