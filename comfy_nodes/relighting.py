"""The photo under new light."""

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..intrinsics.relight import MODES, PRESETS
from .gbuffers import WHERE_FROM, check_choice
from .light_info import lights_from_info
from .photo_maps import PhotoMaps, photo_from_image, to_image
from .rigs import NO_PRESET, all_lights, chained, mixed, relight_frames
from .sockets import (
    BYPASS,
    PREVIEWS,
    GBufferType,
    LightsType,
    Rigs,
    advanced,
    before_after,
    choice,
    comparison,
    compute_device,
    light_info,
    number,
    schema,
    stepper,
    verdict,
    warn,
)


class RelightNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def share(name: str, default: float, tooltip: str, high: float = 1.0) -> io.Input:
            return number(name, default, 0.0, high, 0.01, tooltip)

        def of_camera(name: str, high: float, tooltip: str) -> io.Input:
            return advanced(number(name, 0.0, 0.0, high, 0.1, tooltip))

        gbuffer = (
            "Requires normals; depth adds shadows. Without a G-buffer (Intrinsic Decompose is bypassed) the photo is "
            "shown as it is."
        )
        mode = (
            "ratio: replaces the light of the photo and keeps all detail. albedo: rendered from the albedo. add: adds "
            "lamps to the existing light."
        )
        near = "Distance of the nearest point in scene units. 0: the value of the G-buffer, or 1."
        far = "Distance of the farthest point in scene units. 0: the value of the G-buffer, or 4."
        fov = "Field of view over the longer side, degrees. 0: the value of the G-buffer, or 45."
        mix = "Opacity of the result: 0 is the photo, 1 is relit."
        return schema(
            node_id="IntrinsicLora_Relight",
            display_name="Relight",
            category="image/lighting",
            description="Shows a photo under new lights: its own light is divided out and the new light applied. One "
            "image under one rig, a batch under one rig, one image under moving lights, or a clip and moving lights "
            "of the same length.",
            search_aliases=["light", "ic-light", "lighting", "shadows"],
            has_intermediate_output=True,
            inputs=[
                GBufferType.Input("gbuffer", optional=True, tooltip=gbuffer),
                choice("preset", [NO_PRESET, *PRESETS], NO_PRESET, "A studio lighting setup, added to the lights."),
                choice("mode", MODES, "ratio", mode),
                share(
                    "keep_original", 0.0, "How much of the photo's own light is kept. The mode add keeps all of it."
                ),
                share("ambient", 0.1, "Even white light that brightens the shadows.", 10.0),
                share("shadow", 0.8, "Strength of cast shadows."),
                share("specular", 0.2, "Strength of highlights: 0.5 fits most materials."),
                share("roughness", 0.5, "0 polished, 1 chalk. Used where the G-buffer has no roughness map."),
                share("occlusion", 0.5, "Darkens corners under ambient and environment light."),
                number("exposure", 0.0, -10.0, 10.0, 0.1, "Stops: 1 is twice as bright."),
                of_camera("near", 10000.0, near),
                of_camera("far", 100000.0, far),
                of_camera("fov", 170.0, fov),
                LightsType.Input("lights", optional=True, tooltip="From Light, Environment Light or Animate Lights."),
                io.String.Input(
                    "rig",
                    optional=True,
                    force_input=True,
                    tooltip="A rig as JSON text (intrinsic-lora-rig), added to the lights.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="White: where the light may change."),
                io.Image.Input("photo", optional=True, tooltip=BYPASS),
                number("mix", 1.0, 0.0, 1.0, 0.01, mix, optional=True),
                *before_after(),
                *light_info("From core's Create Light Info: added to the lights."),
            ],
            outputs=[
                io.Image.Output("relit", tooltip="The photo under the new light, sRGB."),
                io.Image.Output("diffuse_pass", display_name="diffuse", tooltip="Diffuse light of the lights, sRGB."),
                io.Image.Output("specular_pass", display_name="specular", tooltip="The highlights alone, sRGB."),
                io.Mask.Output("shadow_pass", display_name="shadow", tooltip="White is lit, black is in shadow."),
                io.Image.Output("shading", tooltip="The new shading, sRGB."),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str = NO_PRESET, mode: str = MODES[0]) -> bool | str:
        def check() -> None:
            check_choice("preset", preset, (NO_PRESET, *PRESETS))
            check_choice("mode", mode, MODES)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        gbuffer: PhotoMaps | None = None,
        preset: str = NO_PRESET,
        mode: str = MODES[0],
        keep_original: float = 0.0,
        ambient: float = 0.1,
        shadow: float = 0.8,
        specular: float = 0.2,
        roughness: float = 0.5,
        occlusion: float = 0.5,
        exposure: float = 0.0,
        near: float = 0.0,
        far: float = 0.0,
        fov: float = 0.0,
        lights: Rigs | None = None,
        rig: str = "",
        mask: io.Mask.Type | None = None,
        photo: io.Image.Type | None = None,
        mix: float = 1.0,
        light_info: list[dict[str, Any]] | None = None,
        before_after: None = None,
    ) -> io.NodeOutput:
        if gbuffer is None:
            if photo is None:
                raise ValueError(f"Relight has no gbuffer: {WHERE_FROM}.")
            warn("There is no gbuffer, so the photo is shown as it is.")
            image = to_image(photo_from_image(photo)[0])
            return io.NodeOutput(image, *[ExecutionBlocker(None)] * 4, ui=comparison(cls, image, image))
        rigs = all_lights(chained(lights, *lights_from_info(light_info or [])), preset, rig)
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
        before = to_image(gbuffer.photo[:PREVIEWS].clamp(0, 1))
        return io.NodeOutput(*outputs, ui=comparison(cls, before, passes["relit"]))
