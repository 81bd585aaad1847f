"""Values read from a pickle: plain data, references to tensors, and placeholders.

Classes and functions are never imported. Only the containers and tensor constructors in ``_CALLS``
are interpreted, by functions of this module. Every other call is recorded but not made.
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
    **{"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1},
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
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
_LONGEST = 500  # max characters of a name
_MOST_ARGS = 16  # max arguments of an interpreted call
_HASHABLE = (str, int, float, bool, bytes, type(None))


class PickleError(ValueError):
    """The bytes are not a complete pickle."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function in a pickle, which was not imported."""

    name: str  # "numpy.dtype"


@dataclass(slots=True, eq=False)
class Placeholder:
    """An object that was not unpickled, and the arguments that the pickle has for it."""

    name: str  # its class, or the function that would create it
    args: tuple[Any, ...] = ()
    state: Any = None  # argument of its __setstate__, or its __dict__
    items: dict[Any, Any] = field(default_factory=dict)  # its items, if it is a mapping

    def attributes(self) -> dict[Any, Any] | None:
        """Return its named values, like those of a Namespace or a dict; None if it has none."""
        if self.items:
            return self.items
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else None


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A tensor's data in the file, in elements of ``dtype``."""

    key: str
    dtype: str
    numel: int  # elements in the whole storage
    start: int = 0  # first element of a view of the storage (before torch 1.0)


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor whose data has not been read. Its numbers come from the file, unchecked."""

    storage: StorageRef
    dtype: str
    offset: int  # in elements of dtype, like the strides
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def storage_of(persistent_id: Any) -> Any:
    """Resolve a persistent id of ``torch.save``: a storage, or a module with its source code."""
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
    """Return the dtype of a storage class such as `torch.FloatStorage`; None if unknown."""
    module, _, name = kind.name.rpartition(".")
    return _STORAGES.get(name) if module in ("torch", "torch.cuda", "torch.storage") else None


def item_bytes(dtype: str) -> int | None:
    """Return the bytes of an element; None for dtypes without their own storage, like float8."""
    return _ITEM_BYTES.get(dtype)


def set_items(target: Any, items: list[Any]) -> None:
    """Put alternating keys and values into a mapping."""
    into = target.items if isinstance(target, Placeholder) else target
    if not isinstance(into, dict) or len(items) % 2:
        raise PickleError("items without a mapping")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a nested tuple recurses without limit, and no key that matters is a tuple.
        into[key if isinstance(key, _HASHABLE) else Placeholder("a key")] = value


class Budget:
    """Limit the work of calls in a pickle, which the size of the pickle does not limit."""

    def __init__(self, most: int) -> None:
        self._left = most

    def spend(self, *values: Any) -> None:
        """Deduct the cost of reading these containers.

        Raises:
            PickleError: the budget is used up.
        """
        self._left -= 1 + sum(len(v) for v in values if isinstance(v, tuple | list | dict))
        if self._left < 0:
            raise PickleError("it expands to far more than its size")


def global_name(module: Any, name: Any) -> Global:
    """Return the name of a class or function, replaced if it is not a valid name."""
    if isinstance(module, str) and isinstance(name, str) and len(module) + len(name) < _LONGEST:
        return Global(f"{module}.{name}")
    return Global("something without a name")


def call(called: Any, args: Any, budget: Budget) -> Any:
    """Interpret a call: a plain value if its name is in ``_CALLS``, else a placeholder."""
    name = called.name if isinstance(called, Global) else "the result of another call"
    args = args if isinstance(args, tuple) else ()
    budget.spend(args, *args[:_MOST_ARGS])
    if name in _CALLS and len(args) <= _MOST_ARGS:
        try:
            return _CALLS[name](budget, *args)
        except (TypeError, ValueError, IndexError) as error:  # arguments that torch never writes
            if isinstance(error, PickleError):
                raise
            # The word "tensor" matters: see `_fills_a_weight` in checkpoint.py.
            return Placeholder(f"a tensor or value of {name} with invalid arguments")
    return Placeholder(name, args)


def _tensor(_: Budget, storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> Any:
    metadata = more[2] if len(more) > 2 else None
    if isinstance(metadata, dict) and (metadata.get("neg") or metadata.get("conj")):
        return Placeholder("a negated or conjugated view of a tensor")
    return _checked_tensor(storage, None, offset, shape, stride)


def _tensor_of_dtype(
    _: Budget, storage: Any, offset: Any, shape: Any, stride: Any, *more: Any
) -> Any:
    dtype = more[2]
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else "?"
    return _checked_tensor(storage, name, offset, shape, stride)


def _checked_tensor(storage: Any, dtype: str | None, offset: Any, shape: Any, stride: Any) -> Any:
    if not isinstance(storage, StorageRef):
        return Placeholder("a tensor without a storage")
    if not isinstance(shape, tuple) or len(shape) != len(stride) or len(shape) > MAX_RANK:
        return Placeholder("a tensor of an impossible shape")
    if not all(map(_natural, (offset, *shape, *stride))):
        return Placeholder("a tensor of an impossible shape")
    return TensorRef(storage, dtype or storage.dtype, offset, tuple(shape), tuple(stride))


def _reconstructed(budget: Budget, cls: Any, _base: Any = None, state: Any = None) -> Any:
    """Interpret copyreg._reconstructor (protocols 0 and 1).

    ``state`` is the value of a subclass of str, a number type, or dict.
    """
    if isinstance(state, str | int | float | bytes):
        return state
    made = call(cls, (), budget)
    if isinstance(state, dict) and isinstance(made, Placeholder):
        made.items = state
    return state if isinstance(state, dict) and isinstance(made, dict) else made


def _mapping(_: Budget, *args: Any) -> dict[Any, Any]:
    """Interpret OrderedDict(), and OrderedDict([[key, value], ...]) of old Python versions."""
    if args and isinstance(args[0], dict):
        return args[0]
    made: dict[Any, Any] = {}
    if args and isinstance(args[0], list):
        for key, value in args[0]:
            set_items(made, [key, value])
    return made


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda _, data, *_more: data,
    "torch._utils._rebuild_parameter_with_state": lambda _, data, *_more: data,
    "torch._tensor._rebuild_from_type_v2": lambda b, function, _type, args, *_: call(
        function, args, b
    ),
    "torch.Size": lambda _, sizes: tuple(sizes),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "copyreg.__newobj__": lambda b, cls, *args: call(cls, args, b),
    "copyreg.__newobj_ex__": lambda b, cls, args, *_: call(cls, args, b),
}


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
