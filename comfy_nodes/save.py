"""Write maps to files and read them back."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from .files import FORMATS, LAYERS, check_format, chosen_layers, save_layers
from .gbuffer_files import PRECISIONS, SUFFIX, load_photo_maps, save_photo_maps
from .gbuffers import check_choice
from .photo_maps import PhotoMaps, to_image
from .sockets import GBufferType, choice, schema, stepper, verdict

NO_FILE = "none yet"
PREFIX = "Name in ComfyUI's output folder; %date% and other placeholders work as in Save Image."


class SaveEXRNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        file_format = (
            "EXR holds linear light, and vectors and distances as numbers. Half float is the standard in film work; "
            "float is for measuring. PNGs look as they do on screen."
        )
        return schema(
            node_id="IntrinsicLora_SaveEXR",
            display_name="Save Intrinsic EXR",
            category="image/intrinsic",
            description="Saves photo and maps for Nuke, Blender or Fusion: one multilayer EXR per picture (requires "
            "the Python package OpenEXR), or a 16-bit PNG per map.",
            search_aliases=["exr", "16-bit", "multilayer", "aov", "nuke", "blender"],
            is_output_node=True,
            inputs=[
                GBufferType.Input("gbuffer", tooltip="The G-buffer to save."),
                io.String.Input("filename_prefix", default="intrinsic/gbuffer", tooltip=PREFIX),
                choice("format", FORMATS, FORMATS[0], file_format),
                io.String.Input("layers", default="all", tooltip=f"all, or a list with commas: {', '.join(LAYERS)}."),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, format: str = FORMATS[0]) -> bool | str:  # noqa: A002, the widget's name
        return verdict(lambda: check_format(format))

    @classmethod
    def execute(
        cls,
        gbuffer: PhotoMaps,
        filename_prefix: str,
        format: str = FORMATS[0],  # noqa: A002
        layers: str = "all",
    ) -> io.NodeOutput:
        names = chosen_layers(gbuffer, layers)
        height, width = gbuffer.photo.shape[-2:]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        files = save_layers(gbuffer, names, format, Path(folder), name, counter, stepper(len(gbuffer.photo)))
        saved = [{"filename": file.name, "subfolder": subfolder, "type": "output"} for file in files]
        # Under "images" the page would try to show an EXR, and a grey picture of 16 bits as a white one.
        return io.NodeOutput(ui={"files": saved})


class SaveGBufferNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        precision = "half float: half the size; the error is at most a tenth of an 8-bit level. float: exact."
        return schema(
            node_id="IntrinsicLora_SaveGBuffer",
            display_name="Save G-Buffer",
            category="image/intrinsic",
            description="Saves a G-buffer to a file, so that Load G-Buffer can use it later without running the "
            "network again: photos, maps and camera, a batch or clip in one file.",
            search_aliases=["save maps", "store", "cache"],
            is_output_node=True,
            inputs=[
                GBufferType.Input("gbuffer", tooltip="The G-buffer to save."),
                io.String.Input("filename_prefix", default="intrinsic/gbuffer", tooltip=PREFIX),
                choice("precision", PRECISIONS, "half float", precision),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, precision: str = "half float") -> bool | str:
        return verdict(lambda: check_choice("precision", precision, PRECISIONS))

    @classmethod
    def execute(cls, gbuffer: PhotoMaps, filename_prefix: str, precision: str = "half float") -> io.NodeOutput:
        height, width = gbuffer.photo.shape[-2:]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        path = Path(folder) / f"{name}_{counter:05}_{SUFFIX}"
        save_photo_maps(gbuffer, precision, path)
        return io.NodeOutput(ui={"files": [{"filename": path.name, "subfolder": subfolder, "type": "output"}]})


def saved_gbuffers() -> dict[str, Path]:
    """List {name as ComfyUI writes it, with its folder in brackets: file} of the output and the input folder."""
    folders = {"output": folder_paths.get_output_directory(), "input": folder_paths.get_input_directory()}
    return {
        f"{path.relative_to(folder).as_posix()} [{kind}]": path
        for kind, folder in folders.items()
        for path in sorted(Path(folder).rglob(f"*{SUFFIX}"))
    }


class LoadGBufferNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = list(saved_gbuffers())
        file = "A file in the output or input folder, or in a folder below. Press R to refresh the list."
        return schema(
            node_id="IntrinsicLora_LoadGBuffer",
            display_name="Load G-Buffer",
            category="image/intrinsic",
            description="Loads a G-buffer saved by Save G-Buffer, for Relight and the other Intrinsic nodes.",
            search_aliases=["load maps", "cache"],
            inputs=[
                choice("file", files or [NO_FILE], files[-1] if files else NO_FILE, file),
            ],
            outputs=[
                GBufferType.Output("gbuffer", tooltip="The saved G-buffer."),
                io.Image.Output("photo", tooltip="Its photo, sRGB."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str = NO_FILE) -> bool | str:
        return verdict(lambda: cls._path(file))

    @classmethod
    def fingerprint_inputs(cls, file: str = NO_FILE) -> str:
        stat = cls._path(file).stat()
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, file: str = NO_FILE) -> io.NodeOutput:
        photo_maps = load_photo_maps(cls._path(file))
        return io.NodeOutput(photo_maps, to_image(photo_maps.photo.clamp(0, 1)))

    @staticmethod
    def _path(file: str) -> Path:
        # Looked up, not opened by name: a name from a graph must not lead out of the two folders.
        files = saved_gbuffers()
        if file not in files:
            raise FileNotFoundError(f"There is no G-buffer {file}: save one with Save G-Buffer, and refresh (R).")
        return files[file]
