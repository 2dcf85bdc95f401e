"""torchaudio's three states, each in a process of its own with a made-up or the installed package."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BROKEN_LIBRARY = {
    "__init__.py": """
        __version__ = "9.9"
        from . import _extension, functional
    """,
    "_extension/__init__.py": """
        from .utils import _load_lib
        AVAILABLE = _load_lib("_torchaudio")
    """,
    "_extension/utils.py": """
        def _load_lib(lib):
            raise OSError("libc10_cuda.so: cannot open shared object file")
    """,
    "functional.py": "from torchaudio._extension import AVAILABLE\n",
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
        env={**os.environ, "PYTHONPATH": str(folder)},
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
        from salsa_dist import torchaudio_guard
        print(transformers.believes, torchaudio_guard.status())
    """
    assert run(code, tmp_path) == status


def test_without_the_package_it_is_absent() -> None:
    code = """
        from salsa_dist import torchaudio_guard
        print(torchaudio_guard.status(), torchaudio_guard.works())
    """
    root = Path(__file__).resolve().parents[1]
    assert run(code, root, "-S") == "absent False"  # -S: no installed packages at all


def test_a_broken_torchaudio_can_be_imported_by_itself(tmp_path: Path) -> None:
    make_package(tmp_path, "torchaudio", BROKEN_LIBRARY)
    code = """
        import salsa_dist
        import torchaudio, torchaudio.functional
        print(torchaudio.functional.AVAILABLE)
    """
    assert run(code, tmp_path) == "False"


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
    from salsa_dist import torchaudio_guard

    if not torchaudio_guard.works():
        pytest.skip("no torchaudio works here")
    import torch
    import torchaudio

    assert torchaudio_guard.status().startswith(torchaudio.__version__)
    wave = torch.sin(torch.arange(44_100) / 44_100 * 2 * torch.pi * 440)
    changed = torchaudio.functional.resample(wave, 44_100, 16_000)
    assert changed.abs()[1000:-1000].max() == pytest.approx(1, abs=0.01)
    mels = torchaudio.transforms.MelSpectrogram(16_000, n_fft=400, n_mels=40)(changed)
    assert mels.mean(-1).argmax() == pytest.approx(6, abs=2)  # 440 Hz lies low
