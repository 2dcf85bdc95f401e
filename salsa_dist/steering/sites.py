"""Sites: where a model can be steered, and expressions that select some of them.

    find_layers(model)  ->  {"encoder": ModuleList of 6, "llm": ModuleList of 6}
    select("encoder:last-half+llm.attention:0", {"encoder": 6, "llm": 6, "llm.attention": 6})
                        ->  ["encoder.3", "encoder.4", "encoder.5", "llm.attention.0"]

A site `encoder.3` is the output of the fourth layer of the audio encoder, `encoder.attention.3` that of
the self-attention inside it; `blocks.py` has the other words for sites inside a layer. Layers are
found by structure, with no table of module paths: lists of layers that hold attention or another
mixer, the LLM's being the one under `get_decoder()`, the encoder's the one under
`get_encoder("audio")`, or else the one whose path says so. A model that reads no text, such as one
trained by CTC, has no LLM.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.steering.blocks import with_blocks

COMPONENTS = ("encoder", "llm")

_MIXER = re.compile(r"attn|attention|mixer|mamba|recurrent", re.IGNORECASE)
_AUDIO = re.compile(r"encoder|audio|speech|conformer", re.IGNORECASE)
_NOT_AUDIO = re.compile(
    r"qformer|projector|adaptor|adapter|decoder|vision|visual|codec|tokenizer", re.IGNORECASE
)
_NEVER = re.compile(r"vision|visual|image|talker|code2wav|token2wav", re.IGNORECASE)

_TEXT_INPUTS = {"input_ids", "decoder_input_ids"}
_AUDIO_INPUTS = {"input_features", "input_values"}


def find_layers(model: nn.Module, layers: Mapping[str, str] | None = None) -> dict[str, nn.ModuleList]:
    """The layer lists of `model` that can be steered, by component (`encoder`, `llm`).

    Args:
        model: any transformers model.
        layers: for a model whose lists are not found, or not the right ones: component to the path
            of its list, such as `{"encoder": "model.audio_tower.layers"}`.

    Raises:
        UserError: the model has no such list, so it is no speech-LLM of a known shape; or `layers`
            names a part that is no list of layers.
    """
    found = {component: _named(model, component, path) for component, path in (layers or {}).items()}
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not _NEVER.search(path) and _is_layer_list(module)
    }
    # A list inside a layer of another list belongs to that layer.
    outer = {
        path: module
        for path, module in lists.items()
        if not any(path.startswith(other + ".") for other in lists)
    }
    decoder = _part(model, "get_decoder") if _reads_text(model) else None
    if decoder is not None and "llm" not in found:
        own = [m for m in outer.values() if any(child is m for child in decoder.children())]
        if not own and decoder is not model:  # a decoder in a wrapper of its own
            own = [m for m in outer.values() if any(child is m for child in decoder.modules())]
        if own:
            found["llm"] = own[0]
    if "encoder" not in found:
        encoder = _audio_layers(model, outer, found.get("llm"))
        if encoder is not None:
            found["encoder"] = encoder
    if not found:
        raise UserError(
            f"no layers to steer were found in {type(model).__name__}: "
            "it must be a speech-LLM with an audio encoder or a decoder"
        )
    return {component: found[component] for component in COMPONENTS if component in found}


def layer_counts(lists: Mapping[str, nn.ModuleList]) -> dict[str, int]:
    """How many layers each word of `with_blocks` has, as `select` wants it.

    Args:
        lists: from `find_layers`.
    """
    return {word: len(modules) for word, modules in with_blocks(lists).items()}


def site_modules(model: nn.Module, layers: Mapping[str, str] | None = None) -> dict[str, nn.Module]:
    """Every site of `model` with the module whose output is steered there.

    `layers` is as in `find_layers`.
    """
    return by_site(find_layers(model, layers))


def by_site(lists: Mapping[str, nn.ModuleList]) -> dict[str, nn.Module]:
    """Every layer of `lists`, which `find_layers` gave, and every block inside one, by its site."""
    return {f"{word}.{i}": m for word, own in with_blocks(lists).items() for i, m in enumerate(own)}


def whole_layers(lists: Mapping[str, nn.ModuleList]) -> dict[str, nn.Module]:
    """As `by_site`, without the blocks."""
    return {f"{component}.{i}": m for component, own in lists.items() for i, m in enumerate(own)}


def select(words: str, layers: Mapping[str, int]) -> list[str]:
    """Site names for a choice in words, in the model's order.

    Args:
        words: parts joined by `+`, each `component` or `component:range`, where component is `encoder`,
            `llm`, or a block of their layers such as `encoder.attention`, and range is `last-half`,
            `first-third` and the like, or a comma list of numbers and `a-b`, `a..b`, `-8..`; negative
            numbers count from the end.
        layers: how many layers each component has, from `layer_counts`.

    Raises:
        UserError: an unknown component or a number out of range; names what is valid.
    """
    chosen: dict[str, set[int]] = {component: set() for component in layers}
    for part in words.replace(" ", "").split("+"):
        component, colon, wanted = part.partition(":")
        if component not in layers:
            raise UserError(
                f"sites {words!r}: no component {component!r}; this base has "
                + ", ".join(f"{c} (0-{n - 1})" for c, n in layers.items())
            )
        if colon:
            chosen[component] |= set(_numbers(wanted, layers[component], words, component))
        else:
            chosen[component] |= set(range(layers[component]))
    return [f"{c}.{i}" for c, n in layers.items() for i in range(n) if i in chosen[c]]


def _numbers(wanted: str, count: int, words: str, component: str) -> list[int]:
    valid = f"{component} has layers 0-{count - 1}"
    if share := re.fullmatch(r"(first|middle|last)-(half|third|quarter)", wanted):
        n = max(1, round(count / {"half": 2, "third": 3, "quarter": 4}[share[2]]))
        start = {"first": 0, "middle": (count - n) // 2, "last": count - n}[share[1]]
        return list(range(start, start + n))
    numbers: list[int] = []
    for piece in wanted.split(","):
        match = re.fullmatch(r"(-?\d+)(?:(\.\.|-)(-?\d+)?)?", piece)
        if match is None or (match[2] == "-" and match[3] is None):
            raise UserError(
                f"sites {words!r}: {piece!r} is not a layer, a range such as 2-5 or -4.., or a "
                f"share such as last-half; {valid}"
            )
        first = int(match[1])
        last = first if match[2] is None else (count - 1 if match[3] is None else int(match[3]))
        first, last = (n + count if n < 0 else n for n in (first, last))
        if not 0 <= first <= last < count:
            raise UserError(f"sites {words!r}: {piece!r} is out of range; {valid}")
        numbers += range(first, last + 1)
    return numbers


def _audio_layers(
    model: nn.Module, lists: Mapping[str, nn.ModuleList], llm: nn.ModuleList | None
) -> nn.ModuleList | None:
    """The audio encoder's list among `lists` (by path): under `get_encoder`, or else by its name."""
    encoder = _part(model, "get_encoder", modality="audio")
    inside = set() if encoder is None or encoder is model else set(encoder.modules())
    others = {path: m for path, m in lists.items() if m is not llm and not _NOT_AUDIO.search(path)}
    under = [m for m in others.values() if m in inside]
    named = [m for path, m in others.items() if _AUDIO.search(path)]
    # The deepest: an adapter or a prenet beside the encoder's own layers is shorter.
    return max(under or named, key=len, default=None)


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that makes logits of the last layer's output; None: it has no usual name."""
    head = _part(model, "get_output_embeddings")
    return head or getattr(model, "lm_head", None) or getattr(model, "ctc_head", None)


def _reads_text(model: nn.Module) -> bool:
    """Whether the forward pass takes tokens; so too where it names no audio, as toy models do."""
    names = inspect.signature(type(model).forward).parameters
    return not _TEXT_INPUTS.isdisjoint(names) or _AUDIO_INPUTS.isdisjoint(names)


def _named(model: nn.Module, component: str, path: str) -> nn.ModuleList:
    """The list that a user names for `component`."""
    if component not in COMPONENTS:
        raise UserError(f"layers: no component {component!r}; known are {', '.join(COMPONENTS)}")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if not isinstance(module, nn.ModuleList) or not len(module):
        lists = [p for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
        raise UserError(
            f"layers.{component}: {path!r} is no list of layers of {type(model).__name__}; "
            f"it has {', '.join(lists) or 'none'}"
        )
    return module


def _is_layer_list(module: nn.ModuleList) -> bool:
    children = list(module)
    return len(children) >= 2 and all(
        any(_MIXER.search(name) or _MIXER.search(type(m).__name__) for name, m in c.named_modules())
        for c in children
    )


def _part(model: nn.Module, getter: str, **kwargs: str) -> nn.Module | None:
    """`model.get_encoder(...)` and the like; None where the model has no such part."""
    try:
        part = getattr(model, getter)(**kwargs)
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return None
    return part if isinstance(part, nn.Module) else None
