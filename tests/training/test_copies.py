"""The next batch is on its way to the device while one is computed."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from salsa_dist.speech_llms.batch import AdapterBatch, SharedAudio
from salsa_dist.training.batches import StepShare
from salsa_dist.training.copies import CopiesAhead, with_next


def batch(key: str, shared: bool = False) -> AdapterBatch:
    numbers = torch.zeros(1, dtype=torch.int64)
    audio = {"audio": torch.zeros(1, 2)}
    clips = SharedAudio((key,), audio, numbers, numbers, numbers)
    return AdapterBatch(
        *([key], audio, numbers.bool(), numbers, numbers, {"llm": numbers}, clips if shared else None)
    )


def share(*keys: str) -> StepShare:
    return StepShare([batch(key) for key in keys], 0, [], 0, 0.0, 0.0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a device that is not there is asked, in order."""
    said: list[str] = []
    main = SimpleNamespace(wait_stream=lambda side: said.append(f"main waits for {side}"))

    @contextmanager
    def stream(side: str) -> Any:
        said.append("copy")
        yield

    module = SimpleNamespace(Stream=lambda device: "side", current_stream=lambda device: main)
    module.stream = stream
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    recorded = lambda tensor, stream: said.append("held") if stream is main else None  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", recorded)
    return said


def test_a_copy_is_waited_for_before_the_next_one_begins(told: list[str]) -> None:
    copies = CopiesAhead(torch.device("meta"), torch.bfloat16)
    first, second, other = batch("a"), batch("b", shared=True), batch("c")
    got = copies.on_device(first, second)
    assert told == ["copy", "main waits for side", *["held"] * 5, "copy"]
    assert (got.keys, got.inputs["audio"].device.type) == (["a"], "meta")
    assert (got.inputs["audio"].dtype, got.labels.dtype) == (torch.bfloat16, torch.int64)
    told.clear()
    got = copies.on_device(second, None)
    assert told == ["main waits for side", *["held"] * 6]  # it was copied before
    assert got.shared is not None
    assert got.shared.inputs["audio"].device.type == "meta"
    # A pass that was out of memory is made again in other batches.
    copies.on_device(first, second)
    told.clear()
    assert copies.on_device(other, None).keys == ["c"]
    assert told[:2] == ["copy", "main waits for side"]


def test_on_the_cpu_nothing_is_copied_and_nothing_is_asked_for_ahead() -> None:
    copies, own = CopiesAhead(torch.device("cpu"), torch.bfloat16), batch("a")
    assert copies.on_device(own, None) is own
    asked = []

    def shares() -> Any:
        for key in "abc":
            asked.append(key)
            yield share(key, f"{key}2")

    assert [(s.batches[0].keys, n) for s, n in with_next(shares(), ahead=False)] == [
        (["a"], None),
        (["b"], None),
        (["c"], None),
    ]
    asked.clear()
    found = with_next(shares(), ahead=True)
    _, following = next(found)
    assert (asked, following and following.keys) == (["a", "b"], ["b"])
    assert [n and n.keys for _, n in found] == [["c"], None]


def test_what_is_copied_is_pinned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    own = share("a", "b")
    own = replace(own, batches=[batch("a", shared=True), own.batches[1]])
    again = own.pin_memory()
    moved = [t for one in own.batches for t in one.tensors()]
    assert {id(t) for t in pinned} == {id(t) for t in moved}
    assert [one.keys for one in again.batches] == [["a"], ["b"]]
