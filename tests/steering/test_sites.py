"""Sites: chosen in words, wrong words refused with what is valid, odd models named by hand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import MODELS
from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.steering.blocks import last_layer_below
from salsa_dist.steering.sites import by_site, find_layers, layer_counts, select, site_modules

WHISPER = {"encoder": 32, "llm": 4}


def numbers(words: str, layers: dict[str, int] = WHISPER) -> list[str]:
    return [site.replace("encoder.", "e").replace("llm.", "l") for site in select(words, layers)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("encoder", range(32)),
        ("encoder:last-half", range(16, 32)),
        ("encoder:first-quarter", range(8)),
        ("encoder:middle-half", range(8, 24)),
        ("encoder:16-31", range(16, 32)),
        ("encoder:-8..", range(24, 32)),
        ("encoder:-8..-5", range(24, 28)),
        ("encoder: 3 .. 5", range(3, 6)),
        ("encoder:0,4,8", (0, 4, 8)),
        ("encoder:8,0,4,4", (0, 4, 8)),
        ("encoder:-1", (31,)),
        ("encoder:2-3+encoder:3-4", (2, 3, 4)),
    ],
)
def test_words_name_layers(words: str, expected: range) -> None:
    assert numbers(words) == [f"e{i}" for i in expected]


def test_parts_are_joined_in_the_models_order() -> None:
    assert numbers("llm") == ["l0", "l1", "l2", "l3"]
    assert numbers("encoder:0,4,8+llm:last-third") == ["e0", "e4", "e8", "l3"]
    assert numbers("llm:0+encoder:1") == ["e1", "l0"]


def test_sites_inside_a_layer_are_named_by_their_block() -> None:
    found = find_layers(MODELS["Whisper"].build(fill=False))
    counts = layer_counts(found)
    blocks = ["attention", "feed_forward"]
    assert list(counts) == [
        *("encoder", *(f"encoder.{b}" for b in blocks)),
        *("llm", "llm.attention", "llm.cross_attention", "llm.feed_forward"),
    ]
    assert select("llm.cross_attention:-1+encoder.attention:0+encoder:1", counts) == [
        "encoder.1",
        "encoder.attention.0",
        f"llm.cross_attention.{counts['llm'] - 1}",
    ]
    modules = by_site(found)
    layer = found["llm"][1]
    assert modules["llm.cross_attention.1"] is layer.encoder_attn
    assert modules["llm.feed_forward.1"] is layer.fc2
    with pytest.raises(UserError, match=r"no component 'encoder.mlp'; .* encoder.feed_forward \(0-"):
        select("encoder.mlp", counts)
    assert [last_layer_below(s) for s in ("encoder.3", "encoder.attention.3", "llm.attention.0")] == [
        3,
        2,
        -1,
    ]


@pytest.mark.parametrize(
    "words",
    [
        *("encoder:32", "encoder:-33", "encoder:16-32", "encoder:5-3", "encoder:0,99"),
        *("encoder:", "encoder:3-", "encoder:x", "encoder:1.5", "encoder:0,,1", "encoder:..3"),
        *("encoder:0:1", "encoder:last-fifth", "encoder:half", "encoder:0;1"),
    ],
)
def test_wrong_layers_are_refused_with_the_valid_range(words: str) -> None:
    with pytest.raises(UserError, match=r"encoder has layers 0-31") as error:
        select(words, WHISPER)
    assert repr(words) in str(error.value)


@pytest.mark.parametrize("words", ["", "decoder", "encoder+", "Encoder", "encoder.3", "3", "+llm"])
def test_unknown_components_are_refused_with_those_there_are(words: str) -> None:
    with pytest.raises(UserError, match=r"encoder \(0-31\), llm \(0-3\)"):
        select(words, WHISPER)


counts = st.integers(1, 80)


@given(counts, st.data())
def test_every_way_to_write_a_range_means_the_same(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    layers = {"encoder": count}
    expected = [f"encoder.{i}" for i in range(first, last + 1)]
    a, b = first - count, last - count
    listed = ",".join(map(str, range(first, last + 1)))
    for words in (f"{first}-{last}", f"{first}..{last}", f"{a}..{b}", f"{first}..{b}", listed):
        assert select(f"encoder:{words}", layers) == expected, words
    assert select(f"encoder:{first}..", layers) == [f"encoder.{i}" for i in range(first, count)]


@given(
    counts, st.sampled_from(["first", "middle", "last"]), st.sampled_from(["half", "third", "quarter"])
)
def test_a_share_is_a_stretch_of_about_that_size(count: int, where: str, share: str) -> None:
    chosen = [int(s.partition(".")[2]) for s in select(f"encoder:{where}-{share}", {"encoder": count})]
    size = count / {"half": 2, "third": 3, "quarter": 4}[share]
    assert chosen == list(range(chosen[0], chosen[-1] + 1))
    assert abs(len(chosen) - max(1.0, size)) <= 0.5
    assert where != "first" or chosen[0] == 0
    assert where != "last" or chosen[-1] == count - 1


@given(st.text(alphabet="encoderlm:+-.,0123456789 hastfi", max_size=24))
def test_any_words_give_known_sites_or_one_clear_line(words: str) -> None:
    layers = {"encoder": 6, "llm": 4}
    try:
        chosen = select(words, layers)
    except UserError as e:
        message = str(e)
    else:
        message = ""
    if message:
        assert re.fullmatch(r".*(0-5|0-3).*", message)  # one line
        return
    known = [f"{c}.{i}" for c, n in layers.items() for i in range(n)]
    assert chosen
    assert chosen == [site for site in known if site in chosen]


def test_a_list_can_be_named_by_hand() -> None:
    model = MODELS["Qwen2-Audio"].build(fill=False)
    swapped = {"encoder": "model.language_model.layers", "llm": "model.audio_tower.layers"}
    found = find_layers(model, swapped)
    assert found["encoder"] is model.get_submodule("model.language_model.layers")
    only = find_layers(model, {"encoder": "model.audio_tower.layers"})
    assert {k: len(v) for k, v in only.items()} == {"encoder": 3, "llm": 3}
    modules = site_modules(model, swapped)
    assert modules["llm.2"] is model.get_submodule("model.audio_tower.layers.2")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"encoder": "model.tower.layers"}, "is no list of layers .* model.audio_tower.layers"),
        ({"encoder": "model.audio_tower"}, "is no list of layers"),
        ({"encoder": ""}, "is no list of layers"),
        ({"decoder": "model.audio_tower.layers"}, "known are encoder, llm"),
    ],
)
def test_a_wrong_path_is_refused_with_those_there_are(layers: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_layers(MODELS["Qwen2-Audio"].build(fill=False), layers)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="no layers to steer were found in Sequential"):
        find_layers(nn.Sequential(nn.Linear(2, 2)))
