"""`intrinsic-lora import-generator`: convert a published StyleGAN or VQGAN to safetensors."""

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
            help="A StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL .pkl, or a taming-transformers VQGAN .ckpt.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder; must be new or empty.")],
    max_gb: Annotated[float, typer.Option(min=0, help="Refuse files and generators larger than this, in GB.")] = 8.0,
) -> None:
    """Convert a published generator to a folder that make-set, train and extract accept as a base model.

    No code in the file is executed: pickles are parsed as data, and other networks are refused. Convert TensorFlow
    pickles with NVIDIA's legacy.py first. Check the licences: NVIDIA's is non-commercial.

    **Example**

    - `intrinsic-lora import-generator stylegan2-ffhq-256x256.pkl generators/ffhq256`
    """
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise typer.BadParameter(
            f"{out} already exists and is not an empty folder; choose a new folder.", param_hint="'OUT'"
        )

    with loading("Importing"):
        from ..train.generators.importer import import_generator

        description = import_generator(file, out, max_bytes=int(max_gb * 1e9))
    say(f"{out}: {description}")
