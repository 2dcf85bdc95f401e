"""The outputs of a base's layers for real speech, unsteered.

    clips ─► one forward pass each ─► site ─► (positions, hidden) ─► means, sizes

A layer's size is the median norm of its output over positions, over the root of the width: the root
mean square of a typical position's numbers. Layers of one base differ in it by several times, so a
learning rate that suits one is a leap in another; `training.lr_scale` set to the sizes makes rates
shares of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from salsa_dist.data.clip import Clip
from salsa_dist.speech_llms.load import SpeechLLM


@torch.inference_mode()
def listen(
    speech_llm: SpeechLLM,
    sites: Sequence[str],
    clips: Sequence[Clip],
    receive: Callable[[str, Tensor], None],
) -> None:
    """Call `receive(site, output)` per site and clip; output is (positions, hidden).

    The LLM reads the reference. Clips go one at a time, so that no position is padding between clips.
    """

    def hook(site: str) -> Any:
        def call(_: Any, __: Any, output: Any) -> None:
            receive(site, (output[0] if isinstance(output, tuple) else output).flatten(0, -2))

        return call

    weight = next(speech_llm.model.parameters())
    with ExitStack() as stack:
        for site in sites:
            stack.callback(speech_llm.sites[site].register_forward_hook(hook(site)).remove)
        for clip in clips:
            made = speech_llm.family.training_batch([clip])
            speech_llm.model(**made.to(weight.device, weight.dtype).inputs, use_cache=False)


def activation_sizes(speech_llm: SpeechLLM, clips: Sequence[Clip]) -> dict[str, float]:
    """Size of every site of a base, over the positions of `clips`."""
    norms: dict[str, list[Tensor]] = {}

    def add(site: str, output: Tensor) -> None:
        norms.setdefault(site, []).append(output.float().norm(dim=-1) / output.shape[-1] ** 0.5)

    listen(speech_llm, list(speech_llm.sites), clips, add)
    return {site: torch.cat(own).median().item() for site, own in norms.items()}
