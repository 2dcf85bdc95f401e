"""A base is copied to the node's own disk once, and used from there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from salsa_dist import UserError
from salsa_dist.config import BaseConfig, PlacementConfig
from salsa_dist.placement.loading import load_base
from salsa_dist.placement.ranks import join
from salsa_dist.placement.staging import staged
from salsa_dist.speech_llms.load import load_speech_llm


@pytest.fixture
def source(tiny_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base, tmp_path / "source")


def stage(base: BaseConfig) -> tuple[Path, list[str]]:
    lines: list[str] = []
    with join() as ranks:
        return staged(base, ranks, lines.append), lines


def test_weights_come_from_the_copy_and_the_name_from_the_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH_HERE", str(tmp_path / "local"))
    base = BaseConfig(name=str(source), stage_to="$SCRATCH_HERE")
    with join() as ranks:
        for placement in (
            PlacementConfig(kind="replicate"),
            PlacementConfig(kind="replicate", offload="cpu"),
        ):
            loaded = load_base(base, ranks, placement, lambda line: None)
            assert (loaded.name, loaded.revision) == (str(source), load_speech_llm(source).revision)
        assert loaded.sources is not None
        assert {s.path.parents[1] for s in loaded.sources.values()} == {tmp_path / "local"}


def test_a_copy_is_made_once_and_again_when_it_is_not_whole(source: Path, tmp_path: Path) -> None:
    base = BaseConfig(name=str(source), stage_to=str(tmp_path / "local"))
    folder, lines = stage(base)
    assert "copying the base's" in lines[0]
    assert {p.name for p in folder.iterdir()} == {p.name for p in source.iterdir()}
    assert stage(base) == (folder, [f"using the copy of the base in {folder}"])
    (folder / "model.safetensors").write_bytes(b"half")
    again, lines = stage(base)
    assert (again, lines[0][:7]) == (folder, "copying")
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "something was left beside it"


def test_another_base_of_the_same_sizes_is_not_taken_for_this_one(source: Path, tmp_path: Path) -> None:
    base = BaseConfig(name=str(source), stage_to=str(tmp_path / "local"))
    first, _ = stage(base)
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (source / "model.safetensors").write_bytes(weights)
    second, _ = stage(base)
    assert second != first
    assert (second / "model.safetensors").read_bytes() == bytes(weights)


def test_what_cannot_be_staged_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage_to is \$NOWHERE_SET/x, and that variable is not set"):
        stage(BaseConfig(name=str(source), stage_to="$NOWHERE_SET/x"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"stage_to is .*file, no place to write to"):
        stage(BaseConfig(name=str(source), stage_to=str(tmp_path / "file")))
    # The hub is not reached: a name that is no folder.
    with pytest.raises(UserError, match="can't be loaded"):
        stage(BaseConfig(name=str(tmp_path / "absent"), stage_to=str(tmp_path / "local")))
