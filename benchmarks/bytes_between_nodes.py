"""What crosses between nodes in a training step, by the counters of their network interfaces.

    sudo python benchmarks/bytes_between_nodes.py --json OUT [--steps 3,6] [--systems node,…]

Four nodes on one machine: network namespaces of this run's own, each with its address, joined by a
bridge, all inside one more namespace that has no way out. A system trains a random Whisper of two
sizes; what was sent between its N1-th and N2-th step is divided by N2 - N1, so that start-up is left
out. Interfaces count whole Ethernet frames: TCP's and IP's headers and acknowledgements with them.

    replicate, node, full   salsa-dist's placements; node with two ranks a node, the others with one
    stock ZeRO-3            deepspeed.initialize on the transformers model with a stage 3 config and
                            DeepSpeed's own defaults, the same vectors as parameters of the engine,
                            a torch optimizer that it wraps; one rank a node. (from_pretrained under
                            HfDeepSpeedConfig would load in another way and train in the same; in
                            transformers 5.23 it fails on Whisper, whose sinusoids meet a weight of
                            shape [0].)

Both cut every weight, however small (persistence threshold 0): at the default the small bases here
would stay whole on every rank, which a large base would not.

{"rows": [{"placement": "node", "base_bytes": …, "steering_bytes": …, "nodes": 4, "ranks_per_node": 2,
           "bytes_between_nodes_per_step": …, "bytes_sent_per_step_per_node": …, "limit_per_node": …,
           "planned_per_node": …}, …]}

`bytes_between_nodes_per_step` is over all nodes, each byte counted once, where it is sent;
`steering_bytes` are the vectors' of the adapters that are active in a step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import salsa_dist  # noqa: F401  it guards the import of transformers, so it comes first

NODES = 4
# name -> ranks a node
SYSTEMS = {"replicate": 1, "node": 2, "full": 1, "stock ZeRO-3": 1}
# width, feed-forward width, layers of encoder and decoder: about 8 MB and 38 MB in fp32
BASES = {"small": (128, 512, 4), "large": (256, 1024, 5)}
CLIPS_PER_RANK = 2
PORT = 29_500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument(
        "--steps", default="3,6", help="N1,N2: counted from the end of one to the other"
    )
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rank", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = [int(n) for n in options.steps.split(",")]
    if options.rank:
        run_rank(options.rank[0], Path(options.rank[1]), steps)
    elif options.inside:
        measure_all(options.json, steps, options.systems.split(","))
    else:
        if os.geteuid() != 0:
            sys.exit("bytes_between_nodes: network namespaces need root: run it with sudo")
        # Alone in a namespace: whatever becomes of the bridge, no packet can leave the machine.
        again = ["unshare", "-n", "-m", sys.executable, *sys.argv, "--inside"]
        sys.exit(subprocess.run(again, check=False).returncode)


# --- the nodes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A namespace: the process that holds it open, its address, the interface inside it."""

    pid: int
    address: str
    interface: str
    hosts: Path

    def command(self, *words: str) -> list[str]:
        """`words` run inside. Not `ip netns exec`, which remounts /sys."""
        inside = f'mount --bind {self.hosts} /etc/hosts && exec "$@"'
        return [*self.enter(), "unshare", "-m", "bash", "-c", inside, "-", *words]

    def enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def sent(self) -> int:
        """Bytes that its interface has sent so far."""
        shown = subprocess.run(
            [
                "nsenter",
                f"--net=/proc/{self.pid}/ns/net",
                "ip",
                "-s",
                "-j",
                "link",
                "show",
                self.interface,
            ],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


@contextmanager
def four_nodes(folder: Path) -> Iterator[list[Node]]:
    """Namespaces on a bridge of their own; gone at the end."""
    own = os.getpid()
    bridge = f"sb{own}"
    with ExitStack() as stack:
        ip("link", "set", "lo", "up")
        ip("link", "add", bridge, "type", "bridge")
        stack.callback(ip, "link", "del", bridge)
        ip("link", "set", bridge, "up")
        hosts = folder / "hosts"
        names = [f"10.77.0.{i + 1} node{i}" for i in range(NODES)]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
        nodes = []
        for i in range(NODES):
            holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
            stack.callback(end, holder)
            wait_for_namespace(holder.pid)
            outer, inner = f"v{own}-{i}", "eth0"
            ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", str(holder.pid))
            ip("link", "set", outer, "master", bridge, "up")
            node = Node(holder.pid, f"10.77.0.{i + 1}", inner, hosts)
            # IPv6 would send neighbour discovery of its own over the counted interface.
            for words in (
                ["link", "set", inner, "addrgenmode", "none"],
                ["addr", "add", f"{node.address}/24", "dev", inner],
                ["link", "set", "lo", "up"],
                ["link", "set", inner, "up"],
            ):
                subprocess.run([*node.enter(), "ip", *words], check=True)
            nodes.append(node)
        yield nodes


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def wait_for_namespace(pid: int) -> None:
    """Until the process has left this namespace for its own."""
    ours = os.readlink("/proc/self/ns/net")
    for _ in range(500):
        if os.readlink(f"/proc/{pid}/ns/net") != ours:
            return
        time.sleep(0.01)
    sys.exit("bytes_between_nodes: a network namespace did not come up")


def end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()


# --- the measuring -----------------------------------------------------------------------------


def measure_all(out: Path, steps: list[int], systems: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bytes-between-nodes-") as name:
        folder = Path(name)
        for base, shape in BASES.items():
            make_base(folder / base, *shape)
        with four_nodes(folder) as nodes:
            for system in systems:
                rows += measure(system, folder, nodes, steps)
                report = {
                    "date": str(date.today()),
                    "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                    "command": f"bytes_between_nodes.py --steps {steps[0]},{steps[1]}",
                    "rows": rows,
                }
                out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(system: str, folder: Path, nodes: list[Node], steps: list[int]) -> list[dict[str, Any]]:
    """Both bases under one system, in one launch."""
    per_node = SYSTEMS[system]
    meeting = folder / system.replace(" ", "-")
    meeting.mkdir()
    ranks: list[subprocess.Popen[Any]] = []
    try:
        for i, node in enumerate(nodes):
            for local in range(per_node):
                environment = {
                    **os.environ,
                    "RANK": str(i * per_node + local),
                    "WORLD_SIZE": str(NODES * per_node),
                    "LOCAL_RANK": str(local),
                    "LOCAL_WORLD_SIZE": str(per_node),
                    "MASTER_ADDR": "node0",
                    "MASTER_PORT": str(PORT),
                    "GLOO_SOCKET_IFNAME": node.interface,
                    "OMP_NUM_THREADS": "1",
                    "DS_ACCELERATOR": "cpu",
                    "PYTHONWARNINGS": "ignore",
                }
                command = [sys.executable, __file__, "--json", "-", "--rank", system, str(meeting)]
                command += ["--steps", ",".join(map(str, steps))]
                log = open(meeting / f"rank{len(ranks)}.log", "w")  # noqa: SIM115
                ranks.append(
                    subprocess.Popen(
                        node.command(*command), env=environment, stdout=log, stderr=subprocess.STDOUT
                    )
                )
        return [count(system, base, meeting, nodes, ranks, steps) for base in BASES]
    finally:
        for process in ranks:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()


def count(
    system: str,
    base: str,
    meeting: Path,
    nodes: list[Node],
    ranks: list[subprocess.Popen[Any]],
    steps: list[int],
) -> dict[str, Any]:
    """Read the counters where all ranks pause, at both numbers of steps."""
    sent = []
    for n in steps:
        marks = [meeting / f"{base}-{n}-rank{r}" for r in range(len(ranks))]
        wait_for(marks, ranks, meeting)
        # Acknowledgements may still be under way.
        time.sleep(0.5)
        sent.append([node.sent() for node in nodes])
        (meeting / f"{base}-{n}-go").touch()
    facts = json.loads((meeting / f"{base}-facts.json").read_text())
    each = [(b - a) / (steps[1] - steps[0]) for a, b in zip(*sent, strict=True)]
    row = {
        "placement": system,
        **facts,
        "nodes": NODES,
        "ranks_per_node": SYSTEMS[system],
        "bytes_between_nodes_per_step": round(sum(each)),
        "bytes_sent_per_step_per_node": round(max(each)),
        "limit_per_node": 3 * facts["steering_bytes"] + 65_536,
    }
    print(row, flush=True)
    return row


def wait_for(marks: list[Path], ranks: list[subprocess.Popen[Any]], meeting: Path) -> None:
    while not all(mark.exists() for mark in marks):
        for i, process in enumerate(ranks):
            if process.poll():
                log = (meeting / f"rank{i}.log").read_text()[-3000:]
                sys.exit(f"bytes_between_nodes: rank {i} ended with {process.returncode}:\n{log}")
        time.sleep(0.05)


def make_base(folder: Path, width: int, inner: int, layers: int) -> None:
    """A random Whisper with a byte tokenizer and a window of two seconds."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny

    tiny.make_base(
        folder,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
    )


# --- one rank ----------------------------------------------------------------------------------


def run_rank(system: str, meeting: Path, steps: list[int]) -> None:
    import torch.distributed as dist

    from salsa_dist.placement.ranks import join

    with join() as ranks:
        for base in BASES:
            train = stock if system == "stock ZeRO-3" else ours
            step, facts = train(system, meeting.parent / base, meeting, ranks)
            if ranks.is_first:
                (meeting / f"{base}-facts.json").write_text(json.dumps(facts))
            for done in range(1, steps[1] + 1):
                step()
                if done in steps:
                    dist.barrier()
                    (meeting / f"{base}-{done}-rank{ranks.rank}").touch()
                    while not (meeting / f"{base}-{done}-go").exists():
                        time.sleep(0.05)


def settings() -> dict[str, Any]:
    return {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


def clips() -> list[Any]:
    from dataclasses import replace

    from salsa_dist.data.clip import silent_clip

    return [replace(silent_clip("bg"), text="da ne", row=0) for _ in range(CLIPS_PER_RANK)]


def ours(kind: str, folder: Path, meeting: Path, ranks: Any) -> tuple[Any, dict[str, Any]]:
    """A step of salsa-dist, and what it is about."""
    import torch

    from salsa_dist.config import PlacementConfig
    from salsa_dist.placement.frozen_base import FrozenBase
    from salsa_dist.planner.base_shape import read_shape
    from salsa_dist.planner.plan import make_plan
    from salsa_dist.planner.step_work import GLOO_MESSAGE_BYTES, Machines, Work
    from salsa_dist.speech_llms.load import load_speech_llm
    from salsa_dist.steering.bank import AdapterSpec, Bank
    from salsa_dist.training.loss import token_losses
    from salsa_dist.training.optimizer import PackedAdam, Schedule, reduce_step

    zero = {**settings()["zero_optimization"], "stage3_max_reuse_distance": 0}
    ds_config = meeting / f"ds-rank{ranks.rank}.json"
    ds_config.write_text(json.dumps({"zero_optimization": zero}))
    shape = read_shape(folder, dtype="float32")
    sites = sites_of(shape)
    work = Work(CLIPS_PER_RANK * ranks.world_size, CLIPS_PER_RANK, (sites,), clip_s=1)
    machines = Machines(NODES, ranks.local_world_size, 1e9, message_bytes=GLOO_MESSAGE_BYTES)
    planned = make_plan(shape, work, machines, zero).row(kind)
    speech_llm = load_speech_llm(folder)
    bank = Bank([AdapterSpec("a", sites, "salsa")], {s: shape.width(s) for s in sites})
    optimizer = PackedAdam(bank, [Schedule(1e-2, 100, 0, "none")], 1.0)
    base = FrozenBase(speech_llm, bank, ranks, PlacementConfig(kind=kind, ds_config=ds_config))
    batch = base.family.training_batch(clips())

    def step() -> None:
        for vector in bank.vectors.values():
            vector.grad = None
        losses = token_losses(base, batch)
        losses.sum().backward()
        base.after_backward()
        total = losses.detach().sum().reshape(1)
        labels = torch.tensor([float(len(losses))])
        reduced = reduce_step(bank, [0], total, labels, stop=False)
        optimizer.step(reduced.gradients, [0])

    facts = {
        "base_bytes": base.base_bytes,
        "steering_bytes": 4 * bank.trained_numbers(0),
        "planned_per_node": planned.bytes_between_nodes_per_step if planned else None,
    }
    return step, facts


def sites_of(shape: Any) -> tuple[str, ...]:
    """The last layers, as many as make 1,024 numbers: a base twice as wide has half as many sites."""
    width = shape.layers[0].width
    count = 512 // width
    return tuple(s for c in ("encoder", "llm") for s in shape.sites(f"{c}:{-count}.."))


def stock(_: str, folder: Path, meeting: Path, ranks: Any) -> tuple[Any, dict[str, Any]]:
    """The same step with DeepSpeed's engine over base and vectors."""
    import torch
    from transformers import WhisperForConditionalGeneration

    from salsa_dist.libraries.deepspeed import start_deepspeed
    from salsa_dist.planner.base_shape import read_shape
    from salsa_dist.speech_llms.load import load_speech_llm
    from salsa_dist.steering.rules.salsa import salsa
    from salsa_dist.steering.sites import site_modules

    deepspeed = start_deepspeed()
    config = {**settings(), "train_micro_batch_size_per_gpu": CLIPS_PER_RANK}
    shape = read_shape(folder, dtype="float32")
    batch = load_speech_llm(folder).family.training_batch(clips())
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval().requires_grad_(False)

    class Vector(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.vector = torch.nn.Parameter(torch.zeros(width))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return salsa(hidden, self.vector)

    modules = site_modules(model)
    sites = sites_of(shape)
    vectors = torch.nn.ModuleDict({s.replace(".", "_"): Vector(shape.width(s)) for s in sites})
    model.steering = vectors
    for site in sites:
        own = vectors[site.replace(".", "_")]
        modules[site].register_forward_hook(lambda m, a, out, own=own: own(out))
    optimizer = torch.optim.AdamW(vectors.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )
    engine.eval()
    labels = batch.inputs["decoder_input_ids"].clone()

    def step() -> None:
        loss = engine(**batch.inputs, labels=labels, use_cache=False).loss
        engine.backward(loss)
        engine.step()

    numbers = sum(shape.width(s) for s in sites)
    facts = {"base_bytes": shape.bytes, "steering_bytes": 4 * numbers, "planned_per_node": None}
    return step, facts


if __name__ == "__main__":
    main()
