"""What is carried to a machine with a GPU fits what the package admits."""

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def test_the_list_of_packages_is_within_the_ranges() -> None:
    lines = (ROOT / "tests" / "gpu" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    carried = [Requirement(line) for line in lines if not line.startswith("#")]
    exact = {own.name: next(iter(own.specifier)).version for own in carried}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ranges = [Requirement(text) for text in re.findall(r'^  "([\w-]+[<>=][^"]+)",$', project, re.M)]
    admitted = {own.name.replace("_", "-"): own.specifier for own in ranges}
    held = [name for name in exact if name in admitted]
    assert {"deepspeed", "webdataset", "jiwer", "submitit", "soxr", "soundfile"} <= set(held)
    assert [f"{name} {exact[name]}" for name in held if exact[name] not in admitted[name]] == []
