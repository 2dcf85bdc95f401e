"""The page on adding a corpus: its recipe works as it stands, through the command line."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from clips import samples, wave

from salsa_dist.corpus.recipes import RECIPES
from salsa_dist.data.index import ShardIndex

PAGE = RECIPES.parent / "docs/adding-a-corpus.md"


def test_the_recipe_on_the_page(tmp_path: Path) -> None:
    recipe, reading = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_corpus.py").write_text(recipe, encoding="utf-8")
    for speaker in range(12):
        for i in range(3):
            clip = wave(tmp_path / f"corpus/s{speaker}/{i}.wav", rate=16_000)
            clip.with_suffix(".txt").write_text(f"дума {speaker} {i}\n", encoding="utf-8")

    def shards(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "salsa_dist", "shards", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True)

    out = tmp_path / "out"
    recipe_file = tmp_path / "my_corpus.py"
    made = shards("build", recipe_file, tmp_path / "corpus", out, "--workers", 1, "--test-share", 0.2)
    assert made.returncode == 0, made.stderr
    index = ShardIndex.load(out)
    assert (index.name, index.recipe["splits"]) == ("my_corpus", {"bg": "by speaker"})
    assert len(samples(index)) == 36
    assert shards("lint", out, "--workers", 1).returncode == 0
    assert '"samples": ' in shards("stats", out, "--json").stdout
    names: dict[str, Any] = {}
    exec(reading.replace("shards/mine", str(out)), names)
    read = {row["__key__"]: row["json"]["text"] for row in names["speech"]["train"]}
    train = {key: f["text"] for key, (split, _, f) in samples(index).items() if split == "train"}
    assert read == train
    none = shards("build", recipe_file, tmp_path, tmp_path / "none")
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)
    assert "name the unpacked corpus" in none.stderr


def test_every_recipe_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [path.stem for path in RECIPES.glob("*.py") if f"`{path.stem}`" not in page] == []
