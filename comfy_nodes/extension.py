"""What ComfyUI loads: the list of nodes."""

import os

import folder_paths
from comfy_api.latest import ComfyExtension, io

from . import retired
from .decompose import IntrinsicDecompose, IntrinsicModelPatch
from .lights import AnimateLights, EnvironmentLight, Light
from .maps import ConvertNormalMap, EditShading, MakeGBuffer, RenderMap
from .relighting import Relight
from .save import LoadGBuffer, SaveGBuffer, SaveIntrinsicEXR


class IntrinsicLoRAExtension(ComfyExtension):
    async def on_load(self) -> None:
        await retired.register_replacement()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            IntrinsicDecompose,
            IntrinsicModelPatch,
            RenderMap,
            ConvertNormalMap,
            MakeGBuffer,
            EditShading,
            Light,
            EnvironmentLight,
            AnimateLights,
            Relight,
            SaveIntrinsicEXR,
            SaveGBuffer,
            LoadGBuffer,
            retired.IntrinsicSampling,
        ]


async def comfy_entrypoint() -> IntrinsicLoRAExtension:
    # Adds to what extra_model_paths.yaml and other packs have put under that name.
    folder_paths.add_model_folder_path("intrinsic_loras", os.path.join(folder_paths.models_dir, "intrinsic_loras"))
    return IntrinsicLoRAExtension()
