"""Settings as text: YAML and `key=value` to plain values, and plain values to their types; every error a sentence."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml

MISSING = "???"  # OmegaConf's sign for a value that must be given
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
LONGEST = 80  # characters of a value that a sentence shows


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file, nested as they are there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not YAML, or not of `key: value` lines.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Configuration file {path} not found.")
    return read_layer(lambda: load_omegaconf().OmegaConf.load(path), str(path))


def read_layer(parse: Callable[[], Any], where: str) -> dict[str, Any]:
    """Parse with OmegaConf and return plain values.

    Raises:
        ValueError: one sentence that starts with `where`: it is no settings, or asks for `${...}`.
    """
    omegaconf = load_omegaconf()
    try:
        layer = parse()
        if not omegaconf.OmegaConf.is_dict(layer):
            raise ValueError(f"{where} must hold `key: value` lines.")
        plain = omegaconf.OmegaConf.to_container(layer, resolve=False)
        strings = list(_strings(plain))
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text; save it as UTF-8.") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply to be settings.") from error
    except omegaconf.errors.GrammarParseError:
        strings = ["${"]
    except omegaconf.errors.OmegaConfBaseException as error:
        raise ValueError(f"{where} cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from error
    if any("${" in text for text in strings):
        raise ValueError(f"{where}: ${{...}} is not filled in from elsewhere; write the value itself.")
    return plain


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def typed(value: Any, kind: Any, key: str, where: str) -> Any:
    """Convert the value to the type `kind`: a Literal, text, a number, a list of these, or None."""
    optional = NoneType in get_args(kind)
    if optional:
        kind = next(choice for choice in get_args(kind) if choice is not NoneType)
    if (value is None and optional) or value == MISSING:
        return value
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
        if isinstance(value, str) and "," in value:
            raise ValueError(f"{where}: {key} is a list; write {key}=[{value}].")
        items = value if isinstance(value, list) else [value]
        return [typed(item, kind, key, where) for item in items]
    if get_origin(kind) is Literal:
        if value is False and "no" in get_args(kind):  # YAML's word for it
            return "no"
        wanted, fits = f"one of {', '.join(get_args(kind))}", value in get_args(kind)
    else:
        wanted, fits = KINDS[kind], _is_of(value, kind)
    if not fits:
        raise ValueError(f"{where}: {key} must be {wanted}, not {shortened(repr(value))}.")
    return value


def _is_of(value: Any, kind: type) -> bool:
    """Whether OmegaConf takes it for one: "1" is a whole number, too."""
    omegaconf = load_omegaconf()
    nodes = {str: "StringNode", int: "IntegerNode", float: "FloatNode", bool: "BooleanNode"}
    try:
        getattr(omegaconf, nodes[kind])(value)
    except omegaconf.errors.ValidationError:
        return False
    return value is not None


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def load_omegaconf() -> Any:
    """Return the package; ImportError, one sentence, if it is missing."""
    try:
        import omegaconf
    except ImportError as error:
        raise ImportError("Training needs the package omegaconf: pip install 'intrinsic-lora[train]'.") from error
    return omegaconf
