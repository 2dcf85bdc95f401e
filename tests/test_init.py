"""`salsa-dist init` writes a config that loads, whatever of its commented keys is taken."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from salsa_dist import load_config
from salsa_dist.cli import main
from salsa_dist.commands.init import starter
from salsa_dist.data.index import ShardIndex


def init(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["salsa-dist", "init", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_it_names_the_languages_of_the_shards(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init(monkeypatch, tiny_base, tiny_shards) == 0
    config = load_config("config.yaml")
    assert [(a.name, a.language) for a in config.adapters] == [("bg", "bg"), ("el", "el")]
    assert (config.base.name, config.data.shards) == (str(tiny_base), tiny_shards)
    assert (config.run, config.evaluation.split) == (Path("runs/tiny"), "test")
    assert "# clips: dev 6, test 6, train 24; " in Path("config.yaml").read_text()


def test_every_key_in_a_comment_is_one_of_the_config(tmp_path: Path, tiny_shards: Path) -> None:
    index = ShardIndex.load(tiny_shards)
    text = starter("base", index, tiny_shards, Path("runs/x"), Path("x.yaml"))
    keys = re.findall(r"^ *# ([a-z_]+): ", text, re.MULTILINE)
    assert len(keys) >= 6
    for key in keys:
        file = tmp_path / f"{key}.yaml"
        file.write_text(re.sub(rf"^( *)# ({key}: )", r"\1\2", text, flags=re.MULTILINE))
        found = load_config(file)
        assert any(
            key in section.model_fields_set
            for _, section in found
            if hasattr(section, "model_fields_set")
        )


def test_norwegian_is_no_truth_value(tmp_path: Path, tiny_shards: Path) -> None:
    index = ShardIndex.load(tiny_shards)
    shards = [replace(s, language={"bg": "no"}.get(s.language, s.language)) for s in index.shards]
    shards = [s for s in shards if (s.language, s.split) != ("el", "test")]
    file = tmp_path / "x.yaml"
    odd = Path("a: b #c")
    file.write_text(starter("[base", replace(index, shards=tuple(shards)), odd, odd, file))
    config = load_config(file)
    assert [a.language for a in config.adapters] == ["el", "no"]
    assert (config.base.name, config.data.shards, config.run) == ("[base", odd, odd)
    assert config.evaluation.split == "dev", "one language has no test clips"


def test_mistakes_are_one_line_and_nothing_is_written(
    tmp_path: Path,
    tiny_base: Path,
    tiny_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("mine")
    for arguments, says in (
        ((tiny_base, tmp_path), "name a folder of shards"),
        ((tmp_path / "nowhere", tiny_shards), "no folder with a config.json"),
        ((tiny_base, tiny_shards, "--out", "mine.yaml"), "--force"),
        ((tiny_base, tiny_shards, "--out", "nowhere/x.yaml"), "can't be written"),
    ):
        assert init(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("mine.yaml", "mine")]
    assert init(monkeypatch, tiny_base, tiny_shards, "--out", "mine.yaml", "--force") == 0
    load_config("mine.yaml")
