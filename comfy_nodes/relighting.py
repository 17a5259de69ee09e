"""The photo under new light."""

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..intrinsics.relight import MODES, PRESETS
from .gbuffers import WHERE_FROM, check_choice
from .packet import photo_from_image, to_image
from .rigs import NO_PRESET, all_lights, mixed, relight_frames
from .sockets import (
    BYPASS,
    GBufferType,
    LightsType,
    advanced,
    compute_device,
    preview,
    schema,
    stepper,
    verdict,
    warn,
)


class Relight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def share(name: str, default: float, tooltip: str, max: float = 1.0) -> io.Input:
            return io.Float.Input(name, default=default, min=0.0, max=max, step=0.01, tooltip=tooltip)

        def of_camera(name: str, max: float, tooltip: str) -> io.Input:
            return advanced(io.Float.Input(name, default=0.0, min=0.0, max=max, step=0.1, tooltip=tooltip))

        return schema(
            node_id="IntrinsicLora_Relight",
            display_name="Relight",
            category="image/lighting",
            description="Shows a photo under other lights: the photo's own light is divided out, the new one put in. "
            "One picture under one rig, a batch under one rig, one picture under moving lights, or both in step.",
            search_aliases=["light", "ic-light", "lighting", "shadows"],
            has_intermediate_output=True,
            inputs=[
                GBufferType.Input(
                    "gbuffer",
                    optional=True,
                    tooltip="With normals; with depth for shadows. Without one (Intrinsic Decompose is bypassed) the "
                    "photo is shown as it is.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[NO_PRESET, *PRESETS],
                    default=NO_PRESET,
                    tooltip="A ready rig by the name photographers use, added to the lights that are connected.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="ratio",
                    tooltip="ratio: the photo with its light exchanged, keeps all detail. albedo: rendered from the "
                    "albedo. add: lamps beside the light that is there.",
                ),
                share("keep_original", 0.0, "How much of the photo's own light stays. (add keeps all.)"),
                share("ambient", 0.1, "Even white light in the shadows.", max=10.0),
                share("shadow", 0.8, "Strength of cast shadows."),
                share("specular", 0.2, "Strength of highlights: 0.5 is most materials."),
                share("roughness", 0.5, "0 polished, 1 chalk. Used where the G-buffer has no roughness map."),
                share("occlusion", 0.5, "Darkens corners under ambient and environment light."),
                io.Float.Input(
                    "exposure", default=0.0, min=-10.0, max=10.0, step=0.1, tooltip="Stops: 1 is twice as bright."
                ),
                of_camera(
                    "near", 10000.0, "Distance of the nearest point, scene units. 0: as the G-buffer says, or 1."
                ),
                of_camera("far", 100000.0, "Distance of the farthest point. 0: as the G-buffer says, or 4."),
                of_camera(
                    "fov", 170.0, "Field of view over the longer side, degrees. 0: as the G-buffer says, or 45."
                ),
                LightsType.Input("lights", optional=True, tooltip="From Light, Environment Light or Animate Lights."),
                io.String.Input(
                    "rig",
                    optional=True,
                    force_input=True,
                    tooltip="A rig as JSON (intrinsic-lora-rig), added to the lights.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="White: where light may change."),
                io.Image.Input("photo", optional=True, tooltip=BYPASS),
                io.Float.Input(
                    "mix",
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="0 the photo, 1 relit: for comparing, or for less of it.",
                ),
            ],
            outputs=[
                io.Image.Output("relit", tooltip="The photo under the new light, sRGB."),
                io.Image.Output("diffuse_pass", display_name="diffuse", tooltip="What the lights add, sRGB."),
                io.Image.Output("specular_pass", display_name="specular", tooltip="Highlights alone, sRGB."),
                io.Mask.Output("shadow_pass", display_name="shadow", tooltip="White is lit, black in shadow."),
                io.Image.Output("shading", tooltip="The new shading, sRGB."),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset=NO_PRESET, mode=MODES[0]) -> bool | str:
        def check() -> None:
            check_choice("preset", preset, (NO_PRESET, *PRESETS))
            check_choice("mode", mode, MODES)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        gbuffer=None,
        preset=NO_PRESET,
        mode="ratio",
        keep_original=0.0,
        ambient=0.1,
        shadow=0.8,
        specular=0.2,
        roughness=0.5,
        occlusion=0.5,
        exposure=0.0,
        near=0.0,
        far=0.0,
        fov=0.0,
        lights=None,
        rig="",
        mask=None,
        photo=None,
        mix=1.0,
    ) -> io.NodeOutput:
        if gbuffer is None:
            if photo is None:
                raise ValueError(f"Relight has no gbuffer: {WHERE_FROM}.")
            warn("There is no gbuffer, so the photo is shown as it is.")
            image = to_image(photo_from_image(photo)[0])
            return io.NodeOutput(image, *[ExecutionBlocker(None)] * 4, ui=preview(cls, image))
        rigs = all_lights(lights, preset, rig)
        if not any(rigs):
            warn("There is no light, only ambient: connect lights (the node Light), or choose a preset.")
        passes = relight_frames(
            gbuffer,
            rigs,
            mask=mask,
            camera={"near": near, "far": far, "fov": fov},
            roughness=roughness,
            device=compute_device(gbuffer.photo),
            step=stepper(max(len(gbuffer.photo), len(rigs))),
            mode=mode,
            keep_original=keep_original,
            ambient=ambient,
            shadow=shadow,
            specular=specular,
            occlusion=occlusion,
            exposure=exposure,
        )
        passes["relit"] = mixed(gbuffer, passes["relit"], mix)
        outputs = (passes[name] for name in ("relit", "diffuse", "specular", "shadow", "shading"))
        return io.NodeOutput(*outputs, ui=preview(cls, passes["relit"]))
