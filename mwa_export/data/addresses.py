"""URLs and paths of sources and rows: parse them, restrict them, and hide secrets in messages."""

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
_SAS = r"s[tkepvr]|sip|spr|ss|srt|sdd|ske|skoid|sks|skt|sktid|skv"  # Azure's, next to `sig`
_ENDS = r"[^&#\s\"'<>]*"  # the value of a query parameter, also within a sentence


class Confined(str):
    """A local folder that names must not leave, because they come from a remote source."""


def is_remote(name: str) -> bool:
    """Whether a name is a URL. Every name with `://` counts as one."""
    return "://" in name


def protocol_of(url: str) -> str:
    """Return the protocol of a URL in lower case."""
    return url.partition("://")[0].lower()


def path_of(name: str) -> str:
    """Strip the query and fragment of an http URL; other names stay unchanged."""
    return re.split("[?#]", name, maxsplit=1)[0] if protocol_of(name) in HTTP else name


def split_glob(spec: str) -> tuple[str, str]:
    """Split a glob into the folder before the first wildcard and the pattern below it.

    Without a wildcard, the pattern is "". The name of an existing local file or folder is never a
    pattern. In an http URL, `?` starts the query.
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
    """Return the extension of a compressed file in lower case; "" for other files."""
    suffix = os.path.splitext(path_of(name).lower())[1]
    return suffix if suffix in (*PACKINGS, ".tgz") else ""


def suffix_of(name: str) -> str:
    """Return the extension of a file or URL in lower case; `.csv` for `t.csv.gz`."""
    packing = packing_of(name)
    if packing == ".tgz":
        return ".tar"
    return os.path.splitext(path_of(name).lower().removesuffix(packing))[1]


def folder_of(name: str) -> str:
    """Return the folder or URL that contains a file."""
    return os.path.dirname(path_of(name))


def joined(root: str, name: str) -> str:
    """Join a root and a name. An absolute name or URL is returned unchanged."""
    if is_remote(name):
        return name
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else os.path.join(root, name)


def located(root: str, name: str) -> str | Problem:
    """Return the file or URL that a row names, or why the name is not allowed.

    A row may name a local file only if its source is local.
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
    """Return the folder of a source's images. Names in a remote source must not leave it."""
    return Confined(images) if images is not None and is_remote(spec) else images


def local_name(spec: str) -> str:
    """Convert a `file://` URL to a path; other names stay unchanged."""
    if not spec.lower().startswith("file://"):
        return spec
    from urllib.request import url2pathname  # slow to import

    return url2pathname(re.sub("^localhost/", "/", spec[len("file://") :]))


def public(text: str) -> str:
    """Remove passwords and signatures from a URL, or from all URLs in a text.

    Signatures are recognized by the parameter names that the known stores use.
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
