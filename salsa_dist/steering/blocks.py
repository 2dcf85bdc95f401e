"""The blocks of a layer whose outputs can be steered too: attention, cross-attention, feed-forward.

    layer     x ─► attention ─► + ─► cross-attention ─► + ─► feed-forward ─► + ─► h
                             ▲                       ▲                    ▲       ▲
    sites       encoder.attention.3   llm.cross_attention.3   encoder.feed_forward.3   encoder.3

A block is a direct child of its layer, found by its name; of two feed-forward blocks (a conformer) it
is the second. Where the layer holds its feed-forward's linear maps itself, as Whisper does, the last of
them is hooked. A word is offered where each layer of the component has such a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

BLOCKS = {
    "attention": re.compile(r"self_attn|self_attention|attn|attention"),
    "cross_attention": re.compile(r"encoder_attn|encoder_attention|cross_attn|cross_attention"),
    "feed_forward": re.compile(r"mlp|fc2|feed_?forward_?\d?|ffn?_?\d?|ffw_layer_end"),
}


def with_blocks(lists: Mapping[str, nn.ModuleList]) -> dict[str, Sequence[nn.Module]]:
    """The layers of each component, followed by its blocks, each named as `steering.sites` names it.

    Args:
        lists: the layer list of each component, as `find_layers` gives it.

    Returns:
        `encoder`, `encoder.attention` and so on, to one module per layer.
    """
    found: dict[str, Sequence[nn.Module]] = {}
    for component, stack in lists.items():
        found[component] = list(stack)
        for block, names in BLOCKS.items():
            own = [
                [child for name, child in layer.named_children() if names.fullmatch(name)]
                for layer in stack
            ]
            if all(own):
                found[f"{component}.{block}"] = [children[-1] for children in own]
    return found


def last_layer_below(site: str) -> int:
    """The number of the last layer that the vector of `site` leaves as it is; -1: none.

    That of `encoder.3` is added to what layer 3 has made, so it is 3; of `encoder.attention.3` it is 2.
    """
    component, _, number = site.rpartition(".")
    return int(number) - ("." in component)


def layer_of(site: str) -> str:
    """The whole layer that a site is of: `encoder.3` of `encoder.attention.3`, and of itself."""
    return f"{site.partition('.')[0]}.{site.rpartition('.')[2]}"
