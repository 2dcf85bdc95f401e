"""The examples in docstrings run as they stand: a base, two adapters and a clip are where they say."""

import doctest
import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import soundfile
import torch
from stand_in_hub import StandInHub
from tiny import make_config

import salsa_dist
from salsa_dist import SteeringVectors, load_config, load_speech_llm
from salsa_dist.log import log
from salsa_dist.steering.attachment import describe

MODULES = sorted(set(salsa_dist._HOME.values()))


@pytest.fixture
def workplace(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandInHub]:
    """A folder with `whisper-base`, `config.yaml`, `runs/demo/adapters/{bg,el}`, `clip.wav`; a hub with
    `user/bg`."""
    make_config(tmp_path, tiny_base, tiny_shards)
    (tmp_path / "whisper-base").symlink_to(tiny_base)
    about = describe(load_speech_llm(tiny_base))
    for seed, name in enumerate(("bg", "el")):
        noise = torch.Generator().manual_seed(seed)
        vectors = {
            f"{c}.{i}": torch.randn(32, generator=noise) for c in ("encoder", "llm") for i in (0, 1)
        }
        made = SteeringVectors(vectors, "add", name=name, language=name, **about)
        made.save(tmp_path / "runs/demo/adapters" / name)
    soundfile.write(
        tmp_path / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000
    )
    monkeypatch.chdir(tmp_path)
    level = log.level
    log.setLevel(logging.WARNING)  # what a command says is no part of an example
    with StandInHub() as hub:
        hub.use(monkeypatch, str(tmp_path / "cache"))
        bg = tmp_path / "runs/demo/adapters/bg"
        hub.put("user/bg", {file.name: file.read_bytes() for file in bg.iterdir()})
        yield hub
    log.setLevel(level)


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [*MODULES, load_config.__module__]
    found = [test for name in modules for test in finder.find(import_module(name))]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_it_runs(example: doctest.DocTest, workplace: StandInHub) -> None:
    said: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(example, out=said.append).failed
    assert not failed, "".join(said)


def test_every_public_method_has_one() -> None:
    shown = {example.name.rpartition(".")[2] for example in examples()}
    found = {getattr(f, "__name__", n): f for n, f in vars(SteeringVectors).items()}
    public = {n for n, f in found.items() if isinstance(f, FunctionType | classmethod) and n[0] != "_"}
    assert sorted(public - shown) == []
    assert "average" in public
    functions = {
        name for name in salsa_dist.__all__ if isinstance(getattr(salsa_dist, name), FunctionType)
    }
    assert sorted(functions - shown) == []
