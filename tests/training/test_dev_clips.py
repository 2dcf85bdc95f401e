"""Dev clips that can't be used are left out before the first step; what is measured after the last step
is measured once, whatever stops a run before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks
from run_results import events
from safetensors.torch import load_file
from tiny import make_config

from salsa_dist import UserError, load_config, train
from salsa_dist.config import Config
from salsa_dist.corpus.writer import Sample, ShardWriter
from salsa_dist.data.index import ShardIndex
from salsa_dist.report.one_run import build_report
from salsa_dist.run.events import Events, dev_loss_told
from salsa_dist.training.dev_loss import DevClips

LONG = "vuk lisa " * 20  # more than the base can write
SOUND = ("bg/dev-0", "bg/dev-3")


def made_shards(folder: Path, dev: dict[str, str]) -> Path:
    """Shards with the same training clips each time, and with `dev` clips of these keys and texts."""
    train_clips = {f"bg/train-{i}": "vuk lisa" for i in range(12)}
    with ShardWriter(folder, "tiny", seed=0) as writer:
        for split, clips in (("train", train_clips), ("dev", dev)):
            samples = [
                Sample(
                    key=key,
                    audio=0.1 * noise(int(key.rpartition("-")[2])),
                    text=text,
                    language="bg",
                    speaker=None,
                    licence="CC0",
                    source="made by the tests",
                )
                for key, text in clips.items()
            ]
            writer.write(split, "bg", samples, 3)
        writer.finish({"source": "noise"})
    return folder


def noise(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(16_000).astype(np.float32).clip(-5, 5)


def damage(shards: Path, key: str) -> None:
    """Bytes in the middle of a dev clip's audio are others."""
    for shard in ShardIndex.load(shards).select("dev", "bg"):
        for entry in shard.entries:
            if entry.key == key:
                raw = bytearray((shards / shard.path).read_bytes())
                middle = entry.offset + entry.length // 2
                raw[middle : middle + 999] = bytes(b ^ 0xFF for b in raw[middle : middle + 999])
                (shards / shard.path).write_bytes(raw)


@pytest.fixture(scope="module")
def bad_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four dev clips, one is damaged and the base refuses another."""
    dev = {f"bg/dev-{i}": LONG if i == 2 else "vuk lisa" for i in range(4)}
    shards = made_shards(tmp_path_factory.mktemp("bad") / "shards", dev)
    damage(shards, "bg/dev-1")
    return shards


@pytest.fixture(scope="module")
def sound_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, without the two."""
    return made_shards(tmp_path_factory.mktemp("sound") / "shards", dict.fromkeys(SOUND, "vuk lisa"))


def config_of(folder: Path, base: Path, shards: Path, **training: Any) -> Path:
    folder.mkdir(exist_ok=True)
    method = training.pop("method", {"kind": "salsa"})
    training = {"steps": 2, "lr": 0.02, "save_every_s": 0, "dev_clips": 4, **training}
    data = {"shards": str(shards), "clips_per_step": 4, "readers": 4}
    adapters = [{"name": "bg", "language": "bg"}]
    sections = {"training": training, "data": data, "adapters": adapters, "trackers": []}
    sections["method"] = method
    return make_config(folder, base, shards, **sections)


def of_config(*made: Any, **training: Any) -> Config:
    return load_config(config_of(*made, **training))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, sound_shards: Path) -> Path:
    """A run without bad dev clips."""
    config = of_config(tmp_path_factory.mktemp("sound") / "a", tiny_base, sound_shards)
    assert train(config).finished
    return config.run


def losses(run: Path) -> dict[str, float]:
    (told,) = events(run, "dev_loss")
    found: dict[str, float] = told["adapters"]
    return found


def test_bad_dev_clips_are_left_out(
    tmp_path: Path, tiny_base: Path, bad_shards: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = of_config(tmp_path / "a", tiny_base, bad_shards)
    assert train(config).finished
    assert losses(config.run) == losses(sound)
    [event] = events(config.run, "dev_clips")
    assert event["clips"] == {"bg": 2}
    assert [(c["kind"], c["key"]) for c in event["left_out"]] == [
        ("audio", "bg/dev-1"),
        ("refused", "bg/dev-2"),
    ]
    (line,) = [s for s in capsys.readouterr().out.splitlines() if "dev clips" in s]
    assert "left out, 2 in all" in line
    assert all(clip["why"] in line for clip in event["left_out"])
    assert "clip bg/dev-2: prompt and transcript take 184 tokens, the base has 48" in line
    (note,) = [note for note in build_report(config.run)["notes"] if "dev clips" in note]
    assert note.startswith("2 dev clips could not be used (1 audio, 1 refused) and are not in ")


def test_two_ranks_leave_out_the_same(
    tmp_path: Path, tiny_base: Path, bad_shards: Path, sound: Path
) -> None:
    config = config_of(tmp_path / "a", tiny_base, bad_shards)
    done = run_ranks(2, "-m", "salsa_dist", "train", config, folder=config.parent, timeout_s=300)
    assert done.returncode == 0
    assert losses(tmp_path / "a/run") == pytest.approx(losses(sound), rel=1e-5)
    [event] = events(tmp_path / "a/run", "dev_clips")
    assert [clip["key"] for clip in event["left_out"]] == ["bg/dev-1", "bg/dev-2"]


def test_they_are_not_decoded_either(
    tmp_path: Path, tiny_base: Path, bad_shards: Path, sound_shards: Path
) -> None:
    rates = []
    for name, shards in (("bad", bad_shards), ("sound", sound_shards)):
        config = of_config(tmp_path / name, tiny_base, shards, dev_every=2, dev_metric="cer")
        assert train(config).finished
        rates.append([(e["step"], e["cer"], e["dev_loss"]) for e in events(config.run, "dev")])
    assert rates[0] == rates[1]
    assert [step for step, *_ in rates[0]] == [0, 2]


def test_a_language_without_dev_clips_is_refused_before_a_step(tmp_path: Path, tiny_base: Path) -> None:
    shards = made_shards(tmp_path / "shards", {f"bg/dev-{i}": LONG for i in range(2)})
    config = of_config(tmp_path / "a", tiny_base, shards)
    with pytest.raises(UserError, match=r"^bg: none of the 2 dev clips .* clip bg/dev-0: prompt and"):
        train(config)
    assert not (config.run / "events.jsonl").exists()


def test_a_shard_of_dev_clips_that_is_gone_is_refused_before_a_step(
    tmp_path: Path, tiny_base: Path
) -> None:
    """It may be back at the next start, and which clips are measured must not depend on that."""
    shards = made_shards(tmp_path / "shards", {f"bg/dev-{i}": "vuk" for i in range(4)})
    (shards / ShardIndex.load(shards).select("dev", "bg")[-1].path).unlink()
    config = of_config(tmp_path / "a", tiny_base, shards)
    with pytest.raises(UserError, match=r"can't be read \(No such file .*fetch the shard again"):
        train(config)
    assert not (config.run / "events.jsonl").exists()


LORA = {"kind": "lora", "rank": 2, "alpha": 4}


@pytest.mark.parametrize(
    "training", [{}, {"dev_every": 2}, {"prefix_cache": "memory"}, {"method": LORA}]
)
def test_what_failed_after_the_last_step_is_done_at_the_next_start(
    tmp_path: Path,
    tiny_base: Path,
    sound_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: dict[str, Any],
) -> None:
    whole = of_config(tmp_path / "whole", tiny_base, sound_shards, **training)
    assert train(whole).finished
    config = of_config(tmp_path / "a", tiny_base, sound_shards, **training)
    measure = DevClips.losses

    def fails_at_the_end(dev: DevClips, *args: Any) -> dict[int, float]:
        if len(events(config.run, "step")) == 2:
            raise UserError("the store is gone")
        return measure(dev, *args)

    with monkeypatch.context() as failing:
        failing.setattr(DevClips, "losses", fails_at_the_end)
        with pytest.raises(UserError, match="the store is gone"):
            train(config)
    assert not (config.run / "adapters").exists()
    assert train(config).finished
    assert losses(config.run) == losses(whole.run)
    after_start = ("start", "data", "dev_clips", "prefix")  # which every start has
    kinds = [
        [e["event"] for e in events(run) if e["event"] not in after_start]
        for run in (config.run, whole.run)
    ]
    assert kinds[0] == kinds[1]
    files = [sorted(p.relative_to(run) for p in run.rglob("*")) for run in (config.run, whole.run)]
    assert files[0] == files[1]
    tensors = [
        path for path in files[0] if path.parts[0] == "adapters" and path.suffix == ".safetensors"
    ]
    assert tensors
    for path in tensors:
        found, wanted = load_file(config.run / path), load_file(whole.run / path)
        assert all(found[name].equal(tensor) for name, tensor in wanted.items())
    # Once it is told, no further start measures again.
    train(config)
    assert losses(config.run) == losses(whole.run)


def test_dev_losses_of_one_adapter_are_not_those_of_the_next(tmp_path: Path) -> None:
    """Where adapters are trained one after another."""
    told = []
    written = Events(tmp_path, enabled=True)
    for event in ("start", "step", "dev_loss", "end", "start", "step", "checkpoint", "start"):
        written.write(event)
        told.append(dev_loss_told(tmp_path))
    written.close()
    assert told == [False, False, True, True, True, False, False, False]
