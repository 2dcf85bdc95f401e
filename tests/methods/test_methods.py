"""What steering is compared with: each method does what it says, on the clips vectors would get."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_results import events
from tiny import make_config
from tiny_families import FAMILIES

from salsa_dist import load_config, load_speech_llm
from salsa_dist.cli import run_command
from salsa_dist.config import BeftMethod, InContextMethod, LoraMethod
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import first_clips
from salsa_dist.errors import UserError
from salsa_dist.methods import bias
from salsa_dist.methods.beft import Beft
from salsa_dist.methods.in_context import Solver
from salsa_dist.methods.lora import Lora
from salsa_dist.methods.mean_difference import mean_activations
from salsa_dist.report.one_run import build_report
from salsa_dist.report.write import write_report
from salsa_dist.steering.adapter_folder import CARD
from salsa_dist.steering.sites import site_modules
from salsa_dist.steering.vectors import SteeringVectors

LORA = ["method.kind=lora", "method.rank=2"]


@pytest.fixture
def config_file(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> Path:
    return make_config(tmp_path, tiny_base, tiny_shards)


def noise(key: str, seconds: float, text: str = "", row: int = -1) -> Clip:
    rng = np.random.default_rng(abs(hash(seconds)) % 1000)
    return Clip(
        key, rng.standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32), text, "bg", row
    )


def lines(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "evaluation").glob("window*.jsonl"))
    return [json.loads(line) for f in files for line in f.read_text().splitlines()]


def losses(run: Path, adapter: str) -> list[float]:
    steps = events(run, "step")
    return [e["adapters"][adapter]["loss"] for e in steps if adapter in e["adapters"]]


def installed(method: str, model: Any, layers: Any) -> Any:
    if method == "lora":
        return Lora.install(LoraMethod(kind="lora"), model, layers, seed=0)
    if method == "beft":
        return Beft.install(BeftMethod(kind="beft"), model, layers, seed=0)
    return bias.install(model, layers)


needs_beft = pytest.mark.skipif(not find_spec("peft.tuners.beft"), reason="this PEFT has no BEFT")
WITH_WEIGHTS = ["lora", pytest.param("beft", marks=needs_beft), "bias"]


@pytest.mark.parametrize("method", WITH_WEIGHTS)
def test_untrained_it_changes_no_logit_and_touches_only_its_layers(
    tiny_base: Path, method: str
) -> None:
    llm = load_speech_llm(tiny_base)
    batch = llm.family.training_batch([noise("a", 1.0, "добро утро")])
    before = llm.model(**batch.inputs).logits
    modules = site_modules(llm.model)
    layers = {"encoder.1": modules["encoder.1"]}
    own = [(name, id(p)) for name, p in llm.model.named_parameters()]
    with installed(method, llm.model, layers) as weights:
        assert torch.equal(llm.model(**batch.inputs).logits, before)
        assert all(".layers.1." in name and "encoder" in name for name in weights)
        trainable = {name for name, p in llm.model.named_parameters() if p.requires_grad}
        assert trainable == set(weights)
        with torch.no_grad():
            for weight in weights.values():
                weight.add_(0.5)
        assert not torch.equal(llm.model(**batch.inputs).logits, before)
    # The base is again what it was, for the adapter after this one.
    assert [(name, id(p)) for name, p in llm.model.named_parameters()] == own
    assert not any(p.requires_grad for p in llm.model.parameters())
    assert torch.equal(llm.model(**batch.inputs).logits, before)


def test_loras_numbers_are_rank_times_both_sides(tiny_base: Path) -> None:
    llm = load_speech_llm(tiny_base)
    layer = site_modules(llm.model)["encoder.0"]
    q = layer.self_attn.q_proj
    sides = q.in_features + q.out_features
    method = LoraMethod(kind="lora", rank=3)
    with Lora.install(method, llm.model, {"encoder.0": layer}, seed=0) as weights:
        pass
    assert sum(p.numel() for p in weights.values()) == 2 * 3 * sides  # q and v


@needs_beft
def test_befts_numbers_are_one_vector_per_target(tiny_base: Path) -> None:
    llm = load_speech_llm(tiny_base)
    layer = site_modules(llm.model)["encoder.0"]
    method = BeftMethod(kind="beft", targets=["v_proj", "fc2"])
    with Beft.install(method, llm.model, {"encoder.0": layer}, seed=0) as weights:
        found = sorted(p.numel() for p in weights.values())
    assert found == [layer.self_attn.v_proj.out_features, layer.fc2.out_features]


def test_a_target_that_is_not_there_is_refused_with_those_that_are(tiny_base: Path) -> None:
    llm = load_speech_llm(tiny_base)
    method = LoraMethod(kind="lora", targets=["query"])
    refused = pytest.raises(UserError, match=r"query: the chosen layers have no such .* q_proj")
    with refused, Lora.install(method, llm.model, site_modules(llm.model), 0):
        pass


@pytest.mark.parametrize(
    "overrides",
    [LORA, pytest.param(["method.kind=beft"], marks=needs_beft), ["method.kind=bias"]],
)
def test_trained_by_commands_and_decoded_beside_zero_shot(
    config_file: Path, overrides: list[str]
) -> None:
    overrides = [*overrides, "training.lr=0.02", "training.steps=12"]
    config = load_config(config_file, overrides)
    run_command("train", str(config_file), overrides)
    for adapter in ("bg", "el"):
        assert losses(config.run, adapter)[-1] < losses(config.run, adapter)[0] - 0.2
    run_command("evaluate", str(config_file), overrides)
    tuned = [x for x in lines(config.run) if x["method"] == config.method.kind]
    plain = {x["key"]: x["hypothesis"] for x in lines(config.run) if x["method"] == "zero-shot"}
    assert len(tuned) == len(plain) == 12
    assert {x["adapter"] for x in tuned} == {"bg", "el"}
    assert any(plain[x["key"]] != x["hypothesis"] for x in tuned)
    report = build_report(config.run)
    assert [a["trained_parameters"] > 0 for a in report["adapters"]] == [True, True]
    assert {len(curve) for curve in report["training"]["loss"].values()} == {12}
    assert write_report(config.run).is_file()
    # The base as it is does not depend on what is trained beside it.
    run_command("train", str(config_file), ["training.steps=1", f"run={config.run}-salsa"])
    run_command("evaluate", str(config_file), ["training.steps=1", f"run={config.run}-salsa"])
    salsa = lines(Path(f"{config.run}-salsa"))
    assert {x["key"]: x["hypothesis"] for x in salsa if x["method"] == "zero-shot"} == plain


def test_tuning_trains_on_the_clips_of_steering(config_file: Path, tmp_path: Path) -> None:
    def first_loss(stride: int, method: list[str]) -> float:
        run = tmp_path / f"{stride}-{len(method)}"
        run_command(
            "train",
            str(config_file),
            [*method, "training.steps=1", f"training.silence_stride={stride}", f"run={run}"],
        )
        return losses(run, "bg")[0]

    whole, thin = first_loss(1, LORA), first_loss(5, LORA)
    assert whole == pytest.approx(first_loss(1, []), abs=1e-5)
    assert thin == pytest.approx(first_loss(5, []), abs=1e-5)
    assert abs(whole - thin) > 1e-4


def test_an_adapter_that_is_done_is_left_alone(config_file: Path) -> None:
    overrides = [*LORA, "training.steps=2"]
    config = load_config(config_file, overrides)
    run_command("train", str(config_file), overrides)
    file = config.run / "adapters" / "bg" / "tuned.safetensors"
    before = file.stat().st_mtime_ns
    run_command("train", str(config_file), overrides)
    assert file.stat().st_mtime_ns == before


def test_tuned_weights_of_other_sites_are_refused(config_file: Path) -> None:
    overrides = [*LORA, "training.steps=1"]
    run_command("train", str(config_file), overrides)
    with pytest.raises(UserError, match="other sites than the config's"):
        run_command("evaluate", str(config_file), [*overrides, "steering.sites=llm"])


def test_sharded_placements_are_refused(config_file: Path) -> None:
    with pytest.raises(UserError, match=r"set placement\.kind to replicate"):
        run_command("train", str(config_file), [*LORA, "placement.kind=full"])


def test_mean_difference_is_the_difference_of_the_means(
    config_file: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    overrides = ["method.kind=mean-difference", "method.contrast=el", "method.scale=0.5"]
    config = load_config(config_file, overrides)
    run_command("train", str(config_file), overrides)
    saved = SteeringVectors.load(config.run / "adapters" / "bg")
    assert saved.rule == "add"
    llm = load_speech_llm(tiny_base)
    index = ShardIndex.load(tiny_shards)
    site = next(iter(saved.vectors))
    of = {
        language: mean_activations(llm, [site], first_clips(tiny_shards, index, language, 100, 30))
        for language in ("bg", "el")
    }
    wanted = 0.5 * (of["el"][site] - of["bg"][site])
    torch.testing.assert_close(saved.vectors[site].double(), wanted, rtol=1e-5, atol=1e-7)
    own = SteeringVectors.load(config.run / "adapters" / "el").vectors[site]
    assert not own.any()  # the contrast itself
    card = (config.run / "adapters" / "bg" / CARD).read_text(encoding="utf-8")
    assert "Computed without steps from mean activations, audio window 2 s" in card
    assert "learning rate" not in card
    run_command("evaluate", str(config_file), overrides)
    assert {x["method"] for x in lines(config.run)} == {"zero-shot", "mean-difference"}


def solver(base: Path, choose: str, examples: int = 2) -> Solver:
    method = InContextMethod.model_validate(
        {"kind": "in-context", "choose": choose, "examples": examples}
    )
    texts = ["добро утро", "лека нощ", "благодаря", "да"]
    pool = [noise(str(i), 0.3 + 0.1 * i, text) for i, text in enumerate(texts)]
    return Solver(method, load_speech_llm(base, window_s=2), pool, 1, lambda: None)


def test_examples_come_by_seed_and_clip_alone(tiny_base: Path) -> None:
    one, other = solver(tiny_base, "random"), solver(tiny_base, "random")
    clips = [noise(f"clip {i}", 0.5) for i in range(8)]
    chosen = [[e.key for e in one.examples(c, 5)] for c in clips]
    assert chosen == [[e.key for e in other.examples(c, 5)] for c in clips]
    assert len({tuple(keys) for keys in chosen}) > 1


def test_the_nearest_example_by_ear_is_the_clip_itself(tiny_base: Path) -> None:
    ic = solver(tiny_base, "audio")
    for clip in ic.pool:
        assert ic.examples(clip, 5)[-1].key == clip.key  # the best is nearest to the utterance


def test_the_nearest_example_by_text_shares_its_letters(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ic = solver(tiny_base, "text")
    monkeypatch.setattr(ic, "_draft", lambda clip, limit: "лека ноща")
    assert ic.examples(noise("x", 0.5), 5)[-1].text == "лека нощ"


def test_only_examples_that_fit_the_window_are_taken(tiny_base: Path) -> None:
    ic = solver(tiny_base, "random", examples=4)
    clip = noise("x", 1.3)
    chosen = ic.examples(clip, 5)
    assert clip.seconds + sum(e.seconds for e in chosen) <= 2
    assert len(chosen) < 4
    assert ic.transcribe(clip, 5).text is not None


def test_only_examples_whose_texts_leave_room_for_an_answer_are_taken(tiny_base: Path) -> None:
    # The tiny base writes 48 tokens, of which the prompt takes 4; a Cyrillic letter takes two of them.
    llm = load_speech_llm(tiny_base, window_s=2)
    pool = [noise(f"p{i}", 0.3, text) for i, text in enumerate(("да" * 6, "не" * 2, "добро утро " * 5))]
    method = InContextMethod(kind="in-context", examples=3)
    ic = Solver(method, llm, pool, 0, lambda: None)
    assert len(ic.examples(noise("x", 0.3), 8)) == 2  # 24 + 9 tokens, where 36 are left
    # Half of the 48 are kept for the answer.
    assert [e.text for e in ic.examples(noise("x", 0.3), 100)] == ["не" * 2]
    assert ic.transcribe(noise("x", 0.3), 100).text is not None


def test_whispers_examples_precede_the_clip_and_their_texts_the_answer(tiny_base: Path) -> None:
    family = load_speech_llm(tiny_base, window_s=2).family
    clip, example = noise("x", 0.5), noise("e", 0.4, "да")
    batch = family.in_context_batch(clip, [example])
    joined = Clip("j", np.concatenate([example.audio, clip.audio]), "", "bg")
    assert torch.equal(
        batch.inputs["input_features"], family.prompt_batch([joined]).inputs["input_features"]
    )
    ids = batch.inputs["decoder_input_ids"][0].tolist()
    prompt = family.prompt("bg")
    assert ids[: len(prompt)] == prompt
    assert family.transcript(ids[len(prompt) :]) == "да"


def test_qwen2_audio_has_each_example_as_a_turn(tmp_path: Path) -> None:
    llm = load_speech_llm(FAMILIES["qwen2_audio"](tmp_path / "base"))
    clip, example = noise("x", 0.5), noise("e", 0.4, "да")
    batch = llm.family.in_context_batch(clip, [example])
    ids = batch.inputs["input_ids"][0].tolist()
    alone = llm.family.prompt_batch([clip]).inputs["input_ids"][0].tolist()
    audio = llm.family.audio_id
    assert ids.count(audio) > alone.count(audio) > 0
    assert ids[-5:] == alone[-5:]
    text = llm.family.tokenizer.decode(ids)
    assert text.index("да") < text.rindex(llm.family.audio_token)
    assert llm.family.generate(llm.model, batch, 4)


def test_a_family_without_such_a_prompt_says_so(tmp_path: Path) -> None:
    llm = load_speech_llm(FAMILIES["qwen3_asr"](tmp_path / "base"))
    with pytest.raises(UserError, match="in-context can't be done on"):
        Solver(InContextMethod(kind="in-context"), llm, [noise("a", 0.5, "да")], 0, lambda: None)


def test_in_context_by_command(config_file: Path) -> None:
    overrides = ["method.kind=in-context", "method.examples=1", "training.steps=1"]
    run = load_config(config_file, overrides).run
    run_command("evaluate", str(config_file), overrides)
    methods = [x["method"] for x in lines(run)]
    assert methods.count("in-context") == methods.count("zero-shot") == 12
    report = build_report(run)
    assert {row["method"] for row in report["results"]} == {"zero-shot", "in-context"}
    assert write_report(run).is_file()
    with pytest.raises(UserError, match="trains nothing"):
        run_command("train", str(config_file), overrides)


def test_a_wrong_key_of_a_method_is_named(config_file: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'method\.rnak'; did you mean 'rank'"):
        load_config(config_file, ["method.kind=lora", "method.rnak=3"])
