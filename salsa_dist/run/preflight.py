"""Before minutes of loading: whether the machines of this job are what training needs.

    each rank: host, versions, speed ──► all ranks ──► Preflight      or one UserError for all
    ring of links  0─1─2─3─0   two rounds of neighbours at once, three where the number is odd
                   └n1┘ └n2┘   a link inside a node, or between two

Checked, and refused: the same versions everywhere, ranks laid out node by node, the run's folder
seen and writable on every node. Measured, and said: the bandwidth of each link, the speed of each
rank; a node or a rank far below the others is named; what the placement's traffic takes on these links,
where the plan counts on better ones.

Control goes over gloo, with a time limit, whatever training itself uses.
"""

from __future__ import annotations

import platform
import secrets
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks
from salsa_dist.run.link_speed import best_of, link_gbps

_TIMEOUT = timedelta(seconds=120)  # ranks may start that much apart
_SEEN_WITHIN_S = 10.0  # a network file system may show another node's file late
_SLOW = 3.0  # times slower than the median is worth a word
_PACKAGES = ("torch", "deepspeed", "transformers", "salsa-dist")


@dataclass(frozen=True)
class Machine:
    """Facts of one rank's machine.

    Attributes:
        host: its name.
        versions: of what computes.
        work_s: time of a fixed piece of arithmetic, seconds.
        link_gbps: gigabits a second to the next rank; None where that link is another rank's.
        folder: what is wrong with the run's folder from here, or None.
    """

    rank: int
    local_rank: int
    local_world_size: int
    host: str
    device: str
    versions: dict[str, str]
    work_s: float
    link_gbps: float | None
    folder: str | None


@dataclass(frozen=True)
class Preflight:
    """The measurements, and warnings about them."""

    machines: list[Machine]
    warnings: list[str]
    seconds: float

    @property
    def hosts(self) -> list[str]:
        return list(dict.fromkeys(machine.host for machine in self.machines))

    def links(self, between: bool) -> list[float]:
        """Gigabits a second of the links between nodes, or of those inside them."""
        return [
            here.link_gbps
            for here, there in _pairs(self.machines)
            if here.link_gbps is not None and (here.host != there.host) == between
        ]

    def slowest_link(self, between: bool) -> float | None:
        """Gbit/s of the slowest link between nodes, or inside them; None if there is none."""
        links = self.links(between)
        return round(min(links), 4) if links else None

    def event(self) -> dict[str, Any]:
        """Fields of the `preflight` event."""
        return {
            "nodes": len(self.hosts),
            "hosts": self.hosts,
            "seconds": round(self.seconds, 2),
            "gbps_inside": self.slowest_link(between=False),
            "gbps_between": self.slowest_link(between=True),
            "warnings": self.warnings,
            # The versions are equal everywhere, and in the `start` event.
            "machines": [
                {
                    name: fact
                    for name, fact in vars(machine).items()
                    if name not in ("versions", "folder")
                }
                for machine in self.machines
            ],
        }

    def lines(self) -> list[str]:
        nodes = f"{len(self.hosts)} node" + ("s" if len(self.hosts) > 1 else "")
        speeds = [
            f"{found:.3g} Gbit/s {where} nodes"
            for where, between in (("inside", False), ("between", True))
            if (found := self.slowest_link(between)) is not None
        ]
        head = f"preflight: {len(self.machines)} ranks on {nodes}, slowest link {', '.join(speeds)}"
        return [f"{head} ({self.seconds:.1f} s)", *(f"warning: {text}" for text in self.warnings)]


def preflight(run: Path, ranks: Ranks, whereabouts: Callable[[], str]) -> Preflight:
    """Check and measure the machines of a job of two or more ranks. All ranks call this.

    Args:
        run: the run's folder.
        ranks: this process.
        whereabouts: says where the ranks are that are furthest behind.

    Raises:
        UserError: on all ranks alike, with everything that is wrong, ranks and hosts named.
    """
    started = time.monotonic()
    control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    on_gpu = ranks.device.type == "cuda"
    try:
        with _Token(run, ranks, control) as token:
            mine = Machine(
                rank=ranks.rank,
                local_rank=ranks.local_rank,
                local_world_size=ranks.local_world_size,
                host=socket.gethostname(),
                device=torch.cuda.get_device_name(ranks.device) if on_gpu else platform.machine(),
                versions=_versions(),
                work_s=_work_s(ranks.device),
                link_gbps=link_gbps(ranks, control),
                folder=token.trouble(),
            )
            machines: list[Any] = [None] * ranks.world_size
            dist.all_gather_object(machines, mine, group=control)
    except RuntimeError as e:
        if "imed out" in str(e) or "imeout" in str(e):
            raise UserError(
                f"preflight: rank {ranks.rank} on {socket.gethostname()} waited {_TIMEOUT.seconds} s "
                f"for another rank ({whereabouts()}): a node is down, or its firewall or network "
                "interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME) keeps the ranks apart"
            ) from e
        raise
    finally:
        dist.destroy_process_group(control)
    wrong = [*_other_versions(machines), *_layout(machines), *_folders(machines)]
    if wrong:
        raise UserError("preflight: " + "; ".join(wrong))
    return Preflight(
        machines, [*_slow_links(machines), *_slow_ranks(machines)], time.monotonic() - started
    )


class _Token:
    """A file that the first rank writes into the run's folder, and one that each rank adds.

    All of it is gone afterwards, and the folder too if this made it.
    """

    def __init__(self, run: Path, ranks: Ranks, control: Any) -> None:
        self._ranks, self._control = ranks, control
        word: list[Any] = [secrets.token_hex(8)]
        dist.broadcast_object_list(word, src=0, group=control)
        self._run, self._word = run, str(word[0])
        self._made: list[Path] = []

    def _path(self, who: str) -> Path:
        return self._run / f".preflight-{self._word}-{who}"

    def __enter__(self) -> _Token:
        if self._ranks.is_first:
            missing = [p for p in (self._run, *self._run.parents) if not p.exists()]
            with suppress(OSError):  # what is wrong, trouble() finds
                self._run.mkdir(parents=True, exist_ok=True)
                self._made = missing
                self._path("first").write_text(self._word, encoding="utf-8")
        dist.barrier(group=self._control)
        return self

    def trouble(self) -> str | None:
        until = time.monotonic() + _SEEN_WITHIN_S
        while not self._path("first").exists():
            if time.monotonic() > until:
                return "does not see what rank 0 writes there"
            time.sleep(0.2)
        try:
            if self._path("first").read_text(encoding="utf-8") != self._word:
                return "reads something else than rank 0 wrote there"
            self._path(str(self._ranks.rank)).touch()
        except OSError as e:
            return f"can't write there ({e.strerror})"
        return None

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._path(str(self._ranks.rank)).unlink(missing_ok=True)
        with suppress(RuntimeError):  # a peer that is gone: its error says more
            dist.barrier(group=self._control)
        if self._ranks.is_first:
            with suppress(OSError):
                self._path("first").unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def _work_s(device: torch.device) -> float:
    """Seconds for a fixed product of matrices, the best of three."""
    size = 2048 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, device=device)
    return best_of(lambda: matrix @ matrix, device)


def _pairs(machines: Sequence[Machine]) -> list[tuple[Machine, Machine]]:
    return list(zip(machines, [*machines[1:], machines[0]], strict=True))


def _other_versions(machines: Sequence[Machine]) -> list[str]:
    wrong = []
    for name in machines[0].versions:
        found = _grouped(machines, [machine.versions[name] for machine in machines])
        if len(found) > 1:
            places = ", ".join(f"{v} on {_who(group)}" for v, group in found.items())
            wrong.append(f"{name} is {places}: install one version everywhere")
    return wrong


def _layout(machines: Sequence[Machine]) -> list[str]:
    """Placement counts on consecutive ranks sharing a node."""
    for machine in machines:
        first = machine.rank - machine.local_rank
        node = machines[max(0, first) : first + machine.local_world_size]
        if first < 0 or [m.local_rank for m in node] != list(range(machine.local_world_size)):
            break
        # Hosts of another name may still be one node (a container per rank), never the reverse.
        if any(m.host != machine.host for m in node):
            break
    else:
        return []
    order = ", ".join(f"{m.rank} on {m.host}" for m in machines[:16])
    more = " …" if len(machines) > 16 else ""
    return [
        f"ranks are not laid out node by node ({order}{more}): ask for as many ranks on each node, "
        "in blocks (srun --distribution=block)"
    ]


def _folders(machines: Sequence[Machine]) -> list[str]:
    return [
        f"the run's folder: {_who(group)} {what}; name one on a file system that all nodes share"
        for what, group in _grouped(machines, [machine.folder for machine in machines]).items()
        if what
    ]


def _slow_links(machines: Sequence[Machine]) -> list[str]:
    """Links far below the median of their kind. If both links of a node are slow, the node is named."""
    found = []
    for between in (False, True):
        links = [
            (here, there, here.link_gbps)
            for here, there in _pairs(machines)
            if here.link_gbps and (here.host != there.host) == between
        ]
        if len(links) < 3:
            continue
        usual = statistics.median(speed for *_, speed in links)
        slow = [(here, there, speed) for here, there, speed in links if speed * _SLOW < usual]
        ends = [host for here, there, _ in slow for host in (here.host, there.host)]
        for here, there, speed in slow:
            twice = [h for h in (here.host, there.host) if between and ends.count(h) > 1]
            blame = f"; node {twice[0]} is slow" if twice else ""
            found.append(
                f"rank {here.rank} on {here.host} to rank {there.rank} on {there.host}: {speed:.3g} "
                f"Gbit/s, where {usual:.3g} is usual{blame}"
            )
    return found


def _slow_ranks(machines: Sequence[Machine]) -> list[str]:
    usual = statistics.median(machine.work_s for machine in machines)
    slow = [machine for machine in machines if machine.work_s > _SLOW * usual]
    return [
        f"{_who([m])} computes {m.work_s / usual:.1f} times slower than is usual here" for m in slow
    ]


def _who(machines: Sequence[Machine]) -> str:
    """`ranks 0, 1 on n1`, by host."""
    return " and ".join(
        f"rank{'s' if len(found) > 1 else ''} {', '.join(str(m.rank) for m in found)} on {host}"
        for host, found in _grouped(machines, [machine.host for machine in machines]).items()
    )


def _grouped(machines: Sequence[Machine], by: Sequence[str | None]) -> dict[str | None, list[Machine]]:
    """The machines by what `by` says of each, in their order."""
    found: dict[str | None, list[Machine]] = {}
    for machine, value in zip(machines, by, strict=True):
        found.setdefault(value, []).append(machine)
    return found
