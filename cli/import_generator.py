"""`intrinsic-lora import-generator`: a published StyleGAN or VQGAN as a folder of safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from .progress import loading, say


def import_generator(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A .pkl of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL, or a .ckpt of taming-transformers' VQGAN.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist, or be empty.")],
    max_gb: Annotated[
        float, typer.Option(min=0, help="Refuse files, and generators in them, that are larger than this many GB.")
    ] = 8.0,
) -> None:
    """Convert a published generator to a folder that make-set, train and extract read as their base.

    Nothing in the file is ever run: pickles are read as data, and what is not a network of these is refused. Files
    made by TensorFlow go through NVIDIA's legacy.py first. Mind the licences: NVIDIA's is non-commercial.

    **Example**

    - `intrinsic-lora import-generator stylegan2-ffhq-256x256.pkl generators/ffhq256`
    """
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise typer.BadParameter(f"{out} is there already; name a new folder.", param_hint="'OUT'")

    with loading("Importing"):
        from ..train.generators.importer import import_generator

        said = import_generator(file, out, max_bytes=int(max_gb * 1e9))
    say(f"{out}: {said}")
