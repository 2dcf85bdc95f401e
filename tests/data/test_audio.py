"""Decoding and resampling for shards: known tones come out as they went in, bad files are named."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

import salsa_dist
from salsa_dist.data.audio import Audio, BadAudio, channels, gsm, mono, resample, resampler
from salsa_dist.data.audio_input import read
from salsa_dist.errors import UserError


def tone(rate: int, seconds: float = 0.5, hz: float = 440) -> Audio:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_resampling_keeps_the_tone() -> None:
    changed = resample(tone(44_100), 44_100, 16_000)
    assert changed.dtype == np.float32
    assert len(changed) == 8_000
    np.testing.assert_allclose(changed[200:-200], tone(16_000)[200:-200], atol=0.01)
    assert resampler().startswith("soxr ")


def test_the_same_rate_changes_nothing() -> None:
    audio = tone(16_000)
    assert resample(audio, 16_000, 16_000) is audio


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_decoding_from_file_and_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, tone(16_000), 16_000)
    audio, rate = channels(path)
    again, _ = channels(path.read_bytes())
    assert rate == 16_000
    np.testing.assert_array_equal(audio, again)
    np.testing.assert_allclose(mono(audio)[500:-500], tone(16_000)[500:-500], atol=0.1)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(44_100), tone(44_100, hz=1000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    several, rate = channels(tmp_path / "a.wav")
    assert (several.shape[1], rate) == (2, 44_100)
    np.testing.assert_allclose(mono(several), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "can't be read"), (b"no audio", "can't be read"), ("empty", "no audio"), ("nan", "NaN")],
)
def test_bad_clips_are_named(tmp_path: Path, content: bytes | str | None, says: str) -> None:
    path = tmp_path / "bad.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        samples = np.full(5 if content == "nan" else 0, np.nan, np.float32)
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match=says) as caught:
        channels(path)
    assert str(path) in str(caught.value)


def test_bytes_are_called_by_the_name_given() -> None:
    with pytest.raises(UserError, match=r"clip 7"):
        channels(io.BytesIO(b"xx").getvalue(), name="clip 7")


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, np.inf), (-np.inf, 1.0), (np.nan, None), (0.0, np.nan), (0.0, 1e308)]
)
def test_a_part_without_finite_times_is_refused(
    tmp_path: Path, start: float, end: float | None
) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16_000), 16_000)
    with pytest.raises(UserError, match=r"a\.wav has no part from .*, which is not finite"):
        channels(tmp_path / "a.wav", start=start, end=end)


# Packages that decode, resample or write audio, and the modules that may import them.
CODECS = "soundfile|soxr|av|wave|torchcodec|torchaudio|librosa|audioread|scipy.io"
ALLOWED = {
    ("salsa_dist/data/audio.py", "soundfile"),
    ("salsa_dist/data/audio.py", "soxr"),
    ("salsa_dist/data/audio.py", "av"),
    ("salsa_dist/data/augment.py", "torchaudio"),  # masks: neither a file nor a rate
}


def test_gsm_frames_have_no_header(tmp_path: Path) -> None:
    path = tmp_path / "clip.gsm"
    soundfile.write(path, tone(8_000), 8_000, format="RAW", subtype="GSM610")
    assert path.stat().st_size == 25 * 33  # 25 frames of 20 ms
    audio, rate = gsm(path)
    assert (audio.shape, rate) == ((4_000,), 8_000)
    loudest = np.abs(np.fft.rfft(audio)).argmax() / 0.5
    assert abs(loudest - 440) < 4
    path.write_bytes(b"")
    for bad in (path, tmp_path / "none.gsm"):
        with pytest.raises(BadAudio, match=bad.name):
            gsm(bad)


def mp3(varying: bool, states_its_length: bool, rate: int = 16_000) -> bytes:
    """Twelve seconds; the first six are nearly silent, and take few bits where the rate varies."""
    out, loud = io.BytesIO(), np.random.default_rng(0).normal(0, 0.1, 12 * rate)
    loud[: 6 * rate] *= 1e-4
    mode = "VARIABLE" if varying else "CONSTANT"
    soundfile.write(out, loud, rate, format="MP3", bitrate_mode=mode, compression_level=0.2)
    raw = out.getvalue()
    if states_its_length:
        return raw
    at = raw.index(b"Xing" if varying else b"Info")  # in the first frame, which has no sound
    return raw[raw.index(raw[:2], at) :]


def tagged(raw: bytes, size: int = 300_000) -> bytes:
    """With a tag in front, as a picture of a cover takes it."""
    return b"ID3\3\0\0" + bytes(size >> n & 127 for n in (21, 14, 7, 0)) + bytes(size) + raw


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("tag", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_all_of_an_mp3_is_read_that_does_not_state_its_length(
    tmp_path: Path, varying: bool, tag: bool, rate: int
) -> None:
    raw = mp3(varying, states_its_length=False, rate=rate)
    raw = tagged(raw) if tag else raw
    (tmp_path / "a.mp3").write_bytes(raw)
    frames = 0.3  # of the codec itself, before and after
    for source in (raw, tmp_path / "a.mp3"):
        assert len(channels(source)[0]) / rate == pytest.approx(12, abs=frames)
        assert len(read(source)) / 16_000 == pytest.approx(12, abs=frames)
    part, _ = channels(raw, start=9, end=10)
    assert len(part) == rate
    assert part.std() == pytest.approx(0.1, rel=0.2)


def test_an_mp3_cut_off_is_named_where_it_states_its_length() -> None:
    whole = mp3(varying=True, states_its_length=True)
    assert len(channels(whole)[0]) == 12 * 16_000
    with pytest.raises(BadAudio, match=r"is cut off: it has \d+ of 192000 samples"):
        channels(whole[: len(whole) // 2])


def test_containers_are_named_with_what_to_do() -> None:
    with pytest.raises(BadAudio, match="is webm or mkv audio, which is not read here \\(make it FLAC"):
        channels(b"\x1aE\xdf\xa3 and so on")


def test_one_module_decodes_and_resamples() -> None:
    root = Path(salsa_dist.__file__).parents[1]
    imported = re.compile(rf"^\s*(?:import|from) ({CODECS})\b", re.MULTILINE)
    found = {
        (str(path.relative_to(root)), name)
        for path in [*root.glob("salsa_dist/**/*.py"), *root.glob("shards/*.py")]
        for name in imported.findall(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED
