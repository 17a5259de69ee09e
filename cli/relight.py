"""`intrinsic-lora relight`: relight a photo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..intrinsics.files import relit_files
from ..intrinsics.vocabulary import PRESET_DESCRIPTIONS, DepthKind, Format, Mode, NormalFrame
from . import relight_steps as steps
from .model import Base, BaseConfig, Device, DType, DTypeOption, Loras, Resolution, load_pipeline, pick_device
from .orbit import orbit_files, orbit_options, plan_orbit, write_orbit
from .progress import loading, say

if TYPE_CHECKING:
    from ..intrinsics.relight import Light

SUFFIXES = {"png": ".png", "png16": ".png", "exr": ".exr", "npz": ".npz"}
DEFAULT_PRESET = "three-point"
LIGHT, LOOK, MAPS, OUTPUT = "Lights", "Look", "Maps", "Output"


def relight(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", exists=True, dir_okay=False, help="The photo; several photos require --sheet."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            dir_okay=False,
            help="Output file. .png: sRGB, 8 bits; .exr: linear float layers; .npz: linear float32, key relit "
            "(H, W, 3); .webp with --orbit; .png with --sheet.",
        ),
    ],
    rig: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="FILE.json", help="Light rig to load.", rich_help_panel=LIGHT
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Light preset: {', '.join(PRESET_DESCRIPTIONS)}.",
            show_default=f"{DEFAULT_PRESET}, if no other light is specified",
            rich_help_panel=LIGHT,
        ),
    ] = None,
    light: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help='Add a light, such as "sun az=-40 el=35 kelvin=3200 intensity=2" or "point x=.3 y=.2 height=.5"; may '
            "be repeated. Types: sun, point, spot, rim, ambient. az: azimuth in degrees, 0 from the viewer, 90 from "
            "the right, 180 from behind; el: elevation in degrees; x, y: 0..1 from the top left of the picture.",
            rich_help_panel=LIGHT,
        ),
    ] = None,
    env: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="HDR",
            help="Add an environment light: an equirectangular panorama, .hdr or .exr.",
            rich_help_panel=LIGHT,
        ),
    ] = None,
    env_rotation: Annotated[
        float, typer.Option(help="Rotation of the panorama to the right, in degrees.", rich_help_panel=LIGHT)
    ] = 0.0,
    env_intensity: Annotated[
        float, typer.Option(min=0, help="Brightness of the panorama.", rich_help_panel=LIGHT)
    ] = 1.0,
    mode: Annotated[
        Mode,
        typer.Option(
            help="ratio: replace the light of the photo and keep its detail; albedo: render the scene from its "
            "estimated albedo; add: add the lights to the existing light.",
            rich_help_panel=LOOK,
        ),
    ] = "ratio",
    ambient: Annotated[
        float,
        typer.Option(
            min=0, help="Intensity of uniform white ambient light; brightens unlit areas.", rich_help_panel=LOOK
        ),
    ] = 0.0,
    keep_original: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the original light of the photo to keep.", rich_help_panel=LOOK),
    ] = 0.0,
    exposure: Annotated[float, typer.Option(help="Exposure of the result, in stops.", rich_help_panel=LOOK)] = 0.0,
    shadow: Annotated[float, typer.Option(min=0, max=1, help="Strength of cast shadows.", rich_help_panel=LOOK)] = 1.0,
    shadow_bias: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1,
            help="Minimum depth difference that casts a shadow, as a share of the depth of the scene. Raise it to "
            "remove dark blotches on uneven depth maps; lower it for contact shadows.",
            rich_help_panel=LOOK,
        ),
    ] = 0.04,
    shadow_thickness: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1,
            help="Assumed thickness of objects, as a share of the depth of the scene; larger values cast longer, "
            "fuller shadows.",
            rich_help_panel=LOOK,
        ),
    ] = 0.25,
    specular: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Strength of specular highlights: 0 none, 0.5 typical materials.", rich_help_panel=LOOK
        ),
    ] = 0.0,
    roughness: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Surface roughness: 0 mirror, 1 chalk.",
            show_default="from the maps, else 0.5",
            rich_help_panel=LOOK,
        ),
    ] = None,
    occlusion: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Strength of ambient occlusion under ambient and environment light.",
            rich_help_panel=LOOK,
        ),
    ] = 0.0,
    maps: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            metavar="FOLDER|FILE",
            help="Existing maps: the output folder of extract, or one .npz, .exr, or STEM_<map>.npy file.",
            show_default="extract them",
            rich_help_panel=MAPS,
        ),
    ] = None,
    normals_frame: Annotated[
        NormalFrame | None,
        typer.Option(
            help="Coordinate frame of the normals in --maps; see extract --normals.",
            show_default="opengl",
            rich_help_panel=MAPS,
        ),
    ] = None,
    depth_kind: Annotated[
        DepthKind | None,
        typer.Option(
            help="Kind of depth in --maps. disparity: MiDaS, Depth Anything; metric: distance in scene units.",
            show_default="as written by extract: near-white in PNGs, else distance",
            rich_help_panel=MAPS,
        ),
    ] = None,
    near: Annotated[
        float, typer.Option(help="Distance of the nearest point, in scene units.", rich_help_panel=MAPS)
    ] = 1.0,
    far: Annotated[
        float,
        typer.Option(
            help="Distance of the farthest point, in scene units; larger values lengthen shadows.",
            rich_help_panel=MAPS,
        ),
    ] = 4.0,
    fov: Annotated[
        float,
        typer.Option(
            help="Field of view along the longer side, in degrees: 75 wide angle, 45 normal, 25 portrait.",
            rich_help_panel=MAPS,
        ),
    ] = 45.0,
    passes: Annotated[
        bool,
        typer.Option(
            "--passes",
            help="Also write diffuse, specular, shadow, shading, ambient_occlusion and residual: files next to a PNG, "
            "layers of an EXR, or arrays of an npz.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    file_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Output format; required only for png16, a 16-bit PNG.",
            show_default="from the suffix of --out",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    orbit: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=999,
            metavar="N",
            help="Rotate the lights once around the scene in N frames: writes an animated FILE.webp, and the frames "
            "as PNGs in FILE/. Run the same command to resume.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Write a contact sheet of each photo under these presets, comma-separated, or `all`.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Overwrite existing files.", rich_help_panel=OUTPUT)
    ] = False,
    base: Base = None,
    base_config: BaseConfig = None,
    loras: Loras = None,
    resolution: Resolution = None,
    device: Device = None,
    dtype: DTypeOption = DType.auto,
) -> None:
    """Relight a photo.

    Maps are read from `--maps`, or extracted first. The lights are those of a rig or a preset, plus any `--light` and
    `--env`. All computation is in linear light; only PNGs are clipped. Objects outside the photo cast no shadows.

    **Examples**

    - `intrinsic-lora relight photo.jpg --out relit.png --preset rembrandt`
    - `intrinsic-lora relight photo.jpg --out relit.exr --maps maps --light "sun az=-40 el=35 kelvin=3200" --passes`
    - `intrinsic-lora relight photo.jpg --out turn.webp --orbit 48 --light "sun el=35" --ambient 0.2`
    - `intrinsic-lora relight photo.jpg --out sheet.png --sheet rembrandt,split,rim,window,moonlight`
    """
    parameters = dict(locals())
    _check_request(images, out, file_format, orbit, sheet, passes, rig, preset, maps, base or base_config or loras)
    targets = _targets(out, passes, orbit)
    _check_targets(targets, [*images, *(path for path in (rig, env, maps) if path)], overwrite or orbit is not None)
    turn = None
    if orbit is not None:
        turn = plan_orbit(out, orbit, orbit_options(parameters, images[0], maps), overwrite)
    if not (rig or preset or sheet or light or env):
        preset = DEFAULT_PRESET
    names = _preset_names(preset, "--preset") if sheet is None else _preset_names(sheet, "--sheet")
    with loading():
        rigs = [_lights(rig, name, light, env, env_rotation, env_intensity) for name in names or [""]]

    from ..intrinsics.pictures import read_picture
    from ..intrinsics.relight import Camera, March
    from ..intrinsics.relight import relight as light_up
    from ..intrinsics.relight.files import write_relit

    camera = Camera(near, far, fov)
    place = pick_device(device)
    pipe = None if maps else load_pipeline(base, base_config, loras, place, dtype)
    look: dict[str, Any] = {"mode": mode, "ambient": ambient, "keep_original": keep_original}
    look |= {"exposure": exposure, "shadow": shadow, "specular": specular, "occlusion": occlusion}
    look["march"] = March(bias=shadow_bias, thickness=shadow_thickness)
    rows = []
    for image in images:
        picture = read_picture(image, clip=False)
        if pipe is not None:
            given = steps.extracted_maps(pipe, picture, resolution)
        elif maps is not None:
            given = steps.maps_from_files(maps, image, picture, normals_frame, depth_kind)
        gbuffer = steps.gbuffer_of(picture, given, roughness, camera, place)
        say(f"{image}: {steps.report(gbuffer)}.")
        lit = [steps.fitted(lights, gbuffer) for lights in rigs]
        out.parent.mkdir(parents=True, exist_ok=True)
        if sheet is not None:
            rows.append(steps.sheet_row(gbuffer, lit, look))
        elif turn is not None:
            write_orbit(turn, gbuffer, lit[0], look, picture.alpha)
        else:
            relit = light_up(gbuffer, lit[0], **look)
            write_relit(out, gbuffer, relit, picture.alpha, passes, bits=16 if file_format == "png16" else 8)
    if sheet is not None:
        steps.write_sheet(out, names, rows)
        say(f"Wrote {out}, with the presets {', '.join(names)}.")
    else:
        shown = ", ".join(map(str, targets)) if orbit is None else f"{out}, {orbit} frames in {out.with_suffix('')}"
        count = sum(one.enabled for one in rigs[0])
        say(f"Wrote {shown}, with {count} light{'' if count == 1 else 's'}.")


def _check_request(
    images: list[Path],
    out: Path,
    file_format: Format | None,
    orbit: int | None,
    sheet: str | None,
    passes: bool,
    rig: Path | None,
    preset: str | None,
    maps: Path | None,
    model: str | None,
) -> None:
    """Reject contradictory options before anything is loaded."""
    if orbit is not None and sheet is not None:
        raise typer.BadParameter("--orbit and --sheet cannot be combined.")
    if (rig is not None) + (preset is not None) + (sheet is not None) > 1:
        raise typer.BadParameter("--rig, --preset and --sheet cannot be combined, because each selects the lights.")
    if len(images) > 1 and sheet is None:
        raise typer.BadParameter("Several photos require --sheet.", param_hint="'IMAGE'")
    if len(images) > 1 and maps is not None and not maps.is_dir():
        raise typer.BadParameter(
            f"{maps} holds the maps of one photo; several photos require a folder.", param_hint="'--maps'"
        )
    if maps is not None and model is not None:
        raise typer.BadParameter(
            "--maps cannot be combined with --base, --base-config or --loras, because no model runs."
        )
    if (orbit is not None or sheet is not None) and (passes or file_format is not None):
        raise typer.BadParameter("--passes and --format cannot be combined with --orbit or --sheet.")
    endings = (".webp",) if orbit is not None else (".png",) if sheet is not None else (".png", ".exr", ".npz")
    if out.suffix.lower() not in endings:
        raise typer.BadParameter(f"{out} must end in {' or '.join(endings)}.", param_hint="'--out'")
    if file_format is not None and SUFFIXES[file_format] != out.suffix.lower():
        raise typer.BadParameter(
            f"The format {file_format} does not match the suffix of {out}; change one of them.",
            param_hint="'--format'",
        )


def _targets(out: Path, passes: bool, orbit: int | None) -> list[Path]:
    if orbit is not None:
        return orbit_files(out, orbit)
    return relit_files(out, passes)


def _check_targets(targets: list[Path], inputs: list[Path], overwrite: bool) -> None:
    read = {path.resolve() for path in inputs}
    for path in targets:
        if path.resolve() in read:
            raise typer.BadParameter(f"{path} is also an input file; choose another name.", param_hint="'--out'")
        if path.exists() and not overwrite:
            raise typer.BadParameter(f"{path} already exists; use --overwrite to replace it.", param_hint="'--out'")


def _preset_names(given: str | None, option: str) -> list[str]:
    if option == "--sheet" and given == "all":
        return list(PRESET_DESCRIPTIONS)
    names = [] if given is None else [name.strip().lower() for name in given.split(",")]
    for name in names:
        if name not in PRESET_DESCRIPTIONS:
            raise typer.BadParameter(
                f"Preset {name!r} not found; choose from {', '.join(PRESET_DESCRIPTIONS)}.", param_hint=f"'{option}'"
            )
    if option == "--preset" and len(names) > 1:
        raise typer.BadParameter("Specify one preset; several presets require --sheet.", param_hint="'--preset'")
    return names


def _lights(
    rig: Path | None,
    preset: str,
    texts: list[str] | None,
    env: Path | None,
    env_rotation: float,
    env_intensity: float,
) -> list["Light"]:
    from ..intrinsics.relight import Environment
    from ..intrinsics.relight.panorama import read_panorama
    from ..intrinsics.relight.presets import PRESETS
    from ..intrinsics.relight.rig import parse_light, read_rig

    lights: list[Light] = []
    if rig is not None:
        lights += read_rig(rig)
    if preset:
        lights += PRESETS[preset]
    lights += [parse_light(text) for text in texts or []]
    if env is not None:
        lights.append(Environment(image=read_panorama(env), rotation=env_rotation, intensity=env_intensity))
    return lights
