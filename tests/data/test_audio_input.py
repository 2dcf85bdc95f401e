"""Whatever a user has as audio comes out as the same samples; what can't be read is named in a line."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from clips import pitch, tone

from salsa_dist.data.audio import container_of
from salsa_dist.data.audio_input import blocks, name_of, read
from salsa_dist.errors import UserError

RATE = 8_000
AUDIO = tone(2.5, 440, RATE)
AS_16_KHZ = soxr.resample(AUDIO, RATE, 16_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", AUDIO, RATE, subtype="FLOAT")
    return tmp_path / "a.wav"


class Decoded:
    """As an audio column of `datasets` 4 has it."""

    def get_all_samples(self) -> Any:
        data = torch.from_numpy(AUDIO)[None]
        return type("Samples", (), {"data": data, "sample_rate": RATE})


WAYS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "path": lambda p: p,
    "bytes": lambda p: p.read_bytes(),
    "file": lambda p: io.BytesIO(p.read_bytes()),
    "array and rate": lambda p: (AUDIO, RATE),
    "tensor and rate": lambda p: (torch.from_numpy(AUDIO), RATE),
    "channels first": lambda p: (torch.from_numpy(np.stack([AUDIO, AUDIO])), RATE),
    "channels last": lambda p: (np.stack([AUDIO, AUDIO], 1), RATE),
    "HF dict": lambda p: {"array": AUDIO, "sampling_rate": RATE, "path": None},
    "pipeline's dict": lambda p: {"raw": AUDIO, "sampling_rate": RATE},
    "undecoded": lambda p: {"bytes": p.read_bytes(), "path": "a.wav"},
    "datasets 4": lambda p: Decoded(),
    "list": lambda p: (AUDIO.tolist(), RATE),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_samples(path: Path, way: str) -> None:
    np.testing.assert_array_equal(read(WAYS[way](path)), AS_16_KHZ)


def test_arrays_alone_are_at_16_khz() -> None:
    np.testing.assert_array_equal(read(AS_16_KHZ), AS_16_KHZ)
    half = torch.from_numpy(AS_16_KHZ).bfloat16()
    np.testing.assert_array_equal(read(half), half.float().numpy())


def test_whole_numbers_are_pcm() -> None:
    np.testing.assert_array_equal(read(np.array([-32768, 0, 16384], np.int16)), [-1, 0, 0.5])


def test_a_long_recording_comes_in_blocks_and_is_the_same_to_the_bit(tmp_path: Path) -> None:
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100 * 35).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", audio, 44_100, subtype="FLOAT")
    got = list(blocks(tmp_path / "long.wav"))
    assert len(got) >= 4
    assert max(map(len, got)) < 11 * 16_000
    np.testing.assert_array_equal(np.concatenate(got), soxr.resample(audio, 44_100, 16_000))


@pytest.mark.parametrize("name", [b"caf\xe9.wav", b"new\nline.wav", "мечка.wav".encode()])
def test_any_name_that_the_system_has_works(tmp_path: Path, path: Path, name: bytes) -> None:
    other = os.fsencode(tmp_path) + b"/" + name
    os.rename(path, other)
    np.testing.assert_array_equal(read(os.fsdecode(other)), AS_16_KHZ)
    assert name_of(Path(os.fsdecode(other))) == os.fsdecode(other)


def of_format(form: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 80_000)
    soundfile.write(file, noise, 16_000, format=form, subtype=subtype)
    return file.getvalue()


FORMS = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "OPUS", "MP3"]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_off_is_named(tmp_path: Path, form: str) -> None:
    raw = of_format("OGG", "OPUS") if form == "OPUS" else of_format(form)
    assert len(read(raw)) >= 80_000
    path = tmp_path / "c.wav"
    path.write_bytes(raw[: len(raw) * 3 // 5])
    with pytest.raises(UserError, match=r"c\.wav (can't be read as audio|is cut off)") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_of_a_pipe_claims_no_end(size: int) -> None:
    raw = bytearray(of_format("WAV"))
    raw[40:44] = size.to_bytes(4, "little")
    assert len(read(bytes(raw))) == 80_000


@pytest.mark.parametrize("claimed", [0, 32_000, 100_000])
def test_a_wav_that_goes_on_behind_what_its_header_claims_is_named(claimed: int) -> None:
    raw = bytearray(of_format("WAV"))
    raw[4:8], raw[40:44] = (36 + claimed).to_bytes(4, "little"), claimed.to_bytes(4, "little")
    with pytest.raises(
        UserError, match=rf"goes on behind the {claimed / 32_000:.2f} s that its header"
    ):
        read(bytes(raw))


@pytest.mark.parametrize(
    "behind", [b"LIST" + (60_000).to_bytes(4, "little") + bytes(60_000), bytes(60_000)]
)
def test_other_facts_and_padding_behind_a_wav_are_no_sound(behind: bytes) -> None:
    assert len(read(of_format("WAV") + behind)) == 80_000


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not there": (lambda p: p / "none.wav", "none.wav: no such file"),
    "a folder": (lambda p: p, "is a folder"),
    "no audio": (lambda p: b"no audio at all", "can't be read as audio"),
    "empty file": (lambda p: b"", "can't be read as audio"),
    "no samples": (lambda p: np.zeros(0, np.float32), "holds no audio"),
    "NaN": (lambda p: np.full(9, np.nan, np.float32), "NaN"),
    "three axes": (lambda p: np.zeros((2, 2, 2), np.float32), "3 axes"),
    "text": (lambda p: np.array(["a"]), "no audio"),
    "rate 0": (lambda p: (AUDIO, 0), "rate of 0 Hz"),
    "rate 1": (lambda p: (AUDIO, 1), "rate of 1 Hz"),
    "no rate": (lambda p: {"array": AUDIO}, "no 'sampling_rate'"),
    "other dict": (lambda p: {"audio": AUDIO}, "none of"),
    "nothing": (lambda p: None, "no audio"),
    "ragged": (lambda p: [[1.0], [1.0, 2.0]], "no audio"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_read_is_one_line(tmp_path: Path, case: str) -> None:
    make, says = BAD[case]
    with pytest.raises(UserError, match=says) as caught:
        read(make(tmp_path))
    assert "\n" not in str(caught.value)


# Kinds that soundfile does not decode, with an encoder that PyAV's wheels have.
KINDS = {"m4a": "aac", "mp4": "aac", "webm": "libopus", "mkv": "libopus", "3gp": "aac", "aac": "aac"}
KINDS["amr"] = "libopencore_amrnb"


def encoded(path: Path, codec: str, seconds: float = 2.0) -> Path:
    av = pytest.importorskip("av")
    rate = 8_000 if path.suffix == ".amr" else 48_000
    audio = (tone(seconds, 440, rate) * 32_767).astype(np.int16)
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(audio[None], format="s16", layout="mono")
        frame.sample_rate = rate
        size = track.codec_context.frame_size or 1024
        fit = av.AudioResampler(format=track.format, layout="mono", rate=rate, frame_size=size)
        for part in [*fit.resample(frame), *fit.resample(None), None]:
            container.mux(track.encode(part))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_soundfile_does_not_know(tmp_path: Path, kind: str) -> None:
    path = encoded(tmp_path / f"a.{kind}", KINDS[kind])
    for audio in (read(path), read(path.read_bytes())):
        assert 1.9 < len(audio) / 16_000 < 2.2
        assert abs(pitch(audio) - 440) < 2


def test_without_pyav_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encoded(tmp_path / "a.m4a", "aac")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"a\.m4a is m4a, mp4 or mov audio.*salsa-dist\[codecs\]"):
        read(path)


@pytest.mark.parametrize("kind", ["m4a", "webm", "amr"])
def test_a_container_cut_off_is_named(tmp_path: Path, kind: str) -> None:
    path = encoded(tmp_path / f"a.{kind}", KINDS[kind], seconds=20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"a\.{kind} (can't be read as audio|is cut off)"):
        read(path)


def test_a_playlist_opens_nothing(tmp_path: Path) -> None:
    """FFmpeg would read the files and addresses that a playlist names."""
    secret = encoded(tmp_path / "a.aac", "aac")
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile {secret}\n"):
        assert container_of(text.encode()) is None
        with pytest.raises(UserError, match="can't be read as audio"):
            read(text.encode())
