"""Parts of the base that lie in files between uses give the gradients of a base in memory."""

import json
import os
from pathlib import Path
from typing import Any

import disk_ranks
import pytest
from ranks import run_ranks
from tiny import make_base

from salsa_dist.libraries.deepspeed import why_no_async_io

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(why_no_async_io() is not None, reason="libaio-dev or g++ is missing here"),
    pytest.mark.timeout(1500),
]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each of two ranks found, sharing a copy and with one each."""
    out = tmp_path_factory.mktemp("disk")
    # Wide enough that halves of its matrices are large for DeepSpeed too.
    base = make_base(
        out / "base",
        d_model=512,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        encoder_layers=2,
        decoder_layers=2,
    )
    # The first time DeepSpeed compiles its file reader, some minutes.
    path = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    }
    done = run_ranks(2, disk_ranks.__file__, base, out, folder=out, env=path, timeout_s=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"rank{r}.json").read_text()) for r in range(2)]


@pytest.mark.parametrize("kind", [0, 1], ids=["full", "replicate"])
def test_a_base_on_disk_gives_the_same_gradients(kind: int, two_ranks: list[Any]) -> None:
    for found in (rank[kind] for rank in two_ranks):
        assert found["apart"] < 1e-5
        assert found["parts_on_disk"] == found["files"] >= 8
        assert found["bytes_in_files"] >= found["bytes_of_them"] >= found["parts_on_disk"] << 20
        # What is on disk is no longer in memory: DeepSpeed leaves one number in place of each part.
        assert found["still_in_memory"] == found["parts_on_disk"]
        assert found["resident"] == found["buffers"]
