"""What salsa_dist/libraries/torchao.py assumes; run by `make quantized`."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torchao")


def test_importing_torchao_says_nothing() -> None:
    code = "from salsa_dist.libraries import torchao; torchao.quiet(); import torchao.quantization"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
