"""Greedy decoding that drops finished rows from the batch.

    step     rows
       1     a b c d
       9     a b d       c is finished: its keys and values over the audio are no longer read
      31     b           a and d are finished

transformers' own loop keeps every row until the last one ends; a row that repeats itself up to the
token limit then makes the others pay for it. What is decoded is the same: each row depends on itself
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from salsa_dist.libraries.transformers import cache_in

# Called each time that finished rows are dropped, with (n,) int64, the places of those that are kept.
KeepRows = Callable[[Tensor], None]

# Finished rows are dropped once they are this share of the batch: each time, the others are copied.
_SHARE = 0.2


class NoCacheError(Exception):
    """`generate` passed no cache that rows can be dropped from; nothing was decoded."""


def greedy(keep_rows: KeepRows, synced: bool) -> Callable[..., Tensor]:
    """A decoding loop for `generate(custom_generate=…)` of an encoder-decoder model.

    Args:
        keep_rows: called with the rows that are kept.
        synced: keep stepping until all ranks are done, as sharded weights need.

    The loop raises NoCacheError, before its first step, where transformers hands it no such cache.
    """

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **made: Any,
    ) -> Tensor:
        if (found := cache_in(made)) is None:
            raise NoCacheError
        name, cache = found
        encoded = made["encoder_outputs"][0]
        rows = torch.arange(len(input_ids), device=input_ids.device)
        ids, step = input_ids, input_ids
        whole: list[Tensor] = list(input_ids)
        going = torch.ones_like(rows, dtype=torch.bool)
        while True:
            logits = model(
                decoder_input_ids=step,
                encoder_outputs=(encoded,),
                use_cache=True,
                **{name: cache},
            ).logits[:, -1]
            if going.any():
                scores = logits_processor(ids, logits.to(torch.float32, copy=True))
                step = scores.argmax(-1, keepdim=True)
                ids = torch.cat([ids, step], dim=-1)
                ended = going & stopping_criteria(ids, None)
                going = going & ~ended
                for place in ended.nonzero().flatten().tolist():
                    whole[rows[place]] = ids[place]
            left = int(going.sum())
            if not _any(left > 0, synced, ids.device):
                break
            # One row stays for as long as other ranks go on.
            if 0 < left <= (1 - _SHARE) * len(rows):
                kept = going.nonzero().flatten()
                cache.batch_select_indices(kept)
                encoded, rows, ids, step, going = (t[kept] for t in (encoded, rows, ids, step, going))
                keep_rows(kept)
        return pad_sequence(whole, batch_first=True, padding_value=generation_config.pad_token_id)

    return decode


def _any(mine: bool, synced: bool, device: torch.device) -> bool:
    """Whether any rank has rows that go on; this one's alone where ranks are not in step."""
    if not synced:
        return mine
    flag = torch.tensor(int(mine), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
