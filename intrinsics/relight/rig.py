"""Text formats of rigs: the versioned JSON format of files, nodes and the browser, and the command line's short form.

A light's mask and an environment's panorama are pictures, which the text refers to by *name*. The argument `images`
maps names to tensors; `read_rig` also looks them up as files in the folder of the rig file.
"""

import dataclasses
import difflib
import json
import os
import reprlib
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..color import luminance
from ..files import continued
from ..pictures import read_picture, write_json
from .fields import LIGHT_FIELDS, LIGHT_TYPES, check_field
from .lights import Light

RIG_FORMAT = "intrinsic-lora-rig"
RIG_VERSION = 1
MAX_LIGHTS = 64
MAX_TEXT = 1_000_000  # characters
SWITCHES = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


Resolve = Callable[[str, str], Tensor]  # (name, field) -> the picture; raises ValueError or FileNotFoundError


def rig_to_json(lights: Iterable[Light], images: Mapping[str, Tensor] = MappingProxyType({})) -> str:
    """Serialise a rig as JSON. All fields are written, so that the text keeps its meaning if a default changes.

    Args:
        lights: fields may be tensors of one value; they are written as numbers.
        images: name -> tensor, as for `rig_from_json`. A mask or panorama is written as the name of the identical
            tensor (`is`).

    Raises:
        ValueError: more than 64 lights, a value out of range, a tensor with one value per picture, or a mask or
            panorama that is not in `images`.
    """
    return json.dumps(_document(lights, images), ensure_ascii=False, allow_nan=False)


def rig_from_json(text: str, images: Mapping[str, Tensor] = MappingProxyType({})) -> tuple[Light, ...]:
    """Parse a rig from JSON, validated against `LIGHT_FIELDS`.

    Args:
        text: see docs/rig.md.
        images: the pictures by name: masks (1, 1, H, W) in [0, 1], panoramas (1, 3, h, w) linear light.

    Raises:
        ValueError: not JSON, another format, a newer version, an unknown type or field, a wrong type, a value out of
            range, too many lights, or a name not in `images`; the message names the light and the field.
    """
    return _lights(text, _from_mapping(images))


def parse_light(text: str, images: Mapping[str, Tensor] = MappingProxyType({})) -> Light:
    """Parse a light in the command line's form: a type and `field=value` pairs, split at spaces as in a shell.

    "sun az=-40 el=35 kelvin=3200", "point x=.3 color=#ffcc88 shadow=off", "ambient intensity=.1 color=1,.9,.8". The
    values are those of JSON; a switch is on, off, true, false, yes, no, 1 or 0.

    Raises:
        ValueError: as for `rig_from_json`.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"The light {reprlib.repr(text)} has a quote that is not closed.") from error
    if not words or "=" in words[0]:
        raise ValueError(f'A light begins with its type ({_choices(LIGHT_TYPES)}), for example "sun az=-40 el=35".')
    entry: dict[str, Any] = {"type": words[0]}
    fields = LIGHT_FIELDS.get(words[0], {})
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"A light's settings are written field=value, without spaces, not {reprlib.repr(word)}.")
        if name in entry:
            raise ValueError(f"The light {reprlib.repr(text)} sets {name!r} twice.")
        entry[name] = _from_word(value, fields[name].kind) if name in fields else value
    return _light(entry, "The light", _from_mapping(images))


def read_rig(path: str | os.PathLike[str], images: Mapping[str, Tensor] = MappingProxyType({})) -> tuple[Light, ...]:
    """Read a rig file.

    Names of pictures that are not in `images` are files in the folder of the rig file: masks are grey (or the alpha
    channel, if it is not opaque), panoramas are read by `read_panorama`.

    Raises:
        FileNotFoundError: the file or one of its pictures does not exist.
        ValueError: as for `rig_from_json`, or a name that is not a plain file name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no rig file {path}.")
    with path.open("rb") as file:
        data = file.read(4 * MAX_TEXT + 1)  # UTF-8 needs up to 4 bytes for a character
    cache: dict[tuple[str, str], Tensor] = {}

    def resolve(name: str, field: str) -> Tensor:
        if name in images:
            return images[name]
        if (name, field) not in cache:
            picture = path.parent / _file_name(name)
            if not picture.is_file():
                raise FileNotFoundError(f"There is no file {name!r} in the folder of {path.name}.")
            cache[name, field] = _read_mask(picture) if field == "mask" else _read_panorama(picture)
        return cache[name, field]

    try:
        return _lights(data.decode("utf-8-sig"), resolve)  # Windows editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a light rig: it is not UTF-8 text.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_rig(
    path: str | os.PathLike[str], lights: Iterable[Light], images: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Write a rig file, atomically. Its pictures (see `rig_to_json`) are not written.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: as for `rig_to_json`, or a picture's name that `read_rig` would reject.
    """
    document = _document(lights, images)
    for light in document["lights"]:
        for field in ("mask", "image"):
            if light.get(field) is not None:
                _file_name(light[field])
    write_json(path, document)


def mirror(lights: Iterable[Light]) -> tuple[Light, ...]:
    """Swap left and right in a rig. Masks belong to the picture and are unchanged; panoramas are flipped copies."""
    return tuple(_mirrored(light) for light in lights)


def _mirrored(light: Light) -> Light:
    changes: dict[str, Any] = {}
    for name in LIGHT_FIELDS[_type_name(light)]:
        value = getattr(light, name)
        if name in ("az", "rotation"):
            changes[name] = -value
        elif name in ("x", "aim_x"):
            changes[name] = 1 - value
        elif name == "image":
            changes[name] = value.flip(-1)
    return dataclasses.replace(light, **changes)


# --- Writing


def _document(lights: Iterable[Light], images: Mapping[str, Tensor]) -> dict[str, Any]:
    entries = [_entry(light, f"Light {index}", images) for index, light in enumerate(lights, 1)]
    if len(entries) > MAX_LIGHTS:
        raise ValueError(f"A rig holds at most {MAX_LIGHTS} lights, not {len(entries)}.")
    return {"format": RIG_FORMAT, "version": RIG_VERSION, "lights": entries}


def _entry(light: Light, who: str, images: Mapping[str, Tensor]) -> dict[str, Any]:
    kind = _type_name(light)
    entry: dict[str, Any] = {"type": kind}
    for name, field in LIGHT_FIELDS[kind].items():
        value, where = getattr(light, name), f"{who} ({kind}), {name}:"
        if field.kind == "picture":
            value = None if value is None else _name_of(value, images, where)
        elif isinstance(value, Tensor):
            if value.numel() != (3 if field.kind == "color" else 1):
                raise ValueError(f"{where} a rig is written for one picture; this tensor is {tuple(value.shape)}.")
            value = value.flatten().tolist() if field.kind == "color" else value.item()
        elif field.kind == "color":
            value = list(value)
        entry[name] = check_field(value, field, where)
    return entry


def _type_name(light: Light) -> str:
    for kind, cls in LIGHT_TYPES.items():
        if type(light) is cls:  # a Rim is a Sun too
            return kind
    raise ValueError(f"A rig cannot contain a {type(light).__name__}; its lights are: {_choices(LIGHT_TYPES)}.")


def _name_of(picture: Tensor, images: Mapping[str, Tensor], where: str) -> str:
    for name, image in images.items():
        if image is picture:
            return name
    raise ValueError(f"{where} a picture is written by its name; give it as images={{name: tensor}}.")


# --- Reading


def _lights(text: str, resolve: Resolve) -> tuple[Light, ...]:
    if len(text) > MAX_TEXT:
        raise ValueError(f"The light rig is too long: at most {MAX_TEXT // 10**6} MB of text.")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        detail = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "too much nesting"
        raise ValueError(f"The light rig is not valid JSON ({detail}).") from error
    if not isinstance(document, dict) or document.get("format") != RIG_FORMAT:
        raise ValueError(f'This is not a light rig: it must be a JSON object with "format": "{RIG_FORMAT}".')
    version, entries = document.get("version"), document.get("lights")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"The light rig's version must be {RIG_VERSION}, not {reprlib.repr(version)}.")
    if version > RIG_VERSION:
        raise ValueError(
            f"The light rig was made by a newer version of intrinsic-lora (rig version {reprlib.repr(version)}, this "
            f"one reads {RIG_VERSION}): update intrinsic-lora."
        )
    for name in document.keys() - {"format", "version", "lights"}:
        raise ValueError(f"The light rig has an unknown field {_suggest(name, ('format', 'version', 'lights'))}")
    if not isinstance(entries, list):
        raise ValueError('The light rig needs "lights": a list of lights, which may be empty.')
    if len(entries) > MAX_LIGHTS:
        raise ValueError(f"A rig holds at most {MAX_LIGHTS} lights, not {len(entries)}.")
    return tuple(_light(entry, f"Light {index}", resolve) for index, entry in enumerate(entries, 1))


def _light(entry: Any, who: str, resolve: Resolve) -> Light:
    """Parse a light from its JSON object. `who` begins every error message."""
    if not isinstance(entry, dict):
        raise ValueError(f'{who} must be an object such as {{"type": "sun", "az": -40}}, not {reprlib.repr(entry)}.')
    kind = entry.get("type")
    if kind is None:
        raise ValueError(f'{who} has no "type"; choose from {_choices(LIGHT_TYPES)}.')
    if not isinstance(kind, str) or kind not in LIGHT_TYPES:
        raise ValueError(f"{who} has an unknown type {_suggest(kind, LIGHT_TYPES)}")
    fields, values = LIGHT_FIELDS[kind], {}
    for name, value in entry.items():
        if name == "type":
            continue
        if name not in fields:
            raise ValueError(f"{who} ({kind}) has an unknown field {_suggest(name, fields)}")
        where = f"{who} ({kind}), {name}:"
        values[name] = check_field(value, fields[name], where)
        if fields[name].kind == "picture" and value is not None:
            values[name] = _resolved(value, name, where, resolve)
    if kind == "environment" and "image" not in values:
        raise ValueError(f'{who} ({kind}) needs "image": the name of its panorama.')
    return LIGHT_TYPES[kind](**values)


def _resolved(name: str, field: str, where: str, resolve: Resolve) -> Tensor:
    try:
        picture = resolve(name, field)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} {continued(error)}") from error
    except ValueError as error:
        raise ValueError(f"{where} {continued(error)}") from error
    channels = 1 if field == "mask" else 3
    if picture.ndim != 4 or len(picture) != 1 or picture.shape[1] != channels or 0 in picture.shape:
        raise ValueError(f"{where} {name!r} must have shape (1, {channels}, H, W), not {tuple(picture.shape)}.")
    return picture


def _from_mapping(images: Mapping[str, Tensor]) -> Resolve:
    def resolve(name: str, field: str) -> Tensor:
        if name not in images:
            raise ValueError(f"There is no picture {name!r}; {_known(images)}")
        return images[name]

    return resolve


def _known(images: Mapping[str, Tensor]) -> str:
    return f"choose from {_choices(images)}." if images else "no pictures were given for this rig."


def _from_word(word: str, kind: str) -> Any:
    """Convert a word of the short form to its JSON value; invalid text is rejected by `check_field`."""
    if kind == "switch":
        return SWITCHES.get(word.lower(), word)
    if kind == "color" and "," in word:
        return [_from_word(component, "number") for component in word.split(",")]
    if kind == "number":
        try:
            return float(word)
        except ValueError:
            return word
    return word


def _file_name(name: str) -> str:
    """Raise ValueError unless this is a plain file name that cannot be a path on any system."""
    if not name or name.startswith(".") or any(c in name for c in "/\\:"):
        raise ValueError(f"The name {name!r} must be a plain file name, of a picture in the folder of the rig file.")
    return name


def _read_mask(path: Path) -> Tensor:
    """Read a mask (1, 1, H, W) in [0, 1]: the alpha channel if it is not opaque, else grey as stored."""
    picture = read_picture(path)
    if picture.alpha is not None and picture.alpha.min() < 1:
        return picture.alpha
    return luminance(picture.rgb)


def _read_panorama(path: Path) -> Tensor:
    from .panorama import read_panorama

    return read_panorama(path)


def _choices(names: Iterable[str]) -> str:
    return ", ".join(names)


def _suggest(word: Any, known: Iterable[str]) -> str:
    """Return the end of a message, "'elevatoin'; did you mean 'elevation'?", or a list of choices if none is close."""
    known = list(known)
    near = difflib.get_close_matches(word[:40].lower(), known, n=1) if isinstance(word, str) else []
    return f"{reprlib.repr(word)}; " + (f"did you mean {near[0]!r}?" if near else f"choose from {_choices(known)}.")
