"""What is asked of a cluster: `Resources`, from the command line over a site's own defaults.

    ./cluster.yaml, else ~/.config/salsa-dist/cluster.yaml         command line
    default:                                                       --nodes 4
      account: speech            ─► profile("default") ─┐          --partition gpu-long
      partition: gpu                                    ├─► Resources.over(profile)
      env: {NCCL_SOCKET_IFNAME: ib0}       --nodes … ───┘
    big-memory:                            (--profile big-memory)
      …

The keys of a profile are the fields of `Resources`. A single value of the command line replaces the
profile's; lists and `env`, `sbatch`, `srun` are added to it.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from salsa_dist.errors import UserError

SLURM_MINUTES = 60
TRIES = 3
PROFILE_FILES = ("cluster.yaml", "~/.config/salsa-dist/cluster.yaml")
UNNAMED = "default"


class Resources(BaseModel):
    """Node, time and site options. None: not said; True in `sbatch` and `srun`: without a value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int | None = Field(None, ge=1)
    min_nodes: int | None = Field(None, ge=1, description="fewer than nodes: start on what there is")
    tasks_per_node: int | None = Field(None, ge=1)
    gpus_per_node: int | None = Field(None, ge=0)
    cpus_per_task: int | None = Field(None, ge=1)
    gres: str | None = None
    mem: str | None = None
    time: int | None = Field(None, ge=1, description="minutes")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    dependency: str | None = None
    array_parallelism: int | None = Field(None, ge=1, description="jobs of a sweep at once")
    python: str | None = None
    container: str | None = None
    container_mounts: list[str] = []
    setup: list[str] = []
    env: dict[str, str] = {}
    sbatch: dict[str, str | bool] = {}
    srun: dict[str, str | bool] = {}
    stage_to: str | None = None
    keep_snapshots: int | None = Field(None, ge=0, description="days")
    tries: int | None = Field(None, ge=0, description="failed ones in a row without a new checkpoint")
    gpu_memory: str | None = Field(None, description="of a device, such as 80GB")

    def over(self, defaults: Resources) -> Resources:
        """These, and `defaults` for what they leave open."""
        merged: dict[str, Any] = {}
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(defaults, name)
            if isinstance(mine, list):
                merged[name] = [*theirs, *mine]
            elif isinstance(mine, dict):
                merged[name] = {**theirs, **mine}
            else:
                merged[name] = theirs if mine is None else mine
        return Resources(**merged)

    def options(self) -> list[str]:
        """The words of a command line that asks for the same."""
        words: list[str] = []
        for name, value in self:
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, dict):
                words += [f"{flag}={k}" if v is True else f"{flag}={k}={v}" for k, v in value.items()]
            elif isinstance(value, list):
                words += [f"{flag}={text}" for text in value]
            elif value is not None:
                words.append(f"{flag}={value}")
        return words

    @property
    def node_count(self) -> int:
        return self.nodes or 1

    @property
    def node_range(self) -> str:
        """As `--nodes` of sbatch has it: `4`, or `2-4` where fewer will do."""
        return f"{self.min_nodes}-{self.node_count}" if self.takes_fewer else f"{self.node_count}"

    @property
    def takes_fewer(self) -> bool:
        """Whether it starts on fewer nodes than asked for.

        Raises:
            UserError: min_nodes is more than nodes.
        """
        least = self.min_nodes or self.node_count
        if least > self.node_count:
            raise UserError(f"--min-nodes {least} is more than the job's {self.node_count} (--nodes)")
        return least < self.node_count

    @property
    def ranks_per_node(self) -> int:
        """One a GPU, if nothing else was asked for."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def signal_delay_s(self) -> int:
        """Seconds to save in before the limit: two minutes, less of a short one.

        Never most of the limit, or the signal comes before Python can handle it.
        """
        return min(120, 12 * (self.time or SLURM_MINUTES))


def read_profile(name: str | None) -> Resources:
    """The profile `name`; without a name the one called `default`, if there is one.

    Raises:
        UserError: a file is no profile file, a key is unknown, or nothing is called `name`.
    """
    known: list[str] = []
    for file in (Path(os.path.expanduser(text)) for text in PROFILE_FILES):
        if not file.is_file():
            continue
        profiles = _read(file)
        known += profiles
        if (name or UNNAMED) in profiles:
            return _parse(profiles[name or UNNAMED], f"{file}, profile {name or UNNAMED}")
    if name is None:
        return Resources()
    places = " nor ".join(PROFILE_FILES)
    raise UserError(
        f"no cluster profile {name!r} in {places}"
        + (f"; there are {', '.join(known)}" if known else ": write it, see docs/cluster.md")
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cluster profiles {file} can't be read: {e.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(tree, dict) or not all(isinstance(v, dict) for v in tree.values()):
        raise UserError(
            f"{file} holds no cluster profiles: write `default:` and the settings indented under it"
        )
    return {str(name): settings for name, settings in tree.items()}


def _parse(settings: dict[str, Any], where: str) -> Resources:
    # YAML reads `OMP_NUM_THREADS: 4` as a number; a variable's value is text.
    env = settings.get("env")
    if isinstance(env, dict):
        settings = {**settings, "env": {str(k): str(v) for k, v in env.items()}}
    try:
        return Resources.model_validate(settings)
    except ValidationError as e:
        raise UserError(f"{where}: " + "; ".join(_explain(error) for error in e.errors())) from None


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg']} (got {error['input']!r})"
    known = list(Resources.model_fields)
    near = difflib.get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(known)
    return f"unknown key {key!r}; {hint}"


def option(text: str, flag: str) -> tuple[str, str | bool]:
    """`--sbatch mail-type=END` -> ("mail_type", "END"); without a value, True."""
    key, equals, value = text.removeprefix("--").partition("=")
    if not key or (equals and not value):
        raise UserError(f"{flag} {text!r} is not of the form key=value")
    return key.replace("-", "_"), value if equals else True


def variable(text: str) -> tuple[str, str]:
    """`--env NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--env {text!r} is not of the form NAME=VALUE")
    return name, value


def refuse_slurm_only(resources: Resources, cluster: str, profile: str | None) -> None:
    """Options that `cluster` (`local` or `debug`) can't honour, refused and not dropped."""
    where = f"--cluster {cluster}"
    if resources.node_count > 1:
        raise UserError(
            f"{where} has one node, not {resources.nodes}: use --tasks-per-node for more ranks"
        )
    if cluster == "debug" and resources.ranks_per_node > 1:
        raise UserError(f"{where} runs one rank in this process: use --cluster local for more")
    refused = ["gres", "mem", "partition", "account", "qos", "constraint", "exclude", "nodelist"]
    refused += ["min_nodes", "dependency", "sbatch", "srun", "python", "container", "container_mounts"]
    refused += ["array_parallelism", "gpu_memory"]
    if cluster == "debug":
        refused += ["setup", "env", "time", "gpus_per_node", "keep_snapshots", "tries"]
    given = [f"--{name.replace('_', '-')}" for name in refused if getattr(resources, name)]
    given += ["--profile"] if profile else []
    if given:
        raise UserError(f"{where} can't honour {', '.join(given)}: leave it out")
