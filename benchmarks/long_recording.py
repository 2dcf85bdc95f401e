"""Memory that one long recording needs beyond the base, by the kind of its file.

    python benchmarks/long_recording.py --json OUT [--base FOLDER] [--shards FOLDER] [--language bg]
        [--minutes 66] [--kinds flac,mp3,m4a] [--batch 8] [--max-new-tokens 128]

The recording is clips of the shards, one behind the other with half a second between them, at 44.1 kHz
in two channels, as recorders write it. Each kind is transcribed by a process of its own, as
`salsa-dist transcribe` does it. Beyond the base is the highest resident memory while it transcribes,
less what is resident once the base is loaded: so it holds what libraries keep after their first pass.
Linux only: the kernel's own highest mark (VmHWM) is read.

{"rows": [{"kind": "flac", "minutes": …, "base_mb": …, "beyond_base_mb": …, "cpu_s": …}, …]}
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from report_file import machine, write_report

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import first_clips

CACHE = Path("~/.cache/salsa-dist").expanduser()
RATE = 44_100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--base", default=str(CACHE / "whisper-base"))
    parser.add_argument("--shards", type=Path, default=CACHE / "shards/tuxpaint-bg-el")
    parser.add_argument("--language", default="bg")
    parser.add_argument("--minutes", type=float, default=66.0)
    parser.add_argument("--kinds", default="flac,mp3,m4a")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        measure(options)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds.split(","):
            file = Path(folder) / f"long.{kind}"
            write(file, recording(options.shards, options.language, options.minutes))
            command = [sys.executable, __file__, *sys.argv[1:], "--file", str(file)]
            made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(
                {"kind": kind, "file_mb": megabytes(file.stat().st_size), **json.loads(made.stdout)}
            )
            print(rows[-1], flush=True)
            file.unlink()
    if options.json:
        write_report(
            options.json,
            rows,
            on=f"{machine()}, shared with other work",
            base=Path(options.base).name,
            batch=options.batch,
            max_new_tokens=options.max_new_tokens,
        )


def measure(options: argparse.Namespace) -> None:
    """Transcribe one file, and print what it took as JSON."""
    from salsa_dist.speech_llms.load import load_speech_llm
    from salsa_dist.transcription.transcribe import transcribe_each

    base = load_speech_llm(options.base)
    for weight in base.model.parameters():
        weight.sum()  # what is mapped from a file counts once it was read
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest mark starts anew
    before, cpu = resident("VmRSS"), time.process_time()
    (result,) = transcribe_each(
        base, [options.file], options.language, None, options.batch, options.max_new_tokens
    )
    row = {
        "minutes": round(result.seconds / 60, 1),
        "pieces": len(result.segments),
        "base_mb": megabytes(before),
        "beyond_base_mb": megabytes(resident("VmHWM") - before),
        "cpu_s": round(time.process_time() - cpu, 1),
    }
    print(json.dumps(row))


def resident(what: str) -> int:
    """Bytes of this process by the kernel: VmRSS now, VmHWM at the highest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{what}:")))


def megabytes(count: int) -> float:
    return round(count / 1e6, 1)


def recording(shards: Path, language: str, minutes: float) -> Iterator[NDArray[np.float32]]:
    """(samples,) at RATE, part by part, the clips over and over."""
    clips = first_clips(shards, ShardIndex.load(shards), language, 200, 30.0)
    pause = np.zeros(RATE // 2, np.float32)
    left = round(60 * minutes * RATE)
    while True:
        for clip in clips:
            spoken = soxr.resample(clip.audio, SAMPLE_RATE, RATE)
            part = np.concatenate([spoken, pause])[:left].astype(np.float32)
            yield part
            left -= len(part)
            if not left:
                return


def write(file: Path, parts: Iterator[NDArray[np.float32]]) -> None:
    """Two equal channels, by soundfile, or PyAV where it is m4a."""
    if file.suffix != ".m4a":
        with soundfile.SoundFile(file, "w", RATE, 2) as out:
            for part in parts:
                out.write(np.stack([part, part], axis=1))
        return
    import av

    with av.open(str(file), "w") as container:
        track = container.add_stream("aac", rate=RATE, layout="stereo")
        for part in parts:
            frame = av.AudioFrame.from_ndarray(np.stack([part, part]), format="fltp", layout="stereo")
            frame.sample_rate = RATE
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


if __name__ == "__main__":
    main()
