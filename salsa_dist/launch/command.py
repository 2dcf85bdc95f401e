"""Run salsa-dist on Slurm nodes, on this machine, or in this process: one command, three places.

    python launchers/slurm.py --nodes 4                      the demo's training on four nodes
    python launchers/slurm.py --nodes 4 --dry-run            print its sbatch script, submit nothing
    python launchers/slurm.py --cluster local --tasks-per-node 2 training.steps=20
    python launchers/slurm.py sweep demo/sweep.yaml --nodes 4       a grid of adapters, see sweep.py
    python launchers/slurm.py evaluate --config my.yaml --gpus-per-node 8 --partition gpu

    command line ─► Config (checked here) ──► Job (job.py) ─┬─ slurm   sbatch_script.py, then return
                    Resources (options.py)                ├─ local   local_cluster.py, and wait
                    snapshot of both (snapshot.py)          └─ debug   called in this process
    logs and the submitted job:  <config.run>/logs/<job id>/<job id>_<rank>_log.out, .err

Whatever a site needs (partition, account, modules) comes in by options or from its cluster profile;
`--sbatch key=value`, `--srun key=value` and `--setup CMD` pass on what has no option of its own.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cloudpickle
import submitit
import typer
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from salsa_dist.config import Config, load_config
from salsa_dist.errors import UserError
from salsa_dist.launch import job as job_module
from salsa_dist.launch import snapshot, sweep
from salsa_dist.launch.job import TARGET, Job
from salsa_dist.launch.local_cluster import LocalPlan, run_local
from salsa_dist.launch.options import (
    SLURM_MINUTES,
    TRIES,
    Resources,
    option,
    read_profile,
    refuse_slurm_only,
    variable,
)
from salsa_dist.launch.sbatch_script import Sbatch, logs_of, sbatch
from salsa_dist.runs import launches

if TYPE_CHECKING:  # it imports torch, which a launch that is no sweep need not wait for
    from salsa_dist.sweeps.folder import JobFolder

DEMO = Path(__file__).resolve().parents[2] / "demo" / "demo.yaml"
COMMANDS = ("train", "evaluate", "train+evaluate", "sweep")

# A task may have no salsa_dist until `Job` has found its snapshot: the job brings its own code.
cloudpickle.register_pickle_by_value(job_module)


class Cluster(str, Enum):
    slurm = "slurm"
    local = "local"
    debug = "debug"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def launch(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[train|evaluate|train+evaluate] [SECTION.KEY=VALUE]... or sweep FILE",
            help="what to run (default: train), then settings that replace the config's",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path, typer.Option(help="YAML file of the run", show_default="demo/demo.yaml")
    ] = DEMO,
    cluster: Annotated[Cluster, typer.Option(help="where to run")] = Cluster.slurm,
    profile: Annotated[
        str | None,
        typer.Option(
            help="site settings of that name in cluster.yaml or ~/.config/salsa-dist/cluster.yaml",
            show_default="default, if it is there",
        ),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, show_default="1")] = None,
    min_nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="start on so many when --nodes are not to be had, also after a node is lost",
            show_default="as many as --nodes",
        ),
    ] = None,
    tasks_per_node: Annotated[
        int | None, typer.Option(min=1, help="ranks a node; default: one a GPU, else 1")
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0)] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1)] = None,
    gres: Annotated[str | None, typer.Option(help="such as gpu:a100:4 or nvme:1")] = None,
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
    dependency: Annotated[str | None, typer.Option(help="such as afterok:1234")] = None,
    array_parallelism: Annotated[
        int | None,
        typer.Option(min=1, help="jobs of a sweep at once", show_default="as many as --nodes hold"),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY[=VALUE]", help="any other sbatch option; repeatable"),
    ] = None,
    srun: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY[=VALUE]", help="any other srun option; repeatable"),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CMD", help="shell line to run first, such as 'module load cuda'; repeatable"
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="environment variable of every rank; repeatable"),
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Python of the ranks", show_default="this one")
    ] = None,
    container: Annotated[
        str | None,
        typer.Option(help="image to run in: a .sif by apptainer, else by pyxis; or pyxis:, apptainer:"),
    ] = None,
    container_mounts: Annotated[
        list[str] | None,
        typer.Option(metavar="FROM:TO", help="what the container sees beside the run; repeatable"),
    ] = None,
    stage_to: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="node-local disk to copy base and shards to, once a node"),
    ] = None,
    keep_snapshots: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="DAYS",
            help="remove the run's code snapshots that nothing used for so long",
            show_default=str(snapshot.KEEP_DAYS),
        ),
    ] = None,
    tries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="failed tries in a row without a new checkpoint; 0: never start again by itself",
            show_default=str(TRIES),
        ),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(help="memory of a device, for the plan of --dry-run", show_default="80GB"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the sbatch script and the placement plan")
    ] = False,
) -> int:
    """Run salsa-dist on Slurm, or the same job on this machine."""
    command, overrides = _split(words or [])
    asked = Resources(
        nodes=nodes,
        min_nodes=min_nodes,
        tasks_per_node=tasks_per_node,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_task,
        gres=gres,
        mem=mem,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        exclude=exclude,
        nodelist=nodelist,
        dependency=dependency,
        array_parallelism=array_parallelism,
        python=python,
        container=container,
        container_mounts=container_mounts or [],
        setup=setup or [],
        env=dict(variable(text) for text in env or []),
        sbatch=dict(option(text, "--sbatch") for text in sbatch or []),
        srun=dict(option(text, "--srun") for text in srun or []),
        stage_to=stage_to,
        keep_snapshots=keep_snapshots,
        tries=tries,
        gpu_memory=gpu_memory,
    )
    if cluster is not Cluster.slurm:
        if dry_run:
            raise UserError(
                f"--dry-run shows the script for Slurm: leave out --cluster {cluster.value}"
            )
        refuse_slurm_only(asked, cluster.value, profile)
    resources = asked.over(read_profile(profile)) if cluster is Cluster.slurm else asked
    budget, sweep_plan = resources.node_count, None
    if command == "sweep":
        sweep_plan = sweep.planned(overrides, budget)
        checked, overrides = sweep_plan.sweep.config, _staging(resources.stage_to)
        shape = sweep_plan.sweep.file.jobs
        shaped = {"nodes": shape.nodes, "tasks_per_node": shape.ranks_per_node}
        resources = resources.model_copy(update=shaped)
    else:
        if array_parallelism is not None:
            raise UserError("--array-parallelism is about a sweep: any other launch is one job")
        overrides += _staging(resources.stage_to)
        checked = load_config(config, overrides)
    if cluster is Cluster.slurm and not dry_run and shutil.which("sbatch") is None:
        raise UserError(
            "there is no Slurm here (no sbatch on the PATH): add --cluster local to run on this "
            "machine, or --dry-run to see the script"
        )
    setting: Setting = context.obj
    job = Job(
        command=command,
        config_path=str(config.resolve()),
        overrides=tuple(overrides),
        target=setting.target,
        cpus_per_task=resources.cpus_per_task,
        local_port=None if cluster is Cluster.slurm else _free_port(),
    )
    # What the site or the user sets for every sbatch, and where Slurm's configuration is, stays.
    own = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or k.startswith("SBATCH_")}
    with clean_env():  # else a launch from inside a Slurm job would inherit that job's shape
        os.environ.update(own)
        if sweep_plan is not None:
            code = None
            if not dry_run:
                folder = sweep_plan.sweep.file.sweep
                code = snapshot.take(folder, sweep_plan.sweep.path)
                snapshot.clear_old(folder, _keep_days(resources))
                job = replace(job, code=str(code))

            def again(folder: JobFolder) -> None:
                assert code is not None
                alone = asked.model_copy(update={**shaped, "array_parallelism": None}).options()
                alone += [f"--cluster={cluster.value}", *([f"--profile={profile}"] if profile else [])]
                words = ["+".join(folder.verbs), *alone]
                snapshot.write_submit(folder.path, code, words, folder.config)

            if cluster is not Cluster.slurm:
                here = _local_plan(resources)
                return sweep.run_here(lambda one, run: _here(one, run, here), job, sweep_plan, again)
            parallel = sweep.at_once(sweep_plan, budget, resources.array_parallelism)

            def executor(run: Path) -> Sbatch:
                return _sbatch(command, checked.model_copy(update={"run": run}), resources)

            if dry_run:
                print(sweep.script(executor, sweep_plan, parallel))
            else:
                sweep.submit(executor, job, sweep_plan, parallel, again)
            return 0
        if cluster is Cluster.debug:
            submitit.DebugExecutor(logs_of(checked.run)).submit(job).result()
            return 0
        if cluster is Cluster.local:
            plan = _local_plan(resources)
            return _here(_snapshotted(job, checked, resources, setting), checked.run, plan)
        single = _sbatch(command, checked, resources)
        if dry_run:
            print(single.script())
            print(_plan(checked, resources))
            return 0
        return _submit(single, _snapshotted(job, checked, resources, setting), checked, resources)


@dataclass(frozen=True)
class Setting:
    """This call of the launcher: what every rank calls, and the words of the command line."""

    target: str
    arguments: Sequence[str]


def _snapshotted(job: Job, config: Config, resources: Resources, setting: Setting) -> Job:
    """The job, running from a snapshot in the run's folder; submit.sh there starts it again."""
    folder = snapshot.take(config.run, Path(job.config_path))
    kept = folder / "config.yaml"
    snapshot.write_submit(config.run, folder, setting.arguments, kept)
    snapshot.clear_old(config.run, _keep_days(resources))
    return replace(job, config_path=str(kept), code=str(folder))


def _keep_days(resources: Resources) -> int:
    days = resources.keep_snapshots
    return snapshot.KEEP_DAYS if days is None else days


def _sbatch(command: str, config: Config, resources: Resources) -> Sbatch:
    seen = [Path.cwd(), config.run.absolute(), config.data.shards.absolute()]
    base = Path(config.base.name)
    mounts = [*seen, *([base.absolute()] if base.is_dir() else [])]
    return sbatch(config.run, f"salsa-{command}-{config.run.name}", resources, mounts)


def _submit(executor: Sbatch, job: Job, config: Config, resources: Resources) -> int:
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it raises
            submitted = executor.submit(job)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}") from None
    nodes, tasks = resources.node_count, resources.ranks_per_node
    shape = f"{resources.node_range} x {tasks} ranks"
    paths = submitted.task(0).paths
    launches.note(paths.folder, submitted.job_id, "slurm", job.command, nodes, tasks)
    run = config.run
    print(
        f"submitted job {submitted.job_id}: {job.command} on {shape}\n"
        f"code    {job.code}\n"
        f"logs    {paths.folder}\n"
        f"follow  salsa-dist runs logs {run} --follow\n"
        f"status  salsa-dist runs status {run}\n"
        f"cancel  salsa-dist runs cancel {run}\n"
        f"again   {run / 'submit.sh'}"
    )
    return 0


def _here(job: Job, run: Path, plan: LocalPlan) -> int:
    """Run as processes of this machine, with a note of the job and of how it ended."""
    folders: list[Path] = []

    def started(job_id: str, folder: Path) -> None:
        launches.note(folder, job_id, "local", job.command, 1, plan.tasks)
        folders.append(folder)

    status = 1
    try:
        status = run_local(job, run, plan, started)
    finally:
        for folder in folders:
            launches.note_end(folder, status)
    return status


def _plan(config: Config, resources: Resources) -> str:
    """What each placement would cost, as comments below the script."""
    from salsa_dist.planner.plan_of_run import plan_text
    from salsa_dist.planner.sizes import parse_size  # slow to import

    memory = parse_size(resources.gpu_memory or "80GB")
    if not _is_here(config.base.name):
        return f"# no placement plan: {config.base.name} is not on this machine; see salsa-dist plan"
    least, most = resources.min_nodes or resources.node_count, resources.node_count
    try:
        text = plan_text(config, most, resources.ranks_per_node, memory)
        if least < most:
            text += f"\non {least} of the nodes:\n"
            text += plan_text(config, least, resources.ranks_per_node, memory)
    except UserError as e:
        text = f"no placement plan: {e}"
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def _is_here(base: str) -> bool:
    """Whether a base's config can be read without a network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(base).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(base, "config.json"), str)
    except HFValidationError:  # a path, and nothing is there
        return False


def _staging(folder: str | None) -> list[str]:
    """Settings that copy what ranks read to a disk of each node."""
    return [f"{section}.stage_to={folder}" for section in ("base", "data")] if folder else []


def _local_plan(resources: Resources) -> LocalPlan:
    environment = dict(resources.env)
    if resources.gpus_per_node is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        wanted = resources.gpus_per_node
        devices = [str(n) for n in range(wanted)] if visible is None else visible.split(",")
        if len([d for d in devices if d]) < wanted:
            raise UserError(f"--gpus-per-node {wanted}: CUDA_VISIBLE_DEVICES={visible} shows fewer")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[:wanted])
    return LocalPlan(
        tasks=resources.ranks_per_node,
        tries=TRIES if resources.tries is None else resources.tries,
        setup=resources.setup,
        environment=environment,
        limit_min=resources.time,
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
        raise UserError(f"no command {words[0]!r}: use {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}")
    return words[0], list(words[1:])


def main(arguments: Sequence[str] | None = None, target: str = TARGET) -> int:
    """Run the command line; `target` is the "module:function" that every rank calls."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = typer.main.get_command(app).main(
            args, standalone_mode=False, obj=Setting(target, args)
        )
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
