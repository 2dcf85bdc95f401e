"""A tiny random Whisper, written as CTranslate2 would, comes back with the same logits."""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from salsa_dist.errors import UserError
from salsa_dist.speech_llms.whisper_from_ctranslate2 import (
    convert,
    main,
    read_variables,
    to_hugging_face,
)

SPECIAL = [
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|bg|>", "<|translate|>"),
    *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"),
]
BYTES = sorted(ByteLevel.alphabet())
NAMED = len(BYTES) + len(SPECIAL)
TIMESTAMPS = [f"<|{i * 0.02:.2f}|>" for i in range(4)]  # the model's, unknown to the tokenizer
IDS = {name: len(BYTES) + i for i, name in enumerate(SPECIAL)}
TYPES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.float16: 4, torch.bfloat16: 5}

Variables = dict[str, torch.Tensor]


def tiny_whisper(dtype: torch.dtype) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=NAMED + len(TIMESTAMPS),
        num_mel_bins=80,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=20,
        max_source_positions=100,
        max_target_positions=32,
        decoder_start_token_id=IDS["<|startoftranscript|>"],
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), IDS["<|endoftext|>"]),
    )
    model = WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():  # the timestamps win everywhere, unless they are suppressed
        model.model.decoder.layer_norm.bias[0] = 20
        model.model.decoder.embed_tokens.weight[NAMED:, 0] = 20
    return model.to(dtype)


def as_variables(model: WhisperForConditionalGeneration) -> Variables:
    """CTranslate2's names and fused matrices."""
    weights = {k.removeprefix("model."): v for k, v in model.state_dict().items()}
    out: Variables = {}

    def copy(theirs: str, ours: str, names: tuple[str, str] = ("weight", "bias")) -> None:
        for kind, name in zip(("weight", "bias"), names, strict=True):
            out[f"{theirs}/{name}"] = weights[f"{ours}.{kind}"]

    def fuse(theirs: str, ours: str, letters: str) -> None:
        rows = [weights[f"{ours}.{letter}_proj.weight"] for letter in letters]
        shifts = [
            weights.get(f"{ours}.{letter}_proj.bias", torch.zeros(len(row), dtype=row.dtype))
            for letter, row in zip(letters, rows, strict=True)
        ]
        out[f"{theirs}/weight"], out[f"{theirs}/bias"] = torch.cat(rows), torch.cat(shifts)

    norm = ("gamma", "beta")
    for side, layers, heads in (("encoder", 2, 2), ("decoder", 3, 4)):
        out[f"{side}/num_heads"] = torch.tensor(heads, dtype=torch.int16)
        copy(f"{side}/layer_norm", f"{side}.layer_norm", norm)
        out[f"{side}/position_encodings/encodings"] = weights[f"{side}.embed_positions.weight"]
        for i in range(layers):
            a, b = f"{side}/layer_{i}", f"{side}.layers.{i}"
            copy(f"{a}/self_attention/layer_norm", f"{b}.self_attn_layer_norm", norm)
            fuse(f"{a}/self_attention/linear_0", f"{b}.self_attn", "qkv")
            copy(f"{a}/self_attention/linear_1", f"{b}.self_attn.out_proj")
            if side == "decoder":
                copy(f"{a}/attention/layer_norm", f"{b}.encoder_attn_layer_norm", norm)
                copy(f"{a}/attention/linear_0", f"{b}.encoder_attn.q_proj")
                fuse(f"{a}/attention/linear_1", f"{b}.encoder_attn", "kv")
                copy(f"{a}/attention/linear_2", f"{b}.encoder_attn.out_proj")
            copy(f"{a}/ffn/layer_norm", f"{b}.final_layer_norm", norm)
            copy(f"{a}/ffn/linear_0", f"{b}.fc1")
            copy(f"{a}/ffn/linear_1", f"{b}.fc2")
    for conv in ("conv1", "conv2"):
        copy(f"encoder/{conv}", f"encoder.{conv}")
    out["decoder/embeddings/weight"] = weights["decoder.embed_tokens.weight"]
    for name, value in (("activation", 3), ("alibi", 0), ("pre_norm", 1), ("scale_embeddings", 0)):
        out[f"decoder/{name}"] = torch.tensor(value, dtype=torch.int8)
    return out


def as_binary(variables: Variables, version: int = 6, spec: str = "WhisperSpec") -> bytes:
    def text(words: str) -> bytes:
        return struct.pack("<H", len(words) + 1) + words.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, tensor in sorted(variables.items()):
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        out += text(name) + struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        out += struct.pack("<BI", TYPES[tensor.dtype], len(raw)) + raw
    alias = text("decoder/projection/weight") + text("decoder/embeddings/weight")
    return out + struct.pack("<I", 1) + alias


def write_source(folder: Path, binary: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(binary)
    config = {
        "lang_ids": [IDS["<|en|>"], IDS["<|bg|>"]],
        "suppress_ids": [1, 2],
        "suppress_ids_begin": [3, IDS["<|endoftext|>"]],
        "alignment_heads": [[1, 0]],
    }
    (folder / "config.json").write_text(json.dumps(config))
    added = [
        {
            "id": i,
            "content": name,
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for name, i in IDS.items()
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(BYTES)}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    names = "\n".join([*BYTES, *SPECIAL, *TIMESTAMPS])
    (folder / "vocabulary.txt").write_text(names + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine make a tiny model slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny() -> WhisperForConditionalGeneration:
    return tiny_whisper(torch.float16)


@pytest.fixture(scope="module")
def converted(tiny: WhisperForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    source = write_source(folder / "source", as_binary(as_variables(tiny)))
    return convert([source], folder / "dest")


def test_the_logits_are_the_same(
    tiny: WhisperForConditionalGeneration, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, info = AutoModelForSpeechSeq2Seq.from_pretrained(converted, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.float16
    model, reference = model.float().eval(), tiny_whisper(torch.float16).float()
    features, ids = torch.randn(2, 80, 200), torch.randint(NAMED, (2, 7))
    with torch.no_grad():
        ours = model(input_features=features, decoder_input_ids=ids).logits
        theirs = reference(input_features=features, decoder_input_ids=ids).logits
    assert torch.equal(ours, theirs)


def test_it_transcribes_by_language_and_never_emits_unnamed_ids(converted: Path) -> None:
    processor = AutoProcessor.from_pretrained(converted)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(converted).float()
    audio = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    features = processor(audio, sampling_rate=16_000, return_tensors="pt")
    assert features.input_features.shape == (1, 80, 200)  # 2 s, as the model has positions
    wish = {"language": "bg", "task": "transcribe", "max_new_tokens": 12}
    prompt = model.generate(**features, **wish, force_unique_generate_call=True)[0]
    start = ["<|startoftranscript|>", "<|bg|>", "<|transcribe|>", "<|notimestamps|>"]
    assert prompt[:4].tolist() == [IDS[name] for name in start]
    assert prompt.max() < NAMED
    free = model.generate(**features, **wish, suppress_tokens=[1, 2])
    assert free.max() >= NAMED, "the model does not want to emit timestamps: the test is vacuous"
    assert model.generation_config.suppress_tokens == [1, 2, *range(NAMED, NAMED + 4)]
    assert model.generation_config.begin_suppress_tokens == [3, IDS["<|endoftext|>"]]
    saved = json.loads((converted / "generation_config.json").read_text())
    assert saved["_from_model_config"] is False
    assert model.generation_config.lang_to_id == {"<|en|>": IDS["<|en|>"], "<|bg|>": IDS["<|bg|>"]}


def test_the_tokenizer_is_whispers(converted: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(converted).tokenizer
    # English, since transformers counts languages from there, and this vocabulary has only two.
    tokenizer.set_prefix_tokens(language="en", task="transcribe")
    ids = tokenizer("Да!").input_ids
    assert ids[:4] == [
        IDS[n] for n in ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    ]
    assert ids[-1] == IDS["<|endoftext|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Да!"


def test_parts_in_two_folders(tiny: WhisperForConditionalGeneration, tmp_path: Path) -> None:
    binary = as_binary(as_variables(tiny))
    one = write_source(tmp_path / "one", binary)
    (one / "model.bin").unlink()
    (one / "model.bin.part1").write_bytes(binary[:1000])
    (tmp_path / "two").mkdir()
    (tmp_path / "two/model.bin.part2").write_bytes(binary[1000:])
    with pytest.raises(UserError, match="damaged"):
        convert([one], tmp_path / "dest")
    assert main([str(one), str(tmp_path / "two"), str(tmp_path / "dest")]) == 0
    assert (tmp_path / "dest/model.safetensors").exists()
    assert main([str(one), str(tmp_path / "dest")]) == 2  # exists already
    (one / "model.bin.part1").rename(one / "model.bin.part3")
    with pytest.raises(UserError, match=r"only 2, 3"):
        convert([one, tmp_path / "two"], tmp_path / "dest2")


def test_a_failure_leaves_nothing(tiny: WhisperForConditionalGeneration, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", as_binary(as_variables(tiny)))
    (source / "vocabulary.txt").write_text("\n".join([*BYTES, *SPECIAL[::-1], *TIMESTAMPS]))
    with pytest.raises(UserError, match="different ids"):
        convert([source], tmp_path / "dest")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def quantize(v: Variables) -> None:
    v["encoder/layer_0/ffn/linear_0/weight"] = torch.ones(24, 16, dtype=torch.int8)


def key_bias(v: Variables) -> None:
    v["decoder/layer_1/self_attention/linear_0/bias"] = torch.ones(48)


CHANGES: list[tuple[Callable[[Variables], object], str]] = [
    (quantize, "quantized"),
    (key_bias, "key bias"),
    (lambda v: v.pop("encoder/conv2/bias"), "no 'encoder/conv2/bias'"),
    (lambda v: v.pop("encoder/num_heads"), "no 'encoder/num_heads'"),
    (lambda v: v.update({"encoder/num_heads": torch.tensor(3, dtype=torch.int16)}), "3 heads"),
    (lambda v: v.update({"encoder/num_heads": torch.tensor(-2, dtype=torch.int16)}), "-2 heads"),
    (lambda v: v.update({"encoder/num_heads": torch.ones(2, dtype=torch.int8)}), "whole number"),
    (lambda v: v.update({"decoder/activation": torch.tensor(0, dtype=torch.int8)}), "activation"),
    (lambda v: v.update({"decoder/extra": torch.ones(2)}), "decoder/extra"),
    (lambda v: v.update({"encoder/conv1/bias": torch.tensor(1.0)}), "single number"),
    (lambda v: v.update({"encoder/conv1/bias": torch.ones(3)}), "expected (16,)"),
    (
        lambda v: v.update({"decoder/layer_0/attention/linear_1/weight": torch.ones(33, 16)}),
        "split",
    ),
]


@pytest.mark.parametrize(("change", "says"), CHANGES)
def test_what_is_no_whisper_is_refused(
    tiny: WhisperForConditionalGeneration, change: Callable[[Variables], object], says: str
) -> None:
    variables = as_variables(tiny)
    change(variables)
    with pytest.raises(UserError) as caught:
        to_hugging_face(read_variables(as_binary(variables), "here/model.bin"), "here/model.bin")
    assert says in str(caught.value)
    assert "here/model.bin" in str(caught.value)


def test_other_versions_and_models_are_refused() -> None:
    with pytest.raises(UserError, match="binary version 6"):
        read_variables(as_binary({}, version=5), "model.bin")
    with pytest.raises(UserError, match="TransformerSpec"):
        read_variables(as_binary({}, spec="TransformerSpec"), "model.bin")


def test_a_cut_or_flipped_file_is_never_another_error(
    tiny: WhisperForConditionalGeneration,
) -> None:
    variables = as_variables(tiny)
    binary = as_binary(variables)
    for size in [*range(0, 400, 7), len(binary) - 1]:
        with pytest.raises(UserError, match=r"damaged|version"):
            read_variables(binary[:size], "model.bin")
    with pytest.raises(UserError, match="left over"):
        read_variables(binary + b"\0", "model.bin")
    rng = np.random.default_rng(0)
    heads = [m for name in variables if (m := binary.find(name.encode())) > 0]
    for _ in range(400):  # around the names lie the counts, shapes, types and sizes
        broken = bytearray(binary)
        broken[int(rng.choice(heads)) + int(rng.integers(-4, 60))] = int(rng.integers(256))
        with contextlib.suppress(UserError):
            to_hugging_face(read_variables(bytes(broken), "model.bin"), "model.bin")
