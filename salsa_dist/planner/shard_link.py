"""The link to shards that a run needs: bytes of shards a second and node, so that no step waits.

bytes of a step = clips of a step · mean bytes of a clip;  a node's share of them / seconds of a step
"""

from __future__ import annotations

from dataclasses import dataclass

from salsa_dist.config import Config
from salsa_dist.data.index import ShardIndex
from salsa_dist.planner.units import seconds, size


@dataclass(frozen=True)
class ShardLink:
    """Attributes:
    bytes_per_step: of all adapters' clips, on all nodes.
    step_s: seconds of a step.
    measured: whether these are the run's own; else the plan's.
    bytes_per_second_per_node: what each node has to get.
    """

    bytes_per_step: int
    step_s: float
    measured: bool
    bytes_per_second_per_node: float

    def line(self) -> str:
        what = "measured" if self.measured else "planned"
        step, rate = size(self.bytes_per_step), size(self.bytes_per_second_per_node)
        return (
            f"shards: a step is {step}; with its {what} {seconds(self.step_s)}, a node needs {rate} a "
            "second of them in its first epoch"
        )


def shard_link(
    config: Config, index: ShardIndex, nodes: int, planned_s: float, measured_s: float | None
) -> ShardLink | None:
    """The shard traffic of `config`; None if the index has no training speech for it.

    Args:
        planned_s, measured_s: seconds of a step.
    """
    total = 0.0
    for adapter in config.adapter_settings():
        own = [s for s in index.shards if s.split == "train" and s.language in adapter.languages]
        samples = sum(shard.samples for shard in own)
        if not samples:
            return None
        clips = config.data.clips_of_a_step(sum(shard.seconds for shard in own) / samples)
        total += clips * sum(shard.bytes for shard in own) / samples
    step_s = planned_s if measured_s is None else measured_s
    return ShardLink(round(total), step_s, measured_s is not None, total / step_s / nodes)
