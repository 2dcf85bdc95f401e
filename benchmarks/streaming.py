"""How fast speech comes out of tar shards, and what starting, going on and running for long costs.

    python benchmarks/streaming.py --json OUT [--rounds 3] [--long 200000]

Needs `pip install salsa-dist[benchmarks]`. Rows of "what":

speed   decoded and resampled audio hours a second a core, from local tars, of ours and others; in
        each round every system goes once through the same clips (the same FLAC files, 44.1 kHz), in
        random order of systems. Each shuffles, in its own way, and ends with mono float32 arrays at
        16 kHz in one process with one thread. Seconds are the process's CPU seconds, so other work on
        the machine adds little. The ratio to ours is that of the same round: median and quartiles of
        the rounds. webdataset and datasets
        give bytes, which soundfile and soxr (quality HQ) decode and resample: the libraries that ours
        uses, at the same setting. Lhotse decodes and resamples by its own means.
start   seconds from a folder with 10,000 shards and 2 million clips to the first step's clips: loading
        its index, planning, reading and decoding. The index is simulated: all its shards have the clips
        of one real tar, so nothing but that is read. With index.columns and, as in folders of earlier
        versions, without. Seconds of the clock and of the CPU.
resume  the same ten million clips in, and at the start; and how much the one takes longer.
memory  resident set of a process that streams, by clips read.

{"rows": [{"what": "speed", "system": "ours", "audio_hours_per_second_per_core": …, "ratio_to_ours": 1.0}, …]}
"""  # noqa: E501

from __future__ import annotations

import argparse
import gc
import io
import json
import logging
import platform
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from salsa_dist.data import mixing, quick_index, sampling
from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.data.reading import ClipReader
from salsa_dist.data.sampling import LANES, POOL_STEPS, AdapterPlan, pool_of, steps_of

SOURCE_RATE, RATE = 44_100, 16_000
PER_SHARD = 48
CLIPS = 8 * LANES * POOL_STEPS  # what our readers go through once in whole pools of 8 clips a step
SHARDS = 10_000
FAR = 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=200_000, help="clips of the memory row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of the others
    with tempfile.TemporaryDirectory() as folder:
        # Memory first, before the others' libraries are in it.
        rows = memory(Path(folder) / "short", options.long)
        corpus = Corpus(Path(folder) / "speech", CLIPS)
        rows += start_and_resume(corpus)
        corpus.write_shar()
        rows += speed(corpus, options.rounds)
    libraries = ("webdataset", "datasets", "lhotse", "soundfile", "soxr", "torch")
    report = {
        "date": str(date.today()),
        "machine": f"{platform.processor() or platform.machine()}, "
        + ", ".join(f"{name} {version(name)}" for name in libraries),
        "command": f"benchmarks/streaming.py --rounds {options.rounds} --long {options.long}",
        "clips": CLIPS,
        "audio_hours": corpus.hours,
        "rounds": options.rounds,
        "rows": rows,
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


class Corpus:
    """The same clips as plain WebDataset tars, with an index, and as Lhotse Shar."""

    def __init__(self, folder: Path, clips: int, seconds: tuple[float, float] = (2, 8)) -> None:
        from webdataset import TarWriter

        self.folder = folder / "tars"
        self.shar = folder / "shar"
        (self.folder / "bg").mkdir(parents=True)
        rng = np.random.default_rng(0)
        self.flacs = {f"bg/{i:06d}": flac(rng, rng.uniform(*seconds)) for i in range(clips)}
        shards = []
        keys = list(self.flacs)
        for number, at in enumerate(range(0, clips, PER_SHARD)):
            path = f"bg/train-{number:06d}.tar"
            entries = []
            with (
                open(self.folder / path, "wb") as stream,
                TarWriter(stream, encoder=False, mtime=0) as tar,
            ):
                for key in keys[at : at + PER_SHARD]:
                    start = tar.tarstream.offset
                    facts = json.dumps({"text": f"дума {key}", "language": "bg"}).encode()
                    tar.write({"__key__": key, "flac": self.flacs[key], "json": facts})
                    length = soundfile.info(io.BytesIO(self.flacs[key])).duration
                    entries.append(Entry(key, length, start, tar.tarstream.offset - start))
            size = (self.folder / path).stat().st_size
            total = sum(e.seconds for e in entries)
            shards.append(
                Shard(path, "train", "bg", len(entries), total, size, "0" * 64, tuple(entries))
            )
        self.index = ShardIndex(self.folder, "noise", SOURCE_RATE, 0, {}, tuple(shards))
        self.hours = sum(s.seconds for s in shards) / 3600
        self.paths = [str(self.folder / s.path) for s in shards]

    def write_shar(self) -> None:
        from lhotse import MonoCut, Recording
        from lhotse.shar import SharWriter
        from lhotse.supervision import SupervisionSegment

        self.shar.mkdir()
        # "original" keeps the very FLAC bytes of the other tars.
        with SharWriter(
            str(self.shar), fields={"recording": "original"}, shard_size=PER_SHARD
        ) as writer:
            for key, content in self.flacs.items():
                name = key.replace("/", "-")
                recording = Recording.from_bytes(content, recording_id=name)
                text = SupervisionSegment(name, name, 0, recording.duration, text=f"дума {key}")
                cut = MonoCut(name, 0, recording.duration, 0, recording=recording, supervisions=[text])
                writer.write(cut)


def flac(rng: np.random.Generator, seconds: float) -> bytes:
    """Noise with the spectrum and the loudness of speech, about: it compresses as speech does."""
    count = round(seconds * 100) * (SOURCE_RATE // 100)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    hz = np.fft.rfftfreq(count, 1 / SOURCE_RATE)
    sound = np.fft.irfft(spectrum / (1 + (hz / 500) ** 2), count)
    syllables = np.abs(np.sin(2 * np.pi * 2 * np.arange(count) / SOURCE_RATE + rng.uniform(0, 6)))
    sound *= syllables / np.abs(sound).max() * 0.5
    out = io.BytesIO()
    soundfile.write(out, sound, SOURCE_RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()


# The systems: each yields every clip once, as mono float32 at 16 kHz.


def ours(corpus: Corpus) -> Iterator[np.ndarray]:
    clips = sum(s.samples for s in corpus.index.shards)
    plan = AdapterPlan(corpus.index.shards, 8, 4, 0, 30.0)
    reader = ClipReader(corpus.folder, plan, clips // 8, 0, 1, 30.0)
    for t in range(clips // 8):
        for clip, _ in reader.step(t).clips:
            yield clip.audio


def decoded(content: bytes) -> np.ndarray:
    audio, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    return soxr.resample(audio, rate, RATE)


def plain_webdataset(tars: list[str]) -> Iterator[np.ndarray]:
    import webdataset

    for sample in webdataset.WebDataset(tars, shardshuffle=100).shuffle(200):
        json.loads(sample["json"])["text"]
        yield decoded(sample["flac"])


def hugging_face_datasets(tars: list[str]) -> Iterator[np.ndarray]:
    import datasets

    datasets.disable_progress_bars()
    # Its own decoder, torchcodec, wants FFmpeg; as bytes it does the same work as the others.
    features = datasets.Features(
        {
            "__key__": datasets.Value("string"),
            "__url__": datasets.Value("string"),
            "flac": datasets.Value("binary"),
            "json": {"text": datasets.Value("string"), "language": datasets.Value("string")},
        }
    )
    stream = datasets.load_dataset(
        "webdataset", data_files=tars, split="train", streaming=True, features=features
    )
    for sample in stream.shuffle(seed=0, buffer_size=200):
        yield decoded(sample["flac"])


def lhotse_shar(**source: Any) -> Iterator[np.ndarray]:
    """Of what `from_shar` takes: `in_dir` or `fields`."""
    from lhotse import CutSet

    cuts = CutSet.from_shar(**source, shuffle_shards=True, seed=0)
    for cut in cuts.shuffle(buffer_size=200):
        yield cut.resample(RATE).load_audio()[0]


SYSTEMS: dict[str, Callable[[Corpus], Iterator[np.ndarray]]] = {
    "ours": ours,
    "webdataset": lambda corpus: plain_webdataset(corpus.paths),
    "datasets streaming": lambda corpus: hugging_face_datasets(corpus.paths),
    "lhotse shar": lambda corpus: lhotse_shar(in_dir=str(corpus.shar)),
}


def speed(corpus: Corpus, rounds: int) -> list[dict[str, Any]]:
    order = random.Random(0)
    # Per system: audio hours per CPU second, by round.
    hours: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for number in range(rounds + 1):
        for name in order.sample(list(SYSTEMS), len(SYSTEMS)):
            start = time.process_time()
            samples = 0
            for audio in SYSTEMS[name](corpus):
                assert audio.dtype == np.float32, name
                assert audio.ndim == 1, name
                samples += len(audio)
            seconds = time.process_time() - start
            read = samples / RATE / 3600
            assert abs(read / corpus.hours - 1) < 0.05, (name, read, corpus.hours)
            if number:  # the first imports and warms up
                hours[name].append(read / seconds)
    rows = []
    for name, found in hours.items():
        ratios = [theirs / mine for theirs, mine in zip(found, hours["ours"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        row = {
            "what": "speed",
            "system": name,
            "audio_hours_per_second_per_core": statistics.median(found),
            "ratio_to_ours": statistics.median(ratios),
            "ratio_quartile_1": quartiles[0],
            "ratio_quartile_3": quartiles[2],
            "ratios": ratios,
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def simulated(corpus: Corpus, clips: int) -> ShardIndex:
    """An index of SHARDS shards of `clips` clips, which lie where those of the first tar do.

    Their keys differ, as an index's must; so where one is read, its tar is made then.
    """
    first = corpus.index.shards[0]
    places = sorted(first.entries, key=lambda e: e.offset)[:PER_SHARD]
    shards = []
    for number in range(SHARDS):
        entries = tuple(
            Entry(
                f"bg/{number:06d}-{i:04d}", e.seconds, e.offset + i // PER_SHARD * first.bytes, e.length
            )
            for i, e in ((i, places[i % PER_SHARD]) for i in range(clips))
        )
        size = -(-clips // PER_SHARD) * first.bytes
        path = f"bg/many-{number:06d}.tar"
        seconds = sum(e.seconds for e in entries)
        shards.append(Shard(path, "train", "bg", clips, seconds, size, "0" * 64, entries))
    return ShardIndex(corpus.folder, "simulated", SOURCE_RATE, 0, {}, tuple(shards))


def make_tar(corpus: Corpus, shard: Shard, wanted: list[Entry]) -> None:
    """Put real clips where `shard` is said to have `wanted`; between them it is a hole."""
    first = corpus.index.shards[0]
    audio = list(corpus.flacs.values())
    path = corpus.folder / shard.path
    path.touch()
    with path.open("r+b") as file:
        for entry in wanted:
            i = int(entry.key[-4:]) % PER_SHARD
            facts = json.dumps({"text": f"дума {i}", "language": "bg"}).encode()
            raw = io.BytesIO()
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for kind, content in (("flac", audio[i]), ("json", facts)):
                    info = tarfile.TarInfo(f"{entry.key}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                length = tar.offset
            assert length == entry.length == first.entries[i].length
            file.seek(entry.offset)
            file.write(raw.getvalue()[:length])


def first_step(corpus: Corpus, index: ShardIndex, folder: Path, step: int) -> tuple[float, float]:
    """Seconds of the clock and of the CPU from `folder` to the clips of `step`, 16 by 64 readers."""
    # What will be read of the shards is made before: that is not what is timed.
    wanted: dict[str, tuple[Shard, list[Entry]]] = {}
    plan = AdapterPlan(index.shards, 16, 64, 0, 30.0)
    for t in range(step, steps_of(pool_of(step)).stop, LANES):
        for sample in plan.step(t):
            wanted.setdefault(sample.shard.path, (sample.shard, []))[1].append(sample.entry)
    for shard, entries in wanted.values():
        make_tar(corpus, shard, entries)
    for cached in (sampling._shard_order, mixing._window):
        cached.cache_clear()
    gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    loaded = ShardIndex.load(folder)
    plan = AdapterPlan(loaded.shards, 16, 64, 0, 30.0)
    found = ClipReader(corpus.folder, plan, step + 10_000, 0, 1, 30.0).step(step)
    seconds = time.perf_counter() - start, time.process_time() - cpu
    assert len(found.clips) == 16
    assert not found.bad, found.bad[0]
    return seconds


def start_and_resume(corpus: Corpus, clips: int = 200) -> list[dict[str, Any]]:
    index = simulated(corpus, clips)
    folder = corpus.folder / "many"
    folder.mkdir()
    index.save(folder)
    at_start, far = [], []
    for _ in range(3):
        at_start.append(first_step(corpus, index, folder, 0))
        far.append(first_step(corpus, index, folder, FAR // 16))
    (folder / quick_index.FILE).unlink()
    without = first_step(corpus, index, folder, 0)
    common = {"shards": SHARDS, "clips_in_index": SHARDS * clips, "simulated_index": True}
    wall, cpu = (statistics.median(column) for column in zip(*at_start, strict=True))
    far_wall, far_cpu = (statistics.median(column) for column in zip(*far, strict=True))
    rows = [
        {
            "what": "start",
            **common,
            "index_columns": columns,
            "seconds_from_folder_to_first_step": found[0],
            "cpu_seconds": found[1],
        }
        for columns, found in ((True, (wall, cpu)), (False, without))
    ]
    rows.append(
        {
            "what": "resume",
            **common,
            "clips_before": FAR,
            "seconds_from_folder_to_first_step": far_wall,
            "cpu_seconds": far_cpu,
            "seconds_more_than_at_start": far_wall - wall,
            "cpu_seconds_more_than_at_start": far_cpu - cpu,
        }
    )
    for row in rows:
        print(row, flush=True)
    return rows


def memory(folder: Path, clips: int) -> list[dict[str, Any]]:
    """Resident set while `clips` clips of a fifth of a second are read."""
    corpus = Corpus(folder, CLIPS, (0.1, 0.3))
    plan = AdapterPlan(corpus.index.shards, 16, 4, 0, 30.0)
    steps = clips // 16
    reader = ClipReader(corpus.folder, plan, steps, 0, 1, 30.0)
    resident: dict[int, float] = {}
    for t in range(steps):
        reader.step(t)
        if t % (steps // 10) == 0 or t + 1 == steps:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident[(t + 1) * 16] = round(pages * 4096 / 1e6, 1)
    warm = next(mb for read, mb in resident.items() if read > clips / 20)
    row = {
        "what": "memory",
        "clips_heard": steps * 16,
        "resident_mb_after_a_tenth": warm,
        "resident_mb_at_end": list(resident.values())[-1],
        "most_resident_mb": max(resident.values()),
        "resident_mb_by_clips": resident,
    }
    print(row, flush=True)
    return [row]


if __name__ == "__main__":
    main()
