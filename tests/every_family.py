"""`EVERY_FAMILY`: the function that writes a complete tiny checkpoint, by family, for all families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny_ctc import CTC, OMNIASR
from tiny_families import FAMILIES, MORE
from tiny_frames import FRAMES
from tiny_gemma import GEMMA
from tiny_nemotron import NEMOTRON
from tiny_phi4 import PHI4
from tiny_seq2seq import SEQ2SEQ

EVERY_FAMILY: dict[str, Callable[[Path], Path]] = (
    FAMILIES | MORE | GEMMA | PHI4 | NEMOTRON | OMNIASR | SEQ2SEQ | CTC | FRAMES
)
