"""Pictures that a generator draws, each with the condition that fixes it: what its I-LoRAs are trained on.

    OUT/photos/000007.png                   the picture, 8 bits
    OUT/conditions/000007.safetensors       what it was drawn from
    OUT/make_set.json                       whose they are

`label OUT/photos --out OUT` adds the labels, and then OUT is a folder to train on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...intrinsics.files import file_sha256
from ...intrinsics.pictures import read_picture, write_json, write_png
from ...intrinsics.vocabulary import PICTURE_SUFFIXES
from ..backbones.interfaces import Generator, require_encoder
from .conditions import FOLDER, SUFFIX, Condition, write_condition
from .listing import files_by_stem
from .sample import Sample, prepare

INDEX = "make_set.json"

Failed = Callable[[Path, Exception], None]
Plan = Iterator[tuple[str, dict[str, Any], Callable[[], Tensor]]]  # name, what is said of it, its condition (1, ...)


@dataclass(frozen=True)
class Made:
    """How many pictures were drawn now, were there already, and could not be."""

    written: int
    there: int
    failed: int


def make_set(
    backbone: Generator,
    out: str | Path,
    *,
    count: int | None = None,
    seed: int = 0,
    classes: Sequence[int] | None = None,
    photos: str | Path | None = None,
    resolution: int | None = None,
    failed: Failed = lambda path, error: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Made:
    """Draw `count` pictures, or every photo of a folder as the generator sees it. What is there is left as it is.

    A picture depends on its own seed alone, so a set can be enlarged, and an interrupted one goes on.

    Args:
        backbone: the generator, with no LoRA on.
        out: made when missing.
        count: pictures, of the seeds `seed`, `seed + 1`, ...
        classes: those to be drawn; a seed's class is number `seed % len(classes)` of them.
        photos: a folder, with its subfolders, instead of `count`; for a generator that can see pictures.
        resolution: of the photos: short side in pixels, then the centre square; by default the generator's own.
        failed: called with every photo that cannot be read, and why.
        progress: called with the pictures done and all there are.
        options: of the generator's `sample`, as truncation=0.7; None counts as not given.

    Raises:
        ValueError: an option that this generator has not, `out` holds another set, or there is nothing to draw.
        FileNotFoundError: there is no folder of photos.
    """
    out = Path(out)
    options = {key: value for key, value in options.items() if value is not None}
    given = options | ({} if classes is None else {"classes": list(classes)})
    if strange := sorted(given.keys() - set(backbone.sample_options)):
        takes = ", ".join(backbone.sample_options) or "none"
        raise ValueError(f"{backbone.name}, a {backbone.family}, takes no {', '.join(strange)}; its options: {takes}.")
    if (photos is None) == (count is None):
        raise ValueError("Say either how many pictures to draw or which folder of photos to draw them from.")
    if count is not None:
        plan, total = _from_seeds(backbone, range(seed, seed + count), classes, options), count
    elif given:
        raise ValueError(f"{', '.join(given)} cannot be combined with photos.")
    else:
        found = _photos(Path(str(photos)), out)
        given["resolution"] = resolution or backbone.resolution
        plan, total = _from_photos(backbone, found, given["resolution"]), len(found)
    _claim(out, backbone, _said(given))

    written = there = bad = 0
    for name, said, condition_of in plan:
        picture, beside = out / "photos" / f"{name}.png", out / FOLDER / f"{name}{SUFFIX}"
        try:
            if picture.exists() and beside.exists():
                there += 1
            else:
                _draw(backbone, condition_of(), said, picture, beside)
                written += 1
        except (ValueError, ImportError) as error:
            if photos is None:
                raise
            bad += 1
            failed(Path(name), error)
        progress(written + there + bad, total)
    return Made(written, there, bad)


def _from_seeds(
    backbone: Generator, seeds: Iterable[int], classes: Sequence[int] | None, options: dict[str, Any]
) -> Plan:
    for seed in seeds:
        one = options if classes is None else options | {"classes": [classes[seed % len(classes)]]}
        yield f"{seed:06d}", {"seed": seed} | _said(one), partial(backbone.sample, [seed], **one)


def _from_photos(backbone: Generator, found: dict[str, Path], resolution: int) -> Plan:
    encoder = require_encoder(backbone)

    def condition_of(path: Path) -> Tensor:
        photo = prepare(Sample(path.name, read_picture(path).rgb[0], {}, None), resolution).photo
        return encoder.encode_picture(photo[None])

    for name, path in found.items():
        yield name, {"photo": path.name}, partial(condition_of, path)


@torch.no_grad()
def _draw(backbone: Generator, condition: Tensor, said: dict[str, Any], picture: Path, beside: Path) -> None:
    """The condition is written first: a picture that is there has one."""
    drawn = backbone.render(condition)  # (1, 3, R, R)
    for path in (picture, beside):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_condition(beside, Condition(condition[0], backbone.fingerprint, {"family": backbone.family} | said))
    write_png(picture, drawn.float().cpu())


def _said(options: dict[str, Any]) -> dict[str, Any]:
    """The options as they are written down: of a file what it holds, not where it lies."""
    return {key: file_sha256(value)[:16] if key == "centroids" else value for key, value in options.items()}


def _photos(folder: Path, out: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"Folder {folder} not found.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies within {folder}, so that a rerun would read its own results; choose another.")
    found, twins = files_by_stem(folder, PICTURE_SUFFIXES)
    if twins:
        raise ValueError(f"{twins[0]} has the name of another photo; rename one of them.")
    if not found:
        raise ValueError(f"{folder} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    return found


def _claim(out: Path, backbone: Generator, options: dict[str, Any]) -> None:
    """Write `make_set.json`, or refuse a folder that another generator or other options filled."""
    ours = {"family": backbone.family, "base": backbone.name, "base_hash": backbone.fingerprint, "options": options}
    if (out / INDEX).exists():
        try:
            theirs = json.loads((out / INDEX).read_text(encoding="utf-8"))
            if not isinstance(theirs, dict):
                raise ValueError("it holds no object")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{out / INDEX} is damaged ({error}); choose another folder.") from error
        different = [key for key in ("base_hash", "options") if theirs.get(key) != ours[key]]
        if different:
            changes = "; ".join(f"{key} {theirs.get(key)}, now {ours[key]}" for key in different)
            raise ValueError(f"{out} holds a set that was made otherwise ({changes}): choose another folder.")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds something else than a set of make-set; choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / INDEX, ours)
