"""What is submitted to Slurm, how its ranks start, and ranks that other launchers start.

The launched function is a stand-in (`STAND_IN`), so nothing here trains: each test looks at the
processes, the exit status and what was printed.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from launching import ACCELERATE, DEMO, Desk, sbatch_lines, seen_everywhere, submit


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --- what would be submitted


def test_four_nodes_and_nothing_else(desk: Desk) -> None:
    result = desk.slurm_py("--config", str(desk.config), "--nodes", "4", "--dry-run")
    assert (result.status, result.err) == (0, "")
    asked = sbatch_lines(result.out)
    assert asked.pop("output").startswith(f"{desk.folder}/run/logs/%j/")
    assert asked.pop("error").startswith(f"{desk.folder}/run/logs/%j/")
    assert asked == {
        "job-name": "salsa-train-run",
        "nodes": "4",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "requeue": "",
        "signal": "USR2@120",
        "time": "60",
    }
    assert "srun" in result.out
    assert not (desk.folder / "run").exists(), "a dry run writes nothing"


def test_the_script_holds_what_was_asked_for(desk: Desk) -> None:
    options = "--gpus-per-node 8 --cpus-per-task 4 --mem 64GB --time 5 --partition gpu --account a1"
    options += " --qos high --constraint h100 --exclude n1 --nodelist n[2-5]"
    options += " --sbatch mail-type=END --sbatch exclusive --sbatch signal=USR2@300"
    extra = ("--setup", "module load cuda", "--setup", "export A='b c'")
    result = desk.slurm_py(
        "evaluate", "--config", str(desk.config), *options.split(), *extra, "--dry-run"
    )
    assert (result.status, result.err) == (0, "")
    asked = sbatch_lines(result.out)
    expected = {
        "job-name": "salsa-evaluate-run",
        "nodes": "1",
        "ntasks-per-node": "8",  # one rank a GPU
        "gpus-per-node": "8",
        "cpus-per-task": "4",
        "mem": "64GB",
        "time": "5",
        "partition": "gpu",
        "account": "a1",
        "qos": "high",
        "constraint": "h100",
        "exclude": "n1",
        "nodelist": "'n[2-5]'",
        "mail-type": "END",
        "exclusive": "",
        "signal": "USR2@300",
    }
    assert {key: asked.get(key) for key in expected} == expected
    before_srun, srun = result.out.split("srun ")
    assert "module load cuda\nexport A='b c'\n" in before_srun
    assert "--cpus-per-task=4" in srun, "srun does not inherit it from sbatch"
    assert "--kill-on-bad-exit=1" in srun
    assert "--export=ALL" in srun, "else ranks lack HF_HUB_OFFLINE where sbatch has --export=NONE"


def test_a_short_limit_is_not_signalled_before_python_is_up(desk: Desk) -> None:
    result = desk.slurm_py("--config", str(desk.config), "--time", "2", "--dry-run")
    assert sbatch_lines(result.out)["signal"] == "USR2@24"


@pytest.mark.skipif(not DEMO.exists(), reason="the demo's config is not in this checkout")
def test_nodes_alone_train_the_demo(desk: Desk) -> None:
    result = desk.slurm_py("--nodes", "4", "--dry-run")
    assert (result.status, result.err) == (0, "")
    assert sbatch_lines(result.out)["nodes"] == "4"


# --- mistakes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--node", "4"), "--nodes"),
        (("--nodes", "0"), "--nodes"),
        (("training.stepz=3",), "did you mean 'steps'"),
        (("training.steps=many",), "training.steps"),
        (("trian",), "use train, evaluate, train+evaluate, sweep or transcribe"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--cluster", "local", "--nodes", "2"), "--tasks-per-node"),
        (("--cluster", "local", "--partition", "gpu"), "--partition"),
        (("--cluster", "debug", "--tasks-per-node", "2"), "--cluster local"),
        (("--cluster", "local", "--dry-run"), "--dry-run"),
        (("--sbatch", "ntasks-per-node=3", "--dry-run"), "--tasks-per-node"),
        (("--sbatch", "=3", "--dry-run"), "key=value"),
        ((), "no sbatch on the PATH"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(desk: Desk, options: tuple[str, ...], says: str) -> None:
    desk.environment["PATH"] = str(desk.folder)
    result = desk.slurm_py("--config", str(desk.config), *options)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert says in result.err
    assert not (desk.folder / "run").exists(), "nothing was started"


# --- on Slurm, played by two scripts


def test_a_slurm_job_is_submitted_and_its_ranks_know_each_other(desk: Desk) -> None:
    result, logs = submit(desk, "show")
    assert (result.status, result.err) == (0, "")
    assert "submitted job 4242" in result.out
    assert f"salsa-dist runs status {desk.folder}/run" in result.out
    assert not (desk.folder / "show.0").exists(), "submitting does not run"
    job = desk.finish(desk.start("bash", str(logs / "4242_submission.sh")))
    assert job.status == 0, (logs / "4242_0_log.err").read_text()
    ranks = [desk.seen(rank) for rank in range(4)]
    assert [seen["RANK"] for seen in ranks] == ["0", "1", "2", "3"]
    assert [seen["LOCAL_RANK"] for seen in ranks] == ["0", "1", "0", "1"]
    assert {seen["WORLD_SIZE"] for seen in ranks} == {"4"}
    assert {seen["LOCAL_WORLD_SIZE"] for seen in ranks} == {"2"}
    assert {seen["MASTER_ADDR"] for seen in ranks} == {"alpha1"}
    assert len({seen["MASTER_PORT"] for seen in ranks}) == 1
    command, config, overrides = ranks[3]["arguments"]
    assert (command, overrides) == ("train", ["training.steps=7"])
    assert Path(config).read_bytes() == desk.config.read_bytes()
    assert seen_everywhere(ranks, "HF_HUB_OFFLINE") == "1", "compute nodes have no way out"


def test_what_is_asked_for_counts_before_the_users_variables_for_every_sbatch(desk: Desk) -> None:
    submit(desk, "show")
    text = f"#!/bin/sh\nenv | grep ^SBATCH_ | sort >{desk.folder}/seen\necho Submitted batch job 7\n"
    (desk.folder / "sbatch").write_text(text)
    for name in (
        *("ACCOUNT", "PARTITION", "TIMELIMIT", "MEM_PER_CPU", "NO_REQUEUE", "OUTPUT", "SIGNAL"),
        *("JOB_NAME", "ARRAY_INX", "RESERVATION", "EXPORT"),
    ):
        desk.environment[f"SBATCH_{name}"] = "theirs"
    options = "--partition gpu --mem 9GB --sbatch reservation=night"
    result = desk.slurm_py("--config", str(desk.config), *options.split())
    assert result.status == 0, result.err
    seen = (desk.folder / "seen").read_text().split()
    assert seen == ["SBATCH_ACCOUNT=theirs", "SBATCH_EXPORT=theirs", "SBATCH_TIMELIMIT=theirs"]
    assert desk.slurm_py("--config", str(desk.config), "--time", "5").status == 0
    assert "TIMELIMIT" not in (desk.folder / "seen").read_text()


def test_what_sbatch_refuses_is_one_line_and_status_2(desk: Desk) -> None:
    (desk.folder / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2; exit 1\n")
    (desk.folder / "sbatch").chmod(0o755)
    desk.environment["PATH"] = f"{desk.folder}{os.pathsep}{desk.environment['PATH']}"
    result = desk.slurm_py("--config", str(desk.config), "--partition", "nowhere")
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: sbatch refused the job: invalid partition\n"


def test_a_user_error_on_slurm_fails_the_job_with_one_line(desk: Desk) -> None:
    _, logs = submit(desk, "user_error")
    job = desk.finish(desk.start("bash", str(logs / "4242_submission.sh")))
    assert job.status == 2
    said = (logs / "4242_3_log.err").read_text()
    assert said == "error: shards/ has no index.json: run the recipe first\n"


# --- other launchers start the same module


@pytest.mark.parametrize(
    ("function", "command"),
    [
        ("reduce", ("torch.distributed.run", "--nproc_per_node", "2")),
        ("reduce", ("accelerate.commands.launch", "--config_file", ACCELERATE + "cpu-2.yaml")),
        (
            "show",
            (
                *("accelerate.commands.launch", "--config_file", ACCELERATE + "multi-gpu.yaml"),
                *("--num_processes", "2"),
            ),
        ),
    ],
    ids=["torchrun", "accelerate-cpu-2", "accelerate-multi-gpu"],
)
def test_other_launchers_start_two_ranks(desk: Desk, function: str, command: tuple[str, ...]) -> None:
    run = desk.start(sys.executable, "-m", *command, "-m", "stand_in", function, "demo.yaml")
    result = desk.finish(run)
    assert result.status == 0, result.err
    for rank in (0, 1):
        seen = desk.seen(rank)
        assert (seen["RANK"], seen["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (seen["WORLD_SIZE"], seen["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert seen["arguments"] == ["demo.yaml"]
        assert function == "show" or f"sum 2 on rank {rank}" in result.out


def test_two_nodes_of_accelerate_make_one_world(desk: Desk) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for node in (0, 1):
        options = f"--config_file {ACCELERATE}multi-node.yaml --num_processes 2"
        options += f" --machine_rank {node} --main_process_ip 127.0.0.1 --main_process_port {port}"
        command = ("-m", "accelerate.commands.launch", *options.split(), "-m", "stand_in", "show")
        nodes.append(desk.start(sys.executable, *command))
    results = [desk.finish(node) for node in nodes]
    assert [result.status for result in results] == [0, 0], results
    for rank in (0, 1):
        seen = desk.seen(rank)
        assert (seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == ("0", "2")
        assert (seen["MASTER_ADDR"], seen["MASTER_PORT"]) == ("127.0.0.1", str(port))
