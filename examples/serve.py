"""A steered base behind a plain HTTP endpoint that speaks OpenAI's /v1/audio/transcriptions.

    pip install 'salsa-dist[serve,codecs]'
    python examples/serve.py BASE --adapter runs/demo/adapters/bg --adapter runs/demo/adapters/el

    curl http://127.0.0.1:8000/v1/audio/transcriptions -F file=@clip.ogg -F model=base:bg -F language=bg

`model` is `base`, or `base:ADAPTER` to steer; `scale` (0 to 2 in quarters) is how much. Requests that
wait at the same time are one pass of the base, each with its own adapter. The page at / shows the same
clip zero-shot and steered. It listens on this machine alone unless --host says otherwise, and knows no
users.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from salsa_dist import SteeringVectors, UserError, load_speech_llm
from salsa_dist.data import audio_input
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.run.memory import IN_LOADING, full_memory_in_one_line
from salsa_dist.transcription.output import written
from salsa_dist.transcription.recording import Recording, Result
from salsa_dist.transcription.transcriber import Transcriber

SCALES = [quarter / 4 for quarter in range(1, 9)]
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
MOST_AT_ONCE = 64  # requests that one run of the base takes
MOST_WAITING_S = 3600.0  # seconds of audio; more is told to come back
LOOPBACK = ["127.0.0.1", "localhost"]


class Batches:
    """One thread that has the base, and takes the requests that wait as one run of it."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber
        self._waiting: SimpleQueue[tuple[Recording, Future[Result]] | None] = SimpleQueue()
        self._seconds, self._lock = 0.0, threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, recording: Recording, seconds: float) -> Future[Result]:
        """The result of a recording, when it is there."""
        with self._lock:
            if self._seconds + seconds > MOST_WAITING_S:
                raise HTTPException(503, "too much audio waits: try again later", {"Retry-After": "30"})
            self._seconds += seconds
        answer: Future[Result] = Future()
        answer.add_done_callback(lambda _: self._answered(seconds))
        self._waiting.put((recording, answer))
        return answer

    def close(self) -> None:
        """End the thread after what waits."""
        self._waiting.put(None)
        self._thread.join()

    def _answered(self, seconds: float) -> None:
        with self._lock:
            self._seconds -= seconds

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            asked = [first]
            while len(asked) < MOST_AT_ONCE:
                try:
                    following = self._waiting.get_nowait()
                except Empty:
                    break
                if following is None:
                    self._waiting.put(None)
                    break
                asked.append(following)
            # A request whose sender is gone is not computed.
            asked = [one for one in asked if one[1].set_running_or_notify_cancel()]
            answers = iter(answer for _, answer in asked)
            try:
                for result in self._transcriber.run(recording for recording, _ in asked):
                    next(answers).set_result(result)
            except Exception as e:  # a defect of ours: every request gets its answer all the same
                for answer in answers:
                    answer.set_exception(e)


def make_app(
    transcriber: Transcriber,
    rows: Mapping[tuple[str, float], int],
    *,
    max_mb: float = 25,
    max_seconds: float = 900,
    upload_s: float = 60,
    hosts: list[str] | None = None,
) -> Starlette:
    """The application.

    Args:
        transcriber: the base and its adapters.
        rows: the row of each adapter at each scale.
        max_mb, max_seconds: the largest upload and the longest recording that are taken.
        upload_s: seconds that an upload may take.
        hosts: names that it may be called by; None: any.
    """
    names = sorted({name for name, _ in rows})
    models = ["base", *(f"base:{name}" for name in names)]

    async def transcriptions(request: Request) -> Response:
        try:
            form = await asyncio.wait_for(_limited(request, int(max_mb * 1e6)).form(), upload_s)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the upload took more than {upload_s:g} s") from None
        upload = form.get("file")
        if upload is None or isinstance(upload, str):
            raise HTTPException(400, "no file: send the recording as the form's field 'file'")
        fields = {k: v for k, v in form.items() if isinstance(v, str)}
        row = _row(fields.get("model", "base"), fields.get("scale", "1"))
        style = fields.get("response_format", "json")
        if style not in FORMATS:
            raise HTTPException(400, f"response_format {style!r}: choose one of {', '.join(FORMATS)}")
        language = fields.get("language") or "auto"
        try:
            name = Path(upload.filename or "recording").name
            audio = await asyncio.to_thread(_decoded, upload.file, name, max_seconds)
            if language != "auto":
                transcriber.base.family.prompt(language)
            recording = Recording(name, audio, language, row)
        except UserError as e:
            raise HTTPException(400, str(e)) from None
        result = await asyncio.wrap_future(batches.ask(recording, len(audio) / SAMPLE_RATE))
        if result.error is not None:
            raise HTTPException(400, result.error)
        return _answer(result, style)

    def _row(model: str, scale: str) -> int:
        adapter = model.partition(":")[2]
        try:
            amount = float(scale)
        except ValueError:
            amount = -1.0
        if amount not in (0, *SCALES):
            raise HTTPException(400, f"scale {scale!r}: give 0 to 2 in quarters")
        if model not in models:
            raise HTTPException(404, f"no model {model!r}; there are {', '.join(models)}")
        return rows[adapter, amount] if adapter and amount else -1

    async def listed(request: Request) -> Response:
        data = [{"id": model, "object": "model", "owned_by": "salsa-dist"} for model in models]
        return JSONResponse({"object": "list", "data": data})

    async def page(request: Request) -> Response:
        return FileResponse(Path(__file__).with_name("serve.html"))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body = {"error": {"message": error.detail, "type": "invalid_request_error"}}
        return JSONResponse(body, error.status_code, headers=error.headers)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batches.close)

    batches = Batches(transcriber)
    return Starlette(
        routes=[
            Route("/", page),
            Route("/v1/models", listed),
            Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
        ],
        # A page of another site must not reach it under a name of its own.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"])],
        exception_handlers={HTTPException: refused},
        lifespan=life,
    )


def _limited(request: Request, most: int) -> Request:
    """The request, refused where its body is larger than `most` bytes.

    What comes after them is read and thrown away: many clients look for an answer only once they have
    sent everything.
    """
    got = 0

    async def receive() -> Any:
        nonlocal got
        message = await request.receive()
        got += len(message.get("body", b""))
        if got > most:
            while message.get("more_body"):
                message = await request.receive()
            raise HTTPException(413, f"the upload is larger than {most / 1e6:g} MB")
        return message

    return Request(request.scope, receive)


def _decoded(file: Any, name: str, max_seconds: float) -> np.ndarray:
    blocks, seconds = [], 0.0
    for block in audio_input.blocks(file, name):
        blocks.append(block)
        seconds += len(block) / SAMPLE_RATE
        if seconds > max_seconds:
            raise HTTPException(413, f"{name} is longer than {max_seconds:g} s")
    if not seconds:
        raise HTTPException(400, f"{name} holds no sound")
    return np.concatenate(blocks)


def _answer(result: Result, style: str) -> Response:
    if style == "json":
        return JSONResponse({"text": result.text})
    if style == "verbose_json":
        segments = [
            {"id": i, "start": s.start, "end": s.end, "text": s.text}
            for i, s in enumerate(result.segments)
        ]
        about = {"task": "transcribe", "language": result.language, "duration": result.seconds}
        return JSONResponse({**about, "text": result.text, "segments": segments})
    return PlainTextResponse(result.text + "\n" if style == "text" else written(result, style))


def named(adapters: Sequence[str]) -> dict[str, SteeringVectors]:
    """Adapters by the name before `=`, or else their own. Raises: UserError: two have one name."""
    found: dict[str, SteeringVectors] = {}
    for text in adapters:
        called, _, path = ("", "", text) if os.path.exists(text) else text.rpartition("=")
        one = SteeringVectors.load(path)
        if (name := called or one.name) in found:
            raise UserError(f"two adapters are called {name!r}: name one by --adapter NAME={path}")
        found[name] = one
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base", help="folder or hub name")
    parser.add_argument(
        "--adapter", action="append", default=[], help="folder or hub name, or NAME=FOLDER; repeatable"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--dtype", help="default: the base's own on a GPU, else float32")
    parser.add_argument("--quantization", help="int8, bnb8 or nf4; default: none")
    parser.add_argument("--max-mb", type=float, default=25)
    parser.add_argument("--max-seconds", type=float, default=900)
    options = parser.parse_args()
    try:
        adapters = named(options.adapter)
        scaled = [
            (name, scale, one.scaled(scale)) for name, one in adapters.items() for scale in SCALES
        ]
        with full_memory_in_one_line(lambda: f"loading base {options.base}", IN_LOADING):
            base = load_speech_llm(
                options.base,
                device=options.device,
                dtype=options.dtype,
                quantization=options.quantization,
            )
        transcriber = Transcriber(base, [vectors for *_, vectors in scaled], batch=options.batch)
    except UserError as e:
        print(f"serve: {e}", file=sys.stderr)
        sys.exit(2)
    rows = {(name, scale): row for row, (name, scale, _) in enumerate(scaled)}
    limits = {"max_mb": options.max_mb, "max_seconds": options.max_seconds}
    app = make_app(transcriber, rows, **limits, hosts=LOOPBACK if options.host in LOOPBACK else None)
    uvicorn.run(app, host=options.host, port=options.port, limit_concurrency=1024)


if __name__ == "__main__":
    main()
