"""SeamlessM4T v2: a conformer, an adapter that makes one frame of eight, and a decoder.

    decoder input   </s> __bul__  текст …
    label                         текст …  </s>

Element of an encoder layer's output: one clip.

The conformer has masks; the adapter's convolutions read the padding behind a clip, where `own_frames`
puts the zeros that they read behind a clip that is alone. The parts of a checkpoint that read text and
speak are not loaded.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from salsa_dist.errors import UserError
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.family import Checkpoint
from salsa_dist.speech_llms.seq2seq import Seq2Seq


class SeamlessM4T(Seq2Seq):
    """A language is asked for as the target of a translation, by its code of three letters: `bg` and
    `bul` are the same."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("seamless_m4t_v2",)

    def requests(self, checkpoint: Checkpoint) -> dict[str, list[int]]:
        ids = getattr(checkpoint.generation, "text_decoder_lang_to_code_id", None)
        if not ids:
            raise UserError(
                f"base {checkpoint.name}: its generation_config.json lists no languages "
                "(text_decoder_lang_to_code_id)"
            )
        prompts = {code: [self.start, token] for code, token in ids.items()}
        short = {two: three for two, three in languages.THREE_LETTERS.items() if three in prompts}
        return prompts | {two: prompts[three] for two, three in short.items()}

    def fit(self, model: Any) -> None:
        own_frames(model.get_encoder().adapter)


def own_frames(adapter: Any) -> None:
    """Have the convolutions of `adapter` read zeros in place of padding, in place."""
    mask: list[Tensor | None] = [None]  # (batch, frames), while a batch is encoded

    def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask[0] = kwargs["attention_mask"]

    def without_padding(module: Any, args: Any, hidden: Tensor) -> Tensor | None:
        return None if mask[0] is None else hidden.masked_fill(~mask[0].bool()[..., None], 0)

    adapter.register_forward_pre_hook(tell, with_kwargs=True)
    for norm in (adapter.layers[0].residual_layer_norm, adapter.layers[0].self_attn_layer_norm):
        norm.register_forward_hook(without_padding)
