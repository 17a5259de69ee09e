"""`intrinsic-lora make-set`: generate training pictures together with their conditions."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .checks import path_or_hub_id
from .model import Device, pick_device
from .progress import loading, progress_bar, say, say_failed


def make_set(
    generator: Annotated[
        str,
        typer.Argument(
            metavar="GENERATOR",
            callback=path_or_hub_id,
            help="Generator folder written by import-generator, or a Stable Diffusion model.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the set; created if it does not exist.", file_okay=False)
    ],
    count: Annotated[int | None, typer.Option(min=1, help="Number of pictures.", show_default=False)] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of the first picture; each next picture uses the next seed.")
    ] = 0,
    truncation: Annotated[
        float | None,
        typer.Option(
            help="StyleGAN: truncation psi, 0 to 1; lower values raise quality and reduce variety.", show_default="1"
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class-conditional StyleGAN: class indices, used in turn, such as 0-999 or 207,250.",
            show_default="StyleGAN-XL: drawn from the seed",
        ),
    ] = None,
    centroids: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="StyleGAN-XL: .npy file of cluster centroids; each picture is truncated towards the nearest.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Stable Diffusion: text prompt.", show_default="the empty prompt")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos for VQGAN or Stable Diffusion to reconstruct; replaces --count.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="With --photos: size in pixels to which photos are resized and centre-cropped.",
            show_default="the resolution of the generator",
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Generate pictures together with their conditions (latent codes), for training I-LoRAs on a generator.

    OUT gets `photos/000000.png`, named after the seed, `conditions/000000.safetensors` and `make_set.json`. Existing
    pictures are skipped: run the same command to resume, or a larger --count to extend the set. A seed gives the same
    picture as in NVIDIA's programs.

    Next, run `intrinsic-lora label OUT/photos --out OUT --teacher ...` with the same OUT, then
    `intrinsic-lora train data.path=OUT base=GENERATOR ...`. A VQGAN can also be trained on labelled photos; its own
    samples (--count) show textures, not scenes.

    **Examples**

    - `intrinsic-lora make-set ffhq/ sets/ffhq --count 4000 --truncation 0.7`
    - `intrinsic-lora make-set imagenet/ sets/imagenet --count 4000 --classes 0-999`
    - `intrinsic-lora make-set vqgan/ sets/faces --photos photos/`
    """
    chosen = None if classes is None else numbers(classes, "--classes")
    if (count is None) == (photos is None):
        raise typer.BadParameter("Specify either --count or --photos.")
    drawing = {"--truncation": truncation, "--classes": classes, "--prompt": prompt}
    if photos is not None and (given := [name for name, value in drawing.items() if value is not None]):
        raise typer.BadParameter(f"{', '.join(given)} cannot be combined with --photos.")

    where = pick_device(device)
    with loading():
        from ..train.backbones import load_backbone
        from ..train.data.make_set import make_set as make

        backbone = load_backbone(generator, [], prompts=[prompt] if prompt else [], device=where)
    console = Console(stderr=True)
    started = time.monotonic()
    with progress_bar(console) as bar:
        task = bar.add_task("draw", total=None)

        made = make(
            backbone,
            out,
            count=count,
            seed=seed,
            classes=chosen,
            photos=photos,
            resolution=resolution,
            failed=partial(say_failed, console),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            truncation=truncation,
            centroids=centroids,
            prompt=prompt,
        )
    say(
        f"{made.written} generated, {made.skipped} skipped (already exist), {made.failed} failed "
        f"in {time.monotonic() - started:.1f} s: {out}"
    )
    say(f"Next: intrinsic-lora label {out / 'photos'} --out {out} --teacher ...")
    if made.failed:
        raise typer.Exit(1)


def numbers(text: str, option: str) -> list[int]:
    """Parse a list of numbers and ranges: "0-3,7" -> [0, 1, 2, 3, 7]."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise typer.BadParameter(
                f"{part.strip()!r} is neither a number nor a range such as 0-7.", param_hint=f"'{option}'"
            )
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))
