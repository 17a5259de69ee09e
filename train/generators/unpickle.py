"""Reading of untrusted pickles, and of torch checkpoints, which contain pickles, without executing code in them.

A pickle is a program whose opcodes name functions and call them. Python's `Unpickler` keeps these functions on its
stack, so that its safety depends on `find_class`; `torch.load(weights_only=True)` allows some of them, including
`bytearray(10**11)`, and rejects Lightning's checkpoints. Here the opcodes, parsed by the standard library's
`pickletools.genops`, drive a small stack machine whose stack never holds a callable: names in the file become
`Global`s, which are text. A call of one of the few known names builds plain data of bounded size; a call of any other
name becomes an `Inert` that describes it. Opcodes that no generator needs are rejected.

The result consists of dict, list, tuple, set, text, numbers, `Module`, `Array`, `Global` and `Inert`.
"""

import io
import mmap
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickletools import genops
from typing import Any, BinaryIO

import numpy as np

from .unpickle_values import (
    DICTS,
    Array,
    Global,
    Inert,
    Refused,
    array,
    dill_array,
    extend,
    new_object,
    numpy_dtype,
    persistent_module,
    printable,
    scalar,
    set_state,
    storage,
    tensor,
    to_set,
)

MAX_BYTES = 8 * 2**30  # of a file; the largest official generator has less than 3 GiB
MAX_STEPS = 2_000_000  # opcodes of at most 216 bytes each; a file with three large networks has a tenth of that
MAX_DIGITS = 32  # bytes of an integer

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before zip files
_LEGACY_START = b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")
# None of these would be called, but a file that names one is malicious, which the user should know.
_ATTACKS = re.compile(
    r"(os|posix|nt|subprocess|pty|socket|shutil|ctypes|runpy|sys|importlib|webbrowser|commands|code|multiprocessing"
    r"|asyncio|signal|threading)(\..*)?"
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|open|__import__|breakpoint|input|globals|vars)"
)
_TENSORFLOW = "dnnlib.tflib."


def read_untrusted(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
    """Read the content of a pickle or a torch checkpoint (zip or legacy), see above.

    Args:
        path: the file.
        max_bytes: maximum size of the file, which also bounds its content.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format, is damaged, names functions of attacks, or exceeds the limits.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; check the path.")
    if not 0 < path.stat().st_size <= max_bytes:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a generator has at most {max_bytes:,}.")
    reader = _Reader()
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            start = stream[: len(_LEGACY_START)]
            if start.startswith(b"PK"):
                return reader.zipped(file)
            return reader.legacy(stream) if start == _LEGACY_START else reader.run(stream)  # type: ignore[arg-type]
    except Refused as error:
        raise ValueError(f"{path} {error}") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a pickle or torch checkpoint, or is damaged ({printable(error)}).") from error


class _Reader:
    """The stack machine. A reader reads one file, including nested pickles, and counts its steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.inside = False  # a nested file
        self.known: dict[str, Callable[..., Any]] = {
            "torch_utils.persistence._reconstruct_persistent_obj": persistent_module,
            "torch.storage._load_from_bytes": self._nested,
            "torch._utils._rebuild_tensor_v2": tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "numpy.dtype": numpy_dtype,
            "dill._dill._load_type": lambda name: Inert("a type"),
            "dill._dill._create_array": dill_array,
            "builtins.set": to_set,
            "__builtin__.set": to_set,
        }
        for numpy in ("numpy.core.multiarray", "numpy._core.multiarray"):
            self.known[f"{numpy}._reconstruct"] = lambda cls, shape, code: Array()
            self.known[f"{numpy}.scalar"] = scalar
        for numpy in ("numpy.core.numeric", "numpy._core.numeric"):
            self.known[f"{numpy}._frombuffer"] = lambda data, dtype, shape, order: array(
                shape, dtype, order == "F", data
            )
        self.known |= {name: lambda: {} for name in DICTS}

    # --- files

    def zipped(self, file: BinaryIO) -> Any:
        """Read a checkpoint of torch.save: a zip with `NAME/data.pkl` and one uncompressed entry per storage."""
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            plain = all(info.compress_type == zipfile.ZIP_STORED for info in entries.values())
            if not plain or sum(info.file_size for info in entries.values()) > os.fstat(file.fileno()).st_size:
                raise Refused("is a compressed zip, so it is not a torch checkpoint.")
            pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise Refused("is a zip without a data.pkl, so it is not a torch checkpoint.")
            folder, storages = pickles[0].removesuffix("data.pkl"), {}
            if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
                raise Refused("was written on a big-endian machine, which is not supported.")

            def persistent(dtype: np.dtype, key: str, count: int) -> np.ndarray:
                if key not in storages:
                    storages[key] = archive.read(f"{folder}data/{key}")  # verifies the checksum
                data = np.frombuffer(storages[key], dtype)
                if len(data) != count:
                    raise Refused(f"claims that a storage has {count} elements, but it has {len(data)}.")
                return data

            return self.run(io.BytesIO(archive.read(pickles[0])), persistent)

    def legacy(self, stream: BinaryIO) -> Any:
        """Read a file of torch.save before torch 1.6, a format that storages in plain pickles still use.

        It has five pickles (magic number, version, machine, object, keys of storages), then the storages' data.
        """
        if self.run(stream) != _LEGACY_MAGIC or self.run(stream) != _LEGACY_VERSION:
            raise Refused("is a torch file of an unknown version.")
        self.run(stream)
        start = stream.tell()
        wanted: dict[str, np.dtype] = {}
        self.run(stream, lambda dtype, key, count: wanted.setdefault(key, dtype))
        storages = {}
        for key in self.run(stream):
            if not isinstance(key, str):
                raise Refused("has an invalid name of a storage.")
            count = int.from_bytes(stream.read(8), "little")
            data = stream.read(min(count * wanted[key].itemsize, 2**62))  # limited by the stream, which is in memory
            if len(data) != count * wanted[key].itemsize:
                raise Refused("is truncated, or claims more data than it has.")
            storages[key] = np.frombuffer(data, wanted[key])

        def persistent(dtype: np.dtype, key: str, count: int) -> np.ndarray:
            if len(storages[key]) != count:
                raise Refused(f"claims that a storage has {count} elements, but it has {len(storages[key])}.")
            return storages[key]

        stream.seek(start)
        return self.run(stream, persistent)

    def _nested(self, data: Any) -> Any:
        """Read a storage in a plain pickle, which is a complete legacy file."""
        if self.inside or not isinstance(data, bytes) or not data.startswith(_LEGACY_START):
            return Inert("a nested torch file that is not of the legacy format")
        self.inside = True
        try:
            return self.legacy(io.BytesIO(data))
        finally:
            self.inside = False

    # --- opcodes

    def run(self, stream: BinaryIO, persistent: Callable[..., Any] | None = None) -> Any:
        """Return the value of the pickle at the current position, leaving the stream after its last opcode.

        `persistent(dtype, key, count)` returns the storage to which torch refers by a persistent id.
        """
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def above_mark() -> list[Any]:
            mark = marks.pop()
            items = stack[mark:]
            del stack[mark:]
            return items

        arg: Any
        for opcode, arg, _ in genops(stream):
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Refused(f"takes more than {MAX_STEPS:,} steps to read, far more than any generator.")
            match opcode.name:
                case "BINPUT" | "LONG_BINPUT":
                    memo[arg] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
                case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING":
                    stack.append(arg)
                case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BINFLOAT" | "BININT" | "BININT1" | "BININT2":
                    stack.append(arg)
                case "BYTEARRAY8":  # numpy's, from protocol 5 on
                    stack.append(bytes(arg))
                case "LONG1" | "LONG4":
                    if arg.bit_length() > 8 * MAX_DIGITS:
                        raise Refused(f"holds an integer of more than {MAX_DIGITS} bytes, so it is not a generator.")
                    stack.append(arg)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_SET":
                    stack.append(set())
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(above_mark()))
                case "LIST":
                    stack.append(above_mark())
                case "FROZENSET":
                    stack.append(to_set(above_mark()))
                case "APPEND":
                    extend(stack[-2], [stack.pop()])
                case "APPENDS" | "ADDITEMS":
                    items = above_mark()
                    extend(stack[-1], items)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    extend(stack[-1], [key, value])
                case "SETITEMS":
                    items = above_mark()
                    extend(stack[-1], items)
                case "POP":
                    stack.pop()
                case "POP_MARK":
                    above_mark()
                case "GLOBAL":
                    stack.append(_named(*arg.split(" ", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_named(module, name))
                case "REDUCE":
                    args, function = stack.pop(), stack.pop()
                    stack.append(self._call(function, args))
                case "NEWOBJ" | "NEWOBJ_EX":
                    if opcode.name == "NEWOBJ_EX":
                        stack.pop()
                    args, cls = stack.pop(), stack.pop()
                    stack.append(new_object(cls))
                case "BUILD":
                    state = stack.pop()
                    set_state(stack[-1], state)
                case "BINPERSID":
                    stack.append(storage(stack.pop(), persistent))
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case _:
                    raise Refused(f"uses the opcode {opcode.name}, which no generator needs.")
        raise Refused("is truncated.")  # genops raises before this

    def _call(self, function: Any, args: Any) -> Any:
        """Return the result of a call in the file: data from one of our functions, or an Inert."""
        if not isinstance(function, Global):
            return function if isinstance(function, Inert) else Inert("a call of something that is not a function")
        known = self.known.get(function.name)
        if known is None:
            return Inert(function.name)
        try:
            return known(*args)
        except (TypeError, ValueError, AttributeError) as error:
            return Inert(f"a call of {function.name} with wrong arguments ({error})")


def _named(module: Any, name: Any) -> Global:
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
    if not re.fullmatch(r"[\w.<>]{1,200}", full):
        raise Refused("has an invalid name of a function.")
    if full.startswith(_TENSORFLOW):
        raise Refused(
            "is a pickle of a TensorFlow StyleGAN: convert it with legacy.py of NVIDIA's "
            "stylegan2-ada-pytorch (python legacy.py --source=OLD.pkl --dest=NEW.pkl), then import NEW.pkl."
        )
    if _ATTACKS.fullmatch(full):
        raise Refused(
            f"asks to run {full}, which no generator needs: it is hostile, delete it (nothing was executed)."
        )
    return Global(full)
