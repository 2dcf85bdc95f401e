"""The command line: help that helps, and one line with status 2 for every mistake of a user."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from safetensors.torch import load_file, save_file
from tiny import make_base, make_config

from salsa_dist import SteeringVectors, load_config, load_speech_llm, train
from salsa_dist.cli import main
from salsa_dist.speech_llms.whisper import Whisper


@dataclass
class Done:
    status: int
    out: str
    err: str


Run = Callable[..., Done]
Refused = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: a start of its own costs seconds a command."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["salsa-dist", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capfd.readouterr())

    return call


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """The one line of a refusal."""

    def call(*arguments: object) -> str:
        done = run(*arguments)
        assert done.status == 2, done
        lines = done.err.strip().splitlines()
        assert len(lines) == 1, done.err
        assert lines[0].startswith("salsa-dist: ")
        return lines[0]

    return call


def test_a_process_of_its_own_says_one_line_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "salsa_dist", "train", str(tmp_path / "no.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no.yaml can't be read" in done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Path:
    """Config of a finished run."""
    path = make_config(tmp_path_factory.mktemp("trained"), tiny_base, tiny_shards)
    assert train(load_config(path)).finished
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    noise = np.random.default_rng(0).standard_normal(24_000) * 0.1
    soundfile.write(path, noise, 16_000)
    return path


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["evaluate"], ["transcribe"], ["report"], ["inspect"], ["shards", "build"]],
)
def test_help(run: Run, command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.status == 0
    assert "Usage:" in done.out


def test_whole_path_by_commands(run: Run, trained: Path, tiny_base: Path, clip: Path) -> None:
    run_folder = trained.parent / "run"
    assert run("evaluate", trained).status == 0
    assert str(run_folder / "report.html") in run("report", run_folder).out
    report = json.loads((run_folder / "report.json").read_text())
    assert {row["method"] for row in report["results"]} == {"zero-shot", "salsa"}
    adapter = run_folder / "adapters" / "bg"
    plain = run("transcribe", tiny_base, clip, "--language", "bg").out
    steered = run("transcribe", tiny_base, clip, "--language", "bg", "--adapter", adapter).out
    assert plain.startswith(f"{clip}\t")
    assert steered != plain
    assert "rule salsa" in run("inspect", adapter / "adapter.safetensors").out
    assert "encoder: 3 sites, encoder.0 to encoder.2" in run("inspect", tiny_base).out


def test_inspect_reads_an_adapter_folder(run: Run, trained: Path) -> None:
    folder = trained.parent / "run" / "adapters" / "bg"
    of_folder, of_file = (
        run("inspect", path).out.splitlines() for path in (folder, folder / "adapter.safetensors")
    )
    assert of_folder[0] == of_file[0] == "adapter bg: language bg, rule salsa"
    assert [s for s in of_folder if "norm" in s] == [s for s in of_file if "norm" in s]
    assert "the speech that it was trained on is not recorded" in of_file
    assert any(line.startswith("trained on tiny in bg, licence") for line in of_folder), of_folder


def test_damaged_base(refused: Refused, trained: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "model.safetensors").write_bytes(b"\x80\x04\x95 no safetensors")
    line = refused("train", trained, f"base.name={base}", f"run={tmp_path / 'run'}")
    assert "can't be loaded" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [AttributeError, KeyError, TypeError, RuntimeError, ImportError])
@pytest.mark.parametrize("command", ["train", "inspect"])
def test_a_bug_of_ours_does_not_read_as_a_damaged_base(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    trained: Path,
    tiny_base: Path,
    tmp_path: Path,
    kind: type[Exception],
    command: str,
) -> None:
    """The same error is a refusal where a library raises it, and keeps its traceback where we do."""
    arguments = [trained, f"run={tmp_path / 'run'}"] if command == "train" else [tiny_base]

    def raised_in(module: str) -> Callable[..., None]:
        names = {"__name__": module, "kind": kind}
        exec("def load_processor(name, revision):\n    raise kind('a mistake')", names)
        return names["load_processor"]  # type: ignore[return-value]

    monkeypatch.setattr(Whisper, "load_processor", staticmethod(raised_in("salsa_dist.whisper")))
    with pytest.raises(kind, match="a mistake"):
        run(command, *arguments)
    monkeypatch.setattr(Whisper, "load_processor", staticmethod(raised_in("transformers.whisper")))
    done = run(command, *arguments)
    if command == "inspect":  # which needs no processor, and says what training lacks
        assert done.status == 0
        assert "a mistake" in next(x for x in done.out.splitlines() if x.startswith("for training: "))
        return
    assert done.status == 2
    assert "a mistake" in done.err
    assert done.err.count("\n") == 1


def test_layer_lists_by_name(refused: Refused, run: Run, trained: Path, tmp_path: Path) -> None:
    """An odd base's layers are named in the config, for training, evaluation and adapters alike."""
    run_folder = f"run={tmp_path / 'run'}"
    line = refused("train", trained, "base.layers={encoder: model.encoder.conv1}", run_folder)
    assert "model.encoder.conv1" in line
    # The lists swapped: `llm` sites are then the encoder's layers.
    swapped = "base.layers={encoder: model.decoder.layers, llm: model.encoder.layers}"
    few = ["steering.sites=llm", "training.steps=1", swapped, run_folder]
    assert run("train", trained, *few).status == 0
    assert run("evaluate", trained, *few).status == 0


def test_no_such_base(refused: Refused, trained: Path) -> None:
    assert "nowhere" in refused("train", trained, "base.name=/nowhere", "run=runs/unused")
    assert not Path("runs/unused").exists()
    assert "can't be loaded" in refused("inspect", "/nowhere")


def test_no_shards(refused: Refused, trained: Path, tmp_path: Path) -> None:
    line = refused("train", trained, f"data.shards={tmp_path}", f"run={tmp_path / 'run'}")
    assert "index.json" in line


def test_language_that_the_shards_lack_or_nobody_has(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    run_folder = f"run={tmp_path / 'run'}"
    assert "no 'train' shards in 'fr'" in refused(
        "train", trained, "adapters.0.language=fr", run_folder
    )
    line = refused("train", trained, "adapters.0.language=Bulgarian", run_folder)
    assert "'Bulgarian' is no language code" in line


def test_sites_that_the_base_lacks(refused: Refused, trained: Path, tmp_path: Path) -> None:
    line = refused("train", trained, "steering.sites=encoder:2-7", f"run={tmp_path / 'run'}")
    assert "encoder has layers 0-2" in line


def test_too_few_shards_for_the_readers(refused: Refused, trained: Path, tmp_path: Path) -> None:
    line = refused("train", trained, "data.readers=9", f"run={tmp_path / 'run'}")
    assert "too few shards: bg has 4 for 9 readers" in line


def test_config_typo(refused: Refused, trained: Path) -> None:
    assert "did you mean 'steps'" in refused("train", trained, "training.stepz=3")


def test_clip_that_is_empty_unreadable_or_not_there(
    refused: Refused, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    for name, said in (
        ("text.wav", "text.wav"),
        ("empty.wav", "empty.wav"),
        ("none.wav", "none.wav"),
    ):
        assert said in refused("transcribe", tiny_base, tmp_path / name, "--language", "bg")


def test_adapter_of_another_base(refused: Refused, trained: Path, clip: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    adapter = trained.parent / "run" / "adapters" / "bg"
    line = refused("transcribe", other, clip, "--language", "bg", "--adapter", adapter)
    assert load_speech_llm(other).revision in line
    assert SteeringVectors.load(adapter).revision in line


@pytest.mark.parametrize("damage", ["cut", "nan", "schema", "shape", "pickle"])
def test_damaged_adapter(
    refused: Refused, trained: Path, tiny_base: Path, clip: Path, tmp_path: Path, damage: str
) -> None:
    whole = trained.parent / "run" / "adapters" / "bg" / "adapter.safetensors"
    bad = tmp_path / "bad.safetensors"
    tensors = load_file(whole)
    metadata = {"schema": "salsa-dist/adapter/1", "rule": "salsa", "sites": " ".join(tensors)}
    if damage == "cut":
        bad.write_bytes(whole.read_bytes()[:-100])
    elif damage == "pickle":
        bad.write_bytes(b"\x80\x04\x95")
    else:
        if damage == "nan":
            tensors["encoder.0"][3] = float("nan")
        elif damage == "shape":
            tensors["encoder.0"] = tensors["encoder.0"][:7]
        else:
            metadata["schema"] = "salsa-dist/adapter/99"
        save_file(tensors, bad, metadata)
    assert "bad.safetensors" in refused(
        "transcribe", tiny_base, clip, "--language", "bg", "--adapter", bad
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scale", "nan"], "can't be scaled by nan"),
        (["--scale", "1e39"], "can't be scaled"),
        (["changed"], "adapter.json and adapter.safetensors disagree"),
        (["linked"], "link out of its folder"),
        (["nowhere"], "no adapter at"),
        (["empty"], "it has no adapter.safetensors"),
    ],
)
def test_adapter_that_is_refused_leaves_nothing(
    refused: Refused,
    trained: Path,
    tiny_base: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    folder = tmp_path / "bg"
    shutil.copytree(trained.parent / "run" / "adapters" / "bg", folder)
    file = folder / "adapter.safetensors"
    if options == ["changed"]:
        file.write_bytes((trained.parent / "run/adapters/el/adapter.safetensors").read_bytes())
    elif options == ["linked"]:
        shutil.move(file, tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif options == ["nowhere"]:
        shutil.rmtree(folder)
    elif options == ["empty"]:
        file.unlink()
    more = options if options[0].startswith("--") else []
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    line = refused("transcribe", tiny_base, clip, "--language", "bg", "--adapter", folder, *more)
    assert said in line
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_scale_and_force(
    run: Run, refused: Refused, trained: Path, tiny_base: Path, clip: Path, tmp_path: Path
) -> None:
    adapter = trained.parent / "run" / "adapters" / "bg"
    command = ["transcribe", tiny_base, clip, "--language", "bg"]
    plain = run(*command).out
    whole = run(*command, "--adapter", adapter).out
    assert plain != whole
    assert run(*command, "--adapter", adapter, "--scale", "0").out == plain
    assert run(*command, "--adapter", adapter, "--scale", "1").out == whole
    assert run(*command, "--adapter", adapter / "adapter.safetensors").out == whole
    assert "name one with --adapter" in refused(*command, "--scale", "0.5")
    assert "name one with --adapter" in refused(*command, "--force")
    other = make_base(tmp_path / "other", seed=1)
    command[1] = other
    assert "revision" in refused(*command, "--adapter", adapter)
    forced = run(*command, "--adapter", adapter, "--force")
    assert forced.status == 0
    assert forced.out != run(*command).out


def test_run_folder_that_can_not_be_written(refused: Refused, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "can't be written" in refused("train", trained, f"run={tmp_path / 'file' / 'run'}")


def test_evaluate_before_train(refused: Refused, trained: Path, tmp_path: Path) -> None:
    assert "train it first" in refused("evaluate", trained, f"run={tmp_path / 'run'}")


def test_adapters_that_were_trained_elsewhere(run: Run, trained: Path, tmp_path: Path) -> None:
    there = yaml.safe_load(trained.read_text())["run"]
    shutil.copytree(Path(there) / "adapters", tmp_path / "run/adapters")
    few = ("evaluation.zero_shot=false", "evaluation.max_new_tokens=2")
    assert run("evaluate", trained, f"run={tmp_path / 'run'}", *few).status == 0
    assert run("report", tmp_path / "run").status == 0


def test_what_stands_for_an_unknown_language_is_told(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "el has no token, <|en|> is used"
    monkeypatch.setattr(Whisper, "stand_in", lambda _, code: f"{said}; or x" if code == "el" else None)
    done = run("train", trained, f"run={tmp_path / 'run'}", "training.steps=1")
    assert (done.out + done.err).count(said) == 1
    lines = (tmp_path / "run/events.jsonl").read_text().splitlines()
    told = [event for event in map(json.loads, lines) if event["event"] == "stand_in"]
    assert [(event["language"], event["said"]) for event in told] == [("el", f"{said}; or x")]
    cards = {x: (tmp_path / f"run/adapters/{x}/README.md").read_text() for x in ("bg", "el")}
    assert {x: f"- Of its prompts: {said}.\n" in card for x, card in cards.items()} == {
        "bg": False,
        "el": True,
    }
    assert "stand_ins" not in (tmp_path / "run/adapters/bg/adapter.json").read_text()
    adapter = SteeringVectors.load(tmp_path / "run/adapters/el")
    assert adapter.data is not None
    assert adapter.data.stand_ins == {"el": f"{said}; or x"}


def test_clip_damaged_in_its_shard(
    refused: Refused, trained: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(tiny_shards, copy)
    for tar in (copy / "bg").glob("train-*.tar"):
        raw = bytearray(tar.read_bytes())
        raw[512:2048] = bytes(1536)
        tar.write_bytes(raw)
    line = refused("train", trained, f"data.shards={copy}", f"run={tmp_path / 'run'}", "data.max_bad=0")
    assert "more than data.max_bad, 0" in line
    assert "bg/train-" in line
