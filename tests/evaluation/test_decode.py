"""Evaluation: every clip once for each method, whatever the ranks and stops."""

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import make_config

from salsa_dist import evaluate, load_config, load_speech_llm, train, transcribe
from salsa_dist.config import Config, DecodingConfig
from salsa_dist.corpus.writer import Packed, flac, write_tar
from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import read_clip
from salsa_dist.placement import decode
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.report.one_run import build_report


@pytest.fixture
def config(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> Config:
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards))
    train(config)
    return config


def lines(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "evaluation").glob("*.jsonl"))
    return [json.loads(line) for f in files for line in f.read_text().splitlines()]


def identity(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["window_s"], line["language"], line["key"], line["adapter"]


def test_each_clip_once_a_method_and_window(config: Config) -> None:
    config = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"windows_s": [None, 1.9]})}
    )
    evaluate(config)
    found = sorted(map(identity, lines(config.run)), key=str)
    assert len(found) == len(set(found)) == 2 * 2 * 6 * 2  # windows, languages, clips, methods
    assert {line["method"] for line in lines(config.run)} == {"zero-shot", "salsa"}


def test_languages_whose_prompts_differ_in_length_share_no_batch(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["base.language_as={el: bg+el}", "evaluation.batch=5"]
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards), asked)
    train(config)
    prompts, made = decode.prompts_of, []

    def seen(base: FrozenBase, clips: Sequence[Clip]) -> decode.Prompts:
        made.append({clip.language for clip in clips})
        return prompts(base, clips)

    monkeypatch.setattr(decode, "prompts_of", seen)
    evaluate(config)
    assert len(set(map(identity, lines(config.run)))) == 2 * 6 * 2  # languages, clips, methods
    assert {frozenset(languages) for languages in made} == {frozenset({"bg"}), frozenset({"el"})}


def test_clips_longer_than_the_window_are_transcribed_in_pieces(config: Config) -> None:
    evaluation = config.evaluation.model_copy(update={"windows_s": [0.5], "batch": 3})
    evaluate(config.model_copy(update={"evaluation": evaluation}))
    found = sorted(map(identity, lines(config.run)), key=str)
    assert len(found) == len(set(found)) == 2 * 6 * 2
    longest = max(lines(config.run), key=lambda line: line["seconds"])
    assert longest["seconds"] > 1
    assert len(longest["hypothesis"].split()) >= 2  # one piece's words and another's


def test_all_of_a_clip_is_one_batch_whose_audio_is_made_while_another_is_decoded(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, list[str]]] = []
    prompts = decode.prompts_of

    def watched(base: FrozenBase, clips: Sequence[Clip]) -> decode.Prompts:
        made.append((threading.current_thread().name, [clip.key for clip in clips]))
        return prompts(base, clips)

    monkeypatch.setattr(decode, "prompts_of", watched)
    evaluate(
        config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"batch": 3})})
    )
    assert [len(keys) for _, keys in made] == [2] * 12  # a third would part zero-shot and steered
    assert all(len(set(keys)) == 1 for _, keys in made)
    assert threading.main_thread().name not in {thread for thread, _ in made}


def test_stopped_evaluation_goes_on_with_what_is_missing(config: Config) -> None:
    evaluate(config)
    whole = {identity(line): line for line in lines(config.run)}
    (file,) = (config.run / "evaluation").glob("*.jsonl")
    raw = file.read_text()
    file.write_text(raw[: len(raw) // 2])  # ends inside a line
    kept = raw[: len(raw) // 2].count("\n")
    before = json.loads((config.run / "evaluation/summary.json").read_text())["clips"]
    evaluate(config)
    assert {identity(line): line for line in lines(config.run)} == whole
    assert len(lines(config.run)) == len(whole)
    after = json.loads((config.run / "evaluation/summary.json").read_text())["clips"]
    assert after - before == len(whole) - kept


def test_transcripts_of_other_adapters_are_thrown_away(config: Config) -> None:
    evaluate(config)
    first = {identity(line): line["hypothesis"] for line in lines(config.run)}
    shutil.rmtree(config.run / "adapters" / "bg")
    shutil.copytree(config.run / "adapters" / "el", config.run / "adapters" / "bg")
    evaluate(config)
    second = {identity(line): line["hypothesis"] for line in lines(config.run)}
    assert first.keys() == second.keys()
    assert all(first[k] == second[k] for k in first if k[3] is None)
    assert json.loads((config.run / "evaluation/summary.json").read_text())["clips"] == len(second)


def test_decoding_settings_reach_the_base(config: Config) -> None:
    evaluate(config)
    greedy = {identity(line): line["hypothesis"] for line in lines(config.run)}
    evaluation = config.evaluation.model_copy(
        update={"decoding": DecodingConfig(no_repeat_ngram_size=1)}
    )
    evaluate(config.model_copy(update={"evaluation": evaluation}))
    unlike = {identity(line): line["hypothesis"] for line in lines(config.run)}
    assert any(len(set(text)) < len(text) for text in greedy.values())  # a random base repeats itself
    assert unlike.keys() == greedy.keys()
    assert unlike != greedy


def test_a_transcript_tells_whether_it_ended(tiny_base: Path) -> None:
    llm = load_speech_llm(tiny_base)
    batch = llm.family.prompt_batch([silent_clip("bg")])
    cut = llm.family.generate(llm.model, batch, 3)[0]
    assert not cut.finished  # a random base babbles on
    # A base whose head can say nothing but the end token after its first word.
    head = llm.model.get_output_embeddings()

    def only_end(module: Any, args: Any, logits: Any) -> Any:
        logits[..., llm.family.eos] = 1e4
        return logits

    handle = head.register_forward_hook(only_end)
    ended = llm.family.generate(llm.model, batch, 3)[0]
    handle.remove()
    assert ended.finished
    assert len(ended.text) < len(cut.text) + 2


def test_transcribe_with_and_without_vectors(config: Config, tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    from salsa_dist import SteeringVectors

    rng = np.random.default_rng(1)
    files = []
    for i, (rate, channels) in enumerate([(16_000, 1), (44_100, 2), (8_000, 1)]):
        audio = 0.1 * rng.standard_normal((rate, channels))
        soundfile.write(tmp_path / f"{i}.wav", audio, rate)
        files.append(tmp_path / f"{i}.wav")
    llm = load_speech_llm(config.base.name)
    # So strong that the tiny base, which writes bytes of no letter, writes others.
    vectors = SteeringVectors.load(config.run / "adapters" / "bg").scaled(100)
    plain = transcribe(llm, files, "bg", max_new_tokens=6)
    assert transcribe(llm, files, "bg", vectors, max_new_tokens=6) != plain
    with vectors.attach(llm):
        steered = transcribe(llm, files, "bg", max_new_tokens=6)
    assert steered == transcribe(llm, files, "bg", vectors, max_new_tokens=6)
    assert transcribe(llm, files, "bg", max_new_tokens=6, batch=1) == plain


def with_facts(folder: Path, plain: Path) -> Path:
    """The tiny shards again, with an age and a speaker for each clip."""
    index = ShardIndex.load(plain)
    shards = []
    for shard in index.shards:
        samples = []
        for number, entry in enumerate(shard.entries):
            clip = read_clip(plain, shard, entry)
            facts = {
                "text": clip.text, "language": clip.language, "seconds": clip.seconds, "licence": "CC0",
                "speaker": f"s{number % 2}", "extra": {"age": 5 + number % 3, "words": ["not", "one"]},
            }  # fmt: skip
            audio = flac(clip.audio, 16_000)
            samples.append(Packed(entry.key, "flac", audio, facts, clip.seconds))
        shards.append(write_tar(folder, shard.path, shard.split, shard.language, samples))
    replace(index, folder=folder, shards=tuple(shards)).save(folder)
    return folder


def test_adapters_are_decoded_in_other_languages_and_facts_of_the_shards_reach_the_report(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    shards = with_facts(tmp_path / "shards", tiny_shards)
    adapters = [{"name": "bg", "language": "bg"}]
    config = load_config(
        make_config(tmp_path, tiny_base, shards, adapters=adapters),
        ["evaluation.forgetting=true", "evaluation.scales=[0,1,3]"],
    )
    train(config)
    evaluate(config)
    found = [(line["language"], line["method"], line.get("scale", 1.0)) for line in lines(config.run)]
    assert {kind: found.count(kind) for kind in found} == {
        (language, method, scale): 6
        for language in ("bg", "el")
        for method, scale in (("zero-shot", 1), ("no-adapters", 1), ("salsa", 1), ("salsa", 3))
    }
    line = next(line for line in lines(config.run) if line["key"] == "bg/test-1")
    assert line["fields"] == {"age": 6, "speaker": "s1"}
    report = build_report(config.run, by=["age"])
    assert {g["language"] for g in report["gains"]} == {"bg"}
    assert {g["language"] for g in report["forgetting"]} == {"el"}
    scales = {(row["language"], row["scale"]): row["cer"] for row in report["scales"]}
    assert set(scales) == {(language, scale) for language in ("bg", "el") for scale in (0, 1, 3)}
    rates = {(row["language"], row["adapter"]): row["cer"] for row in report["results"]}
    assert {key: scales[key] for key in scales if key[1] < 2} == {
        (language, scale): rates[language, adapter]
        for language in ("bg", "el")
        for scale, adapter in ((0, None), (1, "bg"))
    }
    # In that run nothing but the scale was another.
    texts = {
        (x["key"], x.get("scale", 1.0)): x["hypothesis"] for x in lines(config.run) if x["adapter"]
    }
    assert any(text != texts[key, 1.0] for (key, scale), text in texts.items())
    assert {row["speakers"] for row in report["results"]} == {2}
    assert {(row["value"], row["utterances"]) for row in report["by"]} == {("5", 2), ("6", 2), ("7", 2)}
    untouched = report["untouched"]
    assert [(row["language"], row["same"], row["utterances"]) for row in untouched] == [
        ("bg", 6, 6),
        ("el", 6, 6),
    ]
    assert all(row["cer_off"] == row["cer_without"] for row in untouched)
    assert report["evaluation"]["device_hours"] > 0
    # Again, with nothing left to do, nothing is written twice.
    evaluate(config)
    assert len(lines(config.run)) == len(found)
