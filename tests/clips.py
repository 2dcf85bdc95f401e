"""Made-up recordings and what shards hold of them, for tests of recipes and builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from salsa_dist.corpus.writer import Sample, ShardWriter
from salsa_dist.data.audio import Audio
from salsa_dist.data.index import Entry, ShardIndex
from salsa_dist.data.shards import BadSample, Bytes, read_ranges, read_sample


def wave(path: Path, seconds: float = 0.5, hz: float = 440.0, rate: int = 8_000) -> Path:
    """Write a tone; the ending of `path` tells the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, hz, rate), rate)
    return path


def tone(seconds: float, hz: float, rate: int) -> Audio:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def pitch(audio: Audio) -> float:
    """Hz of the loudest tone of audio at 16,000 Hz."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    return float(spectrum.argmax()) * 16_000 / len(audio)


def samples(index: ShardIndex) -> dict[str, tuple[str, Audio, dict[str, Any]]]:
    """Of each key: its split, audio and facts, through the index."""
    found = {}
    for shard in index.shards:
        path = index.folder / shard.path
        for entry in shard.entries:
            audio, facts = read_sample(read_range(path, entry), shard.path, entry.key)
            found[entry.key] = (shard.split, audio, facts)
    return found


def read_range(path: str | Path, entry: Entry) -> Bytes:
    """The bytes of one sample of a shard."""
    ((_, raw),) = read_ranges(path, [entry])
    if isinstance(raw, BadSample):
        raise raw
    return raw


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def mixed_shards(folder: Path) -> None:
    """Shards of Mandarin-English: 4 clips of 1 s to train on, 2 of dev and 2 of test."""
    texts = ("我们 go", "vuk 好 lisa", "riba 不要", "我 kon 我们")
    with ShardWriter(folder, "mixed", seed=0) as writer:
        for split, count in (("train", 4), ("dev", 2), ("test", 2)):
            clips = [
                Sample(f"{split}/{i}", tone(1, 300 + 50 * i, 16_000), texts[i], "zh-en", None, "", "")
                for i in range(count)
            ]
            writer.write(split, "zh-en", clips, 2)
        writer.finish({"source": "made up"})


def noise_shards(folder: Path, count: int, per_shard: int, samples: tuple[int, int]) -> ShardIndex:
    """Training shards of noise in one language; the lengths of the clips are within `samples`."""
    rng = np.random.default_rng(0)
    clips = [
        Sample(
            key=f"bg/clip-{i}",
            audio=rng.uniform(-0.1, 0.1, int(rng.integers(*samples))).astype(np.float32),
            text=f"дума {i}",
            language="bg",
            speaker=None,
            licence="CC0",
            source="made by the tests",
        )
        for i in range(count)
    ]
    with ShardWriter(folder, "noise", 0) as writer:
        writer.write("train", "bg", clips, per_shard)
        return writer.finish({})
