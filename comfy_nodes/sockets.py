"""What is ours in ComfyUI's type system, and what differs between its versions."""

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

GBufferType = io.Custom("INTRINSIC_GBUFFER")  # a Packet
LightsType = io.Custom("INTRINSIC_LIGHTS")  # a list of frames, each a tuple of lights of intrinsics.relight

BYTES_PER_PIXEL = 400  # what lighting one frame takes at its peak, above the packet; 340 to 390 measured


def schema(**keywords: Any) -> io.Schema:
    """`io.Schema` without the keywords that the running ComfyUI does not know yet (`search_aliases`, ...).

    An output without a name to show gets its id: ComfyUI would show its type, four times IMAGE on one node.
    """
    for output in keywords["outputs"]:
        output.display_name = output.display_name or output.id
    return io.Schema(**{key: value for key, value in keywords.items() if key in io.Schema.__dataclass_fields__})


def advanced(widget: io.Input) -> io.Input:
    """Shown only when the user asks for the node's advanced inputs. A keyword of its own came after v0.3.64."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget


def stepper(count: int) -> Callable[[], None]:
    """To be called before each of `count` pictures: moves the node's bar, and raises where the user interrupts."""
    progress = comfy.utils.ProgressBar(count)

    def step() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(1)

    return step


def compute_device(photo: torch.Tensor) -> torch.device:
    """Where to light frames of this size: the accelerator, with room made on it, if it can do all that is asked."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":  # MPS, for one, cannot sample beyond a border, which marched shadows do
        return torch.device("cpu")
    comfy.model_management.free_memory(BYTES_PER_PIXEL * photo.shape[-2] * photo.shape[-1], device)
    return device
