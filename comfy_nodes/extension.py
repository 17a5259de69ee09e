"""What ComfyUI loads: the list of nodes."""

import os

import folder_paths
from comfy_api.latest import ComfyExtension, io

from . import retired
from .decompose import DecomposeNode, ModelPatchNode
from .lights import AnimateLightsNode, EnvironmentLightNode, LightNode
from .maps import ConvertNormalMapNode, EditShadingNode, GeometryNode, MakeGBufferNode, RenderMapNode
from .relighting import RelightNode
from .save import LoadGBufferNode, SaveEXRNode, SaveGBufferNode


class IntrinsicLoRAExtension(ComfyExtension):
    async def on_load(self) -> None:
        await retired.register_replacement()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            DecomposeNode,
            ModelPatchNode,
            RenderMapNode,
            ConvertNormalMapNode,
            MakeGBufferNode,
            GeometryNode,
            EditShadingNode,
            LightNode,
            EnvironmentLightNode,
            AnimateLightsNode,
            RelightNode,
            SaveEXRNode,
            SaveGBufferNode,
            LoadGBufferNode,
            retired.SamplingNode,
        ]


async def comfy_entrypoint() -> IntrinsicLoRAExtension:
    # Adds to what extra_model_paths.yaml and other packs have put under that name.
    folder_paths.add_model_folder_path("intrinsic_loras", os.path.join(folder_paths.models_dir, "intrinsic_loras"))
    return IntrinsicLoRAExtension()
