"""`intrinsic-lora label`: create pseudo labels with a teacher model."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..intrinsics.files import atomic_path
from ..intrinsics.vocabulary import INTRINSICS, LabelFormat, NormalFrame
from ..train.teachers.table import TEACHERS, check_options
from .checks import choices, path_or_hub_id
from .checks import loras as lora_sources
from .model import Device, DType, pick_device
from .progress import loading, progress_bar, say, say_failed


def _known(teacher: str) -> str:
    if teacher not in TEACHERS:
        raise typer.BadParameter(f"{teacher!r} is not one of {', '.join(TEACHERS)}.")
    return teacher


def label(
    photos: Annotated[
        Path,
        typer.Argument(
            metavar="PHOTOS", exists=True, file_okay=False, help="Folder of photos; subfolders are included."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the data set; created if it does not exist.", file_okay=False)],
    teacher: Annotated[
        str, typer.Option(metavar="NAME", callback=_known, help="Teacher model, one of the list above.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            callback=path_or_hub_id,
            help="Checkpoint to use in place of the teacher's default: a folder or a Hugging Face id.",
            show_default="as listed above",
        ),
    ] = None,
    intrinsics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Intrinsics to label, comma-separated or repeated.",
            show_default="all",
        ),
    ] = None,
    file_format: Annotated[
        LabelFormat,
        typer.Option(
            "--format",
            help="File format of the labels. npz: canonical maps, float16. png16: 16-bit pictures with opengl "
            "normals, near-white depth, and sRGB albedo and shading.",
        ),
    ] = "npz",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of photos, spread evenly over all; useful to inspect the contact sheet first.",
            show_default="all",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processing resolution: the longer side for Marigold, the shorter side for intrinsic-lora; 0 = the "
            "size of the photo. Labels always have the size of the photo.",
            show_default="the model's own",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Marigold: number of denoising steps.", show_default="the model's own")
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(
            min=1, help="Marigold: number of predictions per photo, combined by their median.", show_default="1"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Marigold: random seed for the initial noise, the same for every photo.", show_default="0"
        ),
    ] = None,
    far_over_near: Annotated[
        float | None,
        typer.Option(
            help="Models that predict relative disparity, such as Depth Anything: assumed ratio of the farthest to "
            "the nearest distance.",
            show_default="4",
        ),
    ] = None,
    frame: Annotated[
        NormalFrame | None,
        typer.Option(
            help="normal-estimation: coordinate frame of the model's normals; see extract --normals.",
            show_default="known for TIPSv2 only",
        ),
    ] = None,
    loras: Annotated[
        str | None,
        typer.Option(
            callback=lora_sources,
            help="intrinsic-lora: I-LoRAs for --model; see extract --loras.",
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
        DType, typer.Option(help="Precision of the network; auto selects float16 on cuda and float32 elsewhere.")
    ] = DType.auto,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Batch size; only photos of the same size share a batch.")
    ] = 1,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Overwrite existing labels; those of another teacher or other options are removed first.",
        ),
    ] = False,
) -> None:
    names = choices(intrinsics or [], tuple(INTRINSICS), "--intrinsics", others=True)
    if custom := [name for name in names if name not in INTRINSICS]:
        raise typer.BadParameter(
            f"{', '.join(custom)}: teachers label only {', '.join(INTRINSICS)}. For another intrinsic, put your own "
            f"labels into OUT/{custom[0]}; see docs/training.md.",
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

        # Their progress bars for reading files would hide ours; progress of downloads is still shown.
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
            file_format,
            batch_size,
            limit,
            overwrite,
            partial(say_failed, console),
            lambda count, total: bar.update(task, completed=count, total=total),
        )
    say(
        f"{done.written} labelled, {done.skipped} skipped (already labelled), {done.failed} failed "
        f"in {time.monotonic() - started:.1f} s: {out}"
    )
    if not done.written + done.skipped:
        raise typer.Exit(1)
    sheet = out / f"sheet_{teacher}.png"
    with atomic_path(sheet) as temporary:
        label_sheet(out, names or teaching.intrinsics).save(temporary)
    say(f"Check the labels in {sheet} before you train.")


TABLE = "\n".join(
    f"- `{name}`: {', '.join(info.makes)}; `{info.model}`; {info.licence}" for name, info in TEACHERS.items()
)
label.__doc__ = f"""Label a folder of photos with a teacher: training data for `train`.

OUT gets `<intrinsic>/<photo>.npz` for every map of the teacher, `<intrinsic>/label.json` with the teacher and its
options, `photos/` (hard links), and a contact sheet. `train` reads this folder. Run several teachers on the same
folder to label several intrinsics. Photos that are already labelled are skipped: run the same command to resume.
A photo that cannot be read is reported and skipped.

**Teachers**: maps; default model; licence of its weights (check it before use)

{TABLE}

If the teacher's default model is not in the Hugging Face cache, it is downloaded (safetensors only, no code). Use
`--model FOLDER` to avoid this; HF_HUB_OFFLINE=1 forbids it.

**Examples**

- `intrinsic-lora label photos --out data --teacher zoedepth --limit 8`
- `intrinsic-lora label photos --out data --teacher marigold-iid --ensemble 5`
- `intrinsic-lora label photos --out data --teacher intrinsic-lora --model sd15/ --loras loras/ --intrinsics normals`
"""
