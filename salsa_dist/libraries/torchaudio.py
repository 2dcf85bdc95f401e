"""torchaudio beside a torch that its compiled part does not fit.

torchaudio's wheel may be a CUDA build, which can't be imported beside a CPU build of torch
(`libc10_cuda.so`). transformers imports torchaudio wherever it is installed, so none of its models can
be imported then either. After `settle()`:

    `import torchaudio`          what we do                           status()
    ───────────────────          ──────────                           ────────
    works                        nothing                              "2.11.0"
    fails in its compiled part   import it without that part          "2.11.0 (Python parts only)"
    fails otherwise              hide it: as if it weren't installed  "absent"

Neither library has a setting for it: transformers asks only whether torchaudio is installed, and
torchaudio loads its compiled part when it is imported. To call `settle()` in `import salsa_dist` would
import torch, for which a command's --help need not wait: a hook calls it when transformers is imported.

`python -m salsa_dist.libraries.torchaudio` does the second for good: it sets the compiled files aside.
Then transformers can be imported in any order, with salsa_dist or without.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import Any

from salsa_dist.log import result

_EXTENSION = "torchaudio._extension"


def settle() -> None:
    """Make `import torchaudio` work, or hide it. Imports torch; a second call does nothing.

    Assumes that torchaudio loads its compiled part by `_load_lib` of `torchaudio._extension.utils`, and
    does without where that function answers False. transformers remembers whether torchaudio is there
    in a cached function.

    Seen: torchaudio 2.11.
    Else: torchaudio is hidden. Masking falls back to our own; Granite-Speech, whose features need
        it, is refused by transformers.
    Test: test_a_compiled_part_that_fails_is_done_without
    """
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except Exception:
        loader: Any = sys.modules.get(f"{_EXTENSION}.utils")
        _forget(but=f"{_EXTENSION}.utils")
        try:
            loader._load_lib = lambda lib: False
            importlib.import_module("torchaudio")
        except Exception:
            _forget()
            # Python's own mark for "not there": `find_spec` then answers None, which transformers asks.
            sys.modules["torchaudio"] = None  # type: ignore[assignment]
    asked: Any = getattr(sys.modules.get("transformers.utils"), "is_torchaudio_available", None)
    if hasattr(asked, "cache_clear"):
        asked.cache_clear()


def settle_before_transformers() -> None:
    """Have `settle` called when transformers is imported; now, if it is already.

    Assumes that `import transformers` by itself imports no torchaudio: only its models do.

    Seen: transformers 5.17 and 5.24.
    Else: where salsa_dist is imported second, transformers itself fails, by torchaudio's OSError.
    Test: test_transformers_by_itself_imports_no_torchaudio
    """
    if "transformers" in sys.modules:
        settle()
    elif not any(isinstance(finder, _BeforeTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTransformers())


class _BeforeTransformers(importlib.abc.MetaPathFinder):
    """Finds nothing. Python asks it first, so torchaudio is settled before transformers is found."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "transformers":
            sys.meta_path.remove(self)
            settle()


def works() -> bool:
    """Whether `import torchaudio` works, with its compiled part or without."""
    settle()
    return sys.modules.get("torchaudio") is not None


def status() -> str:
    """`2.11.0`, `2.11.0 (Python parts only)` or `absent`; imports torchaudio to know."""
    if not works():
        return "absent"
    version = str(getattr(sys.modules["torchaudio"], "__version__", "of unknown version"))
    return version if _has_compiled_part() else f"{version} (Python parts only)"


def set_aside() -> list[Path]:
    """Rename torchaudio's compiled files if they can't be loaded here; returns their new paths.

    Assumes that torchaudio does without a compiled file that is not in its `lib` folder.

    Seen: torchaudio 2.11.
    Else: nothing is renamed, and `settle` does what it can in each process.
    Test: test_what_is_set_aside_lets_transformers_be_imported_first
    """
    if not works() or _has_compiled_part():
        return []
    files = sorted(Path(sys.modules["torchaudio"].__path__[0], "lib").glob("*.so"))
    return [file.rename(file.with_suffix(".so.set-aside")) for file in files]


def _has_compiled_part() -> bool:
    return bool(getattr(sys.modules.get(_EXTENSION), "_IS_TORCHAUDIO_EXT_AVAILABLE", True))


def _forget(but: str | None = None) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio" and n != but]:
        del sys.modules[name]


if __name__ == "__main__":
    if aside := set_aside():
        result(f"torchaudio's compiled part does not fit this torch: set aside {len(aside)} files")
        result("\n".join(map(str, aside)))
