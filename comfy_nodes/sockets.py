"""What is ours in ComfyUI's type system, and what differs between its versions."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from ..intrinsics.resizing import resize
from .packet import channels_first, to_image

log = logging.getLogger(__name__)

GBufferType = io.Custom("INTRINSIC_GBUFFER")  # a Packet
GeometryType = io.Custom("MOGE_GEOMETRY,DA3_GEOMETRY")  # core's, which v0.3.64 does not have: see geometry.py
LightsType = io.Custom("INTRINSIC_LIGHTS")  # a list of frames, each a tuple of lights of intrinsics.relight

PREVIEWS, PREVIEW_SIDE = 4, 768  # how many pictures a node shows of its result, and their longer side at most
BYPASS = (
    "The photo, which is what a bypassed node (Ctrl+B) passes on, for comparing before and after. It is not used "
    "otherwise."
)
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


def shown_for(widget: io.Input, choice: str, values: Sequence[str]) -> io.Input:
    """Shown only while the combo `choice` has one of `values` (web/js/fields.js). The value is kept and sent anyway.

    Core's DynamicCombo would give the fields other names, and no graph saved before it would load.
    """
    widget.extra_dict = {**(widget.extra_dict or {}), "shown_for": [choice, list(values)]}
    return widget


def color(name: str, default: str, tooltip: str) -> io.Input:
    """A colour picker where ComfyUI has one (it came after v0.3.64), else text. The value is "#rrggbb" in both."""
    if hasattr(io, "Color"):
        return io.Color.Input(name, default=default, tooltip=tooltip)
    return io.String.Input(name, default=default, tooltip=tooltip)


def verdict(check: Callable[[], object]) -> bool | str:
    """What `validate_inputs` returns: True, or the sentence with which `check` refuses.

    ComfyUI asks before anything runs. It leaves out inputs that are linked, so that their defaults are checked.
    """
    try:
        check()
    except (ValueError, OSError, ImportError) as error:
        return str(error)
    return True


def warn(text: str) -> None:
    """Says something on the node that runs, and in the log."""
    log.warning("Intrinsic LoRA: %s", text)
    context = get_executing_context()
    if context is not None:
        from server import PromptServer  # here, since the nodes also run without a server

        PromptServer.instance.send_progress_text(text, context.node_id)


def preview(node: type[io.ComfyNode], *images: torch.Tensor) -> ui.PreviewImage:
    """Pictures for the page to show on the node: the first few of each IMAGE, made small."""
    pictures = []
    for image in images:
        x = channels_first(image[: max(1, PREVIEWS // len(images))])
        scale = min(1.0, PREVIEW_SIDE / max(x.shape[-2:]))
        size = max(1, round(x.shape[-2] * scale)), max(1, round(x.shape[-1] * scale))
        pictures.append(to_image(resize(x, size).clamp(0, 1)))
    return ui.PreviewImage(torch.cat(pictures), cls=node)


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
