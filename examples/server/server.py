"""Embeddings over HTTP, in the form of OpenAI's API: `python server.py BUNDLE`.

One process holds one encoder. Requests that arrive while the model is busy share its next call.
Every setting is a flag, or an environment variable: `--max-batch 64` or `MWA_MAX_BATCH=64`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import uvicorn
from batching import Batcher, Kind, QueueFullError, Row, Vector
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from inputs import ApiError, inputs_of, row_of
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException

import mwa_export

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server accepts, and how it batches."""

    host: str = "127.0.0.1"
    port: int = 8000
    runtime: str = "auto"
    precision: str = "auto"
    threads: int = 0  # of the model; 0: all cores
    max_batch: int = 32  # rows of a model call; 1: no batching
    max_wait_ms: float = 0.0  # how long a row waits for others while the model is idle
    max_queue: int = 512  # rows that wait; above it, requests get 503
    max_requests: int = 64  # requests at a time; above it, they get 503
    max_inputs: int = 128  # texts and images of one request
    max_body_mb: int = 16
    max_pixels: int = 40_000_000  # of one image

    def __post_init__(self) -> None:
        if not 1 <= self.max_inputs <= self.max_queue:
            raise ValueError("max_inputs must be at least 1 and at most max_queue")
        if min(self.max_batch, self.max_requests) < 1 or self.max_wait_ms < 0:
            raise ValueError("max_batch and max_requests must be at least 1, max_wait_ms 0")
        if not 0 <= self.port < 65536:
            raise ValueError("port must be between 0 and 65535")


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`. ``input`` is checked by hand, for clearer errors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None  # ignored


class Service:
    """An encoder behind a queue, with what its requests may cost."""

    def __init__(self, encoder: mwa_export.Encoder, settings: Settings) -> None:
        self.encoder, self.settings = encoder, settings
        self.name = Path(encoder.info.source).resolve().name
        self.started = int(time.time())
        self.statuses: Counter[int] = Counter()
        self._requests = 0
        self._decoding = ThreadPoolExecutor(os.cpu_count(), "decode")
        self.batcher = Batcher(
            self._run_model,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
        )

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count a request while it is handled, or refuse it."""
        if self._requests >= self.settings.max_requests:
            raise overloaded()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def answer(self, body: bytes) -> bytes:
        """The body of a request -> the body of its response."""
        loop = asyncio.get_running_loop()
        asked, rows = await loop.run_in_executor(self._decoding, self._prepare, body)
        try:
            vectors = await self.batcher.embed(rows)
        except QueueFullError:
            raise overloaded() from None
        return await loop.run_in_executor(self._decoding, self._write, asked, rows, vectors)

    def _prepare(self, body: bytes) -> tuple[EmbeddingRequest, list[Row]]:
        try:
            asked = EmbeddingRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            param = ".".join(map(str, first["loc"])) or None
            where = f"`{param}`" if param else "The body"
            raise ApiError(400, f"{where}: {first['msg']}.", param=param) from error
        if asked.model != self.name:
            message = f"Model {asked.model!r} does not exist here. Expected {self.name!r}."
            raise ApiError(404, message, param="model", code="model_not_found")
        if asked.dimensions not in (None, self.encoder.dim):
            message = f"Vectors of this model have {self.encoder.dim} dimensions and stay whole."
            raise ApiError(400, message, param="dimensions")
        items = inputs_of(asked.input, self.settings.max_inputs)
        rows = []
        for number, item in enumerate(items):
            rows.append(row_of(self.encoder, item, f"Input {number}", self.settings.max_pixels))
        return asked, rows

    def _run_model(self, kind: Kind, values: list[Any]) -> Any:
        if kind == "image":
            return self.encoder.backend.embed_images(np.stack(values))
        # embed_captions adds BOS and EOS again, and sorts by length.
        return self.encoder.embed_captions([ids[1:-1] for ids in values], batch=len(values))

    def _write(self, asked: EmbeddingRequest, rows: list[Row], vectors: list[Vector]) -> bytes:
        tokens = sum(len(row.value) for row in rows if row.kind == "text")  # images have none
        as_text = asked.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if as_text
                else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {
            "object": "list",
            "data": data,
            "model": self.name,
            "usage": usage,
            "truncated_inputs": [index for index, row in enumerate(rows) if row.truncated],
        }
        return json.dumps(body).encode()

    def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        lines = ["# TYPE mwa_requests_total counter"]
        lines += [f'mwa_requests_total{{status="{s}"}} {n}' for s, n in self.statuses.items()]
        for name, counter in (
            ("mwa_model_calls_total", self.batcher.calls),
            ("mwa_embedded_rows_total", self.batcher.rows),
        ):
            lines.append(f"# TYPE {name} counter")
            lines += [f'{name}{{kind="{kind}"}} {counter[kind]}' for kind in ("text", "image")]
        lines += ["# TYPE mwa_queue_rows gauge", f"mwa_queue_rows {self.batcher.waiting}", ""]
        return "\n".join(lines)

    async def close(self) -> None:
        """End the threads."""
        await self.batcher.close()
        self._decoding.shutdown(cancel_futures=True)


def overloaded() -> ApiError:
    """More is asked for than the queue holds."""
    return ApiError(503, "The server is overloaded. Try again later.", code="overloaded")


async def read_body(request: Request, most: int) -> bytes:
    """Read a body without holding more than ``most`` bytes of it."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise ApiError(413, f"The body is too large. Expected at most {most} bytes.")
    return bytes(body)


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """Wait for ``work``, and cancel it if the client closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body, all that comes is the end
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client closed the connection.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def create_app(encoder: mwa_export.Encoder, settings: Settings) -> FastAPI:
    """The application: routes, and errors in OpenAI's form."""
    service = Service(encoder, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.close()

    # FastAPI's pages of documentation load scripts from a CDN.
    app = FastAPI(title="mwa-export embeddings", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        with service.place():
            reading = read_body(request, settings.max_body_mb << 20)
            try:
                body = await asyncio.wait_for(reading, timeout=30)
            except asyncio.TimeoutError:
                raise ApiError(408, "The body did not arrive within 30 seconds.") from None
            answer = await unless_client_leaves(request, service.answer(body))
        service.statuses[200] += 1
        return Response(answer, media_type="application/json")

    @app.get("/v1/models")
    async def models() -> Any:
        model = {
            "id": service.name,
            "object": "model",
            "created": service.started,
            "owned_by": "mwa-export",
            "space_id": encoder.space_id,
        }
        return {"object": "list", "data": [model]}

    @app.get("/healthz")
    async def health() -> Response:
        running = service.batcher.running
        return JSONResponse({"status": "ok" if running else "stopped"}, 200 if running else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics())

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        service.statuses[error.status] += 1
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return await api_error(request, ApiError(error.status_code, f"{error.detail}."))

    @app.exception_handler(Exception)
    async def bug(request: Request, _: Exception) -> Response:  # uvicorn logs its traceback
        return await api_error(request, ApiError(500, "The server failed. Its log says why."))

    return app


def main() -> None:
    """Read the settings, open the bundle and serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", default=os.environ.get("MWA_BUNDLE"))
    for field in fields(Settings):
        default = os.environ.get(f"MWA_{field.name.upper()}", field.default)
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        parser.add_argument(flag, type=kind, default=default, help=f"default: {field.default}")
    given = vars(parser.parse_args())
    bundle = given.pop("bundle")
    if not bundle:
        parser.error("expected a bundle, as an argument or in MWA_BUNDLE")
    try:
        settings = Settings(**given)
    except ValueError as error:
        parser.error(f"{error}")
    options = mwa_export.RuntimeOptions(
        settings.runtime, settings.precision, threads=settings.threads or None
    )
    try:
        encoder = mwa_export.load(bundle, options)
    except mwa_export.MwaExportError as error:
        parser.exit(error.exit_status, f"error: {error}\n")
    print(f"{encoder.info.name}: http://{settings.host}:{settings.port}/v1", flush=True)
    app = create_app(encoder, settings)
    uvicorn.run(app, host=settings.host, port=settings.port, timeout_graceful_shutdown=30)


if __name__ == "__main__":
    main()
