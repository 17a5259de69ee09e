"""For graphs made with `Intrinsic_lora_sampling` of ComfyUI-KJNodes, which was retired in May 2026."""

from comfy_api import latest
from comfy_api.latest import io

from ..intrinsics.display import display_map
from .decompose import decompose
from .gbuffers import check_choice
from .loras import choose, lora_files
from .photo_maps import photo_from_image, to_image
from .sockets import choice, schema, verdict, whole

TASKS = {"depth map": "depth", "surface normals": "normals", "albedo": "albedo", "shading": "shading"}
REPLACEMENT = {
    "old_node_id": "Intrinsic_lora_sampling",
    "new_node_id": "IntrinsicLora_Sampling",
    "old_widget_ids": ["lora_name", "task", "text", "per_batch"],
    "input_mapping": [
        *({"new_id": name, "old_id": name} for name in ("image", "model", "clip", "vae", "task")),
        {"new_id": "batch_size", "old_id": "per_batch"},
    ],
    "output_mapping": [{"new_idx": 0, "old_idx": 0}, {"new_idx": 1, "old_idx": 1}],
}


async def register_replacement() -> None:
    """Offer the upgrade where ComfyUI can (it came after v0.3.64).

    To a node with the same task and outputs, because a replacement maps sockets one to one: which output of
    Intrinsic Decompose a graph needs would depend on the task that was chosen.
    """
    if hasattr(io, "NodeReplace"):
        await latest.ComfyAPI().node_replacement.register(io.NodeReplace(**REPLACEMENT))


class SamplingNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_Sampling",
            display_name="Intrinsic LoRA Sampling (upgraded)",
            category="image/intrinsic",
            description="Replaces Intrinsic_lora_sampling of KJNodes in old graphs; use Intrinsic Decompose in new "
            "ones. Normals keep their frame (ControlNet: X left, Y up). The task selects the LoRA and the prompt.",
            is_deprecated=True,
            inputs=[
                io.Image.Input("image", tooltip="A photo, a batch, or the frames of a clip."),
                io.Model.Input("model", tooltip="A Stable Diffusion 1.5 model."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                choice("task", TASKS, "depth map", "The map to draw."),
                whole("batch_size", 16, 1, 4096, "Frames that the model processes at once."),
            ],
            outputs=[
                io.Image.Output("picture", display_name="image", tooltip="The map, at the size of the photo."),
                io.Latent.Output(
                    "latent", tooltip="The same before the VAE decodes it; sides are multiples of 8 pixels."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, task: str = "depth map") -> bool | str:
        return verdict(lambda: check_choice("task", task, TASKS))

    @classmethod
    def execute(
        cls,
        image: io.Image.Type,
        model: io.Model.Type,
        clip: io.Clip.Type,
        vae: io.Vae.Type,
        task: str = "depth map",
        batch_size: int = 16,
    ) -> io.NodeOutput:
        name = TASKS[task]
        photo, _ = photo_from_image(image)
        files = choose(lora_files(), [name])
        maps, latents = decompose(photo, files, model, clip, vae, 0, "off", batch_size)  # at its own size, as it did
        picture = display_map(maps[name], name, normals="controlnet")
        return io.NodeOutput(to_image(picture), {"samples": latents[name]})
