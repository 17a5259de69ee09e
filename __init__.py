"""intrinsic-lora: surface normals, depth, albedo and shading from one Stable Diffusion step.

Importing the package costs nothing: names are resolved on first use (PEP 562), so that ComfyUI, the command
line and the tests pay only for what they touch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comfy_nodes.extension import comfy_entrypoint as comfy_entrypoint
    from .diffusers_pipeline.extract import extract_folder
    from .diffusers_pipeline.multi_step import IntrinsicLoRAMultiStepPipeline
    from .diffusers_pipeline.output import IntrinsicLoRAOutput
    from .diffusers_pipeline.single_step import IntrinsicLoRAPipeline

__version__ = "0.2.0"
__all__ = ["IntrinsicLoRAMultiStepPipeline", "IntrinsicLoRAOutput", "IntrinsicLoRAPipeline", "extract_folder"]
WEB_DIRECTORY = "./comfy_nodes/web"  # for ComfyUI: the help pages

_LAZY = {
    "IntrinsicLoRAPipeline": ".diffusers_pipeline.single_step",
    "IntrinsicLoRAMultiStepPipeline": ".diffusers_pipeline.multi_step",
    "IntrinsicLoRAOutput": ".diffusers_pipeline.output",
    "extract_folder": ".diffusers_pipeline.extract",
    "comfy_entrypoint": ".comfy_nodes.extension",  # ComfyUI looks for it in the folder it loads
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
