"""`intrinsic-lora extract`: pictures in, maps out."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

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
from .progress import progress_bar, say_failed
from .results import (
    FORMATS,
    DepthPolarity,
    NormalFrame,
    Upsample,
    choices,
    collect,
    refuse_overwriting,
    results_of,
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
        typer.Argument(
            metavar="PATH...", exists=True, help="Pictures, or folders of pictures (top level).", show_default=False
        ),
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
    ] = Upsample.guided,
    normals: Annotated[
        NormalFrame,
        typer.Option(
            help="Frame of the normals *picture*. opengl: X right, Y up, Z to the viewer; directx: Y down; "
            "opencv: Y down, Z into the scene; controlnet: X left. npz and exr are always opengl."
        ),
    ] = NormalFrame.opengl,
    depth: Annotated[
        DepthPolarity,
        typer.Option(help="Polarity of the depth *picture*. npz and exr always hold 0 = nearest, 1 = farthest."),
    ] = DepthPolarity.near_white,
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

    **Examples**

    - `intrinsic-lora extract photo.jpg --out maps`
    - `intrinsic-lora extract photos/ --out maps --base sd15/ --loras intrinsic_lora/ --format png16,exr`
    - `intrinsic-lora extract render.png --out maps --intrinsics normals,depth --normals directx --format npz`
    - `intrinsic-lora extract photo.jpg --out maps --base sd21/ --loras multi_step_loras/ --steps 10 --seed 1`
    - `intrinsic-lora extract --generator ffhq/ --loras runs/ffhq --seeds 0-7 --truncation 0.7 --out maps`
    """
    from ..intrinsics.registry import INTRINSICS

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
            pick_device(device),
            overwrite,
        )
        return
    if any(value is not None for value in (seeds, truncation, centroids, picture_class)):
        raise typer.BadParameter("--seeds, --truncation, --centroids and --class need it.", param_hint="'--generator'")
    if not paths:
        raise typer.BadParameter("name a picture or a folder of pictures.", param_hint="'PATH...'")
    pictures = collect(paths, out)
    refuse_overwriting(pictures, out, [*INTRINSICS], kinds)

    pipe = load_pipeline(base, base_config, loras, pick_device(device), dtype)
    options = partial(sampling, pipe, steps, guidance, seed)
    options()  # what does not fit the LoRAs is said before anything is written
    if pipe.method == "multi-step" and batch_size > 1:
        raise ValueError("Multi-step LoRAs take one picture at a time; leave --batch-size out.")
    missing = [name for name in names if name not in pipe.intrinsics]
    if missing:
        raise ValueError(f"There is no LoRA for {', '.join(missing)}; loaded: {', '.join(pipe.intrinsics)}.")
    names = names or list(pipe.intrinsics)
    refuse_overwriting(pictures, out, names, kinds)  # some may be the LoRAs' own
    definitions = {name: pipe.definition(name) for name in names if name not in INTRINSICS}
    todo = [path for path in pictures if overwrite or not all(f.exists() for f in results_of(path, out, names, kinds))]
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    written, started = 0, time.monotonic()
    with progress_bar(console) as progress:
        task = progress.add_task("extract", total=len(todo))

        def failed(path: Path, error: Exception) -> None:
            say_failed(console, path, error)
            progress.advance(task)

        for batch in _batches(todo, batch_size, failed):
            for path, picture, maps in _run(pipe, batch, names, resolution, upsample, options, failed):
                write_results(path, picture, maps, out, kinds, normals, depth, definitions)
                written += 1
                progress.advance(task)
    failures = len(todo) - written
    typer.echo(
        f"{written} extracted, {len(pictures) - len(todo)} already there, {failures} failed "
        f"in {time.monotonic() - started:.1f} s; contact sheets: {out}/*_sheet.png"
    )
    if failures:
        raise typer.Exit(1)


Batch = list[tuple[Path, "Picture"]]
Failed = Callable[[Path, Exception], None]


def _batches(paths: list[Path], batch_size: int, failed: Failed) -> Iterator[Batch]:
    """Read pictures, and hand on runs of neighbours with equal size, at most `batch_size` long."""
    from ..intrinsics.pictures import read_picture

    batch: Batch = []
    for path in paths:
        try:
            picture = read_picture(path)
        except (ValueError, OSError, ImportError) as error:
            failed(path, error)
            continue
        if batch and (len(batch) == batch_size or batch[0][1].rgb.shape != picture.rgb.shape):
            yield batch
            batch = []
        batch.append((path, picture))
    if batch:
        yield batch


def _run(
    pipe: "IntrinsicsPipeline",
    batch: Batch,
    names: list[str],
    resolution: int | None,
    upsample: Upsample,
    options: Callable[[], dict[str, Any]],
    failed: Failed,
) -> Iterator[tuple[Path, "Picture", dict[str, "Tensor"]]]:
    """(path, picture, {name: canonical map (1, C, H, W) on the CPU}) for what the network accepted."""
    import torch

    try:
        output: Any = pipe(  # type: ignore[operator]  # each pipeline has its own call
            torch.cat([picture.rgb for _, picture in batch]),  # (B, 3, H, W)
            intrinsics=names,
            processing_resolution=resolution,
            upsample=str(upsample),
            batch_size=len(batch),
            **options(),
        )
    except torch.OutOfMemoryError as error:
        raise ValueError("Out of memory: lower --batch-size or --resolution, or use --device cpu.") from error
    except ValueError as error:
        if len(batch) == 1:
            failed(batch[0][0], error)
        else:  # one picture must not take its neighbours down
            for one in batch:
                yield from _run(pipe, [one], names, resolution, upsample, options, failed)
        return
    for i, (path, picture) in enumerate(batch):
        yield path, picture, {name: maps[i : i + 1].cpu() for name, maps in output.maps().items()}
