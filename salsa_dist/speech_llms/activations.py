"""The outputs of a base's layers for real speech, unsteered.

    clips ─► one forward pass each ─► site ─► (positions, hidden) ─► means, sizes

A layer's size is the median over positions of the norm of its output, divided by the root of the
width: the root mean square of a typical position. Sizes differ several times between the layers of a
base, so one learning rate is too small for some layers and too large for others. `training.lr_scale:
auto` multiplies each layer's rate by its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from salsa_dist.data.clip import Clip
from salsa_dist.speech_llms.load import SpeechLLM


@torch.no_grad()  # not inference_mode: what ZeRO-3 gathers here may be needed in a backward pass
def each_output(
    speech_llm: SpeechLLM,
    sites: Sequence[str],
    clips: Sequence[Clip],
    receive: Callable[[str, Tensor], None],
    device: torch.device | None = None,
) -> None:
    """Call `receive(site, output)` per site and clip; output is (positions, hidden).

    The LLM reads the reference. Clips go one at a time, so that no position is padding between clips.

    Args:
        device: of the passes; None: of the weights.
    """

    def hook(site: str) -> Any:
        def call(_: Any, __: Any, output: Any) -> None:
            receive(site, (output[0] if isinstance(output, tuple) else output).flatten(0, -2))

        return call

    weight = next(speech_llm.model.parameters())
    device = device or weight.device
    with ExitStack() as stack:
        for site in sites:
            stack.callback(speech_llm.sites[site].register_forward_hook(hook(site)).remove)
        for clip in clips:
            made = speech_llm.family.training_batch([clip])
            speech_llm.model(**made.to(device, speech_llm.model.dtype).inputs, use_cache=False)


def activation_sizes(
    speech_llm: SpeechLLM,
    clips: Sequence[Clip],
    sites: Sequence[str] | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Size per site, over the positions of `clips`.

    Args:
        sites: None: every site of the base.
        device: of the passes; None: of the weights.
    """
    norms: dict[str, list[Tensor]] = {}

    def add(site: str, output: Tensor) -> None:
        norms.setdefault(site, []).append(output.float().norm(dim=-1) / output.shape[-1] ** 0.5)

    wanted = sites if sites is not None else list(speech_llm.sites)
    each_output(speech_llm, wanted, clips, add, device)
    return {site: torch.cat(norms[site]).median().item() for site in wanted if site in norms}
