"""torchaudio whose compiled part does not fit the installed torch.

torchaudio's wheel may be a CUDA build, which cannot be imported with a CPU build of torch
(`libc10_cuda.so`). transformers imports torchaudio if it is installed, so none of its models can
be imported then either. After `settle()`:

    `import torchaudio`          what we do                           status()
    ───────────────────          ──────────                           ────────
    works                        nothing                              "2.11.0"
    fails in its compiled part   import it without that part          "2.11.0 (Python parts only)"
    fails otherwise              hide it: as if it weren't installed  "absent"

Neither library has a setting for this: transformers asks only whether torchaudio is installed, and
torchaudio loads its compiled part on import. `settle()` imports torch, which is slow. So `import
salsa_dist` does not call it; a hook calls it when transformers is imported.

`python -m salsa_dist.libraries.torchaudio` renames the compiled files, so torchaudio does without them
from then on. transformers can then be imported before salsa_dist, or without it.
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

    Assumes that `_load_lib` of `torchaudio._extension.utils` loads the compiled part, and that
    torchaudio works without that part if the function returns False. A cached function of transformers
    tells whether torchaudio is installed.

    Seen: torchaudio 2.11.
    Else: torchaudio is hidden. Our own masking is used. transformers refuses Granite-Speech, whose
        features need torchaudio.
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
            # Python's mark for "not installed": `find_spec`, which transformers calls, then returns
            # None.
            sys.modules["torchaudio"] = None  # type: ignore[assignment]
    asked: Any = getattr(sys.modules.get("transformers.utils"), "is_torchaudio_available", None)
    if hasattr(asked, "cache_clear"):
        asked.cache_clear()


def settle_before_transformers() -> None:
    """Call `settle` when transformers is imported; now, if it is already imported.

    Assumes that `import transformers` does not import torchaudio; only its models do.

    Seen: transformers 5.17 and 5.24.
    Else: if salsa_dist is imported after transformers, that import ends with torchaudio's OSError.
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
