"""Read every file format that ``torch.save`` has ever written: zip, the older stream, and tar.

No code in the files is run; see ``pickles``. Tensors are memory-mapped and checked against the
file's size and, in a zip, its checksums.
"""

from __future__ import annotations

import io
import itertools
import mmap
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mwa_export.errors import CheckpointError
from mwa_export.model.pickled import (
    Global,
    PickleError,
    Placeholder,
    StorageRef,
    TensorRef,
    dtype_of_storage,
    item_bytes,
    storage_of,
)
from mwa_export.model.pickles import read_pickle
from mwa_export.optional import require

if TYPE_CHECKING:
    from torch import Tensor

_MAGIC = 0x1950A86A20F9469CFC6C  # starts the stream that torch.save wrote before version 1.6
_MAGIC_AS_TEXT = b"L%dL" % _MAGIC  # pickle protocols 0 and 1
Span = tuple[int, int]  # byte offsets in the file: start, end (exclusive)


class Archive:
    """A file written by torch.save: the saved object and the data of its tensors."""

    def __init__(
        self,
        path: Path,
        content: mmap.mmap,
        saved: Any,
        spans: Mapping[str, Span],
        checksums: Mapping[str, int] | None = None,
    ) -> None:
        """Keep the parsed file; ``spans`` and ``checksums`` are keyed by storage."""
        self.saved = saved  # every tensor is replaced by a TensorRef
        self.path = path
        self._content = content
        self._spans = spans
        self._checksums = checksums or {}
        self._checked: set[str] = set()
        self._aligned: dict[Span, bytearray] = {}  # copies of unaligned data

    def tensor(self, name: str, ref: TensorRef) -> Tensor:
        """Map a tensor's data. ``name`` is used in messages.

        Raises:
            CheckpointError: the data is incomplete, damaged, or has an unsupported dtype.
        """
        torch = require("torch")
        size = item_bytes(ref.dtype)
        if size is None or ref.dtype.startswith(("complex", "q")):
            raise CheckpointError(
                f"{self.path}: {name} is {ref.dtype}. Expected float32, float16, bfloat16 or "
                "float64 weights. Use the checkpoint from before it was quantized."
            )
        dtype = getattr(torch, ref.dtype)
        numel = 1
        for side in ref.shape:
            numel *= side
        if numel == 0:
            return cast("Tensor", torch.empty(0, dtype=dtype))
        start, stop = self._span(name, ref.storage)
        count = (stop - start) // size
        last = ref.offset + sum(
            (side - 1) * s for side, s in zip(ref.shape, ref.stride, strict=True)
        )
        if last >= count:
            raise _damaged(self.path, f"{name} reads beyond the data stored for it")
        if numel > count:
            raise CheckpointError(
                f"{self.path}: {name} is a view that repeats {count:,} stored values to fill "
                f"{numel:,}. Expected every value to be stored: save tensor.contiguous()."
            )
        if start % size:  # only the older formats store data unaligned
            aligned = self._aligned.setdefault((start, stop), bytearray())
            if not aligned:
                aligned += self._content[start:stop]
            flat = torch.frombuffer(aligned, dtype=dtype, count=count)
        else:
            flat = torch.frombuffer(self._content, dtype=dtype, count=count, offset=start)
        return cast("Tensor", flat.as_strided(ref.shape, ref.stride, ref.offset))

    def _span(self, name: str, storage: StorageRef) -> Span:
        """Locate a storage in the file after comparing its checksum."""
        if storage.key not in self._spans:
            raise _damaged(self.path, f"the data of {name} is missing")
        start, stop = self._spans[storage.key]
        checksum = self._checksums.get(storage.key)
        if checksum is not None and storage.key not in self._checked:
            with memoryview(self._content) as view:
                if zlib.crc32(view[start:stop]) != checksum:
                    raise _damaged(self.path, f"the data of {name} does not match its checksum")
            self._checked.add(storage.key)
        return start + storage.start * (item_bytes(storage.dtype) or 1), stop


def open_archive(path: Path) -> Archive:
    """Read the saved object without the tensors' data.

    Raises:
        CheckpointError: the file was not written by torch.save, or is damaged.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as error:  # nothing to map
        raise CheckpointError(
            f"{path}: is empty or cannot be memory-mapped. Copy the file again."
        ) from error
    read = next((r for fits, r in _READERS if fits(content)), None)
    if read is None:
        raise CheckpointError(
            f"{path}: is not a PyTorch checkpoint (it starts with {content[:8]!r}). Pass a file "
            "written by torch.save or safetensors, or a folder with one."
        )
    try:
        return read(path, content)
    # TypeError and others: the file holds a value that torch never writes there.
    except (
        *(ValueError, TypeError, LookupError, OverflowError, RecursionError),
        *(struct.error, tarfile.TarError),
    ) as error:
        raise _damaged(path, str(error)) from error


# --- zip, since torch 1.6 -------------------------------------------------------------------------


def _read_zip(path: Path, content: mmap.mmap) -> Archive:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    # A damaged header may claim a newer zip version (NotImplementedError) or an impossible offset.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, f"{len(content):,} bytes without a readable end ({error})") from error
    pickles = sorted((n for n in entries if f"/{n}".endswith("/data.pkl")), key=len)
    if any(f"/{name}".endswith("/constants.pkl") for name in entries):
        raise CheckpointError(
            f"{path}: is a TorchScript program. Pass a checkpoint with the model's state dict."
        )
    if not pickles:
        raise CheckpointError(
            f"{path}: is a zip file that torch.save did not write (it contains "
            f"{', '.join(list(entries)[:3]) or 'nothing'}). Pass a checkpoint."
        )
    root = pickles[0].removesuffix("data.pkl")
    # torch.serialization.set_crc32_options(False) leaves every checksum at 0.
    summed = any(entry.CRC for entry in entries.values())

    def bytes_of(name: str) -> bytes:
        start, stop = _span_in_zip(path, content, entries[name])
        if summed and zlib.crc32(content[start:stop]) != entries[name].CRC:
            raise _damaged(path, f"{name} does not match its checksum")
        return content[start:stop]

    _check_byte_order(path, root + "byteorder" in entries and bytes_of(root + "byteorder"))
    saved = read_pickle(io.BytesIO(bytes_of(pickles[0])))
    stored = {n.removeprefix(f"{root}data/"): e for n, e in entries.items() if f"{root}data/" in n}
    spans = {key: _span_in_zip(path, content, entry) for key, entry in stored.items()}
    ends = sorted(span for span in spans.values() if span[0] < span[1])
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(ends)):
        raise _damaged(path, "its entries overlap")
    checksums = {key: entry.CRC for key, entry in stored.items()} if summed else {}
    return Archive(path, content, saved, spans, checksums)


def _span_in_zip(path: Path, content: mmap.mmap, entry: zipfile.ZipInfo) -> Span:
    """Locate an entry's bytes: they follow a local header of variable length."""
    header = entry.header_offset
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise CheckpointError(
            f"{path}: its entry {entry.filename} is compressed or encrypted. Expected an "
            "uncompressed entry, as torch.save writes: load and save the checkpoint again."
        )
    if content[header : header + 4] != b"PK\x03\x04":
        raise _damaged(path, f"{entry.filename} is not where the file's directory says")
    name, extra = struct.unpack("<HH", content[header + 26 : header + 30])
    start = header + 30 + name + extra
    if start + entry.file_size > len(content):
        raise _damaged(path, f"{entry.filename} extends past the end of the file")
    return start, start + entry.file_size


# --- a stream of pickles and storages, before torch 1.6 -------------------------------------------


def _read_stream(path: Path, content: mmap.mmap) -> Archive:
    sizes: dict[str, int] = {}  # key of a storage -> bytes of an element

    def storage(persistent_id: Any) -> Any:
        found = storage_of(persistent_id)
        if isinstance(found, StorageRef):
            sizes[found.key] = item_bytes(found.dtype) or 1
        return found

    content.seek(0)
    if read_pickle(content) != _MAGIC:
        raise CheckpointError(
            f"{path}: is a pickle that torch.save did not write. Expected a checkpoint: write it "
            "with torch.save(model.state_dict(), FILE)."
        )
    read_pickle(content)  # the version of the protocol
    system = read_pickle(content)
    little = isinstance(system, dict) and system.get("little_endian") is False
    _check_byte_order(path, b"big" if little else b"")
    saved = read_pickle(content, storage)
    keys = read_pickle(content)
    if not isinstance(keys, list):
        raise PickleError("the list of storages is missing")
    spans = {}
    for key in keys:
        if not isinstance(key, str) or key not in sizes:
            raise PickleError("a storage is not referenced")
        spans[key] = _span_in_stream(content, sizes[key])
    return Archive(path, content, saved, spans)


def _span_in_stream(content: mmap.mmap, size: int) -> Span:
    """Locate a storage's bytes, which follow its element count, and seek past them."""
    (count,) = struct.unpack("<q", content.read(8))
    start = content.tell()
    stop = start + count * size
    if count < 0 or stop > len(content):
        raise PickleError("a storage extends past the end of the file")
    content.seek(stop)
    return start, stop


# --- tar, before torch 0.2 ------------------------------------------------------------------------


def _read_tar(path: Path, content: mmap.mmap) -> Archive:
    with tarfile.open(path, "r:") as archive:
        members = {member.name: member for member in archive if member.isreg()}
    if not {"storages", "tensors", "pickle"} <= set(members):
        raise CheckpointError(
            f"{path}: is a tar file that torch.save did not write. Pass a checkpoint."
        )
    objects: dict[int, Any] = {}
    spans: dict[str, Span] = {}

    content.seek(members["storages"].offset_data)
    for _ in range(_count(read_pickle(content), content)):
        key, _location, kind = read_pickle(content)
        key = _integer(key)
        dtype = dtype_of_storage(kind) if isinstance(kind, Global) else None
        start, stop = spans[str(key)] = _span_in_stream(content, item_bytes(dtype or "") or 1)
        count = (stop - start) // (item_bytes(dtype or "") or 1)
        objects[key] = StorageRef(str(key), dtype or "an unknown type", count)
    for view in read_pickle(content):
        target, of, offset, count = map(_integer, view)
        whole = objects[of]
        objects[target] = StorageRef(whole.key, whole.dtype, count, offset)

    content.seek(members["tensors"].offset_data)
    for _ in range(_count(read_pickle(content), content)):
        key, of, _kind = read_pickle(content)
        (rank,) = struct.unpack("<i4x", content.read(8))
        rank = _count(rank, content)
        shape = struct.unpack(f"<{rank}q", content.read(8 * rank))
        stride = struct.unpack(f"<{rank}q", content.read(8 * rank))
        (offset,) = struct.unpack("<q", content.read(8))
        storage = objects[_integer(of)]
        if min((offset, *shape, *stride)) < 0:
            raise PickleError("a tensor has an impossible shape")
        objects[_integer(key)] = TensorRef(storage, storage.dtype, offset, shape, stride)

    def known(persistent_id: Any) -> Any:
        if isinstance(persistent_id, tuple):  # a module with its source code
            return persistent_id[0] if persistent_id else Placeholder("nothing")
        text = persistent_id if isinstance(persistent_id, str) else ""
        number = int(text) if text.isdecimal() and len(text) < 20 else -1
        return objects.get(number, Placeholder("a tensor that is not stored"))

    content.seek(members["pickle"].offset_data)
    return Archive(path, content, read_pickle(content, known), spans)


def _count(number: Any, content: mmap.mmap) -> int:
    """Check a count of items in the file; each takes at least one byte."""
    if not 0 <= _integer(number) <= len(content):
        raise PickleError("a count exceeds the size of the file")
    return int(number)


def _integer(number: Any) -> int:
    if type(number) is not int:
        raise PickleError("an integer is missing")
    return number


_READERS: tuple[tuple[Callable[[mmap.mmap], bool], Callable[[Path, mmap.mmap], Archive]], ...] = (
    (lambda content: content[:4] == b"PK\x03\x04", _read_zip),
    (lambda content: content[257:262] == b"ustar", _read_tar),
    (lambda content: content[:1] == b"\x80" or content[:26] == _MAGIC_AS_TEXT, _read_stream),
)


def _check_byte_order(path: Path, order: bytes | bool) -> None:
    if order == b"big":
        raise CheckpointError(
            f"{path}: was written on a big-endian machine, which is not supported. Load and save "
            "it with PyTorch on this machine."
        )


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be read ({what}). The file is damaged or truncated: copy it again."
    )
