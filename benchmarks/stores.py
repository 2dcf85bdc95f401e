"""How fast speech comes out of tar shards behind a link that delays every answer.

    python benchmarks/stores.py --json OUT [--rounds 5] [--delays 0 0.005 0.05]
    python benchmarks/stores.py --json OUT --rounds 2 --delays 0.005 --seconds 0.2 0.4      to see that it works

Needs `pip install salsa-dist[benchmarks,hub]` and curl, by which two of the others read. One HTTP server on
loopback, a process of its own, waits before each answer and counts the bytes that it sends. In each round
every system goes once through the same clips (those of `streaming.py`), in random order:

folder            ours, the shards in a folder
cold, warm        ours by https://'s driver, with an empty cache, then with what that left
webdataset        its shards by `pipe:curl`, as it reads http:// by itself
webdataset fsspec the same through the driver that ours uses, which reads ahead by 5 MB
datasets          `load_dataset("webdataset", streaming=True)` of the same URLs
lhotse shar       the same FLAC files in its own shards, by `pipe:curl`

A row is one system at one delay: audio hours a second of CPU (of the process and of curl; not of the
server), and a second of the clock once the first step is there, both as ratios to `folder` of the same
round; seconds to the first step's clips, index included; bytes fetched per byte of the clips used. Each is
the median of the rounds, with quartiles. The clock is that of a machine that others may use.

{"rows": [{"system": "cold", "delay_s": 0.05, "audio_hours_per_cpu_second": …, "cpu_ratio_to_folder": …}, …]}
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import CLIPS, RATE, Corpus, hugging_face_datasets, lhotse_shar, plain_webdataset

from salsa_dist.data import shard_cache
from salsa_dist.data.file_hash import summed
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import ClipReader
from salsa_dist.data.sampling import AdapterPlan
from salsa_dist.places import Cache, Folder, Remote

A_STEP = 8  # clips
NUMBERS = (
    *("audio_hours_per_cpu_second", "cpu_ratio_to_folder", "clock_ratio_to_folder"),
    *("seconds_to_first_step", "bytes_fetched_per_byte_used"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.005, 0.05], help="seconds")
    parser.add_argument("--seconds", type=float, nargs=2, default=[2, 8], help="length of the clips")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of the others
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder) / "speech", CLIPS, tuple(options.seconds))
        index = corpus.index
        sums = ((s, *summed(corpus.folder / s.path, s.entries)) for s in index.shards)
        whole = tuple(replace(s, sha256=sha256, entries=found) for s, sha256, found in sums)
        corpus.index = replace(index, shards=whole)
        corpus.index.save(corpus.folder)
        corpus.write_shar()
        for delay_s in options.delays:
            with Server(Path(folder) / "speech", delay_s) as server:
                rows += at_delay(corpus, server, Path(folder) / "cache", options.rounds)
    libraries = ("webdataset", "datasets", "lhotse", "fsspec", "aiohttp", "soundfile", "soxr", "torch")
    delays = " ".join(map(str, options.delays))
    report = {
        "date": str(date.today()),
        "machine": ", ".join(f"{name} {version(name)}" for name in libraries),
        "command": f"benchmarks/stores.py --rounds {options.rounds} --delays {delays}",
        "clips": CLIPS,
        "audio_hours": corpus.hours,
        "rounds": options.rounds,
        "rows": rows,
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


class Server:
    """Serves the files below `folder`, each answer `delay_s` after its request; counts what it sent."""

    def __init__(self, folder: Path, delay_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.delay_s = delay_s
        self._sent = context.Value("q", 0)
        mine, its = context.Pipe()
        self._process = context.Process(target=serve, args=(folder, delay_s, self._sent, its))
        self._process.start()
        self.url = f"http://127.0.0.1:{mine.recv()}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def sent(self) -> int:
        return int(self._sent.value)


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that leaves early is none."""


def serve(folder: Path, delay_s: float, sent: Synchronized[int], told: Any) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            time.sleep(delay_s)
            path = folder / self.path.lstrip("/")
            size = path.stat().st_size if path.is_file() else 0
            start, end = 0, size
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last or size - 1) + 1, size)
            self.send_response(404 if not size else 206 if wanted else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{size}"')
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.end_headers()
            if self.command == "GET" and size:
                with path.open("rb") as file:
                    file.seek(start)
                    self.wfile.write(file.read(end - start))
                with sent.get_lock():
                    sent.value += end - start

        do_HEAD = do_GET

    server = Quiet(("127.0.0.1", 0), Handler)
    told.send(server.server_address[1])
    server.serve_forever()


# The systems: each yields the samples of audio that it went through, first those of the first step.


def ours(folder: Folder) -> Iterator[int]:
    index = ShardIndex.load(folder)
    plan = AdapterPlan(index.shards, A_STEP, 4, 0, 30.0)
    steps = sum(s.samples for s in index.shards) // A_STEP
    reader = ClipReader(folder, plan, steps, 0, 1, 30.0)
    for t in range(steps):
        yield sum(len(clip.audio) for clip, _ in reader.step(t).clips)


def by_curl(url: str) -> str:
    """A name of what webdataset and Lhotse read from a process."""
    # Unquoted: Lhotse goes by how the name ends.
    return f"pipe:curl -s -L {url}" + (" | gunzip -c" if url.endswith(".gz") else "")


def through_fsspec(urls: list[str]) -> Iterator[np.ndarray]:
    import fsspec
    from webdataset import gopen_schemes

    before = gopen_schemes["http"]
    gopen_schemes["http"] = lambda url, mode, size: fsspec.open(url, mode).open()
    try:
        yield from plain_webdataset(urls)
    finally:
        gopen_schemes["http"] = before


def stepwise(clips: Iterator[np.ndarray]) -> Iterator[int]:
    """What others give clip by clip."""
    while step := [len(audio) for audio in islice(clips, A_STEP)]:
        yield sum(step)


def at_delay(corpus: Corpus, server: Server, cache: Path, rounds: int) -> list[dict[str, Any]]:
    urls = [f"{server.url}/tars/{s.path}" for s in corpus.index.shards]
    shar = {
        field: [by_curl(f"{server.url}/shar/{p.name}") for p in sorted(corpus.shar.glob(f"{field}.*"))]
        for field in ("cuts", "recording")
    }
    others: dict[str, Callable[[], Iterator[np.ndarray]]] = {
        "webdataset": lambda: plain_webdataset([by_curl(url) for url in urls]),
        "webdataset fsspec": lambda: through_fsspec(urls),
        "datasets": lambda: hugging_face_datasets(urls),
        "lhotse shar": lambda: lhotse_shar(fields=shar),
    }

    def system(name: str) -> Iterator[int]:
        if name == "folder":
            return ours(corpus.folder)
        if name in others:
            return stepwise(others[name]())
        if name == "cold":
            shutil.rmtree(cache, ignore_errors=True)
        shard_cache._caches.clear()
        return ours(Remote(f"{server.url}/tars", Cache(cache)))

    parts = [["folder"], ["cold", "warm"], *([name] for name in others)]
    order = random.Random(0)
    used = sum(s.bytes for s in corpus.index.shards)
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        once = {}
        for part in order.sample(parts, len(parts)):
            for name in part:
                once[name] = measured(system(name), server, corpus.hours)
        for name, own in once.items():
            ratio = {
                "cpu_ratio_to_folder": once["folder"]["cpu_s"] / own["cpu_s"],
                "clock_ratio_to_folder": once["folder"]["running_s"] / own["running_s"],
                "audio_hours_per_cpu_second": corpus.hours / own["cpu_s"],
                "bytes_fetched_per_byte_used": own["sent"] / used,
            }
            if number:  # the first imports and warms up
                for key, value in {**own, **ratio}.items():
                    found.setdefault(name, {}).setdefault(key, []).append(value)
    rows = []
    for name, numbers in found.items():
        row: dict[str, Any] = {"system": name, "delay_s": server.delay_s}
        for key in NUMBERS:
            row[key] = statistics.median(numbers[key])
            quartiles = statistics.quantiles(numbers[key], n=4)
            row[f"{key}_quartiles"] = [quartiles[0], quartiles[2]]
        print(row, flush=True)
        rows.append(row)
    return rows


def measured(steps: Iterator[int], server: Server, hours: float) -> dict[str, float]:
    import resource

    def cpu() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))

    sent, cpu_before, start = server.sent(), cpu(), time.perf_counter()
    samples = next(steps)
    first = time.perf_counter()
    samples += sum(steps)
    end = time.perf_counter()
    assert abs(samples / RATE / 3600 / hours - 1) < 0.05, (samples, hours)
    return {
        "cpu_s": cpu() - cpu_before,
        "running_s": end - first,
        "seconds_to_first_step": first - start,
        "sent": server.sent() - sent,
    }


if __name__ == "__main__":
    main()
