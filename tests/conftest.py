"""Imported before any test: salsa_dist guards the import of transformers, so it comes first."""

import os

# On two cores, torch's own threads in several processes only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import salsa_dist  # noqa: F401

# An example's time says nothing on a machine that runs other tests beside it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell that starts the tests in the background has Ctrl-C ignored, in what the tests start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a complete tiny Whisper."""
    from tiny import make_base

    return make_base(tmp_path_factory.mktemp("base") / "tiny-whisper")


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tiny shards in two languages."""
    from tiny import make_shards

    return make_shards(tmp_path_factory.mktemp("shards") / "tiny")


# Modules that take half a minute or more on two cores.
SLOW = {
    *("test_resume_matrix", "test_placement", "test_released", "test_sharded_run", "test_stopping"),
    *("test_hang_before_training", "test_kept_ranks", "test_packed_invariant", "test_local_restart"),
    *("test_loading", "test_disk_offload", "test_watchdog", "test_faults", "test_agreement"),
    *("test_paper", "test_notebook", "test_same_vectors", "test_ranks_and_kills"),
}

# What `make check` runs: the main job by its commands, every family, two ranks, the launcher, what is
# assumed of other packages, and what an older release wrote.
CHECK = {
    *(
        "test_command_line",
        "test_whole_path",
        "test_conformance",
        "test_sharded_run",
        "test_untouched_base",
    ),
    *(
        "test_slurm",
        "test_rules",
        "test_drop_finished",
        "test_versions",
        "test_older_release",
        "test_layout",
    ),
}


def checked(path: Path) -> bool:
    return path.stem in CHECK or path.parent.name == "libraries"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m check` need not import all the other modules, which takes each process half a minute."""
    other = collection_path.suffix == ".py" and not checked(collection_path)
    return True if other and config.option.markexpr == "check" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Markers by place, so that no module forgets its own."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")
        if checked(item.path):
            item.add_marker("check")
        if item.path.parent.name == "cluster":
            item.add_marker("cluster")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """A base's loading collects garbage: it need not look at modules and collected tests again.

    They are a million objects and half a second. After a module's last fixture, so that nothing that a
    test made stays for good.
    """
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In several processes, a module stays in one, for its fixtures; so do all of the one cluster.

    The one launch over all families is apart from what else is tested of them: each takes a minute.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module, _, test = nodeid.partition("::")
            if module.startswith("tests/cluster/"):
                return "tests/cluster"
            return f"{module}::ranks" if test.startswith("test_two_zero3_ranks_") else module

    return ByModule(config, log)
