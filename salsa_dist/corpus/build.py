"""Runs a recipe: `build("tuxpaint", source, out, Ask(languages=("bg", "el")), workers=4)`.

    recipe.read(source, …) ─► Corpus ─► splits, order ─► Task, Task, … ─► make, in any process
                                                                               │
    out/  index.json, README.md (the card), dropped.tsv, LANGUAGE/SPLIT-NUMBER.tar

Shards are made in a hidden folder beside `out`, which becomes `out` when all are there. A build that
was killed goes on from the shards that it had finished. What a shard holds is decided before any audio
is read, so the bytes don't depend on the number of processes.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from salsa_dist.corpus import card, doubts, splits
from salsa_dist.corpus.make_all import make_all
from salsa_dist.corpus.make_tar import Made, Task
from salsa_dist.corpus.recipes import load_recipe, name_of
from salsa_dist.corpus.stats import said
from salsa_dist.corpus.text import RULES, clean
from salsa_dist.corpus.upload import building_folder, is_there, remove_built, upload
from salsa_dist.corpus.utterance import Ask, Corpus, Drops, Utterance
from salsa_dist.corpus.writer import NAME, is_key
from salsa_dist.data.audio import MAX_SECONDS, resampler
from salsa_dist.data.index import FILE, ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.log import log
from salsa_dist.places import Folder, Remote, place
from salsa_dist.whole_file import put

# Each rank reads shards of its own, so there are several, however few clips a split has.
MIN_SHARDS = {"train": 8, "dev": 1, "test": 2}
MAX_DROPPED = 0.1
# Dropped because the user asked so, and no sign of a damaged corpus.
ASKED = ("too short", "too long")
# Dropped before any audio is read, and a sign of one. A recipe's other reasons are its corpus's own.
UNUSABLE = ("no text", "no audio", "no recording", "same audio again")
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar")


def build(
    recipe: str,
    source: str | Path,
    out: str | Folder,
    ask: Ask | None = None,
    workers: int = 1,
    max_dropped: float = MAX_DROPPED,
) -> ShardIndex:
    """The shards that `recipe` makes of `source`, built into `out` or found there.

    `max_dropped` is the share of a language's utterances that may turn out to be of no use.

    Raises:
        UserError: no such recipe, a source that it can't read, an `out` that holds other things, or
            more dropped than that.
    """
    ask = ask or Ask()
    module, name = load_recipe(recipe), name_of(recipe)
    source, out = Path(source), place(out)
    _check(ask, workers, max_dropped)
    if isinstance(out, Remote):
        return _build_remote(recipe, source, out, ask, workers, max_dropped)
    remote = getattr(module, "REMOTE", False)
    if not remote and (ask.revision or ask.subset or ask.splits):
        raise UserError(
            f"--revision, --subset and --split are of recipe hub, not of {name}: remove them"
        )
    if not remote and not source.exists():
        raise UserError(f"{source} is not there: name the corpus's folder or manifest")
    if not remote and source.is_file() and source.name.lower().endswith(ARCHIVES):
        raise UserError(f"{source} is an archive: unpack it, and name the folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _already_built(name, out, ask)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _work_folder(out) as folder:
        scratch = out.parent / f".{out.name}.unpacked"
        corpus = module.read(source, ask, scratch)
        if not isinstance(corpus, Corpus):
            raise UserError(f"recipe {recipe!r}: its read() must return a Corpus")
        drops = Drops(
            {language: Counter(counts) for language, counts in corpus.dropped.items()},
            {language: dict(first) for language, first in corpus.first.items()},
        )
        tasks, how = plan(recipe, source, corpus, ask, drops)
        made = make_all(tasks, folder, workers)
        _check_dropped(tasks, made, drops, max_dropped)
        index = _finish(name, out, folder, corpus, ask, tasks, made, how, drops.counts)
        shutil.rmtree(scratch, ignore_errors=True)
    log.info(said(index))
    return index


def _build_remote(
    recipe: str, source: Path, out: Remote, ask: Ask, workers: int, max_dropped: float
) -> ShardIndex:
    if is_there(out):
        return _already_built(name_of(recipe), out, ask)
    here = building_folder(out)
    built = build(recipe, source, here, ask, workers, max_dropped)
    upload(here, out)
    remove_built(out)
    log.info(f"sent to {out}: {len(built.shards)} shards")
    return replace(built, folder=out)


def plan(
    recipe: str, source: Path, corpus: Corpus, ask: Ask, drops: Drops
) -> tuple[list[Task], dict[str, str]]:
    """The shards to make, and how each language was split; texts that are empty go to `drops`."""
    by_language: dict[str, list[Utterance]] = {}
    there: Counter[str] = Counter()
    seen: dict[str, str] = {}
    audio: set[tuple[object, ...]] = set()
    for utterance in corpus.utterances:
        language = utterance.language
        there[language] += 1
        if not ask.wants(language):
            continue
        key = f"{language}/{utterance.key}"
        if not NAME.fullmatch(language):
            raise UserError(
                f"{utterance.place or source}: the language {language!r} is no code: write it with "
                "letters, digits, _ and -"
            )
        if not is_key(key):
            raise UserError(f"recipe {recipe!r}: {key!r} can't be a key: make it with utterance.key")
        u = utterance
        place = (language, u.audio, u.row, u.start, u.end, u.channel)
        if place in audio:
            drops.add(language, "same audio again", u.place)
            continue
        audio.add(place)
        if key in seen:
            raise UserError(
                f"{u.place or source}: two utterances in {language} are called {utterance.key}"
                f"{f' (the first: {seen[key]})' if seen[key] else ''}: keys must differ"
            )
        seen[key] = u.place
        if clean(utterance.text) or not utterance.speech:
            by_language.setdefault(language, []).append(replace(utterance, key=key))
        else:
            drops.add(language, "no text", u.place)
    missing = [language for language in ask.languages or () if language not in there]
    if missing or not by_language:
        # A recipe may read only the languages asked for, so `there` may lack what the source has.
        known = ", ".join(f"{language} ({n})" for language, n in sorted(there.items()))
        raise UserError(
            f"{source} has no utterances in {', '.join(missing) or 'any language'}"
            f"{f'; it has {known}' if known else ''}: look at the source and the languages asked"
        )
    tasks, how = [], {}
    for language, utterances in sorted(by_language.items()):
        drops.counts.setdefault(language, Counter())
        parts, how[language] = splits.deal(utterances, ask)
        for split, part in sorted(parts.items()):
            if not corpus.ordered:
                part = splits.shuffled(part, ask.seed)
            shards = max(math.ceil(len(part) / ask.samples_per_shard), MIN_SHARDS[split])
            size = math.ceil(len(part) / shards)
            for number, first in enumerate(range(0, len(part), size)):
                path = f"{language}/{split}-{number:06d}.tar"
                chunk = tuple(part[first : first + size])
                licence = ask.licence or corpus.licence
                task = Task(recipe, path, split, language, chunk, ask, licence, corpus.source)
                tasks.append(task)
    return tasks, how


def _check(ask: Ask, workers: int, max_dropped: float) -> None:
    wrong = []
    if workers < 1 or ask.samples_per_shard < 1:
        wrong.append("workers and samples per shard must be 1 or more")
    if ask.rate is not None and not 4_000 <= ask.rate <= 384_000:
        wrong.append(f"a rate of {ask.rate} Hz is not from 4000 to 384000")
    if not 0 < ask.min_seconds < ask.max_seconds <= MAX_SECONDS:
        wrong.append(f"seconds go from more than 0 to {MAX_SECONDS:g}, the shortest first")
    if not (ask.dev_share >= 0 and ask.test_share >= 0 and ask.dev_share + ask.test_share < 1):
        wrong.append("the shares of dev and test must be 0 or more, and less than 1 together")
    if not 0 <= max_dropped <= 1:
        wrong.append(f"the share of drops is {max_dropped:g}: 0 to 1, such as 0.1 for a tenth")
    if unknown := [kind for kind in ask.keep if kind not in doubts.KINDS]:
        wrong.append(f"no kind of doubt is {', '.join(unknown)}: there are {', '.join(doubts.KINDS)}")
    if wrong:
        raise UserError("; ".join(wrong))


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """The folder that becomes `out`. It stays when a build is stopped, so that the next resumes."""
    folder = out.parent / f".{out.name}.building"
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"{out} is being built by another process: wait for it") from e
        except OSError as e:
            raise UserError(
                f"{folder} can't be locked ({e.strerror}): build on another file system, such as a "
                "node's own disk, then copy the shards"
            ) from e
        yield folder
    finally:
        os.close(lock)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _check_dropped(tasks: Sequence[Task], made: dict[str, Made], before: Drops, most: float) -> None:
    """Check the share of dropped utterances. Raises: UserError: it is above `most` in one language."""
    if not any(one.shard for one in made.values()):
        return  # nothing is left, which is told another way
    tried: Counter[str] = Counter()
    gone: dict[str, list[tuple[str, str]]] = {}
    for task in tasks:
        tried[task.language] += len(task.utterances)
        gone.setdefault(task.language, []).extend(made[task.path].dropped)
    for language, dropped in sorted(gone.items()):
        bad = [(key, why) for key, why in dropped if why.split(":")[0] not in ASKED]
        kinds = Counter(why.split(":")[0] for _, why in bad)
        own = before.counts.get(language, Counter())
        kinds += Counter({why: own[why] for why in UNUSABLE})
        first = before.first.get(language, {})
        every = tried[language] + kinds.total() - len(bad)
        if kinds.total() > most * every:
            examples = [f"{key} ({why})" for key, why in bad[:1]]
            examples += [f"{first[why]} ({why})" for why in UNUSABLE if own[why] and why in first]
            example = f", such as {examples[0]}" if examples else ""
            raise UserError(
                f"{kinds.total()} of {every} utterances in {language} can't be used "
                f"({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}){example}: fix the "
                f"source, or allow more than {most:g} with --max-dropped"
            )


def _finish(
    name: str,
    out: Path,
    folder: Path,
    corpus: Corpus,
    ask: Ask,
    tasks: Sequence[Task],
    made: dict[str, Made],
    how: dict[str, str],
    dropped: dict[str, Counter[str]],
) -> ShardIndex:
    shards = tuple(sorted((m.shard for m in made.values() if m.shard), key=lambda s: s.path))
    gone = {key: why for path in sorted(made) for key, why in made[path].dropped}
    speakers: dict[str, dict[str, set[str | None]]] = {}
    for task in tasks:
        named = speakers.setdefault(task.language, {}).setdefault(task.split, set())
        named |= {u.speaker for u in task.utterances if u.key not in gone}
        for utterance in task.utterances:
            if utterance.key in gone:
                dropped[task.language][gone[utterance.key].split(":")[0]] += 1
    if not shards:
        example = next(iter(gone.items()), ("", "nothing was found"))
        raise UserError(
            f"no sample for {out}: all {len(gone)} utterances were dropped, such as {example[0]} "
            f"({example[1]})"
        )
    facts: dict[str, Any] = {
        "source": corpus.source,
        "licence": ask.licence or corpus.licence,
        "languages": sorted(how),
        "text": [*RULES, *corpus.text_rules],
        "splits": dict(sorted(how.items())),
        "speakers": {
            language: {split: len(names - {None}) for split, names in sorted(parts.items())}
            for language, parts in sorted(speakers.items())
        },
        "audio": "as it came" if ask.rate is None else f"mono FLAC, 16 bit, {ask.rate} Hz",
        "resampler": resampler(),
        "asked": ask.facts(),
        "touched": {lang: dict(sorted(n.items())) for lang, n in sorted(corpus.touched.items())},
        "dropped": {lang: dict(sorted(counts.items())) for lang, counts in sorted(dropped.items())},
        **corpus.facts,
    }
    if marked := _marked(tasks, gone):
        facts["marked"] = marked
    index = ShardIndex(out, name, ask.rate or 0, ask.seed, facts, shards)
    for note in folder.rglob("*.tar.json"):
        note.unlink()
    if gone:
        lines = [f"{key}\t{' '.join(why.split())}\n" for key, why in gone.items()]
        (folder / "dropped.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "README.md").write_text(card.write(index), encoding="utf-8")
    index.save(folder)
    put(folder, out)
    return index


def _marked(tasks: Sequence[Task], gone: Container[str]) -> dict[str, dict[str, int]]:
    """For each language, how many utterances have no speech, or a weight of their own."""
    found: dict[str, Counter[str]] = {}
    for task in tasks:
        for u in task.utterances:
            said = {"without speech": not u.speech, "with a loss_weight": u.loss_weight != 1}
            if u.key not in gone and any(said.values()):
                found.setdefault(task.language, Counter()).update(k for k, v in said.items() if v)
    return {language: dict(sorted(counts.items())) for language, counts in sorted(found.items())}


def _already_built(name: str, out: Folder, ask: Ask) -> ShardIndex:
    if not (out / FILE).is_file():
        raise UserError(f"{out} is not empty and holds no shards: name another folder")
    index = ShardIndex.load(out)
    there = (index.name, index.seed)
    if there != (name, ask.seed):
        raise UserError(
            f"{out} holds {there[0]} built with seed {there[1]}, not {name} with seed {ask.seed}: "
            "name another folder"
        )
    built = index.recipe.get("languages")
    if ask.languages is not None and sorted(ask.languages) != built:
        raise UserError(
            f"{out} holds the languages {built}, not {sorted(ask.languages)}: name another folder"
        )
    asked = index.recipe.get("asked", Ask().facts())
    usual = Ask().facts()  # what an older build was not asked yet
    now = ask.facts()
    other = [k for k in {**now, **asked} if asked.get(k, usual.get(k)) != now.get(k)]
    if other:
        raise UserError(
            f"{out} was built with another {', '.join(other)} "
            f"({', '.join(str(asked.get(k)) for k in other)}): name another folder"
        )
    for shard in index.shards:
        path = out / shard.path
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(f"{path} is missing or cut off: remove {out} and build it again")
    log.info(f"already built: {out}")
    return index
