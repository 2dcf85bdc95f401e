"""`shards lint`: every shard and sample that is damaged, and what two splits share.

    folder ─► each tar, in its own process: sha256, tar, names, audio, rate, length, doubts, text, index
           ─► all together: speakers and texts of a language that are in two splits, but for what the
              way in which the index says that it was split leaves open
           ─► Problem ── shard, sample (None: the whole shard), kind, what

Without an index the tars are checked alone; splits are then told from their paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context

from salsa_dist.corpus import doubts, splits
from salsa_dist.corpus.archive import DamagedTar
from salsa_dist.corpus.tar_samples import Found, compressed, found, tars
from salsa_dist.corpus.text import same
from salsa_dist.corpus.utterance import split_in
from salsa_dist.data.audio import MAX_SECONDS, BadAudio
from salsa_dist.data.file_hash import sha256_of
from salsa_dist.data.index import FILE, Shard, ShardIndex
from salsa_dist.data.shards import AUDIO_KINDS, BadSample, open_channels, read_facts
from salsa_dist.errors import UserError
from salsa_dist.places import Folder


@dataclass(frozen=True)
class Problem:
    """A problem; `kind` is shard, tar, index, name, audio, length, rate, text, split, or one of
    `doubts.KINDS`."""

    shard: str
    sample: str | None
    kind: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.sample, self.what) if part)


@dataclass(frozen=True)
class Bounds:
    """The allowed audio of a sample: seconds, and Hz if one rate is required."""

    min_seconds: float = 0.1
    max_seconds: float = MAX_SECONDS
    rate: int | None = None
    keep: tuple[str, ...] = ()  # kinds of doubtful samples that the build was asked to keep


@dataclass
class Checked:
    """The content of one tar; speakers and texts are (language, name) -> key of the first sample."""

    shard: str
    split: str
    samples: int = 0
    problems: list[Problem] = field(default_factory=list)
    speakers: dict[tuple[str, str], str] = field(default_factory=dict)
    texts: dict[tuple[str, str], str] = field(default_factory=dict)


def lint(folder: Folder, bounds: Bounds, workers: int = 1) -> tuple[list[Problem], int]:
    """All problems of a folder of shards, and the number of checked samples.

    Raises:
        UserError: there is no folder, or nothing in it to check, or an index that can't be read.
    """
    try:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: name a folder of shards")
        shards: dict[str, Shard | None] = dict.fromkeys(tars(folder))
        indexed, packed = (folder / FILE).exists(), compressed(folder)
    except OSError as e:
        raise UserError(f"{folder} can't be read ({e.strerror})") from e
    problems = [Problem(path, None, "tar", "is compressed: unpack it to a .tar") for path in packed]
    how: object = {}
    if indexed:
        index = ShardIndex.load(folder)
        if bounds.rate is None:
            bounds = replace(bounds, rate=index.sample_rate or None)
        bounds = replace(bounds, keep=tuple(index.recipe.get("asked", {}).get("keep", ())))
        how = index.recipe.get("splits", {})
        known = {shard.path: shard for shard in index.shards}
        problems += [
            Problem(path, None, "index", f"is not in {FILE}") for path in shards if path not in known
        ]
        shards = dict(sorted({**shards, **known}.items()))
    if not shards and not packed:
        raise UserError(f"{folder} holds no .tar: name a folder of shards")
    checked = _each(partial(check, folder, bounds), list(shards.items()), workers)
    for one in checked:
        problems += one.problems
    problems += shared(checked, how if isinstance(how, dict) else {})
    return problems, sum(one.samples for one in checked)


def check(folder: Folder, bounds: Bounds, item: tuple[str, Shard | None]) -> Checked:
    """Check one tar, against its entry in the index if it has one."""
    path, shard = item
    result = Checked(path, shard.split if shard else split_in(path) or "train")
    file = folder / path

    def problem(sample: str | None, kind: str, what: str) -> None:
        result.problems.append(Problem(path, sample, kind, what))

    try:
        size = file.stat().st_size
        if shard and size != shard.bytes:
            problem(None, "shard", f"has {size} bytes, the index says {shard.bytes}")
        elif shard and sha256_of(file) != shard.sha256:
            problem(None, "shard", "has another sha256 than the index says: it was changed or damaged")
    except OSError as e:
        problem(None, "shard", f"can't be read ({e.strerror})")
        return result
    left = {entry.key: entry for entry in shard.entries} if shard else {}
    seen: set[str] = set()
    try:
        for sample in found(file):
            result.samples += 1
            if sample.key in seen:
                problem(sample.key, "name", "is there twice")
            seen.add(sample.key)
            seconds = _check_sample(sample, path, bounds, problem, result)
            if shard is None:
                continue
            entry = left.pop(sample.key, None)
            if entry is None:
                problem(sample.key, "index", "is not in the index")
            elif (entry.offset, entry.length) != (sample.offset, sample.length):
                problem(sample.key, "index", "lies elsewhere than the index says")
            elif seconds is not None and abs(entry.seconds - seconds) > 0.01:
                problem(sample.key, "index", f"has {seconds:.3f} s, the index says {entry.seconds}")
    except DamagedTar as e:
        problem(None, "tar", str(e))
    except OSError as e:
        problem(None, "shard", f"can't be read ({e.strerror})")
    for missing in left:
        problem(missing, "index", "is in the index, not in the tar")
    return result


def shared(checked: Iterable[Checked], how: Mapping[str, str]) -> list[Problem]:
    """Speakers and texts of a language that are in several splits, although `how` allows none."""
    problems = []
    for field_name, what in (("speakers", "speaker"), ("texts", "text")):
        where: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
        for one in checked:
            for named, key in getattr(one, field_name).items():
                where.setdefault(named, {}).setdefault(one.split, (one.shard, key))
        for (language, name), found_in in sorted(where.items()):
            if len(found_in) > 1 and splits.may_share(how.get(language, "")) != what:
                shard, key = next(iter(found_in.values()))
                places = ", ".join(f"{split} ({key})" for split, (_, key) in sorted(found_in.items()))
                said = f"{what} {name[:60]!r} in {language} is in {places}"
                problems.append(Problem(shard, key, "split", said))
    return problems


def _check_sample(
    sample: Found,
    path: str,
    bounds: Bounds,
    problem: Callable[[str | None, str, str], None],
    result: Checked,
) -> float | None:
    """Seconds of its audio, where that can be read."""
    for note in sample.notes:
        problem(sample.key, "name", note)
    seconds = None
    try:
        audio, rate = open_channels(sample.files, path, sample.key)
        seconds = len(audio) / rate
        if bounds.rate and rate != bounds.rate:
            problem(sample.key, "rate", f"has {rate} Hz, not {bounds.rate}")
        if not bounds.min_seconds <= seconds <= bounds.max_seconds:
            said = f"not {bounds.min_seconds:g} to {bounds.max_seconds:g}"
            problem(sample.key, "length", f"has {seconds:.3f} s, {said}")
    except BadAudio as e:
        problem(sample.key, e.kind, e.what)
    try:
        facts = read_facts(sample.files, path, sample.key)
    except BadSample as e:
        problem(sample.key, "text", e.what)
        return seconds
    if seconds is not None:
        kind = next(kind for kind in AUDIO_KINDS if kind in sample.files)
        for doubt in (
            doubts.of_header(sample.files[kind]),
            doubts.of_audio(audio, rate, facts["text"], bool(facts["text"].strip())),
        ):
            if doubt and doubts.kind_of(doubt) not in bounds.keep:
                problem(sample.key, doubts.kind_of(doubt), f"is {doubt}")
    language = str(facts.get("language", ""))
    if facts.get("speaker"):
        result.speakers.setdefault((language, str(facts["speaker"])), sample.key)
    if facts["text"].strip():
        result.texts.setdefault((language, same(facts["text"])), sample.key)
    return seconds


def _each(
    job: Callable[[tuple[str, Shard | None]], Checked],
    items: list[tuple[str, Shard | None]],
    workers: int,
) -> list[Checked]:
    if min(workers, len(items)) <= 1:
        return [job(item) for item in items]
    try:
        with ProcessPoolExecutor(min(workers, len(items)), mp_context=get_context("spawn")) as pool:
            return list(pool.map(job, items))
    except BrokenProcessPool as e:
        raise UserError(
            "a process that read shards was killed (out of memory?): lint again, with fewer --workers"
        ) from e
