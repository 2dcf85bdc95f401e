"""A run's folder has one module that names its files; a file of another release is refused as such."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import salsa_dist
from salsa_dist import UserError, json_file
from salsa_dist.run.folder import RunFolder
from salsa_dist.sweeps.folder import SCHEMA, job_folders, make_job

# Not of a run: a snapshot's config, a checkpoint's files, the folder of a sweep.
OTHERS = {
    ("launch/command.py", "config.yaml"),
    ("launch/sweep.py", "logs"),
    ("sweeps/job_config.py", "prefix"),
}


def names() -> set[str]:
    """The last parts of all paths of a run's folder."""
    run = RunFolder(Path("run"))
    paths = [getattr(run, name) for name, own in vars(RunFolder).items() if isinstance(own, property)]
    return {path.name for path in paths} | set(RunFolder.FOLDERS)


def test_no_other_module_names_a_file_of_a_run() -> None:
    top = Path(salsa_dist.__file__).parent
    wrong = []
    for path in sorted(top.rglob("*.py")):
        where = str(path.relative_to(top))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            joins = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
            named = node.right if joins and isinstance(node, ast.BinOp) else None
            if (
                isinstance(named, ast.Constant)
                and named.value in names()
                and where != "run/folder.py"
                and (where, named.value) not in OTHERS
            ):
                wrong.append(f"{where}:{named.lineno} {named.value}")
    assert wrong == [], "ask run/folder.py"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("salsa-dist/sweep-job/99", "written by a newer release of salsa-dist; this version reads"),
        ("salsa-dist/sweep-job/1", "written by an older release of salsa-dist; this version reads"),
        ("salsa-dist/rank/1", f"is of schema 'salsa-dist/rank/1'; this version reads {SCHEMA}"),
    ],
)
def test_a_job_of_another_release_is_not_called_damaged(schema: str, said: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, {"bg": "0" * 8}, {})
    assert [found.adapters for found in job_folders(tmp_path)] == [{"bg": "0" * 8}]
    path = job.path / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    with pytest.raises(UserError) as refused:
        job_folders(tmp_path)
    assert said in str(refused.value)
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\udcff"])
def test_what_is_no_json_object_is_damaged(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"a\.json is damaged .*: make it again"):
        json_file.read(path, ("salsa-dist/a/1",), "make it again")
    assert json_file.peek(path, "salsa-dist/a/1") == {}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    json_file.write(path, "salsa-dist/a/2", {"x": "ü"})
    assert json_file.read(path, ("salsa-dist/a/2",), "") == {"schema": "salsa-dist/a/2", "x": "ü"}
    assert json_file.peek(path, "salsa-dist/a/2") == {"x": "ü"}
    assert json_file.peek(path, "salsa-dist/a/1") == json_file.peek(tmp_path / "b", "x") == {}
    with pytest.raises(FileNotFoundError):
        json_file.read(tmp_path / "b", ("x",), "")
