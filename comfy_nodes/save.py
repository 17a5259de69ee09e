"""Maps in full precision on disk."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from .files import FORMATS, LAYERS, chosen_layers, save_layers
from .sockets import GBufferType, schema, stepper


class SaveIntrinsicEXR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_SaveEXR",
            display_name="Save Intrinsic EXR",
            category="image/intrinsic",
            description="Saves photo and maps for Nuke, Blender or Fusion: one EXR of many layers per picture (needs "
            "the Python package OpenEXR), or a 16-bit PNG per map.",
            search_aliases=["exr", "16-bit", "multilayer", "aov", "nuke", "blender"],
            is_output_node=True,
            inputs=[
                GBufferType.Input("gbuffer", tooltip="What to save."),
                io.String.Input(
                    "filename_prefix",
                    default="intrinsic/gbuffer",
                    tooltip="In ComfyUI's output folder; %date% and the like as in Save Image.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="EXR half float",
                    tooltip="EXR is linear light, with vectors and distances as they are. Half floats are what film "
                    "work uses; float is for measuring. PNGs are as they look on screen.",
                ),
                io.String.Input(
                    "layers",
                    default="all",
                    tooltip=f"all, or some of them with commas between: {', '.join(LAYERS)}.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, gbuffer, filename_prefix, format="EXR half float", layers="all") -> io.NodeOutput:
        names = chosen_layers(gbuffer, layers)
        height, width = gbuffer.photo.shape[-2:]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        files = save_layers(gbuffer, names, format, Path(folder), name, counter, stepper(len(gbuffer.photo)))
        saved = [{"filename": file.name, "subfolder": subfolder, "type": "output"} for file in files]
        # Under "images" the page would try to show an EXR.
        return io.NodeOutput(ui={"images" if format.startswith("PNG") else "files": saved})
