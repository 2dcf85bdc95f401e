"""The largest number of clips per pass, after a pass was out of memory.

    RUN/pass_limit.json        {"schema": "salsa-dist/pass-limit/1", "clips": 8}

A pass that is out of memory halves the limit. If each rank holds a whole base, the rank repeats its
share of the step in smaller passes. If ranks share one base, they must all run the same modules. So the
run ends, and its next start has the lower limit on all ranks.
"""

from __future__ import annotations

from salsa_dist import json_file
from salsa_dist.errors import StartAgain, UserError
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/pass-limit/1"
_ADVICE = "remove it, and passes have training.micro_batch clips again"


def kept_limit(run: RunFolder) -> int | None:
    """The limit of `run` in clips; None if no pass was out of memory.

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
    """Store and return half of `clips` as the new limit, after a pass of `clips` was out of memory.

    Args:
        where: the step and rank, for messages.
        shared: ranks share one base, so this rank cannot continue alone.

    Raises:
        StartAgain: ranks share one base.
        UserError: a single clip does not fit.
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
