"""Does anybody speak? A guard against words that a base invents for silence and noise, by Silero VAD.

(samples,) at 16,000 Hz ──speaks──► True   some stretch of a quarter of a second is speech
"""

from __future__ import annotations

from collections.abc import Callable

from salsa_dist.data.audio import Audio
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.errors import UserError


def detector() -> Callable[[Audio], bool]:
    """Whether somebody speaks in a piece; its network runs on the CPU.

    Raises:
        UserError: the library is not installed.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps, load_silero_vad
    except ImportError as e:
        raise UserError("--vad needs Silero VAD: pip install 'salsa-dist[vad]'") from e
    finally:
        torch.set_num_threads(threads)  # its import sets them to 1 for everybody
    network = load_silero_vad()

    def speaks(audio: Audio) -> bool:
        found = get_speech_timestamps(torch.from_numpy(audio), network, sampling_rate=SAMPLE_RATE)
        return bool(found)

    return speaks
