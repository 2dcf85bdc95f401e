"""A tiny random Moonshine, written as onnxruntime would, comes back with the same weights."""

import contextlib
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_seq2seq import make_moonshine
from transformers import AutoModelForSpeechSeq2Seq

from salsa_dist import load_speech_llm
from salsa_dist.errors import UserError
from salsa_dist.places import cache_folder
from salsa_dist.speech_llms.moonshine_from_ort import convert, main
from salsa_dist.speech_llms.ort_file import read_ort

Fields = dict[int, Any]
TYPES = {torch.float32: 1, torch.int8: 3}
EXPORTED = {"o_proj": "dense"}
EXPORTED_DECODER = {**EXPORTED, "fc1": "up_proj", "fc2": "down_proj"}


def flat(session: Fields) -> bytes:
    """FlatBuffers' bytes of nested tables: numbers, texts, bytes, and lists of them, by slot."""
    out = bytearray(struct.pack("<I4s", 0, b"ORTM"))

    def table(fields: Fields) -> int:
        offsets = [4 + 8 * list(fields).index(s) if s in fields else 0 for s in _slots(fields)]
        out.extend(struct.pack(f"<{2 + len(offsets)}H", 4 + 2 * len(offsets), 0, *offsets))
        at = len(out)
        out.extend(struct.pack("<i", 4 + 2 * len(offsets)) + bytes(8 * len(fields)))
        for number, value in enumerate(fields.values()):
            place = at + 4 + 8 * number
            if isinstance(value, int):
                struct.pack_into("<q", out, place, value)
            else:
                struct.pack_into("<I", out, place, other(value) - place)
        return at

    def other(value: Any) -> int:
        if isinstance(value, dict):
            return table(value)
        at = len(out)
        if isinstance(value, tuple):  # of whole numbers
            out.extend(struct.pack(f"<I{len(value)}q", len(value), *value))
        elif isinstance(value, list):
            out.extend(struct.pack("<I", len(value)) + bytes(4 * len(value)))
            for number, part in enumerate(value):
                place = at + 4 + 4 * number
                struct.pack_into("<I", out, place, other(part) - place)
        else:
            raw = value.encode() if isinstance(value, str) else value
            out.extend(struct.pack("<I", len(raw)) + raw)
        return at

    struct.pack_into("<I", out, 0, table(session))
    return bytes(out)


def _slots(fields: Fields) -> range:
    return range(4, max(fields, default=2) + 2, 2)


class Graph:
    """Initializers, nodes and types, as tables of the schema."""

    def __init__(self) -> None:
        self.tensors: list[Fields] = []
        self.nodes: list[Fields] = []
        self.types: list[Fields] = []
        self.reference: dict[str, torch.Tensor] = {}

    def store(self, name: str, tensor: torch.Tensor) -> str:
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        sizes = tuple(tensor.shape)
        self.tensors.append({4: name, 8: sizes, 10: TYPES[tensor.dtype], 12: raw})
        return name

    def node(self, name: str, operator: str, *inputs: str) -> str:
        self.nodes.append({4: name, 14: operator, 20: list(inputs), 22: [f"{name}_output"]})
        return f"{name}_output"

    def rounded(self, name: str, tensor: torch.Tensor) -> str:
        """int8, scaled back by three nodes; the reference becomes what that gives."""
        scale, zero = tensor.abs().max() / 127, torch.tensor(0.01)
        short = ((tensor - zero) / scale).round().clamp(-128, 127).to(torch.int8)
        self.reference[name] = short.float() * scale + zero
        cast = self.node(f"{name}_cast", "Cast", self.store(f"{name}_quantized", short))
        mul = self.node(f"{name}_mul", "Mul", cast, self.store(f"{name}_scale", scale[None]))
        return self.node(f"{name}_add", "Add", mul, self.store(f"{name}_zero", zero[None]))

    def module(self, path: str, name: str, tensor: torch.Tensor) -> None:
        """The node that has a parameter of the module at `path`."""
        if name.endswith("groupnorm.weight"):
            self.node(f"{path}/Mul", "Mul", "x", self.store(name, tensor[:, None]))
        elif name.endswith("groupnorm.bias"):
            self.node(f"{path}/Add", "Add", "x", self.store(name, tensor[:, None]))
        elif "conv" in name and tensor.dim() == 1:
            return  # with its weight
        elif name.endswith("bias"):
            self.node(f"{path}/Add", "Add", self.store(name, tensor), "x")
        elif tensor.dim() == 1:
            self.node(f"{path}/Mul", "Mul", "x", self.store(name, tensor))
        elif "embed_tokens" in name:
            self.node(f"{path}/Gather", "Gather", self.rounded(name, tensor), "input_ids")
        elif tensor.dim() == 3:
            self.node(f"{path}/Conv", "Conv", "x", self.rounded(name, tensor), f"{name[:-6]}bias")
        else:
            self.node(f"{path}/MatMul", "MatMul", "x", self.rounded(name, tensor.T))
            self.reference[name] = self.reference[name].T

    def heads(self, heads: int, width: int) -> None:
        dims = [{}, {4: {6: heads}}, {}, {4: {6: width}}]
        shape = {8: {6: 1, 8: {4: 1, 6: {4: dims}}}}
        self.types.append({4: "past_key_values.0.decoder.key", **shape})

    def bytes(self, nested: bool) -> bytes:
        graph = {4: self.tensors, 6: self.types, 8: self.nodes}
        if nested:  # as a merged decoder has it: nodes in an `If`, weights outside
            inner = {8: [{4: "if", 14: "If", 24: [{4: "then_branch", 18: {8: self.nodes}}]}]}
            graph |= inner
        return flat({4: "6", 6: {18: graph}})


def exported(base: Path) -> tuple[dict[str, bytes], dict[str, torch.Tensor]]:
    """The two files of a Moonshine, and the weights that they stand for."""
    model = AutoModelForSpeechSeq2Seq.from_pretrained(base)
    encoder, decoder = Graph(), Graph()
    rotary = torch.ones(1, model.model.decoder.rotary_emb.inv_freq.numel(), 1)
    path = "/model/decoder/rotary_emb/MatMul"
    decoder.node(path, "MatMul", decoder.store("inv_freq", rotary), "positions")
    decoder.node("/model/decoder/layers.0/mlp/Mul_1", "Mul", "x", decoder.store("one", torch.ones(1)))
    decoder.heads(2, 16)
    reference = {}
    for name, tensor in model.state_dict().items():
        if name == "proj_out.weight":
            continue
        graph, names = (encoder, EXPORTED) if ".encoder." in name else (decoder, EXPORTED_DECODER)
        module = name.removeprefix("model.encoder.").rpartition(".")[0]
        parts = [names.get(part, part) for part in module.split(".")]
        parts = "/".join(parts).replace("layers/", "layers.")
        reference[name] = tensor
        if "conv" in name and tensor.dim() == 1:
            graph.store(name, tensor)
        graph.module(f"/{parts}", name, tensor)
        reference |= graph.reference
    files = {
        "encoder_model.ort": encoder.bytes(nested=False),
        "decoder_model_merged.ort": decoder.bytes(nested=True),
    }
    return files, reference


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files, and the base that they were written from in `base`."""
    folder = tmp_path_factory.mktemp("moonshine")
    make_moonshine(folder / "base")
    files, reference = exported(folder / "base")
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    torch.save(reference, folder / "reference.pt")
    shutil.copy(folder / "base/tokenizer.json", folder)
    return folder


def test_a_tiny_moonshine(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dest = convert([source], tmp_path / "dest")
    model, info = AutoModelForSpeechSeq2Seq.from_pretrained(dest, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    found = {name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    reference = torch.load(source / "reference.pt")
    assert found.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    like = AutoModelForSpeechSeq2Seq.from_pretrained(source / "base")
    turned = model.model.decoder.rotary_emb.inv_freq
    assert torch.equal(turned, like.model.decoder.rotary_emb.inv_freq)
    for key in ("hidden_size", "intermediate_size", "encoder_num_hidden_layers", "vocab_size"):
        assert getattr(model.config, key) == getattr(like.config, key)
    base = load_speech_llm(str(dest))
    assert base.family.pad == base.family.eos == 2


def test_what_is_no_moonshine_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    shutil.copytree(source, here)
    assert main([str(here), str(here)]) == 2
    assert "exists already" in capsys.readouterr().err
    encoder = (here / "encoder_model.ort").read_bytes()
    (here / "encoder_model.ort").write_bytes(encoder.replace(b"/conv2/Conv", b"/conv5/Conv"))
    with pytest.raises(UserError, match=r"encoder_model.ort is no whole Moonshine: .*conv2.weight"):
        convert([here], tmp_path / "dest")
    (here / "encoder_model.ort").write_bytes(b"PK" + encoder[2:4] + b"ONNX")
    with pytest.raises(UserError, match="no onnxruntime file"):
        convert([here], tmp_path / "dest")
    (here / "encoder_model.ort").write_bytes(encoder)
    (here / "tokenizer.json").write_text('{"added_tokens": [{"content": "<s>", "id": 5}]}')
    with pytest.raises(UserError, match="not Moonshine's"):
        convert([here], tmp_path / "dest")
    (here / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json in"):
        convert([here], tmp_path / "dest")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_cut_or_flipped_file_is_never_another_error(source: Path, tmp_path: Path) -> None:
    whole = (source / "decoder_model_merged.ort").read_bytes()
    path = tmp_path / "some.ort"
    rng = np.random.default_rng(0)
    for size in (0, 3, 8, 40, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"damaged|no onnxruntime file"):
            read_ort(path)
    for _ in range(60):
        broken = bytearray(whole)
        for place in rng.integers(8, len(whole), 3):
            broken[place] = int(rng.integers(256))
        path.write_bytes(broken)
        with contextlib.suppress(UserError):
            read_ort(path)


@pytest.mark.slow
def test_the_real_one(tmp_path: Path) -> None:
    """`python demo/fetch.py moonshine` puts it into the cache."""
    files = cache_folder() / "moonshine-base-ort"
    if not files.is_dir():
        pytest.skip(f"{files} is not there")
    base = load_speech_llm(convert([files], tmp_path / "base"))
    assert sum(p.numel() for p in base.model.parameters()) == 61_513_920
