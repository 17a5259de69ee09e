"""Plain data built by the reader of untrusted pickles. All sizes are checked; nothing is looked up or called."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

DICTS = {"collections.OrderedDict", "dnnlib.util.EasyDict"}
_TORCH_MODULES = {"torch.nn.modules.sparse.Embedding"}
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}
_STORAGES = {
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "CharStorage": "i1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}


@dataclass(frozen=True)
class Global:
    """The name of a class or function, such as "collections.OrderedDict". It is never looked up."""

    name: str


@dataclass(frozen=True, eq=False)
class Inert:
    """A placeholder for an object that was not built, described by `what`."""

    what: str


@dataclass(eq=False)
class Module:
    """A network or one of its layers: class name and attributes."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Array:
    """A torch tensor or numpy array; `value` is a read-only view, or None with the reason in `problem`."""

    value: np.ndarray | None = None
    problem: str = "an array without data"


@dataclass(eq=False)
class Dtype:
    code: str
    order: str = "<"


class Refused(Exception):
    """The file is rejected. The message is a sentence without its subject, the file's name."""


def printable(text: object) -> str:
    """Shorten text from the file for a message, and replace control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:200])


def find_inert(value: Any) -> str | None:
    """Describe the first object in `value` that was not built, or return None."""
    todo, visited = [value], set()
    while todo:
        item = todo.pop()
        if id(item) in visited:
            continue
        visited.add(id(item))
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += item
        elif isinstance(item, Module):
            todo.append(item.state)
        elif isinstance(item, Array):
            if item.value is None:
                return item.problem
        elif isinstance(item, Inert):
            return item.what
        elif isinstance(item, Global):
            return item.name
        elif isinstance(item, Dtype):
            return "a numpy dtype"
    return None


def extend(target: Any, items: list[Any]) -> None:
    """Append to a list or set, or set alternating keys and values of a dict. An Inert ignores them."""
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(map(_key, items))
    elif isinstance(target, dict):
        if len(items) % 2:
            raise Refused("is damaged: a key without a value.")
        target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
    elif not isinstance(target, Inert | Module | Array):
        raise Refused("is damaged: it adds items to an object that is not a container.")


def _key(value: Any) -> Any:
    """Return a key if it is plain; hashing a tuple nested a million times would overflow the interpreter's stack."""
    plain = isinstance(value, str | bytes | int | float | Global | None)
    return value if plain else Inert("a key that is not a name")


def to_set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


def new_object(cls: Any) -> Any:
    name = cls.name if isinstance(cls, Global) else "something that is not a class"
    if name in DICTS:
        return {}
    return Module(name.rpartition(".")[2]) if name in _TORCH_MODULES else Inert(f"an object of {name}")


def set_state(target: Any, state: Any) -> None:
    """Set the state of an object; the state of a dict (attributes) and of an Inert is ignored."""
    if isinstance(target, Module) and isinstance(state, dict):
        target.state = state
    elif isinstance(target, Dtype) and isinstance(state, tuple):
        target.order = state[1]
    elif isinstance(target, Array) and isinstance(state, tuple):
        _fill(target, state)


def persistent_module(meta: Any) -> Any:
    """Build a layer stored by torch_utils.persistence, ignoring its source code (`module_src`), which is text."""
    match meta:
        case {"class_name": str(name), "state": dict(state)}:
            return Module(name, state)
    return Inert("a persistent object without a state")


def storage(persistent_id: Any, persistent: Callable[..., Any] | None) -> Any:
    """Resolve torch's ("storage", type, key, device, number of elements) and, in legacy files, None for "no view"."""
    if persistent is None or not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
        return Inert("a persistent id")
    kind, cls, key, _, count, *view = persistent_id
    code = _STORAGES.get(cls.name.removeprefix("torch.")) if isinstance(cls, Global) else None
    if kind != "storage" or code is None or view not in ([], [None]) or not isinstance(key, str):
        return Inert(f"a storage of {cls.name if isinstance(cls, Global) else 'an invalid type'}")
    return persistent(np.dtype("<" + code), key, count)


def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    """Build a view into a storage, which must be inside it and not larger (as an expanded tensor would be)."""
    if not isinstance(storage, np.ndarray):
        return storage if isinstance(storage, Inert) else Inert("a tensor without a storage")
    if not all(_is_size(n) for n in (offset, *size, *stride)) or not len(size) == len(stride) <= 8:
        return Inert("a tensor with a wrong size")
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if prod(size) > len(storage) or (prod(size) and end > len(storage)):
        return Inert(f"a tensor of size {tuple(size)} that is larger than its data")
    if not prod(size):
        return Array(np.empty(size, storage.dtype))
    width = storage.itemsize
    # numpy checks the buffer's end again.
    view = np.ndarray(size, storage.dtype, storage, offset * width, [step * width for step in stride])
    return Array(view)


def _fill(array: Array, state: tuple[Any, ...]) -> None:
    """Set numpy's state: (version, shape, dtype, Fortran order, bytes); objects have a list in place of bytes."""
    _, shape, dtype, fortran, data = state
    if isinstance(dtype, Inert) or not isinstance(data, bytes):
        array.problem = "a numpy array of objects, or of another type than numbers"
    elif not isinstance(dtype, Dtype) or dtype.order not in ("<", "|", "="):
        array.problem = "a numpy array of foreign byte order"
    elif not all(map(_is_size, shape)) or len(data) != prod(shape) * np.dtype(dtype.code).itemsize:
        array.problem = "a numpy array of another size than its data"
    else:
        array.value = np.frombuffer(data, "<" + dtype.code).reshape(
            shape, order="F" if fortran in (True, "F") else "C"
        )


def numpy_dtype(code: Any, *_: Any) -> Any:
    # Only text is looked up, see _key.
    return Dtype(code) if isinstance(code, str) and code in _DTYPES else Inert("a numpy dtype that is not a number")


def array(shape: Any, dtype: Any, fortran: Any, data: Any) -> Array:
    made = Array()
    _fill(made, (1, shape, dtype, fortran, data))
    return made


def dill_array(function: Any, args: Any, state: tuple[Any, ...], attributes: Any = None) -> Array:
    return array(*state[1:])


def scalar(dtype: Any, data: Any) -> Any:
    made = array((), dtype, False, data)
    return Inert(made.problem) if made.value is None else made.value.item()


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48
