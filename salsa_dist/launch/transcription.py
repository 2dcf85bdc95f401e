"""A transcription as a job: `transcribe BASE RECORDINGS… --out FOLDER` and the launcher's own options.

    python launchers/slurm.py transcribe BASE talks/ --language bg --out texts/ --gpus-per-node 8

    words ──read by the command itself──► Asked ──► RankCommand (rank.py) ──► run(words) on each rank

FOLDER gets the results, and what the launcher writes for any run: logs/, snapshots/, submit.sh. A job
that is started again goes on from the results that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from salsa_dist.commands.transcribe import transcribe
from salsa_dist.errors import UserError
from salsa_dist.launch.options import Options

COMMAND = "transcribe"


@dataclass(frozen=True)
class Asked:
    """One transcription, as the launcher needs it.

    Attributes:
        out: its folder of results.
        device: None: the user names none.
        sees: files and folders that its words name.
    """

    out: Path
    device: str | None
    sees: Sequence[Path]


def asked(words: Sequence[str]) -> Asked:
    """The command's `words`, read as it reads them.

    Raises:
        UserError: it can't be a job of several processes.
    """
    from salsa_dist.transcription.output import form_of_file  # slow to import

    given = _command().make_context(COMMAND, list(words)).params
    out = given["out"]
    if out is None:
        raise UserError(
            "transcribe as a job needs --out FOLDER: it gets the results, and the logs of the job"
        )
    if form_of_file(out):
        raise UserError(f"--out {out} is one file, and several ranks write: name a folder")
    if "-" in given["files"]:
        raise UserError("a job has no standard input: name files, folders, patterns or tars, not -")
    adapters = [text.rpartition("=")[2] for text in given["adapter"] or []]
    sees = [_nearest(text) for text in (given["base"], *given["files"], *adapters)]
    return Asked(out, given["device"], [out.absolute(), *sees])


def refuse_what_needs_a_config(options: Options) -> None:
    """Raises: UserError: an option of the launcher is about a config."""
    for name in ("config", "stage_to"):
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is about a run with a config, and transcribe has none: remove it")


def run(words: Sequence[str]) -> None:
    """Transcribe as one rank."""
    _command().main(list(words), COMMAND, standalone_mode=False)


def _command() -> Any:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(transcribe)
    return typer.main.get_command(app)


def _nearest(text: str) -> Path:
    """The named path, or the folder of a pattern; for a hub name the current folder."""
    path = Path(text).expanduser().absolute()
    return next((one for one in (path, *path.parents) if one.exists()), path)
