"""DeepSpeed's ZeRO-3 for a frozen base. Only this file imports DeepSpeed.

    with on_own_device():                              as long as the model is partitioned
        keep = part_keeper(deepspeed, group, settings)     partitions a weight over the ranks of a group
        deepspeed.initialize(model=…, config=settings)     hooks that gather and release weights

DeepSpeed adds attributes `ds_…` to a partitioned weight.
"""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def start_deepspeed() -> Any:
    """Import DeepSpeed and join it to torch's process group.

    Assumes that `deepspeed.ops.__compatible_ops__` decides which operations DeepSpeed compiles. On a
    CPU it would compile a collective for minutes.

    Seen: DeepSpeed 0.19.8.
    Else: the first start on a CPU takes about two minutes longer and needs a C++ compiler.
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


@contextmanager
def on_own_device() -> Iterator[None]:
    """Inside the block, DeepSpeed takes the GPU on which this process computes.

    A process that sees one GPU alone, as of `srun --gpus-per-task 1`, computes on number 0, whatever
    its rank on the node.

    Assumes that `zero.Init`, `initialize` and, in passes, what compares the ranks' modules take the GPU
    whose number is in LOCAL_RANK.

    Seen: DeepSpeed 0.19.8.
    Else: 'invalid device ordinal' where ranks of a node see one GPU each.
    Test: test_deepspeed_takes_the_device_that_a_variable_names
    """
    own = os.environ["LOCAL_RANK"]  # `start_deepspeed` has set it where no launcher did
    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
    try:
        yield
    finally:
        os.environ["LOCAL_RANK"] = own


def part_keeper(deepspeed: Any, group: Any, settings: dict[str, Any]) -> Callable[[nn.Parameter], None]:
    """A function that partitions a parameter over the ranks of `group`.

    `zero.Init` would first copy each whole parameter to the device, and then send it from the group's
    first rank to the other ranks. Here every rank has read its own partition into the CPU's memory:
    only that is copied, and nothing is sent.

    Assumes that `zero.Init` leaves `torch.nn.functional.linear` alone if `memory_efficient_linear` is
    off (`FrozenLinear` keeps less), that `_convert_to_deepspeed_param` and `param.partition()` copy
    elements [r*n, (r+1)*n) on rank r of k, n = ceil(elements / k), from where the parameter lies to the
    device of the partitions, and that a parameter is gathered onto the device on which it lies then.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError before training, or wrong weights, which the comparison of the loaded
        weights detects.
    Test: test_a_rank_keeps_one_run_of_elements_and_sends_none
    """

    class Cut(deepspeed.zero.Init):
        def keep(self, param: nn.Parameter) -> None:
            self._convert_to_deepspeed_param(param)
            param.partition()  # type: ignore[attr-defined]
            param.data = torch.empty(0, dtype=param.dtype, device=self.local_device)

    settings["zero_optimization"]["memory_efficient_linear"] = False
    # The precision comes from the settings. On devices without fp16, such as the CPU, DeepSpeed 0.19.8
    # ignores an argument `dtype`: partitions of an fp32 base would be stored in bf16 on disk.
    keep: Callable[[nn.Parameter], None] = Cut(
        module=nn.Module(), data_parallel_group=group, config_dict_or_path=settings
    ).keep
    return keep


def true_shape(weight: Tensor) -> torch.Size:
    """The shape of a whole weight, even if this rank has only a partition of it.

    Assumes that a partitioned weight is empty between uses and has its shape in `ds_shape`.

    Seen: DeepSpeed 0.19.8.
    Else: the run ends because the widths of sites are unknown.
    Test: test_a_partitioned_weight_knows_its_shape_and_its_part
    """
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return shape


def part_of(weight: Tensor) -> Tensor:
    """This rank's partition of a weight, padded to the same length on all ranks.

    Assumes that `ds_tensor` is the partition. If it is offloaded, its own length may be 0, and
    `ds_tensor.ds_numel` is the true length.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError before training.
    Test: test_a_partitioned_weight_knows_its_shape_and_its_part
    """
    part: Tensor = weight.ds_tensor  # type: ignore[attr-defined]
    return part


def owner_of(weight: Tensor) -> Any:
    """The partitioned parameter that a weight is, or is a view of (one expert's); None: it is neither.

    Assumes that partitioned parameters, and only these, have a `ds_id`.

    Seen: DeepSpeed 0.19.8.
    Else: the base is whole on every rank from forward to backward.
    Test: test_a_linear_layer_keeps_neither_weight_nor_input
    """
    owner = weight if weight._base is None else weight._base
    return owner if hasattr(owner, "ds_id") else None


@contextmanager
def gathered(weight: Any) -> Iterator[None]:
    """Gather a partitioned weight, unless it is, and release it again then.

    Assumes that a partitioned weight has methods `all_gather` and `partition`. Backward hooks gather
    what a module's own layers need before: this is for what is called from elsewhere.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError in the first backward pass.
    Test: test_a_linear_layer_keeps_neither_weight_nor_input
    """
    absent = not is_gathered(weight)
    if absent:
        weight.all_gather()
    try:
        yield
    finally:
        if absent:
            weight.partition()


def stays_whole(weight: Tensor) -> bool:
    """Whether a partitioned weight is so small that every rank keeps it whole.

    Assumes that `ds_persist` marks small weights.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError before training.
    Test: test_small_weights_stay_whole
    """
    return bool(weight.ds_persist)  # type: ignore[attr-defined]


def is_gathered(weight: Tensor) -> bool:
    """Whether a partitioned weight is gathered on this rank now.

    Assumes that `ds_status` is NOT_AVAILABLE until the weight is gathered.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError at the first measured step.
    Test: test_a_fetch_gathers_and_is_seen
    """
    return bool(weight.ds_status.name != "NOT_AVAILABLE")  # type: ignore[attr-defined]


def release_leftovers(hooks: Any) -> None:
    """Release weights that the backward pass left gathered: those of modules with no input gradient.

    Assumes that the engine's `optimizer` has `release_backward_leftovers` if no optimizer is
    configured.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError at the first step. Without this call, the base would stay whole on every
        rank.
    Test: test_what_backward_left_gathered_is_released
    """
    hooks.release_backward_leftovers()


def forget(engine: Any, model: nn.Module) -> None:
    """Remove the hooks of a model and free its weights, with this rank's partitions.

    Assumes that `engine.destroy()` removes the hooks, that `FWD_MODULE_STACK` has a reference to the
    model, and that the cache of the coordinator's `__params_to_release` has references to modules.

    Seen: DeepSpeed 0.19.8.
    Else: the weights are freed anyway, and the model's empty modules stay in memory.
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
    """The object whose `fetch_sub_module` gathers the weights of a module before the module runs.

    Assumes that the hooks look up `fetch_sub_module` at each call, so that it can be wrapped.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError at the first measured step, or a measurement of 0 gathered bytes.
    Test: test_a_fetch_gathers_and_is_seen
    """
    return hooks.get_param_coordinator()


@contextmanager
def one_pass(hooks: Any) -> Iterator[None]:
    """Let all calls of the model inside the block, and the backward pass after them, be one pass.

    DeepSpeed prefetches by the order of modules, which it records from one call of the model to the
    next. Two calls with one backward pass would each break the other's record.

    Assumes that a hook before the model's forward looks up `reset_step` of the coordinator at each
    call, and that a pass begins there.

    Seen: DeepSpeed 0.19.8.
    Else: an AttributeError at the first pass with shared clips, or nothing is prefetched in them.
    Test: test_two_calls_in_one_pass_are_prefetched
    """
    coordinator = hooks.get_param_coordinator()
    coordinator.reset_step()
    coordinator.reset_step = lambda: None
    try:
        yield
    finally:
        del coordinator.reset_step  # the class's own is seen again


def why_no_async_io() -> str | None:
    """Why DeepSpeed cannot compile its disk reader here; None: it can.

    Assumes that `AsyncIOBuilder().is_compatible()` looks for libaio, and that compiling needs a C++
    compiler: `c++`, or the one in the variable CXX.

    Seen: DeepSpeed 0.19.8.
    Else: DeepSpeed raises its own error some minutes later.
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
