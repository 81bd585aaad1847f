"""examples/server behind uvicorn, called by the `openai` client and by raw requests."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from paths import ROOT
from PIL import Image

from mwa_export.encoder.encoder import Encoder

openai = pytest.importorskip("openai", reason="the openai client is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
server = pytest.importorskip("server", reason="fastapi is not installed")

TEXTS = ["abcd efgh", "ijkl", "mnop abcd efgh ijkl", "abcd efgh"]


def get(url: str) -> requests.Response:
    return requests.get(url, timeout=60)


class Running:
    """A server that runs in this process."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, body: Any, **more: Any) -> requests.Response:
        """Send a body as it is, or an object as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return requests.post(f"{self.url}/v1/embeddings", data, timeout=60, **more)

    def refused(self, value: Any, status: int = 400, **more: Any) -> str:
        """The message of a request that must fail, in OpenAI's form."""
        answer = self.post({"model": "bundle", "input": value, **more})
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["message"])

    def metric(self, name: str) -> float:
        """The sum of a metric's values, or the one that has the given label."""
        text = get(f"{self.url}/metrics").text
        found = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (.+)$", text, re.M)
        return sum(map(float, found))

    def wait_for(self, name: str, value: float) -> None:
        """Return when a metric has a value."""
        deadline = time.monotonic() + 30
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}"
            time.sleep(0.01)


@contextmanager
def running(encoder: Encoder, **settings: Any) -> Iterator[Running]:
    """Start a server on a free port of the loopback, and stop it."""
    app = server.create_app(encoder, server.Settings(**settings))
    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)
    worker = uvicorn.Server(config)
    thread = threading.Thread(target=worker.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        while not worker.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(sock.getsockname()[1])
    finally:
        worker.should_exit = True
        thread.join(timeout=30)
        sock.close()
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def encoder(sides: tuple[Encoder, Encoder]) -> Encoder:
    return sides[1]


@pytest.fixture(scope="module")
def service(encoder: Encoder) -> Iterator[Running]:
    with running(encoder) as started:
        yield started


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Texts are embedded only when this is set."""
    opened, embed = threading.Event(), Encoder.embed_captions

    def wait(self: Encoder, *arguments: Any, **more: Any) -> Any:
        assert opened.wait(timeout=20)
        return embed(self, *arguments, **more)

    monkeypatch.setattr(Encoder, "embed_captions", wait)
    yield opened
    opened.set()


def image_bytes(form: str = "PNG", size: tuple[int, int] = (48, 40), seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("form", ["float", "base64"])
def test_client_gets_the_vectors_of_the_encoder(
    service: Running, encoder: Encoder, form: str
) -> None:
    expected = encoder.embed_texts(TEXTS)
    answer = service.client.embeddings.create(model="bundle", input=TEXTS, encoding_format=form)
    vectors = [item.embedding for item in answer.data]
    if form == "base64":
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    np.testing.assert_allclose(np.array(vectors), expected, atol=1e-5)
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    tokens = sum(len(ids) for ids in encoder.encode(TEXTS))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens


def test_a_single_text_is_one_vector(service: Running, encoder: Encoder) -> None:
    answer = service.client.embeddings.create(model="bundle", input=TEXTS[0])
    expected = encoder.embed_texts(TEXTS[:1])
    np.testing.assert_allclose([answer.data[0].embedding], expected, atol=1e-5)


def test_images_are_data_urls_or_bare_base64_and_mix_with_texts(
    service: Running, encoder: Encoder
) -> None:
    png, jpeg = image_bytes("PNG"), image_bytes("JPEG", seed=1)
    inputs: list[Any] = [
        {"image": f"data:image/png;base64,{encoded(png)}"},
        TEXTS[0],
        {"image": encoded(jpeg)},
    ]
    answer = service.client.embeddings.create(model="bundle", input=inputs)
    images, texts = encoder.embed_images([png, jpeg]), encoder.embed_texts(TEXTS[:1])
    expected = [images[0], texts[0], images[1]]
    np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-5)
    assert answer.usage.prompt_tokens == len(encoder.encode(TEXTS[:1])[0])  # images have no tokens


def test_texts_that_were_cut_are_named(service: Running, encoder: Encoder) -> None:
    long = "abcd " * encoder.max_length
    answer = service.post({"model": "bundle", "input": ["abcd", long]}).json()
    assert answer["truncated_inputs"] == [1]
    assert answer["usage"]["prompt_tokens"] == len(encoder.encode(["abcd"])[0]) + encoder.max_length


def test_model_and_health_are_listed(service: Running, encoder: Encoder) -> None:
    model = service.client.models.list().data[0]
    assert model.id == "bundle"
    assert model.space_id == encoder.space_id
    assert get(f"{service.url}/healthz").json() == {"status": "ok"}


def test_requests_that_arrive_while_the_model_is_busy_share_the_next_call(
    encoder: Encoder, gate: threading.Event
) -> None:
    texts = [f"abcd {'efgh ' * (number % 5)}{number}" for number in range(32)]
    with running(encoder, max_wait_ms=0) as started, ThreadPoolExecutor(32) as pool:

        def ask(text: str) -> Any:
            return started.client.embeddings.create(model="bundle", input=text).data[0].embedding

        first = pool.submit(ask, texts[0])
        started.wait_for("mwa_model_calls_total", 1)
        others = [pool.submit(ask, text) for text in texts[1:]]
        started.wait_for("mwa_queue_rows", 31)
        gate.set()
        vectors = [answer.result() for answer in (first, *others)]
        assert started.metric("mwa_model_calls_total") == 2
        assert started.metric("mwa_embedded_rows_total") == 32
    np.testing.assert_allclose(vectors, encoder.embed_texts(texts), atol=1e-5)


def test_a_request_waits_for_others_and_a_full_batch_does_not(encoder: Encoder) -> None:
    body = {"model": "bundle", "input": TEXTS[:2]}
    with (
        running(encoder, max_wait_ms=600_000, max_batch=4) as started,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(started.post, body)
        started.wait_for("mwa_queue_rows", 2)
        assert started.post(body).status_code == first.result().status_code == 200
        assert started.metric("mwa_model_calls_total") == 1


def test_a_batch_is_never_larger_than_the_setting(encoder: Encoder) -> None:
    with running(encoder, max_batch=3) as started:
        started.client.embeddings.create(model="bundle", input=TEXTS * 2)
        assert started.metric("mwa_model_calls_total") == 3  # of 8 rows


@pytest.mark.parametrize("limit", [{"max_queue": 4, "max_inputs": 4}, {"max_requests": 2}])
def test_overload_is_refused_at_once(
    encoder: Encoder, gate: threading.Event, limit: dict[str, int]
) -> None:
    with running(encoder, max_wait_ms=0, **limit) as started, ThreadPoolExecutor() as pool:
        first = pool.submit(started.post, {"model": "bundle", "input": "abcd"})
        started.wait_for("mwa_model_calls_total", 1)
        second = pool.submit(started.post, {"model": "bundle", "input": TEXTS})
        started.wait_for("mwa_queue_rows", 4)
        busy = started.post({"model": "bundle", "input": "abcd"})
        assert busy.status_code == 503
        assert busy.headers["retry-after"] == "1"
        assert busy.json()["error"]["code"] == "overloaded"
        gate.set()
        assert first.result().status_code == second.result().status_code == 200
        assert started.post({"model": "bundle", "input": "abcd"}).status_code == 200


def test_rows_of_a_client_that_left_are_not_embedded(encoder: Encoder) -> None:
    with running(encoder, max_wait_ms=60_000) as started:
        impatient = started.client.with_options(timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            impatient.embeddings.create(model="bundle", input="abcd efgh")
        started.wait_for('mwa_requests_total{status="499"}', 1)
        assert started.metric("mwa_queue_rows") == 0
        assert started.metric("mwa_model_calls_total") == 0


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ([], "empty"),
        ("  ", "blank"),
        (["abcd", ""], "Input 1 is a blank text"),
        ([1, 2, 3], "Token arrays"),
        ([[1, 2], [3]], "Token arrays"),
        (7, "Token arrays"),
        (None, "neither a text"),
        ([None], "neither a text"),
        ({"image": 3}, "neither a text"),
        ({"image": "", "text": "abcd"}, "neither a text"),
        ("a" * 100_001, "characters"),
        (["abcd"] * 129, "at most 128"),
        ("data:image/png;base64,AAAA", "image in a text"),
        ({"image": "https://example.org/a.jpg"}, "does not fetch URLs"),
        ({"image": "file:///etc/passwd"}, "does not fetch URLs"),
        ({"image": "data:text/plain;base64,AAAA"}, "does not begin with"),
        ({"image": "data:image/png,AAAA"}, "does not begin with"),
        ({"image": "%%%%"}, "not valid base64"),
        ({"image": "AAA"}, "not valid base64"),
        ({"image": "é"}, "not valid base64"),
        ({"image": ""}, "Input 0 is not a JPEG"),
        ({"image": encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n")}, "Input 0 is not a JPEG"),
        ({"image": encoded(image_bytes("TIFF"))}, "Input 0 is not a JPEG"),
        ({"image": encoded(image_bytes("JPEG")[:-200])}, "Input 0: cannot be decoded"),
        ({"image": encoded(image_bytes("PNG")[:-3000])}, "Input 0: cannot be decoded"),
    ],
)
def test_input_that_cannot_be_embedded_is_refused(service: Running, value: Any, part: str) -> None:
    assert part in service.refused(value)


@pytest.mark.parametrize(
    ("size", "said"), [((9_000, 5_000), "9000 x 5000"), ((20_000, 20_000), "is too large")]
)
def test_too_many_pixels_are_refused_before_they_are_decoded(
    service: Running, size: tuple[int, int], said: str
) -> None:
    bomb = io.BytesIO()
    Image.new("1", size).save(bomb, "PNG")
    assert said in service.refused({"image": encoded(bomb.getvalue())})


def test_pages_that_would_load_scripts_from_elsewhere_are_not_served(service: Running) -> None:
    assert {get(f"{service.url}{page}").status_code for page in ("/docs", "/redoc")} == {404}


def test_other_options_than_those_that_hold_are_refused(service: Running, encoder: Encoder) -> None:
    wrong = service.post({"model": "gpt", "input": "abcd"})
    assert wrong.status_code == 404
    assert wrong.json()["error"]["code"] == "model_not_found"
    assert "dimensions" in service.refused("abcd", dimensions=encoder.dim - 1)
    assert "truncate" in service.refused("abcd", truncate="end")
    assert "encoding_format" in service.refused("abcd", encoding_format="hex")
    body = {"model": "bundle", "input": "abcd", "dimensions": encoder.dim, "user": "someone"}
    assert service.post(body).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": "bundle", "input": "\\ud800"}']
)
def test_a_body_that_is_not_a_request_is_refused(service: Running, body: bytes) -> None:
    answer = service.post(body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_huge_body_is_refused_without_being_kept(encoder: Encoder) -> None:
    with running(encoder, max_body_mb=1) as started:
        huge = {"model": "bundle", "input": {"image": "A" * (2 << 20)}}
        answer = started.post(huge)
        assert answer.status_code == 413
        assert "error" in answer.json()
        assert started.post({"model": "bundle", "input": "abcd"}).status_code == 200


def test_unknown_paths_and_failures_have_openais_form(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(encoder) as started:
        assert get(f"{started.url}/v1/chat").json()["error"]["message"]
        assert get(f"{started.url}/v1/embeddings").status_code == 405

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("the model broke")

        monkeypatch.setattr(Encoder, "embed_captions", fail)
        broken = started.post({"model": "bundle", "input": "abcd"})
        assert broken.status_code == 500
        assert broken.json()["error"]["type"] == "server_error"
        assert "broke" not in broken.text
        monkeypatch.undo()
        assert started.post({"model": "bundle", "input": "abcd"}).status_code == 200


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="max_queue"):
        server.Settings(max_queue=4, max_inputs=5)
    with pytest.raises(ValueError, match="max_batch"):
        server.Settings(max_batch=0)
    with pytest.raises(ValueError, match="port"):
        server.Settings(port=99_999)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.mark.slow
def test_the_command_answers_what_it_has_accepted_before_it_ends(files: Path) -> None:
    """SIGTERM comes while a request waits for others to share its model call."""
    port = free_port()
    command = [sys.executable, str(ROOT / "examples" / "server" / "server.py")]
    settings = {"MWA_MAX_WAIT_MS": "3000", "MWA_MAX_BATCH": "8", "MWA_RUNTIME": "onnxruntime"}
    process = subprocess.Popen(
        [*command, str(files / "bundle"), "--port", str(port)],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = Running(port)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert get(f"{started.url}/healthz").status_code == 200
                break
            except requests.ConnectionError:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(started.post, {"model": "bundle", "input": "abcd"})
            started.wait_for("mwa_queue_rows", 1)
            process.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 200
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.communicate()[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_command_says_what_is_wrong_with_its_settings(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "server" / "server.py")]
    for words, part in (
        ([], "MWA_BUNDLE"),
        ([tmp_path / "nowhere"], "error:"),
        (["bundle", "--port", "x"], "--port"),
        (["bundle", "--max-batch", "0"], "max_batch"),
    ):
        done = subprocess.run(
            [*command, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert part in done.stderr
        assert "Traceback" not in done.stderr
