"""Published checkpoints without weights: every tensor has its place, and the planner's bytes are right.

    skeletons/*.json         what public records say of a checkpoint: config, names, shapes, dtypes
    hollow safetensors       a header with these names, and a file that is all holes
    unfilled, read_shape     read it as a real one

A release of transformers that renames, joins or drops a tensor turns this red.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers_weights import renaming
from salsa_dist.placement.loading import Part
from salsa_dist.planner.base_shape import BaseShape, build_empty, read_shape
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.planner.weight_bytes import resident_bytes
from salsa_dist.speech_llms.inspection import read_config
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.speech_llms.sources import Source
from salsa_dist.speech_llms.unfilled import tensor_of, unfilled
from salsa_dist.speech_llms.weight_files import StoredTensor, refuse_other_weights, stored_tensors

SKELETONS = sorted((Path(__file__).parent / "skeletons").glob("*.json"))
ITEMSIZE = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def expanded(pattern: str) -> list[str]:
    """The names that `layers.{0..31}.{q,k}_proj` stands for."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = []
    for part, choice in zip(parts, [False, True] * len(parts), strict=False):
        first, dots, last = part.partition("..")
        numbers = range(int(first), int(last) + 1) if choice and dots else ()
        choices.append([*map(str, numbers)] or (part.split(",") if choice else [part]))
    return ["".join(words) for words in product(*choices)]


def hollow(skeleton: dict[str, Any], folder: Path) -> Path:
    """A folder with the skeleton's config and a weight file of its names and shapes, all holes."""
    header, end = {}, 0
    for pattern, (dtype, shape) in skeleton["tensors"].items():
        size = torch.Size(shape).numel() * ITEMSIZE[dtype]
        for name in expanded(pattern):
            assert name not in header, f"{name} stands in two patterns"
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    config = {"architectures": [skeleton["class"]], **skeleton["config"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    if "lora" in skeleton:
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    return folder


def as_published(published: dict[str, Any], stored: dict[str, StoredTensor]) -> None:
    """The skeleton's tensors make up what is published of the whole checkpoint."""
    numbers = sum(torch.Size(tensor.shape).numel() for tensor in stored.values())
    assert numbers == published.get("parameters", numbers)
    if billions := published.get("billions"):  # as rounded there
        assert f"{numbers / 1e9:.{len(billions.partition('.')[2])}f}" == billions
    for part, count in published.get("tensors", {}).items():
        assert sum(name.startswith(f"{part}.") for name in stored) == count, part


def by_target(
    model: Any, stored: dict[str, StoredTensor], unread: set[str]
) -> tuple[dict[str, list[StoredTensor]], bool]:
    """What the model's weights and buffers are made of, by name; and whether tensors are joined.

    Args:
        unread: names of stored tensors that no layer of the model has.
    """
    rename = renaming(model)
    assert rename is not None
    targets: dict[str, list[StoredTensor]] = defaultdict(list)
    joined = False
    buffers = model.state_dict()
    assert all(rename(key)[0] not in buffers for key in unread)
    for key in set(stored) - unread:
        tensor = stored[key]
        target, converted = rename(key)
        shape = tuple(tensor_of(model, target).shape)  # an AttributeError names what the model lacks
        assert converted or shape == tensor.shape, f"{key} is {tensor.shape}, {target} is {shape}"
        targets[target].append(tensor)
        joined |= converted
    for target, parts in targets.items():
        numbers = sum(torch.Size(part.shape).numel() for part in parts)
        assert numbers == tensor_of(model, target).numel(), f"{target} of {len(parts)} tensors"
    return targets, joined


def planned(shape: BaseShape, weights: dict[str, int], ranks: int) -> int:
    """Bytes that a rank holds between steps, by hand from the stored tensors.

    Args:
        weights: numbers of each parameter, by its name.
    """
    itemsize = {weight.name: weight.itemsize for weight in shape.weights}
    zero = ds_settings(None, "full", torch.float32)["zero_optimization"]
    whole = zero["stage3_param_persistence_threshold"]
    total = shape.buffer_bytes
    for name, count in weights.items():
        runs = [Part(rank, ranks).run(count) for rank in range(ranks)]
        assert sum(end - begin for begin, end in runs) == count
        assert {begin for begin, _ in runs[1:]} <= {end for _, end in runs}
        part = max(end - begin for begin, end in runs)
        total += (part + (count if count <= whole else 0)) * itemsize[name]
    return total


def bytes_read(source: Source, part: Part) -> int:
    """Bytes of its files that a rank reads for a weight, counted without their data."""
    count = 0

    def counted(self: StoredTensor, begin: int, end: int) -> torch.Tensor:
        nonlocal count
        assert 0 <= begin < end <= self.numel
        count += (end - begin) * self.dtype.itemsize
        return torch.empty(end - begin, dtype=self.dtype)

    with pytest.MonkeyPatch.context() as reader, torch.device("meta"):
        reader.setattr(StoredTensor, "read", counted)
        source.read(*part.run(source.numel))
    return count


@pytest.mark.parametrize("path", SKELETONS, ids=lambda path: path.stem)
def test_every_tensor_of_a_published_checkpoint_has_its_place(path: Path, tmp_path: Path) -> None:
    skeleton = json.loads(path.read_text(encoding="utf-8"))
    folder = hollow(skeleton, tmp_path)
    stored = stored_tensors([folder / "model.safetensors"])
    config = read_config(str(folder), None)
    shape = read_shape(folder)
    as_published(skeleton.get("published", {}), stored)
    assert shape.stored == sum(tensor.bytes for tensor in stored.values())
    assert {word: shape.counts().get(word) for word in ("encoder", "llm")} == skeleton["layers"]

    model = build_empty(config, str(folder), shape.dtype)
    assert type(model).__name__ == skeleton["class"]
    unread = {name for pattern in skeleton.get("unread", ()) for name in expanded(pattern)}
    targets, joined = by_target(model, stored, unread)
    twice = skeleton.get("twice", {})  # of the hollow file both are zero, so transformers ties them
    assert joined == ("joined" in skeleton)
    described = unfilled(type(model), config, str(folder), None, getattr(torch, shape.dtype))
    assert isinstance(described, str) == ("lora" in skeleton)
    if not isinstance(described, str):
        refuse_other_weights(skeleton["name"], described.model, described.loading_info)
        assert not described.loading_info["unexpected_keys"]
        assert set(targets) - set(twice) == set(described.sources)
        loaded = [(n, p.numel(), p.element_size()) for n, p in described.model.named_parameters()]
        assert loaded == [(w.name, w.numel, w.itemsize) for w in shape.weights]
        for source in {s.shape: s for s in described.sources.values() if joined}.values():
            for ranks in (2, 8):
                parts = [Part(rank, ranks) for rank in range(ranks)]
                read = [bytes_read(source, part) for part in parts]
                runs = [part.run(source.numel) for part in parts]
                assert read == [(end - begin) * source.dtype.itemsize for begin, end in runs]

    names = dict(model.named_parameters(remove_duplicate=False))
    tied = skeleton.get("tied", {})
    assert set(names) - set(targets) == set(tied)
    assert all(names[name] is names[source] for name, source in {**tied, **twice}.items())
    weights = {name: names[name].numel() for name in targets if name in names and name not in twice}
    assert sum(weights.values()) == shape.parameters
    for ranks in (2, 8):
        assert resident_bytes(shape, ranks) == planned(shape, weights, ranks)


@pytest.mark.parametrize("read", [load_speech_llm, read_shape])
def test_a_layout_that_transformers_does_not_read_is_refused(read: Any, tmp_path: Path) -> None:
    """Qwen/Qwen3-ASR-1.7B: transformers has its type, would take default sizes and find no weight."""
    sizes = {"audio_config": {"d_model": 1024}, "text_config": {"hidden_size": 2048}}
    config = {"model_type": "qwen3_asr", "thinker_config": sizes}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"such as Qwen/Qwen3-ASR-1\.7B-hf"):
        read(tmp_path)
