"""`intrinsic-lora extract --generator`: extract maps with the LoRAs of a VQGAN or StyleGAN."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ..diffusers_pipeline.jobs import Collected, Job, collect, refuse_overwriting, to_do
from ..intrinsics.files import map_paths
from ..intrinsics.vocabulary import INTRINSICS, DepthPolarity, NormalFrame, Upsample
from .checks import usage_errors
from .make_set import numbers
from .model import pick_device
from .progress import finish, loading, note, progress_bar, say, say_failed

if TYPE_CHECKING:
    from torch import Tensor

    from ..intrinsics.pictures import Picture
    from ..train.backbones.interfaces import Backbone

# Returns the photo (None for a generated picture), its condition, and the unpadded size of the output (None for a
# generated picture).
Encode = Callable[[], tuple["Picture | None", "Tensor", tuple[int, int] | None]]


def extract_generator(
    generator: Path,
    loras: str | None,
    paths: list[Path],
    seeds: str | None,
    options: dict[str, Any],
    names: list[str],
    out: Path,
    kinds: list[str],
    resolution: int | None,
    upsample: Upsample,
    frame: NormalFrame,
    polarity: DepthPolarity,
    device: str | None,
    overwrite: bool,
    recursive: bool,
) -> None:
    """Run `extract` with a generator, one picture at a time, so that maps do not depend on the batch.

    Args:
        seeds: random seeds of pictures to generate, such as "0-7"; exclusive with `paths`.
        options: keyword arguments of the generator's `sample`; None values are dropped.
        names: intrinsics to extract; empty for all that have a LoRA.
        Others: see `extract`.

    Raises:
        ValueError, FileNotFoundError: the options do not suit the generator, or a file is not found.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if bool(paths) == (seeds is not None):
        raise typer.BadParameter("Specify either --seeds or pictures.", param_hint="'--generator'")
    if loras is None:
        raise typer.BadParameter("Specify the LoRAs that were trained on this generator.", param_hint="'--loras'")
    if not generator.is_dir():
        raise FileNotFoundError(f"No generator was found at {generator}; create one with import-generator.")
    if seeds is None and options:
        raise typer.BadParameter("--truncation, --centroids and --class require --seeds.", param_hint="'--generator'")
    chosen = [] if seeds is None else numbers(seeds, "--seeds")
    found = Collected([], [])
    if seeds is None:
        with usage_errors():  # before anything is loaded
            found = collect(paths, out, recursive)

    where = pick_device(device)
    with loading():
        from ..intrinsics.map_writer import write_maps
        from ..intrinsics.pictures import write_png
        from ..train.backbones import generator_kind, load_backbone
        from ..train.generators.lora_files import attach_lora, generator_loras

        if generator_kind(generator) is None:
            raise ValueError(f"{generator} was not written by import-generator; use --base for Stable Diffusion.")
        backbone = load_backbone(generator, [], device=where)
    loaded = generator_loras(loras, backbone)
    if missing := [name for name in names if name not in loaded]:
        raise ValueError(f"No LoRA was found for {', '.join(missing)}; loaded: {', '.join(loaded)}.")
    names = names or [*(name for name in INTRINSICS if name in loaded), *sorted(loaded.keys() - INTRINSICS.keys())]
    definitions = {name: loaded[name].header.definition(name) for name in names}
    for name in names:
        attach_lora(backbone, name, loaded[name])
    backbone.activate(None)

    def files_of(job: Job) -> list[Path]:
        return [_image_file(job, out), *map_paths(out / job.name, names, kinds)]

    console = Console(stderr=True)
    if seeds is not None:
        jobs = _generated_pictures(backbone, chosen, resolution, options)
    else:
        jobs = _photos(backbone, found, out, names, kinds, resolution, options, console)
    out.mkdir(parents=True, exist_ok=True)
    custom = {name: definition for name, definition in definitions.items() if name not in INTRINSICS}
    written, started = 0, time.monotonic()
    with progress_bar(console) as progress:
        todo, skipped = to_do([*jobs], files_of, out, overwrite, partial(say_failed, console))
        task = progress.add_task("extract", total=len(todo))
        for job in todo:
            try:
                picture, image, maps = _draw(backbone, *jobs[job](), definitions, upsample)
            except (ValueError, OSError, ImportError) as error:
                if seeds is not None:
                    raise
                say_failed(console, job.path, error)
            else:
                file = _image_file(job, out)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_png(file, image, bits=16 if "png16" in kinds else 8)
                write_maps(out / job.name, picture, maps, kinds, frame, polarity, custom)
                written += 1
            progress.advance(task)
    finish(written, skipped, len(jobs) - written - skipped, started, out)


def _generated_pictures(
    backbone: "Backbone", seeds: list[int], resolution: int | None, options: dict[str, Any]
) -> dict[Job, Encode]:
    """Build jobs for generated pictures; files are named after the seed, as in make-set."""
    if unsupported := sorted(options.keys() - set(backbone.sample_options)):
        raise ValueError(f"{backbone.name}, a {backbone.family}, does not support {' or '.join(unsupported)}.")
    if resolution is not None:
        raise ValueError(f"{backbone.name} has a fixed resolution of {backbone.resolution} pixels; omit --resolution.")

    def encode(seed: int) -> tuple[None, "Tensor", None]:
        return None, backbone.sample([seed], **options), None

    return {Job(Path(f"{seed:06d}"), f"{seed:06d}"): partial(encode, seed) for seed in seeds}


def _photos(
    backbone: "Backbone",
    found: Collected,
    out: Path,
    names: list[str],
    kinds: list[str],
    resolution: int | None,
    options: dict[str, Any],
    console: Console,
) -> dict[Job, Encode]:
    """Build jobs for the pictures found."""
    from ..diffusers_pipeline.extract import read_noting
    from ..intrinsics.resizing import pad_to, processing_size, resize
    from ..train.backbones.interfaces import PictureEncoder

    if not isinstance(backbone, PictureEncoder):
        raise ValueError(f"{backbone.name}, a {backbone.family}, cannot encode pictures; generate some with --seeds.")
    with usage_errors():
        refuse_overwriting(found.jobs, out, names, kinds)
    for sentence in found.notes:
        say(sentence, err=True)

    def encode(path: Path) -> tuple["Picture", "Tensor", tuple[int, int]]:
        picture = read_noting(path, partial(note, console))
        short = backbone.resolution if resolution is None else resolution
        height, width = picture.rgb.shape[-2:]
        size = processing_size(height, width, short, backbone.downsample)
        padded = pad_to(resize(picture.rgb, size.resized), *size.padded)  # (1, 3, PH, PW)
        return picture, backbone.encode_picture(padded), size.resized

    return {job: partial(encode, job.path) for job in found.jobs}


def _draw(
    backbone: "Backbone",
    photo: "Picture | None",
    condition: "Tensor",
    size: tuple[int, int] | None,
    definitions: dict[str, Any],
    upsample: Upsample,
) -> tuple["Picture", "Tensor", Iterator[tuple[str, "Tensor"]]]:
    """Render one picture.

    Returns:
        The picture, the generator's output without a LoRA (1, 3, h, w), and (name, canonical map (1, C, H, W)) pairs.
    """
    import torch

    from ..intrinsics.maps import each_map
    from ..intrinsics.pictures import Picture
    from ..intrinsics.resizing import crop_to

    drawn = []
    with torch.no_grad():
        for name in (None, *definitions):
            backbone.activate(name)
            picture = backbone.render(condition).cpu()  # (1, 3, PH, PW)
            drawn.append(picture if size is None else crop_to(picture, *size))
    image, *maps = drawn
    photo = photo or Picture(image.clamp(0, 1), None, 8)
    pictures = dict(zip(definitions.values(), maps, strict=True))
    return photo, image, each_map(pictures, photo.rgb, upsample)


def _image_file(job: Job, out: Path) -> Path:
    return out / f"{job.name}_image.png"
