"""One rank of two that partition a tiny model by DeepSpeed and write down what became of it.

deepspeed_ranks.py OUT     OUT/rank-0.json and OUT/rank-1.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pretend_gpu import OnGpu, Watched, device
from torch import nn

from salsa_dist.libraries import deepspeed as library
from salsa_dist.placement.frozen_linear import FrozenLinear
from salsa_dist.placement.ranks import join
from salsa_dist.planner.ds_settings import ds_settings


class Scaled(nn.Module):
    """A layer with a weight of its own, whose input carries no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
        self.scale = nn.Parameter(torch.ones(6, 4))
        self.experts = nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, relu, last = self.inner
        hidden = nn.functional.linear(relu(first(x)), self.experts[1])
        if hasattr(nn.functional, "grouped_mm"):
            each = torch.tensor([1, 2], dtype=torch.int32)  # one row for each expert
            hidden = nn.functional.grouped_mm(hidden, self.experts.transpose(1, 2), offs=each)
        output: torch.Tensor = last(hidden) * self.scale.sum()
        return output


class Movable(nn.Parameter):
    """A weight whose numbers may come to lie on the pretended GPU, as they may on one that is there."""

    there: OnGpu | None = None

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self) if self.there is None else self.there

    @data.setter
    def data(self, numbers: torch.Tensor) -> None:
        if isinstance(numbers, OnGpu):
            self.there = numbers
        else:
            torch.Tensor.data.__set__(self, numbers)


def on_a_gpu(keep: Any, offloaded: bool) -> dict[str, Any]:
    """What `keep` copies to a GPU of a weight of 7 elements in fp32, and what lies there then."""
    weight = Movable(torch.arange(7.0), requires_grad=False)
    keeper = keep.__self__
    before = keeper.local_device, keeper.remote_device
    keeper.local_device, keeper.remote_device = device(), "cpu" if offloaded else device()
    with Watched() as seen:
        keep(weight)
        part = library.part_of(weight)
        found = {"copied": seen.sent, "gathered_onto": weight.data.device.type}
        found |= {"lies_on": part.device.type, "part": part.tolist()}
    keeper.local_device, keeper.remote_device = before
    return found


@contextmanager
def seeing_one_gpu() -> Iterator[None]:
    """`on_own_device` where each rank sees one GPU, its own, as number 0."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "current_device", lambda: 0)
            stack.enter_context(library.on_own_device())
        yield


def main(out: Path) -> None:
    with join() as ranks:
        deepspeed = library.start_deepspeed()
        torch.manual_seed(0)
        model: Any = Scaled().eval()
        model.requires_grad_(False)
        large, bias = model.inner[0].weight, model.inner[2].bias
        whole = large.detach().clone()
        weights = (large, model.experts, model.inner[2].weight)
        plain = [weight.detach().clone() for weight in weights]
        settings = ds_settings(None, "full", torch.float32)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 4  # the bias alone
        sent: list[int] = []
        broadcast = dist.broadcast

        def watched_broadcast(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            sent.append(tensor.numel())
            return broadcast(tensor, *args, **kwargs)

        dist.broadcast = watched_broadcast
        asked: list[str] = []  # the GPUs that DeepSpeed takes
        accelerator = deepspeed.accelerator.get_accelerator()
        named = accelerator.device_name

        def watched_name(number: Any = None) -> Any:
            asked.append(str(number))
            return named(number)

        accelerator.device_name = watched_name
        one_gpu = ExitStack()
        one_gpu.enter_context(seeing_one_gpu())
        keep = library.part_keeper(deepspeed, dist.group.WORLD, settings)
        for parameter in model.parameters():
            keep(parameter)
        found = {
            "broadcast": sent.copy(),
            "shape": list(library.true_shape(large)),
            "empty": large.data.numel() == 0,
            "part": library.part_of(large).tolist(),
            "own": whole.flatten()[ranks.rank * 16 : ranks.rank * 16 + 16].tolist(),
            "compiles": deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"],
        }
        found["on_a_gpu"] = [on_a_gpu(keep, offloaded) for offloaded in (False, True)]
        engine, *_ = deepspeed.initialize(model=model, config=settings, dist_init_required=False)
        found["gpus"] = [set_up := asked.copy()]
        hooks = engine.optimizer
        model.eval()
        found["stay_whole"] = [library.stays_whole(large), library.stays_whole(bias)]
        coordinator = library.fetching(hooks)
        fetch, seen = coordinator.fetch_sub_module, []

        recorded: list[bool] = []

        def watched(*args: Any, **kwargs: Any) -> None:
            before = library.is_gathered(large)
            recorded.append(coordinator.is_complete_trace())
            fetch(*args, **kwargs)
            seen.append([before, library.is_gathered(large)])

        coordinator.fetch_sub_module = watched
        vector = torch.zeros(8, requires_grad=True)
        steer = model.inner[0].register_forward_hook(lambda module, args, output: output + vector)
        x, kept = torch.randn(2, 4), []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(list(tensor.shape))
            return tensor

        FrozenLinear.enter()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x).sum().backward()
        FrozenLinear.leave()
        steer.remove()
        found["kept"] = kept
        found["gradient"] = vector.grad.tolist()
        vector.grad = None
        hidden = torch.relu(x @ plain[0].T + vector) @ plain[1][1].T
        if hasattr(nn.functional, "grouped_mm"):
            hidden = torch.stack([row @ expert.T for row, expert in zip(hidden, plain[1], strict=True)])
        (hidden @ plain[2].T * 24).sum().backward()
        found["gradient_by_hand"] = vector.grad.tolist()
        found["fetched"] = [False, True] in seen
        found["gathered_after_backward"] = library.is_gathered(model.scale)
        library.release_leftovers(hooks)
        found["gathered_after_release"] = library.is_gathered(model.scale)
        found["prefetched"] = []
        for _ in range(4):
            recorded.clear()
            with torch.no_grad(), library.one_pass(hooks):
                model(torch.randn(2, 4))
                model.inner(torch.randn(2, 4))  # other modules than in the first call
                model(torch.randn(2, 4))
            found["prefetched"].append(recorded.count(True) / len(recorded))
        with torch.no_grad():  # the trace of what is gathered is complete then, and cached
            for _ in range(3):
                model(torch.randn(2, 4))
        found["gpus"].append(asked[len(set_up) :])
        one_gpu.close()
        found["local_rank"] = os.environ["LOCAL_RANK"]
        from deepspeed.runtime.zero import parameter_offload

        assert model in parameter_offload.FWD_MODULE_STACK, "nothing to forget: no proof"
        parts = [library.part_of(p) for p in model.parameters()]
        library.forget(engine, model)
        held = [*model.parameters(), *parts]
        found["bytes_when_forgotten"] = sum(t.untyped_storage().nbytes() for t in held)
        found["waits_when_forgotten"] = model in parameter_offload.FWD_MODULE_STACK
        (out / f"rank-{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
