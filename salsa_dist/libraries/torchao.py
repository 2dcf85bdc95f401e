"""torchao behind its `quantize_`: what it says while transformers imports it."""

from __future__ import annotations

import logging


def quiet() -> None:
    """Hold back torchao's notes on its own import, which transformers does wherever it is installed.

    Assumes that they come through the loggers of `torchao` and, of enumerations that torch now
    registers itself, of `torch.utils._pytree`.

    Seen: torchao 0.18 with torch 2.13.
    Else: some lines are printed at each start.
    Test: test_importing_torchao_says_nothing
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
