"""examples/serve.py: nothing is lost, steered equals offline to the character, bad uploads are 4xx."""

import dataclasses
import importlib.util
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from salsa_dist import SteeringVectors, load_speech_llm, transcribe
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.transcription.recording import Recording, Result
from salsa_dist.transcription.transcriber import Transcriber

uvicorn = pytest.importorskip("uvicorn")
PLACE = Path(__file__).parents[1] / "examples" / "serve.py"
SPEC = importlib.util.spec_from_file_location("serve", PLACE)
assert SPEC is not None
assert SPEC.loader is not None
serve = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(serve)


NAMES = [f"a{i}" for i in range(9)]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> SpeechLLM:
    return load_speech_llm(tiny_base)


@pytest.fixture(scope="module")
def adapters(base: SpeechLLM) -> dict[str, SteeringVectors]:
    made = {}
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        own = {f"llm.{i}": 3 * torch.randn(32, generator=generator) for i in range(3)}
        own["encoder.1"] = torch.randn(32, generator=generator)
        made[name] = SteeringVectors(own, "add", name=name, language="bg")
    return made


@pytest.fixture(scope="module")
def url(base: SpeechLLM, adapters: dict[str, SteeringVectors]) -> Iterator[str]:
    scaled = [(name, s, a.scaled(s)) for name, a in adapters.items() for s in serve.SCALES]
    transcriber = Transcriber(base, [v for _, _, v in scaled], batch=8, max_new_tokens=8)
    rows = {(name, scale): row for row, (name, scale, _) in enumerate(scaled)}
    hosts = ["127.0.0.1"]
    app = serve.make_app(transcriber, rows, max_mb=0.5, max_seconds=5, upload_s=2, hosts=hosts)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def clip(seed: int, seconds: float = 0.6) -> bytes:
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(8_000 * seconds))
    soundfile.write(file, noise, 8_000, format="WAV")
    return file.getvalue()


def post(url: str, audio: bytes | None, headers: dict[str, str] | None = None, **fields: str) -> Any:
    """Status and body."""
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if audio is not None:
        head = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        parts.append(head + audio + b"\r\n")
    request = urllib.request.Request(
        f"{url}/v1/audio/transcriptions",
        b"".join(parts) + b"--XX--\r\n",
        {"Content-Type": "multipart/form-data; boundary=XX", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_200_requests_at_once(url: str, base: SpeechLLM, adapters: dict[str, SteeringVectors]) -> None:
    audio = [clip(seed) for seed in range(20)]
    ways: list[tuple[str, str | None, str]] = [("base", None, "1")]
    ways += [(f"base:{name}", name, scale) for name in NAMES for scale in ("1", "0.5")]
    asked = [(i % 20, *ways[i % 19]) for i in range(200)]

    def ask(one: tuple[int, str, str | None, str]) -> str:
        place, model, _, scale = one
        status, body = post(url, audio[place], model=model, scale=scale, language="bg")
        assert status == 200, body
        return str(json.loads(body)["text"])

    with ThreadPoolExecutor(50) as clients:
        texts = list(clients.map(ask, asked))
    once = dict.fromkeys(asked)
    vectors = [name and adapters[name].scaled(float(scale)) for _, _, name, scale in once]
    offline = transcribe(base, [audio[one[0]] for one in once], "bg", vectors, max_new_tokens=8)
    wanted = dict(zip(once, offline, strict=True))
    assert texts == [wanted[one] for one in asked]
    assert len(set(offline)) > 8


@pytest.mark.parametrize(
    ("fields", "audio", "status", "says"),
    [
        ({"model": "base"}, b"no audio at all", 400, "a.wav can't be read as audio"),
        ({"model": "base"}, None, 400, "no file"),
        ({"model": "base:xx"}, clip(0), 404, "no model 'base:xx'"),
        ({"model": "base:a0", "scale": "9"}, clip(0), 400, "0 to 2"),
        ({"language": "not a code"}, clip(0), 400, "no language code"),
        ({"response_format": "docx"}, clip(0), 400, "response_format"),
        ({}, bytes(600_000), 413, "larger than 0.5 MB"),
        ({}, clip(0, 6), 413, "longer than 5 s"),
        ({}, clip(0, 0), 400, "a.wav"),
    ],
)
def test_bad_requests(
    url: str, fields: dict[str, str], audio: bytes | None, status: int, says: str
) -> None:
    got, body = post(url, audio, **fields)
    assert got == status, body
    assert says in json.loads(body)["error"]["message"]


def test_two_adapters_of_one_name_and_a_start_that_fails(
    adapters: dict[str, SteeringVectors],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = (str(adapters[name].save(tmp_path / "a0" / name)) for name in ("a0", "a1"))
    same = str(dataclasses.replace(adapters["a1"], name="a0").save(tmp_path / "same"))
    assert list(serve.named([one, other])) == ["a0", "a1"]
    assert list(serve.named([one, f"new={same}"])) == ["a0", "new"]
    monkeypatch.setattr("sys.argv", ["serve.py", "no-base", "--adapter", one, "--adapter", same])
    with pytest.raises(SystemExit, match="2"):
        serve.main()
    said = capsys.readouterr().err
    assert said == f"serve: two adapters are called 'a0': name one by --adapter NAME={same}\n"


def test_what_waits_is_bounded_and_senders_may_go(
    base: SpeechLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go = threading.Event(), threading.Event()
    done: list[str] = []

    class Slow(Transcriber):
        def run(self, recordings: Iterable[Recording], *_: Any) -> Iterator[Result]:
            entered.set()
            assert go.wait(60)
            for recording in recordings:
                done.append(recording.name)
                yield Result(recording, "bg", None, 1.0, [])

    monkeypatch.setattr(serve, "MOST_WAITING_S", 3.0)
    batches = serve.Batches(Slow(base))
    asked = [batches.ask(Recording("0", b"", "bg"), 1.0)]
    assert entered.wait(60)  # it is being computed, the others wait
    asked += [batches.ask(Recording(name, b"", "bg"), 1.0) for name in "12"]
    with pytest.raises(serve.HTTPException) as refused:
        batches.ask(Recording("3", b"", "bg"), 1.0)
    assert refused.value.status_code == 503
    assert asked[1].cancel()
    go.set()
    assert asked[2].result(60).name == "2"
    batches.ask(Recording("4", b"", "bg"), 3.0).result(60)
    batches.close()
    assert done == ["0", "2", "4"]


def test_another_host_name_is_refused(url: str) -> None:
    assert post(url, clip(0), {"Host": "evil.example"})[0] == 400


def test_an_upload_that_never_ends_is_given_up(url: str) -> None:
    import socket

    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n"
            b"Content-Type: multipart/form-data; boundary=XX\r\n\r\n--XX\r\n"
        )
        assert b" 408 " in client.recv(4_096).split(b"\r\n")[0]


def test_formats_models_and_page(url: str) -> None:
    _, srt = post(url, clip(1, 3), response_format="srt", language="bg")
    assert srt == "" or "00:00:00,000 --> " in srt
    _, verbose = post(url, clip(1, 3), response_format="verbose_json", language="bg")
    assert json.loads(verbose)["duration"] == 3
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
        assert [m["id"] for m in json.load(answer)["data"]] == [
            "base",
            *(f"base:{name}" for name in NAMES),
        ]
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert b"Zero-shot beside steered" in answer.read()
