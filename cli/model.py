"""Options that select the model, shared by the commands, and loading of the pipeline."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checks import loras as lora_sources
from .checks import path_or_hub_id
from .progress import loading

if TYPE_CHECKING:
    import torch

    from ..diffusers_pipeline.base import IntrinsicsPipeline


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
        callback=path_or_hub_id,
        help="Base model, Stable Diffusion 1.x or 2.x: a diffusers folder, a .safetensors checkpoint, or a Hugging "
        "Face id (downloaded if not cached). The default embedded model was trained on rendered rooms, not photos.",
        show_default="the embedded model",
    ),
]
BaseConfig = Annotated[
    str | None,
    typer.Option(
        callback=path_or_hub_id,
        help="Source of tokenizer and configuration for a single-file base: a diffusers folder or Hugging Face id of "
        "the same model family.",
        show_default="SD 1.5's, if in the Hugging Face cache",
    ),
]
Loras = Annotated[
    str | None,
    typer.Option(
        callback=lora_sources,
        help="I-LoRAs for the base model, all single-step or all multi-step: a folder, a file, or a Hugging Face id. "
        "Separate several sources by commas; later ones take precedence. `embedded` stands for the LoRAs of the "
        "embedded model, as in embedded,runs/mine.",
        show_default="those saved with the base",
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        min=0,
        callback=_multiple_of_8,
        help="Processing resolution: short side in pixels, a multiple of 8; 0 = the size of the picture. Results "
        "always have the size of the picture.",
        show_default="the training resolution of the model",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Torch device, such as cuda, cuda:1, mps or cpu.", show_default="first available of cuda, mps, cpu"
    ),
]
DTypeOption = Annotated[
    DType, typer.Option(help="Precision of the network; auto selects float16 on cuda and float32 elsewhere.")
]


@loading()
def pick_device(name: str | None) -> "torch.device":
    """Return the named device, or the first available of cuda, mps and cpu; ValueError if it cannot be used."""
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@loading()
def load_pipeline(
    base: str | None, base_config: str | None, loras: str | None, device: "torch.device", dtype: DType
) -> "IntrinsicsPipeline":
    """Load the pipeline that matches the LoRAs' method onto `device`; ValueError if no I-LoRA is found."""
    import diffusers
    import torch
    import transformers

    from ..diffusers_pipeline.multi_step import IntrinsicLoRAMultiStepPipeline
    from ..diffusers_pipeline.single_step import IntrinsicLoRAPipeline
    from ..diffusers_pipeline.sources import find_loras

    # Their progress bars for reading files would hide ours; progress of downloads is still shown.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if dtype is DType.auto:
        dtype = DType.float16 if device.type == "cuda" else DType.float32
    options = {} if base_config is None else {"config": base_config}
    found = None if loras is None else find_loras(loras, {})
    if found is not None:
        multi_step = _is_multi_step(found)
    else:  # a saved pipeline; if it contains both kinds, the faster one is used
        saved = [cls.lora_folder for cls in (IntrinsicLoRAPipeline, IntrinsicLoRAMultiStepPipeline)]
        single, multi = (base is not None and any(Path(base, x).glob("intrinsic_lora_*")) for x in saved)
        multi_step = multi and not single
    kind = IntrinsicLoRAMultiStepPipeline if multi_step else IntrinsicLoRAPipeline
    pipe = kind.from_pretrained(base, dtype=getattr(torch, dtype), **options)
    if found is not None:
        pipe.unload_intrinsics()  # those saved with the base
        pipe.load_intrinsics(found)
    if not pipe.intrinsics:
        raise ValueError(f"{base} contains no I-LoRA; specify some with --loras.")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _is_multi_step(found: "Mapping[str, Path]") -> bool:
    from ..intrinsics.lora import read_header

    multi = [name for name, path in found.items() if read_header(path).method == "multi-step"]
    if multi and len(multi) < len(found):
        others = ", ".join(name for name in found if name not in multi)
        raise ValueError(
            f"The LoRAs for {', '.join(multi)} are multi-step and those for {others} single-step; they require "
            "different pipelines; put each kind into a separate folder and run them one after the other."
        )
    return bool(multi)


def sampling(
    pipe: "IntrinsicsPipeline", steps: int | None = None, guidance: float | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Return the keyword arguments of a pipeline call. Multi-step noise is seeded, so that results are reproducible.

    Raises:
        ValueError: a multi-step option is given for single-step LoRAs.
    """
    given = {"num_inference_steps": steps, "guidance_scale": guidance}
    if pipe.method == "multi-step":
        import torch

        noise = torch.Generator().manual_seed(seed or 0)
        return {key: value for key, value in given.items() if value is not None} | {"generator": noise}
    if any(value is not None for value in (steps, guidance, seed)):
        raise ValueError("--steps, --guidance and --seed require multi-step LoRAs, and these are single-step.")
    return {}
