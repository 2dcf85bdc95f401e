"""DeepSpeed's ZeRO-3 under a frozen base. The only file that imports DeepSpeed.

    keep = part_keeper(deepspeed, group, settings)     leaves each rank of a group its part of a weight
    deepspeed.initialize(model=…, config=settings)     hooks that gather and release weights

A weight that was partitioned carries what DeepSpeed knows of it in attributes `ds_…`.
"""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def start_deepspeed() -> Any:
    """DeepSpeed's module, imported and joined to torch's process group.

    Assumes that operations which DeepSpeed must not compile can be refused in
    `deepspeed.ops.__compatible_ops__`: on a CPU it would compile a collective for minutes.

    Seen: DeepSpeed 0.19.8.
    Else: the first start on a CPU takes some two minutes longer and wants a C++ compiler.
    Test: test_deepspeed_compiles_no_collective_on_a_cpu
    """
    _choose_accelerator()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even where no launcher was
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed calls torch's collectives by names that torch is about to retire: not for our users.
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    if not torch.cuda.is_available():
        getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    return deepspeed


def part_keeper(deepspeed: Any, group: Any, settings: dict[str, Any]) -> Callable[[nn.Parameter], None]:
    """What leaves a rank of `group` with its part of a parameter.

    `zero.Init` would send each whole parameter from the group's first rank to the others before it
    partitions it. Here every rank has read its own part, so nothing is sent.

    Assumes that `zero.Init` calls its own `_zero_init_param` for each parameter, and that
    `_convert_to_deepspeed_param` and `param.partition()` are what partitions it: elements
    [r*n, (r+1)*n) on rank r of k, n = ceil(elements / k).

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError before training, or weights that differ, which the comparison of what all
        ranks loaded refuses.
    Test: test_a_rank_keeps_one_run_of_elements_and_sends_none
    """

    class Cut(deepspeed.zero.Init):
        def _zero_init_param(self, param: Any) -> None:
            self._convert_to_deepspeed_param(param)
            param.partition()

        def keep(self, param: nn.Parameter) -> None:
            self._convert_to_zero_parameters([param])

    # The precision comes from the settings. An argument `dtype` is overruled where the device has no
    # fp16 (DeepSpeed 0.19.8, on the CPU): parts of an fp32 base would lie on disk in bf16.
    keep: Callable[[nn.Parameter], None] = Cut(
        module=nn.Module(), data_parallel_group=group, config_dict_or_path=settings
    ).keep
    return keep


def true_shape(weight: Tensor) -> torch.Size:
    """The shape of a weight, also where this rank has a part of it only.

    Assumes that a partitioned weight is empty between uses and keeps its shape in `ds_shape`.

    Seen: DeepSpeed 0.19.8.
    Else: widths of sites are refused as unknown.
    Test: test_a_partitioned_weight_knows_its_shape_and_its_part
    """
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return shape


def part_of(weight: Tensor) -> Tensor:
    """This rank's part of a partitioned weight, padded to the length that all ranks have.

    Assumes that the part is `ds_tensor`; where it is offloaded its own length may be 0, and
    `ds_tensor.ds_numel` is the true one.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError before training.
    Test: test_a_partitioned_weight_knows_its_shape_and_its_part
    """
    part: Tensor = weight.ds_tensor  # type: ignore[attr-defined]
    return part


def stays_whole(weight: Tensor) -> bool:
    """Whether a partitioned weight is so small that every rank keeps it whole.

    Assumes that DeepSpeed marks small weights by `ds_persist`.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError before training.
    Test: test_small_weights_stay_whole
    """
    return bool(weight.ds_persist)  # type: ignore[attr-defined]


def is_gathered(weight: Tensor) -> bool:
    """Whether a partitioned weight is whole on this rank now.

    Assumes that `ds_status` is NOT_AVAILABLE until the weight is gathered.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError at the first measured step.
    Test: test_a_fetch_gathers_and_is_seen
    """
    return bool(weight.ds_status.name != "NOT_AVAILABLE")  # type: ignore[attr-defined]


def release_leftovers(hooks: Any) -> None:
    """Release what backward left gathered: modules whose input carries no gradient.

    Assumes that the engine's `optimizer`, without one to build, has `release_backward_leftovers`.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError at the first step: otherwise the base would stay whole on every rank.
    Test: test_what_backward_left_gathered_is_released
    """
    hooks.release_backward_leftovers()


def forget(engine: Any, model: nn.Module) -> None:
    """Take the hooks off a model and free its weights, this rank's parts included; it runs no more.

    Assumes that `engine.destroy()` removes the hooks, that the model waits in `FWD_MODULE_STACK`, and
    that the coordinator's `__params_to_release` has a cache, which holds modules too.

    Seen: DeepSpeed 0.19.8.
    Else: the weights are free all the same, and the model's empty modules stay with the process.
    Test: test_a_model_that_is_forgotten_goes
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    for parameter in model.parameters():
        for held in (parameter, part_of(parameter)):
            held.data = torch.empty(0, dtype=held.dtype)
    stack = getattr(parameter_offload, "FWD_MODULE_STACK", [])
    stack[:] = [module for module in stack if module is not model]
    name = "_PartitionedParameterCoordinator__params_to_release"
    cached: Any = getattr(PartitionedParameterCoordinator, name, None)
    if cached is not None and not hasattr(cached, "cache_clear"):  # a timer is around it
        cached = inspect.getclosurevars(cached).nonlocals.get("func")
    if hasattr(cached, "cache_clear"):
        cached.cache_clear()


def fetching(hooks: Any) -> Any:
    """The object whose `fetch_sub_module` gathers the weights of a module before it runs.

    Assumes that the hooks look up `fetch_sub_module` at each call, so that it can be wrapped.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError at the first measured step, or a step in which nothing was gathered.
    Test: test_a_fetch_gathers_and_is_seen
    """
    return hooks.get_param_coordinator()


def why_no_async_io() -> str | None:
    """Why DeepSpeed can't build here what reads parts from files; None: it can.

    Assumes that `AsyncIOBuilder().is_compatible()` looks for libaio, and that building wants a C++
    compiler, `c++` or what the variable CXX names.

    Seen: DeepSpeed 0.19.8.
    Else: DeepSpeed's own error, minutes later.
    Test: test_what_disk_offload_lacks_is_named
    """
    _choose_accelerator()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return f"it lacks a C++ compiler ({compiler}): install g++ (gcc-c++)"
    if not AsyncIOBuilder().is_compatible(verbose=False):
        return "it lacks libaio's library and header: install libaio-dev (libaio-devel)"
    return None


def _choose_accelerator() -> None:
    """Before DeepSpeed's first import."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
