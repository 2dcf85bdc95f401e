"""Makes an sbatch script from `Resources`, with submitit's SlurmExecutor.

#SBATCH --nodes=4 …          parameters()
export HF_HUB_OFFLINE=1 …    environment, then --setup
srun … PYTHON -m submitit…   --srun and pyxis' options before PYTHON; apptainer is part of it

An array's tasks are runs of their own, each with the script that it would have alone.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.launch.options import SBATCH, SLURM_MINUTES, Resources, flag_of
from salsa_dist.launch.requeue_lines import with_requeue
from salsa_dist.libraries.submitit import RewritingExecutor, sbatch_text
from salsa_dist.run.folder import RunFolder


class Sbatch(RewritingExecutor):
    """submitit's executor; its jobs ask to be started again when they fail.

    Args:
        run: folder of the run; logs go below it.
        tries: most attempts in a row without a new checkpoint.
        python: that the ranks run.
        code: see `with_requeue`.
    """

    def __init__(self, run: Path, tries: int, python: str, code: str | None) -> None:
        super().__init__(logs_of(run), python=python)
        self._run, self._tries, self._code = run, tries, code

    @property
    def minutes(self) -> int:
        """The job's time limit in minutes."""
        return int(self.parameters["time"])

    def task_script(self) -> str:
        """The script of one task of an array; its #SBATCH lines are only comments."""
        self.parameters["map_count"] = 1  # logs and ids are then those of an array's task
        return self.script()

    def array_script(self, runs: Sequence[Path], at_once: int) -> str:
        """An array of as many tasks as `runs`, which runs each one's TASK_SCRIPT.

        submitit has arrays too, but makes a plain SlurmExecutor for them, which knows no requeue.

        Args:
            runs: their folders.
            at_once: most tasks that run at the same time.
        """
        words = "\n".join(f"  {shlex.quote(str(run.absolute()))}" for run in runs)
        command = (
            f"runs=(\n{words}\n)\n"
            "run=${runs[$SLURM_ARRAY_TASK_ID]}\n"
            "id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\n"
            "logs=$run/logs/$id\n"
            'mkdir -p "$logs"\n'
            f'exec bash "$run/{TASK_SCRIPT}" >>"$logs/${{id}}_0_log.out" 2>>"$logs/${{id}}_0_log.err"\n'
        )
        own = {"map_count": len(runs), "array_parallelism": at_once, "use_srun": False, "setup": None}
        parameters = {**self.parameters, **own}
        return sbatch_text(command, RunFolder(self._run.absolute()).logs, **parameters)

    def rewrite(self, script: str) -> str:
        return with_requeue(script, self._run, self.folder, self._tries, self._code)


TASK_SCRIPT = "task.sh"  # in the folder of each run of an array


def logs_of(run: Path) -> Path:
    """The folder of the logs of a run's jobs; `%j` is the job's id."""
    return RunFolder(run.absolute()).logs / "%j"


def sbatch(
    run: Path, name: str, resources: Resources, mounts: Sequence[Path], code: str | None
) -> Sbatch:
    """The executor of one job.

    Args:
        run: folder of the run.
        name: of the job.
        resources: what is asked for.
        mounts: folders that a container must see under their own names.
        code: folder of the job's snapshot; None: of a dry run, which makes none.
    """
    _refuse_own_options(resources)
    tries = 0 if "no_requeue" in resources.sbatch else resources.tries
    executor = Sbatch(run, tries, _python(resources, mounts), code)
    executor.update_parameters(**_parameters(name, resources, mounts))
    return executor


def own_variables(resources: Resources) -> dict[str, str]:
    """The variables of Slurm that sbatch is to see: the site's configuration, and SBATCH_ACCOUNT etc.

    sbatch takes these before the lines of a script, so what is asked for here has none. The default
    time limit is not asked for.
    """
    asked = [key for key in Resources.marked(SBATCH) if getattr(resources, key) is not None]
    asked += ["time"] if resources.time else []
    asked += [*resources.sbatch, *_ALWAYS_ASKED]
    hidden = {f"SBATCH_{name}" for key in asked for name in _VARIABLES.get(key, [key.upper()])}
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or (name.startswith("SBATCH_") and name not in hidden)
    }


_ALWAYS_ASKED = ("job_name", "output", "error", "open_mode", "signal", "requeue", "array")
_MEMORY = ["MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"]  # one rules out the others
# Of options whose variable has another name.
_VARIABLES = {
    "array": ["ARRAY_INX"],
    "requeue": ["REQUEUE", "NO_REQUEUE"],
    "time": ["TIMELIMIT"],
    **dict.fromkeys(("mem", "mem_per_cpu", "mem_per_gpu"), _MEMORY),
}


def _parameters(name: str, resources: Resources, mounts: Sequence[Path]) -> dict[str, Any]:
    extra: dict[str, str | bool] = {} if "no_requeue" in resources.sbatch else {"requeue": True}
    extra |= _range_of_nodes(resources)
    return {
        "job_name": name,
        "nodes": resources.nodes,
        **({} if resources.takes_fewer else {"ntasks_per_node": resources.ranks_per_node}),
        **{key: getattr(resources, key) for key in Resources.marked(SBATCH)},
        "time": resources.time or SLURM_MINUTES,
        "signal_delay_s": resources.signal_delay_s,
        "wckey": None,  # submitit's own default would be refused where keys are checked
        "setup": [*_exports(resources.env), *resources.setup],
        "srun_args": _srun(resources, mounts),
        "additional_parameters": {**extra, **resources.sbatch},
    }


def _exports(env: dict[str, str]) -> list[str]:
    # Compute nodes seldom have internet access, and waiting for a hub costs minutes per rank.
    values = {"HF_HUB_OFFLINE": "1", **env}
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


def _range_of_nodes(resources: Resources) -> dict[str, str | bool]:
    # With --ntasks-per-node sbatch counts the tasks of the fewest nodes, and Slurm gives no job more
    # nodes than tasks: a range is asked for by the cores of a node, and srun told the tasks of each.
    if not resources.takes_fewer:
        return {}
    cores = resources.ranks_per_node * (resources.cpus_per_task or 1)
    return {"nodes": resources.node_range, "mincpus": str(cores)}


def _srun(resources: Resources, mounts: Sequence[Path]) -> list[str]:
    # One rank that dies ends the others at once: they would wait for it in a collective.
    # With sbatch's --export=NONE, which some sites set for all, srun too would hand on nothing of what
    # the script sets.
    arguments = ["--kill-on-bad-exit=1", "--export=ALL"]
    if resources.takes_fewer:
        arguments.append(f"--ntasks-per-node={resources.ranks_per_node}")
    if resources.cpus_per_task:  # srun has not inherited it from sbatch since Slurm 22.05
        arguments.append(f"--cpus-per-task={resources.cpus_per_task}")
    kind, image = _container(resources)
    if kind == "pyxis":
        arguments += [f"--container-image={image}", f"--container-workdir={Path.cwd()}"]
        arguments.append(f"--container-mounts={','.join(_mounts(resources, mounts))}")
    for key, value in resources.srun.items():
        flag = f"--{key.replace('_', '-')}"
        arguments.append(flag if value is True else f"{flag}={value}")
    return arguments


def _python(resources: Resources, mounts: Sequence[Path]) -> str:
    kind, image = _container(resources)
    if not kind:
        return shlex.quote(resources.python or sys.executable)
    python = resources.python or "python3"  # this machine's own is not in the image
    if kind == "pyxis":
        return shlex.quote(python)
    words = ["apptainer", "exec", "--bind", ",".join(_mounts(resources, mounts))]
    words += ["--pwd", str(Path.cwd()), *(["--nv"] if resources.asks_for_gpus else [])]
    return shlex.join([*words, image, python])


def _container(resources: Resources) -> tuple[str, str]:
    """(pyxis or apptainer, image); a .sif file is apptainer's, anything else pyxis'."""
    image = resources.container
    if not image:
        if resources.container_mounts:
            raise UserError("--container-mounts needs --container")
        return "", ""
    kind, colon, rest = image.partition(":")
    if colon and kind in ("pyxis", "apptainer"):
        return kind, rest
    return ("apptainer" if image.endswith(".sif") else "pyxis"), image


def _mounts(resources: Resources, mounts: Sequence[Path]) -> list[str]:
    # The root of the machine is no folder that could be put into another one.
    own = [f"{path}:{path}" for path in mounts if path != Path(path.anchor)]
    given = [part for text in resources.container_mounts for part in text.split(",")]
    return list(dict.fromkeys([*own, *given]))


def _refuse_own_options(resources: Resources) -> None:
    for name in resources.sbatch:
        if own := _OWN_OPTIONS.get(name):
            raise UserError(f"--sbatch {name.replace('_', '-')}: {own}")
    signal = str(resources.sbatch.get("signal", ""))
    if signal.startswith(("B:", "BR:", "RB:")):  # to the batch script alone, which would die of it
        raise UserError(
            f"--sbatch signal={signal}: the ranks themselves take it, so name signal=USR2@SECONDS"
        )
    gpus = str(resources.sbatch.get("gpus", "0")).rpartition(":")[2]
    if gpus.isdigit() and int(gpus) > resources.nodes and resources.tasks_per_node is None:
        raise UserError(
            f"--sbatch gpus={resources.sbatch['gpus']} does not say how many a node has, and so how "
            "many ranks: use --gpus-per-node or --gres instead, or add --tasks-per-node"
        )
    for name in resources.srun:
        if name in ("output", "error", "ntasks", "ntasks_per_node", "nodes"):
            raise UserError(f"--srun {name}: the launcher sets it itself")


_OWN_OPTIONS = {
    **{name: f"use {flag_of(name)} instead" for name in ("nodes", "time", *Resources.marked(SBATCH))},
    "ntasks_per_node": "use --tasks-per-node instead",
    "ntasks": "use --nodes and --tasks-per-node instead",
    "array": "a sweep is an array, see --array-parallelism; any other launch is one job",
    "output": "logs go to the run's own folder, see `run` in the config",
    "error": "logs go to the run's own folder, see `run` in the config",
}
