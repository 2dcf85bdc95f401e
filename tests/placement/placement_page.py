"""docs/placement.md, made from the planner's own numbers for bases of published shapes."""

# ruff: noqa: E501  (lines of the page)

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlamaConfig, Qwen2AudioConfig, VoxtralConfig, WhisperConfig

from salsa_dist.planner.base_shape import BaseShape, read_shape
from salsa_dist.planner.plan import make_plan
from salsa_dist.planner.plan_table import Plan, Row
from salsa_dist.planner.step_cost import flops
from salsa_dist.planner.step_work import USABLE, Machines, Work, steering_numbers, tokens_of
from salsa_dist.planner.units import seconds, size

PAGE = Path(__file__).parents[2] / "docs" / "placement.md"
NODES = (1, 4, 16, 64, 256)
RANKS = 8
CLIPS_PER_RANK = 8


def _whisper(width: int, layers: int, mels: int, vocabulary: int) -> WhisperConfig:
    return WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=mels,
        vocab_size=vocabulary,
    )


_ENCODER: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
}


def _llama(**shape: int) -> dict[str, Any]:
    tree: dict[str, Any] = LlamaConfig(**shape).to_dict()
    return tree


def configs() -> dict[str, Any]:
    """Bases by name, smallest first, of the shapes in their published config.json."""
    return {
        "Whisper-base": _whisper(512, 6, 80, 51_865),
        "Whisper-large-v3": _whisper(1280, 32, 128, 51_866),
        "Qwen2-Audio-7B": Qwen2AudioConfig(
            audio_config={
                "model_type": "qwen2_audio_encoder",
                "d_model": 1280,
                "encoder_layers": 32,
                "encoder_attention_heads": 20,
                "encoder_ffn_dim": 5120,
                "num_mel_bins": 128,
            },
            text_config={
                "model_type": "qwen2",
                "hidden_size": 4096,
                "intermediate_size": 11_008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 156_032,
            },
        ),
        "Voxtral-Small-24B": VoxtralConfig(
            audio_config=_ENCODER,
            text_config=_llama(
                hidden_size=5120,
                intermediate_size=32_768,
                num_hidden_layers=40,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
                vocab_size=131_072,
            ),
        ),
        "Voxtral's encoder, Llama-3-70B's shape": VoxtralConfig(
            audio_config=_ENCODER,
            text_config=_llama(
                hidden_size=8192,
                intermediate_size=28_672,
                num_hidden_layers=80,
                num_attention_heads=64,
                num_key_value_heads=8,
                head_dim=128,
                vocab_size=128_256,
            ),
        ),
    }


def shapes(folder: Path) -> dict[str, BaseShape]:
    """Their shapes, through folders that hold a config.json and nothing else."""
    found = {}
    for i, (name, config) in enumerate(configs().items()):
        config.save_pretrained(folder / str(i))
        found[name] = read_shape(folder / str(i), dtype="bfloat16")
    return found


def planned(shape: BaseShape, nodes: int, memory: float) -> Plan:
    """8 clips a rank, 8 ranks a node, one adapter on the encoder's later half."""
    work = Work(
        clips=CLIPS_PER_RANK * RANKS * nodes,
        micro_batch=CLIPS_PER_RANK,
        sites=(shape.sites("encoder:last-half"),),
        checkpointing=True,
    )
    return make_plan(shape, work, Machines(nodes, RANKS, memory, host_memory=1e12))


_HEAD = """\
# Placement

The tests write this page (`SALSA_WRITE_DOCS=1 pytest tests/planner`); do not edit it. The planner computes
every number below. `salsa-dist plan --base B --nodes N --gpus-per-node 8 --gpu-memory 80GB` computes them
for any base, from its config and the headers of its weight files. `salsa-dist plan CONFIG.yaml` computes
them for a run.

The base is frozen, so its weights never change. A placement is one number, the shard group size: how many
consecutive ranks share one copy of the base.

| `placement.kind` | shard group size | a device holds | between nodes |
|---|---|---|---|
| `replicate` | 1 | the whole base | the steering gradients |
| `node` | the ranks of a node | a partition, and the module in use | the steering gradients |
| a number, such as 16 | that number; above one node, an island of nodes | a smaller partition | the base, inside each island |
| `full` | all ranks | the smallest partition | the base, between all nodes |
| `auto` (the default) | the smallest that fits | | |

`placement.offload: cpu` (or `nvme`, with `placement.nvme_path`) stores the partitions in host memory or on
a local disk between uses. `auto` selects offload only if nothing else fits. Evaluation has its own placement,
`evaluation.placement`, also `auto` by default. There, a placement without gathers saves most, because every
decoded token uses the decoder's weights again.

`auto` chooses once, at the start, equally on all ranks. It uses the smallest memory of any rank (on CPU: the free
memory, divided by the ranks of a node; a limit of a container or of Slurm counts). The run's first lines and its
`placement` event show the choice and the reason. After loading, a line shows how many bytes of the base a rank
holds. After the third step, a line shows the bytes that one step gathers and sends.

All ranks refuse an impossible placement before any weight is read, and print the table:

- too little memory for the base and the vectors alone;
- ranks that do not divide into equal groups, or `node` over nodes with unequal ranks;
- an offload target that is missing or too small on any node, or `nvme` without libaio;
- int8 weights (`zero_quantized_nontrainable_weights`, or a quantised base that would be partitioned).

If base and vectors fit, but not with the estimated activations, the run starts with a warning.

Before training, ranks compare their versions, settings, shards, base, weight shapes and steered layers. If two
ranks differ, all stop with one line that names the ranks and the difference. This holds for LoRA, biases, mean
differences and evaluation too. If a rank hangs, the other ranks name it, with its step, phase and line of code
(`training.hang_after_s`). They watch each other from the first comparison of settings on, also during staging
and loading. A rank that is still reading may take any time. A rank that never joined the job is named after 20
minutes.

## Process memory and tensor memory

The numbers on this page are tensor memory. In early versions, a CPU process with a shared base used far more: it
grew by 3.3 GB in a step of `full` on four ranks with 2 GB of weights. Most of this was memory that glibc did not
return, not memory of gloo or autograd. After glibc frees a block with its own mapping, it allocates all later
blocks up to that size (32 MB at most) on the heap, where freed gathered weights leave holes. The table shows the
growth of a rank's private memory in one step of `full`, for two ranks and 606 MB of weights in fp32:

| | after loading | at the peak of a step |
|---|---|---|
| glibc's default | 426 MB | 874 MB |
| `MALLOC_ARENA_MAX=1` | 441 MB | 1479 MB |
| `MALLOC_MMAP_THRESHOLD_=65536` | 310 MB | 491 MB |
| `MALLOC_TRIM_THRESHOLD_=65536`, which also fixes the other threshold | 312 MB | 492 MB |

These numbers include the rank's partition of 303 MB. A shared base now sets both thresholds to 1 MiB
(`placement/freed_memory.py`). The step that took 3.3 GB then takes 1.3 GB. On a GPU this makes no difference,
because gathered weights are in GPU memory.

## The arithmetic

For a weight of n elements of e bytes, shard group size k, and w ranks in all:

    partition          ceil(n / k) · e                                  on each rank
    base of a device   sum of partitions + buffers + small weights, which stay whole beside their partitions
    at the peak        + the largest module's weights (with checkpointing: layer's) + prefetched weights
                       (stage3_prefetch_bucket_size elements)
    a gather           a rank receives (k - 1) · ceil(n / k) · e
    a pass             one gather of every weight in the forward pass; one more in the backward pass of
                       those above the first steered layer
    between nodes      a ring passes each gather once over each link. So a node sends what one of its
                       ranks receives if its shard group spans several nodes, and nothing otherwise
    the vectors        4 bytes per element, all-reduced once per step: a node sends 2 (w - 1) / w of that,
                       in 2 (w - 1) messages (with gloo over TCP, plus 860 bytes of frames each)
    vectors and Adam   (2 + 4) · 4 bytes per element of the bank, and the buffer that is reduced
    FLOPs              forward: 2 · matrix elements · tokens; backward: as many, for activations alone,
                       from the first steered layer on. Attention: 4 · T · T · width forward, twice that
                       backward. Checkpointing adds a forward of the layers that have a backward
    seconds            the larger of FLOPs / (peak · MFU) and bytes / bandwidth, since gathers overlap
                       with computation

Defaults, each an option: 312 TFLOP/s (A100, dense bf16, its data sheet); MFU 0.4 (Llama 3 reports 0.38 to
0.43, arXiv 2407.21783); 240 GB/s into a device from its node (four fifths of NVLink 3's 300 one way);
25 GB/s out of a node (one 200 Gb/s InfiniBand port). The plan uses 90% of a device's memory; the
rest is for the CUDA context, collectives' buffers and fragmentation. An encoder without a fixed window is
assumed to output 50 rows per second, and its LLM to process 25 tokens per second.

Accuracy, measured on CPU ranks with gloo, on four ranks of a small base (padding, a tied head, a shortened
window, small weights kept whole; `tests/placement`):

- bytes between steps: exact; peaks: within 5%;
- gathers: exact, with checkpointing within 6%;
- bytes on the wire of `full` and `replicate`: within 10%. `benchmarks/bytes_between_nodes.py` counts them on
  the interfaces of four network namespaces: within 2% for `replicate`, `node` and `full`;
- activations: 0% to 10% above what autograd keeps for `salsa`, with and without checkpointing, at the widths of
  Whisper-large-v3, Qwen2-Audio-7B, Voxtral-Mini-3B, Voxtral-Small-24B and an LLM like Qwen3-8B, in bf16 with fused
  attention on the meta device (`tests/planner/test_activations.py`). Other encoders, such as Conformers, were not
  compared;
- seconds: never compared with a GPU.
"""


def page(found: dict[str, BaseShape]) -> str:
    lines = [_HEAD, _table(found), _example(found)]
    return "\n".join(lines)


def _table(found: dict[str, BaseShape]) -> str:
    head = f"""\
## From 0.1B to 70B, on 1 to 256 nodes, as planned

Nodes of {RANKS} devices; {CLIPS_PER_RANK} clips of 10 s per rank and step, so a larger job has more clips per step; bf16; one
adapter on the later half of the encoder; activation checkpointing; 1 TB of host memory. Bytes are those of one
device, or those sent by one node in one step.

| base | bytes | nodes | `auto`, 80 GB devices | a device | between nodes | step | `auto`, 24 GB devices | `full`: between nodes | step |
|---|---|---|---|---|---|---|---|---|---|
"""
    rows = []
    for name, shape in found.items():
        for nodes in NODES:
            large, small = planned(shape, nodes, 80e9), planned(shape, nodes, 24e9)
            row, full = large.chosen, _widest(large)
            assert row is not None
            cells = [
                f"{name}, {shape.parameters / 1e9:.2g}B" if nodes == NODES[0] else "",
                size(shape.bytes) if nodes == NODES[0] else "",
                str(nodes),
                row.name,
                size(row.device_bytes),
                size(row.bytes_between_nodes_per_step),
                seconds(row.step_s),
                small.chosen.name if small.chosen else "nothing fits",
                size(full.bytes_between_nodes_per_step),
                seconds(full.step_s),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    return head + "\n".join(rows) + "\n"


def _widest(plan: Plan) -> Row:
    return max((r for r in plan.rows if r.offload == "none"), key=lambda r: r.ranks_a_copy)


def _example(found: dict[str, BaseShape]) -> str:
    name, shape = list(found.items())[-1]
    nodes = 4
    plan = planned(shape, nodes, 80e9)
    node, full = plan.row("node"), plan.row("full")
    assert node is not None
    assert full is not None
    world = nodes * RANKS
    tokens = tokens_of(shape, plan.work)
    _, reduced = steering_numbers(shape, plan.work)
    matrices = sum(m.matmul for m in shape.modules if m.runs_over == "llm")
    total = flops(shape, plan.work)
    return f"""\
### One line by hand: {name}, {nodes} nodes

- {shape.parameters / 1e9:.2f}B parameters in bf16 are {size(shape.bytes)}. `node`: 1/{RANKS} is {size(shape.bytes / RANKS)}, with the small
  weights that stay whole {size(node.base_bytes)}, and with the module in use (checkpointing: the layer) and prefetched
  weights {size(node.peak_base_bytes)}. With {size(node.activation_bytes)} of activations and
  {size(node.steering_bytes + node.optimizer_bytes)} of vectors and Adam: {size(node.device_bytes)}, within {size(USABLE * 80e9)}. `replicate` needs
  {size(shape.bytes)} for the base alone.
- The vectors: {reduced:,} elements are reduced, {size(4 * reduced)}. A ring of {world} ranks sends 2 · {world - 1}/{world} of
  them: {size(node.bytes_between_nodes_per_step)} per node and step, for any base.
- `full` gathers over all {world} ranks: a rank receives {size(full.gathered_bytes_per_step)} per step, which is
  {full.gathered_bytes_per_step / shape.bytes:.2f} times the base (a forward pass, and a backward pass of everything above the
  encoder's middle). At 25 GB/s: {seconds(full.bytes_between_nodes_per_step / 25e9)}. `node` receives the same over NVLink:
  {seconds(node.gathered_bytes_per_step / 240e9)}.
- FLOPs: the LLM's {matrices / 1e9:.1f}B matrix elements process {tokens["llm"]} tokens of each of {plan.work.clips} clips, 2 FLOPs each,
  forward, backward and recomputed: {2 * 3 * matrices * tokens["llm"] * plan.work.clips:.2e}. With attention, encoder and head:
  {total:.2e}. Over {world} devices at 312 TFLOP/s and MFU 0.4: {seconds(node.compute_s)}. So `node` is bound by
  {"arithmetic" if node.compute_s > node.transfer_s else "gathers"} and `full` for {"arithmetic" if full.compute_s > full.transfer_s else "the network"}.
"""
