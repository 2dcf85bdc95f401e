"""What decides a result is declared by each key, and known by no other list."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from salsa_dist.config import Config, TrainingConfig, override, parse_config
from salsa_dist.config.annotations import sections_below
from salsa_dist.config.decides import Decides, Vectors, decided_by, unsaid
from salsa_dist.config.fingerprint import digest, places, settings
from salsa_dist.config.release_0_1 import digest_of_release_0_1
from salsa_dist.errors import UserError
from salsa_dist.run.settled import settled
from salsa_dist.training import state as states

HERE = Path(__file__).parent
OLD = json.loads((HERE / "release_0_1_digests.json").read_text())
FROZEN: dict[str, Any] = json.loads((HERE / "deciding.json").read_text())


def config_of(*overrides: str) -> Config:
    """The config of release 0.1, with overrides; its rates were not relative to the activations."""
    tree = json.loads(json.dumps(OLD["config"]))
    tree.setdefault("training", {}).setdefault("lr_scale", {})
    tree["training"].setdefault("silence_stride", 1)
    for text in overrides:
        override(tree, text)
    return settled(parse_config(tree, "here"), "cpu")


def leaves(section: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the schema that has a value, `LoraMethod.rank`."""
    for name, field in section.model_fields.items():
        if below := sections_below(field.annotation):
            for one in below:
                yield from leaves(one)
        else:
            yield f"{section.__name__}.{name}", field


LEAVES = dict(leaves(Config))


@pytest.mark.parametrize("key", LEAVES)
def test_each_key_declares_what_it_decides(key: str) -> None:
    marks = [m for m in LEAVES[key].metadata if isinstance(m, Decides)]
    assert len(marks) == 1, f"{key}: write its type as Vectors[…], Neither[…] or another of decides.py"


def test_no_default_that_decides_changes() -> None:
    """Defaults are left out of digests: another one would make old states pass for what they are not.

    A new key gets a line in deciding.json; a line that is there stays.
    """
    mine = {
        key: {
            "decides": sorted(decided_by(field).kinds),
            "default": to_jsonable_python(unsaid(field), fallback=str),
        }
        for key, field in LEAVES.items()
        if decided_by(field).kinds - {"place", "coverage"} and not field.is_required()
    }
    assert mine == FROZEN


@pytest.mark.parametrize(
    "same",
    [
        *("run=elsewhere", "base.name=moved", "base.stage_to=x", "data.shards=moved"),
        *("data.stage_to=x", "data.workers=3", "data.max_bad=3", "training.save_every_s=1"),
        *("training.keep=9", "training.micro_batch=2", "training.prefix_cache=memory"),
        *("placement.kind=full", "evaluation.batch=2", "trackers=[]", "training.dev_clips=8"),
        *("adapters.0.lr=0.01", "steering.sites=encoder"),
    ],
)
def test_what_decides_nothing_is_in_no_digest(same: str) -> None:
    for kind in ("vectors", "transcripts"):
        assert digest(config_of(same), kind) == digest(config_of(), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "decides"),
    [
        ("training.max_loss=20", ["vectors"]),
        ("training.max_skipped=20", ["vectors"]),
        ("training.lr=1", ["vectors"]),
        ("adapters.0.lr=1", ["vectors"]),
        ("steering.rule=add", ["vectors"]),
        ("data.readers=2", ["vectors"]),
        ("data.augment.time_masks=1", ["vectors"]),
        ("base.window_s=1", ["vectors", "coverage"]),
        ("method={kind: lora, rank: 2}", ["vectors"]),
        ("base.dtype=bfloat16", ["vectors", "transcripts"]),
        ("base.prompt=Write", ["vectors", "transcripts"]),
        ("evaluation.max_new_tokens=9", ["transcripts"]),
        ("evaluation.split=dev", ["transcripts"]),
        ("evaluation.decoding.no_repeat_ngram_size=3", ["transcripts"]),
        ("evaluation.windows_s=[10]", ["coverage"]),
        ("evaluation.forgetting=true", ["coverage"]),
    ],
)
def test_what_decides_something_is_in_its_digest_alone(other: str, decides: list[str]) -> None:
    changed = [
        kind
        for kind in ("vectors", "transcripts", "coverage")
        if digest(config_of(other), kind) != digest(config_of(), kind)  # type: ignore[arg-type]
    ]
    assert changed == decides


def test_of_two_rates_for_a_site_the_last_counts() -> None:
    one, two = "training.lr_scale={llm: 0.5, 'llm:3': 2}", "training.lr_scale={'llm:3': 2, llm: 0.5}"
    assert digest(config_of(one), "vectors") != digest(config_of(two), "vectors")


def test_halving_by_errors_makes_decoding_decide_vectors() -> None:
    halving = ["training.halving={rungs: [5], metric: cer}", "training.dev_clips=8"]
    for more in ("evaluation.max_new_tokens=9", "training.dev_clips=9"):
        assert digest(config_of(*halving, more), "vectors") != digest(config_of(*halving), "vectors")


class _Newer(TrainingConfig):
    novel: Vectors[int] = 3


def test_a_new_key_turns_no_old_checkpoint_away() -> None:
    config = config_of()
    newer = config.model_copy(update={"training": _Newer(lr_scale={}, silence_stride=1)})
    assert digest(newer, "vectors") == digest(config, "vectors")
    assert digest_of_release_0_1(newer) == digest_of_release_0_1(config)
    other = config.model_copy(update={"training": _Newer(novel=4)})
    assert digest(other, "vectors") != digest(config, "vectors")
    assert digest_of_release_0_1(other) is None, "the old digest can't tell them apart"


def test_places_are_those_that_may_differ_between_nodes() -> None:
    assert places(config_of()) == {
        *("run", "base.name", "base.stage_to", "data.shards", "data.stage_to", "data.cache"),
        *("training.prefix_folder", "placement.ds_config", "placement.nvme_path"),
        *("evaluation.placement.ds_config", "evaluation.placement.nvme_path"),
    }


@pytest.mark.parametrize("case", OLD["cases"], ids=lambda case: " ".join(case["overrides"]) or "none")
def test_the_digest_of_release_0_1_is_as_it_was(case: dict[str, Any]) -> None:
    assert digest_of_release_0_1(config_of(*case["overrides"])) == case["digest"]


def identity_of(overrides: Sequence[str]) -> states.RunIdentity:
    config = config_of(*overrides)
    return states.RunIdentity(
        ["a"], "local-0123", "s" * 64, digest(config, "vectors"), digest_of_release_0_1(config)
    )


def test_a_state_of_release_0_1_is_gone_on_from_with_the_same_settings_alone(tmp_path: Path) -> None:
    there = HERE.parent / "training" / "release_0_1"  # written by that release
    settings_of_it = OLD["cases"][1]["overrides"]
    found = states.newest(there, identity_of(settings_of_it))
    assert found is not None
    assert found.step == 3
    states.save(tmp_path, found, identity_of(settings_of_it), keep=2)
    assert states.newest(tmp_path, identity_of(settings_of_it)) is not None
    for folder in (there, tmp_path):
        with pytest.raises(UserError, match="was made with other settings"):
            states.newest(folder, identity_of([*settings_of_it, "training.max_loss=7"]))


def test_settings_are_dotted_keys_without_defaults() -> None:
    assert settings(config_of("base.dtype=float16"), "transcripts") == {"base.dtype": "float16"}


def test_rates_that_are_relative_decide_nothing_where_nothing_is_steered() -> None:
    tuned = "method={kind: lora}"
    assert digest(config_of(tuned, "training.lr_scale=auto"), "vectors") == digest(
        config_of(tuned), "vectors"
    )
    assert digest(config_of("training.lr_scale=auto"), "vectors") != digest(config_of(), "vectors")
