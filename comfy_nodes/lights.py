"""Lights, alone and in chains, and lights that move."""

from typing import Any

from comfy_api.latest import io

from ..intrinsics.relight.animate import EASES, PATHS, animate
from ..intrinsics.relight.gbuffer import COLOR_ENCODINGS
from .gbuffers import check_choice
from .light_info import info_from_lights, lights_from_info
from .rigs import TYPES, LightInput, chained, environment_from_image, light_from_inputs, light_inputs
from .sockets import (
    HAS_LIGHT_INFO,
    LightInfoType,
    LightsType,
    Rigs,
    choice,
    color,
    light_info,
    number,
    schema,
    shown_for,
    verdict,
    whole,
)

CATEGORY = "image/lighting"
CHAIN = "Existing lights, to which this one is added."


def light_widget(name: str, entry: LightInput) -> io.Input:
    """Return a field of a light as ComfyUI's input, shown for the types that have it."""
    widget = _widget(name, entry)
    return widget if len(entry.types) == len(TYPES) else shown_for(widget, "type", entry.types)


def _widget(name: str, entry: LightInput) -> io.Input:
    field, tooltip = entry.field, entry.tooltip
    match field.kind:
        case "color":
            return color(name, "#ffffff", f"{tooltip} #rrggbb, as on screen.")
        case "switch":
            return io.Boolean.Input(name, default=field.default, tooltip=tooltip)
        case "text":
            return io.String.Input(name, default=field.default, tooltip=tooltip)
        case _ if field.optional:
            off = tooltip.replace("Empty is", "0 is off,")
            return number(name, 0.0, 0.0, field.max, field.step, off)
        case _:
            return number(name, field.default, field.min, field.max, field.step, tooltip)


class LightNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        types = (
            "sun: parallel light. point: a lamp in front of the picture. spot: a lamp with a cone. rim: lights the "
            "outline from behind. ambient: light from everywhere."
        )
        info = LightInfoType.Output("info", display_name="light_info", tooltip="For core's nodes: suns and lamps.")
        return schema(
            node_id="IntrinsicLora_Light",
            display_name="Light",
            category=CATEGORY,
            description="One light. Chain several, and connect the last one to Relight.",
            search_aliases=["lamp", "sun", "spot", "point light", "rim light"],
            inputs=[
                choice("type", TYPES, "sun", types),
                *(light_widget(name, entry) for name, entry in light_inputs().items()),
                LightsType.Input("lights", optional=True, tooltip=CHAIN),
                io.Mask.Input("mask", optional=True, tooltip="White: where this light may shine."),
                *light_info("Lights of core's Create Light Info, to which this one is added."),
            ],
            outputs=[
                LightsType.Output("chain", display_name="lights", tooltip="For Relight, or another Light."),
                *([info] if HAS_LIGHT_INFO else []),
            ],
        )

    @classmethod
    def validate_inputs(cls, type: str = "sun") -> bool | str:  # noqa: A002, the widget's name
        return verdict(lambda: check_choice("type", type, TYPES))

    @classmethod
    def execute(
        cls,
        type: str = "sun",  # noqa: A002
        lights: Rigs | None = None,
        mask: io.Mask.Type | None = None,
        light_info: list[dict[str, Any]] | None = None,
        **values: float | str | bool,
    ) -> io.NodeOutput:
        rigs = chained(lights, *lights_from_info(light_info or []), light_from_inputs(type, values, mask))
        return io.NodeOutput(rigs, *([info_from_lights(rigs[0])] if HAS_LIGHT_INFO else []))


class EnvironmentLightNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        panorama = (
            "An equirectangular panorama, twice as wide as high. The camera looks at its centre. Values above 1, from "
            "an HDR or EXR loader, are used in full."
        )
        encoding = "srgb: from Load Image. linear: from most HDR and EXR loaders."
        rotation = "Degrees: 90 moves what is behind the camera to its right."
        return schema(
            node_id="IntrinsicLora_EnvironmentLight",
            display_name="Environment Light",
            category=CATEGORY,
            description="Light from a 360 degree panorama (HDRI). It casts no shadows.",
            search_aliases=["hdri", "ibl", "panorama", "skydome"],
            inputs=[
                io.Image.Input("image", tooltip=panorama),
                choice("encoding", COLOR_ENCODINGS, "srgb", encoding),
                number("rotation", 0.0, -3600.0, 3600.0, 1.0, rotation),
                number("intensity", 1.0, 0.0, 1000.0, 0.01, "Brightness."),
                LightsType.Input("lights", optional=True, tooltip=CHAIN),
            ],
            outputs=[LightsType.Output("chain", display_name="lights", tooltip="For Relight, or a Light.")],
        )

    @classmethod
    def validate_inputs(cls, encoding: str = "srgb") -> bool | str:
        return verdict(lambda: check_choice("encoding", encoding, COLOR_ENCODINGS))

    @classmethod
    def execute(
        cls,
        image: io.Image.Type,
        encoding: str = "srgb",
        rotation: float = 0.0,
        intensity: float = 1.0,
        lights: Rigs | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(chained(lights, environment_from_image(image, encoding, rotation, intensity)))


class AnimateLightsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        path = (
            "orbit: around the subject, in a loop. sweep: from the left to the right of the original position. "
            "flicker: like fire. keyframes: as listed below."
        )
        amount = (
            "Orbit: turns, negative in the other direction. Sweep: 1 is 90 degrees, or half the picture's width, to "
            "each side. Flicker: 0 none, 0.3 a candle, 1 down to black. Keyframes: not used."
        )
        ease = "How the movement starts and ends, over the whole clip or between keyframes."
        keyframes = (  # No braces here: ComfyUI's page would take them for its own placeholders.
            "Used if path is keyframes. A JSON list like the default: a frame number, and any number or colour of a "
            'light at that frame. "light" with a name selects one light. Frames count from 0; -1 is the last.'
        )
        return schema(
            node_id="IntrinsicLora_AnimateLights",
            display_name="Animate Lights",
            category=CATEGORY,
            description="Moves lights: one rig per frame. One image becomes a clip; a clip with as many frames is lit "
            "frame by frame. Chain two nodes to combine two movements.",
            search_aliases=["moving light", "turntable", "flicker", "keyframes"],
            inputs=[
                LightsType.Input("lights", tooltip="The lights to move."),
                whole("frames", 48, 1, 100000, "Number of frames. To light a clip, use the length of the clip."),
                choice("path", PATHS, "orbit", path),
                shown_for(number("amount", 1.0, -100.0, 100.0, 0.05, amount), "path", ("orbit", "sweep", "flicker")),
                choice("ease", EASES, "linear", ease),
                io.String.Input(
                    "keyframes",
                    multiline=True,
                    default='[{"frame": 0, "az": -60}, {"frame": -1, "az": 60}]',
                    tooltip=keyframes,
                ),
                shown_for(whole("flicker_seed", 0, 0, 2**31, "Random seed of the flicker."), "path", ("flicker",)),
            ],
            outputs=[LightsType.Output("moving", display_name="lights", tooltip="For Relight: one rig per frame.")],
        )

    @classmethod
    def validate_inputs(cls, path: str = "orbit", ease: str = "linear") -> bool | str:
        def check() -> None:
            check_choice("path", path, PATHS)
            check_choice("ease", ease, EASES)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        lights: Rigs,
        frames: int = 48,
        path: str = "orbit",
        amount: float = 1.0,
        ease: str = "linear",
        keyframes: str = "",
        flicker_seed: int = 0,
    ) -> io.NodeOutput:
        rigs = animate(lights, frames, path, amount=amount, ease=ease, keyframes=keyframes, seed=flicker_seed)
        return io.NodeOutput(rigs)
