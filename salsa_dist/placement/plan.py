"""What each placement of a base costs on given machines, on paper: bytes, FLOPs and seconds.

    plan = make_plan(shape, work, machines)
    plan.rows      one a placement: replicate, node, islands of k nodes, full; each with CPU offload
    plan.chosen    the row that `auto` takes, or None
    plan.why       in words
    plan.table()   for people;  plan.tree() for JSON

    device    base between steps + gathered at the peak + activations + vectors + optimizer <= usable
    a gather  a rank receives (k-1) parts of ceil(n/k) numbers of each weight of n, k ranks a copy
    a pass    gathers every weight for its forward, and for its backward what is above the first site
    between   a ring passes each gather once over each link, so a node sends what a rank receives; the
              steering gradients' all-reduce sends 2(w-1)/w of their bytes, w ranks

Nothing here reads a weight, a clock or a GPU. What is exact: the base's bytes, gathers, FLOPs of
matrices. What is estimated: activations and seconds; see docs/placement.md for how well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from salsa_dist.config import Config, PlacementConfig
from salsa_dist.errors import UserError
from salsa_dist.placement.base_shape import (
    ENCODER_TOKENS_PER_SECOND,
    BaseShape,
    Module,
    read_shape,
)

# Of a device's memory: the rest is for the CUDA context, the collectives' buffers and fragmentation.
USABLE = 0.9
# Tokens that a second of audio takes in the LLM: Qwen2-Audio and Qwen2.5-Omni 25, the most of the
# known families (Voxtral and GLM-ASR 12.5, Qwen3-ASR 13, Granite 10).
_LLM_TOKENS_PER_SECOND = 25
_DEFAULT_CLIP_S = 10.0
# Frames and acknowledgements around each message of gloo's ring all-reduce, as counted by
# benchmarks/bytes_between_nodes.py: 849 with four ranks, 876 with eight.
GLOO_MESSAGE_BYTES = 860
_HOST_BANDWIDTH = 25e9  # bytes/s from host memory to one device: PCIe 4.0 x16 is 32e9 on paper


@dataclass(frozen=True)
class Machines:
    """What a job runs on.

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
    """One step.

    Attributes:
        clips: of all adapters, over all ranks.
        micro_batch: most clips of one pass on one rank.
        sites: of each adapter in the bank.
        clip_s: length of a clip in seconds.
        window_s: what a base of one window hears of each clip, in seconds; None: the base's own.
        text_tokens, labels: of one clip: prompt with transcript, and of the transcript alone.
        checkpointing: activations are made again in backward.
        training: with a backward pass; false: decoding.
    """

    clips: int
    micro_batch: int
    sites: tuple[tuple[str, ...], ...]
    clip_s: float = _DEFAULT_CLIP_S
    window_s: float | None = None
    text_tokens: int = 64
    labels: int = 32
    checkpointing: bool = False
    training: bool = True


@dataclass(frozen=True)
class Row:
    """One placement. Bytes are of one device unless named otherwise.

    Attributes:
        placement: as `placement.kind` has it.
        ranks_a_copy: consecutive ranks that share one copy.
        offload: where parts lie between uses: `none` (the device), `cpu` or `nvme`.
        base_bytes: held between steps.
        peak_base_bytes: held at the peak of a step, gathered weights with it.
        activation_bytes: kept for backward, logits with it (an estimate).
        steering_bytes: all vectors, their gradients and the buffer that is reduced.
        optimizer_bytes: Adam's two moments.
        device_bytes: all of these, with the base at its peak.
        offloaded_bytes_per_node: in host memory or on disk.
        gathered_bytes_per_step: weights that a rank receives from others.
        bytes_inside_node_per_step: that ranks of a node receive from each other.
        bytes_between_nodes_per_step: that one node sends to others.
        flops_per_step: of all ranks.
        compute_s, transfer_s: of one rank, in seconds.
        step_s: the larger of both: gathers run beside the arithmetic.
        fits: whether `device_bytes` are within the usable memory, and the host has room.
    """

    placement: str | int
    ranks_a_copy: int
    offload: str
    base_bytes: int
    peak_base_bytes: int
    activation_bytes: int
    steering_bytes: int
    optimizer_bytes: int
    device_bytes: int
    offloaded_bytes_per_node: int
    gathered_bytes_per_step: int
    bytes_inside_node_per_step: int
    bytes_between_nodes_per_step: int
    flops_per_step: float
    compute_s: float
    transfer_s: float
    step_s: float
    fits: bool

    @property
    def name(self) -> str:
        return f"{self.placement}" + ("" if self.offload == "none" else f" + {self.offload}")


@dataclass(frozen=True)
class Plan:
    """All placements of one base for one kind of step on given machines."""

    shape: BaseShape
    work: Work
    machines: Machines
    rows: tuple[Row, ...]
    chosen: Row | None
    why: str

    def row(self, placement: str | int, offload: str = "none") -> Row | None:
        return next((r for r in self.rows if (r.placement, r.offload) == (placement, offload)), None)

    def tree(self) -> dict[str, Any]:
        """As JSON: `rows` are flat objects."""
        shape = self.shape
        return {
            "base": shape.name,
            "architecture": shape.architecture,
            "parameters": shape.parameters,
            "dtype": shape.dtype,
            "base_bytes": shape.bytes,
            "stored_bytes": shape.stored,
            "machines": asdict(self.machines),
            "work": asdict(self.work),
            "rows": [asdict(row) for row in self.rows],
            "auto": None if self.chosen is None else asdict(self.chosen),
            "why": self.why,
        }

    def table(self) -> str:
        """As text: what it is about, one line a placement, and which one `auto` takes."""
        s, m, w = self.shape, self.machines, self.work
        stored = "" if s.stored is None else f", {size(s.stored)} on disk"
        what = f"a step of {w.clips} clips" if w.training else f"decoding {w.micro_batch} clips a rank"
        cells = [
            (
                *("placement", "ranks a copy", "base", "at peak", "activations", "vectors+Adam"),
                *("a device", "host", "inside node", "between nodes", "step", "fits"),
            )
        ]
        for r in self.rows:
            cells.append(
                (
                    r.name,
                    str(r.ranks_a_copy),
                    size(r.base_bytes),
                    size(r.peak_base_bytes),
                    size(r.activation_bytes),
                    size(r.steering_bytes + r.optimizer_bytes),
                    size(r.device_bytes),
                    size(r.offloaded_bytes_per_node) if r.offload != "none" else "-",
                    size(r.bytes_inside_node_per_step),
                    size(r.bytes_between_nodes_per_step),
                    seconds(r.step_s) if w.training else "-",
                    "yes" if r.fits else "no",
                )
            )
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [
            f"{s.name}: {s.architecture}, {s.parameters / 1e6:,.1f} M parameters, {s.dtype}, "
            f"{size(s.bytes)}{stored}",
            f"{m.nodes} nodes x {m.ranks_per_node} ranks, {size(m.memory)} a device, {USABLE:.0%} of "
            f"it usable; {what}, {self.rows[0].flops_per_step:.2e} FLOPs",
        ]
        lines += ["  ".join(c.ljust(n) for c, n in zip(r, widths, strict=True)).rstrip() for r in cells]
        return "\n".join([*lines, self.why])


def make_plan(
    shape: BaseShape,
    work: Work,
    machines: Machines,
    settings: Mapping[str, Any] | None = None,
    offload: str = "none",
    extra: Sequence[int] = (),
) -> Plan:
    """Work out every placement.

    Args:
        settings: the `zero_optimization` part of a DeepSpeed config; None: those in ds_configs/.
        offload: what the config asks for; `auto` keeps to it, and goes to `cpu` by itself only from
            `none` where nothing else fits.
        extra: numbers of ranks a copy to plan besides, such as `placement.kind: 2`.
    """
    kinds = placements(machines, extra)
    offloads = dict.fromkeys(["none", "cpu", offload])
    rows = tuple(
        _row(shape, work, machines, kind, size_, how, _knobs(settings))
        for how in offloads
        for kind, size_ in kinds.items()
    )
    chosen = next((r for r in rows if r.fits and r.offload == offload == "none"), None)
    if chosen is None:
        # Parts come from the host then, the fewer the ranks a copy the more of them: the quickest.
        ways = [r for r in rows if r.fits and r.offload == ("cpu" if offload == "none" else offload)]
        chosen = min(ways, key=lambda r: (r.step_s, r.bytes_between_nodes_per_step), default=None)
    return Plan(shape, work, machines, rows, chosen, _why(rows, chosen, machines))


def placements(machines: Machines, extra: Sequence[int] = ()) -> dict[str | int, int]:
    """Kinds of placement on these machines and the ranks that share a copy, fewest first."""
    own, world = machines.ranks_per_node, machines.world_size
    kinds: dict[str | int, int] = {"replicate": 1}
    kinds |= {k: k for k in extra if 1 < k < world}
    if own > 1:
        kinds["node"] = own
    k = 2
    while k < machines.nodes:
        if machines.nodes % k == 0:
            kinds[k * own] = k * own
        k *= 2
    if machines.nodes > 1:
        kinds["full"] = world
    return dict(sorted(kinds.items(), key=lambda entry: entry[1]))


def plan_of(
    config: Config, machines: Machines, *, training: bool = True, shape: BaseShape | None = None
) -> Plan:
    """The plan of a run, or of its evaluation."""
    placement = config.placement if training else config.evaluation.placement
    if shape is None:
        shape = shape_of_run(config, training)
    return make_plan(
        shape,
        work_of(config, shape, training),
        machines,
        user_settings(placement),
        placement.offload,
        [placement.kind] if isinstance(placement.kind, int) else [],
    )


def shape_of_run(config: Config, training: bool = True) -> BaseShape:
    """The base as the run, or its evaluation at the longest window, would load it."""
    base, windows = config.base, config.evaluation.windows_s
    if training:
        window = base.window_s
    else:
        window = None if None in windows else max(w for w in windows if w is not None)
    return read_shape(
        base.name, revision=base.revision, dtype=base.dtype, window_s=window, layers=base.layers
    )


def plan_text(config: Config, nodes: int, ranks_per_node: int, memory: float) -> str:
    """The table of a run's plan, for a launcher's dry run.

    Args:
        memory: bytes of one device.

    Raises:
        UserError: the base's config can't be read here.
    """
    return plan_of(config, Machines(nodes, ranks_per_node, memory)).table()


def work_of(config: Config, shape: BaseShape, training: bool = True) -> Work:
    """One step of a run: all adapters at work, clips of 10 s or as long as the window."""
    adapters = config.adapter_settings()
    window = config.base.window_s if training else None
    longest = shape.encoder_tokens / ENCODER_TOKENS_PER_SECOND if shape.encoder_tokens else None
    clip_s = min([_DEFAULT_CLIP_S, *(s for s in (window, longest) if s is not None)])
    clips = config.data.clips_of_a_step(clip_s) * len(adapters)
    return Work(
        clips=clips if training else config.evaluation.batch,
        micro_batch=config.training.micro_batch if training else config.evaluation.batch,
        sites=tuple(shape.sites(a.sites) for a in adapters),
        clip_s=clip_s,
        window_s=window,
        checkpointing=training and config.training.activation_checkpointing,
        training=training,
    )


def user_settings(placement: PlacementConfig) -> Mapping[str, Any] | None:
    """The `zero_optimization` part of the user's own DeepSpeed config."""
    if placement.ds_config is None:
        return None
    import torch

    from salsa_dist.placement.zero import ds_settings

    settings = ds_settings(placement.ds_config, "full", torch.float32)
    found: Mapping[str, Any] = settings["zero_optimization"]
    return found


def resident_bytes(
    shape: BaseShape, ranks: int, offload: str = "none", settings: Mapping[str, Any] | None = None
) -> int:
    """Bytes of the base that one device holds between steps."""
    knobs = _knobs(settings)
    if ranks == 1 and offload == "none":
        return shape.bytes
    whole = _persistent(shape, knobs)
    total = shape.buffer_bytes
    for i, weight in enumerate(shape.weights):
        part = -(-weight.numel // ranks) * weight.itemsize
        # A weight that stays whole is held twice: as a part, and gathered.
        total += part + weight.bytes if i in whole else part if offload == "none" else 0
    return total


def gathered_bytes(shape: BaseShape, work: Work, ranks: int, settings: Mapping[str, Any] | None) -> int:
    """Bytes of weights that one rank receives from others in one pass over a micro-batch."""
    knobs = _knobs(settings)
    whole = _persistent(shape, knobs)
    first = first_layer(shape, work)
    # DeepSpeed does not release what its prefetch has already met again in the order of modules, so
    # this much stays whole from the end of the forward to the start of the backward.
    kept = max(knobs["stage3_prefetch_bucket_size"], knobs["stage3_max_reuse_distance"])
    parts = 0
    for module in reversed(shape.modules):
        times = 1
        if work.training:
            times += _differentiated(module, first) + _recomputed(module, work, first)
        own = [w for i in module.weights if i not in whole for w in [shape.weights[i]]]
        if times > 1 and kept > 0:
            kept -= sum(w.numel for w in own)
            times = 1
        parts += times * sum(-(-w.numel // ranks) * w.itemsize for w in own)
    return (ranks - 1) * parts


def first_layer(shape: BaseShape, work: Work) -> int:
    """Index of the first steered layer: backward stops above it. Past the last without sites."""
    steered = {site for sites in work.sites for site in sites}
    return next((i for i, layer in enumerate(shape.layers) if layer.site in steered), len(shape.layers))


def flops(shape: BaseShape, work: Work) -> float:
    """FLOPs of one step over all ranks: two for each number of a matrix a token meets.

    Forward goes through everything; backward only makes gradients of activations (no weight learns),
    as many FLOPs again, from the first steered layer on. Attention adds 4·T·T·width a layer forward
    and twice that backward. Recomputing adds one forward of the layers that have a backward.
    """
    first = first_layer(shape, work)
    tokens = tokens_of(shape, work)
    total = 0.0
    for module in shape.modules:
        forward = 2.0 * module.matmul * tokens[module.runs_over]
        times = 1
        if work.training:
            times += _differentiated(module, first) + _recomputed(module, work, first)
        total += times * forward
    for i, layer in enumerate(shape.layers):
        over = layer.site.partition(".")[0]
        keys = tokens[over]
        if over == "llm" and shape.encoder_decoder:
            keys += tokens["encoder"]
        forward = 4.0 * tokens[over] * keys * layer.width
        times = 1
        if work.training and i > first:
            times = 3 + work.checkpointing
        total += times * forward
    return total * work.clips


def activation_bytes(shape: BaseShape, work: Work, clips: int) -> int:
    """Bytes of activations that a device keeps for backward, `clips` in one pass: an estimate.

    A layer keeps, a token, what its linear layers and norms put out; a site the steered activation in
    fp32 besides. Attention is taken to be fused, so no scores are kept. Logits count three times, in
    fp32: themselves, their softmax and its gradient. Without a backward it is the keys and values of
    every layer and one layer's outputs.
    """
    tokens = tokens_of(shape, work)
    first = first_layer(shape, work)
    itemsize = max((w.itemsize for w in shape.weights), default=4)
    steered = {site for sites in work.sites for site in sites}
    inner = [0] * len(shape.layers)
    outside = 0
    for module in shape.modules:
        kept = module.out * itemsize * tokens[module.runs_over]
        if module.runs_over == "labels":
            continue
        if module.layer is not None:
            inner[module.layer] += kept
        elif _differentiated(module, first):
            outside += kept
    if not work.training:
        cache = sum(2 * x.width * tokens["llm"] for x in shape.layers if x.site.startswith("llm"))
        return clips * (cache * itemsize + max(inner, default=0) + shape.vocabulary * 8)
    own = range(first + 1, len(shape.layers))
    rows = {i: tokens[shape.layers[i].site.partition(".")[0]] * shape.layers[i].width for i in own}
    sites = sum(rows[i] * (4 + itemsize) for i in own if shape.layers[i].site in steered)
    if work.checkpointing:
        layers = sum(rows.values()) * itemsize + max((inner[i] for i in own), default=0)
    else:
        layers = sum(inner[i] for i in own)
    logits = 3 * 4 * tokens["labels"] * shape.vocabulary
    return clips * (layers + sites + outside + logits)


def tokens_of(shape: BaseShape, work: Work) -> dict[str, int]:
    """Tokens of one clip that go through each part of a base."""
    if shape.encoder_tokens is None:
        encoder = round(work.clip_s * ENCODER_TOKENS_PER_SECOND)
    else:
        # An encoder of one window hears whole windows, silence with them.
        windows = -(-round(work.clip_s * ENCODER_TOKENS_PER_SECOND) // shape.encoder_tokens)
        encoder = max(1, windows) * shape.encoder_tokens
    audio = 0 if shape.encoder_decoder else round(work.clip_s * _LLM_TOKENS_PER_SECOND)
    return {"encoder": encoder, "llm": audio + work.text_tokens, "labels": work.labels}


def steering_numbers(shape: BaseShape, work: Work) -> tuple[int, int]:
    """Numbers of the bank, (adapters, hidden) a site, and of what one step reduces."""
    steered = {site for sites in work.sites for site in sites}
    bank = len(work.sites) * sum(layer.width for layer in shape.layers if layer.site in steered)
    # With each adapter's gradient travel its loss and label count, and one flag.
    own = sum(shape.width(site) for sites in work.sites for site in sites)
    return bank, own + 2 * len(work.sites) + 1


def size(count: float) -> str:
    """Bytes for people, in powers of 1,000: `80 GB`, `1.25 MB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return (
                f"{count / scale:.3g} {unit}"
                if count < 999.5 * scale
                else f"{count / scale:,.0f} {unit}"
            )
    return f"{count:.0f} B"


def seconds(count: float) -> str:
    """Seconds for people."""
    return f"{count:.3g} s" if count >= 1 else f"{count * 1e3:.3g} ms"


def parse_size(text: str) -> float:
    """Bytes of `80GB`, `24 GiB`, `512MB` or a plain number."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kMGT]?)(i?)B?\s*", text)
    try:
        if match is None:
            raise ValueError
        number = float(match[1])
    except ValueError:
        raise UserError(f"{text!r} is no size: write it like 80GB or 24GiB") from None
    power = " kMGT".index(match[2] or " ")
    return number * (1024 if match[3] else 1000) ** power


def _row(
    shape: BaseShape,
    work: Work,
    machines: Machines,
    kind: str | int,
    ranks: int,
    offload: str,
    knobs: Mapping[str, int],
) -> Row:
    world, own = machines.world_size, machines.ranks_per_node
    share = max(1, -(-work.clips // world)) if work.training else work.micro_batch
    passes = -(-share // work.micro_batch)
    base = resident_bytes(shape, ranks, offload, knobs)
    peak = base
    if ranks > 1 or offload != "none":
        peak += _gathered_at_peak(shape, work.checkpointing and work.training, knobs)
    bank, reduced = steering_numbers(shape, work)
    steering = 4 * (2 * bank + reduced) if work.training else 4 * bank
    optimizer = 8 * bank if work.training else 0
    activations = activation_bytes(shape, work, -(-share // passes))
    device = peak + activations + steering + optimizer
    parts = sum(-(-w.numel // ranks) * w.itemsize for w in shape.weights)
    offloaded = own * parts if offload != "none" else 0
    gathers = passes * gathered_bytes(shape, work, ranks, knobs)
    ring = 0
    if work.training:
        ring = round(2 * (world - 1) * (4 * reduced / world + machines.message_bytes))
    across = ranks > own
    inside = (own - 1 if across else own) * gathers + (own - 1) * ring
    between = (gathers if across else 0) + (ring if machines.nodes > 1 else 0)
    total_flops = flops(shape, work)
    compute = total_flops / world / (machines.flops * machines.mfu)
    from_host = 0.0
    if offload != "none":
        # Of what two ranks would send each other, twice over, each of `ranks` fetches its share.
        from_host = passes * gathered_bytes(shape, work, 2, knobs) * 2 / ranks / _HOST_BANDWIDTH
    transfer = max(gathers / machines.node_bandwidth, between / machines.network_bandwidth, from_host)
    enough = (
        machines.host_memory is None or offload != "cpu" or offloaded <= USABLE * machines.host_memory
    )
    return Row(
        placement=kind,
        ranks_a_copy=ranks,
        offload=offload,
        base_bytes=base,
        peak_base_bytes=peak,
        activation_bytes=activations,
        steering_bytes=steering,
        optimizer_bytes=optimizer,
        device_bytes=device,
        offloaded_bytes_per_node=offloaded,
        gathered_bytes_per_step=gathers,
        bytes_inside_node_per_step=inside if own > 1 else 0,
        bytes_between_nodes_per_step=between,
        flops_per_step=total_flops,
        compute_s=compute,
        transfer_s=transfer,
        step_s=max(compute, transfer),
        fits=device <= USABLE * machines.memory and enough,
    )


def _gathered_at_peak(shape: BaseShape, checkpointing: bool, knobs: Mapping[str, int]) -> int:
    """Most bytes of weights that are whole at once: the module in use, and what is fetched ahead."""
    whole = _persistent(shape, knobs)
    apart = {i: w for i, w in enumerate(shape.weights) if i not in whole}
    everything = sum(w.bytes for w in apart.values())
    held: dict[int | str, int] = {}
    for place, m in enumerate(shape.modules):
        # Checkpointing makes a layer again as a whole before its first backward.
        together = m.layer if checkpointing and m.layer is not None else f"module {place}"
        held[together] = held.get(together, 0) + sum(apart[i].bytes for i in m.weights if i in apart)
    most = max(held.values(), default=0)
    numbers = max(knobs["stage3_prefetch_bucket_size"], knobs["stage3_max_reuse_distance"])
    ahead = numbers * max((w.itemsize for w in apart.values()), default=0)
    return min(everything, most + ahead)


def _persistent(shape: BaseShape, knobs: Mapping[str, int]) -> set[int]:
    """Indices of the small weights that stay whole on every rank, picked as DeepSpeed does."""
    found, total = set(), 0
    for i, weight in enumerate(shape.weights):
        room = total + weight.numel <= knobs["stage3_model_persistence_threshold"]
        if room and weight.numel <= knobs["stage3_param_persistence_threshold"]:
            found.add(i)
            total += weight.numel
    return found


def _knobs(settings: Mapping[str, Any] | None) -> dict[str, int]:
    """What counts of a `zero_optimization` section, DeepSpeed's own defaults filled in."""
    import torch

    from salsa_dist.placement.zero import ds_settings

    if settings is None:
        settings = ds_settings(None, "full", torch.float32)["zero_optimization"]
    defaults = {
        "stage3_param_persistence_threshold": 100_000,
        "stage3_model_persistence_threshold": 1 << 62,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
    }
    return {name: int(settings.get(name, value)) for name, value in defaults.items()}


def _differentiated(module: Module, first: int) -> bool:
    """Whether a gradient goes back through `module`."""
    return first <= module.after


def _recomputed(module: Module, work: Work, first: int) -> bool:
    """Whether checkpointing runs `module` again in backward: all of a layer, if any of it matters."""
    return work.checkpointing and module.layer is not None and module.layer > first


def _why(rows: Sequence[Row], chosen: Row | None, machines: Machines) -> str:
    limit = f"{size(USABLE * machines.memory)} usable"
    if chosen is None:
        least = min(rows, key=lambda r: r.device_bytes)
        return (
            f"auto: nothing fits {limit} a device; {least.name} needs the least, "
            f"{size(least.device_bytes)}: take more or larger devices, fewer clips in "
            "training.micro_batch, or training.activation_checkpointing"
        )
    smaller = [r for r in rows if r.offload == chosen.offload and r.ranks_a_copy < chosen.ranks_a_copy]
    if chosen.offload != "none":
        reason = "nothing fits without offload"
    elif smaller:
        reason = f"{smaller[-1].name} needs {size(smaller[-1].device_bytes)}"
    else:
        reason = "a whole copy fits each device, and no weight need travel"
    return f"auto: {chosen.name}, {size(chosen.device_bytes)} of {limit} a device: {reason}"
