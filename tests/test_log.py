"""What is said while a command works: levels, ranks, and the causes behind an error."""

import ast
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Desk
from tiny import make_config

from salsa_dist import log as levels
from salsa_dist.cli import main
from salsa_dist.errors import UserError
from salsa_dist.log import causes, log

ROOT = Path(__file__).parents[1]


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Levels are chosen anew and put back."""
    monkeypatch.setenv(levels.VARIABLE, "")
    before = log.level
    yield monkeypatch
    log.setLevel(before)


def command(*arguments: object) -> tuple[int, str, str]:
    line = [sys.executable, "-m", "salsa_dist", *map(str, arguments)]
    environment = {**os.environ, levels.VARIABLE: ""}
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, done.stdout, done.stderr


# What says all that there is to say. A wider `except` may catch a bug of ours, and keeps its cause.
NARROW = {"BrokenProcessPool", "FileNotFoundError", "KeyError", "UnicodeDecodeError"}


def test_only_a_narrow_exception_is_hidden_as_a_cause() -> None:
    wide = []
    for path in (
        path for top in ("salsa_dist", "shards", "launchers") for path in (ROOT / top).rglob("*.py")
    ):
        for handler in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
                continue
            for node in ast.walk(handler):
                hides = isinstance(node, ast.Raise) and isinstance(node.cause, ast.Constant)
                if hides and ast.unparse(handler.type) not in NARROW:
                    wide.append(f"{path}:{handler.lineno} {ast.unparse(handler.type)}")
    assert wide == [], "raise … from the error"


@pytest.mark.parametrize("torn", ["training: [", "index"])
def test_debug_shows_what_a_user_error_hides(tmp_path: Path, torn: str) -> None:
    """A torn config, and a torn index."""
    if torn == "index":
        (tmp_path / "index.json").write_text('{"schema"')
        arguments, cause = ("shards", "stats", tmp_path), "JSONDecodeError"
    else:
        (tmp_path / "torn.yaml").write_text(torn)
        arguments, cause = ("train", tmp_path / "torn.yaml"), "yaml.parser.ParserError"
    status, out, err = command("--debug", *arguments)
    assert (status, out) == (2, "")
    assert cause in err
    assert err.index(cause) < err.index("salsa_dist.errors.UserError")
    assert err.splitlines()[-1].startswith("salsa-dist: ")
    assert command(*arguments) == (2, "", err.splitlines()[-1] + "\n")


# Who prints by itself: what ends a process whose main thread may hold the log's lock, and a bar.
PRINTING = {"log.py", "run/watchdog.py", "placement/peers.py", "transcription/progress.py"}


def test_what_is_printed_is_a_result_and_the_rest_is_logged() -> None:
    package = ROOT / "salsa_dist"
    printing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    }
    assert printing == PRINTING, "log.result() for what a command was asked for, else log.info()"


def test_quiet_leaves_results_and_warnings(
    chosen: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_base: Path,
    tiny_shards: Path,
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards, training={"steps": 1})
    for level in ("--debug", "--quiet"):
        arguments = [level, "train", str(config), f"run={tmp_path / level}"]
        chosen.setattr(sys, "argv", ["salsa-dist", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            main()
        out = capsys.readouterr().out
        assert ("step 1/1" in out) == (level == "--debug")
        assert (tmp_path / level / "adapters/bg/adapter.json").is_file()
    assert out == ""


def test_quiet_and_debug_together_are_refused() -> None:
    status, out, err = command("--quiet", "--debug", "version")
    assert (status, out) == (2, "")
    assert err == "salsa-dist: --quiet and --debug exclude each other: choose one\n"


def test_below_a_warning_the_first_rank_speaks_alone(
    chosen: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    levels.choose()
    for rank in "01":
        chosen.setenv("RANK", rank)
        log.debug("detail of %s", rank)
        log.info("note of %s", rank)
        log.warning("warning of %s", rank)
    said = capsys.readouterr()
    assert said.out == "note of 0\n"
    assert said.err == "warning of 0\nwarning of 1\n"


def test_the_level_reaches_processes_that_are_started(chosen: pytest.MonkeyPatch) -> None:
    levels.choose(debug=True)
    code = "from salsa_dist.log import log; print(log.level)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == logging.DEBUG == log.level
    levels.choose(quiet=True)
    assert log.level == logging.WARNING


def test_causes_end_where_errors_name_each_other() -> None:
    first, second = ValueError("first"), UserError("second")
    first.__cause__, second.__cause__ = second, first
    assert causes(first).count("ValueError: first") == 1


def test_a_ranks_failure_keeps_its_causes(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    result = desk.local("caused")
    assert result.status == 2
    assert result.err.splitlines()[-1] == "error: shards/ can't be read"
    assert "the disk is gone" not in result.err
    file = next(tmp_path.rglob("*_failure.json"))  # a peer may have been ended before it wrote one
    failure = json.loads(file.read_text())
    assert failure["text"] == "shards/ can't be read"
    assert "OSError: the disk is gone" in failure["causes"]
    desk.environment[levels.VARIABLE] = "debug"
    err = desk.local("caused").err
    assert err.index("OSError: the disk is gone") < err.index("error: shards/ can't be read")
