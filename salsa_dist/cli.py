"""`salsa-dist`: train | evaluate | report | transcribe | inspect | plan | shards … | sweep … | runs …

What has commands of its own, such as `shards`, is a file in `commands/`.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from salsa_dist.commands import (
    compare,
    export,
    fold,
    init,
    inspect,
    plan,
    push,
    runs,
    shards,
    sweep,
    transcribe,
)
from salsa_dist.commands.libraries import prepare_libraries
from salsa_dist.errors import UserError
from salsa_dist.full_disk import full_disk_in_one_line
from salsa_dist.log import causes, choose, log, result, tell
from salsa_dist.places import place
from salsa_dist.versions import named_in, table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(shards.app, name="shards")
app.command()(init.init)
app.command()(plan.plan)
app.command()(push.push)
app.command()(fold.fold)
app.command()(transcribe.transcribe)
app.command()(export.export)
app.command()(inspect.inspect)
app.command()(compare.compare)
app.add_typer(sweep.app, name="sweep")
app.add_typer(runs.app, name="runs")


@app.callback()
def how_much_is_said(
    quiet: Annotated[bool, typer.Option("--quiet", help="show only warnings and results")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="more notes, and the tracebacks behind an error")
    ] = False,
) -> None:
    """Train and use steering vectors for large frozen speech-LLMs."""
    if quiet and debug:
        raise UserError("--quiet and --debug exclude each other: choose one")
    choose(quiet=quiet, debug=debug)
    if not debug:
        # The lines of the hub's library about each retry say less than our error.
        logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)


ConfigArgument = Annotated[Path, typer.Argument(help="YAML file with the run's settings")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings to change, such as training.steps=20", show_default=False),
]


@app.command()
def train(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Train the adapters of CONFIG, or resume a run that stopped.

    This command is one process. For several ranks, use salsa-dist launch, torchrun -m salsa_dist or
    accelerate launch -m salsa_dist.
    """
    run_command("train", str(config), overrides or [])


@app.command()
def evaluate(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Transcribe the evaluation split of CONFIG, zero-shot and steered.

    Transcripts go to RUN/evaluation; see `salsa-dist report` for the scores.
    """
    run_command("evaluate", str(config), overrides or [])


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs, such as runs/demo")],
    out: Annotated[
        Path | None, typer.Option(help="folder for the comparison of several runs; default: comparison")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="also group results by a field of the shards: age, speaker …; repeatable"),
    ] = None,
) -> None:
    """Score a run's transcripts and write RUN/report.html, .json, .csv and .tex.

    For several RUNS, write a comparison in the same formats: languages by methods, with intervals and
    tests.
    """
    from salsa_dist.report.write import write_comparison, write_report

    if len(runs) == 1 and out is None:
        result(write_report(runs[0], by or []))
    else:
        result(write_comparison(runs, out or Path("comparison"), by or []))


@app.command()
def sizes(
    base: Annotated[str, typer.Argument(help="folder or hub name of a base")],
    shards: Annotated[Any, typer.Argument(help="folder of shards, or s3://…", parser=place)],
    language: Annotated[str, typer.Option(help="language of the training clips")],
    clips: Annotated[int, typer.Option(min=1, help="number of training clips")] = 32,
) -> None:
    """Measure the size of the activations per layer on real speech, as values for training.lr_scale.

    The size is the median over positions of norm / sqrt(width). As `training.lr_scale`, it makes
    learning rates relative to the activations.
    """
    from salsa_dist.data.index import ShardIndex
    from salsa_dist.data.reading import first_clips
    from salsa_dist.speech_llms.activations import activation_sizes
    from salsa_dist.speech_llms.load import load_speech_llm

    prepare_libraries()
    index = ShardIndex.load(shards)
    speech_llm = load_speech_llm(base)
    speech_llm.family.prompt(language)  # refuses a language that the base does not know
    sampled = first_clips(shards, index, language, clips, speech_llm.window_s)
    result(f"# {base}, {len(sampled)} training clips in {language}")
    result("lr_scale:")
    for site, size in activation_sizes(speech_llm, sampled).items():
        result(f"  {':'.join(site.rsplit('.', 1))}: {size:.3g}")


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def launch(context: typer.Context) -> None:
    """Launch ranks on Slurm, or as processes on this machine; `launch --help` lists the options."""
    from salsa_dist.launch.command import main as launch_main

    raise typer.Exit(launch_main(context.args))


@app.command()
def version() -> None:
    """Show the versions of salsa-dist and its libraries, with their tested ranges."""
    result(table())


def run_command(command: str, config_path: str, overrides: list[str]) -> None:
    """Run `train`, `evaluate` or `train+evaluate` as one rank; launchers call this in each task.

    Of `transcribe`, `overrides` are the words of its own command line, and there is no config.
    """
    if command == "transcribe":
        from salsa_dist.launch.transcription import run as transcribe_words

        transcribe_words(overrides)
        return
    from salsa_dist.config import load_config

    config = load_config(config_path, overrides)
    prepare_libraries()
    for verb in command.split("+"):
        if verb == "train":
            from salsa_dist.training.loop import train as train_run

            trained = train_run(config)
            if trained.stopped_by is None:
                continue
            # A shell's status for a signal: a job that is not finished must not count as a success, or
            # Slurm would not start it again and would start the jobs that wait for it. The first rank
            # says so for all: another's failure would end it while it asks for its next start.
            if os.environ.get("RANK", "0") == "0":
                sys.exit(128 + trained.stopped_by)
            return
        else:
            from salsa_dist.evaluation.run import evaluate as evaluate_run

            evaluate_run(config)


def main() -> None:
    """The command line: a user's mistake is one line and exit status 2."""
    try:
        with full_disk_in_one_line():
            app()
    except UserError as error:
        tell(f"salsa-dist: {error}", causes(error))
        sys.exit(2)
    except Exception as error:
        if (line := named_in(error)) is None:
            raise
        traceback.print_exc()
        log.error(f"salsa-dist: {line}")
        sys.exit(1)
