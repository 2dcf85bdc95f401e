"""A GPU that is not there, for finding what would fail or wait on one.

    device = pretend_gpu.device()
    with Watched() as seen:                        on this thread, backward passes included
        x = torch.ones(3, device=device)
        x + torch.ones(3)                          OtherDevice: aten.add.Tensor …
        x.sum().item()                             seen.waits: {"aten._local_scalar_dense at …": 1}

A tensor of the device has its numbers in a CPU tensor. The rules are CUDA's: all tensors of an
operation lie on one device, but for single CPU numbers and CPU indices; only copies cross. The host
waits where a number or a shape depends on what the device computes, and for a copy that is not asked
to be non-blocking. Streams, kernels and collectives of a GPU are not pretended.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
COPIES = {"aten._to_copy.default", "aten.copy_.default"}
# Their first tensor is taken or set at places that may lie on the CPU.
AT_PLACES = {
    "aten.index.Tensor",
    "aten._unsafe_index.Tensor",
    "aten.index_put.default",
    "aten.index_put_.default",
    "aten._index_put_impl_.default",
}
# They take lengths from the CPU.
WITH_LENGTHS = {"aten._ctc_loss.Tensor", "aten._ctc_loss_backward.Tensor"}
# A number, or a shape, that only the device knows.
ASKS = {
    "aten._local_scalar_dense.default",
    "aten.equal.default",
    "aten.is_nonzero.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten.repeat_interleave.Tensor",
    "aten._unique2.default",
    "aten.unique_dim.default",
    "aten.unique_consecutive.default",
    "aten.bincount.default",
}


class OtherDevice(RuntimeError):
    """An operation on tensors of two devices."""


class OnGpu(torch.Tensor):
    """A tensor of the pretended GPU.

    Attributes:
        numbers: the same on the CPU.
    """

    numbers: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            *(cls, numbers.shape, numbers.stride(), numbers.storage_offset()),
            dtype=numbers.dtype,
            device=device(),
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise OtherDevice(f"numpy() of a GPU's tensor at {place()}")

    def record_stream(self, stream: object) -> None:
        pass

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise OtherDevice(f"a GPU's tensor as an array at {place()}")

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"


class Rules(TorchDispatchMode):
    """Operations that have no tensor yet, such as `torch.ones(3, device=…)`, are computed here too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


class Watched:
    """Holds what is computed on this thread to the rules, and counts.

    Attributes:
        waits: how often the host waited, by operation and place in the code.
        launched: operations on the device.
        sent: bytes copied to the device.
    """

    now: ClassVar[Watched | None] = None

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.launched = 0
        self.sent = 0

    def __enter__(self) -> Watched:
        Watched.now = self
        # torch.tensor(…, device=…) sends its numbers by an operation that is seen.
        torch._C._set_only_lift_cpu_tensors(True)
        # Backward runs on this thread then, not on one for the device.
        self._own_thread = torch.autograd.set_multithreading_enabled(False)
        self._own_thread.__enter__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(torch, "tensor", _from_numbers)
        self.rules = Rules()
        self.rules.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.rules.__exit__(*error)
        self._patch.undo()
        self._own_thread.__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        Watched.now = None

    def wait(self, name: str) -> None:
        self.waits[f"{name} at {place()}"] += 1


_tensor = torch.tensor


def _from_numbers(data: Any, *args: Any, **kwargs: Any) -> Any:
    """`torch.tensor`, which asks the device for each of its numbers in a list."""
    return _tensor(tree_map(lambda t: t.item() if isinstance(t, OnGpu) else t, data), *args, **kwargs)


def operate(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute `func` on the CPU, by the rules of the device."""
    name, kwargs = str(func), dict(kwargs)
    # What autograd would have taken apart comes whole where gradients are off for good.
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Watched.now.rules if Watched.now else nullcontext():
            return func.decompose(*args, **kwargs)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    here = [t for t in tensors if isinstance(t, OnGpu)]
    asked = kwargs.get("device")
    to_gpu = asked is not None and torch.device(asked).type == NAME
    if not here and not to_gpu:
        return func(*args, **kwargs)
    if to_gpu:
        kwargs["device"] = torch.device("cpu")
    _check(name, args, here, [t for t in tensors if not isinstance(t, OnGpu)])
    if (seen := Watched.now) is not None:
        seen.launched += 1
        given = args[name == "aten.copy_.default"] if name in COPIES else None
        if isinstance(given, torch.Tensor) and not isinstance(given, OnGpu):
            seen.sent += given.nbytes
        if _waits(name, args, kwargs, to_gpu):
            seen.wait(name)
    on_cpu = tree_map(lambda t: t.numbers if isinstance(t, OnGpu) else t, (list(args), kwargs))
    if name == "aten.histc.default":  # of whole numbers, which a GPU counts and a CPU does not
        on_cpu[0][0], kind = on_cpu[0][0].float(), on_cpu[0][0].dtype
        found = func(*on_cpu[0], **on_cpu[1]).to(kind)
    else:
        found = func(*on_cpu[0], **on_cpu[1])
    stays = isinstance(args[0], OnGpu) if name == "aten.copy_.default" else to_gpu or asked is None
    if not stays:
        return found
    # What is written in place comes back as the tensor that it was.
    known = {id(t.numbers): t for t in here}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, OnGpu):
            return value
        return known[id(value)] if id(value) in known else OnGpu(value)

    return tree_map(wrapped, found)


def _check(
    name: str, args: Sequence[Any], here: Sequence[OnGpu], others: Sequence[torch.Tensor]
) -> None:
    """Refuse tensors of two devices in one operation."""
    if not here or name in COPIES | WITH_LENGTHS:
        return
    if name in AT_PLACES and isinstance(args[0], OnGpu):
        others = [t for t in args[2:3] if isinstance(t, torch.Tensor) and not isinstance(t, OnGpu)]
    wrong = [t for t in others if t.ndim > 0 or name.startswith("c10d") or name in AT_PLACES]
    wrong = [t for t in wrong if t.ndim > 0 or not isinstance(args[0], OnGpu)]
    if wrong:
        shapes = [tuple(t.shape) for t in wrong]
        raise OtherDevice(f"{name}: a tensor of the CPU, {shapes}, beside a GPU's at {place()}")


def _waits(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], to_gpu: bool) -> bool:
    """Whether the host waits for the device."""
    if name == "aten._to_copy.default":
        crosses = isinstance(args[0], OnGpu) != (to_gpu or kwargs.get("device") is None)
        return crosses and not (to_gpu and kwargs.get("non_blocking"))
    if name == "aten.copy_.default":
        to_gpu = isinstance(args[0], OnGpu)
        crosses = to_gpu != isinstance(args[1], OnGpu) and args[1].ndim > 0
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return crosses and (blocking or not to_gpu)
    if name in AT_PLACES:
        indices = [t for t in args[1] if t is not None]
        # A mask is counted first, and an index on the CPU is sent over.
        return any(t.dtype in (torch.bool, torch.uint8) or not isinstance(t, OnGpu) for t in indices)
    if name == "aten.repeat_interleave.Tensor":
        return kwargs.get("output_size") is None
    return name in ASKS


def place() -> str:
    """The innermost line that runs, of the package or of the library that has the models."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        for package in ("salsa_dist", "transformers"):
            _, found, rest = frame.f_code.co_filename.rpartition(f"/{package}/")
            if found:
                return f"{package}/{rest}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"


@cache
def device() -> torch.device:
    """The device; registered on the first call, and there for good."""

    class Module(backend_registration._DummyBackendModule):
        """What torch asks of a device: one stream, on which everything happens at once."""

        Stream = staticmethod(lambda device=None: _Stream())
        current_stream = staticmethod(lambda device=None: _Stream())
        stream = staticmethod(nullcontext)

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    return torch.device(NAME, 0)


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        pass


def to_gpu(model: torch.nn.Module) -> Callable[[], None]:
    """Move `model` to the device; returns what moves it back.

    It is loaded before: its library asks a device for more than this one knows while it does.
    """
    on_gpu: dict[int, Any] = {}
    places = [
        (held, name, tensor)
        for module in model.modules()
        for held in (module._parameters, module._buffers)
        for name, tensor in held.items()
        if tensor is not None
    ]
    for held, name, tensor in places:
        if id(tensor) not in on_gpu:
            own = OnGpu(tensor.detach())
            frozen = isinstance(tensor, torch.nn.Parameter)
            on_gpu[id(tensor)] = torch.nn.Parameter(own, tensor.requires_grad) if frozen else own
        held[name] = on_gpu[id(tensor)]

    def back() -> None:
        for held, name, tensor in places:
            held[name] = tensor

    return back


@contextmanager
def moved(model: torch.nn.Module) -> Iterator[None]:
    """`model` lies on the device until the block ends."""
    back = to_gpu(model)
    try:
        yield
    finally:
        back()
