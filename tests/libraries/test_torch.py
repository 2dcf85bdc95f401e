"""What salsa_dist/libraries/torch.py assumes."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist

from salsa_dist.libraries.torch import abort_groups, forget_hooks, quiet_barriers


def test_aborted_groups_are_gone() -> None:
    for _ in range(2):  # another can be made after it
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        dist.new_group([0])
        abort_groups()
        assert not dist.is_initialized()


def test_a_barrier_says_nothing_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: torch takes this process for one with an accelerator, and waits for no other."""
    if "under current context" not in inspect.getsource(dist.barrier):
        pytest.skip("a release that says nothing of it")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda: gpu)
    monkeypatch.setattr(dist.distributed_c10d, "_get_object_coll_device", lambda group: "cuda")
    monkeypatch.setattr(dist.ProcessGroup, "barrier", lambda group, opts: None)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            dist.barrier()
            assert len(told) == 1  # else there is nothing to hold back any more
            quiet_barriers()
            dist.barrier()
            assert len(told) == 1
    finally:
        dist.destroy_process_group()


def test_hooks_are_forgotten() -> None:
    model, ran = torch.nn.Sequential(torch.nn.ReLU()), []
    model[0].register_forward_hook(lambda *_: ran.append("behind"))
    model[0].register_forward_pre_hook(lambda *_: ran.append("before"))
    forget_hooks(model)
    model(torch.zeros(1))
    assert ran == []


@pytest.mark.parametrize("asked", [None, "3"])
def test_kernels_are_compiled_in_this_process(asked: str | None) -> None:
    """transformers imports the compiler's settings long before a kernel is asked for."""
    code = (
        "import transformers.modeling_utils, torch\n"
        "from salsa_dist.placement.compiled_layers import prepare_compiler\n"
        "prepare_compiler(torch.device('cpu'))\n"
        "print(torch._inductor.config.compile_threads)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_COMPILE_THREADS"}
    environment |= {} if asked is None else {"TORCHINDUCTOR_COMPILE_THREADS": asked}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == (asked or "1"), done.stderr
