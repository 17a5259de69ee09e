"""Maps on disk, and back."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from .files import FORMATS, LAYERS, check_format, chosen_layers, save_layers
from .gbuffer_files import PRECISIONS, SUFFIX, load_packet, save_packet
from .gbuffers import check_choice
from .packet import to_image
from .sockets import GBufferType, schema, stepper, verdict

NO_FILE = "none yet"


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
    def validate_inputs(cls, format=FORMATS[0]) -> bool | str:
        return verdict(lambda: check_format(format))

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


class SaveGBuffer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_SaveGBuffer",
            display_name="Save G-Buffer",
            category="image/intrinsic",
            description="Keeps a G-buffer in a file, so that Load G-Buffer has it tomorrow without running the "
            "network again: photos, maps and camera, a batch or clip in one file.",
            search_aliases=["save maps", "store", "cache"],
            is_output_node=True,
            inputs=[
                GBufferType.Input("gbuffer", tooltip="What to save."),
                io.String.Input(
                    "filename_prefix",
                    default="intrinsic/gbuffer",
                    tooltip="In ComfyUI's output folder; %date% and the like as in Save Image.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="half float",
                    tooltip="half float: half the size, and a tenth of an 8-bit level at most lost. float: exact.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, precision="half float") -> bool | str:
        return verdict(lambda: check_choice("precision", precision, PRECISIONS))

    @classmethod
    def execute(cls, gbuffer, filename_prefix, precision="half float") -> io.NodeOutput:
        height, width = gbuffer.photo.shape[-2:]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        path = Path(folder) / f"{name}_{counter:05}_{SUFFIX}"
        save_packet(gbuffer, precision, path)
        return io.NodeOutput(ui={"files": [{"filename": path.name, "subfolder": subfolder, "type": "output"}]})


def saved_gbuffers() -> dict[str, Path]:
    """{name as ComfyUI writes it, with its folder in brackets: file} of the output and the input folder."""
    folders = {"output": folder_paths.get_output_directory(), "input": folder_paths.get_input_directory()}
    return {
        f"{path.relative_to(folder).as_posix()} [{kind}]": path
        for kind, folder in folders.items()
        for path in sorted(Path(folder).rglob(f"*{SUFFIX}"))
    }


class LoadGBuffer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = list(saved_gbuffers())
        return schema(
            node_id="IntrinsicLora_LoadGBuffer",
            display_name="Load G-Buffer",
            category="image/intrinsic",
            description="A G-buffer that Save G-Buffer has kept, for Relight and the other Intrinsic nodes.",
            search_aliases=["load maps", "cache"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files or [NO_FILE],
                    default=files[-1] if files else NO_FILE,
                    tooltip="From the output or the input folder and those below. Press R for new ones.",
                ),
            ],
            outputs=[
                GBufferType.Output("gbuffer", tooltip="As it was saved."),
                io.Image.Output("photo", tooltip="The photo in it, sRGB."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file=NO_FILE) -> bool | str:
        return verdict(lambda: cls._path(file))

    @classmethod
    def fingerprint_inputs(cls, file=NO_FILE) -> str:
        stat = cls._path(file).stat()
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, file=NO_FILE) -> io.NodeOutput:
        packet = load_packet(cls._path(file))
        return io.NodeOutput(packet, to_image(packet.photo.clamp(0, 1)))

    @staticmethod
    def _path(file: str) -> Path:
        # Looked up, not opened by name: a name from a graph must not lead out of the two folders.
        files = saved_gbuffers()
        if file not in files:
            raise FileNotFoundError(f"There is no G-buffer {file}: make one with Save G-Buffer, and refresh (R).")
        return files[file]
