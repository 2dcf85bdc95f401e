"""What release 0.1 wrote is read by this one: adapters, and a run that was stopped.

The files in tests/fixtures/release-0.1/ were written by that release and stay as they are; see make.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from salsa_dist import SteeringVectors, UserError, load_config, train

RELEASE_0_1 = Path(__file__).parent / "fixtures" / "release-0.1"
NAMES = ("bg", "el")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, and the place that its paths are relative to."""
    copy = tmp_path / "release-0.1"
    shutil.copytree(RELEASE_0_1, copy)
    monkeypatch.chdir(copy)
    return copy


def test_an_adapter_of_release_0_1_loads() -> None:
    for name in NAMES:
        vectors = SteeringVectors.load(RELEASE_0_1 / "finished" / name)
        assert vectors.language == name
        assert vectors.rule == ("add" if name == "el" else "salsa")
        assert len(vectors.vectors) == 4
        assert all(v.shape == (16,) and v.norm() > 0 for v in vectors.vectors.values())


def test_a_run_of_release_0_1_goes_on_and_ends_as_it_would_have(folder: Path) -> None:
    assert (
        sorted(p.name for p in (folder / "run" / "state").iterdir())[-1] == "step-00000003.safetensors"
    )
    assert train(load_config(folder / "config.yaml")).finished
    events = (folder / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    starts = [e for e in map(json.loads, events) if e["event"] == "start"]
    assert [e["resumed_step"] for e in starts] == [0, 3], "it began anew"
    for name in NAMES:
        wanted = SteeringVectors.load(folder / "finished" / name).vectors
        found = SteeringVectors.load(folder / "run" / "adapters" / name).vectors
        for site, vector in wanted.items():
            assert (found[site] - vector).norm() < 1e-5 * vector.norm(), (name, site)


def test_a_run_of_release_0_1_with_other_settings_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(UserError, match="was made with other settings") as refused:
        train(load_config(folder / "config.yaml", ["training.lr=0.5"]))
    assert "\n" not in str(refused.value)


def test_a_state_of_a_later_release_is_refused_by_name(folder: Path) -> None:
    for path in (folder / "run" / "state").iterdir():
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata())
        fields = {**json.loads(metadata["state"]), "schema": "salsa-dist/state/99"}
        save_file(tensors, path, {**metadata, "state": json.dumps(fields)})
    with pytest.raises(UserError, match="'salsa-dist/state/99', written by a newer release"):
        train(load_config(folder / "config.yaml"))


def test_an_adapter_of_a_later_release_is_refused_by_name(folder: Path) -> None:
    facts = folder / "finished" / "bg" / "adapter.json"
    facts.write_text(facts.read_text().replace("salsa-dist/adapter/1", "salsa-dist/adapter/99"))
    with pytest.raises(UserError, match="'salsa-dist/adapter/99', written by a newer release"):
        SteeringVectors.load(facts.parent)


def test_the_files_are_those_of_the_release() -> None:
    facts = json.loads((RELEASE_0_1 / "finished" / "bg" / "adapter.json").read_text(encoding="utf-8"))
    assert facts["training"]["salsa_dist"] == "0.1.0"
    state = RELEASE_0_1 / "run" / "state" / "step-00000003.safetensors"
    with safe_open(state, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["schema"] == "salsa-dist/state/1"
        assert file.get_tensor("steps").tolist() == [3, 3]
        assert file.get_tensor("steps").dtype == torch.int64
