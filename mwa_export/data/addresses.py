"""URLs of sources and rows: their parts, what a row may name, and their form without secrets."""

from __future__ import annotations

import os
import re

from mwa_export.inputs.content import Problem

ROW_PROTOCOLS = ("http", "https", "s3", "gs", "abfs", "abfss")
HTTP = ("http", "https")
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
_CONTAINERS = ("abfs", "abfss", "az", "adl", "wasb", "wasbs")  # abfs://CONTAINER@ACCOUNT/...
_USERINFO = re.compile(r"(?<![\w+.-])([a-z][\w+.-]*)://([^/?#\s]*)@", re.IGNORECASE)
_SECRET = (
    r"x-(?:amz|goog|oss|cos|obs)-[\w-]+|awsaccesskeyid|googleaccessid|ossaccesskeyid|key-pair-id|"
    r"policy|expires|sig(?:nature)?|(?:[\w-]*[_-])?(?:token|secret|password|passwd|jwt)|apikey|"
    r"[\w-]+[_-]key|key(?==AIza)|hmac|hdnts|auth(?:orization)?"
)
_SAS = r"s[tkepvr]|sip|spr|ss|srt|sdd|ske|skoid|sks|skt|sktid|skv"  # beside `sig`: Azure's
_ENDS = r"[^&#\s\"'<>]*"  # a value of a query, also within a sentence


class Confined(str):
    """A local folder that names must stay in, because they are from elsewhere."""


def is_remote(name: str) -> bool:
    """Whether a name is a URL. No local name with `://` is looked for."""
    return "://" in name


def protocol_of(url: str) -> str:
    """The protocol of a URL, in lower case."""
    return url.partition("://")[0].lower()


def path_of(name: str) -> str:
    """A name without the query and fragment that it has if it is a URL of http."""
    return re.split("[?#]", name, maxsplit=1)[0] if protocol_of(name) in HTTP else name


def split_glob(spec: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it; without one all, and "".

    A local file or folder that is there is never taken for a pattern, whatever its name. In a URL
    of http, `?` begins the query.
    """
    wildcard = re.compile(r"[*\[]" if protocol_of(spec) in HTTP else r"[*?\[]")
    parts, remote = path_of(spec).split("/"), is_remote(spec)
    for n, part in enumerate(parts):
        if not wildcard.search(part) or (remote and n < 3):  # the protocol and the host
            continue
        if remote or not os.path.lexists("/".join(parts[: n + 1])):
            folder = "/".join(parts[:n])
            return folder or ("/" if n else ""), "/".join(parts[n:])
    return path_of(spec), ""


def packing_of(name: str) -> str:
    """The extension of a compressed file, in lower case; "" of another."""
    suffix = os.path.splitext(path_of(name).lower())[1]
    return suffix if suffix in (*PACKINGS, ".tgz") else ""


def suffix_of(name: str) -> str:
    """The extension of a file or URL, in lower case; of `t.csv.gz` that is `.csv`."""
    packing = packing_of(name)
    if packing == ".tgz":
        return ".tar"
    return os.path.splitext(path_of(name).lower().removesuffix(packing))[1]


def folder_of(name: str) -> str:
    """The folder or URL that a file lies in."""
    return os.path.dirname(path_of(name))


def joined(root: str, name: str) -> str:
    """A name below a root, or the name itself if it is absolute or a URL."""
    if is_remote(name):
        return name
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else os.path.join(root, name)


def located(root: str, name: str) -> str | Problem:
    """The file or URL that a row names, or why a row may not name it.

    A row may name the local disk only if its source is local.
    """
    if is_remote(name):
        if protocol_of(name) == "file" and not is_remote(root) and not isinstance(root, Confined):
            return local_name(name)
        if protocol_of(name) in ROW_PROTOCOLS:
            return name
        allowed = f"{', '.join(ROW_PROTOCOLS)}, or file if the source is local"
        return Problem("not-allowed", f"{public(name)}: expected a URL of {allowed}.")
    if isinstance(root, Confined) and (os.path.isabs(name) or ".." in re.split(r"[/\\]", name)):
        return Problem("not-allowed", f"{public(name)}: expected a name inside {root}.")
    return joined(root, name)


def confined(spec: str, images: str | None) -> str | None:
    """The folder of a source's pictures. A remote source must stay in it."""
    return Confined(images) if images is not None and is_remote(spec) else images


def local_name(spec: str) -> str:
    """The path that a `file://` URL means; other names stay as they are."""
    if not spec.lower().startswith("file://"):
        return spec
    from urllib.request import url2pathname  # which loads half of the standard library

    return url2pathname(re.sub("^localhost/", "/", spec[len("file://") :]))


def public(text: str) -> str:
    """A URL, or a text that quotes some, without passwords and signatures.

    Signatures are told by the names that their parameters have at the known stores.
    """
    if "://" not in text:
        return text
    text = _USERINFO.sub(_without_user, text)
    secret = f"{_SECRET}|{_SAS}" if re.search(r"[?&]sig=", text, re.IGNORECASE) else _SECRET
    text, found = re.subn(rf"(?<=[?&])(?:{secret})={_ENDS}&?", "", text, flags=re.IGNORECASE)
    return re.sub(r"[?&]+(?=$|[#\s\"'<>])", "", text) if found else text


def _without_user(match: re.Match[str]) -> str:
    protocol, user = match.groups()
    keep = protocol.lower() in _CONTAINERS and ":" not in user
    return match[0] if keep else f"{protocol}://"
