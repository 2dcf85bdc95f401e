"""The README's example runs as it stands, on a tiny base in place of the demo's."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import make_config

from salsa_dist import load_config, train

README = Path(__file__).parents[1] / "README.md"


def test_five_lines(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards))
    adapter = train(config).adapters[0]
    clip = tmp_path / "clip.ogg"
    soundfile.write(clip, 0.1 * np.random.default_rng(0).standard_normal(44_100), 44_100)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    for theirs, ours in (
        ("~/.cache/salsa-dist/whisper-base", tiny_base),
        ("runs/demo/adapters/bg", adapter),
        ("clip.ogg", clip),
    ):
        assert theirs in code
        code = code.replace(theirs, str(ours))
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.startswith("['")
