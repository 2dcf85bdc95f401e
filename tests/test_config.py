"""Config: typed, overridable, and every mistake named with its nearest right key."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from tiny import make_config

from salsa_dist.config import Config, load_config, parse_config
from salsa_dist.config.annotations import sections_below
from salsa_dist.config.fingerprint import digest
from salsa_dist.errors import UserError
from salsa_dist.run.settled import settled


def keys_of(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """Every key of the schema, with the place of its section: `adapters.0`, `method:lora`."""
    for name, field in section.model_fields.items():
        yield place, name
        for below in sections_below(field.annotation):
            tag = {"adapters": "adapters.0", "method": f"method:{kind_of(below)}"}.get(name, name)
            yield from keys_of(below, f"{place}.{tag}" if place else tag)


def kind_of(section: type[BaseModel]) -> str:
    return (
        str(get_args(section.model_fields["kind"].annotation)[0])
        if "kind" in section.model_fields
        else ""
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_config(tmp_path, Path("base"), Path("shards"))


def test_overrides_reach_every_depth(path: Path) -> None:
    config = load_config(
        path, ["training.steps=7", "adapters.1.lr=0.5", "evaluation.windows_s=[30, null]"]
    )
    assert config.training.steps == 7
    assert config.adapters[1].lr == 0.5
    assert config.evaluation.windows_s == [30, None]


@pytest.mark.parametrize(
    ("given", "windows"),
    [
        ([], [None]),
        (["base.window_s=5"], [5.0]),
        (["base.window_s=null"], [None]),
        (["base.window_s=5", "evaluation.windows_s=[null]"], [None]),
        (["base.window_s=5", "evaluation.windows_s=[30]"], [30.0]),
    ],
)
def test_adapters_are_scored_at_the_window_of_the_base(
    path: Path, given: list[str], windows: list[float | None]
) -> None:
    tree = yaml.safe_load(path.read_text())
    del tree["evaluation"]["windows_s"]
    path.write_text(yaml.safe_dump(tree))
    config = load_config(path, given)
    assert config.evaluation.windows_s == windows
    # What a run writes of itself says the same.
    assert Config.model_validate(config.model_dump(mode="json")).evaluation.windows_s == windows


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stesp=3", "unknown key 'training.stesp'; did you mean 'steps'"),
        ("trainig.steps=3", "unknown key 'trainig'; did you mean 'training'"),
        ("adapters.0.lang=bg", "unknown key 'adapters.0.lang'; did you mean 'language'"),
        ("evaluation.placement.knd=full", "did you mean 'kind'"),
        ("training.steps=many", "training.steps: .*integer.*'many'"),
        ("training.steps=0", "training.steps: .*greater than or equal to 1"),
        ("training.hang_after_s=.inf", "training.hang_after_s: .*finite"),
        ("data.cache_gb=.inf", "data.cache_gb: .*finite"),
        ("training.silence_ends_s=.nan", "training.silence_ends_s: .*finite"),
        ("steering.rule=turn", "steering.rule: no such .*known are salsa, add, gain .got 'turn'"),
        ("adapters.9.lr=1", "no place 'adapters.9.lr'"),
        ("adapters.0.name=el", "two adapters are called el"),
        ("adapters.0.name=../el", "adapters.0.name"),
        ("training.steps", "not of the form"),
        ("training.steps=[", "not a YAML value"),
    ],
)
def test_mistakes_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(path, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", [f"{place}.{name}" if place else name for place, name in keys_of(Config)]
)
@pytest.mark.parametrize("mistake", [lambda k: k + k[-1], lambda k: k[:-1] + "_" + k[-1]])
def test_a_typo_anywhere_is_one_line_with_the_right_key(
    path: Path, key: str, mistake: Callable[[str], str]
) -> None:
    place, _, name = key.rpartition(".")
    tree = yaml.safe_load(path.read_text())
    wrong = mistake(name)
    section = tree
    for part in place.split(".") if place else []:
        # A method's keys are known by its kind.
        kind = part.removeprefix("method:") if part.startswith("method:") else None
        at: Any = int(part) if part.isdigit() else "method" if kind else part
        if kind:
            section[at] = {"kind": kind}
        elif isinstance(section, dict) and not isinstance(section.get(at), dict | list):
            section[at] = {}
        section = section[at]
    section[wrong] = 1
    shown = ".".join(
        "method" if p.startswith("method:") else p for p in [*place.split("."), wrong] if p
    )
    with pytest.raises(UserError) as caught:
        parse_config(tree, "here")
    assert "\n" not in str(caught.value)
    assert f"unknown key {shown!r}; did you mean {name!r}?" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.halving={rungs: [3], metrik: cer}",
            "'training.halving.metrik'; did you mean 'metric'",
        ),
        ("method={kind: loar}", "method.kind: 'loar' is unknown; did you mean 'lora'"),
        ("method={rank: 3}", "'method.kind' is missing"),
        ("method=lora", "method: .*dictionary"),
        ("trackers=[tensorbord]", "trackers.0: .*'tensorboard'"),
        ("placement.kind=nod", "placement.kind: .*'node'.* or .*integer"),
        ("adapters.0.language=[bg, 3]", "adapters.0.language.1: "),
        ("adapters.0.mix={weights: {bg: much}}", "adapters.0.mix.weights.bg: "),
        ("data={1: 2}", "unknown key 'data.1'; known are shards"),
        ("training.lr_scale={1: 2}", "training.lr_scale.1: "),
    ],
)
def test_mistakes_inside_unions_and_lists_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(path, [override])
    assert "\n" not in str(caught.value)


def test_missing_file_and_broken_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml can't be read"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(UserError, match="holds no settings"):
        load_config(tmp_path / "empty.yaml")
    (tmp_path / "short.yaml").write_text("run: here\n")
    with pytest.raises(UserError, match="'base' is missing; 'data' is missing; 'adapters' is missing"):
        load_config(tmp_path / "short.yaml")


def test_a_step_is_so_many_clips_or_so_many_seconds(tmp_path: Path) -> None:
    path = make_config(tmp_path, tmp_path, tmp_path, data={"shards": "x"})
    assert load_config(path).data.clips_per_step == 8
    by_seconds = load_config(path, ["data.seconds_per_step=60"])
    assert (by_seconds.data.clips_per_step, by_seconds.data.seconds_per_step) == (None, 60)
    with pytest.raises(UserError, match="remove one"):
        load_config(path, ["data.seconds_per_step=60", "data.clips_per_step=4"])
    # What a run wrote of its config can be read again.
    text = yaml.safe_dump(by_seconds.model_dump(mode="json"))
    path.write_text(text)
    assert load_config(path) == by_seconds


def test_an_adapter_of_several_languages(tmp_path: Path) -> None:
    path = make_config(tmp_path, tmp_path, tmp_path)
    mixed = load_config(path, ["adapters.0.language=[el, bg]", "adapters.0.mix={temperature: 3}"])
    assert mixed.adapter_settings()[0].languages == ("bg", "el")
    plain = load_config(path, ["adapters.0.language=[el, bg]"])
    first, second = (digest(settled(config, "cpu"), "vectors") for config in (mixed, plain))
    assert first != second
    for wrong, says in (
        ("adapters.0.language=[el, el]", "names a language twice"),
        ("adapters.0.mix={weights: {el: 1}}", "mix.weights are of el, its languages are bg"),
        ("adapters.0.mix={weights: {bg: 1}, temperature: 2}", "remove one"),
        ("data.augment={speed: [1.1, 0.9]}", "the smaller first"),
    ):
        with pytest.raises(UserError, match=says):
            load_config(path, [wrong])
