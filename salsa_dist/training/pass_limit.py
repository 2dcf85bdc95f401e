"""How many clips fit one pass of the base, once a pass was too large for the device's memory.

    RUN/pass_limit.json        {"schema": "salsa-dist/pass-limit/1", "clips": 8}

A pass that is out of memory halves the limit. Where each rank holds a whole base, the rank repeats its
part of the step in smaller passes. Where ranks share one base, all of them run the same modules, so the
run ends, and its next start has the lower limit on all ranks.
"""

from __future__ import annotations

from salsa_dist import json_file
from salsa_dist.errors import StartAgain, UserError
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/pass-limit/1"
_ADVICE = "remove it, and passes have training.micro_batch clips again"


def kept_limit(run: RunFolder) -> int | None:
    """The limit that earlier passes of `run` found, in clips; None where none was too large.

    Raises:
        UserError: the file is damaged.
    """
    try:
        clips = json_file.read(run.pass_limit, (SCHEMA,), _ADVICE).get("clips")
    except FileNotFoundError:
        return None
    if not isinstance(clips, int) or clips < 1:
        raise UserError(f"{run.pass_limit} is damaged (clips: {clips!r}): {_ADVICE}")
    return clips


def halved(run: RunFolder, clips: int, where: str, *, shared: bool) -> int:
    """Keep half of `clips`, which were out of memory, as the limit of a pass; the limit.

    Args:
        where: the step and rank, for messages.
        shared: ranks share one base, so this rank can't go on alone.

    Raises:
        StartAgain: where ranks share one base.
        UserError: one clip alone does not fit.
    """
    if clips == 1:
        raise UserError(
            f"{where}: out of memory with one clip in a pass: set training.activation_checkpointing "
            "true, share the base among more ranks (placement.kind), or shorten the window "
            "(training.window_s)"
        )
    limit = min(clips // 2, kept_limit(run) or clips)
    json_file.write(run.pass_limit, SCHEMA, {"clips": limit})
    if shared:
        raise StartAgain(
            f"{where}: out of memory with {clips} clips in a pass: the next start of this run has at "
            f"most {limit}. To choose for yourself, set training.micro_batch or training.pass_seconds"
        )
    return limit
