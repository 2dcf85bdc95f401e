"""`transcribe` and its command: all inputs, all outputs, torn files, resuming, languages, adapters."""

import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from ranks import run_ranks

from salsa_dist import SteeringVectors, UserError, load_speech_llm, transcribe, transcribe_each
from salsa_dist.cli import main, run_command
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.speech_llms.batch import Transcript
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.transcription.output import form_of, written
from salsa_dist.transcription.progress import Progress
from salsa_dist.transcription.recording import Piece, Recording, Result, Segment
from salsa_dist.transcription.transcriber import Transcriber

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Exit status, standard output and standard error of a command; `stdin` is its input."""

    def call(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["salsa-dist", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> SpeechLLM:
    return load_speech_llm(tiny_base)


@pytest.fixture(scope="module")
def vectors(base: SpeechLLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters for two languages."""
    folders = {}
    for seed, language in enumerate(("bg", "el")):
        generator = torch.Generator().manual_seed(seed)
        own = {f"encoder.{i}": torch.randn(32, generator=generator) for i in range(3)}
        folder = tmp_path_factory.mktemp("adapters") / language
        about = {"name": language, "language": language, "revision": base.revision}
        folders[language] = SteeringVectors(own, "add", **about).save(folder)
    return folders


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with three recordings, the second longer than the base's window."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for seed, (name, seconds) in enumerate({"a.wav": 1.0, "b.flac": 5.0, "c.ogg": 0.7}.items()):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(round(8_000 * seconds))
        soundfile.write(folder / name, noise, 8_000)
    return folder


def lines(text: str) -> dict[str, str]:
    return dict(line.split("\t") for line in text.splitlines())


def test_arrays_files_and_bytes_give_the_same_text(base: SpeechLLM, clips: Path) -> None:
    path = clips / "a.wav"
    audio, rate = soundfile.read(path, dtype="float32")
    ways: list[Any] = [path, str(path), path.read_bytes(), (audio, rate), (torch.tensor(audio), rate)]
    ways += [{"array": audio, "sampling_rate": rate}, {"raw": audio, "sampling_rate": rate}]
    with open(path, "rb") as file:
        texts = transcribe(base, [*ways, file], "bg")
    assert len(set(texts)) == 1
    assert texts[0]


def test_one_recording_not_in_a_list_is_refused(base: SpeechLLM, clips: Path) -> None:
    with pytest.raises(UserError, match="give a list"):
        transcribe(base, str(clips / "a.wav"), "bg")


def test_the_encoder_takes_one_piece_at_a_time_with_its_adapter(
    base: SpeechLLM, vectors: dict[str, Path], clips: Path
) -> None:
    sizes: list[int] = []
    encoder = base.model.get_encoder()

    def note(_: object, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        sizes.append(len(given[0] if given else named["input_features"]))

    hook = encoder.register_forward_pre_hook(note, with_kwargs=True)
    adapter = SteeringVectors.load(vectors["bg"])
    three = [clips / "a.wav"] * 3
    texts = transcribe(base, three, "bg", [None, adapter, None])
    hook.remove()
    assert sizes == [1, 1, 1]
    with adapter.attach(base):
        steered = transcribe(base, three[:1], "bg")
    assert texts == [*transcribe(base, three[:1], "bg"), *steered, texts[0]]
    assert texts[0] != texts[1]


def test_full_memory_is_one_line(base: SpeechLLM, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(Transcriber, "_decoded", full)
    with pytest.raises(UserError, match=r"transcribing: out of memory: take fewer .*--batch"):
        transcribe(base, [clips / "a.wav"], "bg")


def test_batches_of_any_size_give_the_same(base: SpeechLLM, clips: Path) -> None:
    files = sorted(clips.iterdir())
    each = list(transcribe_each(base, files, "bg", batch=1))
    assert [r.text for r in each] == transcribe(base, files, "bg", batch=3)
    long = each[1]
    assert len(long.segments) >= 3
    assert long.segments[0].start == 0
    assert long.segments[-1].end == pytest.approx(5)
    assert all(a.end == b.start for a, b in zip(long.segments, long.segments[1:], strict=False))
    assert [round(r.seconds, 2) for r in each] == [1, 5, 0.7]


def test_each_result_comes_before_the_next_recording_is_needed(base: SpeechLLM) -> None:
    """At most one batch is read ahead, however many recordings there are."""
    read = 0

    def recordings() -> Iterator[Recording]:
        nonlocal read
        for i in range(20):
            read += 1
            yield Recording(str(i), np.full(1_600, 0.01 * i, np.float32), "bg", -1)

    ahead = [
        read - i for i, _ in enumerate(Transcriber(base, batch=2, max_new_tokens=2).run(recordings()))
    ]
    assert len(ahead) == 20
    assert max(ahead) <= 6


def test_a_long_recording_is_never_held_whole(base: SpeechLLM, tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 16_000, 1, subtype="PCM_16") as file:
        for seed in range(18):
            file.write(0.1 * np.random.default_rng(seed).standard_normal(160_000))
    tracemalloc.start()  # numpy's arrays are traced
    (result,) = Transcriber(base, batch=4, max_new_tokens=1).run([Recording("l", path, "bg", -1)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.seconds == 180
    assert len(result.segments) >= 90
    assert peak < 6 << 20  # the whole is 11.5 MB of float32


def test_a_torn_file_does_not_stop_the_others(run: Run, tiny_base: Path, clips: Path) -> None:
    (clips / "b.flac").write_bytes(b"torn")
    status, out, err = run("transcribe", tiny_base, clips, clips / "no.wav", "--language", "bg")
    assert status == 2
    assert set(lines(out)) == {str(clips / "a.wav"), str(clips / "c.ogg")}
    assert "2 of 4 recordings failed" in err
    assert f"{clips / 'b.flac'} can't be read as audio" in err
    assert f"{clips / 'no.wav'}: no such file" in err
    assert "Traceback" not in err


def test_two_ranks_share_the_recordings_out(
    tmp_path: Path, tiny_base: Path, clips: Path, tiny_shards: Path
) -> None:
    (clips / "b.flac").write_bytes(b"torn")
    tar = next(tiny_shards.rglob("*test*.tar"))
    words = ("transcribe", tiny_base, clips, tar, "--language", "bg", "--max-new-tokens", "4", "--out")
    with pytest.raises(UserError, match="1 of"):  # as a rank of the launcher does it
        run_command("transcribe", "", [*map(str, words[1:]), str(tmp_path / "one")])
    done = run_ranks(2, "-m", "salsa_dist", *words, tmp_path / "two", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("b.flac can't be read as audio") == 1
    one, two = (
        {path.relative_to(folder): path.read_text() for path in sorted(folder.rglob("*.txt"))}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) > 5
    assert two == one
    with pytest.raises(UserError, match="and 2 ranks write: name a folder"):
        form_of(tmp_path / "all.jsonl", None, single=False, ranks=2)


def test_the_first_error_ends_the_list(base: SpeechLLM, clips: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        transcribe(base, [clips / "no.wav", clips / "a.wav"], "bg")
    results = list(transcribe_each(base, [clips / "no.wav", clips / "a.wav"], "bg"))
    assert [r.error is None for r in results] == [False, True]


def test_folders_patterns_tars_and_lists(
    run: Run, tiny_base: Path, clips: Path, tiny_shards: Path
) -> None:
    options = ("--language", "bg", "--max-new-tokens", 4)
    _, by_folder, _ = run("transcribe", tiny_base, clips, *options)
    _, by_pattern, _ = run("transcribe", tiny_base, clips / "*.*", *options)
    listed = "".join(f"{path}\n" for path in sorted(clips.iterdir())).encode()
    _, by_list, _ = run("transcribe", tiny_base, "-", *options, stdin=listed)
    assert by_folder == by_pattern == by_list
    assert len(lines(by_folder)) == 3
    tar = next(iter(sorted(tiny_shards.glob("el/test-*.tar"))))
    status, of_tar, _ = run("transcribe", tiny_base, tar, "--json", "--max-new-tokens", 2)
    samples = [json.loads(line) for line in of_tar.splitlines()]
    assert status == 0
    assert {s["language"] for s in samples} == {"el"}
    assert {s["file"] for s in samples} == {f"{tar}:el/test-{i}" for i in range(6)}


def test_a_folder_without_audio_is_one_line(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    status, out, err = run("transcribe", tiny_base, tmp_path, "--language", "bg")
    assert (status, out) == (2, "")
    assert err == f"salsa-dist: {tmp_path} holds no audio files or tars\n"
    assert "no file matches" in run("transcribe", tiny_base, tmp_path / "*.wav", "--language", "bg")[2]


def test_on_a_gpu_it_would_round_as_evaluation_does(
    run: Run, tiny_base: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN rounds what an fp32 convolution multiplies to 10 bits, unless it is told."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert run("transcribe", tiny_base, clips / "a.wav", "--language", "bg")[0] == 0
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("form", ["text", "json"])
def test_names_that_are_not_utf_8(run: Run, tiny_base: Path, clips: Path, form: str) -> None:
    os.rename(clips / "a.wav", os.fsencode(clips) + b"/caf\xe9.wav")
    out = clips.parent / ("out.jsonl" if form == "json" else "out.txt")
    command = ("transcribe", tiny_base, clips, "--language", "bg", "--out", out)
    assert run(*command)[0] == 0
    raw = out.read_bytes()
    if form == "json":
        names = [json.loads(line)["file"] for line in raw.decode("utf-8").splitlines()]
    else:
        names = [os.fsdecode(line.split(b"\t")[0]) for line in raw.splitlines()]
    assert sorted(map(os.fsencode, names)) == sorted(map(os.fsencode, clips.iterdir()))
    assert run(*command)[0] == 0
    assert out.read_bytes() == raw


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_it_goes_on_where_it_was_stopped(
    run: Run, tiny_base: Path, clips: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = clips.parent / f"out.{ending}"
    command = ("transcribe", tiny_base, clips, "--language", "bg", "--out", out)
    assert run(*command)[0] == 0
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    out.write_bytes(whole[: first + 9])  # as a kill leaves it: half a line
    made = []
    real = Transcriber._decoded
    monkeypatch.setattr(
        Transcriber, "_decoded", lambda self, prompts: made.append(1) or real(self, prompts)
    )
    assert run(*command)[0] == 0
    assert out.read_bytes() == whole
    assert made
    made.clear()
    assert run(*command)[0] == 0
    assert not made  # all is there
    assert out.read_bytes() == whole


@pytest.mark.parametrize("place", ["out.jsonl", "out"])
def test_a_long_recording_resumes_at_its_next_piece(
    run: Run, tiny_base: Path, clips: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = clips.parent / place
    words = (
        "transcribe",
        tiny_base,
        clips,
        "--language",
        "auto",
        "--batch",
        1,
        "--format",
        "json",
        "--out",
    )
    run(*words, clips.parent / f"whole-{place}")
    made, stop_at = 0, 3  # a.wav is one piece, b.flac has three, c.ogg one
    real = Transcriber._decoded

    def decoded(self: Transcriber, prompts: Any) -> list[Transcript]:
        nonlocal made
        made += 1
        if made == stop_at:
            raise KeyboardInterrupt
        return real(self, prompts)

    monkeypatch.setattr(Transcriber, "_decoded", decoded)
    assert run(*words, out)[0] != 0
    kept = [path for path in clips.parent.rglob(".*begun*") if path.is_file()]
    assert len(kept) == 1
    made, stop_at = 0, 0
    assert run(*words, out)[0] == 0
    assert made == 3  # two pieces of b.flac, and c.ogg
    assert not list(clips.parent.rglob(".*begun*"))
    whole = clips.parent / f"whole-{place}"
    for path in whole.rglob("*.json") if whole.is_dir() else [whole]:
        there = out / path.relative_to(whole) if whole.is_dir() else out
        assert there.read_text() == path.read_text()


def test_other_settings_are_not_mixed_in(run: Run, tiny_base: Path, clips: Path) -> None:
    out = clips.parent / "out.jsonl"
    assert run("transcribe", tiny_base, clips, "--language", "bg", "--out", out)[0] == 0
    before = out.read_bytes()
    status, _, err = run("transcribe", tiny_base, clips, "--language", "el", "--out", out)
    assert status == 2
    assert "made with another language" in err
    assert out.read_bytes() == before
    notes = clips.parent / "notes.txt"
    notes.write_text("mine")
    assert (
        "was not made by transcribe"
        in run("transcribe", tiny_base, clips, "--language", "bg", "--out", notes)[2]
    )
    assert notes.read_text() == "mine"


def test_subtitles_below_a_folder(
    run: Run, tiny_base: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Transcriber,
        "_decoded",
        lambda self, prompts: [Transcript("дума", True)] * len(prompts.sample_rows),
    )
    (clips / "deep").mkdir()
    (clips / "a.wav").rename(clips / "deep" / "a.wav")
    out = clips.parent / "subs"
    command = ("transcribe", tiny_base, clips, "--language", "bg", "--format", "srt", "--out", out)
    assert run(*command)[0] == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("[!.]*.srt")) == [
        "b.srt",
        "c.srt",
        "deep/a.srt",
    ]
    assert (out / "b.srt").read_text(encoding="utf-8").startswith("1\n00:00:00,000 --> 00:00:0")
    (out / "c.srt").unlink()
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.srt")}
    assert run(*command)[0] == 0
    assert (out / "c.srt").exists()
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())


def test_two_recordings_for_one_file_are_refused(run: Run, tiny_base: Path, clips: Path) -> None:
    (clips / "a.flac").write_bytes((clips / "b.flac").read_bytes())
    command = ("transcribe", tiny_base, clips, "--language", "bg", "--format", "vtt")
    assert "name a folder with --out" in run(*command)[2]
    status, _, err = run(*command, "--out", clips.parent / "subs")
    assert status == 2
    assert "would both be" in err


def test_formats() -> None:
    segments = [Segment(0, 1.5, "добро", True), Segment(1.5, 3661.25, "a --> b", True)]
    segments.insert(1, Segment(1.5, 1.5, "", True))
    result = Result(Recording("a\tb.wav", None, "bg"), "bg", None, 3661.25, segments)
    assert written(result, "text") == "a b.wav\tдобро a --> b\n"
    assert written(result, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nдобро\n\n2\n00:00:01,500 --> 01:01:01,250\na → b\n\n"
    )
    assert written(result, "vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nдобро\n\n00:")
    assert json.loads(written(result, "json"))["segments"][2]["end"] == 3661.25


def test_languages_of_a_list_a_file_and_a_command(
    run: Run, tiny_base: Path, clips: Path, tmp_path: Path
) -> None:
    listed = f'{clips / "a.wav"}\tel\n{{"audio": "{clips / "b.flac"}", "language": "bg"}}\n'
    listed += f"{clips / 'c.ogg'}\n"
    command = ("transcribe", tiny_base, "-", "--json", "--max-new-tokens", 3)
    _, out, _ = run(*command, "--language", "en", stdin=listed.encode())
    assert [json.loads(line)["language"] for line in out.splitlines()] == ["el", "bg", "en"]
    table = tmp_path / "languages.tsv"
    table.write_text("c.ogg\tbg\n", encoding="utf-8")
    _, out, _ = run(*command, "--language", table, stdin=listed.encode())
    assert json.loads(out.splitlines()[2])["language"] == "bg"
    status, out, err = run(*command, stdin=listed.encode())
    assert status == 2
    assert len(out.splitlines()) == 2
    assert "c.ogg names no language" in err
    listed = f"{clips / 'a.wav'}\tnot a code\n{clips / 'b.flac'}\tbg\tnone\n"
    _, _, err = run(*command, stdin=listed.encode())
    assert f"{clips / 'a.wav'}: 'not a code' is no language code" in err
    assert f"{clips / 'b.flac'}: no --adapter is called 'none'; there are none" in err
    for wrong in (b"a\tb\tc\td", b'{"audio": 3}', b"{"):
        assert "line 1 of the list" in run(*command, stdin=wrong)[2]


def test_a_language_without_a_token_is_said_once(run: Run, tiny_base: Path, clips: Path) -> None:
    status, out, err = run("transcribe", tiny_base, clips, "--language", "tw")
    assert status == 0
    assert len(lines(out)) == 3
    assert err.count("language tw: this base has no token for it, <|en|> is used") == 1
    command = ("transcribe", tiny_base, clips, "--language", "tw", "--language-as", "tw=el")
    assert "no token" not in run(*command)[2]
    assert run("transcribe", tiny_base, clips, "--language", "bg")[2] == ""


def test_the_base_tells_the_language(base: SpeechLLM, clips: Path) -> None:
    files = sorted(clips.iterdir())
    told = list(transcribe_each(base, files, "auto", batch=2))
    for path, result in zip(files, told, strict=True):
        assert result.language in base.family.languages
        assert transcribe(base, [path], result.language) == [result.text]


def test_what_is_told_is_the_token_with_the_highest_score(base: SpeechLLM, clips: Path) -> None:
    from salsa_dist.data import audio_input
    from salsa_dist.data.clip import Clip
    from salsa_dist.speech_llms.whisper import Whisper

    family = base.family
    assert isinstance(family, Whisper)
    clip = Clip("a", audio_input.read(clips / "a.wav"), "", "en")
    batch = family.prompt_batch([clip])
    ids = base.model.detect_language(input_features=batch.inputs["input_features"])
    by_transformers = family.tokenizer.convert_ids_to_tokens(int(ids[0]))
    assert family.languages_of(base.model, batch) == [by_transformers.strip("<|>")]


def test_several_adapters_by_language(
    run: Run, tiny_base: Path, clips: Path, vectors: dict[str, Path], base: SpeechLLM
) -> None:
    listed = "".join(
        f"{clips / name}\t{language}\n"
        for name, language in (("a.wav", "bg"), ("b.flac", "el"), ("c.ogg", "en"))
    ).encode()
    both = [x for folder in vectors.values() for x in ("--adapter", folder)]
    status, out, err = run("transcribe", tiny_base, "-", "--json", *both, stdin=listed)
    made = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [m["adapter"] for m in made] == ["bg", "el", None]
    assert err.count("language en: no adapter is for it") == 1
    loaded = {code: SteeringVectors.load(folder) for code, folder in vectors.items()}
    for m, path in zip(made, (clips / "a.wav", clips / "b.flac"), strict=False):
        assert [m["text"]] == transcribe(base, [path], m["language"], loaded[m["adapter"]])
    # Named for another language, or by the list.
    _, out, _ = run(
        "transcribe", tiny_base, "-", "--json", *both[:3], f"en={vectors['el']}", stdin=listed
    )
    assert [json.loads(line)["adapter"] for line in out.splitlines()] == ["bg", None, "el"]
    named = f"{clips / 'a.wav'}\tbg\tel\n".encode()
    _, out, _ = run("transcribe", tiny_base, "-", "--json", *both, stdin=named)
    assert json.loads(out)["adapter"] == "el"
    again = named + listed
    _, out, err = run("transcribe", tiny_base, "-", *both, stdin=again)
    assert (out, err.count("\n")) == ("", 1)
    assert "a.wav is named twice, with another language or adapter" in err
    like = dataclasses.replace(loaded["el"], name="bg").save(clips / "like")
    same = ["--adapter", vectors["bg"], "--adapter", like]
    _, out, err = run("transcribe", tiny_base, "-", *same, stdin=f"{clips / 'a.wav'}\tbg\tbg".encode())
    assert (out, err.count("\n")) == ("", 1)
    assert "several --adapter are called 'bg'" in err
    twice = ["--adapter", vectors["bg"], "--adapter", vectors["bg"]]
    assert "two adapters are for language bg" in run("transcribe", tiny_base, clips, *twice)[2]
    # One adapter steers all, and its language is theirs unless they say another.
    _, out, _ = run("transcribe", tiny_base, clips, "--json", *both[:2])
    assert {json.loads(line)["language"] for line in out.splitlines()} == {"bg"}
    assert {json.loads(line)["adapter"] for line in out.splitlines()} == {"bg"}


def test_silence_is_no_words_with_vad(base: SpeechLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("silero_vad")
    threads = torch.get_num_threads()
    silence = np.zeros(3 * SAMPLE_RATE, np.float32)
    plain, guarded = (list(transcribe_each(base, [silence], "bg", vad=v)) for v in (False, True))
    assert plain[0].segments
    assert (guarded[0].text, guarded[0].segments, guarded[0].seconds) == ("", [], 3)
    assert torch.get_num_threads() == threads
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(UserError, match=r"salsa-dist\[vad\]"):
        transcribe(base, [silence], "bg", vad=True)


def test_pieces_where_nobody_speaks_are_left_out(base: SpeechLLM) -> None:
    """What is skipped leaves a gap in the times, and the others their words."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32)
    audio = np.concatenate([np.zeros(4 * SAMPLE_RATE, np.float32), noise])
    recordings = [Recording(name, audio, "bg", -1) for name in "ab"]
    loud = Transcriber(base, batch=2, max_new_tokens=4, speaks=lambda part: bool(part.any()))
    each = list(loud.run(recordings))
    assert [r.name for r in each] == ["a", "b"]
    assert all(r.seconds == 6 and r.segments[0].start > 1.5 for r in each)
    assert each[0].segments == each[1].segments


def test_transformers_says_nothing(
    base: SpeechLLM, clips: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.utils import logging

    logging.set_verbosity_warning()
    caplog.clear()
    transcribe(base, sorted(clips.iterdir()), "bg", batch=3)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "cuda:77"], "--device cuda:77 can't be used"),
        (["--dtype", "int8"], "--dtype int8: choose"),
        (["--format", "docx"], "--format docx: choose one of text, json, srt, vtt"),
        (["--json", "--format", "srt"], "exclude each other"),
        (["--out", "x.srt"], "x.srt is one file, and subtitles are one file per recording"),
        (["--window", "0"], "window_s is 0: give"),
        (["--window", "nan"], "window_s is nan: give"),
        (["--language-as", "tw"], "write it as tw=yo"),
        (["--language", "not a code"], "no language code"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, tiny_base: Path, clips: Path, options: list[str], says: str
) -> None:
    status, out, err = run("transcribe", tiny_base, clips, "--language", "bg", *options)
    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_a_wrong_format_is_refused_before_the_base_is_read(run: Run, clips: Path) -> None:
    assert "choose one of text" in run("transcribe", "no-base", clips, "--format", "docx")[2]


def test_progress_tells_rate_and_what_is_left() -> None:
    now = 0.0
    progress = Progress(1_000, lambda: now)
    recording = Recording("a", None, "bg", weight=500)
    now = 10.0
    progress(Piece(recording, 0, 30, None, False, share=0.5))
    assert progress.line() == (
        "transcribed 0 recordings, 0:00:30 of audio, 3.0x as fast as it plays, 0:00:30 left"
    )
    now = 20.0
    progress(Piece(recording, 30, 60, None, True, share=1.0))
    assert progress.line().endswith("0:01:00 of audio, 3.0x as fast as it plays, 0:00:20 left")
    # Of a recording that resumes at its half, this half alone counts.
    now = 0.0
    resumed = Progress(500, lambda: now)
    again = Recording("a", None, "bg", weight=500, done=[Segment(0, 30, "", True)])
    now = 10.0
    resumed(Piece(again, 30, 45, None, False, share=0.75))
    assert resumed.line().endswith("0:00:15 of audio, 1.5x as fast as it plays, 0:00:10 left")
    assert SAMPLE_RATE == 16_000


def test_prompts_of_other_lengths_are_other_batches(tiny_base: Path, clips: Path) -> None:
    base = load_speech_llm(tiny_base, language_as={"bg-el": "bg+el"})
    files = sorted(clips.iterdir())
    languages = ["bg", "bg-el", "bg"]
    together = transcribe(base, files, languages, batch=8)
    alone = [transcribe(base, [f], of)[0] for f, of in zip(files, languages, strict=True)]
    assert together == alone
