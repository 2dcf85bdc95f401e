"""Times by a GPU's own clock."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from salsa_dist.placement.device_events import Stopwatch, reached


class FakeEvent:
    """Stands for a CUDA event, on a GPU that works for as long as `worked` says."""

    worked = 0.0  # seconds
    waited_for = -1.0  # the host was there when the GPU had worked so long

    def __init__(self, enable_timing: bool) -> None:
        self.timed = enable_timing

    def record(self, stream: object) -> None:
        assert stream == "the stream of cuda:0"
        self.at = FakeEvent.worked

    def synchronize(self) -> None:
        FakeEvent.waited_for = self.at

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.timed
        assert end.at <= FakeEvent.waited_for
        return 1e3 * (end.at - self.at)


def test_with_fake_events_the_gpus_time_counts_and_not_the_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = {"Event": FakeEvent, "current_stream": "the stream of {}".format}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**streams))
    watch = Stopwatch(torch.device("cuda", 0))
    for seconds in (2.0, 0.5):
        FakeEvent.worked += 1  # what is not asked for
        with watch.running():
            FakeEvent.worked += seconds
    assert watch.seconds() == 2.5
    event = reached(torch.device("cuda", 0))
    assert isinstance(event, FakeEvent)
    assert not event.timed


def test_on_a_cpu_the_hosts_time_counts() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch.running():
        time.sleep(0.02)
    assert 0.02 <= watch.seconds() < 5
    assert reached(torch.device("cpu")) is None
