"""Installed versions of libraries, and the tested ranges.

The ranges are those of our own package's metadata, which pip wrote at installation from pyproject.toml:
they are typed nowhere else. Nothing here imports what it asks about.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from types import ModuleType, TracebackType

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from salsa_dist.columns import aligned
from salsa_dist.log import log

_OURS = "salsa-dist"


@dataclass(frozen=True)
class Library:
    """One package that salsa-dist depends on.

    Attributes:
        name: as pip knows it.
        version: what is installed; None: nothing.
        tested: the range that was tested, such as `>=5.17,<5.25`.
    """

    name: str
    version: str | None
    tested: str

    @property
    def is_outside(self) -> bool:
        return self.version is None or not SpecifierSet(self.tested).contains(self.version, True)

    def __str__(self) -> str:
        return f"{self.name} {self.version or 'not installed'} (tested: {self.tested or 'any'})"


@cache
def libraries() -> tuple[Library, ...]:
    """Python, and each package that every installation needs; empty where ours is not installed."""
    try:
        lines, python = requires(_OURS) or [], metadata(_OURS)["Requires-Python"] or ""
    except PackageNotFoundError:  # run from a folder of files
        return ()
    found = {"python": Library("python", platform.python_version(), _written(SpecifierSet(python)))}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            name = requirement.name
            found[name] = Library(name, version_of(name), _written(requirement.specifier))
    return tuple(found.values())


def version_of(name: str) -> str | None:
    """The installed version of a package; None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table() -> str:
    """All of it as text: one package per line."""
    rows = [(_OURS, version_of(_OURS) or "not installed", "")]
    for lib in libraries():
        mark = "  OUTSIDE" if lib.is_outside else ""
        rows.append((lib.name, lib.version or "not installed", f"tested {lib.tested or 'any'}{mark}"))
    return "\n".join(aligned(rows))


@cache
def warn_if_outside() -> None:
    """Print a warning if a library is outside its range: once per process, on rank 0."""
    outside = [lib for lib in libraries() if lib.is_outside]
    if outside and os.environ.get("RANK", "0") == "0":
        names = ", ".join(map(str, outside))
        log.warning(f"salsa-dist: warning: versions that were not tested: {names}")


def named_in(error: BaseException) -> str | None:
    """One line with the libraries in which `error` was raised; None: it was raised in our own code.

    These are all that the traceback goes through below our own last frame, or the one that an import of
    ours was refused by.
    """
    by_module = {_module_of(lib.name): lib for lib in libraries()}
    inside: list[Library] = []
    for module in _modules(error.__traceback__):
        if module in ("salsa_dist", "__main__"):
            inside = []
        elif module in by_module and by_module[module] not in inside:
            inside.append(by_module[module])
    if not inside:
        owner = error.name if isinstance(error, ImportError) else getattr(error, "obj", None)
        owner = owner.__name__ if isinstance(owner, ModuleType) else owner
        refused = by_module.get(owner.partition(".")[0]) if isinstance(owner, str) else None
        inside = [refused] if refused else []
    if not inside:
        return None
    return f"this failed inside {', '.join(map(str, inside))}"


def raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame of an error is in our own package: likely a bug of ours."""
    return [*_modules(error.__traceback__)][-1:] == ["salsa_dist"]


def _modules(traceback: TracebackType | None) -> Iterator[str]:
    """Top-level packages of the frames of a traceback, outermost first."""
    while traceback is not None:
        yield str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        traceback = traceback.tb_next


def _module_of(name: str) -> str:
    return {"pyyaml": "yaml"}.get(name, name.replace("-", "_"))


def _written(specifiers: SpecifierSet) -> str:
    """The range with the lower end first: `>=5.17,<5.25`."""
    return ",".join(sorted(map(str, specifiers), key=lambda one: (not one.startswith(">"), one)))
