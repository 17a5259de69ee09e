"""The sockets and widgets of the nodes, and what differs between the versions of ComfyUI."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from ..intrinsics.relight import Light
from ..intrinsics.resizing import resize
from .photo_maps import channels_first, to_image

log = logging.getLogger(__name__)

GBufferType = io.Custom("INTRINSIC_GBUFFER")  # a PhotoMaps
LightsType = io.Custom("INTRINSIC_LIGHTS")  # Rigs
GeometryType = io.Custom("MOGE_GEOMETRY,DA3_GEOMETRY")  # core's, which v0.3.64 does not have: see geometry.py
MoGeGeometryType = io.Custom("MOGE_GEOMETRY")
LightInfoType = io.Custom("LOAD3D_LIGHT_INFO")  # core's: see light_info.py
HAS_COMPARE = hasattr(io, "ImageCompare")
HAS_LIGHT_INFO = hasattr(io, "Load3DLightInfo")  # it came after v0.33

Rigs = list[tuple[Light, ...]]  # one rig per frame

PREVIEWS, PREVIEW_SIDE = 4, 768  # how many pictures a node shows of its result, and their longer side at most
BYPASS = "The photo, which a bypassed node (Ctrl+B) passes on, to compare before and after. It is not used otherwise."
BYTES_PER_PIXEL = 400  # peak memory of lighting one frame, beside its maps; 340 to 390 measured


def schema(**keywords: Any) -> io.Schema:
    """Return `io.Schema` without the keywords that the running ComfyUI does not know yet (`search_aliases`, ...).

    An output without a name to show gets its id: ComfyUI would show its type, four times IMAGE on one node.
    """
    for output in keywords["outputs"]:
        output.display_name = output.display_name or output.id
    return io.Schema(**{key: value for key, value in keywords.items() if key in io.Schema.__dataclass_fields__})


def choice(name: str, options: Iterable[str], default: str, tooltip: str, **more: Any) -> io.Input:
    """Return a menu."""
    return io.Combo.Input(name, options=list(options), default=default, tooltip=tooltip, **more)


def number(name: str, default: float, low: float, high: float, step: float, tooltip: str, **more: Any) -> io.Input:
    """Return a field for a number from `low` to `high`."""
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, **more)


def whole(name: str, default: int, low: int, high: int, tooltip: str, step: int = 1) -> io.Input:
    """Return a field for an integer from `low` to `high`."""
    return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)


def color(name: str, default: str, tooltip: str) -> io.Input:
    """Return a colour picker where ComfyUI has one (it came after v0.3.64), else text; "#rrggbb" in both.

    The picker's socket takes text, too: a colour that another node computes is text, and so it is in older graphs.
    """
    if not hasattr(io, "Color"):
        return io.String.Input(name, default=default, tooltip=tooltip)
    return io.MultiType.Input(io.Color.Input(name, default=default, tooltip=tooltip, socketless=False), [io.String])


def advanced(widget: io.Input) -> io.Input:
    """Show a widget only with the node's advanced inputs. A keyword of its own came after v0.3.64."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget


def shown_for(widget: io.Input, menu: str, choices: Sequence[str]) -> io.Input:
    """Show a widget only while `menu` has one of `choices` (web/js/fields.js). Its value is kept and sent anyway.

    Core's DynamicCombo would give the fields other names, and no graph saved before it would load.
    """
    widget.extra_dict = {**(widget.extra_dict or {}), "shown_for": [menu, list(choices)]}
    return widget


def light_info(tooltip: str) -> list[io.Input]:
    """Return the socket for core's lights, where core has them."""
    return [LightInfoType.Input("light_info", optional=True, tooltip=tooltip)] if HAS_LIGHT_INFO else []


def before_after() -> list[io.Input]:
    """Return core's slider over two pictures, where core has it (it came after v0.3.64); see web/js/compare.js."""
    tooltip = "The photo at the left, the result at the right."
    return [io.ImageCompare.Input("before_after", optional=True, tooltip=tooltip)] if HAS_COMPARE else []


def verdict(check: Callable[[], object]) -> bool | str:
    """Return what `validate_inputs` returns: True, or the message with which `check` refuses.

    ComfyUI asks before anything runs. It leaves out inputs that are linked, so that their defaults are checked.
    """
    try:
        check()
    except (ValueError, OSError, ImportError) as error:
        return str(error)
    return True


def warn(text: str) -> None:
    """Show a message on the node that runs, and write it to the log."""
    log.warning("Intrinsic LoRA: %s", text)
    context = get_executing_context()
    if context is not None:
        from server import PromptServer  # here, since the nodes also run without a server

        PromptServer.instance.send_progress_text(text, context.node_id)


def preview(node: type[io.ComfyNode], *images: torch.Tensor) -> ui.PreviewImage:
    """Make small pictures of the first few of each IMAGE for the page to show on the node."""
    pictures = []
    for image in images:
        x = channels_first(image[: max(1, PREVIEWS // len(images))])
        scale = min(1.0, PREVIEW_SIDE / max(x.shape[-2:]))
        size = max(1, round(x.shape[-2] * scale)), max(1, round(x.shape[-1] * scale))
        pictures.append(to_image(resize(x, size).clamp(0, 1)))
    return ui.PreviewImage(torch.cat(pictures), cls=node)


def comparison(node: type[io.ComfyNode], before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
    """Make a preview of `after`, and where core has the slider for it, of both: two IMAGEs."""
    shown: dict[str, Any] = preview(node, after).as_dict()
    return shown | {"a_images": preview(node, before).values, "b_images": shown["images"]} if HAS_COMPARE else shown


def stepper(count: int) -> Callable[[], None]:
    """Return a function to call before each of `count` pictures: it moves the progress bar and raises on interrupt."""
    progress = comfy.utils.ProgressBar(count)

    def step() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(1)

    return step


def compute_device(photo: torch.Tensor) -> torch.device:
    """Return where to light frames of this size: the accelerator, with room made on it, if it supports everything."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":  # MPS, for one, cannot sample beyond a border, which marched shadows do
        return torch.device("cpu")
    comfy.model_management.free_memory(BYTES_PER_PIXEL * photo.shape[-2] * photo.shape[-1], device)
    return device
