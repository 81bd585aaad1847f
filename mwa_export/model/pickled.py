"""What the objects in a pickle become: plain values, references to tensors, and placeholders.

Names are never looked up. Only the containers and tensor constructors in ``_CALLS`` mean
something, and those are functions of this module; every other call is recorded, not made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_RANK = 8  # dimensions of a tensor; BEiT-3 needs 4

_ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_HASHABLE = (str, int, float, bool, bytes, type(None))


class PickleError(ValueError):
    """The bytes are not a whole pickle."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function in a pickle. It was not looked up."""

    name: str  # "numpy.dtype"


@dataclass(slots=True, eq=False)
class Placeholder:
    """An object that was not made, and what the pickle says about it."""

    name: str  # of its class, or of the function that would have made it
    args: tuple[Any, ...] = ()
    state: Any = None  # what its __setstate__ or __dict__ would get
    items: dict[Any, Any] = field(default_factory=dict)  # if it is a mapping

    def attributes(self) -> dict[Any, Any] | None:
        """What it holds by name, as a Namespace or a dict would; None if it holds nothing so."""
        if self.items:
            return self.items
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else None


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A tensor's data in the file, in elements of ``dtype``."""

    key: str
    dtype: str
    numel: int  # of the whole storage
    start: int = 0  # of the part that a view of the storage (before torch 1.0) covers


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor whose data has not been read. The numbers are what the file says, unchecked."""

    storage: StorageRef
    dtype: str
    offset: int  # in elements of dtype, as are the strides
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def storage_of(persistent_id: Any) -> Any:
    """What ``torch.save`` means by a persistent id: a storage, or a module with its source code."""
    if not isinstance(persistent_id, tuple) or not persistent_id:
        return Placeholder("a persistent id")
    kind, *rest = persistent_id
    if kind == "module" and rest:
        return rest[0]
    if kind == "storage" and len(rest) >= 4 and isinstance(rest[0], Global):
        dtype = dtype_of_storage(rest[0])
        key, numel, view = rest[1], rest[3], rest[4] if len(rest) > 4 else None
        if dtype is not None and isinstance(key, str) and _natural(numel):
            if view is None:
                return StorageRef(key, dtype, numel)
            if isinstance(view, tuple) and len(view) == 3 and _natural(view[1]):
                return StorageRef(key, dtype, numel, view[1])
    return Placeholder("a storage of an unknown type")


def dtype_of_storage(kind: Global) -> str | None:
    """The dtype of a storage class such as `torch.FloatStorage`."""
    module, _, name = kind.name.rpartition(".")
    return _STORAGES.get(name) if module in ("torch", "torch.cuda", "torch.storage") else None


def item_bytes(dtype: str) -> int | None:
    """Bytes of an element; None: a type that weights cannot have, such as float8."""
    return _ITEM_BYTES.get(dtype)


def set_items(target: Any, items: list[Any]) -> None:
    """Put keys and values, which alternate, into a mapping."""
    into = target.items if isinstance(target, Placeholder) else target
    if not isinstance(into, dict) or len(items) % 2:
        raise PickleError("items without a mapping")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a nested tuple recurses without a limit; such a key is never one that is read.
        into[key if isinstance(key, _HASHABLE) else Placeholder("a key")] = value


def call(called: Any, args: Any) -> Any:
    """What a call makes: a plain value if ``_CALLS`` knows the name, else a placeholder."""
    name = called.name if isinstance(called, Global) else f"the result of {_kind(called)}"
    args = args if isinstance(args, tuple) else ()
    if name in _CALLS:
        try:
            return _CALLS[name](*args)
        except (TypeError, ValueError, IndexError):  # arguments that torch never writes
            return Placeholder(f"{name} with impossible arguments")
    return Placeholder(name, args)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> Any:
    metadata = more[2] if len(more) > 2 else None
    if isinstance(metadata, dict) and (metadata.get("neg") or metadata.get("conj")):
        return Placeholder("a negated or conjugated view of a tensor")
    return _checked_tensor(storage, None, offset, shape, stride)


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> Any:
    dtype = more[2]
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else "?"
    return _checked_tensor(storage, name, offset, shape, stride)


def _checked_tensor(storage: Any, dtype: str | None, offset: Any, shape: Any, stride: Any) -> Any:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, StorageRef):
        return Placeholder("a tensor without a storage")
    if len(shape) != len(stride) or len(shape) > MAX_RANK or not all(map(_natural, numbers)):
        return Placeholder("a tensor of an impossible shape")
    return TensorRef(storage, dtype or storage.dtype, offset, tuple(shape), tuple(stride))


def _reconstructed(cls: Any, *_base_and_state: Any) -> Any:
    return call(cls, ())


def _mapping(*args: Any) -> dict[Any, Any]:
    """OrderedDict(), OrderedDict([[key, value], ...]) of old versions, and the like."""
    made: dict[Any, Any] = {}
    if args and isinstance(args[0], list):
        for key, value in args[0]:
            set_items(made, [key, value])
    elif args and isinstance(args[0], dict):
        made.update(args[0])
    return made


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, _type, args, *_: call(function, args),
    "torch.Size": lambda sizes: tuple(sizes),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "copyreg.__newobj__": lambda cls, *args: call(cls, args),
    "copyreg.__newobj_ex__": lambda cls, args, *_: call(cls, args),
}


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Placeholder) else type(value).__name__
