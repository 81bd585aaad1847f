"""Read a pickle without running it.

A pickle is a program that may call anything. This interpreter performs the stack operations itself
and makes no calls; ``pickled`` says what it returns in their place. Other objects that a training
script saved (optimizers, numpy scalars, paths, instances of classes that are not installed) are
not run and do not prevent reading the weights.
"""

from __future__ import annotations

import mmap
import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any, cast

from mwa_export.model.pickled import (
    Budget,
    Global,
    PickleError,
    Placeholder,
    call,
    global_name,
    set_items,
    storage_of,
)


def read_pickle(file: IO[bytes] | mmap.mmap, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle of any protocol from the file's position, and leave the file after it.

    Args:
        file: open for reading, or memory-mapped.
        persistent: resolves persistent ids; None: `storage_of`.

    Raises:
        PickleError: the pickle is truncated, or the data is not a pickle.
    """
    machine = _Machine(persistent or storage_of)
    try:
        for opcode, argument, _position in pickletools.genops(cast(IO[bytes], file)):
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    # IndexError, KeyError: an opcode needs something that is not on the stack or in the memo.
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        OverflowError,
        struct.error,
        RecursionError,
    ) as error:
        raise PickleError(_in_one_line(error)) from error
    raise PickleError("it has no end")


class _Machine:
    """The pickle machine: its stack, the marks in it, and its memo. One method per opcode."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each open mark
        self._memo: dict[int, Any] = {}
        self._budget = Budget(_MOST_WORK)

    def pop(self) -> Any:
        return self._stack.pop()

    def run(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _PUTS:
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif opcode in _GETS:
            self._stack.append(self._memo[argument])
        elif (method := getattr(self, f"_{opcode.lower()}", None)) is not None:
            method(argument)
        elif opcode not in _IGNORED:  # a number, a string or bytes
            self._stack.append(argument)

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def _pop_mark(self, _: None) -> None:
        self._marked()

    def _dup(self, _: None) -> None:
        self._stack.append(self._stack[-1])

    # --- containers

    def _empty_list(self, _: None) -> None:
        self._stack.append([])

    def _empty_dict(self, _: None) -> None:
        self._stack.append({})

    def _empty_set(self, _: None) -> None:
        self._stack.append(Placeholder("builtins.set"))

    def _list(self, _: None) -> None:
        items = self._marked()
        self._stack.append(items)

    def _tuple(self, _: None) -> None:
        items = self._marked()
        self._stack.append(tuple(items))

    def _frozenset(self, _: None) -> None:
        self._marked()
        self._stack.append(Placeholder("builtins.frozenset"))

    def _dict(self, _: None) -> None:
        items = self._marked()
        made: dict[Any, Any] = {}
        set_items(made, items)
        self._stack.append(made)

    def _tuple1(self, _: None) -> None:
        self._last_as_tuple(1)

    def _tuple2(self, _: None) -> None:
        self._last_as_tuple(2)

    def _tuple3(self, _: None) -> None:
        self._last_as_tuple(3)

    def _last_as_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def _append(self, _: None) -> None:
        self._extend([self.pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._marked())

    def _additems(self, _: None) -> None:
        self._marked()

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self.pop(), self.pop()
        set_items(self._stack[-1], [key, value])

    def _setitems(self, _: None) -> None:
        items = self._marked()
        set_items(self._stack[-1], items)

    # --- names and calls

    def _global(self, argument: str) -> None:
        self._stack.append(_split(argument))

    def _stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        self._stack.append(global_name(module, name))

    def _ext1(self, argument: int) -> None:
        self._stack.append(Global(f"copyreg extension {argument}"))

    _ext2 = _ext4 = _ext1

    def _reduce(self, _: None) -> None:
        args, called = self.pop(), self.pop()
        self._stack.append(call(called, args, self._budget))

    _newobj = _reduce

    def _newobj_ex(self, _: None) -> None:
        self.pop()  # keyword arguments
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        args = self._marked()
        self._stack.append(call(_split(argument), tuple(args), self._budget))

    def _obj(self, _: None) -> None:
        called, *args = self._marked()
        self._stack.append(call(called, tuple(args), self._budget))

    def _build(self, _: None) -> None:
        state = self.pop()
        if isinstance(self._stack[-1], Placeholder):
            self._stack[-1].state = state

    def _persid(self, argument: str) -> None:
        self._stack.append(self._persistent(argument))

    def _binpersid(self, _: None) -> None:
        self._stack.append(self._persistent(self.pop()))

    def _next_buffer(self, _: None) -> None:
        self._stack.append(Placeholder("a buffer outside the pickle"))


_MOST_WORK = 5_000_000  # elements; BEiT-3 giant with average and optimizer needs 106,000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_IGNORED = frozenset(("PROTO", "FRAME", "READONLY_BUFFER"))


def _split(argument: str) -> Global:
    """Parse a name from `pickletools`: module and name, separated by a space."""
    module, _, name = argument.partition(" ")
    return global_name(module, name)


def _in_one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
