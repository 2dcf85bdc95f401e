"""torchaudio's three states, each in a process of its own with a made-up or the installed package."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIVE_LINES = "from salsa_dist import SteeringVectors, load_speech_llm, transcribe"
BROKEN_LIBRARY = {
    "__init__.py": """
        __version__ = "9.9"
        from . import _extension, functional
    """,
    "_extension/__init__.py": """
        from .utils import _load_lib
        _IS_TORCHAUDIO_EXT_AVAILABLE = _load_lib("_torchaudio")
    """,
    "_extension/utils.py": """
        def _load_lib(lib):
            raise OSError("libc10_cuda.so: cannot open shared object file")
    """,
    "functional.py": "from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE\n",
}
HOPELESS = {"__init__.py": 'raise ImportError("built for another torch")\n'}
# Like the real one: asks whether there is a torchaudio, then imports it.
TRANSFORMERS = {
    "__init__.py": """
        import importlib.util
        believes = importlib.util.find_spec("torchaudio") is not None
        if believes:
            import torchaudio
    """
}


def make_package(folder: Path, name: str, files: dict[str, str]) -> None:
    for file, text in files.items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def run(code: str, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("package", "status"),
    [
        ({"__init__.py": '__version__ = "9.9"\n'}, "True 9.9"),
        (BROKEN_LIBRARY, "True 9.9 (Python parts only)"),
        (HOPELESS, "False absent"),
    ],
)
def test_transformers_imports_in_every_state(
    tmp_path: Path, package: dict[str, str], status: str
) -> None:
    make_package(tmp_path, "torchaudio", package)
    make_package(tmp_path, "transformers", TRANSFORMERS)
    code = """
        import sys
        import salsa_dist
        assert "torch" not in sys.modules and "torchaudio" not in sys.modules, "not lazy"
        import transformers
        from salsa_dist.libraries import torchaudio
        print(transformers.believes, torchaudio.status())
    """
    assert run(code, tmp_path) == status


def test_without_the_package_it_is_absent() -> None:
    code = """
        from salsa_dist.libraries import torchaudio
        print(torchaudio.status(), torchaudio.works())
    """
    root = ROOT
    assert run(code, root, "-S") == "absent False"  # -S: no installed packages at all


def test_a_compiled_part_that_fails_is_done_without(tmp_path: Path) -> None:
    make_package(tmp_path, "torchaudio", BROKEN_LIBRARY)
    code = """
        from salsa_dist.libraries import torchaudio
        print(torchaudio.works())
        from torchaudio import functional
        print(functional._IS_TORCHAUDIO_EXT_AVAILABLE)
    """
    assert run(code, tmp_path).split() == ["True", "False"]


def test_real_transformers_does_without_a_hopeless_torchaudio(tmp_path: Path) -> None:
    make_package(tmp_path, "torchaudio", HOPELESS)
    code = """
        import numpy as np
        from salsa_dist.data import audio
        from transformers import WhisperForConditionalGeneration
        changed = audio.resample(np.zeros(44100, np.float32), 44100, 16000)
        print(audio.resampler().split()[0], len(changed))
    """
    assert run(code, tmp_path) == "soxr 16000"


def test_the_installed_torchaudio_resamples_and_makes_mels() -> None:
    from salsa_dist.libraries.torchaudio import status, works

    if not works():
        pytest.skip("no torchaudio works here")
    import torch
    import torchaudio

    assert status().startswith(torchaudio.__version__)
    wave = torch.sin(torch.arange(44_100) / 44_100 * 2 * torch.pi * 440)
    changed = torchaudio.functional.resample(wave, 44_100, 16_000)
    assert changed.abs()[1000:-1000].max() == pytest.approx(1, abs=0.01)
    mels = torchaudio.transforms.MelSpectrogram(16_000, n_fft=400, n_mels=40)(changed)
    assert mels.mean(-1).argmax() == pytest.approx(6, abs=2)  # 440 Hz lies low


def copy_of_torchaudio(folder: Path) -> None:
    """The installed package as its wheel had it: no compiled file set aside."""
    if (found := importlib.util.find_spec("torchaudio")) is None or found.origin is None:
        pytest.skip("no torchaudio is installed here")
    shutil.copytree(Path(found.origin).parent, folder / "torchaudio")
    for file in folder.glob("torchaudio/lib/*.set-aside"):
        file.rename(file.with_suffix(""))


def plain_transformers_works(folder: Path) -> bool:
    code = "from transformers import WhisperForConditionalGeneration"
    paths = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True).returncode == 0


def test_transformers_by_itself_imports_no_torchaudio(tmp_path: Path) -> None:
    code = """
        import sys
        import transformers
        print("torchaudio" in sys.modules)
    """
    assert run(code, tmp_path) == "False"


@pytest.mark.parametrize(
    "code",
    [
        f"import transformers\n{FIVE_LINES}\nfrom transformers import WhisperForConditionalGeneration",
        "import salsa_dist\nfrom transformers import pipeline, WhisperForConditionalGeneration",
    ],
    ids=["transformers first", "salsa_dist first"],
)
def test_a_model_can_be_imported_in_either_order(code: str, tmp_path: Path) -> None:
    assert run(f"{code}\nprint('done')", tmp_path) == "done"


def test_what_is_set_aside_lets_transformers_be_imported_first(tmp_path: Path) -> None:
    """On a copy of the installed torchaudio, which may be a CUDA build beside a CPU build of torch."""
    copy_of_torchaudio(tmp_path)
    fits = plain_transformers_works(tmp_path)
    start = "run_module('salsa_dist.libraries.torchaudio', run_name='__main__')"
    done = run(f"from runpy import run_module; {start}", tmp_path)
    assert ("set aside" in done) != fits
    aside = list(tmp_path.glob("torchaudio/lib/*.set-aside"))
    assert bool(aside) != fits
    both = "from transformers import WhisperForConditionalGeneration, pipeline"
    assert run(f"{both}\n{FIVE_LINES}\nprint('done')", tmp_path) == "done"


def test_a_model_that_was_imported_in_vain_can_be_imported_after_salsa_dist(tmp_path: Path) -> None:
    make_package(tmp_path, "torchaudio", BROKEN_LIBRARY)
    code = """
        try:
            from transformers import WhisperForConditionalGeneration
        except Exception:
            print("in vain")
        import salsa_dist
        from transformers import WhisperForConditionalGeneration
        print("done")
    """
    assert run(code, tmp_path).split("\n") == ["in vain", "done"]
