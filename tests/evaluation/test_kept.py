"""Earlier transcripts are kept where nothing that they depend on has changed, and only there."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_base, make_config

from salsa_dist import UserError, evaluate, load_config
from salsa_dist.config import Config
from salsa_dist.evaluation.kept import keep_only
from salsa_dist.evaluation.transcripts import SCHEMA, hypotheses, path_of, read

DIGESTS = {"bg": "d1", "el": "d2"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    base = {"name": "base", "dtype": "float32"}  # settled, as a session has it
    return make_config(tmp_path, Path("base"), Path("shards"), base=base)


def begin(config: Config, settings: dict[str, Any] | None = None) -> Path:
    """An evaluation that is there, with what it depends on."""
    folder = config.run / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    if settings is None:
        keep_only(config, "r1", "s1", DIGESTS)
    else:
        (folder / "settings.json").write_text(json.dumps(settings))
    transcripts = folder / "window2-rank0.jsonl"
    transcripts.write_text("{}\n")
    return transcripts


@pytest.mark.parametrize(
    "same",
    [
        *("base.name=moved", "base.stage_to=/fast", "data.stage_to=/fast", "data.shards=moved"),
        *("evaluation.batch=1", "evaluation.windows_s=[1, 2]", "training.max_loss=7"),
    ],
)
def test_what_says_nothing_of_a_transcript_keeps_it(path: Path, same: str) -> None:
    transcripts = begin(load_config(path))
    assert keep_only(load_config(path, [same]), "r1", "s1", DIGESTS) == []
    assert transcripts.exists()


@pytest.mark.parametrize(
    ("override", "revision", "shards", "digests", "differ"),
    [
        ("evaluation.split=dev", "r1", "s1", DIGESTS, ["evaluation.split"]),
        ("base.dtype=bfloat16", "r1", "s1", DIGESTS, ["base.dtype"]),
        ("training.keep=9", "r2", "s1", DIGESTS, ["base"]),
        ("training.keep=9", "r1", "s2", DIGESTS, ["shards"]),
        ("training.keep=9", "r1", "s1", {**DIGESTS, "el": "d3"}, ["adapter el"]),
    ],
)
def test_what_makes_another_transcript_drops_it_and_is_named(
    path: Path, override: str, revision: str, shards: str, digests: dict[str, str], differ: list[str]
) -> None:
    transcripts = begin(load_config(path))
    assert keep_only(load_config(path, [override]), revision, shards, digests) == differ
    assert not transcripts.exists()


def test_the_seed_that_chooses_examples_counts(path: Path) -> None:
    examples = "method={kind: in-context, examples: 2}"
    transcripts = begin(load_config(path, [examples]))
    assert keep_only(load_config(path, [examples]), "r1", "s1", DIGESTS) == []
    seeded = load_config(path, [examples, "adapters.1.seed=5"])
    assert keep_only(seeded, "r1", "s1", DIGESTS) == ["adapter el"]
    assert not transcripts.exists()


def of_release_0_1(config: Config) -> dict[str, Any]:
    """What that release wrote."""
    return {
        "schema": "salsa-dist/hypotheses/1",
        "base": {
            "name": "base",
            "revision": None,
            "dtype": "float32",
            "window_s": None,
            "prompt": None,
            "layers": {},
            "language_as": {},
        },
        "shards": "s1",
        "split": config.evaluation.split,
        "clips": config.evaluation.clips,
        "max_new_tokens": config.evaluation.max_new_tokens,
        "decoding": {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
        "adapters": DIGESTS,
    }


@pytest.mark.parametrize(
    ("begun_with", "override", "kept"),
    [
        ("r1", "base.name=moved", True),
        ("r0", "training.keep=9", False),  # its weights were others
        ("r1", "evaluation.split=dev", False),
        ("r1", "base.prompt=Write", False),
    ],
)
def test_transcripts_of_release_0_1(path: Path, begun_with: str, override: str, kept: bool) -> None:
    config = load_config(path, ["base.window_s=null"])
    transcripts = begin(config, of_release_0_1(config))
    start = {"schema": "salsa-dist/events/1", "event": "start", "base": {"revision": begun_with}}
    (config.run / "events.jsonl").write_text(json.dumps(start) + "\n")
    now = load_config(path, ["base.window_s=null", override])
    differ = keep_only(now, "r1", "s1", DIGESTS)
    assert (differ == []) == transcripts.exists() == kept
    assert keep_only(now, "r1", "s1", DIGESTS) == [], "it is of this release from now on"


@pytest.mark.parametrize("damage", ["", "[]", '{"schema": "salsa-dist/transcripts/99"}'])
def test_settings_that_are_damaged_or_of_another_release_keep_nothing(path: Path, damage: str) -> None:
    transcripts = begin(load_config(path))
    transcripts.with_name("settings.json").write_text(damage)
    assert keep_only(load_config(path), "r1", "s1", DIGESTS) == ["settings of an earlier release"]
    assert not transcripts.exists()


def test_settings_that_cannot_be_read_now_drop_nothing(path: Path) -> None:
    transcripts = begin(load_config(path))
    settings = transcripts.with_name("settings.json")
    settings.unlink()
    settings.mkdir()  # as good as a disk that fails
    with pytest.raises(UserError, match="can't be read"):
        keep_only(load_config(path), "r1", "s1", DIGESTS)
    assert transcripts.exists()


def test_a_transcript_may_hold_any_character(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0c"
    line = {"schema": SCHEMA, "hypothesis": text, "reference": text, "key": "a", "language": "bg"}
    line |= {"split": "test", "method": "zero-shot", "adapter": None, "window_s": 2, "finished": True}
    file = path_of(tmp_path, 2, 0)
    file.parent.mkdir()
    written = "".join(json.dumps(line | {"key": k}, ensure_ascii=False) + "\n" for k in "ab")
    file.write_text(written + '{"half')
    assert [(t["key"], t["hypothesis"]) for t in read(tmp_path)] == [("a", text), ("b", text)]
    with pytest.raises(UserError, match=r"line 3 is damaged .*`salsa-dist evaluate "):
        hypotheses(tmp_path)
    file.write_text(written)
    assert [h.hypothesis for h in hypotheses(tmp_path)] == [text, text]


def test_a_moved_base_keeps_transcripts_and_new_weights_in_its_folder_do_not(
    tmp_path: Path, tiny_shards: Path
) -> None:
    base = make_base(tmp_path / "base")
    path = make_config(tmp_path, base, tiny_shards)
    method = "method={kind: zero-shot}"
    evaluate(load_config(path, [method]))
    [file] = (tmp_path / "run" / "evaluation").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = "".join(json.dumps({**line, "hypothesis": "as it was"}) + "\n" for line in lines)
    file.write_text(told)
    moved = base.rename(tmp_path / "moved")
    evaluate(load_config(path, [method, f"base.name={moved}"]))
    assert file.read_text() == told
    make_base(moved, seed=1)
    evaluate(load_config(path, [method, f"base.name={moved}"]))
    assert "as it was" not in file.read_text()
    assert len(file.read_text().splitlines()) == len(lines)
