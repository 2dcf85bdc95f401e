"""Run salsa-dist on Slurm nodes, on this machine, or in this process: one command, three places.

    python launchers/slurm.py --nodes 4                      the demo's training on four nodes
    python launchers/slurm.py --nodes 4 --dry-run            print its sbatch script, submit nothing
    python launchers/slurm.py --cluster local --tasks-per-node 2 training.steps=20
    python launchers/slurm.py sweep demo/sweep.yaml --nodes 4       a grid of adapters, see sweep.py
    python launchers/slurm.py evaluate --config my.yaml --gpus-per-node 8 --partition gpu
    python launchers/slurm.py transcribe BASE talks/ --language bg --out texts/ --gpus-per-node 8

    command line ─► Config (checked here) ──► RankCommand ─┬─ slurm   sbatch_script.py, then return
                    Options (options.py)      (rank.py)    ├─ local   local_cluster.py, and wait
                    snapshot of both (snapshot.py)         └─ debug   called in this process
    logs and the submitted job:  RUN/logs/<job id>/<job id>_<rank>_log.out, .err

RUN is the config's `run`, of a transcription its --out folder.

Whatever a site needs (partition, account, modules) comes in by options or from its cluster profile;
`--sbatch key=value`, `--srun key=value` and `--setup CMD` pass on what has no option of its own.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import submitit
import typer
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from salsa_dist import built_in
from salsa_dist.config import Config, load_config
from salsa_dist.errors import UserError
from salsa_dist.launch import rank as rank_module
from salsa_dist.launch import snapshot, sweep, transcription
from salsa_dist.launch.local_cluster import on_this_machine, run_local
from salsa_dist.launch.options import Cluster, Options, Resources, checked, command_line, read_profile
from salsa_dist.launch.rank import TARGET, RankCommand
from salsa_dist.launch.sbatch_script import Sbatch, logs_of, own_variables, sbatch
from salsa_dist.log import causes, log, result, tell
from salsa_dist.places import Folder
from salsa_dist.planner.units import parse_size
from salsa_dist.run.folder import RunFolder
from salsa_dist.runs import launches

if TYPE_CHECKING:  # it imports torch, which a launch that is no sweep need not wait for
    from salsa_dist.sweeps.folder import JobFolder
    from salsa_dist.sweeps.plan import Plan

DEMO = built_in.folder("launchers").parent / "demo" / "demo.yaml"
COMMANDS = ("train", "evaluate", "train+evaluate", "sweep", transcription.COMMAND)

# A task may have no salsa_dist until its `RankCommand` has found the snapshot: the class comes along.
cloudpickle.register_pickle_by_value(rank_module)


@dataclass(frozen=True)
class Setting:
    """This call of the launcher: what every rank calls, and the words of the command line."""

    target: str
    arguments: Sequence[str]


@dataclass(frozen=True)
class Work:
    """One job, as the launcher needs it.

    Attributes:
        run: folder of its logs, snapshots and submit.sh.
        sees: files and folders that a container must see under their own names.
        plan: what stands below the script of a dry run.
    """

    run: Path
    sees: Sequence[Path]
    plan: Callable[[], str] = str


def launch(context: typer.Context, words: list[str] | None, **given: Any) -> int:
    """Run salsa-dist on Slurm, or the same job on this machine."""
    command, overrides = _split(words or [])
    asked = checked(Options, {k: v for k, v in given.items() if v != []}, "command line")
    resources: Resources = asked
    if asked.cluster is Cluster.slurm:
        resources = asked.over(read_profile(asked.profile))
    else:
        asked.refuse_what_needs_slurm()
    staging = [f"{s}.stage_to={resources.stage_to}" for s in ("base", "data") if resources.stage_to]
    if asked.array_parallelism is not None and command != "sweep":
        raise UserError("--array-parallelism works only with sweep: this launch is one job")
    plan, work, config_path = None, None, ""
    shards: list[Folder] = []
    if command == transcription.COMMAND:
        transcription.refuse_what_needs_a_config(asked)
        wanted = transcription.asked(overrides)
        work = Work(wanted.out, wanted.sees)
        if resources.asks_for_gpus and wanted.device is None:
            overrides += ["--device", "cuda"]
    elif command == "sweep":
        device = "cuda" if resources.asks_for_gpus else None
        plan = sweep.planned(overrides, resources.nodes, device)
        overrides = [*staging, *_device(resources, plan.sweep.config)]
        shards = [*plan.sweep.corpora.values()]
    else:
        overrides += staging
        config_path = str(_config_path(asked).resolve())
        config = load_config(config_path, overrides)
        overrides += _device(resources, config)
        work = Work(config.run, _seen(config), partial(_plan, config, resources))
        shards = [config.data.shards]
    if asked.cluster is Cluster.slurm:
        resources = _reaching(resources, shards)
    if asked.cluster is Cluster.slurm and not asked.dry_run and shutil.which("sbatch") is None:
        raise UserError(
            "there is no Slurm here (no sbatch on the PATH): add --cluster local to run on this "
            "machine, or --dry-run to see the script"
        )
    setting: Setting = context.obj
    job = RankCommand(
        command=command,
        config_path=config_path,
        overrides=tuple(overrides),
        target=setting.target,
        cpus_per_task=resources.cpus_per_task,
        local_port=None if asked.cluster is Cluster.slurm else _free_port(),
    )
    # Ranks on this machine may use what a Slurm job around them has, such as its disk.
    own = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    if asked.cluster is Cluster.slurm:
        own = own_variables(resources)
    with clean_env():  # else a launch from inside a Slurm job would inherit that job's shape
        os.environ.update(own)
        if plan is not None:
            return _launch_sweep(job, plan, asked, resources, shards)
        assert work is not None
        return _launch_one(job, work, asked, resources, setting.arguments)


def _launch_one(
    job: RankCommand, work: Work, asked: Options, resources: Resources, arguments: Sequence[str]
) -> int:
    if asked.cluster is Cluster.debug:
        submitit.DebugExecutor(logs_of(work.run)).submit(job).result()
        return 0
    if asked.cluster is Cluster.local:
        here = on_this_machine(resources)
        return run_local(_snapshotted(job, work.run, resources, arguments), work.run, here)
    executor = _sbatch(job, work, resources)  # what it refuses is refused before anything is written
    if asked.dry_run:
        result("\n".join(filter(None, [executor.script(), work.plan()])))
        return 0
    job = _snapshotted(job, work.run, resources, arguments)
    return _submit(_sbatch(job, work, resources), job, work.run, resources)


def _snapshotted(
    job: RankCommand, run: Path, resources: Resources, arguments: Sequence[str]
) -> RankCommand:
    """The job, running from a snapshot in the run's folder; submit.sh there starts it again."""
    config = Path(job.config_path) if job.config_path else None
    folder = snapshot.take(run, config)
    kept = folder / "config.yaml" if config else None
    snapshot.write_submit(run, folder, arguments, kept)
    snapshot.clear_old(run, resources.keep_snapshots, folder)
    return replace(job, config_path=str(kept or ""), code=str(folder))


def _launch_sweep(
    job: RankCommand, plan: Plan, asked: Options, resources: Resources, shards: Sequence[Folder]
) -> int:
    """Launch a sweep. `resources.nodes` limits all jobs together; the plan sizes each job."""
    shape = plan.sweep.file.jobs
    parallel = sweep.at_once(plan, resources.nodes, resources.array_parallelism)
    one = {"nodes": shape.nodes, "tasks_per_node": shape.ranks_per_node}
    resources = resources.model_copy(update=one)
    code = None
    if not asked.dry_run:
        folder = plan.sweep.file.sweep
        code = snapshot.take(folder, plan.sweep.path)
        snapshot.clear_old(folder, resources.keep_snapshots, code)
        job = replace(job, code=str(code))

    def again(folder: JobFolder) -> None:
        assert code is not None
        alone = asked.words(**one, array_parallelism=None)
        alone += [f"--cluster={asked.cluster.value}"]
        alone += [f"--profile={asked.profile}"] if asked.profile else []
        words = ["+".join(folder.verbs), *alone]
        snapshot.write_submit(folder.path, code, words, folder.config)

    def executor(run: Path) -> Sbatch:
        config = plan.sweep.config.model_copy(update={"run": run})
        # The sweep's folder has the code of its jobs, and what they share.
        sees = [plan.sweep.file.sweep.absolute(), *_seen(config), *_folders(shards)]
        return _sbatch(job, Work(run, sees), resources)

    if asked.cluster is not Cluster.slurm:
        start = partial(run_local, resources=on_this_machine(resources))
        return sweep.run_here(start, job, plan, again)
    if asked.dry_run:
        result(sweep.script(executor, plan, parallel))
    else:
        sweep.submit(executor, job, plan, parallel, again)
    return 0


def _reaching(resources: Resources, shards: Sequence[Folder]) -> Resources:
    """A job whose shards are on a hub must reach it, unless the user sets HF_HUB_OFFLINE."""
    if not any(str(place).startswith("hf://") for place in shards):
        return resources
    return resources.model_copy(update={"env": {"HF_HUB_OFFLINE": "0", **resources.env}})


def _device(resources: Resources, config: Config) -> list[str]:
    """Check that a launch which asks for GPUs does not run on CPUs."""
    return ["device=cuda"] if resources.asks_for_gpus and config.device == "auto" else []


def _config_path(asked: Options) -> Path:
    if asked.config is None and built_in.INSTALLED:
        raise UserError("no config: name one with --config; `salsa-dist init` writes a first one")
    return asked.config or DEMO


def _seen(config: Config) -> list[Path]:
    """The run and its shards, and of what else it reads the folders that are there: base, adapters to
    start from, prefix cache, DeepSpeed config."""
    own = [Path(config.base.name), config.training.prefix_folder, config.placement.ds_config]
    own += [adapter.start_from for adapter in config.adapters]
    local = [path.absolute() for path in own if isinstance(path, Path)]
    folders = [path.parent if path.is_file() else path for path in local]
    there = [folder for folder in folders if folder.is_dir()]
    return [config.run.absolute(), *_folders([config.data.shards]), *there]


def _folders(shards: Sequence[Folder]) -> list[Path]:
    return [place.absolute() for place in shards if isinstance(place, Path)]


def _sbatch(job: RankCommand, work: Work, resources: Resources) -> Sbatch:
    name = f"salsa-{job.command}-{work.run.name}"
    return sbatch(work.run, name, resources, [Path.cwd(), *work.sees], job.code)


def _submit(executor: Sbatch, job: RankCommand, run: Path, resources: Resources) -> int:
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it raises
            submitted = executor.submit(job)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}") from error
    nodes, tasks = resources.nodes, resources.ranks_per_node
    shape = f"{resources.node_range} x {tasks} ranks"
    paths = submitted.task(0).paths
    launches.note(paths.folder, submitted.job_id, "slurm", job.command, nodes, tasks)
    result(
        f"submitted job {submitted.job_id}: {job.command} on {shape}\n"
        f"code    {job.code}\n"
        f"logs    {paths.folder}\n"
        f"follow  salsa-dist runs logs {run} --follow\n"
        f"status  salsa-dist runs status {run}\n"
        f"cancel  salsa-dist runs cancel {run}\n"
        f"again   {RunFolder(run).submit}"
    )
    return 0


def _plan(config: Config, resources: Resources) -> str:
    """The cost of each placement, as comments below the script."""
    memory = parse_size(resources.gpu_memory)
    if not _is_here(config.base.name):
        return f"# no placement plan: {config.base.name} is not on this machine; see salsa-dist plan"
    from salsa_dist.planner.plan_of_run import plan_text  # it imports torch

    least, most = resources.min_nodes or resources.nodes, resources.nodes
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
        status = command_line(launch).main(
            args,
            standalone_mode=False,
            obj=Setting(target, args),
            ignore_unknown_options=transcription.COMMAND in args,  # its own options are words here
        )
        return int(status or 0)
    except UserError as error:
        tell(f"error: {error}", causes(error))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        # A wrong option: click's error and typer's own share this method but no public class.
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        log.error(f"error: {' '.join(explain().split())} (--help lists the options)")
        return 2
