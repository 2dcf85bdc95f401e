"""The paper's domains as sweep files: planned, launched dry, and run on a tiny base over tiny corpora
in the layouts of the recipes that the files name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from clips import tone, wave
from launching import Desk, sbatch_lines

from salsa_dist.cli import run_command
from salsa_dist.commands import sweep as commands
from salsa_dist.corpus.build import build
from salsa_dist.sweeps import local_jobs

PAPER = Path(__file__).parents[2] / "docs" / "paper"
WORDS = ("vuk", "lisa", "mechka", "zaek", "riba", "kon")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def myst(home: Path) -> Iterator[Path]:
    for number, (partition, count) in enumerate((("train", 8), ("development", 2), ("test", 2))):
        session = f"myst_00200{number}_2013-11-04_09-58-45_MX_1.1"
        for i in range(count):
            name = home / f"data/{partition}/00200{number}/{session}/{session}_{i:03}.flac"
            write(name.with_suffix(".trn"), f"<BREATH> {WORDS[i % 6]} {partition}\n")
            yield wave(name, hz=300 + 50 * i, rate=16_000)


def ogi(home: Path) -> Iterator[Path]:
    write(home / "docs/all.map", 'AB "apple pie"\nC1 "one two"\n')
    (home / "speech/spontaneous").mkdir(parents=True)
    for child in range(18):
        for prompt in ("ab", "c1"):
            name = f"ks0{child:02d}"
            place = home / f"speech/scripted/0{child % 2}/0/{name}/{name}{prompt}0.wav"
            yield wave(place, hz=300 + 20 * child, rate=16_000)


def common_voice(home: Path) -> Iterator[Path]:
    for language in ("ru", "tw"):
        for split, count in (("train", 8), ("dev", 2), ("test", 2)):
            rows = ["client_id\tpath\tsentence\tage\tgender"]
            for i in range(count):
                name = f"{language}_{split}_{i}.mp3"
                rows.append(f"{split}{i}\t{name}\t{WORDS[i % 6]} {split}\t\t")
                yield wave(
                    home / f"cv-corpus-17.0/{language}/clips/{name}", hz=300 + 50 * i, rate=16_000
                )
            write(home / f"cv-corpus-17.0/{language}/{split}.tsv", "\n".join(rows) + "\n")


def seame(home: Path) -> Iterator[Path]:
    for number in range(18):
        recording = f"NI{number:02d}MAX_0101"
        rows = [(900 * i, 900 * i + 800, f"我们 go {WORDS[i]}") for i in range(2)]
        path = home / f"data/interview/audio/{recording}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.concatenate([tone(1, hz, 16_000) for hz in (300, 600)]), 16_000)
        lines = "".join(f"{recording}\t{a}\t{b}\tCS\t{text}\n" for a, b, text in rows)
        write(home / f"data/interview/transcript/phaseII/{recording}.txt", lines)
        yield path


def ascend(home: Path) -> Iterator[Path]:
    """As on the hub: a folder of Parquet files for each split, named in the head of the card."""
    datasets = pytest.importorskip("datasets")
    home = home / "CAiRE/ASCEND"
    head = ["---", "configs:", "- config_name: main", "  data_files:"]
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        rows = []
        for i in range(count):
            sound = wave(home.parent / "clip.wav", hz=300 + 50 * i, rate=16_000).read_bytes()
            about = {"id": f"{i:05d}", "path": f"waves/{i}.wav", "duration": 0.5, "language": "mixed"}
            about |= {"transcription": f"我们 go {WORDS[i % 6]}", "original_speaker_id": i}
            rows.append({**about, "audio": {"bytes": sound, "path": "clip.wav"}})
        (home / "main").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio())
        table.to_parquet(home / f"main/{split}-00000-of-00001.parquet")
        head += [f"  - split: {split}", f"    path: main/{split}-*"]
    write(home / "README.md", "\n".join([*head, "---", ""]))
    yield home


MAKERS: dict[str, dict[str, tuple[str, Callable[[Path], Iterator[Path]]]]] = {
    "children": {"myst": ("myst", myst), "ogi": ("ogi_kids", ogi)},
    "multilingual": {"common_voice": ("common_voice", common_voice)},
    "codeswitch": {"seame": ("seame", seame), "ascend": ("hub", ascend)},
}


@dataclass(frozen=True)
class Domain:
    """A sweep file's name, and the shards of its corpora by their names in it."""

    name: str
    corpora: Mapping[str, str]


@pytest.fixture(scope="module", params=MAKERS)
def domain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """Tiny corpora, built once for all tests, which only read them."""
    folder = tmp_path_factory.mktemp("domain")
    corpora = {}
    for corpus, (recipe, make) in MAKERS[request.param].items():
        assert list(make(folder / corpus))
        below = {"common_voice": "cv-corpus-17.0", "hub": "CAiRE/ASCEND"}
        home = folder / corpus / below.get(recipe, "")
        build(recipe, home, folder / "shards" / corpus)
        corpora[corpus] = str(folder / "shards" / corpus)
    return Domain(request.param, corpora)


def tiny(domain: Domain, folder: Path, base: Path) -> tuple[Path, dict[str, Any]]:
    """The published file over a tiny base and tiny corpora, all else as it is, and its tree."""
    tree = yaml.safe_load((PAPER / f"{domain.name}.yaml").read_text(encoding="utf-8"))
    corpora = dict(domain.corpora)
    assert corpora.keys() <= tree["grid"]["corpus"].keys()
    tree["sweep"], tree["grid"]["corpus"] = str(folder / "sweep"), corpora
    config = tree["config"]
    config["base"] |= {"name": str(base), "window_s": 2}
    config["base"].pop("language_as", None)  # the tiny base has three languages
    config["data"] |= {
        "shards": next(iter(corpora.values())),
        "clips_per_step": 8,
        "workers": 0,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path, tree


def test_planned_and_launched_dry_on_four_nodes(
    tmp_path: Path, tiny_base: Path, domain: Domain
) -> None:
    path, tree = tiny(domain, tmp_path, tiny_base)
    desk = Desk(tmp_path)
    done = desk.forked("-m", "salsa_dist", "sweep", "plan", path, "--nodes", "4")
    assert done.status == 0, done.err
    assert "on Slurm" in done.out
    result = desk.slurm_py("sweep", str(path), "--nodes", "4", "--dry-run")
    assert (result.status, result.err) == (0, "")
    asked = sbatch_lines(result.out.split("# --- and for each of them task.sh:")[0])
    assert (asked["nodes"], asked["ntasks-per-node"]) == ("1", "8")
    assert asked["array"].endswith("%4")
    assert not Path(tree["sweep"]).exists()


def test_run_to_its_report(
    tmp_path: Path, tiny_base: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tree = tiny(domain, tmp_path, tiny_base)
    tree["config"]["training"] |= {"steps": 2}
    tree["config"]["evaluation"] |= {"max_new_tokens": 8}
    tree["grid"]["seed"], tree["dev_clips"], tree["jobs"] = [0], 1, {"adapters": 16}
    # One trial each: all methods, corpora and languages run, and nothing is chosen.
    for method in tree["methods"]:
        method |= {k: v[:1] for k, v in method.items() if isinstance(v, list)}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")

    def here(jobs: Any, ranks: int, at_once: int) -> int:
        for job in jobs:
            for verb in job.to_do():
                run_command(verb, str(job.config), [])
        return 0

    monkeypatch.setattr(local_jobs, "run_jobs", here)
    commands.run(path)
    for corpus in tree["grid"]["corpus"]:
        page = tmp_path / "sweep/report" / corpus / "comparison.json"
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        assert len({cell["method"] for cell in cells}) == len(tree["methods"])
        assert {cell["language"] for cell in cells} >= set(tree["grid"]["language"])
