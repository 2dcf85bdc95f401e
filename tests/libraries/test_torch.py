"""What salsa_dist/libraries/torch.py assumes."""

from __future__ import annotations

import torch.distributed as dist

from salsa_dist.libraries.torch import abort_groups


def test_aborted_groups_are_gone() -> None:
    for _ in range(2):  # another can be made after it
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        dist.new_group([0])
        abort_groups()
        assert not dist.is_initialized()
