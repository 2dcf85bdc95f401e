"""New shards with word times: `salsa-dist shards align`.

    LANGUAGE/SPLIT-000000.tar ──times_of──► the same, "words": [[word, start, end], …] in their JSON

Audio is copied byte by byte. Samples that have word times keep them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from salsa_dist.corpus.archive import DamagedTar
from salsa_dist.corpus.build import MAX_DROPPED
from salsa_dist.corpus.tar_samples import found
from salsa_dist.corpus.upload import is_there, made_at
from salsa_dist.corpus.writer import Packed, write_tar
from salsa_dist.data.audio import BadAudio, mono, resample
from salsa_dist.data.clip import SAMPLE_RATE, Clip, Word
from salsa_dist.data.index import Shard, ShardIndex
from salsa_dist.data.reading import clip_of
from salsa_dist.data.shards import AUDIO_KINDS, BadSample, open_channels, read_facts
from salsa_dist.errors import UserError
from salsa_dist.log import log
from salsa_dist.places import Folder


def with_times(
    folder: Folder,
    out: Folder,
    times_of: Callable[[Clip], Sequence[Word]],
    by: dict[str, Any],
    max_dropped: float = MAX_DROPPED,
) -> tuple[ShardIndex, list[str]]:
    """Copy the shards of `folder` to `out` with word times. Returns the index, and why samples were
    dropped.

    Args:
        times_of: the words of a clip with their times; a `UserError` drops the sample.
        by: what told the times, for the index.
        max_dropped: the share of a language's samples that may be dropped.

    Raises:
        UserError: `out` is there already, a tar is damaged, or more samples were dropped than that.
    """
    if is_there(out):
        raise UserError(f"{out} is there: name another folder")
    old = ShardIndex.load(folder)
    dropped: list[str] = []
    replaced: list[str] = []  # samples with another kind of "words"
    lost: Counter[str] = Counter()
    first: dict[str, str] = {}  # why the first sample of a language was dropped
    shards: list[Shard] = []
    with made_at(out) as new:
        for shard in old.shards:
            before = len(dropped)
            samples = _timed(folder, shard, times_of, dropped, replaced)
            made = write_tar(new, shard.path, shard.split, shard.language, samples)
            lost[shard.language] += len(dropped) - before
            if len(dropped) > before:
                first.setdefault(shard.language, dropped[before])
            shards += [made] if made.samples else []
            log.info(f"{shard.path}: {made.samples} of {shard.samples} samples")
        for language, count in sorted(lost.items()):
            total = sum(shard.samples for shard in old.shards if shard.language == language)
            if count > max_dropped * total:
                raise UserError(
                    f"{language}: {count} of {total} samples were dropped, such as {first[language]}: "
                    "take another base, or allow more with --max-dropped"
                )
        if replaced:
            log.warning(
                f'{len(replaced)} samples, such as {replaced[0]}, had "words" that are not those of '
                "their text with times: the new shards have the times in their place"
            )
        if not shards:
            raise UserError(f"{folder}: no sample is left, such as {dropped[0]}")
        facts = {**old.recipe, "aligned": {**by, "dropped": dict(lost), "from": old.hash}}
        index = ShardIndex(out, old.name, old.sample_rate, old.seed, facts, tuple(shards))
        index.save(new)
    return index, dropped


def _timed(
    folder: Folder,
    shard: Shard,
    times_of: Callable[[Clip], Sequence[Word]],
    dropped: list[str],
    replaced: list[str],
) -> Iterator[Packed]:
    own = {entry.key: entry.seconds for entry in shard.entries}
    try:
        for sample in found(folder / shard.path):
            if sample.key not in own:
                continue  # left out of the index
            try:
                several, rate = open_channels(sample.files, shard.path, sample.key)
                facts = read_facts(sample.files, shard.path, sample.key)
                clip = clip_of(
                    sample.key, resample(mono(several), rate, SAMPLE_RATE), facts, shard.language
                )
                words = times_of(clip) if clip.words is None else clip.words
                if clip.words is None and "words" in facts:
                    replaced.append(f"{shard.path}: sample {sample.key}")
            except (BadAudio, BadSample) as e:
                dropped.append(str(e))
                continue
            except UserError as e:
                dropped.append(f"{shard.path}: {e}")
                continue
            kind = next(kind for kind in AUDIO_KINDS if kind in sample.files)
            facts = {**facts, "words": [list(word) for word in words]}
            yield Packed(sample.key, kind, sample.files[kind], facts, own[sample.key])
    except DamagedTar as e:
        raise UserError(f"{folder / shard.path} {e}: fetch it again, or remove it") from e
    except OSError as e:
        raise UserError(f"{folder / shard.path} can't be read ({e.strerror})") from e
