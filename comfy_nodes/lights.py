"""Lights, alone and in chains, and lights that move."""

from comfy_api.latest import io

from ..intrinsics.relight.animate import EASES, PATHS, animate
from ..intrinsics.relight.gbuffer import COLOR_ENCODINGS
from .gbuffers import check_choice
from .rigs import TYPES, LightInput, chained, environment_from_image, light_from_inputs, light_inputs
from .sockets import LightsType, color, schema, shown_for, verdict

CATEGORY = "image/lighting"
CHAIN = "Lights that are there already: this one is added to them."


def light_widget(name: str, entry: LightInput) -> io.Input:
    """A field of a light as ComfyUI's input, shown for the types that have it."""
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
            return io.Float.Input(name, default=0.0, min=0.0, max=field.max, step=field.step, tooltip=off)
        case _:
            return io.Float.Input(
                name, default=field.default, min=field.min, max=field.max, step=field.step, tooltip=tooltip
            )


class Light(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_Light",
            display_name="Light",
            category=CATEGORY,
            description="One light. Chain several, and show them with Relight.",
            search_aliases=["lamp", "sun", "spot", "point light", "rim light"],
            inputs=[
                io.Combo.Input(
                    "type",
                    options=list(TYPES),
                    default="sun",
                    tooltip="sun: parallel light. point: a lamp in front of the picture. spot: a lamp with a cone. "
                    "rim: draws the outline from behind. ambient: from everywhere.",
                ),
                *(light_widget(name, entry) for name, entry in light_inputs().items()),
                LightsType.Input("lights", optional=True, tooltip=CHAIN),
                io.Mask.Input("mask", optional=True, tooltip="White: where this light may shine."),
            ],
            outputs=[LightsType.Output("chain", display_name="lights", tooltip="For Relight, or another Light.")],
        )

    @classmethod
    def validate_inputs(cls, type="sun") -> bool | str:
        return verdict(lambda: check_choice("type", type, TYPES))

    @classmethod
    def execute(cls, type="sun", lights=None, mask=None, **values) -> io.NodeOutput:
        return io.NodeOutput(chained(lights, light_from_inputs(type, values, mask)))


class EnvironmentLight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_EnvironmentLight",
            display_name="Environment Light",
            category=CATEGORY,
            description="Light from a 360 degree panorama (HDRI). It casts no shadows.",
            search_aliases=["hdri", "ibl", "panorama", "skydome"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="An equirectangular panorama, twice as wide as high. Its centre is what the camera looks "
                    "at. From an HDR or EXR loader values above 1 count in full.",
                ),
                io.Combo.Input(
                    "encoding",
                    options=list(COLOR_ENCODINGS),
                    default="srgb",
                    tooltip="srgb: from Load Image. linear: from most HDR and EXR loaders.",
                ),
                io.Float.Input(
                    "rotation",
                    default=0.0,
                    min=-3600.0,
                    max=3600.0,
                    step=1.0,
                    tooltip="Degrees: 90 brings what is behind the camera to its right.",
                ),
                io.Float.Input("intensity", default=1.0, min=0.0, max=1000.0, step=0.01, tooltip="Brightness."),
                LightsType.Input("lights", optional=True, tooltip=CHAIN),
            ],
            outputs=[LightsType.Output("chain", display_name="lights", tooltip="For Relight, or a Light.")],
        )

    @classmethod
    def validate_inputs(cls, encoding="srgb") -> bool | str:
        return verdict(lambda: check_choice("encoding", encoding, COLOR_ENCODINGS))

    @classmethod
    def execute(cls, image, encoding="srgb", rotation=0.0, intensity=1.0, lights=None) -> io.NodeOutput:
        return io.NodeOutput(chained(lights, environment_from_image(image, encoding, rotation, intensity)))


class AnimateLights(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_AnimateLights",
            display_name="Animate Lights",
            category=CATEGORY,
            description="Makes lights move: a rig for every frame. One picture becomes a clip, a clip of as many "
            "frames is lit frame by frame. Chain two for two movements.",
            search_aliases=["moving light", "turntable", "flicker", "keyframes"],
            inputs=[
                LightsType.Input("lights", tooltip="The lights to move."),
                io.Int.Input(
                    "frames", default=48, min=1, max=100000, tooltip="Length. To light a clip, as many as it has."
                ),
                io.Combo.Input(
                    "path",
                    options=list(PATHS),
                    default="orbit",
                    tooltip="orbit: round the subject, looping. sweep: from the left to the right of where they are. "
                    "flicker: like fire. keyframes: as written below.",
                ),
                shown_for(
                    io.Float.Input(
                        "amount",
                        default=1.0,
                        min=-100.0,
                        max=100.0,
                        step=0.05,
                        tooltip="Orbit: turns, negative the other way. Sweep: 1 is 90 degrees, or half the picture's "
                        "width, to each side. Flicker: 0 none, 0.3 a candle, 1 down to black. Keyframes: unused.",
                    ),
                    "path",
                    ("orbit", "sweep", "flicker"),
                ),
                io.Combo.Input(
                    "ease",
                    options=list(EASES),
                    default="linear",
                    tooltip="How movement starts and ends: over the whole clip, or between keyframes.",
                ),
                io.String.Input(
                    "keyframes",
                    multiline=True,
                    default='[{"frame": 0, "az": -60}, {"frame": -1, "az": 60}]',
                    # No braces here: ComfyUI's page would take them for its own placeholders.
                    tooltip="For the path keyframes. A JSON list like the one that is there: a frame, and any numbers "
                    'or colour of a light at that frame. "light" with a name means that light only. Frames count '
                    "from 0; -1 is the last.",
                ),
                shown_for(
                    io.Int.Input(
                        "flicker_seed", default=0, min=0, max=2**31, tooltip="Flicker: another number, another fire."
                    ),
                    "path",
                    ("flicker",),
                ),
            ],
            outputs=[LightsType.Output("moving", display_name="lights", tooltip="For Relight: a rig per frame.")],
        )

    @classmethod
    def validate_inputs(cls, path="orbit", ease="linear") -> bool | str:
        def check() -> None:
            check_choice("path", path, PATHS)
            check_choice("ease", ease, EASES)

        return verdict(check)

    @classmethod
    def execute(
        cls, lights, frames=48, path="orbit", amount=1.0, ease="linear", keyframes="", flicker_seed=0
    ) -> io.NodeOutput:
        rigs = animate(lights, frames, path, amount=amount, ease=ease, keyframes=keyframes, seed=flicker_seed)
        return io.NodeOutput(rigs)
