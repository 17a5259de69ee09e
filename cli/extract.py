"""`intrinsic-lora extract`: extract intrinsic maps from pictures."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..diffusers_pipeline.jobs import collect, refuse_overwriting
from ..intrinsics.vocabulary import FORMATS, INTRINSICS, DepthPolarity, NormalFrame, Upsample
from .checks import choices, usage_errors
from .model import (
    Base,
    BaseConfig,
    Device,
    DType,
    DTypeOption,
    Loras,
    Resolution,
    load_pipeline,
    pick_device,
    sampling,
)
from .progress import finish, loading, note, progress_bar, say, say_failed

MULTI_STEP = "Only for multi-step LoRAs"
GENERATOR = "Other generators: VQGAN, StyleGAN"


def extract(
    out: Annotated[Path, typer.Option(help="Output folder; created if it does not exist.", file_okay=False)],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", exists=True, help="Pictures, or folders of pictures.", show_default=False),
    ] = None,
    base: Base = None,
    base_config: BaseConfig = None,
    loras: Loras = None,
    intrinsics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Intrinsics to extract: normals, depth, albedo, shading, or any other that --loras provides; "
            "comma-separated or repeated.",
            show_default="all that have a LoRA",
        ),
    ] = None,
    resolution: Resolution = None,
    upsample: Annotated[
        Upsample,
        typer.Option(help="How maps are upsampled to full size: guided follows the edges of the photo."),
    ] = "guided",
    normals: Annotated[
        NormalFrame,
        typer.Option(
            help="Coordinate frame of the normals *picture*. opengl: X right, Y up, Z towards the viewer; directx: "
            "Y down; opencv: Y down, Z into the scene; controlnet: X left. npz and exr are always opengl."
        ),
    ] = "opengl",
    depth: Annotated[
        DepthPolarity,
        typer.Option(help="Polarity of the depth *picture*. In npz and exr 0 is always nearest and 1 farthest."),
    ] = "near-white",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMATS",
            help="Output formats, comma-separated or repeated. png: 8 bits; png16: 16 bits, same file names; exr: one "
            "float file with all maps as layers; npz: one file of float32 arrays. A contact sheet is always written.",
            show_default="png",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Also read subfolders; OUT gets the same subfolders.")
    ] = False,
    device: Device = None,
    dtype: DTypeOption = DType.auto,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Batch size; only pictures of the same size share a batch.")
    ] = 1,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Overwrite existing files; required after changing options."),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Number of sampling steps.", show_default="25", rich_help_panel=MULTI_STEP),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance scale; 1 disables guidance.",
            show_default="3",
            rich_help_panel=MULTI_STEP,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Random seed for the initial noise.",
            show_default="0",
            rich_help_panel=MULTI_STEP,
        ),
    ] = None,
    generator: Annotated[
        Path | None,
        typer.Option(
            help="Generator folder written by import-generator; --loras must have been trained on it.",
            show_default=False,
            rich_help_panel=GENERATOR,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Random seeds of pictures to generate instead of reading PATH, such as 0-7,12.",
            show_default=False,
            rich_help_panel=GENERATOR,
        ),
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(
            help="Truncation psi, 0 to 1; lower values reduce variety.", show_default="1", rich_help_panel=GENERATOR
        ),
    ] = None,
    centroids: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="StyleGAN-XL: .npy file of cluster centroids; each picture is truncated towards the nearest.",
            show_default=False,
            rich_help_panel=GENERATOR,
        ),
    ] = None,
    picture_class: Annotated[
        int | None,
        typer.Option(
            "--class",
            min=0,
            help="Class index, for a class-conditional generator.",
            show_default="StyleGAN-XL: drawn from the seed",
            rich_help_panel=GENERATOR,
        ),
    ] = None,
) -> None:
    """Extract surface normals, depth, albedo and shading from pictures.

    For every picture, OUT gets `STEM_normals.png`, `STEM_depth.png`, `STEM_albedo.png`, `STEM_shading.png`,
    `STEM_confidence.png` (white = self-consistent), a contact sheet `STEM_sheet.png`, and optionally `STEM.npz` or
    `STEM.exr`. Pictures whose results all exist are skipped: run the same command to resume. A picture that cannot be
    read is reported and skipped; the exit status is then 1.

    Supported formats: PNG, JPEG, WebP, TIFF, EXR, GIF, BMP, PPM, AVIF, and HEIC (requires `pip install pillow-heif`),
    in any colour profile; pictures are converted to sRGB. Only the first frame or page of a file is read. Hidden
    files, whose names begin with a dot, are ignored. If a.jpg and a.png are in one folder, their results are named
    `a_jpg_...` and `a_png_...`. A picture may use up to 4 GB of memory, about 110 megapixels; set the environment
    variable INTRINSIC_LORA_MEMORY_GB to change the limit. A larger JPEG is read at half its size; larger files in
    other formats are refused.

    **Examples**

    - `intrinsic-lora extract photo.jpg --out maps`
    - `intrinsic-lora extract album/ --recursive --out maps`
    - `intrinsic-lora extract photos/ --out maps --base sd15/ --loras intrinsic_lora/ --format png16,exr`
    - `intrinsic-lora extract render.png --out maps --intrinsics normals,depth --normals directx --format npz`
    - `intrinsic-lora extract photo.jpg --out maps --base sd21/ --loras multi_step_loras/ --steps 10 --seed 1`
    - `intrinsic-lora extract --generator ffhq/ --loras runs/ffhq --seeds 0-7 --truncation 0.7 --out maps`
    """
    names = choices(intrinsics or [], tuple(INTRINSICS), "--intrinsics", others=bool(base or loras))
    kinds = choices(formats or ["png"], FORMATS, "--format")
    if {"png", "png16"} <= set(kinds):
        raise typer.BadParameter(
            "The formats png and png16 write the same file names; choose one of them.", param_hint="'--format'"
        )
    if generator is not None:
        from .extract_generator import extract_generator

        if any(value is not None for value in (base, base_config, steps, guidance, seed)) or batch_size > 1:
            raise typer.BadParameter(
                "Cannot be combined with --base, --base-config, --steps, --guidance, --seed or --batch-size.",
                param_hint="'--generator'",
            )
        drawing = {
            "truncation": truncation,
            "classes": None if picture_class is None else [picture_class],
            "centroids": centroids,
        }
        extract_generator(
            generator,
            loras,
            paths or [],
            seeds,
            drawing,
            names,
            out,
            kinds,
            resolution,
            upsample,
            normals,
            depth,
            device,
            overwrite,
            recursive,
        )
        return
    if any(value is not None for value in (seeds, truncation, centroids, picture_class)):
        raise typer.BadParameter(
            "--seeds, --truncation, --centroids and --class require a generator.", param_hint="'--generator'"
        )
    if not paths:
        raise typer.BadParameter("Name a picture or a folder of pictures.", param_hint="'PATH...'")
    with usage_errors():
        found = collect(paths, out, recursive)
        refuse_overwriting(found.jobs, out, [*INTRINSICS], kinds)
    for sentence in found.notes:
        say(sentence, err=True)

    with loading():
        from ..diffusers_pipeline.extract import extract_folder
    pipe = load_pipeline(base, base_config, loras, pick_device(device), dtype)
    options = sampling(pipe, steps, guidance, seed)
    options.pop("generator", None)  # extract_folder creates one per picture from the seed
    console = Console(stderr=True)
    started = time.monotonic()
    with usage_errors(), progress_bar(console, started=False) as bar:  # no progress bar before a usage error
        task = bar.add_task("extract", total=len(found.jobs))

        def show(count: int, total: int) -> None:
            bar.start()
            bar.update(task, completed=count, total=total)

        done = extract_folder(
            pipe,
            found,
            out,
            names or None,
            kinds,
            resolution=resolution,
            upsample=upsample,
            normals=normals,
            depth=depth,
            batch_size=batch_size,
            overwrite=overwrite,
            seed=seed or 0,
            options=options,
            failed=partial(say_failed, console),
            note=partial(note, console),
            progress=show,
        )
    finish(done.written, done.skipped, done.failed, started, out)
