"""Every option of the launcher, with its type, default and help: the command line is made from this.

    ./cluster.yaml, else ~/.config/salsa-dist/cluster.yaml         command line
    default:                                                       --nodes 4
      account: speech            ─► profile("default") ─┐          --partition gpu-long
      partition: gpu                                    ├─► Resources.over(profile)
      env: {NCCL_SOCKET_IFNAME: ib0}       --nodes … ───┘
    big-memory:                            (--profile big-memory)
      …

    Resources    what a profile may hold too: its keys are the fields
    └── Options  and what is of one launch alone

A single value of the command line replaces the profile's; lists and `env`, `sbatch`, `srun` are added
to it. A field's title is what the help calls its value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

from salsa_dist.config import Section, explained, read_yaml
from salsa_dist.errors import UserError

SLURM_MINUTES = 60
PROFILE_FILES = ("cluster.yaml", "~/.config/salsa-dist/cluster.yaml")
UNNAMED = "default"

# Marks of a field.
SBATCH = "sbatch takes it by the same name"
SLURM = "only Slurm can honour it"
RANKS = "only ranks in processes of their own can honour it, so --cluster debug can't"


class Cluster(str, Enum):
    slurm = "slurm"
    local = "local"
    debug = "debug"


def _pairs(value: Any) -> Any:
    """Pairs of a command line: `["mail-type=END", "exclusive"]` -> {"mail_type": "END", …: True}.

    Those of a profile are `{mail-type: END, exclusive: true}`, with the same names.
    """
    if isinstance(value, dict):
        for key, said in value.items():
            if said is False:
                raise ValueError(f"`{key}: false` is no option: remove it, or quote a 'no'")
        return {str(key).replace("-", "_"): _text(said) for key, said in value.items()}
    if not isinstance(value, list):
        return value
    pairs: dict[str, str | bool] = {}
    for text in value:
        key, equals, said = text.removeprefix("--").partition("=")
        if not key or (equals and not said):
            raise ValueError(f"{text!r} is not of the form key=value")
        pairs[key.replace("-", "_")] = said if equals else True
    return pairs


def _text(value: Any) -> Any:
    """A number as text: YAML reads one in `mem: 0`, and `gpus_per_task: 1` is not `true`."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _variables(value: Any) -> Any:
    if isinstance(value, dict):  # YAML reads `OMP_NUM_THREADS: 4` as a number
        return {
            str(name): str(said).lower() if isinstance(said, bool) else str(said)
            for name, said in value.items()
        }
    for text in value:
        name, equals, _ = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{text!r} is not of the form NAME=VALUE")
    return dict(text.split("=", 1) for text in value)


def _minutes(value: Any) -> Any:
    """A time limit as sbatch reads it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; seconds count up."""
    if not isinstance(value, str):
        return value
    if value.strip().isdecimal():
        return int(value)
    form = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value.strip())
    if form is None:
        raise ValueError(f"{value!r} is no time: write minutes, or 12:00:00, or 1-12 for 36 hours")
    days, *parts = form.groups()
    given = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*given, 0, 0][:3]
    else:
        hours, minutes, seconds = [0, *given] if len(given) == 2 else given
    return 24 * 60 * int(days or 0) + 60 * hours + minutes + (seconds + 59) // 60


Pairs = Annotated[dict[str, str | bool], BeforeValidator(_pairs), SLURM]
Variables = Annotated[dict[str, str], BeforeValidator(_variables), RANKS]
OfSbatch = Annotated[str | None, BeforeValidator(_text), SBATCH, SLURM]


class Resources(Section):
    """Node, time and site options; those that were given are in `model_fields_set`."""

    nodes: int = Field(1, ge=1, description="number of nodes")
    min_nodes: Annotated[int | None, SLURM] = Field(
        None,
        ge=1,
        description="smallest number of nodes to start on if --nodes are not available, also after a "
        "node is lost; default: --nodes",
    )
    tasks_per_node: int | None = Field(
        None, ge=1, description="ranks per node; default: one per GPU, else 1"
    )
    gpus_per_node: Annotated[int | None, SBATCH, RANKS] = Field(
        None, ge=0, description="GPUs to ask for on each node"
    )
    cpus_per_task: Annotated[int | None, SBATCH] = Field(None, ge=1, description="cores per rank")
    gres: OfSbatch = Field(None, description="such as gpu:a100:4 or nvme:1")
    mem: OfSbatch = Field(None, description="memory of a node, such as 64GB")
    time: Annotated[int | None, BeforeValidator(_minutes), RANKS] = Field(
        None,
        ge=1,
        title="TIME",
        description="limit in minutes, or as Slurm writes it, such as 12:00:00 or 1-12; "
        f"default: {SLURM_MINUTES} on Slurm, none locally",
    )
    partition: OfSbatch = Field(None, description="partition to run in")
    account: OfSbatch = Field(None, description="account to charge")
    qos: OfSbatch = Field(None, description="quality of service")
    constraint: OfSbatch = Field(None, description="features that each node must have")
    exclude: OfSbatch = Field(None, description="nodes not to use")
    nodelist: OfSbatch = Field(None, description="nodes to use")
    dependency: OfSbatch = Field(None, description="such as afterok:1234")
    array_parallelism: Annotated[int | None, SLURM] = Field(
        None, ge=1, description="jobs of a sweep that run at once; default: as many as fit on --nodes"
    )
    sbatch: Pairs = Field({}, title="KEY[=VALUE]", description="any other sbatch option; repeatable")
    srun: Pairs = Field({}, title="KEY[=VALUE]", description="any other srun option; repeatable")
    setup: Annotated[list[str], RANKS] = Field(
        [],
        title="CMD",
        description="shell command to run first, such as 'module load cuda'; repeatable",
    )
    env: Variables = Field(
        {}, title="NAME=VALUE", description="environment variable of every rank; repeatable"
    )
    python: Annotated[str | None, SLURM] = Field(
        None, description="Python of the ranks; default: this one"
    )
    container: Annotated[str | None, SLURM] = Field(
        None,
        description="container image: .sif files run in apptainer, others in pyxis; to choose, prefix "
        "pyxis: or apptainer:",
    )
    container_mounts: Annotated[list[str], SLURM] = Field(
        [], title="FROM:TO", description="extra mount of the container; repeatable"
    )
    stage_to: str | None = Field(
        None,
        title="FOLDER",
        description="node-local disk to copy base and shards to, once per node",
    )
    keep_snapshots: Annotated[int, RANKS] = Field(
        30,
        ge=0,
        title="DAYS",
        description="remove code snapshots of the run that were not used for this many days",
    )
    tries: Annotated[int, RANKS] = Field(
        3,
        ge=0,
        description="attempts in a row that may fail without progress before the job is not requeued; "
        "0: not after a failure",
    )
    gpu_memory: Annotated[str, SLURM] = Field(
        "80GB", description="memory per device, for the plan of --dry-run"
    )

    def over(self, defaults: Resources) -> Resources:
        """These options, with `defaults` for those that are not set."""
        merged: dict[str, Any] = {}
        for name, mine in self._given():
            theirs = getattr(defaults, name)
            if isinstance(mine, list):
                mine = [*theirs, *mine]
            elif isinstance(mine, dict):
                mine = {**theirs, **mine}
            merged[name] = mine
        return defaults.model_copy(update=merged)

    def words(self, **changed: Any) -> list[str]:
        """A command line for the same options, except those in `changed`; None removes an option."""
        words: list[str] = []
        for name, value in {**dict(self._given()), **changed}.items():
            flag = flag_of(name)
            if isinstance(value, dict):
                words += [f"{flag}={k}" if v is True else f"{flag}={k}={v}" for k, v in value.items()]
            elif isinstance(value, list):
                words += [f"{flag}={text}" for text in value]
            elif value is not None:
                words.append(f"{flag}={value}")
        return words

    def _given(self) -> Iterator[tuple[str, Any]]:
        for name in Resources.model_fields:
            if name in self.model_fields_set:
                yield name, getattr(self, name)

    @classmethod
    def marked(cls, *marks: str) -> list[str]:
        """The fields that have one of these marks."""
        return [n for n, field in cls.model_fields.items() if any(m in field.metadata for m in marks)]

    @property
    def node_range(self) -> str:
        """The value of sbatch's `--nodes`: `4`, or `2-4` if fewer nodes are allowed."""
        return f"{self.min_nodes}-{self.nodes}" if self.takes_fewer else f"{self.nodes}"

    @property
    def takes_fewer(self) -> bool:
        """Whether it starts on fewer nodes than asked for.

        Raises:
            UserError: min_nodes is more than nodes.
        """
        least = self.min_nodes or self.nodes
        if least > self.nodes:
            raise UserError(f"--min-nodes {least} is more than the job's {self.nodes} (--nodes)")
        return least < self.nodes

    @property
    def asks_for_gpus(self) -> bool:
        """Whether jobs get GPUs by an option: `--gpus-per-node`, `--gres gpu:4`, `--sbatch gpus=8` …"""
        if self.gpus_per_node is not None:
            return self.gpus_per_node > 0
        options = {"gres": self.gres or "", **self.sbatch}
        return any(
            name.startswith("gpus") or (name.startswith(("gres", "tres")) and "gpu" in str(value))
            for name, value in options.items()
        )

    @property
    def ranks_per_node(self) -> int:
        """Ranks per node; by default, one per GPU."""
        gpus = gpus_in(self.gres or "") if self.gpus_per_node is None else self.gpus_per_node
        return self.tasks_per_node or gpus or 1

    @property
    def signal_delay_s(self) -> int:
        """Seconds from the signal to the time limit: two minutes, less for a short limit.

        Never most of the limit, or the signal comes before Python can handle it.
        """
        return min(120, 12 * (self.time or SLURM_MINUTES))


class Options(Resources):
    """All of one launch."""

    config: Path | None = Field(
        None, description="YAML file of the run; default: demo/demo.yaml, in a repository"
    )
    cluster: Cluster = Field(Cluster.slurm, description="where to run")
    profile: Annotated[str | None, SLURM] = Field(
        None,
        description=f"name of a cluster profile in {' or '.join(PROFILE_FILES)}; "
        "default: the profile `default`, if there is one",
    )
    dry_run: Annotated[bool, SLURM] = Field(
        False, description="print the sbatch script and the placement plan"
    )

    def refuse_what_needs_slurm(self) -> None:
        """Options that `--cluster` local or debug can't honour are refused, and not dropped."""
        where = f"--cluster {self.cluster.value}"
        if self.nodes > 1:
            raise UserError(
                f"{where} has one node, not {self.nodes}: use --tasks-per-node for more ranks"
            )
        if self.cluster is Cluster.debug and self.ranks_per_node > 1:
            raise UserError(f"{where} runs one rank in this process: use --cluster local for more")
        marks = [SLURM, RANKS] if self.cluster is Cluster.debug else [SLURM]
        refused = [flag_of(name) for name in self.marked(*marks) if name in self.model_fields_set]
        if refused:
            raise UserError(
                f"{where} does not support these options, remove them: {', '.join(refused)}"
            )


_Asked = TypeVar("_Asked", bound=Resources)


def gpus_in(gres: str) -> int:
    """GPUs that `--gres` asks for on a node: 4 by `gpu:4`, 3 by `gpu:a100:2(S:0-1),gpu:h100,nvme:1`."""
    count = 0
    for part in re.sub(r"\(.*?\)", "", gres).split(","):
        kind, *rest = part.strip().split(":")
        if kind == "gpu":
            count += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return count


def flag_of(name: str) -> str:
    """`gpus_per_node` -> `--gpus-per-node`."""
    return f"--{name.replace('_', '-')}"


def checked(kind: type[_Asked], given: dict[str, Any], where: str) -> _Asked:
    """`given` without None values, as options of this kind; `where` is their source in errors.

    Raises:
        UserError: a key is unknown, or a value of the wrong type.
    """
    try:
        return kind.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as e:
        raise UserError(f"{where}: {explained(e, kind)}") from e


def read_profile(name: str | None) -> Resources:
    """The profile `name`; without a name, the profile `default` if there is one.

    Raises:
        UserError: a file is no profile file, a key is unknown, or nothing is called `name`.
    """
    wanted, known = name or UNNAMED, []
    for file in (Path(text).expanduser() for text in PROFILE_FILES):
        if file.is_file():
            profiles = read_yaml(file, "cluster profiles", "`default:` and settings indented under it")
            if not all(isinstance(settings, dict) for settings in profiles.values()):
                raise UserError(
                    f"{file} has settings outside any profile: write `default:` and indent them "
                    "under it"
                )
            if wanted in profiles:
                return checked(Resources, profiles[wanted], f"{file}, profile {wanted}")
            known += [str(profile) for profile in profiles]
    if name is None:
        return Resources()
    raise UserError(
        f"no cluster profile {name!r} in {' nor '.join(PROFILE_FILES)}"
        + (f"; there are {', '.join(known)}" if known else ": write it, see docs/cluster.md")
    )


def _parameter(name: str, field: FieldInfo) -> Parameter:
    """An option of the command line, as the field of `Options` says."""
    default = field.default.value if isinstance(field.default, Enum) else field.default
    many = isinstance(default, list | dict)
    option = typer.Option(
        flag_of(name),
        help=field.description,
        metavar=field.title,
        min=next((check.ge for check in field.metadata if hasattr(check, "ge")), None),
        show_default=str(default) if default else False,
    )
    # What has a reader of its own here is text on the command line.
    text = any(isinstance(part, BeforeValidator) for part in field.metadata)
    one = str if text else field.annotation
    kind = Annotated[list[str] | None if many else one | None, option]  # type: ignore
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def command_line(run: Callable[..., int | None]) -> Any:
    """The command line that calls `run(context, words, **options)`; its options are `Options`."""
    words = typer.Argument(
        metavar="[train|evaluate|train+evaluate] [SECTION.KEY=VALUE]..., sweep FILE, or transcribe "
        "BASE RECORDINGS... --out FOLDER",
        help="what to run (default: train), then settings that replace the config's; transcribe takes "
        "its own options too, see `salsa-dist transcribe --help`",
        show_default=False,
    )
    own = [
        Parameter("context", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        Parameter(
            "words",
            Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[list[str] | None, words],
        ),
    ]
    fields = sorted(Options.model_fields.items(), key=lambda field: field[0] in Resources.model_fields)
    options = [_parameter(name, field) for name, field in fields]
    run.__signature__ = Signature([*own, *options])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    return typer.main.get_command(app)
