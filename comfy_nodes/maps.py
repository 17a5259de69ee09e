"""Maps in and out of a G-buffer, in every convention, and the light of a photo edited."""

from comfy_api.latest import io

from ..intrinsics.relight import Camera, Field
from ..intrinsics.relight.fields import check_field
from ..intrinsics.relight.gbuffer import COLOR_ENCODINGS
from ..intrinsics.vocabulary import DEPTH_KINDS, DEPTH_POLARITIES, DEPTH_SCOPES, NORMAL_FRAMES
from .gbuffers import MAPS, check_choice, convert_normal_picture, draw_map, edit, packet_from_images
from .geometry import geometry_maps
from .packet import channels_first, from_mask, to_image, to_mask
from .sockets import (
    BYPASS,
    GBufferType,
    GeometryType,
    advanced,
    color,
    compute_device,
    preview,
    schema,
    shown_for,
    stepper,
    verdict,
)

CATEGORY = "image/intrinsic"
OF_NORMALS, OF_DEPTH, OF_COLOURS = ("normals",), ("depth",), ("albedo", "shading", "photo")
FRAMES = list(NORMAL_FRAMES)
FRAME_HELP = (
    "opengl: green up, blue to the viewer (Blender, Unity). directx: green down (Unreal). controlnet: red left, "
    "green up (NormalBae, DSINE, Lotus). opencv: green down, blue into the scene."
)


class RenderMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_RenderMap",
            display_name="Intrinsic Render Map",
            category=CATEGORY,
            description="Draws one map of a G-buffer as a picture, in the convention that is needed. Changing how it "
            "looks does not run the network again.",
            search_aliases=["normal map", "depth map", "albedo", "shading"],
            has_intermediate_output=True,
            inputs=[
                GBufferType.Input("gbuffer", tooltip="From Intrinsic Decompose or Make G-Buffer."),
                io.Combo.Input("map", options=list(MAPS), default="normals", tooltip="The map to draw."),
                shown_for(
                    io.Combo.Input("frame", options=FRAMES, default="opengl", tooltip=f"Normals only. {FRAME_HELP}"),
                    "map",
                    OF_NORMALS,
                ),
                shown_for(
                    io.Float.Input(
                        "strength",
                        default=1.0,
                        min=0.0,
                        max=10.0,
                        step=0.05,
                        tooltip="Normals only. Steepness of the relief: 0 flat, 1 as estimated.",
                    ),
                    "map",
                    OF_NORMALS,
                ),
                shown_for(
                    io.Combo.Input(
                        "near",
                        options=list(DEPTH_POLARITIES),
                        default="near-white",
                        tooltip="Depth only. What is near is white (ControlNet expects it) or black.",
                    ),
                    "map",
                    OF_DEPTH,
                ),
                shown_for(
                    io.Combo.Input(
                        "scope",
                        options=list(DEPTH_SCOPES),
                        default="image",
                        tooltip="Depth only. Stretched to black and white: each image by itself, all together, or as "
                        "the frames of a clip (each by itself, smoothed over time against pumping).",
                    ),
                    "map",
                    OF_DEPTH,
                ),
                shown_for(
                    io.Float.Input(
                        "low_percentile",
                        default=0.0,
                        min=0.0,
                        max=49.0,
                        step=0.1,
                        tooltip="Depth only. So many percent of the pixels, the nearest ones, all count as nearest.",
                    ),
                    "map",
                    OF_DEPTH,
                ),
                shown_for(
                    io.Float.Input(
                        "high_percentile",
                        default=100.0,
                        min=51.0,
                        max=100.0,
                        step=0.1,
                        tooltip="Depth only. Pixels beyond so many percent count as farthest; 98 ignores a far sky.",
                    ),
                    "map",
                    OF_DEPTH,
                ),
                shown_for(
                    io.Float.Input(
                        "gamma",
                        default=1.0,
                        min=0.1,
                        max=10.0,
                        step=0.05,
                        tooltip="Depth only. As in levels: above 1 brightens the middle. 1 keeps it true to distance.",
                    ),
                    "map",
                    OF_DEPTH,
                ),
                shown_for(
                    io.Combo.Input(
                        "encoding",
                        options=list(COLOR_ENCODINGS),
                        default="srgb",
                        tooltip="Albedo, shading and photo only. srgb looks right on screen, linear is for "
                        "compositing.",
                    ),
                    "map",
                    OF_COLOURS,
                ),
                shown_for(
                    io.Float.Input(
                        "exposure",
                        default=0.0,
                        min=-10.0,
                        max=10.0,
                        step=0.1,
                        tooltip="Albedo, shading and photo only. Stops: 1 is twice as bright.",
                    ),
                    "map",
                    OF_COLOURS,
                ),
                io.Image.Input("photo", optional=True, tooltip=BYPASS),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The map as a picture."),
                io.Mask.Output(
                    "mask", tooltip="One channel: the depth itself, luminance, or how normals face the viewer."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, map="normals", frame="opengl", near="near-white", scope="image", encoding="srgb"
    ) -> bool | str:
        def check() -> None:
            check_choice("map", map, MAPS)
            check_choice("frame", frame, FRAMES)
            check_choice("near", near, DEPTH_POLARITIES)
            check_choice("scope", scope, DEPTH_SCOPES)
            check_choice("encoding", encoding, COLOR_ENCODINGS)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        gbuffer,
        map="normals",
        frame="opengl",
        strength=1.0,
        near="near-white",
        scope="image",
        low_percentile=0.0,
        high_percentile=100.0,
        gamma=1.0,
        encoding="srgb",
        exposure=0.0,
        photo=None,
    ) -> io.NodeOutput:
        picture, channel = draw_map(
            gbuffer,
            map,
            frame=frame,
            strength=strength,
            near=near,
            scope=scope,
            low=low_percentile,
            high=high_percentile,
            gamma=gamma,
            encoding=encoding,
            exposure=exposure,
        )
        image = to_image(picture)
        return io.NodeOutput(image, to_mask(channel), ui=preview(cls, image))


class ConvertNormalMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_ConvertNormalMap",
            display_name="Convert Normal Map",
            category=CATEGORY,
            description="Brings any normal map from one convention to another: OpenGL, DirectX, ControlNet, OpenCV.",
            search_aliases=["flip green channel", "invert normals", "opengl", "directx"],
            inputs=[
                io.Image.Input("normals", tooltip="A normal map, from anywhere."),
                io.Combo.Input(
                    "source",
                    display_name="from",
                    options=FRAMES,
                    default="opengl",
                    tooltip=f"What it is. {FRAME_HELP}",
                ),
                io.Combo.Input(
                    "target", display_name="to", options=FRAMES, default="directx", tooltip="What it is to become."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Steepness of the relief: 0 flat, 1 as it is.",
                ),
                io.Boolean.Input(
                    "renormalize",
                    default=True,
                    tooltip="Make every vector exactly one long, which resizing and 8-bit files spoil.",
                ),
                io.Mask.Input(
                    "background", optional=True, tooltip="White: background, which is made to face the viewer."
                ),
            ],
            outputs=[io.Image.Output("converted", display_name="normals", tooltip="The map in its new convention.")],
        )

    @classmethod
    def validate_inputs(cls, source="opengl", target="directx") -> bool | str:
        def check() -> None:
            check_choice("from", source, FRAMES)
            check_choice("to", target, FRAMES)

        return verdict(check)

    @classmethod
    def execute(
        cls, normals, source="opengl", target="directx", strength=1.0, renormalize=True, background=None
    ) -> io.NodeOutput:
        picture = channels_first(normals)[:, :3]
        if picture.shape[1] != 3:
            raise ValueError(f"normals must be a colour picture, not one of {picture.shape[1]} channels.")
        behind = None if background is None else from_mask(background)
        if behind is not None and len(behind) not in (1, len(picture)):
            raise ValueError(f"There are {len(behind)} masks in background and {len(picture)} normal maps.")
        converted = convert_normal_picture(
            picture, source, target, strength=strength, renormalize=renormalize, background=behind
        )
        return io.NodeOutput(to_image(converted))


class MakeGBuffer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        encodings = list(COLOR_ENCODINGS)
        return schema(
            node_id="IntrinsicLora_MakeGBuffer",
            display_name="Make G-Buffer",
            category=CATEGORY,
            description="A G-buffer from maps of any source (MoGe, Marigold, DSINE, Depth Anything, a renderer, or "
            "some of Intrinsic Decompose): say what they are, and Relight takes them. Maps of another size "
            "are resampled.",
            search_aliases=["moge", "marigold", "dsine", "depth anything", "pack maps"],
            inputs=[
                io.Image.Input("image", tooltip="The photo, or a batch or clip."),
                io.Image.Input("normals", optional=True, tooltip="Normal map. Relight needs one."),
                io.Combo.Input(
                    "normals_frame", options=FRAMES, default="opengl", tooltip=f"Of the normals. {FRAME_HELP}"
                ),
                io.Image.Input("depth", optional=True, tooltip="Depth map. Without one nothing casts shadows."),
                io.Combo.Input(
                    "depth_kind",
                    options=list(DEPTH_KINDS),
                    default="near-white",
                    tooltip="Of the depth. near-white: 1 nearest, 0 farthest, in proportion to distance (Intrinsic "
                    "Decompose). distance: 0 nearest, 1 farthest (Marigold). disparity: inverse distance (MiDaS, "
                    "Depth Anything; white is near). metric: true distance, such as metres.",
                ),
                io.Image.Input(
                    "albedo", optional=True, tooltip="Colours without light. Made from photo and shading if missing."
                ),
                io.Combo.Input("albedo_encoding", options=encodings, default="srgb", tooltip="Of the albedo."),
                io.Image.Input(
                    "shading", optional=True, tooltip="The light in the photo. Made from photo and albedo if missing."
                ),
                io.Combo.Input("shading_encoding", options=encodings, default="srgb", tooltip="Of the shading."),
                io.Image.Input("roughness", optional=True, tooltip="Black is a mirror, white is chalk."),
                io.Mask.Input("mask", optional=True, tooltip="White: what may be relit. Elsewhere the photo stays."),
                advanced(
                    io.Float.Input(
                        "near",
                        default=1.0,
                        min=0.001,
                        max=10000.0,
                        step=0.1,
                        tooltip="Distance of the nearest point, scene units. A metric depth brings its own.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "far",
                        default=4.0,
                        min=0.002,
                        max=100000.0,
                        step=0.1,
                        tooltip="Distance of the farthest point, scene units. A metric depth brings its own.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "fov",
                        default=45.0,
                        min=1.0,
                        max=170.0,
                        step=1.0,
                        tooltip="Field of view over the longer side, degrees: 45 a normal lens, 75 a phone.",
                    )
                ),
                GeometryType.Input(
                    "geometry",
                    optional=True,
                    tooltip="From Run MoGe Inference or Run Depth Anything 3: normals, depth and field of view, where "
                    "none is connected above.",
                ),
            ],
            outputs=[GBufferType.Output("gbuffer", tooltip="For Relight, Render Map, Edit Shading and Save EXR.")],
        )

    @classmethod
    def validate_inputs(
        cls, normals_frame="opengl", depth_kind="near-white", albedo_encoding="srgb", shading_encoding="srgb"
    ) -> bool | str:
        def check() -> None:
            check_choice("normals_frame", normals_frame, FRAMES)
            check_choice("depth_kind", depth_kind, DEPTH_KINDS)
            check_choice("albedo_encoding", albedo_encoding, COLOR_ENCODINGS)
            check_choice("shading_encoding", shading_encoding, COLOR_ENCODINGS)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        image,
        normals_frame="opengl",
        depth_kind="near-white",
        albedo_encoding="srgb",
        shading_encoding="srgb",
        near=1.0,
        far=4.0,
        fov=45.0,
        normals=None,
        depth=None,
        albedo=None,
        shading=None,
        roughness=None,
        mask=None,
        geometry=None,
    ) -> io.NodeOutput:
        if geometry is not None:
            found = geometry_maps(geometry)
            if normals is None:
                normals, normals_frame = found.normals, "opencv"
            if depth is None:
                depth, depth_kind, fov = found.depth, "metric", found.fov
        packet = packet_from_images(
            image,
            normals=normals,
            normals_frame=normals_frame,
            depth=depth,
            depth_kind=depth_kind,
            albedo=albedo,
            albedo_encoding=albedo_encoding,
            shading=shading,
            shading_encoding=shading_encoding,
            roughness=roughness,
            mask=mask,
            camera=Camera(near, far, fov),
        )
        return io.NodeOutput(packet)


class EditShading(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLora_EditShading",
            display_name="Edit Shading",
            category=CATEGORY,
            description="Changes the light of a photo and leaves its surfaces alone: softer or harder light, another "
            "colour, or none (delight).",
            search_aliases=["delight", "remove shadows", "shadows", "contrast"],
            has_intermediate_output=True,
            inputs=[
                GBufferType.Input("gbuffer", tooltip="With shading, or albedo."),
                io.Float.Input(
                    "contrast",
                    default=1.0,
                    min=0.0,
                    max=5.0,
                    step=0.05,
                    tooltip="Of the light only: below 1 opens shadows, above 1 deepens them.",
                ),
                color("tint", "#ffffff", "Colour of the light, #rrggbb. White leaves it."),
                io.Float.Input(
                    "soften",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=0.005,
                    tooltip="Blurs light and shadow, but not over outlines that normals and depth show: radius as a "
                    "share of the shorter side, 0.02 softens hard shadows.",
                ),
                io.Float.Input(
                    "flatten",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fills with even light: 1 takes all light and shadow away (delight).",
                ),
                io.Image.Input("photo", optional=True, tooltip=BYPASS),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The photo under the edited light, sRGB."),
                GBufferType.Output("edited", display_name="gbuffer", tooltip="The same with the edited shading."),
            ],
        )

    @classmethod
    def execute(cls, gbuffer, contrast=1.0, tint="#ffffff", soften=0.0, flatten=0.0, photo=None) -> io.NodeOutput:
        rgb = check_field(tint, Field("color", ""), "tint:")
        step, device = stepper(len(gbuffer.photo)), compute_device(gbuffer.photo)
        edited = edit(gbuffer, step, device, contrast=contrast, tint=rgb, soften=soften, flatten=flatten)
        image = to_image(edited.photo.clamp(0, 1))
        return io.NodeOutput(image, edited, ui=preview(cls, image))
