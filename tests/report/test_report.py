"""The report of a small made-up run: its numbers by hand, its page, and what it says when files fail.

The run has one adapter, "twi-a". Its four utterances, decoded at 30 s (the base's own window) and
10 s, and their errors over words:

    key  reference    zero-shot 30   zero-shot 10   salsa 30    salsa 10
    u1   me dɔ wo     x y z    3     me dɔ x   1    me dɔ wo 0  x 3
    u2   ɛyɛ          ɛyɛ      0     ɛyɛ       0    ba       1  ɛyɛ 0
    u3   da yie paa   x y paa  2     x y paa   2    da yie x 1  da yie x 1
    u4   (empty)      x y                      empty          x           x
    sum of 7 words             5               3             2           4
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from salsa_dist.errors import UserError
from salsa_dist.report.one_run import build_report
from salsa_dist.report.write import write_report
from salsa_dist.run.events import history

REFERENCES = {"u1": "Me dɔ wo.", "u2": "ɛyɛ", "u3": "Da yie paa!", "u4": "[noise]"}
DECODED = {
    ("zero-shot", None, 30.0): ["x y z", "ɛyɛ", "x y paa", "x y"],
    ("zero-shot", None, 10.0): ["me dɔ x", "ɛyɛ", "x y paa", ""],
    ("salsa", "twi-a", 30.0): ["me dɔ wo", "ba", "da yie x", "x"],
    ("salsa", "twi-a", 10.0): ["x", "ɛyɛ", "da yie x", "x"],
}
PLACEMENT = {
    "kind": "full", "world_size": 4, "group_size": 4, "base_bytes": 290_000_000,
    "resident_bytes_between_steps": 73_950_000, "peak_bytes": 120_000_000,
    "gathered_bytes_per_step": 870_000_000, "reduced_bytes_per_step": 2_056,
    "threshold_bytes": 1_200, "partitioned_bytes": 72_500_000,
    "bytes_between_nodes_per_step": 870_003_084,
}  # fmt: skip


def write_events(run: Path) -> None:
    base = {"name": "org/base", "revision": "abc", "parameters": 1234567}
    start = {"event": "start", "world_size": 4, "resumed_step": 0, "base": base}
    events: list[dict[str, Any]] = [
        {**start, "environment": {"python": "3.11", "torch": "2.9"}},
        {"event": "placement", **PLACEMENT, "peak_bytes": 1},
        step(0, 2.0, 3.0),
        step(1, 100.0, 9.0),  # this step was lost with the process that ran it
        {**start, "resumed_step": 1, "environment": {"python": "3.11", "torch": "2.9.1"}},
        {"event": "placement", **PLACEMENT},
        step(1, 1.0, 2.0),
        step(2, 1.0, float("nan")),
        {"event": "checkpoint", "step": 2, "bytes": 900},
        {"event": "end", "step": 3, "seconds": 4.0},
    ]
    write_lines(run / "events.jsonl", "salsa-dist/events/1", [{"time": 0, **e} for e in events])


def step(number: int, seconds: float, loss: float) -> dict[str, Any]:
    adapters = {"twi-a": {"loss": loss, "tokens": 9, "lr": 0.01, "grad_norm": 1.0}}
    return {"event": "step", "step": number, "seconds": seconds, "clips": 8, "adapters": adapters}


def hypotheses() -> list[dict[str, Any]]:
    return [
        {
            "key": key, "language": "twi", "split": "test", "method": method, "adapter": adapter,
            "window_s": window, "seconds": 0.1, "reference": reference, "hypothesis": hypothesis,
            "finished": True,
        }
        for (method, adapter, window), texts in DECODED.items()
        for (key, reference), hypothesis in zip(REFERENCES.items(), texts, strict=True)
    ]  # fmt: skip


def write_lines(file: Path, schema: str, lines: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"schema": schema, **line}) + "\n" for line in lines))


def write_hypotheses(run: Path, lines: list[dict[str, Any]]) -> None:
    write_lines(run / "evaluation" / "rank0.jsonl", "salsa-dist/hypotheses/1", lines)


def write_config(run: Path, **sections: Any) -> None:
    config = {
        "run": str(run),
        "base": {"name": "org/base"},
        "data": {"shards": "shards"},
        "adapters": [{"name": "twi-a", "language": "twi"}],
        "evaluation": {"windows_s": [None, 10]},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config | sections))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "adapters" / "twi-a").mkdir(parents=True)
    write_config(run)
    write_events(run)
    write_hypotheses(run, hypotheses())
    save_file(
        {
            "encoder.10": np.array([3, 4, 0, 0], np.float32),  # norm 5
            "encoder.2": np.array([0, 0, 0, 2], np.float32),
            "llm.0": np.zeros(6, np.float32),
        },
        run / "adapters" / "twi-a" / "adapter.safetensors",
        metadata={
            "schema": "salsa-dist/adapter/1", "name": "twi-a", "base": "org/base",
            "revision": "abc", "rule": "salsa", "language": "twi",
            "sites": "encoder.2 encoder.10 llm.0",
        },
    )  # fmt: skip
    return run


@pytest.mark.parametrize("window", [10, 30])
def test_another_window_than_that_of_training_is_said_first(run: Path, window: int) -> None:
    training = {"window_s": window, "silence_stride": 8}
    facts = {"schema": "salsa-dist/adapter/1", "training": training}
    (run / "adapters/twi-a/adapter.json").write_text(json.dumps(facts))
    report = build_report(run)
    assert report["adapters"][0]["silence_stride"] == 8
    notes = report["notes"]
    said = [
        note for note in notes if note.startswith("twi-a: trained at an audio window of 10 s, scored")
    ]
    assert said == (notes[:1] if window == 10 else [])  # the base's own window, 30 s, is compared


def test_results_by_hand(run: Path) -> None:
    rows = {(r["method"], r["window_s"]): r for r in build_report(run)["results"]}
    assert list(rows) == [("zero-shot", 10), ("zero-shot", 30), ("salsa", 10), ("salsa", 30)]
    wer = {key: row["wer"] for key, row in rows.items()}
    assert wer == pytest.approx(
        {("zero-shot", 30): 5 / 7, ("zero-shot", 10): 3 / 7,
         ("salsa", 30): 2 / 7, ("salsa", 10): 4 / 7}
    )  # fmt: skip
    row = rows["salsa", 30]
    assert row["adapter"] == "twi-a"
    assert rows["zero-shot", 30]["adapter"] is None
    assert (row["utterances"], row["ref_words"], row["empty_references"]) == (4, 7, 1)
    assert (row["substitutions"], row["deletions"], row["insertions"]) == (2, 0, 0)
    assert row["empty_reference_insertions"] == 1
    assert rows["zero-shot", 10]["empty_hypotheses"] == 1
    assert row["wer_low"] <= row["wer"] <= row["wer_high"]
    # Characters with spaces: 8 + 3 + 10 = 21; ɛyɛ→ba 3, paa→x 3.
    assert row["cer"] == pytest.approx(6 / 21)
    assert row["runaways"] == 0


def test_a_gain_is_over_the_better_zero_shot_window(run: Path) -> None:
    gains = {g["metric"]: g for g in build_report(run)["gains"]}
    assert gains.keys() == {"wer", "cer"}
    g = gains["wer"]
    # The adapter was trained at 30 s, where zero-shot has 5/7; the better baseline is 3/7 at 10 s.
    assert (g["adapter"], g["baseline_window_s"], g["window_s"]) == ("twi-a", 10, 30)
    assert (g["baseline"], g["steered"]) == pytest.approx((3 / 7, 2 / 7))
    assert g["relative"] == pytest.approx(1 / 3)
    # Of 27 draws one is u1 alone (all errors gone) and one u2 alone (an error on a baseline of none:
    # no bound), each more than the 2.5% of its end.
    assert (g["relative_low"], g["relative_high"]) == (None, 1.0)
    assert (g["improved"], g["unchanged"], g["worse"]) == (2, 0, 1)
    assert gains["cer"]["steered"] == pytest.approx(6 / 21)


def test_the_trained_window_may_be_given(run: Path) -> None:
    write_config(run, base={"name": "org/base", "window_s": 10.0})
    g = build_report(run)["gains"][0]
    assert (g["window_s"], g["steered"]) == (10, pytest.approx(4 / 7))
    assert g["relative"] == pytest.approx(-1 / 3)
    write_config(run, base={"name": "org/base", "window_s": 5.0})
    report = build_report(run)
    assert report["gains"] == []
    assert "twi-a" in report["notes"][0]


def test_shards_from_a_store_are_told_with_all_starts(run: Path) -> None:
    assert build_report(run)["training"]["store"] is None
    lines = (run / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    had = {"requests": 50, "fetched_bytes": 1e6, "cached_bytes": 3e6, "retries": 2, "waited_s": 0.5}
    for event in events:
        if event["event"] == "step":
            event["store"] = had
    write_lines(run / "events.jsonl", "salsa-dist/events/1", events)
    # Four steps, of which one was done twice: both cost something.
    wanted = {name: 4 * value for name, value in had.items()}
    assert build_report(run)["training"]["store"] == wanted
    page = " ".join(write_report(run).read_text(encoding="utf-8").split())
    said = (
        "4 MB fetched in 200 requests, 8 of them after a failure; 12 MB were in the cache (75.0%); "
        "readers waited 2.0 s"
    )
    assert said in page


def test_training_placement_and_adapters(run: Path) -> None:
    report = build_report(run)
    assert report["schema"] == "salsa-dist/report/1"
    assert report["base"] == {"name": "org/base", "revision": "abc", "parameters": 1234567}
    # The lost step counts once, as its last line says: 2 + 1 + 1 seconds, 24 clips.
    training = report["training"]
    assert (training["steps"], training["seconds"], training["starts"]) == (3, 4.0, 2)
    assert training["clips_per_second"] == 6.0
    assert training["loss"] == {"twi-a": [[0, 3.0], [1, 2.0], [2, None]]}
    assert report["placement"] == PLACEMENT
    assert report["environment"]["torch"] == "2.9.1"
    (adapter,) = report["adapters"]
    file = run / adapter["file"]
    assert file == run / "adapters" / "twi-a" / "adapter.safetensors"
    assert adapter["file_bytes"] == file.stat().st_size
    assert adapter["trained_parameters"] == 14
    assert (adapter["language"], adapter["rule"]) == ("twi", "salsa")
    norms = report["norms"]["twi-a"]
    assert list(norms) == ["encoder.2", "encoder.10", "llm.0"]
    assert list(norms.values()) == [2.0, 5.0, 0.0]


def test_examples_show_what_got_worse_too(run: Path) -> None:
    kinds = {e["key"]: e["kind"] for e in build_report(run)["examples"]}
    assert kinds == {"u1": "improved", "u3": "improved", "u2": "worse"}


def test_a_line_written_twice_counts_once(run: Path) -> None:
    again = [{**line, "hypothesis": "newest"} for line in hypotheses()[:1]]
    write_hypotheses(run, hypotheses() + again)
    report = build_report(run)
    row = next(r for r in report["results"] if (r["method"], r["window_s"]) == ("zero-shot", 30))
    assert row["utterances"] == 4
    assert row["deletions"] == 2  # "newest" for three words


def test_steps_of_adapters_one_after_another_are_joined(run: Path) -> None:
    start = {"event": "start", "base": {"name": "b", "revision": None, "parameters": 1}}
    lines = [start | {"environment": {}}]
    waits = {"a": [(3.0, 0.4), (3.0, None), (0.0, 0.0)], "b": [(1.0, 0.8), (1.0, 0.8), (0.0, 0.0)]}
    for name, own in waits.items():
        for t, (seconds, wait) in enumerate(own):
            known = {} if wait is None else {"data_wait": wait}
            lines.append(step(t, seconds, 1.0) | {"adapters": {name: {"loss": 1.0}}} | known)
    write_lines(run / "events.jsonl", "salsa-dist/events/1", lines)
    steps = history(run).steps
    assert [sorted(s.adapters) for s in steps] == [["a", "b"]] * 3
    assert [(s.seconds, s.clips, s.data_wait) for s in steps] == [
        (4.0, 16, pytest.approx(0.5)),
        (4.0, 16, None),
        (0.0, 16, 0.0),
    ]


def test_the_page_stands_alone_and_escapes(run: Path) -> None:
    lines = hypotheses()
    for line in lines:
        if line["method"] == "salsa" and line["key"] == "u1":
            line["hypothesis"] = "<script>alert(1)</script> me & <b>wo"
            line["reference"] = "<img src=x> me dɔ wo"
        elif line["key"] == "u1":
            line["reference"] = "<img src=x> me dɔ wo"
    write_hypotheses(run, lines)
    page = write_report(run)
    html = page.read_text(encoding="utf-8")
    assert page == run / "report.html"
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html
    # Nothing is fetched: no link or source leads out, the one kind of address is a namespace's.
    assert not re.search(r"<(link|script|img|iframe|object)\b|@import|url\((?!#)", html)
    assert set(re.findall(r'[\w:]+="https?://[^"]*"', html)) <= {
        'xmlns:xlink="http://www.w3.org/1999/xlink"', 'xmlns="http://www.w3.org/2000/svg"',
    }  # fmt: skip
    assert html.count("<svg") == 4  # loss, norms, WER, CER
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "25.5% of the base" in html  # 73.95 of 290 MB
    assert "2.06 kB" in html
    json.loads((run / "report.json").read_text(encoding="utf-8"))


def test_the_page_says_the_gain_in_words(run: Path) -> None:
    html = " ".join(re.sub(r"<[^>]*>", "", write_report(run).read_text(encoding="utf-8")).split())
    assert "WER 42.9% → 28.6%, 33.3% lower; CER" in html
    assert "Of 3 utterances 2 have fewer errors, 0 the same number, 1 more." in html


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes(), (run / "report.json").read_bytes()
    assert (write_report(run).read_bytes(), (run / "report.json").read_bytes()) == first


def test_a_run_without_evaluation_has_a_report(run: Path) -> None:
    (run / "evaluation" / "rank0.jsonl").unlink()
    report = build_report(run)
    assert (report["results"], report["gains"], report["examples"]) == ([], [], [])
    assert "salsa-dist evaluate" in write_report(run).read_text(encoding="utf-8")


def test_a_run_with_zero_shot_alone_has_a_report(run: Path) -> None:
    write_hypotheses(run, [line for line in hypotheses() if line["method"] == "zero-shot"])
    report = build_report(run)
    assert (len(report["results"]), report["gains"]) == (2, [])
    assert "zero-shot" in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["config.yaml", "events.jsonl", "adapters/twi-a/adapter.safetensors"])
def test_a_missing_file_is_named_with_its_command(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UserError, match=r"salsa-dist train") as caught:
        write_report(run)
    assert str(run / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("events.jsonl", "train"),
        ("adapters/twi-a/adapter.safetensors", "train"),
        ("evaluation/rank0.jsonl", "evaluate"),
        ("evaluation/summary.json", "evaluate"),
    ],
)
@pytest.mark.parametrize("damage", [b'{"schema": "salsa-dist/', b"\xff\xfe\x00", b"[]", b"{}"])
def test_a_damaged_file_is_named_with_its_command(
    run: Path, name: str, command: str, damage: bytes
) -> None:
    if (name, damage) == ("evaluation/summary.json", b"{}"):
        pytest.skip("a summary may be empty")
    (run / name).write_bytes(damage)
    with pytest.raises(UserError, match=f"salsa-dist {command} ") as caught:
        build_report(run)
    assert str(run / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_of_the_future_is_refused(run: Path) -> None:
    write_lines(run / "evaluation" / "rank0.jsonl", "salsa-dist/hypotheses/2", hypotheses())
    with pytest.raises(UserError, match=r"rank0\.jsonl, line 1 .*schema"):
        build_report(run)


def test_half_an_evaluation_gives_no_gain_in_silence(run: Path) -> None:
    write_hypotheses(run, hypotheses()[:-6])
    with pytest.raises(UserError, match=r"twi-a and zero-shot.*decoded on different clips"):
        build_report(run)
