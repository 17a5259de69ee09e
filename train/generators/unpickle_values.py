"""What the reader of untrusted pickles builds: plain data, every size checked, nothing looked up, nothing called."""

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
    """A class or function by its name, such as "collections.OrderedDict". Only a name: nothing is looked up."""

    name: str


@dataclass(frozen=True, eq=False)
class Inert:
    """In the place of something that was not built; `what` says what it is."""

    what: str


@dataclass(eq=False)
class Module:
    """A network or one of its layers: the name of its class and its attributes."""

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
    """The rest of a sentence that begins with the file's name."""


def printable(text: object) -> str:
    """For a sentence that quotes the file: short, on one line, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:200])


def find_inert(value: Any) -> str | None:
    """What the first thing in `value` that was not built is, or None where all was."""
    todo, seen = [value], set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
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
    """Appends to a list or set, or sets keys and values, alternating, of a dict. An Inert swallows them."""
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(map(_key, items))
    elif isinstance(target, dict):
        if len(items) % 2:
            raise Refused("is damaged: a key without a value.")
        target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
    elif not isinstance(target, Inert | Module | Array):
        raise Refused("is damaged: it adds items to what holds none.")


def _key(value: Any) -> Any:
    """Keys are plain: the hash of a tuple nested a million deep would overflow the interpreter's own stack."""
    plain = isinstance(value, str | bytes | int | float | Global | None)
    return value if plain else Inert("a key that is no name")


def to_set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


def new_object(cls: Any) -> Any:
    name = cls.name if isinstance(cls, Global) else "what is no class"
    if name in DICTS:
        return {}
    return Module(name.rpartition(".")[2]) if name in _TORCH_MODULES else Inert(f"an object of {name}")


def set_state(target: Any, state: Any) -> None:
    """Gives an object its state; that of a dict (attributes beside its items) and of an Inert is dropped."""
    if isinstance(target, Module) and isinstance(state, dict):
        target.state = state
    elif isinstance(target, Dtype) and isinstance(state, tuple):
        target.order = state[1]
    elif isinstance(target, Array) and isinstance(state, tuple):
        _fill(target, state)


def persistent_module(meta: Any) -> Any:
    """A layer as torch_utils.persistence stores it. Its source code (`module_src`) is text, and is dropped."""
    match meta:
        case {"class_name": str(name), "state": dict(state)}:
            return Module(name, state)
    return Inert("a persistent object without a state")


def storage(persistent_id: Any, persistent: Callable[..., Any] | None) -> Any:
    """torch's ("storage", type, key, device, number of elements) and, in legacy files, None for "no view"."""
    if persistent is None or not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
        return Inert("a persistent id")
    kind, cls, key, _, count, *view = persistent_id
    code = _STORAGES.get(cls.name.removeprefix("torch.")) if isinstance(cls, Global) else None
    if kind != "storage" or code is None or view not in ([], [None]) or not isinstance(key, str):
        return Inert(f"a storage of {cls.name if isinstance(cls, Global) else 'what is no type'}")
    return persistent(np.dtype("<" + code), key, count)


def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    """A view into a storage, which must lie inside it and may not be larger than it (as an expanded one would be)."""
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
    # numpy compares with the buffer's end once more
    view = np.ndarray(size, storage.dtype, storage, offset * width, [step * width for step in stride])
    return Array(view)


def _fill(array: Array, state: tuple[Any, ...]) -> None:
    """numpy's state: (version, shape, dtype, Fortran order, bytes); a list in the place of bytes are objects."""
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
    # Only texts are looked up: see _key.
    return Dtype(code) if isinstance(code, str) and code in _DTYPES else Inert("a numpy dtype that is no number")


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
