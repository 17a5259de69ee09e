"""`intrinsic-lora extract`: pictures in, maps out."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..intrinsics.vocabulary import FORMATS, INTRINSICS, DepthPolarity, NormalFrame, Upsample
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
from .progress import note, progress_bar, say, say_failed
from .results import (
    Failed,
    Job,
    choices,
    collect,
    finish,
    read_and_say,
    refuse_overwriting,
    results_of,
    to_do,
    write_results,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusers_pipeline.base import IntrinsicsPipeline
    from ..intrinsics.pictures import Picture

MULTI_STEP = "Only for multi-step LoRAs"
GENERATOR = "Other generators: VQGAN, StyleGAN"


def extract(
    out: Annotated[Path, typer.Option(help="Folder for the results; made when missing.", file_okay=False)],
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
            help="What to extract: normals, depth, albedo, shading, or what else --loras has; comma-separated or "
            "repeated.",
            show_default="every one with a LoRA",
        ),
    ] = None,
    resolution: Resolution = None,
    upsample: Annotated[
        Upsample, typer.Option(help="How maps return to full size: along the photo's edges, or plainly.")
    ] = "guided",
    normals: Annotated[
        NormalFrame,
        typer.Option(
            help="Frame of the normals *picture*. opengl: X right, Y up, Z to the viewer; directx: Y down; "
            "opencv: Y down, Z into the scene; controlnet: X left. npz and exr are always opengl."
        ),
    ] = "opengl",
    depth: Annotated[
        DepthPolarity,
        typer.Option(help="Polarity of the depth *picture*. npz and exr always hold 0 = nearest, 1 = farthest."),
    ] = "near-white",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMATS",
            help="Comma-separated or repeated. png: 8 bits; png16: 16 bits, same file names; exr: one float file with "
            "all maps as layers; npz: one file of canonical float32 arrays. The contact sheet is always written.",
            show_default="png",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Read subfolders too; OUT gets the same subfolders.")
    ] = False,
    device: Device = None,
    dtype: DTypeOption = DType.auto,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Pictures of one size that go through the network together.")
    ] = 1,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Make results again that are already there (needed after changing options)."),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Solver steps per picture.", show_default="25", rich_help_panel=MULTI_STEP),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Weight of the prompt against the empty prompt; 1: none.",
            show_default="3",
            rich_help_panel=MULTI_STEP,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of the noise that every picture starts from.",
            show_default="0",
            rich_help_panel=MULTI_STEP,
        ),
    ] = None,
    generator: Annotated[
        Path | None,
        typer.Option(
            help="A folder of import-generator; --loras are those trained on it.",
            show_default=False,
            rich_help_panel=GENERATOR,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Its own pictures instead of PATH, as in 0-7,12.", show_default=False, rich_help_panel=GENERATOR
        ),
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(help="Variety of its pictures: 0 to 1.", show_default="1", rich_help_panel=GENERATOR),
    ] = None,
    centroids: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="StyleGAN-XL: .npy of means that --truncation goes towards, each picture to the nearest.",
            show_default=False,
            rich_help_panel=GENERATOR,
        ),
    ] = None,
    picture_class: Annotated[
        int | None,
        typer.Option(
            "--class",
            min=0,
            help="For a generator with classes.",
            show_default="StyleGAN-XL: by the seed",
            rich_help_panel=GENERATOR,
        ),
    ] = None,
) -> None:
    """Extract surface normals, depth, albedo and shading from pictures.

    For every picture, OUT gets `STEM_normals.png`, `STEM_depth.png`, `STEM_albedo.png`,
    `STEM_shading.png`, `STEM_confidence.png` (white = the network agrees with itself), a contact sheet
    `STEM_sheet.png`, and `STEM.npz` or `STEM.exr` on request. Pictures whose results are all
    there are skipped, so an interrupted run goes on where it stopped. A picture that cannot be read is reported, the
    rest goes on, and the exit status is 1.

    Pictures are PNG, JPEG, WebP, TIFF, EXR, GIF, BMP, PPM, AVIF, or HEIC (which needs `pip install pillow-heif`), in
    any colour profile: they are read as sRGB. Of an animation or several pages the first is taken. Names that begin
    with a dot are left out. Of a.jpg and a.png in one folder the results are called `a_jpg_...` and `a_png_...`.
    A picture may take 4 GB of memory, about 110 megapixels, or what INTRINSIC_LORA_MEMORY_GB says; a larger JPEG is
    read at half its size, another format is refused.

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
            "png and png16 write the same file names; choose one of them.", param_hint="'--format'"
        )
    if generator is not None:
        from .extract_generator import extract_generator

        if any(value is not None for value in (base, base_config, steps, guidance, seed)) or batch_size > 1:
            raise typer.BadParameter(
                "it takes no --base, --base-config, --steps, --guidance, --seed or --batch-size.",
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
        raise typer.BadParameter("--seeds, --truncation, --centroids and --class need it.", param_hint="'--generator'")
    if not paths:
        raise typer.BadParameter("name a picture or a folder of pictures.", param_hint="'PATH...'")
    found = collect(paths, out, recursive)
    jobs = found.jobs
    refuse_overwriting(jobs, out, [*INTRINSICS], kinds)
    for sentence in found.notes:
        say(sentence, err=True)

    pipe = load_pipeline(base, base_config, loras, pick_device(device), dtype)
    from ..intrinsics.maps import each_map

    options = partial(sampling, pipe, steps, guidance, seed)
    options()  # what does not fit the LoRAs is said before anything is written
    if pipe.method == "multi-step" and batch_size > 1:
        raise ValueError("Multi-step LoRAs take one picture at a time; leave --batch-size out.")
    missing = [name for name in names if name not in pipe.intrinsics]
    if missing:
        raise ValueError(f"There is no LoRA for {', '.join(missing)}; loaded: {', '.join(pipe.intrinsics)}.")
    names = names or list(pipe.intrinsics)
    refuse_overwriting(jobs, out, names, kinds)  # some may be the LoRAs' own
    definitions = {name: pipe.definition(name) for name in names if name not in INTRINSICS}
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    written, started = 0, time.monotonic()
    with progress_bar(console) as progress:
        task = progress.add_task("extract", total=len(jobs))

        def failed(path: Path, error: Exception) -> None:
            say_failed(console, path, error)
            progress.advance(task)

        todo, there = to_do(jobs, lambda job: results_of(job, out, names, kinds), out, overwrite, failed)
        progress.update(task, total=len(jobs) - there)
        for batch in _batches(todo, batch_size, failed, partial(note, console)):
            for job, picture, drawn in _run(pipe, batch, names, resolution, options, failed):
                where = next(iter(drawn.values())).device
                maps = each_map(drawn, picture.rgb.to(where), str(upsample))
                write_results(job, picture, maps, out, kinds, normals, depth, definitions)
                written += 1
                progress.advance(task)
            batch.clear()  # large pictures: the next one is read without this one in memory
    finish(written, there, len(jobs) - written - there, started, out)


Batch = list[tuple[Job, "Picture"]]


def _batches(jobs: list[Job], batch_size: int, failed: Failed, note: Callable[[str], None]) -> Iterator[Batch]:
    """Read pictures, and hand on runs of neighbours with equal size, at most `batch_size` long."""
    batch: Batch = []
    for job in jobs:
        try:
            picture = read_and_say(job.path, note)
        except (ValueError, OSError, ImportError) as error:
            failed(job.path, error)
            continue
        if batch and batch[0][1].rgb.shape != picture.rgb.shape:
            yield batch
            batch = []
        batch.append((job, picture))
        del picture
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _run(
    pipe: "IntrinsicsPipeline",
    batch: Batch,
    names: list[str],
    resolution: int | None,
    options: Callable[[], dict[str, Any]],
    failed: Failed,
) -> Iterator[tuple[Job, "Picture", dict[Any, "Tensor"]]]:
    """(job, picture, {intrinsic: what the network drew of it (1, 3, h, w)}) for what the network accepted."""
    import torch

    rgb = batch[0][1].rgb if len(batch) == 1 else torch.cat([picture.rgb for _, picture in batch])  # (B, 3, H, W)
    try:
        output: Any = pipe(  # type: ignore[operator]  # each pipeline has its own call
            rgb,
            intrinsics=names,
            processing_resolution=resolution,
            batch_size=len(batch),
            output_type="raw",
            **options(),
        )
    except torch.OutOfMemoryError as error:
        raise ValueError("Out of memory: lower --batch-size or --resolution, or use --device cpu.") from error
    except ValueError as error:
        if len(batch) == 1:
            failed(batch[0][0].path, error)
        else:  # one picture must not take its neighbours down
            for one in batch:
                yield from _run(pipe, [one], names, resolution, options, failed)
        return
    del rgb
    for i, (job, picture) in enumerate(batch):
        yield job, picture, {pipe.definition(name): drawn[i : i + 1] for name, drawn in output.maps().items()}
