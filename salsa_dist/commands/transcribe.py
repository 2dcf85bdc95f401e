"""`salsa-dist transcribe BASE RECORDINGS…`: any recordings to text, subtitles or JSON lines."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from salsa_dist.commands.libraries import prepare_libraries
from salsa_dist.errors import UserError
from salsa_dist.log import log

if TYPE_CHECKING:
    from salsa_dist.steering.vectors import SteeringVectors

_NAMED = 10  # failed recordings that are named at the end
_FOR_A_LANGUAGE = re.compile(r"([A-Za-z]{2,4}(?:[-_][A-Za-z0-9]{2,4})*)=(.+)", re.DOTALL)


def transcribe(
    base: Annotated[str, typer.Argument(help="folder or hub name of the base")],
    files: Annotated[
        list[str],
        typer.Argument(
            help="audio files, folders, patterns, tars, folders of shards; -: list on stdin"
        ),
    ],
    language: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="code, such as bg; auto: the base detects it; or a file with lines FILE<tab>CODE. "
            "Default: the list's or tar's own, else the adapter's"
        ),
    ] = None,
    adapter: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="adapter to steer with: its folder, hub name or .safetensors file. Several: each is "
            "for its own language, or for another with bg=ADAPTER"
        ),
    ] = None,
    scale: Annotated[float, typer.Option(help="factor of the adapters' vectors; 0: none")] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="accept an adapter of another base")] = False,
    window_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--window", help="audio window in seconds; default: the base's own"),
    ] = None,
    language_as: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="name another language in the prompt: tw=yo; repeatable"),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="file (.txt, .tsv, .jsonl) or folder for the results; resumes where it was stopped"
        ),
    ] = None,
    form: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--format", help="text, json, srt or vtt; default: by --out, else text"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the same as --format json")] = False,
    batch: Annotated[int, typer.Option(min=1, help="pieces of recordings in one pass")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="limit of a piece's transcript")] = 128,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one"),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="float32, bfloat16 or float16; default: the base's own on a GPU, else float32"
        ),
    ] = None,
    quantization: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="quantise the base: int8 (torchao), bnb8 or nf4 (bitsandbytes)"),
    ] = None,
    vad: Annotated[
        bool, typer.Option("--vad", help="skip pieces in which Silero VAD finds no speech")
    ] = False,
) -> None:
    """Transcribe recordings of any length; print one line per recording, or write files with --out.

    A recording that can't be read does not stop the others: it is named at the end, and the exit status
    is 2. On several GPUs: salsa-dist launch transcribe … --out FOLDER --gpus-per-node 8.
    """
    from salsa_dist.steering.vectors import SteeringVectors
    from salsa_dist.transcription import inputs
    from salsa_dist.transcription.output import form_of, output
    from salsa_dist.transcription.progress import Progress
    from salsa_dist.transcription.recording import AUTO, Recording, Segment
    from salsa_dist.transcription.shared_out import shared_out
    from salsa_dist.transcription.speech import detector
    from salsa_dist.transcription.transcriber import Transcriber

    if as_json and form not in (None, "json"):
        raise UserError(f"--json and --format {form} exclude each other: choose one")
    form = "json" if as_json else form
    if not adapter and (force or scale != 1):
        raise UserError("--scale and --force are about an adapter: name one with --adapter")
    with shared_out(device) as share:
        found = share.files(lambda: inputs.found(files, sys.stdin.buffer))
        single = len(found) == 1 and not found[0].path.lower().endswith(".tar")
        form = form_of(out, form, single, share.count)
        language_of = _languages(language)
        loaded = [_adapter(text, SteeringVectors, scale) for text in adapter or []]
        vectors = [one for _, one in loaded]
        by_language = _by_language(loaded)
        prepare_libraries()
        speech_llm = _base(
            base, window_s, language_as or [], share.device or device, dtype, quantization
        )
        transcriber = Transcriber(
            speech_llm,
            vectors,
            by_language,
            batch=batch,
            max_new_tokens=max_new_tokens,
            force=force,
            speaks=detector() if vad else None,
        )
        if language == AUTO:
            transcriber.teller()
        elif language is not None and not os.path.isfile(language):
            speech_llm.family.prompt(language)
        settings: dict[str, Any] = {
            "base": speech_llm.revision,
            "dtype": str(transcriber.weight.dtype),
            "window_s": speech_llm.window_s,
            "max_new_tokens": max_new_tokens,
            "language_as": sorted(language_as or []),
            "language": language,
            "adapters": [[code, one.digest()] for code, one in loaded],
            **({"vad": True} if vad else {}),
            **({"quantization": quantization} if quantization else {}),
        }
        results = share.after_first(lambda: output(out, form, settings))
        progress = Progress(sum(one.weight for one in found) // share.count)
        missing: set[str] = set()

        def own_language(name: str, own: str | None) -> str:
            if (of := own or language_of(name) or only_language(loaded)) is None:
                raise UserError(f"{name} names no language: give it with --language")
            if len(vectors) > 1 and of not in by_language and of != AUTO and of not in missing:
                missing.add(of)
                log.warning(f"language {of}: no adapter is for it, the base alone transcribes it")
            return of

        def left() -> Any:
            every = inputs.recordings(found, own_language, _rows(loaded))
            for number, recording in enumerate(every):
                # Of other ranks too: it refuses two recordings whose results would have one name.
                there = results.has(recording)
                if share.has(number) and there:
                    progress.skipped(recording.weight)
                elif share.has(number):
                    begun = results.begun(recording)
                    yield begun.resumed(recording) if begun else recording

        def keep(recording: Recording, language: str, segment: Segment) -> None:
            if begun := results.begun(recording):
                begun.add(recording, language, segment)

        done = 0
        failed: list[str] = []
        try:
            for result in transcriber.run(left(), progress, keep):
                if result.error is None:
                    results.write(result)
                    done += 1
                else:
                    failed.append(result.error)
                if begun := results.begun(result.recording):
                    begun.end()
        finally:
            progress.close()
            results.close()
        failed, done = share.of_all(failed, done)
    # By one rank: a launcher ends the others once one has failed, and they may not have said it yet.
    if share.is_first:
        _tell(failed, done)


def _tell(failed: Sequence[str], done: int) -> None:
    """Name the recordings that could not be transcribed. Raises: UserError: there are any."""
    if len(failed) == 1 and not done:
        raise UserError(failed[0])
    if failed:
        more = [f"and {len(failed) - _NAMED} more"] if len(failed) > _NAMED else []
        lines = "\n  ".join([*failed[:_NAMED], *more])
        raise UserError(f"{len(failed)} of {len(failed) + done} recordings failed:\n  {lines}")


def _adapter(
    text: str, kind: type[SteeringVectors], scale: float
) -> tuple[str | None, SteeringVectors]:
    """`bg=PATH` or `PATH`: the language that an adapter is named for, and the adapter."""
    match = None if os.path.exists(text) else _FOR_A_LANGUAGE.fullmatch(text)
    code, path = (match[1], match[2]) if match else (None, text)
    return code, kind.load(path).scaled(scale)


Loaded = Sequence[tuple[str | None, "SteeringVectors"]]


def only_language(loaded: Loaded) -> str | None:
    """The language of the only adapter."""
    return (loaded[0][0] or loaded[0][1].language or None) if len(loaded) == 1 else None


def _by_language(loaded: Loaded) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, (code, vectors) in enumerate(loaded):
        of = code or vectors.language
        if not of and len(loaded) > 1:
            raise UserError(f"adapter {vectors.name!r} names no language: give it as --adapter CODE=…")
        if of in rows:
            raise UserError(f"two adapters are for language {of}: name one of them as --adapter CODE=…")
        rows[of] = row
    return rows


def _rows(loaded: Loaded) -> Callable[[str, str | None], int | None]:
    """A function from a recording and its listed adapter to a row; None: its language decides."""
    names = {vectors.name: row for row, (_, vectors) in enumerate(loaded)}
    several = {n for n in names if len({v.digest() for _, v in loaded if v.name == n}) > 1}
    # One that was named for no language steers all.
    all_get = 0 if len(loaded) == 1 and loaded[0][0] is None else None

    def row_of(name: str, adapter: str | None) -> int | None:
        if adapter is not None and adapter not in names:
            there = ", ".join(names) or "none"
            raise UserError(f"{name}: no --adapter is called {adapter!r}; there are {there}")
        if adapter in several:
            raise UserError(
                f"{name}: several --adapter are called {adapter!r}: save them by other names"
            )
        return all_get if adapter is None else names[adapter]

    return row_of


def _languages(language: str | None) -> Callable[[str], str | None]:
    """A function from a recording's name to its language, by `--language`; None: there is none."""
    if language is None or not os.path.isfile(language):
        return lambda name: language
    table: dict[str, str] = {}
    with open(language, "rb") as file:
        for number, line in enumerate(file, 1):
            name, tab, code = os.fsdecode(line.rstrip(b"\r\n")).rpartition("\t")
            if not tab:
                raise UserError(f"{language}, line {number}: not FILE<tab>CODE")
            table[name] = code
    return lambda name: table.get(name) or table.get(os.path.basename(name))


def _base(
    base: str,
    window_s: float | None,
    language_as: Sequence[str],
    device: str | None,
    dtype: str | None,
    quantization: str | None,
) -> Any:
    import torch

    from salsa_dist.run.kernels import settle_kernels
    from salsa_dist.run.memory import IN_TRANSCRIBING, full_memory_in_one_line
    from salsa_dist.speech_llms.load import load_speech_llm
    from salsa_dist.speech_llms.precision import warn_if_slow

    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {dtype}: choose float32, bfloat16 or float16")
    if bad := next((text for text in language_as if text.count("=") != 1), None):
        raise UserError(f"--language-as {bad}: write it as tw=yo")
    settle_kernels(deterministic=False)  # an fp32 base is to round as in `evaluate`
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {device} can't be used: {str(e).splitlines()[0]}") from e
    warn_if_slow(dtype, place, "--dtype float32")
    with full_memory_in_one_line(lambda: f"loading base {base} to {place}", IN_TRANSCRIBING):
        return load_speech_llm(
            base,
            window_s=window_s,
            dtype=dtype,
            quantization=quantization,
            device=place,
            language_as=dict(text.split("=") for text in language_as),
        )
