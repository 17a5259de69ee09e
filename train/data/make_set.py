"""Training sets for I-LoRAs on a generator: its pictures together with their conditions.

    OUT/photos/000007.png                   the picture, 8 bits
    OUT/conditions/000007.safetensors       its condition
    OUT/make_set.json                       the generator and the options

`label OUT/photos --out OUT` adds the labels, which completes the training set.
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
Plan = Iterator[tuple[str, dict[str, Any], Callable[[], Tensor]]]  # name, origin, function that returns (1, ...)


@dataclass(frozen=True)
class Made:
    """Numbers of pictures that were generated, skipped because they exist, and failed."""

    written: int
    skipped: int
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
    """Generate `count` pictures, or reconstruct the photos of a folder. Existing pictures are skipped.

    A picture depends only on its seed, so that a set can be resumed and extended.

    Args:
        backbone: the generator, without an active LoRA.
        out: output folder; created if missing.
        count: number of pictures, with the seeds `seed`, `seed + 1`, ...
        seed: random seed of the first picture.
        classes: class indices; a picture has class `classes[seed % len(classes)]`.
        photos: folder of photos, including subfolders, in place of `count`; requires a generator with an encoder.
        resolution: size of the photos in pixels (short side, then centre crop); defaults to that of the generator.
        failed: called with the name and the error of every photo that fails.
        progress: called with the numbers of pictures done and in total.
        options: options of the generator's `sample`, such as truncation=0.7; None values are ignored.

    Raises:
        ValueError: an option that this generator does not support, another set in `out`, or no photos.
        FileNotFoundError: the folder of photos does not exist.
    """
    out = Path(out)
    options = {key: value for key, value in options.items() if value is not None}
    given = options | ({} if classes is None else {"classes": list(classes)})
    if unsupported := ", ".join(sorted(given.keys() - set(backbone.sample_options))):
        options_of = ", ".join(backbone.sample_options) or "none"
        raise ValueError(
            f"{backbone.name}, a {backbone.family}, does not support {unsupported}; its options: {options_of}."
        )
    if (photos is None) == (count is None):
        raise ValueError("Specify either the number of pictures or a folder of photos.")
    if count is not None:
        plan, total = _from_seeds(backbone, range(seed, seed + count), classes, options), count
    elif given:
        raise ValueError(f"{', '.join(given)} cannot be combined with photos.")
    else:
        found = _photos(Path(str(photos)), out)
        given["resolution"] = resolution or backbone.resolution
        plan, total = _from_photos(backbone, found, given["resolution"]), len(found)
    _claim(out, backbone, _recorded(given))

    written = skipped = bad = 0
    for name, origin, condition_of in plan:
        picture, condition = out / "photos" / f"{name}.png", out / FOLDER / f"{name}{SUFFIX}"
        try:
            if picture.exists() and condition.exists():
                skipped += 1
            else:
                _draw(backbone, condition_of(), origin, picture, condition)
                written += 1
        except (ValueError, ImportError) as error:
            if photos is None:
                raise
            bad += 1
            failed(Path(name), error)
        progress(written + skipped + bad, total)
    return Made(written, skipped, bad)


def _from_seeds(
    backbone: Generator, seeds: Iterable[int], classes: Sequence[int] | None, options: dict[str, Any]
) -> Plan:
    for seed in seeds:
        chosen = options if classes is None else options | {"classes": [classes[seed % len(classes)]]}
        yield f"{seed:06d}", {"seed": seed} | _recorded(chosen), partial(backbone.sample, [seed], **chosen)


def _from_photos(backbone: Generator, found: dict[str, Path], resolution: int) -> Plan:
    encoder = require_encoder(backbone)

    def condition_of(path: Path) -> Tensor:
        photo = prepare(Sample(path.name, read_picture(path).rgb[0], {}, None), resolution).photo
        return encoder.encode_picture(photo[None])

    for name, path in found.items():
        yield name, {"photo": path.name}, partial(condition_of, path)


@torch.no_grad()
def _draw(backbone: Generator, condition: Tensor, origin: dict[str, Any], picture: Path, file: Path) -> None:
    """Render a picture; its condition is written first, so that every picture has one."""
    drawn = backbone.render(condition)  # (1, 3, R, R)
    for path in (picture, file):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_condition(file, Condition(condition[0], backbone.fingerprint, {"family": backbone.family} | origin))
    write_png(picture, drawn.float().cpu())


def _recorded(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as stored in files, with the hash of the centroids in place of their path."""
    return {key: file_sha256(value)[:16] if key == "centroids" else value for key, value in options.items()}


def _photos(folder: Path, out: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"Folder {folder} not found.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} is inside {folder}, so a rerun would read its own results; choose another folder.")
    found, duplicates = files_by_stem(folder, PICTURE_SUFFIXES)
    if duplicates:
        raise ValueError(f"{duplicates[0]} has the same name as another photo; rename one of them.")
    if not found:
        raise ValueError(f"{folder} contains no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    return found


def _claim(out: Path, backbone: Generator, options: dict[str, Any]) -> None:
    """Write `make_set.json`, or reject a folder with a set of another generator or with other options."""
    index = {"family": backbone.family, "base": backbone.name, "base_hash": backbone.fingerprint, "options": options}
    if (out / INDEX).exists():
        try:
            existing = json.loads((out / INDEX).read_text(encoding="utf-8"))
            if not isinstance(existing, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{out / INDEX} is damaged ({error}); choose another folder.") from error
        different = [key for key in ("base_hash", "options") if existing.get(key) != index[key]]
        if different:
            changes = "; ".join(f"{key} {existing.get(key)}, now {index[key]}" for key in different)
            raise ValueError(f"{out} contains a set made with other settings ({changes}): choose another folder.")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} contains other files than a set of make-set; choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / INDEX, index)
