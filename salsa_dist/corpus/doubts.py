"""Doubtful samples: audio that is not what its file says, and transcripts that cannot belong to it.

    file ──of_header──► cut-off                                        its header claims more
    (samples, channels), text ──of_audio──► silent, cancelling (channels), clipped,
                                            text-too-long, text-too-short

A build drops a sample that is in doubt, counts it by kind and names it in dropped.tsv; the kinds in
`Ask.keep` it keeps. `shards lint` finds the same in shards and in tars that others made.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from salsa_dist.corpus.text import same
from salsa_dist.data.audio import Audio
from salsa_dist.data.audio_header import (
    HEAD,
    bytes_claimed,
    has_end,
    sound_behind,
    sphere_header,
)
from salsa_dist.errors import UserError

CUT_OFF, SILENT, CANCELLING, CLIPPED = "cut-off", "silent", "cancelling", "clipped"
LONG, SHORT = "text-too-long", "text-too-short"
KINDS = (CUT_OFF, SILENT, CANCELLING, CLIPPED, LONG, SHORT)

STEP = 2.0**-15  # one step of 16 bits: what stays within two of them is no sound
CANCELLED = 1e-3  # the mean's energy, of that of its channels; unrelated ones have a half of it
FULL, CLIPPED_SHARE = 0.995, 0.1  # so many samples at full scale are no peaks any more
# Letters and digits: nobody reads faster.
MOST_PER_SECOND, GRACE_S = 35, 0.5
# Nor is anybody recorded so long for so few words.
FEWEST_PER_SECOND, PATIENCE_S = 0.2, 10.0


def of_header(source: Path | bytes) -> str | None:
    """The error of a WAV, AIFF, AU or NIST SPHERE file with fewer bytes than its header says, of a WAV
    file that goes on behind them, or of an Ogg file without its last page.

    Raises:
        UserError: a SPHERE file that nothing here can decode.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head, size = file.read(HEAD), file.seek(0, os.SEEK_END)
        claimed = bytes_claimed(head)
        ends, goes_on = has_end(file, head), sound_behind(file, head)
    if head[:8] == b"NIST_1A\n" and "shorten" in sphere_header(head).get("sample_coding", ""):
        name = "SPHERE file" if isinstance(source, bytes) else source
        raise UserError(
            f"unreadable audio: {name} is compressed by shorten: convert it, with "
            "'sph2pipe -f wav IN OUT'"
        )
    if not ends:
        return f"{CUT_OFF}: its last page is no end"
    if claimed is not None and claimed > size:
        return f"{CUT_OFF}: {size} of the {claimed} bytes that its header claims"
    return f"{CUT_OFF}: its header claims {claimed} of its {size} bytes" if goes_on else None


def of_audio(audio: Audio, rate: int, text: str, speech: bool = True) -> str | None:
    """The error of `(samples,)` or `(samples, channels)` at `rate` Hz with the transcript `text`.

    Without `speech`, silence is no error, and there is no text to compare.
    """
    several = audio.reshape(len(audio), -1)
    if np.max(np.ptp(several, axis=0)) <= 2 * STEP:
        return f"{SILENT}: no sound in {len(audio) / rate:.2f} s" if speech else None
    if several.shape[1] > 1:
        energy = float(np.square(several, dtype=np.float64).mean())
        mixed = float(np.square(several.mean(axis=1, dtype=np.float64)).mean())
        if mixed < CANCELLED * energy:
            return f"{CANCELLING}: the mean of {several.shape[1]} has nothing left; name one of them"
    share = float((np.abs(several) >= FULL).mean())
    if share > CLIPPED_SHARE:
        return f"{CLIPPED}: {share:.0%} of its samples are at full scale"
    if not speech:
        return None
    letters, seconds = len(same(text).replace(" ", "")), len(audio) / rate
    if letters > MOST_PER_SECOND * (seconds + GRACE_S):
        return f"{LONG}: {letters} letters in {seconds:.2f} s"
    if seconds > PATIENCE_S and letters < FEWEST_PER_SECOND * seconds:
        return f"{SHORT}: {letters} letters in {seconds:.2f} s"
    return None


def kind_of(doubt: str) -> str:
    """The kind of what `of_header` or `of_audio` said."""
    return doubt.partition(":")[0]
