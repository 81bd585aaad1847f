"""A web server on the loopback interface, with files in memory and misbehaving paths."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

Behaviour = Callable[["Handler"], None]


class Web:
    """Files by path, and behaviours by path; the requests that came."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.files: dict[str, bytes] = {}
        self.odd: dict[str, Behaviour] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []  # path with query, headers
        self.ranges = True
        self.over = threading.Event()  # what hangs, ends

    def count(self, path: str) -> int:
        return sum(asked.partition("?")[0] == path for asked, _ in self.asked)


class Handler(BaseHTTPRequestHandler):
    """Answers GET."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    web: Web

    def do_GET(self) -> None:
        self.web.asked.append((self.path, dict(self.headers)))
        path = unquote(self.path.partition("?")[0])
        if path in self.web.odd:
            self.web.odd[path](self)
        elif path in self.web.files:
            self.send_file(self.web.files[path])
        elif path.endswith("/"):
            inside = {
                name[len(path) :].partition("/") for name in self.web.files if name.startswith(path)
            }
            links = "".join(f'<a href="{name}{slash}">x</a>' for name, slash, _ in sorted(inside))
            self.answer(200 if links else 404, links.encode(), {"Content-Type": "text/html"})
        elif any(name.startswith(f"{path}/") for name in self.web.files):
            self.answer(301, b"", {"Location": f"{path}/"})
        else:
            self.answer(404)

    def send_file(self, data: bytes) -> None:
        headers = {"ETag": sha256(data).hexdigest(), "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not self.web.ranges:
            self.answer(200, data, headers)
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if start >= len(data):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        else:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            self.answer(206, data[start:end], headers)

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Length": str(len(data)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def status(*codes: int, then: bytes = b"", **headers: str) -> Behaviour:
    """These statuses one after another, then a file; the last again and again if there is none."""
    left = list(codes)

    def behave(handler: Handler) -> None:
        if left:
            code = left.pop(0) if then or len(left) > 1 else left[0]
            handler.answer(code, b"sorry", {k.replace("_", "-"): v for k, v in headers.items()})
        else:
            handler.send_file(then)

    return behave


def redirect(to: str) -> Behaviour:
    return lambda handler: handler.answer(302, b"", {"Location": to})


def cut(data: bytes, announced: int, times: int = 1000) -> Behaviour:
    """Less than is announced, and the connection closed; after some times the whole."""
    left = [times]

    def behave(handler: Handler) -> None:
        left[0] -= 1
        if left[0] < 0:
            handler.send_file(data)
            return
        handler.answer(200, data[: announced // 2], {"Content-Length": str(announced)})
        handler.close_connection = True

    return behave


def chunk_cut(handler: Handler) -> None:
    """A chunk that is shorter than it says, and the connection closed."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"400\r\nshort")
    handler.close_connection = True


def reset(handler: Handler) -> None:
    """No answer at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def hang(handler: Handler) -> None:
    """Silence, until the test is over."""
    handler.web.over.wait(60)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.web.over.wait(0.05):
        try:
            handler.wfile.write(b"x")
        except OSError:
            return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that is gone is part of the tests."""


@contextmanager
def web_server() -> Iterator[Web]:
    """Run a server."""
    handler = type("ThisHandler", (Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as server:
        handler.web = web = Web(server.server_address[1])  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield web
        finally:
            web.over.set()
            server.shutdown()
