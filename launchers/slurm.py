"""Run salsa-dist on Slurm nodes, on this machine, or in this process: one command, three places.

    python launchers/slurm.py --nodes 4                      the demo's training on four nodes
    python launchers/slurm.py --nodes 4 --dry-run            print its sbatch script, submit nothing
    python launchers/slurm.py --cluster local --tasks-per-node 2 training.steps=20
    python launchers/slurm.py evaluate --config my.yaml --gpus-per-node 8 --partition gpu

    command line ─► Config (checked here) ─► Job (job.py) ─┬─ slurm   sbatch, then return
                    Resources                              ├─ local   local_cluster.py, and wait
                                                           └─ debug   called in this process
    logs and the submitted job:  <config.run>/logs/<job id>/<job id>_<rank>_log.out, .err

Whatever a site needs (partition, account, modules) comes in by options; `--sbatch key=value` and
`--setup CMD` pass on what has no option of its own.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import cloudpickle
import job as job_module
import submitit
import typer
from job import TARGET, Job
from local_cluster import LocalPlan, run_local
from requeue import with_requeue
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env
from submitit.slurm.slurm import SlurmExecutor

from salsa_dist.config import Config, load_config
from salsa_dist.errors import UserError

DEMO = Path(__file__).resolve().parent.parent / "demo" / "demo.yaml"
COMMANDS = ("train", "evaluate")
SLURM_MINUTES = 60

# A task can't import this folder, which is no installed package: the job brings its own code.
cloudpickle.register_pickle_by_value(job_module)


class Cluster(str, Enum):
    slurm = "slurm"
    local = "local"
    debug = "debug"


@dataclass(frozen=True)
class Resources:
    """What is asked of Slurm; `sbatch` holds pass-through options, True for one without a value."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int | None
    cpus_per_task: int | None
    mem: str | None
    minutes: int | None
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    nodelist: str | None
    sbatch: dict[str, str | bool]
    setup: list[str]
    min_nodes: int | None
    tries: int

    @property
    def signal_delay_s(self) -> int:
        """Seconds to save in before the limit: two minutes, less of a short one.

        Never most of the limit, or the signal comes before Python can handle it.
        """
        return min(120, 12 * (self.minutes or SLURM_MINUTES))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def launch(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[train|evaluate] [SECTION.KEY=VALUE]...",
            help="what to run (default: train), then settings that replace the config's",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path, typer.Option(help="YAML file of the run", show_default="demo/demo.yaml")
    ] = DEMO,
    cluster: Annotated[Cluster, typer.Option(help="where to run")] = Cluster.slurm,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    min_nodes: Annotated[
        int | None,
        typer.Option(min=1, help="start, or come back, on as few nodes; default: as many as --nodes"),
    ] = None,
    tasks_per_node: Annotated[
        int | None, typer.Option(min=1, help="ranks a node; default: one a GPU, else 1")
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0)] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1)] = None,
    mem: Annotated[str | None, typer.Option(help="memory of a node, such as 64GB")] = None,
    time: Annotated[
        int | None,
        typer.Option(min=1, help=f"limit in minutes; default: {SLURM_MINUTES} on Slurm, none locally"),
    ] = None,
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    constraint: Annotated[str | None, typer.Option()] = None,
    exclude: Annotated[str | None, typer.Option(help="nodes not to use")] = None,
    nodelist: Annotated[str | None, typer.Option(help="nodes to use")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY[=VALUE]", help="any other sbatch option; repeatable"),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CMD", help="shell line to run first, such as 'module load cuda'; repeatable"
        ),
    ] = None,
    tries: Annotated[
        int,
        typer.Option(min=0, help="failed tries in a row without a new checkpoint; 0: never requeue"),
    ] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the sbatch script")] = False,
) -> int:
    """Run salsa-dist on Slurm, or the same job on this machine."""
    command, overrides = _split(words or [])
    checked = load_config(config, overrides)
    resources = Resources(
        nodes=nodes,
        tasks_per_node=tasks_per_node or gpus_per_node or 1,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_task,
        mem=mem,
        minutes=time,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        exclude=exclude,
        nodelist=nodelist,
        sbatch=dict(_sbatch_option(text) for text in sbatch or []),
        setup=setup or [],
        min_nodes=min_nodes,
        tries=tries,
    )
    if cluster is not Cluster.slurm:
        _refuse_slurm_only(cluster, resources, dry_run)
    job = Job(
        command=command,
        config_path=str(config.resolve()),
        overrides=tuple(overrides),
        target=context.obj,
        cpus_per_task=cpus_per_task,
        local_port=None if cluster is Cluster.slurm else _free_port(),
    )
    folder = (checked.run / "logs" / "%j").absolute()
    # What the site or the user sets for every sbatch, and where Slurm's configuration is, stays.
    own = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or k.startswith("SBATCH_")}
    with clean_env():  # else a launch from inside a Slurm job would inherit that job's shape
        os.environ.update(own)
        if cluster is Cluster.slurm:
            return _to_slurm(job, folder, resources, checked, dry_run)
        if cluster is Cluster.local:
            return run_local(job, folder, _local_plan(resources))
        submitit.DebugExecutor(folder).submit(job).result()
        return 0


def _to_slurm(job: Job, folder: Path, resources: Resources, config: Config, dry_run: bool) -> int:
    if not dry_run and shutil.which("sbatch") is None:
        raise UserError(
            "there is no Slurm here (no sbatch on the PATH): add --cluster local to run on this "
            "machine, or --dry-run to see the script"
        )
    executor = _Sbatch(folder, config.run, resources)
    executor.update_parameters(**_sbatch_parameters(resources, config, job.command))
    if dry_run:
        print(executor.script())
        return 0
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it raises
            submitted = executor.submit(job)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}") from None
    paths = submitted.task(0).paths
    tasks = f"{resources.nodes} x {resources.tasks_per_node} ranks"
    print(
        f"submitted job {submitted.job_id}: {job.command} {job.config_path} on {tasks}\n"
        f"logs    {paths.folder}\n"
        f"follow  tail -F {paths.stdout} {paths.stderr}\n"
        f"status  squeue --job {submitted.job_id}\n"
        f"cancel  scancel {submitted.job_id}"
    )
    return 0


class _Sbatch(SlurmExecutor):
    """SlurmExecutor that can also be made where there is no Slurm, to show its script."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def __init__(self, folder: Path, run: Path, resources: Resources) -> None:
        super().__init__(folder)
        self._run, self._tries = run, resources.tries
        if "no_requeue" in resources.sbatch:
            self._tries = 0

    def script(self) -> str:
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        script = super()._make_submission_file_text(command, uid)
        return with_requeue(script, self._run, self.folder, self._tries)


def _sbatch_parameters(resources: Resources, config: Config, command: str) -> dict[str, Any]:
    # One rank that dies ends the others at once: they would wait for it in a collective.
    srun = ["--kill-on-bad-exit=1"]
    if resources.cpus_per_task:  # srun has not inherited it from sbatch since Slurm 22.05
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")
    extra: dict[str, str | bool] = {} if "no_requeue" in resources.sbatch else {"requeue": True}
    return {
        "job_name": f"salsa-{command}-{config.run.name}",
        "nodes": _node_range(resources),
        "ntasks_per_node": resources.tasks_per_node,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "mem": resources.mem,
        "time": resources.minutes or SLURM_MINUTES,
        "signal_delay_s": resources.signal_delay_s,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "nodelist": resources.nodelist,
        "wckey": None,  # submitit's own default would be refused where keys are checked
        "setup": resources.setup or None,
        "srun_args": srun,
        "additional_parameters": {**extra, **resources.sbatch},
    }


def _node_range(resources: Resources) -> int | str:
    if resources.min_nodes is None:
        return resources.nodes
    if resources.min_nodes > resources.nodes:
        raise UserError(f"--min-nodes {resources.min_nodes} is more than --nodes {resources.nodes}")
    return f"{resources.min_nodes}-{resources.nodes}"


def _sbatch_option(text: str) -> tuple[str, str | bool]:
    key, equals, value = text.removeprefix("--").partition("=")
    name = key.replace("-", "_")
    if not key or (equals and not value):
        raise UserError(f"--sbatch {text!r} is not of the form key=value")
    if own := _OWN_OPTIONS.get(name):
        raise UserError(f"--sbatch {text}: {own}")
    return name, value if equals else True


_OWN_OPTIONS = {
    **{
        name: f"use --{name.replace('_', '-')} instead"
        for name in (
            *("nodes", "gpus_per_node", "cpus_per_task", "mem", "time", "partition", "account"),
            *("qos", "constraint", "exclude", "nodelist"),
        )
    },
    "ntasks_per_node": "use --tasks-per-node instead",
    "ntasks": "use --nodes and --tasks-per-node instead",
    "array": "one launch is one job, not an array",
    "output": "logs go to the run's own folder, see `run` in the config",
    "error": "logs go to the run's own folder, see `run` in the config",
}


def _refuse_slurm_only(cluster: Cluster, resources: Resources, dry_run: bool) -> None:
    """Options that only Slurm can honour, refused and not dropped."""
    where = f"--cluster {cluster.value}"
    if dry_run:
        raise UserError(f"--dry-run shows the script for Slurm: leave out {where}")
    if resources.nodes > 1:
        raise UserError(
            f"{where} has one node, not {resources.nodes}: use --tasks-per-node for more ranks"
        )
    if cluster is Cluster.debug and resources.tasks_per_node > 1:
        raise UserError(f"{where} runs one rank in this process: use --cluster local for more")
    slurm_only = ("mem", "partition", "account", "qos", "constraint", "exclude", "nodelist")
    given = [name for name in (*slurm_only, "sbatch") if getattr(resources, name)]
    if cluster is Cluster.debug:
        given += [name for name in ("setup", "minutes", "gpus_per_node") if getattr(resources, name)]
    if given:
        names = ", ".join("--time" if n == "minutes" else f"--{n.replace('_', '-')}" for n in given)
        raise UserError(f"{where} can't honour {names}: leave it out")


def _local_plan(resources: Resources) -> LocalPlan:
    environment = {}
    if resources.gpus_per_node is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        wanted = resources.gpus_per_node
        devices = [str(n) for n in range(wanted)] if visible is None else visible.split(",")
        if len([d for d in devices if d]) < wanted:
            raise UserError(f"--gpus-per-node {wanted}: CUDA_VISIBLE_DEVICES={visible} shows fewer")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[:wanted])
    return LocalPlan(
        tasks=resources.tasks_per_node,
        setup=resources.setup,
        environment=environment,
        limit_min=resources.minutes,
        signal_delay_s=resources.signal_delay_s,
    )


def _free_port() -> int:
    """A port nobody listens on now; submitit's own comes from the job id, whoever has it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _split(words: Sequence[str]) -> tuple[str, list[str]]:
    """`train a.b=1 c.d=2` -> ("train", ["a.b=1", "c.d=2"]); without a command, train."""
    if not words or "=" in words[0]:
        return COMMANDS[0], list(words)
    if words[0] not in COMMANDS:
        raise UserError(f"no command {words[0]!r}: use {' or '.join(COMMANDS)}")
    return words[0], list(words[1:])


def main(arguments: Sequence[str] | None = None, target: str = TARGET) -> int:
    """Run the command line; `target` is the "module:function" that every rank calls."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = typer.main.get_command(app).main(args, standalone_mode=False, obj=target)
        return int(status or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        # A wrong option: click's error and typer's own share this method but no public class.
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        print(f"error: {' '.join(explain().split())} (--help lists the options)", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
