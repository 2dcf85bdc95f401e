"""What salsa_dist/libraries/torch.py assumes."""

from __future__ import annotations

import torch
import torch.distributed as dist

from salsa_dist.libraries.torch import abort_groups, forget_hooks


def test_aborted_groups_are_gone() -> None:
    for _ in range(2):  # another can be made after it
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        dist.new_group([0])
        abort_groups()
        assert not dist.is_initialized()


def test_hooks_are_forgotten() -> None:
    model, ran = torch.nn.Sequential(torch.nn.ReLU()), []
    model[0].register_forward_hook(lambda *_: ran.append("behind"))
    model[0].register_forward_pre_hook(lambda *_: ran.append("before"))
    forget_hooks(model)
    model(torch.zeros(1))
    assert ran == []
