"""`salsa-dist shards`: build | lint | stats | index | reshard | align."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from salsa_dist.errors import UserError
from salsa_dist.log import result
from salsa_dist.machine import cores
from salsa_dist.places import place

app = typer.Typer(
    help="Build, check, index, reshard and align tar shards of speech.", no_args_is_help=True
)

# Click reads only what is no UserError as a usage error of its own.
Shards = Annotated[Any, typer.Argument(help="folder of shards, or s3://bucket/prefix …", parser=place)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Language = Annotated[str | None, typer.Option(help="language code of samples without one")]
Workers = Annotated[int | None, typer.Option(help="processes; default: one per available core")]


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="a recipe in shards/, such as jsonl, or a .py file")],
    source: Annotated[
        Path, typer.Argument(help="the corpus's folder, or a manifest; for hub ORG/NAME of a data set")
    ],
    out: Annotated[
        Any, typer.Argument(help="folder for the shards, or s3://bucket/prefix …", parser=place)
    ],
    languages: Annotated[
        str | None, typer.Option(help="language codes joined by commas; default: all")
    ] = None,
    language: Language = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="name of a field in the corpus: text=sentence_clean; repeatable"),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="licence of the corpus, if the recipe does not know it")
    ] = None,
    rate: Annotated[int, typer.Option(help="sampling rate of the shards in Hz")] = 16_000,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="keep original recordings; parts of them keep their rate")
    ] = False,
    samples_per_shard: Annotated[int, typer.Option(help="maximum number of samples per shard")] = 1000,
    min_seconds: Annotated[float, typer.Option(help="drop shorter samples")] = 0.1,
    max_seconds: Annotated[float, typer.Option(help="drop longer samples")] = 600.0,
    dev_share: Annotated[float, typer.Option(help="share for dev, if the corpus has no splits")] = 0.05,
    test_share: Annotated[
        float, typer.Option(help="share for test, if the corpus has no splits")
    ] = 0.05,
    keep: Annotated[
        str, typer.Option(help="kinds of doubtful samples to keep: cut-off,clipped, …; default: none")
    ] = "",
    max_dropped: Annotated[
        float, typer.Option(help="maximum share of dropped samples per language; more is an error")
    ] = 0.1,
    revision: Annotated[
        str | None, typer.Option(help="commit, tag or branch of a data set on a hub; default: main")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="subset of a data set on a hub, such as bg")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="splits of a data set on a hub, joined by commas; default: all")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the splits and the order")] = 0,
    workers: Workers = None,
) -> None:
    """Convert a corpus into tar shards with an index and a card.

    After a stop or a kill, the same command resumes the build. Any number of processes makes the same
    bytes.
    """
    from salsa_dist.corpus.build import build as build_shards
    from salsa_dist.corpus.utterance import Ask

    columns = dict(part.partition("=")[::2] for part in column or [])
    if not all(columns.values()):
        raise UserError(f"--column {' '.join(column or [])}: say FIELD=NAME, such as text=sentence")
    ask = Ask(
        languages=tuple(languages.split(",")) if languages else None,
        seed=seed,
        language=language,
        columns=columns,
        licence=licence,
        rate=None if as_is else rate,
        samples_per_shard=samples_per_shard,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        dev_share=dev_share,
        test_share=test_share,
        keep=tuple(sorted(part for part in keep.split(",") if part)),
        revision=revision,
        subset=subset,
        splits=tuple(part for part in (split or "").split(",") if part),
    )
    build_shards(recipe, source, out, ask, _processes(workers), max_dropped)


@app.command()
def lint(
    folder: Shards,
    min_seconds: Annotated[float, typer.Option(help="shortest valid sample")] = 0.1,
    max_seconds: Annotated[float, typer.Option(help="longest valid sample")] = 600.0,
    rate: Annotated[
        int | None, typer.Option(help="expected sampling rate in Hz; default: from the index")
    ] = None,
    show: Annotated[int, typer.Option(help="problems to print per kind")] = 100,
    as_json: AsJson = False,
    workers: Workers = None,
) -> None:
    """List damaged shards and samples, and content that two splits share.

    Exit status: 0 if all is well, 1 if there are problems, 2 if it could not be checked.
    """
    from collections import Counter

    from salsa_dist.corpus.lint import Bounds
    from salsa_dist.corpus.lint import lint as lint_shards

    bounds = Bounds(min_seconds, max_seconds, rate)
    problems, samples = lint_shards(folder, bounds, _processes(workers))
    if as_json:
        result(json.dumps({"samples": samples, "problems": [asdict(p) for p in problems]}))
    else:
        shown: Counter[str] = Counter()
        for problem in problems:
            shown[problem.kind] += 1
            if shown[problem.kind] <= show:
                result(problem)
        for kind, count in shown.items():
            if count > show:
                result(f"… and {count - show} more of the kind {kind}")
        said = ", ".join(f"{n} {kind}" for kind, n in shown.items()) or "no problem"
        result(f"{folder}: {samples} samples, {said}")
    if problems:
        raise typer.Exit(1)


@app.command()
def stats(folder: Shards, as_json: AsJson = False) -> None:
    """Show counts and durations from the index."""
    from salsa_dist.corpus import stats as of_shards
    from salsa_dist.data.index import ShardIndex

    index = ShardIndex.load(folder)
    if as_json:
        about = {"name": index.name, "hash": index.hash}
        result(json.dumps({**about, "rows": of_shards.rows(index), **of_shards.counts(index)}))
    else:
        result(of_shards.said(index))


@app.command()
def index(
    folder: Annotated[
        Any, typer.Argument(help="folder of WebDataset tars without an index.json", parser=place)
    ],
    language: Language = None,
    split: Annotated[
        str | None, typer.Option(help="split of all tars; default: from their paths, else train")
    ] = None,
) -> None:
    """Write an index.json for tars made elsewhere, so that they can be used for training.

    A sample is audio (flac, wav, mp3, ogg, opus) and its text in .txt or .json.
    """
    from collections import Counter

    from salsa_dist.corpus.foreign import index_tars

    made, left_out = index_tars(folder, language, split)
    _report(left_out)
    splits: Counter[str] = Counter()
    for shard in made.shards:
        splits[f"{shard.split} in {shard.language}"] += shard.samples
    said = ", ".join(f"{n} {name}" for name, n in splits.items())
    result(f"{made.folder / 'index.json'}: {splits.total()} samples: {said}")


@app.command()
def reshard(
    folder: Annotated[
        Any, typer.Argument(help="folder of shards, or of tars without an index", parser=place)
    ],
    out: Annotated[Any, typer.Argument(help="folder for the new shards", parser=place)],
    samples_per_shard: Annotated[
        int | None, typer.Option(help="maximum number of samples per shard")
    ] = None,
    shard_size: Annotated[
        float | None, typer.Option(help="approximate size of a shard in megabytes")
    ] = None,
    language: Language = None,
    split: Annotated[
        str | None,
        typer.Option(help="split of tars without an index; default: from their paths, else train"),
    ] = None,
) -> None:
    """Copy samples into shards of another size, with one language and split per shard."""
    from salsa_dist.corpus.foreign import reshard as reshard_tars

    size = round(shard_size * 1e6) if shard_size else None
    made, left_out = reshard_tars(folder, out, samples_per_shard, size, language, split)
    _report(left_out)
    result(f"{out}: {sum(s.samples for s in made.shards)} samples in {len(made.shards)} shards")


@app.command()
def align(
    folder: Shards,
    out: Annotated[Any, typer.Argument(help="folder for the new shards", parser=place)],
    base: Annotated[
        str, typer.Option(help="an encoder with CTC for the language: a folder, or a name on the hub")
    ],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of the base")] = None,
    max_dropped: Annotated[
        float, typer.Option(help="maximum share of dropped samples per language; more is an error")
    ] = 0.1,
) -> None:
    """Copy shards with the times of their words, which Kyutai STT and Voxtral-Realtime learn.

    Audio stays as it is. Samples that have word times keep them.
    """
    from salsa_dist.corpus.timed import with_times
    from salsa_dist.data.index import ShardIndex
    from salsa_dist.run.memory import IN_LOADING, full_memory_in_one_line
    from salsa_dist.speech_llms.load import load_speech_llm
    from salsa_dist.speech_llms.word_alignment import WordTimes, refuse_without_ctc

    refuse_without_ctc(base, revision)
    longest = max(e.seconds for shard in ShardIndex.load(folder).shards for e in shard.entries)
    with full_memory_in_one_line(lambda: f"loading base {base}", IN_LOADING):
        loaded = load_speech_llm(base, revision=revision, window_s=longest + 1.0)
    by = {"base": loaded.name, "revision": loaded.revision}
    made, dropped = with_times(folder, out, WordTimes(loaded).of, by, max_dropped)
    _report(dropped)
    result(
        f"{out}: {sum(s.samples for s in made.shards)} samples with word times, {len(dropped)} dropped"
    )


def _report(left_out: list[str]) -> None:
    for why in left_out[:20]:
        result(f"skipped: {why}")
    if len(left_out) > 20:
        result(f"… and {len(left_out) - 20} more")


def _processes(workers: int | None) -> int:
    return cores() if workers is None else workers
