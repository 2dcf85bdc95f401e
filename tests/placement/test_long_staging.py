"""A copy that takes longer than any collective waits ends no job; a failure is told to all ranks."""

import json
from pathlib import Path

from ranks import two_ranks

# Two nodes of one rank each: the second copies for a while, and nobody may wait for it in a collective,
# since each has a time limit.
COPIES = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from salsa_dist.errors import UserError
from salsa_dist.placement import node_disk, ranks

node_disk._SAID_EVERY_S = 2.0
node_disk._LOOK = timedelta(seconds=1)
os.environ["LOCAL_RANK"] = "0"
os.environ["LOCAL_WORLD_SIZE"] = "1"
rank, out, lines = int(os.environ["RANK"]), Path(sys.argv[1]), []

def copies(told):
    for second in range(8 * rank):
        time.sleep(1)
        told((second + 1) * 10**9, 8 * 10**9)
    return Path(f"of-{rank}")

def fails(told):
    if rank == 1:
        raise OSError(28, "No space left on device")
    return Path("there")

def forbidden(*arguments, **named):
    raise AssertionError("a collective has a time limit")

with ranks.join() as own:
    for name in ("all_gather_object", "broadcast_object_list", "barrier", "all_reduce", "all_gather"):
        setattr(dist, name, forbidden)
    found = node_disk.once_a_node(own, "stage_to is x", copies, lines.append)
    try:
        node_disk.once_a_node(own, "stage_to is x", fails, lines.append)
        failed = ""
    except UserError as error:
        failed = str(error)
(out / f"found-{rank}.json").write_text(json.dumps([str(found), failed, lines]))
"""


def test_ranks_wait_for_a_copy_for_as_long_as_it_takes(tmp_path: Path) -> None:
    with two_ranks(tmp_path, COPIES, str(tmp_path)) as both:
        statuses = [process.wait(timeout=400) for process in both]
    assert statuses == [0, 0], [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    assert [folder for folder, _, _ in found] == ["of-0", "of-1"]
    assert [failed for _, failed, _ in found] == ["stage_to is x: No space left on device"] * 2
    lines = found[0][2]
    assert any(line.startswith("waiting for the copies of 1 nodes: rank 1 at ") for line in lines)
    assert any(" of 8.0 GB" in line for line in lines)
