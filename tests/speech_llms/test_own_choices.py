"""Where a base is loaded to, and in which precision, where nobody says so."""

from pathlib import Path

import pytest
import torch
from tiny_families import FAMILIES
from transformers import AutoConfig

from salsa_dist import machine
from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.speech_llms.precision import own_dtype, slowness, warn_if_slow
from salsa_dist.training.workers import own_workers


def test_on_a_gpu_it_is_the_checkpoints_own_precision(tiny_base: Path, tmp_path: Path) -> None:
    model = load_speech_llm(tiny_base, device="cpu").model
    assert model.dtype == torch.float32
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert own_dtype(config, torch.device("cuda")) == torch.bfloat16
    assert own_dtype(config, torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_its_precision(family: str, tmp_path: Path) -> None:
    FAMILIES[family](tmp_path / family)
    config = AutoConfig.from_pretrained(tmp_path / family)
    assert own_dtype(config, torch.device("cuda")) == torch.float32


def test_attention_kernels_are_those_asked_for(tiny_base: Path) -> None:
    loaded = load_speech_llm(tiny_base, device="cpu", attn_implementation="eager")
    assert loaded.model.config._attn_implementation == "eager"
    unread = load_speech_llm(tiny_base, device="cpu", attn_implementation="eager", filled=False)
    assert unread.model.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="can't be loaded"):
        load_speech_llm(tiny_base, device="cpu", attn_implementation="none_such")


def test_workers_come_from_a_ranks_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "none")
    gpu, cpu = (Ranks(0, 8, 0, 8, torch.device(kind)) for kind in ("cuda", "cpu"))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    for given, found in ((64, 6), (12, 6), (6, 4), (2, 1), (1, 0)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, n=given: set(range(n)), raising=False)
        assert own_workers("auto", gpu) == found  # all 64: eight for each of eight ranks
    assert own_workers("auto", cpu) == 0
    assert own_workers(3, gpu) == own_workers(3, cpu) == 3


@pytest.mark.parametrize("bound", [64, 32])
@pytest.mark.parametrize(("quota", "found"), [(31, 2), (16, 1), (8, 0)])
def test_the_ranks_of_a_container_share_its_quota(
    quota: int, found: int, bound: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text("0::/")
    (tmp_path / "cpu.max").write_text(f"{quota}00000 100000")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(bound)), raising=False)
    assert own_workers("auto", Ranks(0, 8, 0, 8, torch.device("cuda"))) == found


@pytest.mark.parametrize(
    ("asked", "kind", "times", "warned"),
    [
        ("bfloat16", "cpu", 8.2, True),
        ("float16", "cpu", 8.2, True),
        ("bfloat16", "cpu", 1.1, False),  # this CPU has instructions for it
        ("float32", "cpu", 8.2, False),
        (None, "cpu", 8.2, False),
    ],
)
def test_slow_half_precision_is_told_once(
    asked: str | None,
    kind: str,
    times: float,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    warn_if_slow.cache_clear()
    monkeypatch.setattr("salsa_dist.speech_llms.precision.slowness", lambda precision: times)
    for _ in range(2):
        warn_if_slow(asked, torch.device(kind), "--dtype float32")
    told = capsys.readouterr().err
    assert told.count("warning: ") == told.count("\n") == warned
    assert not warned or ("take up to 8 times as long" in told and "--dtype float32 is faster" in told)


@pytest.mark.parametrize(("capability", "warned"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_gpu_that_emulates_bfloat16_is_told(
    capability: tuple[int, int],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Played: no GPU is asked."""
    warn_if_slow.cache_clear()
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    warn_if_slow("bfloat16", torch.device("cuda", 0), "base.dtype: float32")
    assert ("Tesla T4 has no instructions for bfloat16" in capsys.readouterr().err) == warned
    warn_if_slow("float16", torch.device("cuda", 0), "base.dtype: float32")
    assert not capsys.readouterr().err


def test_slowness_is_in_units_of_float32() -> None:
    threads = torch.get_num_threads()
    assert 0.2 < slowness(torch.float32) < 5
    assert torch.get_num_threads() == threads
