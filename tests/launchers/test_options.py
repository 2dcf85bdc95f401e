"""What a site writes once, and what the sbatch script then holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import typer
from launching import Desk, sbatch_lines

from salsa_dist.launch.options import SBATCH, Options, Resources, checked, command_line

PROFILES = """
default:
  account: speech
  partition: gpu
  time: 30
  setup: [module load cuda]
  env: {NCCL_SOCKET_IFNAME: ib0, OMP_NUM_THREADS: 4}
  sbatch: {mail_type: END}
big:
  partition: big
  mem: 500GB
"""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.environment["HOME"] = str(tmp_path / "home")
    return desk


def dry(desk: Desk, *options: str) -> str:
    result = desk.slurm_py("--config", str(desk.config), "--dry-run", *options)
    assert (result.status, result.err) == (0, "")
    return result.out


def test_a_site_writes_its_account_once(desk: Desk) -> None:
    (desk.folder / "cluster.yaml").write_text(PROFILES)
    script = dry(desk, "--time", "5", "--setup", "module load gcc", "--env", "NCCL_SOCKET_IFNAME=ib 1")
    asked = sbatch_lines(script)
    assert (asked["account"], asked["partition"], asked["mail-type"]) == ("speech", "gpu", "END")
    assert asked["time"] == "5", "the command line replaces the profile's"
    assert "export NCCL_SOCKET_IFNAME='ib 1'\nexport OMP_NUM_THREADS=4\n" in script
    assert "\nmodule load cuda\nmodule load gcc\n" in script

    big = sbatch_lines(dry(desk, "--profile", "big"))
    assert (big["partition"], big["mem"], big.get("account")) == ("big", "500GB", None)


def test_only_jobs_with_shards_on_a_hub_may_ask_one(desk: Desk) -> None:
    assert "export HF_HUB_OFFLINE=1\n" in dry(desk)
    there = "data.shards=hf://datasets/user/name"
    assert "export HF_HUB_OFFLINE=0\n" in dry(desk, "train", there)
    assert "export HF_HUB_OFFLINE=1\n" in dry(desk, "--env", "HF_HUB_OFFLINE=1", "train", there)


def test_no_launch_waits_for_torch(desk: Desk) -> None:
    """Nor does --help: only a plan of a base that is on this machine needs it."""
    code = """
        import sys
        import salsa_dist.cli
        from salsa_dist.launch.command import main
        assert main(sys.argv[1:]) == 0
        print({"torch", "numpy", "transformers"} & set(sys.modules), file=sys.stderr)
    """
    words = ["--config", str(desk.config), "--dry-run", "steering.rule=add", "base.name=not/here"]
    done = subprocess.run(
        [sys.executable, "-c", dedent(code), *words], cwd=desk.folder, capture_output=True, text=True
    )
    assert "# no placement plan: not/here is not on this machine" in done.stdout, done.stderr
    assert done.stderr == "set()\n"


def test_the_users_own_profiles_come_after_the_folders(desk: Desk) -> None:
    own = desk.folder / "home/.config/salsa-dist/cluster.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("default: {partition: mine}\nnight: {qos: low}\n")
    assert sbatch_lines(dry(desk))["partition"] == "mine"
    (desk.folder / "cluster.yaml").write_text(PROFILES)
    assert sbatch_lines(dry(desk))["partition"] == "gpu"
    assert sbatch_lines(dry(desk, "--profile", "night"))["qos"] == "low"


def test_gres_dependency_and_srun_pass_on(desk: Desk) -> None:
    options = (
        "--gres gpu:a100:4 --dependency afterok:12 --srun mpi=pmix --srun overlap --python /opt/py"
    )
    script = dry(desk, *options.split())
    asked = sbatch_lines(script)
    assert (asked["gres"], asked["dependency"]) == ("gpu:a100:4", "afterok:12")
    (srun,) = [line for line in script.splitlines() if line.startswith("srun ")]
    assert " --mpi=pmix --overlap /opt/py -u -m submitit.core._submit " in srun


def test_fewer_nodes_are_asked_for_by_the_cores_of_one(desk: Desk) -> None:
    shape = ("--nodes", "4", "--tasks-per-node", "2", "--cpus-per-task", "3")
    script = dry(desk, *shape, "--min-nodes", "2")
    asked = sbatch_lines(script)
    assert (asked["nodes"], asked["mincpus"]) == ("2-4", "6")
    assert "ntasks-per-node" not in asked, "Slurm would give no more than the fewest"
    (srun,) = [line for line in script.splitlines() if line.startswith("srun ")]
    assert " --ntasks-per-node=2 --cpus-per-task=3 " in srun
    assert dry(desk, *shape, "--min-nodes", "4") == dry(desk, *shape)


def test_a_container_sees_the_run_under_its_own_path(desk: Desk) -> None:
    options = ("--gpus-per-node", "2", "--container-mounts", "/scratch:/scratch")
    (srun,) = [
        x
        for x in dry(desk, "--container", "nvcr.io#nvidia/pytorch:25.01-py3", *options).splitlines()
        if x.startswith("srun ")
    ]
    assert "--container-image=nvcr.io#nvidia/pytorch:25.01-py3" in srun.replace("'", "")
    run = desk.folder / "run"
    assert f"{run}:{run}," in srun
    assert ",/scratch:/scratch " in srun
    assert " python3 -u -m submitit" in srun, "this machine's Python is not in the image"

    options = ("--gres", "gpu:2", "--container-mounts", "/scratch:/scratch")
    (srun,) = [
        x for x in dry(desk, "--container", "salsa.sif", *options).splitlines() if x.startswith("srun ")
    ]
    assert " apptainer exec --bind " in srun
    assert f" --pwd {desk.folder} --nv salsa.sif python3 -u -m submitit" in srun


def test_a_container_sees_what_a_run_starts_from(desk: Desk) -> None:
    elsewhere = desk.folder / "elsewhere"
    for name in ("prefix", "deepspeed", "adapters/bg"):
        (elsewhere / name).mkdir(parents=True)
    (elsewhere / "deepspeed/mine.json").write_text("{}")
    settings = [
        f"training.prefix_folder={elsewhere / 'prefix'}",
        f"placement.ds_config={elsewhere / 'deepspeed/mine.json'}",
        f"adapters.0.start_from={elsewhere / 'adapters/bg'}",
    ]
    script = dry(desk, "--container", "salsa.sif", "train", *settings)
    for name in ("prefix", "deepspeed", "adapters/bg"):
        assert f"{elsewhere / name}:{elsewhere / name}" in script


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("90:01", 91),
        ("12:00:00", 720),
        ("1-12", 2160),
        ("1-0:30", 1470),
        ("2-00:00:59", 2881),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(desk: Desk, text: str, minutes: int) -> None:
    assert checked(Resources, {"time": text}, "here").time == minutes
    (desk.folder / "cluster.yaml").write_text(f"default: {{time: {text}}}")
    assert sbatch_lines(dry(desk))["time"] == str(minutes)
    assert sbatch_lines(dry(desk, "--time", text))["time"] == str(minutes)


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ({"gres": "gpu:4"}, 4),
        ({"gres": "gpu:a100:2(S:0-1),gpu:h100,nvme:1"}, 3),
        ({"gres": "gpu:4", "tasks_per_node": 2}, 2),
        ({"gres": "gpu:4", "gpus_per_node": 0}, 1),
        ({"gres": "nvme:4"}, 1),
    ],
)
def test_each_gpu_has_a_rank_however_it_is_asked_for(given: dict[str, object], ranks: int) -> None:
    assert checked(Resources, given, "here").ranks_per_node == ranks


def test_a_profile_is_read_as_sbatch_would_read_it(desk: Desk) -> None:
    """Whatever YAML makes of the values; and with hyphens or without."""
    (desk.folder / "cluster.yaml").write_text(
        "default: {mem: 0, account: 17, env: {TOKENIZERS_PARALLELISM: false},"
        " sbatch: {no-requeue: true, gpus-per-task: 1, nice: 100}, srun: {wait: 0}}"
    )
    script = dry(desk)
    asked = sbatch_lines(script)
    names = ("mem", "account", "gpus-per-task", "nice")
    assert [asked[name] for name in names] == ["0", "17", "1", "100"]
    assert " --wait=0 " in script
    assert "export TOKENIZERS_PARALLELISM=false\n" in script
    assert "no-requeue" in asked
    assert "requeue" not in asked
    assert "salsa_dist.requeue" not in script


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({"gpus_per_node": 4}, True),
        ({"gpus_per_node": 0, "gres": "gpu:4"}, False),
        ({"gres": "nvme:1,gpu:a100:4"}, True),
        ({"sbatch": ["gpus=8"]}, True),
        ({"sbatch": {"gpus-per-task": "1"}}, True),
        ({"sbatch": ["tres-per-task=cpu:4,gres/gpu:1"]}, True),
        ({"gres": "nvme:1", "sbatch": ["exclusive", "mail-type=END"]}, False),
    ],
)
def test_gpus_come_by_several_options_of_slurm(given: dict[str, object], gpus: bool) -> None:
    assert checked(Resources, given, "here").asks_for_gpus == gpus


def test_staging_is_a_setting_of_the_run(desk: Desk) -> None:
    desk.environment["SLURM_TMPDIR"] = "/scratch/17"  # of a job that the ranks are started in
    assert desk.local("show", "--stage-to", "$SLURM_TMPDIR").status == 0
    _, _, overrides = desk.seen(0)["arguments"]
    assert "data.stage_to=$SLURM_TMPDIR" in overrides
    assert desk.seen(0)["SLURM_TMPDIR"] == "/scratch/17"


def test_the_dry_run_tells_the_placement(desk: Desk, tiny_base: Path) -> None:
    shape = ("--nodes", "4", "--tasks-per-node", "8", "--gpu-memory", "1GB")
    plan = [x for x in dry(desk, *shape, f"base.name={tiny_base}").splitlines() if x.startswith("# ")]
    assert all(any(kind in line for line in plan) for kind in ("replicate", "node", "full"))
    assert "auto" in plan[-1]
    fewer = dry(desk, *shape, f"base.name={tiny_base}", "--min-nodes", "2")
    assert "\n# 4 nodes x 8 ranks" in fewer
    assert "\n# 2 nodes x 8 ranks" in fewer.partition("\n# on 2 of the nodes:\n")[2]
    assert "# no placement plan: tiny is not on this machine" in dry(desk, *shape)


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("default: {acount: a}", (), "did you mean 'account'"),
        ("default: {time: soon}", (), "default: time: "),
        ("account: a", (), "write `default:`"),
        ("{}", ("--time", "1-"), "'1-' is no time: write minutes, or 12:00:00"),
        ("default: {sbatch: {requeue: false}}", (), "`requeue: false` is no option"),
        ("default: {sbatch: {ntasks-per-node: 2}}", (), "use --tasks-per-node instead"),
        ("{}", ("--sbatch", "gpus=8"), "does not say how many a node has"),
        ("{}", ("--sbatch", "signal=B:USR2@300"), "the ranks themselves take it"),
        ("default: {", (), "not valid YAML"),
        (PROFILES, ("--profile", "bg"), "there are default, big"),
        (PROFILES, ("--profile", "big", "--cluster", "local"), "--dry-run"),
        ("{}", ("--env", "A-B=1"), "NAME=VALUE"),
        ("{}", ("--srun", "ntasks=3"), "--srun ntasks"),
        ("{}", ("--nodes", "2", "--min-nodes", "3"), "--min-nodes 3 is more than the job's 2"),
        ("{}", ("--container-mounts", "/a:/a"), "--container"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    desk: Desk, text: str, options: tuple[str, ...], says: str
) -> None:
    (desk.folder / "cluster.yaml").write_text(text)
    result = desk.slurm_py("--config", str(desk.config), "--dry-run", *options)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert says in result.err


def test_a_submit_sh_asks_for_what_was_asked() -> None:
    asked: dict[str, object] = dict.fromkeys(Resources.model_fields, 2)
    texts = ("gres", "mem", "dependency", "python", "container", "stage_to", "gpu_memory")
    asked |= dict.fromkeys((*texts, *Resources.marked(SBATCH)), "x y")
    asked |= {"cpus_per_task": 3, "gpus_per_node": 0, "tries": 0}
    asked |= {"sbatch": {"mail_type": "END", "exclusive": True}, "srun": {"mpi": "pmix"}}
    asked |= {"env": {"A": "b=c"}, "setup": ["module load cuda", "b"], "container_mounts": ["/a:/b"]}
    wanted = Resources.model_validate(asked)
    seen: list[Options] = []

    def launch(context: typer.Context, words: list[str] | None, **given: object) -> None:
        seen.append(checked(Options, {k: v for k, v in given.items() if v != []}, "command line"))

    command_line(launch).main(wanted.words(), standalone_mode=False)
    found = {name: getattr(seen[0], name) for name in Resources.model_fields}
    assert found == wanted.model_dump()
    assert seen[0].over(Resources()) == wanted
    assert Resources().words() == []
