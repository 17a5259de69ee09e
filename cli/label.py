"""`intrinsic-lora label`: pseudo labels from a teacher."""

import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..intrinsics.files import atomic_path
from ..intrinsics.vocabulary import INTRINSICS, NormalFrame
from ..train.teachers.table import TEACHERS, check_options
from .checks import choices, path_or_hub_id
from .checks import loras as lora_sources
from .model import Device, DType, pick_device
from .progress import loading, progress_bar, say, say_failed


class Format(StrEnum):
    npz = "npz"
    png16 = "png16"


def _known(teacher: str) -> str:
    if teacher not in TEACHERS:
        raise typer.BadParameter(f"{teacher!r} is not one of {', '.join(TEACHERS)}.")
    return teacher


def label(
    photos: Annotated[
        Path,
        typer.Argument(metavar="PHOTOS", exists=True, file_okay=False, help="Folder of photos, with its subfolders."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the data set; made when missing.", file_okay=False)],
    teacher: Annotated[str, typer.Option(metavar="NAME", callback=_known, help="Who labels: see the list above.")],
    model: Annotated[
        str | None,
        typer.Option(
            callback=path_or_hub_id,
            help="Another model for this teacher: a folder, or a Hugging Face id.",
            show_default="as listed above",
        ),
    ] = None,
    intrinsics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Keep only these of the teacher's maps; comma-separated or repeated.",
            show_default="all",
        ),
    ] = None,
    format: Annotated[
        Format,
        typer.Option(
            help="npz: canonical maps, float16. png16: 16-bit pictures: opengl normals, near-white depth, sRGB light."
        ),
    ] = Format.npz,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Label only so many photos, spread evenly: to look at the sheet first.", show_default="all"
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Marigold: longer side of what the model sees; intrinsic-lora: shorter side; 0 = the photo's size. "
            "Labels always have the photo's size.",
            show_default="the model's own",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Marigold: denoising steps.", show_default="the model's own")
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(min=1, help="Marigold: predictions per photo, of which it takes the middle.", show_default="1"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Marigold: noise it starts from, the same for every photo.", show_default="0"),
    ] = None,
    far_over_near: Annotated[
        float | None,
        typer.Option(
            help="Models that draw disparity, such as Depth Anything: how many times farther the farthest point is "
            "taken to be than the nearest one, which they do not know.",
            show_default="4",
        ),
    ] = None,
    frame: Annotated[
        NormalFrame | None,
        typer.Option(
            help="normal-estimation: the frame its normals are in; see extract --normals.",
            show_default="known for TIPSv2 only",
        ),
    ] = None,
    loras: Annotated[
        str | None,
        typer.Option(
            callback=lora_sources,
            help="intrinsic-lora: the I-LoRAs for --model; see extract --loras.",
            show_default="those saved with the model",
        ),
    ] = None,
    base_config: Annotated[
        str | None,
        typer.Option(
            callback=path_or_hub_id,
            help="intrinsic-lora: see extract --base-config.",
            show_default="SD 1.5's, if cached",
        ),
    ] = None,
    device: Device = None,
    dtype: Annotated[
        DType, typer.Option(help="Precision of the network; auto is float16 on cuda and float32 elsewhere.")
    ] = DType.auto,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Photos of one size that go through the network together.")
    ] = 1,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Label again; labels of another teacher or with other options are removed first."
        ),
    ] = False,
) -> None:
    names = choices(intrinsics or [], tuple(INTRINSICS), "--intrinsics", others=True)
    if own := [name for name in names if name not in INTRINSICS]:
        raise typer.BadParameter(
            f"{', '.join(own)}: teachers label {', '.join(INTRINSICS)} only; for another intrinsic put "
            f"pictures of your own into OUT/{own[0]}, see docs/training.md.",
            param_hint="'--intrinsics'",
        )
    options: dict[str, Any] = {
        "resolution": resolution,
        "steps": steps,
        "ensemble": ensemble,
        "seed": seed,
        "far_over_near": far_over_near,
        "frame": frame,
        "loras": loras,
        "base_config": base_config,
    }
    check_options(teacher, options)

    where = pick_device(device)
    with loading():
        import diffusers
        import torch
        import transformers

        from ..train.teachers.label import label_photos, label_sheet
        from ..train.teachers.load import load_teacher

        # Their bars for reading files from disk would bury ours; those of downloads stay.
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        if dtype is DType.auto:
            dtype = DType.float16 if where.type == "cuda" else DType.float32
        teaching = load_teacher(
            teacher,
            model,
            device=where,
            dtype=getattr(torch, dtype),
            **options,
        )
    console = Console(stderr=True)
    started = time.monotonic()
    with progress_bar(console) as bar:
        task = bar.add_task("label", total=None)

        done = label_photos(
            photos,
            out,
            teaching,
            names or None,
            str(format),
            batch_size,
            limit,
            overwrite,
            partial(say_failed, console),
            lambda count, total: bar.update(task, completed=count, total=total),
        )
    say(
        f"{done.written} labelled, {done.there} already there, {done.failed} failed and left out "
        f"in {time.monotonic() - started:.1f} s: {out}"
    )
    if not done.written + done.there:
        raise typer.Exit(1)
    sheet = out / f"sheet_{teacher}.png"
    with atomic_path(sheet) as temporary:
        label_sheet(out, names or teaching.intrinsics).save(temporary)
    say(f"Look at {sheet} before you train: it is read back from the labels.")


TABLE = "\n".join(
    f"- `{name}`: {', '.join(info.makes)}; `{info.model}`; {info.licence}" for name, info in TEACHERS.items()
)
label.__doc__ = f"""Label a folder of photos with a teacher: training data for `train`.

OUT gets `<intrinsic>/<photo>.npz` for every map the teacher makes, `<intrinsic>/label.json` that says who made
them, `photos/` (hard links), and a contact sheet. It is a folder that `train` reads; label it with several teachers
for several intrinsics. Photos that have their labels are skipped, so an interrupted run goes on where it stopped.
A photo that cannot be read is reported and left out.

**Teachers**: maps; default model; licence of its weights, to be checked before use

{TABLE}

Naming a teacher names its default model: when the Hugging Face cache lacks it, it is downloaded (safetensors
only, no code). `--model FOLDER` avoids that, HF_HUB_OFFLINE=1 forbids it.

**Examples**

- `intrinsic-lora label photos --out data --teacher zoedepth --limit 8`
- `intrinsic-lora label photos --out data --teacher marigold-iid --ensemble 5`
- `intrinsic-lora label photos --out data --teacher intrinsic-lora --model sd15/ --loras loras/ --intrinsics normals`
"""
