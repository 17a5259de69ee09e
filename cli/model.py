"""The options that choose the model, for every command that runs it, and how it is loaded."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from ..diffusers_pipeline.pipeline import IntrinsicLoRAPipeline


class DType(StrEnum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def _multiple_of_8(resolution: int | None) -> int | None:
    if resolution is not None and resolution % 8:
        raise typer.BadParameter(f"{resolution} is not a multiple of 8.")
    return resolution


Base = Annotated[
    str | None,
    typer.Option(
        help="Stable Diffusion 1.x or 2.x: a diffusers folder, one .safetensors checkpoint, or a Hugging Face id "
        "(which is downloaded). Without it, the small embedded model runs: it knows rendered rooms, not photos.",
        show_default="the embedded model",
    ),
]
BaseConfig = Annotated[
    str | None,
    typer.Option(
        help="Only for a base in one file, which lacks tokenizer and configuration: a diffusers folder or Hugging "
        "Face id of the same family to take them from.",
        show_default="SD 1.5's, if the Hugging Face cache has them",
    ),
]
Loras = Annotated[
    str | None,
    typer.Option(
        help="The I-LoRAs for that base: a folder, one file, or a Hugging Face id.",
        show_default="those saved with the base",
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        min=0,
        callback=_multiple_of_8,
        help="The network works on a copy whose short side has this many pixels, a multiple of 8; 0 = the "
        "picture's own size. Results always have the picture's size.",
        show_default="what the model was trained at",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cuda, cuda:1, mps, cpu ...", show_default="the first of cuda, mps, cpu"),
]
DTypeOption = Annotated[
    DType, typer.Option(help="Precision of the network; auto is float16 on cuda and float32 elsewhere.")
]


def pick_device(name: str | None) -> "torch.device":
    """The device of that name, else the first of cuda, mps and cpu that works; ValueError when it cannot be used."""
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def load_pipeline(
    base: str | None, base_config: str | None, loras: str | None, device: "torch.device", dtype: DType
) -> "IntrinsicLoRAPipeline":
    """The pipeline with at least one I-LoRA on `device`; ValueError when it has none."""
    import diffusers
    import torch
    import transformers

    from ..diffusers_pipeline.pipeline import IntrinsicLoRAPipeline

    # Their bars for reading files from disk would bury ours; those of downloads stay.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if dtype is DType.auto:
        dtype = DType.float16 if device.type == "cuda" else DType.float32
    options = {} if base_config is None else {"config": base_config}
    pipe = IntrinsicLoRAPipeline.from_pretrained(base, dtype=getattr(torch, dtype), **options)
    if loras is not None:
        pipe.load_intrinsics(loras)
    if not pipe.intrinsics:
        raise ValueError(f"{base} brings no I-LoRA; say where they are with --loras.")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
