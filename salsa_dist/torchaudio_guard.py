"""torchaudio's trouble, settled in one place, before anything imports transformers.

torchaudio's wheel may be a CUDA build, which fails to import beside CPU torch (`libc10_cuda.so`),
or one built for another torch. Then every transformers model fails to import too, since transformers
imports torchaudio wherever it is installed. After `install()` there are three states:

    torchaudio's import      what we do                         status()
    ───────────────────      ──────────                         ────────
    works                    nothing                            "2.11.0"
    fails, compiled part     import again without that part:    "2.11.0 (Python parts only)"
                             resample, MelSpectrogram work
    fails for good, or       hide it: transformers believes     "absent"
    not installed            that it is not installed

Nothing heavy happens at `install()`: it puts a finder in front of `sys.meta_path` that acts only when
torchaudio or transformers is really imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_LIBRARY_LOADER = "torchaudio._extension.utils"  # its `_load_lib` loads every compiled part


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torchaudio and transformers as ever, and runs our part when they are executed."""

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        around = {"torchaudio": _import_torchaudio, "transformers": _before_transformers}.get(name)
        if around is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _wrap(spec, around)
                return spec
        return None


def install() -> None:
    """Guard this process's imports of torchaudio and transformers; a second call does nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    if "transformers" in sys.modules:  # the user was faster: settle it before a model is imported
        _hide_if_hopeless()
        remembered: Any = sys.modules.get("transformers.utils.import_utils")
        if hasattr(remembered, "is_torchaudio_available"):
            remembered.is_torchaudio_available.cache_clear()


def works() -> bool:
    """Whether `import torchaudio` works, with its compiled part or without."""
    return status() != "absent"


def status() -> str:
    """`2.11.0`, `2.11.0 (Python parts only)` or `absent`; imports torchaudio to know."""
    _hide_if_hopeless()
    module = sys.modules.get("torchaudio")
    if module is None:
        return "absent"
    version = str(getattr(module, "__version__", "of unknown version"))
    return f"{version} (Python parts only)" if hasattr(module, "_salsa_dist_why") else version


def _wrap(
    spec: importlib.machinery.ModuleSpec,
    around: Callable[[Callable[[ModuleType], None], ModuleType], None],
) -> None:
    # The instance's method, not a loader of ours: importlib asks the loader for much else
    # (resources, source), and whoever only looks for the spec must not set anything off.
    loader: Any = spec.loader
    if loader is None or not hasattr(loader, "exec_module"):
        return
    execute = loader.exec_module
    loader.exec_module = lambda module: around(execute, module)


def _import_torchaudio(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        execute(module)
        return
    except (ImportError, OSError, RuntimeError, AttributeError) as e:
        why = f"{type(e).__name__}: {e}"
    loader = sys.modules.get(_LIBRARY_LOADER)
    for name in [n for n in sys.modules if n.startswith("torchaudio.") and n != _LIBRARY_LOADER]:
        del sys.modules[name]
    if loader is None or not hasattr(loader, "_load_lib"):
        raise ImportError(f"torchaudio fails to import ({why})", name="torchaudio")
    # torchaudio itself allows for a build without compiled parts: there this function says False.
    loader._load_lib = lambda lib: False  # type: ignore[attr-defined]
    try:
        execute(module)
    except Exception as e:
        raise ImportError(f"torchaudio fails to import ({why}; then {e})", name="torchaudio") from e
    module._salsa_dist_why = why  # type: ignore[attr-defined]


def _before_transformers(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    _hide_if_hopeless()
    execute(module)


def _hide_if_hopeless() -> None:
    if importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except Exception:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        # Python's own mark for "not there": `find_spec` then answers None, which transformers asks.
        sys.modules["torchaudio"] = None  # type: ignore[assignment]
