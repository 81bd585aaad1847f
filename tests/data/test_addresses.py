"""Addresses that rows may use, and display names without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwa_export.data.addresses import (
    confined,
    folder_of,
    local_name,
    located,
    public,
    suffix_of,
)
from mwa_export.inputs.content import Problem

WEB = "https://h.example/d"


@pytest.mark.parametrize(
    "name",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "local:///etc/passwd",
        "reference://::file:///etc/passwd",
        "simplecache::file:///etc/passwd",
        "zip://a.png::http://h.example/a.zip",
        "memory://x",
        "ftp://h.example/x",
        "github://o:r@main/x",
        "data:image/png;base64,://",
        " file:///etc/passwd",
    ],
)
def test_a_row_of_a_remote_source_names_few_protocols(name: str) -> None:
    for root in WEB, "s3://bucket", confined("s3://bucket/t.csv", "/pictures"):
        problem = located(str(root) if root is None else root, name)
        assert isinstance(problem, Problem)
        assert problem.code == "not-allowed"


@pytest.mark.parametrize(
    ("root", "name", "full"),
    [
        ("/p", "a.png", "/p/a.png"),
        ("/p", "/q/a.png", "/q/a.png"),
        ("/p", "file:///q/a%20b.png", "/q/a b.png"),
        ("/p", "file://localhost/q/a.png", "/q/a.png"),
        ("/p", "s3://b/a.png", "s3://b/a.png"),
        ("", "HTTPS://h.example/a.png", "HTTPS://h.example/a.png"),
        (WEB, "a::b.png", f"{WEB}/a::b.png"),
        (WEB, "/etc/passwd", f"{WEB}//etc/passwd"),
        (WEB, "http://[::1]:80/a.png", "http://[::1]:80/a.png"),
        (WEB, "abfss://box@account.example/a.png", "abfss://box@account.example/a.png"),
    ],
)
def test_a_row_names_what_lies_below_or_an_address(root: str, name: str, full: str) -> None:
    assert located(root, name) == full


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.png", "a/../../x.png", "..\\x.png"])
def test_a_remote_table_stays_in_the_folder_of_its_pictures(name: str) -> None:
    root = confined(f"{WEB}/t.csv", "/pictures")
    assert root is not None
    assert isinstance(located(root, name), Problem)
    assert located(root, "a..b/c.png") == "/pictures/a..b/c.png"
    assert located(confined("t.csv", "/pictures") or "", "/etc/x.png") == "/etc/x.png"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:pass@h/a.png", "http://h/a.png"),
        ("http://user:p@ss@h/a.png", "http://h/a.png"),
        ("https://token@h/a.png", "https://h/a.png"),
        ("abfs://box@account/a.png", "abfs://box@account/a.png"),
        ("abfs://box:key@account/a.png", "abfs://account/a.png"),
        ("http://h/a@b.png", "http://h/a@b.png"),
        ("http://h/a.png?id=5&w=9", "http://h/a.png?id=5&w=9"),
        (
            "https://b.s3.amazonaws.com/a.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A"
            "%2F1&X-Amz-Date=2&X-Amz-Expires=9&X-Amz-SignedHeaders=host&X-Amz-Signature=ab12",
            "https://b.s3.amazonaws.com/a.png",
        ),
        ("https://b/a.png?AWSAccessKeyId=A&Signature=x%3D&Expires=1", "https://b/a.png"),
        ("https://b/a.png?versionId=3&X-Goog-Signature=12&n=1", "https://b/a.png?versionId=3&n=1"),
        ("https://x.blob/a.png?sv=2022&se=2030&sr=b&sp=r&sig=q%2Bs", "https://x.blob/a.png"),
        ("https://h/a.png?sp=1&se=2", "https://h/a.png?sp=1&se=2"),
        ("https://h/a?access_token=q&api-key=r&apikey=s&password=t&id=1", "https://h/a?id=1"),
        ("https://h/a?key=7", "https://h/a?key=7"),
        ("a?token=1.png", "a?token=1.png"),
        (
            "see http://u:p@h/a?sig=1 and 'http://h/b?b=1&sig=2'.",
            "see http://h/a and 'http://h/b?b=1'.",
        ),
    ],
)
def test_passwords_and_signatures_are_not_shown(url: str, shown: str) -> None:
    assert public(url) == shown
    assert public(shown) == shown


def test_a_query_belongs_to_no_name() -> None:
    signed = "https://h/d/t.CSV?X-Amz-Signature=a/b.png&c=.tar"
    assert suffix_of(signed) == ".csv"
    assert folder_of(signed) == "https://h/d"
    assert suffix_of("/d/a?b.tar") == suffix_of("s3://b/a?b.tar") == ".tar"


def test_file_urls_are_paths(tmp_path: Path) -> None:
    assert local_name((tmp_path / "a b").as_uri()) == str(tmp_path / "a b")
    assert local_name("http://h/file://x") == "http://h/file://x"
