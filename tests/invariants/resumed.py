"""Runs that are stopped at a checkpoint, for the matrix of `test_resume_matrix.py`.

torchrun --nproc_per_node 2 resumed.py CONFIG …                go on with each config's run to its end
torchrun --nproc_per_node 2 resumed.py --stop STEP CONFIG …    begin each, stop after that checkpoint
torchrun --nproc_per_node 2 resumed.py --kill STEP CONFIG      the same, by SIGKILL
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from salsa_dist import load_config, train
from salsa_dist.config import Config


class Killed(Exception):
    pass


@contextmanager
def after_checkpoint(run: Path, step: int, do: Callable[[], None]) -> Iterator[None]:
    """`do` once, in the first pass through the base after the state before `step` is saved."""
    waiting = [do]

    def look(module: Any, args: Any) -> None:
        whole = type(module).__name__ == "WhisperForConditionalGeneration"
        if whole and waiting and (run / "state" / f"step-{step:08d}.safetensors").exists():
            waiting.pop()()

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def killed(config: Config, step: int) -> None:
    """Train until the first pass after a checkpoint, and no further: nothing more is saved."""

    def kill() -> None:
        raise Killed

    try:
        with after_checkpoint(config.run, step, kill):
            train(config)
    except Killed:
        assert not (config.run / "adapters").exists()
    else:
        raise AssertionError(f"{config.run} was not killed at step {step}")


def main(words: list[str]) -> None:
    how = {"--stop": signal.SIGTERM, "--kill": signal.SIGKILL}.get(words[0])
    step = int(words[1]) if how else None
    for path in words[2:] if how else words:
        config = load_config(path)
        if step is None or how is None:
            assert train(config).finished
        else:
            with after_checkpoint(config.run, step, partial(os.kill, os.getpid(), how)):
                assert not train(config).finished


if __name__ == "__main__":
    main(sys.argv[1:])
