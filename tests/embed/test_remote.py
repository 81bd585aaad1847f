"""Full runs on remote rows: failures are rows, stops take effect, credentials do not leak."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import web as odd
from commands import files_below, run
from embed_samples import ONNX, embed, errors, png, vectors_of
from web import Web

from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.search.run import Query, search
from mwa_export.vectors.output import WORK
from mwa_export.vectors.verify import verify

SECRETS = b"pa55word", b"cr3dential", b"X-Amz", b"user"


@pytest.fixture(scope="module")
def bundle(files: Path) -> Path:
    return files / "bundle"


def signed(web: Web, signature: str, names: list[str]) -> bytes:
    root = web.url.replace("//", "//user:pa55word@")
    query = f"X-Amz-Credential=cr3dential&X-Amz-Signature={signature}"
    return "\n".join(f"{root}/{name}?{query}" for name in names).encode()


def test_rows_that_fail_do_not_end_the_run_and_say_why(
    web: Web, bundle: Path, tmp_path: Path
) -> None:
    web.files |= {"/a.png": png(0), "/page": b"<html>"}
    web.odd |= {
        "/403": odd.status(403),
        "/500": odd.status(500),
        "/cut": odd.cut(png(1), 999),
        "/loop": odd.redirect("/loop"),
        "/hang": odd.hang,
    }
    names = ["a.png", "page", "403", "404", "500", "cut", "loop", "hang"]
    urls = [*(f"{web.url}/{name}" for name in names), "http://[", "memory://a.png"]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    options = SourceOptions(timeout=0.2, retries=1)
    embed(bundle, [open_source("image", str(tmp_path / "list.txt"), options)], tmp_path / "out")
    assert vectors_of(tmp_path / "out", "images")[0] == [f"{web.url}/a.png"]
    assert [error["code"] for error in errors(tmp_path / "out")] == [
        "not-a-picture",
        "forbidden",
        "missing",
        "unreachable",
        "truncated",
        "unreachable",
        "timeout",
        "malformed",
        "not-allowed",
    ]


def test_no_credentials_are_kept_and_a_new_signature_goes_on(
    web: Web, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{n}.png" for n in range(20)]
    web.files |= {f"/{name}": png(n) for n, name in enumerate(names) if n != 7}
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    arguments = ("embed", bundle, "-o", out, "--log-json", log, "--runtime", "onnxruntime", "-v")

    def source(signature: str) -> str:
        web.files["/list.txt"] = signed(web, signature, names)
        return signed(web, signature, ["list.txt"]).decode()

    assert (
        run(*arguments, "--shard-size", 8, "--shard", "1/3", "--images", source("a1")).status == 0
    )
    assert (out / WORK).is_dir()
    outcome = run(*arguments, "--shard-size", 8, "--images", source("b2"))
    assert outcome.status == 0, outcome.stderr
    assert "X-Amz" not in outcome.stderr + outcome.stdout
    ids, _ = vectors_of(out, "images")
    assert ids == [f"{web.url}/{n}.png" for n in range(20) if n != 7]
    assert [error["code"] for error in errors(out)] == ["missing"]
    for name, content in {**files_below(out), "log": log.read_bytes()}.items():
        assert not any(secret in content for secret in SECRETS), name
    names.append("more.png")
    assert "fingerprint" in run(*arguments, "--shard-size", 8, "--images", source("c3")).stderr


def test_outputs_whose_ids_are_addresses_are_verified_and_searched(
    web: Web, bundle: Path, tmp_path: Path
) -> None:
    web.files |= {f"/{n}.png": png(n) for n in range(3)}
    web.files["/list.txt"] = signed(web, "a1", [f"{n}.png" for n in range(3)])
    spec = signed(web, "a1", ["list.txt"]).decode()
    embed(bundle, [open_source("image", spec, SourceOptions())], tmp_path / "out")
    assert verify(tmp_path / "out").whole
    (tmp_path / "q.png").write_bytes(png(2))
    found = search(tmp_path / "out", Query(image=tmp_path / "q.png"), k=1, runtime=ONNX)
    assert [hit.id for hit in found.hits] == [f"{web.url}/2.png"]
    assert found.hits[0].picture is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hanging", ["list.txt", "a.png"])
def test_a_server_that_hangs_does_not_hold_back_a_stop(
    web: Web,
    bundle: Path,
    tmp_path: Path,
    number: signal.Signals,
    hanging: str,
    request: pytest.FixtureRequest,
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    web.files["/list.txt"] = b"\n".join(b"a.png?%d" % n for n in range(50))
    web.odd[f"/{hanging}"] = odd.hang
    stopped: list[float] = []

    def stop() -> None:
        while not web.count(f"/{hanging}"):
            time.sleep(0.02)
        time.sleep(0.1)
        stopped.append(time.monotonic())
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    spec = f"{web.url}/list.txt"
    outcome = run(
        "embed",
        bundle,
        "--images",
        spec,
        "-o",
        tmp_path / "out",
        "--timeout",
        50,
        "--runtime",
        "onnxruntime",
    )
    assert outcome.status == (130 if number == signal.SIGINT else 143)
    assert time.monotonic() - stopped[0] < 2, "the server is silent for a minute"
