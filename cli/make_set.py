"""`intrinsic-lora make-set`: pictures of a generator, each with what it was drawn from."""

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
            help="A folder of import-generator, or a Stable Diffusion.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the set; made when missing.", file_okay=False)],
    count: Annotated[int | None, typer.Option(min=1, help="How many pictures.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture; the next ones have the next seeds.")] = 0,
    truncation: Annotated[
        float | None,
        typer.Option(help="StyleGAN: variety of the pictures, 0 to 1; less is better looking.", show_default="1"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="StyleGAN with classes: which to draw, in turn, as in 0-999 or 207,250.",
            show_default="StyleGAN-XL: by the seed",
        ),
    ] = None,
    centroids: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="StyleGAN-XL: .npy of means that --truncation goes towards, each picture to the nearest.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Stable Diffusion: what to paint.", show_default="the empty prompt")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --count: photos, which VQGAN (or Stable Diffusion) encodes and draws again.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Of --photos: their short side in pixels; they are cropped to the centre square.",
            show_default="the generator's own",
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Draw pictures with a generator and keep what each was drawn from: the set its I-LoRAs are trained on.

    OUT gets `photos/000000.png`, named by the seed, `conditions/000000.safetensors` and `make_set.json`. Pictures that
    are there are kept, so an interrupted set goes on and a larger --count adds to it. A seed is the same picture as
    in NVIDIA's own programs.

    Then: `intrinsic-lora label OUT/photos --out OUT --teacher ...`, with OUT itself as the folder of the labels, and
    `intrinsic-lora train data.path=OUT base=GENERATOR ...`. A VQGAN can also be trained on labelled photos;
    what it draws by --count shows textures and no scene.

    **Examples**

    - `intrinsic-lora make-set ffhq/ sets/ffhq --count 4000 --truncation 0.7`
    - `intrinsic-lora make-set imagenet/ sets/imagenet --count 4000 --classes 0-999`
    - `intrinsic-lora make-set vqgan/ sets/faces --photos photos/`
    """
    chosen = None if classes is None else numbers(classes, "--classes")
    if (count is None) == (photos is None):
        raise typer.BadParameter("say how many pictures with --count, or name --photos to draw again.")
    drawing = {"--truncation": truncation, "--classes": classes, "--prompt": prompt}
    if photos is not None and (given := [name for name, value in drawing.items() if value is not None]):
        raise typer.BadParameter(f"what is drawn is in --photos; leave {', '.join(given)} out.")

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
        f"{made.written} drawn, {made.there} already there, {made.failed} failed "
        f"in {time.monotonic() - started:.1f} s: {out}"
    )
    say(f"Next: intrinsic-lora label {out / 'photos'} --out {out} --teacher ...")
    if made.failed:
        raise typer.Exit(1)


def numbers(text: str, option: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise typer.BadParameter(
                f"{part.strip()!r} is no number and no range such as 0-7.", param_hint=f"'{option}'"
            )
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))
