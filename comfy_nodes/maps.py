"""Maps in and out of a G-buffer, in every convention, and the light of a photo edited."""

from typing import Any

from comfy_api.latest import io

from ..intrinsics.relight import Camera, Field
from ..intrinsics.relight.gbuffer import COLOR_ENCODINGS
from ..intrinsics.vocabulary import DEPTH_KINDS, DEPTH_POLARITIES, DEPTH_SCOPES, NORMAL_FRAMES
from .gbuffers import MAPS, check_choice, check_input, convert_normal_picture, draw_map, edit, photo_maps_from_images
from .geometry import geometry_maps, moge_geometry
from .photo_maps import PhotoMaps, channels_first, from_mask, to_image, to_mask
from .sockets import (
    BYPASS,
    PREVIEWS,
    GBufferType,
    GeometryType,
    MoGeGeometryType,
    advanced,
    before_after,
    choice,
    color,
    comparison,
    compute_device,
    number,
    preview,
    schema,
    shown_for,
    stepper,
    verdict,
)

CATEGORY = "image/intrinsic"
FRAME_HELP = (
    "opengl: green up, blue to the viewer (Blender, Unity). directx: green down (Unreal). controlnet: red left, "
    "green up (NormalBae, DSINE, Lotus). opencv: green down, blue into the scene."
)


class RenderMapNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def of(maps: tuple[str, ...], widget: io.Input) -> io.Input:
            return shown_for(widget, "map", maps)

        normals, depth, colours = ("normals",), ("depth",), ("albedo", "shading", "photo")
        strength = "Normals only. Steepness of the relief: 0 is flat, 1 is as estimated."
        near = "Depth only. Whether near is white (as ControlNet expects) or black."
        scope = (
            "Depth only. What is stretched to black and white: each image on its own, all images together, or the "
            "frames of a clip (each on its own, smoothed over time to avoid flicker)."
        )
        low = "Depth only. This percentage of the pixels, the nearest ones, counts as nearest."
        high = "Depth only. Pixels beyond this percentile count as farthest; 98 ignores a distant sky."
        gamma = "Depth only. Above 1 brightens the middle, as in Levels. 1 is proportional to distance."
        encoding = "Albedo, shading and photo only. srgb for display, linear for compositing."
        exposure = "Albedo, shading and photo only. Stops: 1 is twice as bright."
        return schema(
            node_id="IntrinsicLora_RenderMap",
            display_name="Intrinsic Render Map",
            category=CATEGORY,
            description="Draws one map of a G-buffer as a picture, in the convention you need. Changing these "
            "settings does not run the network again.",
            search_aliases=["normal map", "depth map", "albedo", "shading"],
            has_intermediate_output=True,
            inputs=[
                GBufferType.Input("gbuffer", tooltip="From Intrinsic Decompose or Make G-Buffer."),
                choice("map", MAPS, "normals", "The map to draw."),
                of(normals, choice("frame", NORMAL_FRAMES, "opengl", f"Normals only. {FRAME_HELP}")),
                of(normals, number("strength", 1.0, 0.0, 10.0, 0.05, strength)),
                of(depth, choice("near", DEPTH_POLARITIES, "near-white", near)),
                of(depth, choice("scope", DEPTH_SCOPES, "image", scope)),
                of(depth, number("low_percentile", 0.0, 0.0, 49.0, 0.1, low)),
                of(depth, number("high_percentile", 100.0, 51.0, 100.0, 0.1, high)),
                of(depth, number("gamma", 1.0, 0.1, 10.0, 0.05, gamma)),
                of(colours, choice("encoding", COLOR_ENCODINGS, "srgb", encoding)),
                of(colours, number("exposure", 0.0, -10.0, 10.0, 0.1, exposure)),
                io.Image.Input("photo", optional=True, tooltip=BYPASS),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The map as a picture."),
                io.Mask.Output(
                    "mask", tooltip="One channel: depth, luminance, or how much the normals face the viewer."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        map: str = "normals",  # noqa: A002, the widget's name
        frame: str = "opengl",
        near: str = "near-white",
        scope: str = "image",
        encoding: str = "srgb",
    ) -> bool | str:
        def check() -> None:
            check_choice("map", map, MAPS)
            check_choice("frame", frame, NORMAL_FRAMES)
            check_choice("near", near, DEPTH_POLARITIES)
            check_choice("scope", scope, DEPTH_SCOPES)
            check_choice("encoding", encoding, COLOR_ENCODINGS)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        gbuffer: PhotoMaps,
        map: str = "normals",  # noqa: A002
        low_percentile: float = 0.0,
        high_percentile: float = 100.0,
        photo: io.Image.Type | None = None,
        **look: Any,  # the other widgets, which are called as the arguments of `draw_map`
    ) -> io.NodeOutput:
        picture, channel = draw_map(gbuffer, map, low=low_percentile, high=high_percentile, **look)
        image = to_image(picture)
        return io.NodeOutput(image, to_mask(channel), ui=preview(cls, image))


class ConvertNormalMapNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        frames = NORMAL_FRAMES
        source, target = f"Convention of the input. {FRAME_HELP}", "Convention of the output."
        renormalize = "Scale every vector to length one; resizing and 8-bit files change lengths."
        return schema(
            node_id="IntrinsicLora_ConvertNormalMap",
            display_name="Convert Normal Map",
            category=CATEGORY,
            description="Converts a normal map between conventions: OpenGL, DirectX, ControlNet, OpenCV.",
            search_aliases=["flip green channel", "invert normals", "opengl", "directx"],
            inputs=[
                io.Image.Input("normals", tooltip="A normal map from any source."),
                choice("source", frames, "opengl", source, display_name="from"),
                choice("target", frames, "directx", target, display_name="to"),
                number("strength", 1.0, 0.0, 10.0, 0.05, "Steepness of the relief: 0 is flat, 1 is unchanged."),
                io.Boolean.Input("renormalize", default=True, tooltip=renormalize),
                io.Mask.Input("background", optional=True, tooltip="White: background, set to face the viewer."),
            ],
            outputs=[io.Image.Output("converted", display_name="normals", tooltip="The map in the new convention.")],
        )

    @classmethod
    def validate_inputs(cls, source: str = "opengl", target: str = "directx") -> bool | str:
        def check() -> None:
            check_choice("from", source, NORMAL_FRAMES)
            check_choice("to", target, NORMAL_FRAMES)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        normals: io.Image.Type,
        source: str = "opengl",
        target: str = "directx",
        strength: float = 1.0,
        renormalize: bool = True,
        background: io.Mask.Type | None = None,
    ) -> io.NodeOutput:
        picture = channels_first(normals)[:, :3]
        if picture.shape[1] != 3:
            raise ValueError(f"The input normals must be a colour picture, not one of {picture.shape[1]} channels.")
        behind = None if background is None else from_mask(background)
        if behind is not None and len(behind) not in (1, len(picture)):
            raise ValueError(f"There are {len(behind)} masks in background and {len(picture)} normal maps.")
        converted = convert_normal_picture(
            picture, source, target, strength=strength, renormalize=renormalize, background=behind
        )
        return io.NodeOutput(to_image(converted))


class MakeGBufferNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        depth_kind = (
            "Meaning of the depth. near-white: 1 nearest, 0 farthest, proportional to distance (Intrinsic Decompose). "
            "distance: 0 nearest, 1 farthest (Marigold). disparity: inverse distance (MiDaS, Depth Anything; white is "
            "near). metric: true distance, such as metres."
        )
        near = "Distance of the nearest point in scene units. A metric depth has its own."
        far = "Distance of the farthest point in scene units. A metric depth has its own."
        fov = "Field of view over the longer side, degrees: 45 a normal lens, 75 a phone."
        geometry = (
            "From Run MoGe Inference or Run Depth Anything 3: normals, depth and field of view, where none is "
            "connected above."
        )
        return schema(
            node_id="IntrinsicLora_MakeGBuffer",
            display_name="Make G-Buffer",
            category=CATEGORY,
            description="Makes a G-buffer for Relight from maps of any source (MoGe, Marigold, DSINE, Depth Anything, "
            "a renderer, or some of Intrinsic Decompose). Set the convention of each map. Maps of another size are "
            "resampled.",
            search_aliases=["moge", "marigold", "dsine", "depth anything", "pack maps"],
            inputs=[
                io.Image.Input("image", tooltip="The photo, a batch, or the frames of a clip."),
                io.Image.Input("normals", optional=True, tooltip="Normal map. Relight requires one."),
                choice("normals_frame", NORMAL_FRAMES, "opengl", f"Convention of the normals. {FRAME_HELP}"),
                io.Image.Input("depth", optional=True, tooltip="Depth map. Required for cast shadows."),
                choice("depth_kind", DEPTH_KINDS, "near-white", depth_kind),
                io.Image.Input(
                    "albedo", optional=True, tooltip="Surface colours. Computed from photo and shading if missing."
                ),
                choice("albedo_encoding", COLOR_ENCODINGS, "srgb", "Encoding of the albedo."),
                io.Image.Input(
                    "shading", optional=True, tooltip="Light in the photo. Computed from photo and albedo if missing."
                ),
                choice("shading_encoding", COLOR_ENCODINGS, "srgb", "Encoding of the shading."),
                io.Image.Input("roughness", optional=True, tooltip="Black is a mirror, white is chalk."),
                io.Mask.Input("mask", optional=True, tooltip="White: what may be relit. Elsewhere the photo is kept."),
                advanced(number("near", 1.0, 0.001, 10000.0, 0.1, near)),
                advanced(number("far", 4.0, 0.002, 100000.0, 0.1, far)),
                advanced(number("fov", 45.0, 1.0, 170.0, 1.0, fov)),
                GeometryType.Input("geometry", optional=True, tooltip=geometry),
            ],
            outputs=[GBufferType.Output("gbuffer", tooltip="For Relight, Render Map, Edit Shading and Save EXR.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        normals_frame: str = "opengl",
        depth_kind: str = "near-white",
        albedo_encoding: str = "srgb",
        shading_encoding: str = "srgb",
    ) -> bool | str:
        def check() -> None:
            check_choice("normals_frame", normals_frame, NORMAL_FRAMES)
            check_choice("depth_kind", depth_kind, DEPTH_KINDS)
            check_choice("albedo_encoding", albedo_encoding, COLOR_ENCODINGS)
            check_choice("shading_encoding", shading_encoding, COLOR_ENCODINGS)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        image: io.Image.Type,
        normals_frame: str = "opengl",
        depth_kind: str = "near-white",
        near: float = 1.0,
        far: float = 4.0,
        fov: float = 45.0,
        normals: io.Image.Type | None = None,
        depth: io.Image.Type | None = None,
        geometry: dict[str, Any] | None = None,
        **more: Any,  # the other inputs, which are called as the arguments of `photo_maps_from_images`
    ) -> io.NodeOutput:
        if geometry is not None:
            found = geometry_maps(geometry)
            if normals is None:
                normals, normals_frame = found.normals, "opencv"
            if depth is None:
                depth, depth_kind, fov = found.depth, "metric", found.fov
        photo_maps = photo_maps_from_images(
            image,
            normals=normals,
            normals_frame=normals_frame,
            depth=depth,
            depth_kind=depth_kind,
            camera=Camera(near, far, fov),
            **more,
        )
        return io.NodeOutput(photo_maps)


class GeometryNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        scale = "0 keeps that of the G-buffer."
        return schema(
            node_id="IntrinsicLora_Geometry",
            display_name="G-Buffer to Geometry",
            category=CATEGORY,
            description="Converts depth and normals to the geometry of ComfyUI's own MoGe nodes, which make a mesh of "
            "it, draw it, or tell the field of view.",
            search_aliases=["moge geometry", "mesh", "point cloud"],
            inputs=[
                GBufferType.Input("gbuffer", tooltip="From Intrinsic Decompose or Make G-Buffer, with depth."),
                number("near", 0.0, 0.0, 10000.0, 0.1, f"Distance of the nearest point in scene units. {scale}"),
                number("far", 0.0, 0.0, 100000.0, 0.1, f"Distance of the farthest point in scene units. {scale}"),
                number("fov", 0.0, 0.0, 170.0, 1.0, f"Field of view over the longer side, degrees. {scale}"),
            ],
            outputs=[
                MoGeGeometryType.Output(
                    "moge_geometry",
                    tooltip="For Render MoGe Geometry, Convert MoGe Point Map to Mesh and Get FoV from MoGe Geometry.",
                )
            ],
        )

    @classmethod
    def execute(cls, gbuffer: PhotoMaps, near: float = 0.0, far: float = 0.0, fov: float = 0.0) -> io.NodeOutput:
        return io.NodeOutput(moge_geometry(gbuffer, near=near, far=far, fov=fov))


class EditShadingNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        contrast = "Of the light only: below 1 brightens shadows, above 1 darkens them."
        soften = (
            "Blurs light and shadow, but not across outlines in normals and depth. Radius as a fraction of the "
            "shorter side; 0.02 softens hard shadows."
        )
        return schema(
            node_id="IntrinsicLora_EditShading",
            display_name="Edit Shading",
            category=CATEGORY,
            description="Edits the light of a photo and keeps its surfaces: softer or harder light, another colour, "
            "or no light at all (delight).",
            search_aliases=["delight", "remove shadows", "shadows", "contrast"],
            has_intermediate_output=True,
            inputs=[
                GBufferType.Input("gbuffer", tooltip="Requires shading or albedo."),
                number("contrast", 1.0, 0.0, 5.0, 0.05, contrast),
                color("tint", "#ffffff", "Colour of the light, #rrggbb. White has no effect."),
                number("soften", 0.0, 0.0, 0.5, 0.005, soften),
                number(
                    "flatten", 0.0, 0.0, 1.0, 0.01, "Mixes in even light: 1 removes all light and shadow (delight)."
                ),
                io.Image.Input("photo", optional=True, tooltip=BYPASS),
                *before_after(),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The photo under the edited light, sRGB."),
                GBufferType.Output("edited", display_name="gbuffer", tooltip="The G-buffer with the edited shading."),
            ],
        )

    @classmethod
    def execute(
        cls,
        gbuffer: PhotoMaps,
        contrast: float = 1.0,
        tint: str = "#ffffff",
        soften: float = 0.0,
        flatten: float = 0.0,
        photo: io.Image.Type | None = None,
        before_after: None = None,
    ) -> io.NodeOutput:
        rgb = check_input("tint", tint, Field("color", ""))
        step, device = stepper(len(gbuffer.photo)), compute_device(gbuffer.photo)
        edited = edit(gbuffer, step, device, contrast=contrast, tint=rgb, soften=soften, flatten=flatten)
        image = to_image(edited.photo.clamp(0, 1))
        before = to_image(gbuffer.photo[:PREVIEWS].clamp(0, 1))
        return io.NodeOutput(image, edited, ui=comparison(cls, before, image))
