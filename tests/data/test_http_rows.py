"""Images over HTTP: failures are failed rows with a code, and temporary ones are retried."""

from __future__ import annotations

from dataclasses import replace

import pytest
import web as odd
from web import Behaviour, Web

from mwa_export.data.remote import access as remote
from mwa_export.data.remote.access import Access
from mwa_export.data.remote.files import RemotePicture
from mwa_export.errors import ImageError

DATA = bytes(range(256)) * 40
QUICK = Access(timeout=0.3, retries=2)


def read(url: str, access: Access = QUICK) -> bytes:
    return RemotePicture(url, access=access).read()


def failure(url: str, access: Access = QUICK) -> ImageError:
    with pytest.raises(ImageError) as error:
        read(url, access)
    return error.value


@pytest.mark.parametrize(
    ("behaviour", "code", "requests"),
    [
        (odd.status(404), "missing", 1),
        (odd.status(410), "missing", 1),
        (odd.status(401), "forbidden", 1),
        (odd.status(403), "forbidden", 1),
        (odd.status(400), "unreadable", 1),
        (odd.status(418), "unreadable", 1),
        (odd.status(799), "unreachable", 3),
        (odd.status(429), "unreachable", 3),
        (odd.status(500), "unreachable", 3),
        (odd.status(503, Retry_After="tomorrow"), "unreachable", 3),
        (odd.status(503, Retry_After="7" * 4301), "unreachable", 3),
        (odd.status(200, Content_Encoding="gzip"), "unreadable", 1),
        (odd.redirect("https://[v6"), "malformed", 1),
        (odd.chunk_cut, "truncated", 3),
        (odd.cut(DATA, len(DATA)), "truncated", 3),
        (odd.reset, "unreachable", 3),
        (odd.hang, "timeout", 3),
    ],
)
def test_every_failure_has_a_code(web: Web, behaviour: Behaviour, code: str, requests: int) -> None:
    web.odd["/a.png"] = behaviour
    error = failure(f"{web.url}/a.png")
    assert error.code == code
    assert f"{web.url}/a.png" in str(error)
    assert web.count("/a.png") == requests


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://[::1", "malformed"),
        ("http://", "malformed"),
        (f"http://{'a' * 80}.example/x", "malformed"),
        ("http://127.0.0.1:1/x", "unreachable"),
        ("http://127.0.0.1:99999/x", "malformed"),
        ("http://no-such-host.invalid/x", "unreachable"),
    ],
)
def test_a_bad_address_has_a_code(web: Web, url: str, code: str) -> None:
    assert failure(url).code == code


def test_what_passes_is_read_in_the_end(web: Web) -> None:
    web.odd["/busy"] = odd.status(429, 503, then=DATA)
    web.odd["/cut"] = odd.cut(DATA, len(DATA), times=2)
    assert read(f"{web.url}/busy") == DATA
    assert read(f"{web.url}/cut") == DATA


def test_the_server_says_when_to_come_back(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote, "_sleep", waits.append)
    web.odd["/soon"] = odd.status(429, then=DATA, Retry_After="7")
    web.odd["/never"] = odd.status(503, then=DATA, Retry_After="999999")
    assert read(f"{web.url}/soon") == read(f"{web.url}/never") == DATA
    assert waits == [7, 60]


@pytest.mark.slow
def test_bytes_that_come_too_slowly_are_given_up(web: Web) -> None:
    web.odd["/slow"] = odd.drip
    assert failure(f"{web.url}/slow", Access(timeout=0.1, retries=9)).code == "timeout"
    assert web.count("/slow") == 1


def test_redirects_are_followed_within_http_and_not_for_ever(web: Web) -> None:
    web.files["/a"] = DATA
    web.odd["/there"] = odd.redirect("/a")
    web.odd["/loop"] = odd.redirect("/loop")
    web.odd["/disk"] = odd.redirect("file:///etc/passwd")
    web.odd["/ftp"] = odd.redirect("ftp://127.0.0.1/x")
    assert read(f"{web.url}/there") == DATA
    assert failure(f"{web.url}/loop").code == "unreachable"
    assert web.count("/loop") < 20
    assert failure(f"{web.url}/disk").code == failure(f"{web.url}/ftp").code == "not-allowed"


def test_addresses_that_hand_out_credentials_are_refused(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipaddress import ip_address

    from mwa_export.data.remote import http

    web.files["/latest"] = DATA
    monkeypatch.setattr(http, "_METADATA", (ip_address("127.0.0.1"),))
    http._pool.cache_clear()  # connections that are open already
    assert failure(f"{web.url}/latest").code == "not-allowed"
    assert not web.asked


def test_a_body_that_never_ends_is_too_large(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    from mwa_export.data.remote import http

    monkeypatch.setattr(http, "MAX_BYTES", len(DATA) - 1)
    web.files["/a"] = DATA
    assert failure(f"{web.url}/a").code == "too-large"


def test_a_password_in_the_url_is_sent_and_not_shown(web: Web) -> None:
    web.odd["/a"] = odd.status(403)
    web.odd["/away"] = odd.redirect(f"http://localhost:{web.url.rpartition(':')[2]}/a")
    for path in "/a", "/away":
        error = failure(web.url.replace("//", "//user:pass%20word@") + path)
        assert "pass" not in str(error)
    here, away, elsewhere = (headers for _, headers in web.asked)
    assert here["authorization"] == away["authorization"] == "Basic dXNlcjpwYXNzIHdvcmQ="
    assert "authorization" not in elsewhere


@pytest.mark.parametrize("ranges", [True, False])
def test_members_of_tars_are_read_with_and_without_ranges(web: Web, ranges: bool) -> None:
    web.files["/t.tar"], web.ranges = DATA, ranges
    for offset in 100, 7000:
        picture = RemotePicture(f"{web.url}/t.tar", "a.png", offset, 300, QUICK)
        assert picture.read() == DATA[offset : offset + 300]
    asked = [headers.get("Range") for _, headers in web.asked]
    whole = [None]  # a copy, once
    assert asked == (["bytes=100-399", "bytes=7000-7299"] if ranges else ["bytes=100-399", *whole])
    cut_off = replace(picture, offset=len(DATA) - 10)
    with pytest.raises(ImageError) as error:
        cut_off.read()
    assert error.value.code == "truncated"
