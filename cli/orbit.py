"""`relight --orbit`: one turn of the lights as PNG frames and an animated WebP; an interrupted run can be resumed.

    turn.webp                   written last: if it exists, the turn is complete
    turn/turn_000.png ...       the frames
    turn/turn_frames.json       the manifest: options, and the SHA-256 of every frame

The manifest distinguishes our frames from the user's files. A frame is listed before it is renamed into place, so that
an interruption at any moment leaves no unlisted frame.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from .. import __version__
from ..intrinsics.files import atomic_path, file_sha256
from .progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from ..intrinsics.relight import GBuffer, Light

TURN_SECONDS = 4  # how long the animated WebP takes for one turn
NOT_DRAWN = ("out", "overwrite", "device", "images", "maps")  # options without effect on frames, except by content
MODELS = ("base", "base_config", "loras")


@dataclass(frozen=True)
class Turn:
    """Plan of `write_orbit`.

    Attributes:
        out: the animated WebP.
        frames: the files of the frames, in order.
        options: everything the frames depend on.
        finished: {name: SHA-256} of existing frames that are kept.
        obsolete: files that are removed first, in this order.
    """

    out: Path
    frames: list[Path]
    options: dict[str, Any]
    finished: dict[str, str]
    obsolete: list[Path]

    @property
    def manifest(self) -> Path:
        return _manifest(self.out)


def orbit_files(out: Path, count: int) -> list[Path]:
    """List the WebP, the manifest and the frames."""
    folder = out.with_suffix("")
    return [out, _manifest(out), *(folder / f"{out.stem}_{i:03d}.png" for i in range(count))]


def orbit_options(parameters: Mapping[str, Any], image: Path, maps: Path | None) -> dict[str, Any]:
    """Return what the frames depend on as JSON values: options, hashes of input files, dates of local models."""
    options = {name: _value(name, value) for name, value in parameters.items() if name not in NOT_DRAWN}
    inputs = [image]
    if maps is not None and maps.is_dir():
        stem = image.stem.removesuffix("_rgb")
        endings = (".npz", ".exr", ".png")
        inputs += sorted(
            path for path in maps.iterdir() if path.stem.startswith(stem) and path.suffix.lower() in endings
        )
    elif maps is not None:
        inputs.append(maps)
    return options | {"version": __version__, "files": [_named(path) for path in inputs]}


def plan_orbit(out: Path, count: int, options: dict[str, Any], overwrite: bool) -> Turn:
    """Plan the run from the existing files; nothing is changed.

    Raises:
        typer.BadParameter: existing files must not be replaced, or only with `--overwrite`.
    """
    _, manifest, *frames = orbit_files(out, count)
    if manifest.parent.exists() and not manifest.parent.is_dir():
        _refuse(
            f"{manifest.parent} is not a folder, and the frames require a folder of this name; choose another name."
        )
    before = _read_manifest(manifest)
    if out.exists() and not overwrite:
        _refuse(f"{out} already exists; use --overwrite to replace it.")
    present = [path for path in manifest.parent.glob(f"{escape(out.stem)}_[0-9][0-9][0-9].png") if path.is_file()]
    listed = before.get("frames", {})
    ours = {path for path in present if path.name in listed and file_sha256(path) == listed[path.name]}
    unlisted = sorted(set(present) - ours)
    for path in unlisted:
        # A player would show it as part of this turn, but it may be the user's only copy.
        if path not in frames:
            _refuse(f"{path} is not a frame that this command wrote; move it, or choose another name.")
        if not overwrite:
            _refuse(
                f"{path} already exists and was changed since this command wrote it; use --overwrite to replace it."
            )
    same = before.get("options") == options
    if before and not same and not overwrite:
        changed = sorted(key for key in options if before["options"].get(key) != options[key])
        _refuse(
            f"{manifest.parent} holds frames of a run with other settings ({', '.join(changed) or 'version'}); use "
            "--overwrite to replace them."
        )
    if same and not out.exists():  # interrupted
        finished = {path.name: listed[path.name] for path in frames if path in ours}
        return Turn(out, frames, options, finished, unlisted)
    # The WebP is removed first, because its existence means that the frames are complete.
    return Turn(out, frames, options, {}, [path for path in (out, *sorted(present)) if path.exists()])


def write_orbit(
    turn: Turn,
    gbuffer: "GBuffer",
    lights: Sequence["Light"],
    look: dict[str, Any],
    alpha: "Tensor | None",
) -> None:
    """Render the missing frames, then write the animated WebP."""
    from PIL import Image

    from ..intrinsics.pictures import write_json
    from ..intrinsics.relight import relight
    from ..intrinsics.relight.animate import orbit
    from ..intrinsics.relight.files import write_relit

    for path in turn.obsolete:
        path.unlink()
    turn.manifest.parent.mkdir(parents=True, exist_ok=True)
    finished = dict(turn.finished)
    write_json(turn.manifest, {"options": turn.options, "frames": finished})
    count = len(turn.frames)
    with progress_bar(Console(stderr=True)) as progress:
        for i, frame in progress.track(list(enumerate(turn.frames)), description="relight"):
            if frame.name in finished:
                continue
            with atomic_path(frame) as temporary:
                write_relit(temporary, gbuffer, relight(gbuffer, orbit(lights, i / count), **look), alpha)
                finished[frame.name] = file_sha256(temporary)
                write_json(turn.manifest, {"options": turn.options, "frames": finished})
    pictures = (Image.open(frame) for frame in turn.frames)
    duration = round(1000 * TURN_SECONDS / count)  # milliseconds
    with atomic_path(turn.out) as temporary:
        next(pictures).save(temporary, save_all=True, append_images=pictures, duration=duration, loop=0, quality=90)


def _manifest(out: Path) -> Path:
    return out.with_suffix("") / f"{out.stem}_frames.json"


def _read_manifest(path: Path) -> Any:
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest["options"], dict) and isinstance(manifest["frames"], dict):
            return manifest
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    _refuse(f"{path} is not a manifest written by this command; move it or choose another name.")


def _refuse(sentence: str) -> Any:
    raise typer.BadParameter(sentence, param_hint="'--out'")


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return _named(value)
    if name in MODELS and value is not None and Path(value).exists():
        return _dated(Path(value))
    return value


def _named(path: Path) -> list[str]:
    return [path.name, file_sha256(path)]


def _dated(path: Path) -> Any:
    """Return the names, sizes and dates of the files at a path; models are too large to hash."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = {str(file): file.stat() for file in files if file.is_file()}
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states.items()]
