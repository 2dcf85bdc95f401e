"""Audio that is not what it says, and texts that cannot be of it: by build and lint, by kind."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import samples

from salsa_dist.corpus import doubts
from salsa_dist.corpus.build import build
from salsa_dist.corpus.lint import Bounds, lint
from salsa_dist.corpus.utterance import Ask
from salsa_dist.corpus.writer import Packed, write_tar
from salsa_dist.data.audio import Audio
from salsa_dist.errors import UserError

RATE = 16_000


def speech(seconds: float = 2.0) -> Audio:
    """Noise in syllables."""
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(0, 0.1, t.size)
    return (noise * (0.5 + 0.5 * np.sin(8 * np.pi * t))).astype(np.float32)


def recordings() -> dict[str, tuple[bytes, str, str | None]]:
    """Of each name: a WAV file, its text and the kind of doubt that it is in."""
    good = speech()
    loud = np.clip(good * 100, -1, 1)
    whole = wav(good)
    silence = np.zeros_like(good)
    return {
        "good": (whole, "what is said in it", None),
        "peaks": (wav(np.clip(good * 6, -1, 1)), "loud, with a few peaks", None),
        "twin": (wav(np.stack([good, good], 1)), "the same on both sides", None),
        "apart": (wav(np.stack([good, np.roll(good, 999)], 1)), "two microphones", None),
        "one_side": (wav(np.stack([good, silence], 1)), "one side alone", None),
        "cut": (whole[: len(whole) // 2], "what is said in it", doubts.CUT_OFF),
        "silence": (wav(silence), "nothing is there", doubts.SILENT),
        "dither": (wav(silence + doubts.STEP / 2), "nothing is there", doubts.SILENT),
        "antiphase": (wav(np.stack([good, -good], 1)), "the sides cancel", doubts.CANCELLING),
        "clipped": (wav(loud), "a square", doubts.CLIPPED),
        "long": (whole, "far too much to be said in two seconds " * 5, doubts.LONG),
        "short": (wav(speech(30.0)), "yes", doubts.SHORT),
    }


def wav(audio: Audio, **how: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, audio, RATE, format="WAV", subtype="PCM_16", **how)
    return out.getvalue()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = []
    for name, (raw, text, _) in recordings().items():
        (tmp_path / f"{name}.wav").write_bytes(raw)
        rows.append({"audio": f"{name}.wav", "text": text, "language": "bg"})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("as_is", [False, True])
def test_a_build_drops_them_and_counts_them_by_kind(
    manifest: Path, tmp_path: Path, as_is: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = Ask(rate=None if as_is else RATE)
    index = build("jsonl", manifest, tmp_path / "out", ask, max_dropped=0.6)
    sound = {f"bg/{name}" for name, (_, _, kind) in recordings().items() if kind is None}
    assert samples(index).keys() == sound
    counted = dict.fromkeys(sorted(doubts.KINDS), 1) | {doubts.SILENT: 2}
    assert index.recipe["dropped"] == {"bg": counted}
    assert "1 cut-off" in capsys.readouterr().out
    named = (tmp_path / "out/dropped.tsv").read_text()
    assert "bg/cut\tcut-off: 32022 of the 64044 bytes that its header claims" in named
    assert lint(tmp_path / "out", Bounds())[0] == []


def test_what_is_asked_to_be_kept_is_kept_and_lint_knows(manifest: Path, tmp_path: Path) -> None:
    index = build("jsonl", manifest, tmp_path / "out", Ask(keep=doubts.KINDS))
    assert len(samples(index)) == len(recordings())
    assert lint(tmp_path / "out", Bounds())[0] == []
    with pytest.raises(UserError, match="no kind of doubt is clippd: there are cut-off, silent"):
        build("jsonl", manifest, tmp_path / "other", Ask(keep=("clippd",)))
    with pytest.raises(UserError, match="was built with another keep"):
        build("jsonl", manifest, tmp_path / "out", Ask())


def test_lint_finds_them_in_tars_that_others_made(tmp_path: Path) -> None:
    packed = [
        Packed(name, "wav", raw, {"text": text, "language": "bg"}, 1.0)
        for name, (raw, text, _) in recordings().items()
    ]
    write_tar(tmp_path, "bg/train-000000.tar", "train", "bg", packed)
    problems, _ = lint(tmp_path, Bounds())
    found = {(str(p.sample), p.kind) for p in problems}
    assert found == {(name, kind) for name, (_, _, kind) in recordings().items() if kind}


def test_a_whole_part_of_a_recording_that_is_cut_off_is_sound(tmp_path: Path) -> None:
    raw, _, _ = recordings()["cut"]
    (tmp_path / "tape.wav").write_bytes(raw)
    rows = [
        {"audio": "tape.wav", "text": "whole", "language": "bg", "start": 0.1, "end": 0.9},
        {"audio": "tape.wav", "text": "behind", "language": "bg", "start": 1.2, "end": 1.8},
        {"audio": "tape.wav", "text": "to its end", "language": "bg", "start": 0.2},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = build("jsonl", tmp_path / "m.jsonl", tmp_path / "out", max_dropped=0.7)
    assert [facts["text"] for _, _, facts in samples(index).values()] == ["whole"]
    assert index.recipe["dropped"]["bg"] == {"cut-off": 1, "unreadable audio": 1}


def of_format(form: str, subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, speech(), RATE, format=form, subtype=subtype)
    return out.getvalue()


@pytest.mark.parametrize("as_is", [False, True])
def test_half_a_file_of_any_format_is_dropped(tmp_path: Path, as_is: bool) -> None:
    whole = {
        form: of_format(form) for form in ("WAV", "RF64", "W64", "AIFF", "AU", "OGG", "FLAC", "MP3")
    }
    whole["OPUS"] = of_format("OGG", "OPUS")
    if as_is:
        whole = {form: whole[form] for form in ("WAV", "OGG", "OPUS", "FLAC", "MP3")}
    rows = []
    for form, raw in whole.items():
        (tmp_path / form).write_bytes(raw)
        (tmp_path / f"cut-{form}").write_bytes(raw[: len(raw) * 2 // 5])
        rows += [{"audio": name, "text": form, "language": "bg"} for name in (form, f"cut-{form}")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = Ask(rate=None if as_is else RATE)
    index = build("jsonl", tmp_path / "m.jsonl", tmp_path / "out", ask, max_dropped=0.5)
    assert samples(index).keys() == {f"bg/{form}" for form in whole}
    unreadable = 2  # FLAC and MP3: their decoder says so
    counted = {doubts.CUT_OFF: len(whole) - unreadable, "unreadable audio": unreadable}
    assert index.recipe["dropped"] == {"bg": counted}


def test_a_wav_with_more_sound_than_its_header_knows_is_in_doubt() -> None:
    part = wav(speech(0.5))
    assert doubts.of_header(part + wav(speech(0.5))) == (
        "cut-off: its header claims 16044 of its 32088 bytes"
    )
    assert doubts.of_header(part + b"LIST\x10'\0\0" + bytes(10_000)) is None
    assert doubts.of_header(part + bytes(10_000)) is None


def test_a_header_that_does_not_know_its_length_is_no_lie() -> None:
    whole = bytearray(wav(speech(0.5)))
    whole[40:44] = b"\xff\xff\xff\xff"  # as ffmpeg writes into a pipe
    assert doubts.of_header(bytes(whole)) is None
    assert doubts.of_header(b"RIFF") is None


def sphere(audio: Audio, subtype: str = "PCM_16") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, audio, RATE, format="NIST", subtype=subtype)
    return out.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW"])
def test_sphere(tmp_path: Path, subtype: str) -> None:
    whole = sphere(speech(), subtype)
    (tmp_path / "a.sph").write_bytes(whole)
    (tmp_path / "cut.sph").write_bytes(whole[: len(whole) // 2])
    rows = [{"audio": f"{name}.sph", "text": "said", "language": "en"} for name in ("a", "cut")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = build("jsonl", tmp_path / "m.jsonl", tmp_path / "out", max_dropped=0.5)
    ((_, audio, _),) = samples(index).values()
    assert len(audio) == 2 * RATE
    assert index.recipe["dropped"]["en"] == {"cut-off": 1}


def test_sphere_under_shorten_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    raw = sphere(speech()).replace(b"coding -s3 pcm", b"coding -s26 pcm,embedded-shorten-v2.00")
    (tmp_path / "a.sph").write_bytes(raw)
    (tmp_path / "m.jsonl").write_text('{"audio": "a.sph", "text": "said", "language": "en"}')
    with pytest.raises(UserError, match=r"a\.sph is compressed by shorten: convert it, with 'sph2pipe"):
        build("jsonl", tmp_path / "m.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
