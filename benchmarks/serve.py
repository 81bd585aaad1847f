"""Measure requests per second of examples/server, with and without micro-batching.

Three servers hold the same bundle: one runs every row separately, one batches the rows that arrive
while the model is busy, and one also waits 5 ms for more. In each round, the clients call one
server after the other, while the others are idle. Quote the ratios: absolute rates depend on the
machine and its load, and the clients share its cores.

    python benchmarks/serve.py                       # the demo model
    python benchmarks/serve.py --bundle bundle --clients 1 8 32

Results go to --out as JSON; the last line of the output is its path.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import command_line, cpu_name

import mwa_export
from mwa_export.cpu import cores
from mwa_export.demo.run import assets
from mwa_export.demo.scenes import picture_from_seed

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "examples" / "server" / "server.py"
SETTINGS = {
    "single": ("--max-batch", "1", "--max-wait-ms", "0"),
    "batched": ("--max-batch", "32", "--max-wait-ms", "0"),
    "waiting": ("--max-batch", "32", "--max-wait-ms", "5"),
}
KINDS = ("text", "image")


class Server:
    """A running server."""

    def __init__(self, port: int, model: str) -> None:
        self.port, self.model = port, model

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def calls(self) -> int:
        """Return the number of model calls so far."""
        text = self.get("/metrics")
        return sum(map(int, re.findall(r"^mwa_model_calls_total\S* (\d+)$", text, re.M)))

    def ask(self, inputs: list[Any], clients: int, seconds: float) -> dict[str, float]:
        """Let clients, each with its own connection, send one input per request for ``seconds``."""
        bodies = [json.dumps({"model": self.model, "input": item}) for item in inputs]
        waits: list[list[float]] = [[] for _ in range(clients)]
        start = time.perf_counter()

        def client(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            turn = number
            while (began := time.perf_counter()) < start + seconds:
                connection.request("POST", "/v1/embeddings", bodies[turn % len(bodies)])
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200, answer.status
                waits[number].append(time.perf_counter() - began)
                turn += clients
            connection.close()

        before = self.calls()
        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.perf_counter() - start
        every = sorted(wait for each in waits for wait in each)
        return {
            "requests_per_second": len(every) / taken,
            "median_ms": 1000 * statistics.median(every),
            "p95_ms": 1000 * every[int(0.95 * (len(every) - 1))],
            "rows_per_call": len(every) / (self.calls() - before),
        }


@contextmanager
def serving(bundle: Path, settings: tuple[str, ...]) -> Iterator[Server]:
    """Start a server on a free port, and stop it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    command = [sys.executable, str(SERVER), str(bundle), "--port", str(port), *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(port, bundle.resolve().name)
    try:
        for _ in range(600):
            try:
                server.get("/healthz")
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait()


def measure(options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    """Run all rounds. Servers take turns in each, in alternating order."""
    drawn = [picture_from_seed("target", 7, index) for index in range(64)]
    inputs: dict[str, list[Any]] = {
        "text": [caption for picture in drawn for caption in picture.captions],
        "image": [{"image": base64.b64encode(picture.jpeg).decode()} for picture in drawn],
    }
    rounds: list[dict[str, Any]] = []
    with ExitStack() as stack:
        servers = {n: stack.enter_context(serving(bundle, SETTINGS[n])) for n in SETTINGS}
        for server in servers.values():  # warm up
            for kind in KINDS:
                server.ask(inputs[kind], max(options.clients), 1)
        for number in range(options.rounds):
            for clients in options.clients:
                for kind in KINDS:
                    names = list(servers) if number % 2 else list(servers)[::-1]
                    figures = {
                        name: servers[name].ask(inputs[kind], clients, options.seconds)
                        for name in names
                    }
                    rounds.append({"clients": clients, "kind": kind, **figures})
                    rates = {n: round(each["requests_per_second"]) for n, each in figures.items()}
                    print(clients, kind, rates)
    return {"summary": summary(rounds), "rounds": rounds}


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute medians over the rounds, of figures and of the ratios within rounds."""
    lines = []
    for clients, kind in dict.fromkeys((each["clients"], each["kind"]) for each in rounds):
        chosen = [e for e in rounds if (e["clients"], e["kind"]) == (clients, kind)]
        ratios = {
            name: [
                e[name]["requests_per_second"] / e["single"]["requests_per_second"] for e in chosen
            ]
            for name in SETTINGS
            if name != "single"
        }
        lines.append(
            {
                "clients": clients,
                "kind": kind,
                "over_single": {
                    name: {
                        "median": round(statistics.median(each), 3),
                        "lowest": round(min(each), 3),
                        "highest": round(max(each), 3),
                    }
                    for name, each in ratios.items()
                },
                **{
                    name: {
                        key: round(statistics.median(e[name][key] for e in chosen), 2)
                        for key in chosen[0][name]
                    }
                    for name in SETTINGS
                },
            }
        )
    return lines


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: export the demo model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=4, help="duration of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serve.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bundle = options.bundle
        if bundle is None:
            checkpoint, tokenizer = assets()
            bundle = Path(name) / "demo"
            mwa_export.export(checkpoint, bundle, mwa_export.ExportOptions(tokenizer=tokenizer))
        encoder = mwa_export.load(bundle)
        names = ("fastapi", "uvicorn", "numpy", "onnxruntime", "openvino")
        results = {
            "machine": {
                "cpu": cpu_name(),
                "cores": cores(),
                "versions": {each: version(each) for each in names},
                "command": command_line(),
            },
            "model": encoder.info.name,
            "settings": {each: " ".join(words) for each, words in SETTINGS.items()},
            **measure(options, bundle),
        }
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for line in results["summary"]:
        print(
            line["clients"], line["kind"], {n: r["median"] for n, r in line["over_single"].items()}
        )
    print(options.out)


if __name__ == "__main__":
    main()
