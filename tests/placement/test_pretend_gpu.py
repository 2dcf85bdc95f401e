"""Every family and whole runs on a GPU that is not there: no operation on two devices, few waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conformance import apart, clips, random_bank
from pretend_gpu import OnGpu, OtherDevice, Watched, device, moved, to_gpu
from tiny import make_config, make_shards
from tiny_ctc import CTC
from tiny_families import FAMILIES
from torch import Tensor

from salsa_dist.config import BaseConfig, PlacementConfig, load_config
from salsa_dist.evaluation.run import evaluate
from salsa_dist.placement.decode import generate
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.loading import load_base
from salsa_dist.placement.ranks import Ranks
from salsa_dist.run import session as sessions
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.training import loop, silence_stride
from salsa_dist.training.average import Average
from salsa_dist.training.loss import token_losses
from salsa_dist.training.optimizer import PackedAdam, Schedule

MAKERS = FAMILIES | CTC
TOKENS = 4
# Most waits of a pass, forward and backward, that are the package's own. A shared one asks for rows.
OWN_WAITS = {"plain": 0, "checkpointed": 0, "shared": 1}
OWN_WAITS_OF_CTC = 5
# The same with those inside transformers' models, and of decoding four clips of four tokens each.
WAITS = {
    name: dict(zip((*OWN_WAITS, "decoding"), limits, strict=True))
    for name, limits in {
        "whisper": (1, 1, 3, 63),
        "qwen2_audio": (7, 7, 14, 27),
        "qwen3_asr": (24, 30, 58, 45),
        "granite_speech": (6, 6, 12, 30),
        "qwen2_5_omni": (17, 23, 32, 38),
        "qwen3_omni": (27, 33, 64, 48),
        "glm_asr": (5, 5, 10, 26),
        "audioflamingo3": (6, 6, 12, 26),
        "voxtral": (3, 3, 7, 25),
        "wav2vec2": (7, 7, 0, 5),
        "hubert": (5, 5, 0, 3),
        "parakeet_ctc": (5, 5, 0, 3),
        "omniasr_ctc": (6, 6, 0, 4),
    }.items()
}


def waits(run: Callable[[], Any]) -> int:
    with Watched() as seen:
        run()
    return sum(seen.waits.values())


def test_what_two_devices_have_is_refused_and_waits_are_counted() -> None:
    numbers, places = torch.ones(3, 4), torch.tensor([0, 2])
    x, there = OnGpu(numbers), OnGpu(places)
    assert x.device == (x + 1).device == device()
    assert torch.equal((x + torch.tensor(2.0)).cpu(), numbers + 2)  # a single number may come along
    for wrong in (
        lambda: x + numbers,
        lambda: numbers + x,
        lambda: torch.cat([x, numbers]),
        lambda: numbers[there],
        lambda: x.index_put((there,), numbers[places]),
        lambda: torch.nn.functional.embedding(places, x),
        lambda: x.numpy(),
    ):
        with pytest.raises(OtherDevice, match=" at a test"):
            wrong()
    for once in (
        lambda: x.sum().item(),
        lambda: x.cpu(),
        lambda: x.tolist(),
        lambda: bool((x > 0).all()),
        lambda: x[x > 0],
        lambda: x[places],
        lambda: torch.tensor([1.0], device=device()),
        lambda: torch.zeros(2, device=device()).copy_(torch.ones(2)),
    ):
        assert waits(once) == 1
    for never in (
        lambda: torch.ones(2).to(device(), non_blocking=True),
        lambda: torch.where(x > 0, x, 0).softmax(-1) @ x.T,
        lambda: x[there],
        lambda: (x > 0).nonzero_static(size=12),
    ):
        assert waits(never) == 0


@pytest.fixture(scope="module", params=list(MAKERS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> SpeechLLM:
    torch.set_num_threads(1)
    return load_speech_llm(MAKERS[family](tmp_path_factory.mktemp(family) / "base"))


@dataclass(frozen=True)
class Step:
    gradients: dict[str, Tensor]
    waits: Counter[str]
    texts: list[str]
    decoding_waits: Counter[str]


def step_of(base: SpeechLLM, form: str, seen: Watched | None = None) -> Step:
    """A step of three adapters, and transcripts where the form is plain."""
    where = torch.device("cpu") if seen is None else device()
    heard, bank = clips(base), random_bank(base, ["salsa", "add", "salsa"], where=where)
    if form == "shared":
        pairs = [replace(clip, row=row) for clip in heard for row in (0, 1)]
        batch = base.family.shared_batch(pairs, heard)
    else:
        batch = base.family.training_batch(heard)
    placement, ranks = PlacementConfig(kind="replicate"), Ranks(0, 1, 0, 1, where)
    waits: Counter[str] = Counter() if seen is None else seen.waits
    with FrozenBase(base, bank, ranks, placement, form == "checkpointed") as placed:
        batch = batch.to(where, placed.dtype)
        waits.clear()
        token_losses(placed, batch).sum().backward()
        placed.after_backward()
        of_step = Counter(waits)
        waits.clear()
        texts = [t.text for t in generate(placed, heard, TOKENS)] if form == "plain" else []
    gradients = {site: v.grad for site, v in bank.vectors.items() if v.grad is not None}
    return Step(gradients, of_step, texts, Counter(waits))


def own(waits: Counter[str]) -> Counter[str]:
    """Those in the package, not in the models."""
    return Counter({what: n for what, n in waits.items() if " at salsa_dist/" in what})


@pytest.mark.parametrize("form", list(OWN_WAITS))
def test_a_step_of_each_family_is_that_of_the_cpu(base: SpeechLLM, family: str, form: str) -> None:
    if form == "shared" and family in CTC:
        pytest.skip("encoders with CTC have no shared pass")
    on_cpu = step_of(base, form)
    with Watched() as seen, moved(base.model):
        on_gpu = step_of(base, form, seen)
    for site, gradient in on_cpu.gradients.items():
        found = on_gpu.gradients[site]
        assert isinstance(found, OnGpu)
        assert apart(found.numbers, gradient) < 1e-5, site
    assert on_gpu.texts == on_cpu.texts
    most = OWN_WAITS_OF_CTC if family in CTC else OWN_WAITS[form]
    assert own(on_gpu.waits).total() <= most, own(on_gpu.waits)
    limits = WAITS.get(family, {})
    assert on_gpu.waits.total() <= limits.get(form, 64), on_gpu.waits
    assert on_gpu.decoding_waits.total() <= limits.get("decoding", 64), on_gpu.decoding_waits


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Sessions in this process have their base and their vectors on the device."""
    seen = Watched()

    @contextmanager
    def join(*_: Any) -> Iterator[Ranks]:
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        try:
            with seen:
                yield Ranks(0, 1, 0, 1, device())
        finally:
            dist.destroy_process_group()

    def load(
        config: BaseConfig, ranks: Ranks, placement: PlacementConfig, say: Any, stride: int = 1
    ) -> SpeechLLM:
        made = load_base(config, Ranks(0, 1, 0, 1, torch.device("cpu")), placement, say, stride)
        to_gpu(made.model)
        return made

    monkeypatch.setattr(sessions, "join", join)
    monkeypatch.setattr(sessions, "load_base", load)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "pretended")
    return seen


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards") / "few", train=8, held_out=2, per_shard=2)


# Most waits of a step that are the package's own, and the run. Two are for the sums over all ranks and
# for the norms; where adapters share clips, one more a pass for its rows.
TWO = "adapters=[{name: a, language: bg}, {name: b, language: bg, lr: 0.1}]"
LATE = "steering.sites=encoder:last-half+llm"
RUNS = {
    "plain": (2, ["training.silence_stride=auto"]),
    "shared": (
        *(2 + 3,),
        [
            *(TWO, LATE, "base.dtype=bfloat16", "training.micro_batch=4"),
            *("training.activation_checkpointing=true", "training.silence_stride=4"),
        ],
    ),
    "halving": (
        *(2 + 2,),
        [
            *(TWO, LATE, "training.prefix_cache=memory", "training.dev_clips=2"),
            "training.halving={rungs: [3], metric: cer}",
        ],
    ),
    "lora": (5, ["method.kind=lora"]),
}


@pytest.mark.parametrize("kind", list(RUNS))
def test_a_run_waits_for_the_device_as_often_as_it_says(
    kind: str,
    on_gpu: Watched,
    tiny_base: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_steps: list[Counter[str]] = []
    record = loop.record_step

    def noted(*args: Any) -> None:
        record(*args)
        of_steps.append(Counter(on_gpu.waits))
        on_gpu.waits.clear()

    followed: list[torch.device] = []
    monkeypatch.setattr(loop, "record_step", noted)
    monkeypatch.setattr(sessions, "reached", followed.append)
    monkeypatch.setattr(silence_stride, "CLIPS", 1)  # the time of a pass is that of many
    monkeypatch.setattr(silence_stride, "STRIDES", (8,))
    limit, asked = RUNS[kind]
    short = ["training.steps=4", "training.save_every_s=600"]
    config = load_config(make_config(tmp_path, tiny_base, shards), [*short, *asked])
    assert loop.train(config).finished
    # The first step makes what all need, and the placement is measured on the third.
    found = own(of_steps[1])
    assert found.total() <= limit, found
    assert len(followed) > 4 * 3  # the watchdog follows the device, phase by phase
    assert set(followed) == {device()}
    evaluate(config)
    assert (tmp_path / "run" / "evaluation").is_dir()


def test_averaging_does_not_wait() -> None:
    with Watched() as seen:
        specs = [AdapterSpec(name, ("llm.0", "llm.1"), "add") for name in "ab"]
        bank = Bank(specs, {"llm.0": 4, "llm.1": 4}, device())
        average = Average(PackedAdam(bank, [Schedule(1e-3, 8, 0.0, "none")] * 2, None), 0.9, [[8]] * 2)
        seen.waits.clear()
        average.after_step(0, [0, 1])
        assert not seen.waits
