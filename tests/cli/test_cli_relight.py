"""`intrinsic-lora relight` end to end: rendered scenes, files read back and compared with calling `relight`."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from intrinsic_lora.cli.main import app
from intrinsic_lora.cli.relight import relight as command
from intrinsic_lora.intrinsics.color import linear_to_srgb, srgb_to_linear
from intrinsic_lora.intrinsics.exr import read_exr, write_exr
from intrinsic_lora.intrinsics.pictures import read_picture, write_npz, write_png
from intrinsic_lora.intrinsics.relight import (
    Ambient,
    Camera,
    Environment,
    March,
    Point,
    Rim,
    Spot,
    Sun,
    make_gbuffer,
    relight,
)
from intrinsic_lora.intrinsics.relight.animate import orbit
from intrinsic_lora.intrinsics.relight.files import fit_maps, linear_photo, read_maps
from intrinsic_lora.intrinsics.relight.lights import light_direction
from intrinsic_lora.intrinsics.relight.presets import PRESETS
from intrinsic_lora.intrinsics.relight.rig import write_rig
from intrinsic_lora.intrinsics.sheet import contact_sheet
from intrinsic_lora.intrinsics.vocabulary import PASSES
from intrinsic_lora.train.scenes.render import render, sample_scene
from PIL import Image
from typer.testing import CliRunner

SIZE = 48
LIGHTS = ("sun az=-50 el=30 kelvin=4000", "ambient intensity=.2")
RIG = (Sun(az=-50.0, el=30.0, kelvin=4000.0), Ambient(intensity=0.2))


def cli(*args, status=0):
    """Run the app; returns stdout and stderr in one line of single spaces, without the frame of usage errors."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == status, result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception  # a sentence, never a traceback
    return " ".join(result.output.replace("│", " ").replace("┃", " ").split())


def lit(photo, out, *args, lights=LIGHTS, status=0):
    given = [word for light in lights for word in ("--light", light)]
    return cli("relight", photo, "--out", out, "--device", "cpu", *given, *args, status=status)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """`room_rgb.png`, and `room.npz` with its true maps, as render-scenes writes them."""
    folder = tmp_path_factory.mktemp("scene")
    buffers = render(sample_scene(np.random.default_rng([7, 5])), SIZE)
    write_png(folder / "room_rgb.png", linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]).permute(2, 0, 1)))
    write_npz(folder / "room.npz", **{name: buffers[name] for name in ("normals", "depth", "albedo", "shading")})
    return folder


@pytest.fixture(scope="module")
def photo(scene):
    return scene / "room_rgb.png"


@pytest.fixture(scope="module")
def maps(scene):
    return scene / "room.npz"


@pytest.fixture(scope="module")
def extracted(scene, photo, tmp_path_factory):
    """Folders of one format each, extracted by the embedded model."""
    folder = tmp_path_factory.mktemp("extracted")
    cli("extract", photo, "--out", folder / "all", "--device", "cpu", "--format", "png16,npz,exr")
    for kind, pattern in (("png", "*_*.png"), ("npz", "*.npz"), ("exr", "*.exr")):
        (folder / kind).mkdir()
        for file in (folder / "all").glob(pattern):
            file.rename(folder / kind / file.name)
    return folder


def tensors(maps):
    """Return {name: (1, C, H, W)} of an npz, read without `read_maps`."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(maps).items()}
    return {n: (a[None, None] if a.ndim == 2 else a.permute(2, 0, 1)[None]) for n, a in arrays.items()}


def directly(photo, maps, lights=RIG, camera=None, **options):
    rgb = torch.from_numpy(np.asarray(Image.open(photo).convert("RGB")) / np.float32(255)).permute(2, 0, 1)[None]
    gbuffer = make_gbuffer(rgb, **tensors(maps), camera=camera)
    return gbuffer, relight(gbuffer, lights, **options)


def relit(path):
    return torch.from_numpy(np.load(path)["relit"]).permute(2, 0, 1)[None]


def close(ours, expected, atol=1e-6):
    torch.testing.assert_close(ours, expected, atol=atol, rtol=1e-5)


# what is written


def test_every_format_holds_what_relight_computes(photo, maps, tmp_path):
    image = directly(photo, maps, exposure=1.5)[1].image
    for name, option in (
        ("a.png", ()),
        ("b.png", ("--format", "png16")),
        ("a.exr", ()),
        ("a.npz", ("--format", "npz")),
    ):
        text = lit(photo, tmp_path / name, "--maps", maps, "--exposure", 1.5, *option)
        assert "albedo x shading explains the photo well (scale 1," in text and "with 2 lights" in text
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png", "a.exr", "a.npz"}
    arrays = np.load(tmp_path / "a.npz")
    assert list(arrays) == ["relit"] and arrays["relit"].shape == (SIZE, SIZE, 3)
    assert arrays["relit"].dtype == np.float32 and arrays["relit"].max() > 1  # nothing clipped
    close(relit(tmp_path / "a.npz"), image)
    layers = read_exr(tmp_path / "a.exr")
    assert list(layers) == ["rgb"]
    assert torch.equal(layers["rgb"][None], relit(tmp_path / "a.npz"))
    for name, depth, levels in (("a.png", 8, 255), ("b.png", 16, 65535)):
        picture = read_picture(tmp_path / name)
        assert picture.bit_depth == depth and picture.alpha is None
        close(picture.rgb, linear_to_srgb(image).clamp(0, 1), atol=0.51 / levels)


def test_passes(photo, maps, tmp_path):
    options = ("--maps", maps, "--passes", "--specular", 0.5, "--occlusion", 0.7)
    gbuffer, expected = directly(photo, maps, specular=0.5, occlusion=0.7)
    for name in ("a.png", "a.exr", "a.npz"):
        lit(photo, tmp_path / name, *options)
    arrays, layers = np.load(tmp_path / "a.npz"), read_exr(tmp_path / "a.exr")
    assert set(arrays) == {"relit", *PASSES} and set(layers) == {"rgb", *PASSES}
    for name in PASSES:
        wanted = gbuffer.residual if name == "residual" else getattr(expected, name)
        close(layers[name][None], wanted)
        close(torch.from_numpy(arrays[name]).permute(2, 0, 1)[None], wanted)
        drawn = read_picture(tmp_path / f"a_{name}.png").rgb
        light = name in ("diffuse", "specular", "shading")
        encoded = linear_to_srgb(wanted) if light else wanted
        close(drawn, encoded.clamp(0, 1).expand_as(drawn), atol=0.51 / 255)
    # A compositor's check: the passes add up to the picture.
    np.testing.assert_allclose(arrays["diffuse"] + arrays["specular"], arrays["relit"], atol=1e-6)
    assert arrays["shadow"].min() < 0.5 and arrays["ambient_occlusion"].min() < 0.9 and arrays["specular"].max() > 0.01


def test_every_setting_arrives(photo, maps, tmp_path):
    options = {"mode": "albedo", "ambient": 0.1, "keep_original": 0.3, "exposure": -0.5, "shadow": 0.6}
    options |= {"specular": 0.8, "occlusion": 0.4}
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    lens = ("--near", 2, "--far", 3, "--fov", 30, "--roughness", 0.2, "--shadow-bias", 0.05)
    lens += ("--shadow-thickness", 0.3)
    lit(photo, tmp_path / "a.npz", "--maps", maps, *given, *lens)
    gbuffer, _ = directly(photo, maps, camera=Camera(near=2, far=3, fov=30))
    gbuffer = replace(gbuffer, roughness=torch.full_like(gbuffer.depth, 0.2))
    close(relit(tmp_path / "a.npz"), relight(gbuffer, RIG, march=March(bias=0.05, thickness=0.3), **options).image)


def test_defaults_and_choices_are_those_of_the_library():
    ours = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    for name, parameter in inspect.signature(relight).parameters.items():
        if name in ours and parameter.default is not inspect.Parameter.empty:
            assert ours[name] == parameter.default, name
    assert March() == March(bias=ours["shadow_bias"], thickness=ours["shadow_thickness"])
    assert Camera() == Camera(ours["near"], ours["far"], ours["fov"])
    text = cli("relight", "--help").lower()
    assert all(name in text for name in PRESETS) and "intrinsic-lora relight " in text


# the light


def test_rig_light_and_environment_add_up(photo, maps, tmp_path):
    rng = np.random.default_rng(0)
    sky = rng.random((16, 32, 3), dtype=np.float32) * 3
    write_exr(tmp_path / "sky.exr", {"rgb": torch.from_numpy(sky).permute(2, 0, 1)})
    half = torch.zeros(1, 1, 10, 10)
    half[..., :5] = 1
    write_png(tmp_path / "half.png", half)
    lamp = Point(x=0.2, y=0.3, height=0.8, mask=half)
    write_rig(tmp_path / "rig.json", [lamp, Sun(enabled=False)], {"half.png": half})
    panorama = Environment(image=torch.from_numpy(sky).permute(2, 0, 1)[None], rotation=40.0, intensity=0.5)

    options = ("--env", tmp_path / "sky.exr", "--env-rotation", 40, "--env-intensity", 0.5)
    text = lit(photo, tmp_path / "a.npz", "--maps", maps, "--rig", tmp_path / "rig.json", *options)
    assert "with 4 lights" in text  # the muted one is not counted
    masked = replace(lamp, mask=torch.nn.functional.interpolate(half, (SIZE, SIZE), mode="bilinear"))
    close(relit(tmp_path / "a.npz"), directly(photo, maps, [masked, *RIG, panorama])[1].image, atol=1e-5)


def test_presets_by_name_and_three_point_by_default(photo, maps, tmp_path):
    lit(photo, tmp_path / "a.npz", "--maps", maps, lights=())
    lit(photo, tmp_path / "b.npz", "--maps", maps, "--preset", "three-point", lights=())
    lit(photo, tmp_path / "c.npz", "--maps", maps, "--preset", "Split", lights=LIGHTS[:1])
    close(relit(tmp_path / "a.npz"), directly(photo, maps, PRESETS["three-point"])[1].image)
    close(relit(tmp_path / "a.npz"), relit(tmp_path / "b.npz"))
    close(relit(tmp_path / "c.npz"), directly(photo, maps, [*PRESETS["split"], RIG[0]])[1].image)


def test_light_from_the_left_brightens_what_faces_left(photo, extracted, tmp_path):
    for side, az in (("left", -60), ("right", 60)):
        lit(photo, tmp_path / f"{side}.npz", "--maps", extracted / "npz", lights=[f"sun az={az} el=10 shadow=off"])
    normals = tensors(extracted / "npz" / "room_rgb.npz")["normals"]
    gain = (relit(tmp_path / "left.npz") - relit(tmp_path / "right.npz")).mean(1, keepdim=True)
    assert gain[normals[:, :1] < -0.3].mean() > 0.05
    assert gain[normals[:, :1] > 0.3].mean() < -0.05


# the maps


def test_own_extraction_equals_the_files_of_extract(photo, extracted, tmp_path):
    """Floats are exact; 16-bit PNGs are close, up to rounding and clipped shading."""
    lit(photo, tmp_path / "own.npz")
    for kind in ("npz", "exr", "png"):
        lit(photo, tmp_path / f"{kind}.npz", "--maps", extracted / kind)
    lit(photo, tmp_path / "file.npz", "--maps", extracted / "exr" / "room_rgb.exr")
    own = relit(tmp_path / "own.npz")
    for kind in ("npz", "exr", "file"):
        close(relit(tmp_path / f"{kind}.npz"), own, atol=1e-5)
    off = (linear_to_srgb(relit(tmp_path / "png.npz")) - linear_to_srgb(own)).abs()
    assert off.median() < 0.005 and off.mean() < 0.02


def test_foreign_conventions(photo, maps, tmp_path):
    """The same surfaces in other conventions give the same picture."""
    true = {name: array for name, array in np.load(maps).items()}
    distance = 1 + 3 * true["depth"]
    shifted = {**true, "normals": true["normals"] * np.float32([1, -1, -1]), "depth": 5 / distance - 0.2}
    write_npz(tmp_path / "disparity.npz", **shifted)
    write_npz(tmp_path / "metric.npz", **{**true, "depth": distance * 10, "normals": true["normals"] * [-1, 1, 1]})
    expected = directly(photo, maps)[1].image
    lit(
        photo, tmp_path / "a.npz", "--maps", tmp_path / "disparity.npz", "--normals-frame", "opencv",
        "--depth-kind", "disparity",
    )  # fmt: skip
    # The true depth touches 0 and 1, so near and far come back from the map's own range.
    close(relit(tmp_path / "a.npz"), expected, atol=1e-3)
    lit(
        photo, tmp_path / "b.npz", "--maps", tmp_path / "metric.npz", "--normals-frame", "controlnet",
        "--depth-kind", "metric",
    )  # fmt: skip
    close(relit(tmp_path / "b.npz"), expected, atol=1e-3)  # a sun's shadows know no scale


def test_pngs_are_decoded_as_extract_draws_them(tmp_path):
    """Known values: an 8-bit grey of 188 is linear 0.5029, and near = white is the default."""

    def flat(name, *levels):
        Image.fromarray(np.full((2, 2, len(levels)), levels, np.uint8).squeeze()).save(tmp_path / f"a_{name}.png")

    flat("normals", 128, 255, 128)
    flat("depth", 51)
    flat("albedo", 188, 0, 255)
    flat("shading", 188)
    flat("mask", 255)
    maps = read_maps(tmp_path, "a")
    assert (maps["depth_kind"], maps["normals_frame"]) == ("near-white", "opengl")
    assert {name: maps[name].shape[1] for name in ("normals", "depth", "albedo", "shading", "mask")} == {
        "normals": 3, "depth": 1, "albedo": 3, "shading": 3, "mask": 1,
    }  # fmt: skip
    close(maps["normals"][0, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]), atol=0.01)
    close(maps["albedo"][0, :, 0, 0], torch.tensor([0.50289, 0.0, 1.0]), atol=1e-4)
    close(maps["shading"][0, :, 0, 0], torch.full((3,), 0.50289), atol=1e-4)
    close(maps["depth"][0, 0, 0, 0], torch.tensor(0.2))
    gbuffer = make_gbuffer(torch.rand(1, 3, 2, 2), **maps)
    close(gbuffer.depth, torch.full((1, 1, 2, 2), 0.8))
    assert read_maps(tmp_path, "a", depth_kind="disparity")["depth_kind"] == "disparity"


def test_maps_of_another_size_are_resampled(photo, maps, tmp_path):
    small = {name: torch.from_numpy(a if a.ndim == 3 else a[..., None]).permute(2, 0, 1)[None]
             for name, a in np.load(maps).items()}  # fmt: skip
    small = {n: torch.nn.functional.interpolate(m, (24, 24), mode="area")[0] for n, m in small.items()}
    write_exr(tmp_path / "small.exr", small)
    text = lit(photo, tmp_path / "a.npz", "--maps", tmp_path / "small.exr")
    assert "resampled maps from 24 x 24 to 48 x 48 pixels" in text
    off = (relit(tmp_path / "a.npz") - directly(photo, maps)[1].image).abs()
    assert off.median() < 0.02
    fitted = fit_maps(read_maps(tmp_path / "small.exr"), 48, 47)  # within a pixel of its own
    assert fitted["normals"].shape == (1, 3, 48, 47)
    with pytest.raises(ValueError, match="24 x 24 pixels and the photo 40 x 48"):
        fit_maps(read_maps(tmp_path / "small.exr"), 48, 40)


def test_missing_maps_are_said(photo, maps, tmp_path):
    true = dict(np.load(maps))
    cases = {
        ("normals",): "no albedo or shading: the photo keeps its original light; no depth: assuming a flat scene",
        ("normals", "depth", "albedo"): "no shading: using photo / albedo",
        ("normals", "depth", "shading"): "no albedo: using photo / shading",
    }
    for number, (names, sentence) in enumerate(cases.items()):
        write_npz(tmp_path / "some.npz", **{name: true[name] for name in names})
        assert sentence in lit(photo, tmp_path / f"{number}.npz", "--maps", tmp_path / "some.npz")
    write_npz(tmp_path / "none.npz", depth=true["depth"])
    text = lit(photo, tmp_path / "no.npz", "--maps", tmp_path / "none.npz", status=1)
    assert "holds no normals (only depth)" in text and not (tmp_path / "no.npz").exists()


def test_maps_that_do_not_belong_to_the_photo_are_distrusted(photo, maps, tmp_path):
    true = dict(np.load(maps))
    noise = np.random.default_rng(1).random((SIZE, SIZE, 3), dtype=np.float32)
    write_npz(tmp_path / "wrong.npz", **{**true, "albedo": noise, "shading": noise[..., :1]})
    assert "explains the photo poorly" in lit(photo, tmp_path / "a.png", "--maps", tmp_path / "wrong.npz")


# the photo


def test_alpha_is_kept_and_does_not_bleed(photo, maps, tmp_path):
    """Alpha does not change how visible pixels are lit, at half coverage either."""
    rgb = np.asarray(Image.open(photo).convert("RGB"))
    alpha = np.full((SIZE, SIZE, 1), 255, np.uint8)
    alpha[:, :10], alpha[:, 10:14] = 0, 128
    Image.fromarray(np.concatenate([rgb, alpha], -1)).save(tmp_path / "cut.png")
    for name in ("a.png", "a.exr", "a.npz"):
        lit(tmp_path / "cut.png", tmp_path / name, "--maps", maps)
    written = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(written[..., 3:], alpha)
    arrays = np.load(tmp_path / "a.npz")
    np.testing.assert_allclose(arrays["alpha"], alpha[..., 0] / 255, atol=1e-6)
    premultiplied = read_exr(tmp_path / "a.exr")["rgb"]
    close(premultiplied[:3], relit(tmp_path / "a.npz")[0] * premultiplied[3:])
    opaque = directly(photo, maps)[1].image
    # The fitted scale sees fewer pixels here; up to it, colours are the same, fringe included.
    ratio = relit(tmp_path / "a.npz")[..., 10:] / opaque[..., 10:].clamp(min=1e-3)
    close(ratio[opaque[..., 10:] > 0.01], ratio.median().expand_as(ratio[opaque[..., 10:] > 0.01]), atol=2e-3)
    close(relit(tmp_path / "a.npz")[..., :10], srgb_to_linear(torch.full((1, 3, SIZE, 10), 0.5)), atol=1e-5)


def test_highlights_of_an_exr_photo_are_not_clipped(photo, maps, tmp_path):
    linear = srgb_to_linear(read_picture(photo).rgb)
    linear[..., 20:24, 20:24] = 7.5
    write_exr(tmp_path / "hdr.exr", {"rgb": linear[0]})
    close(linear_photo(read_picture(tmp_path / "hdr.exr", clip=False)), linear, atol=1e-5)
    assert read_picture(tmp_path / "hdr.exr").rgb.max() == 1
    lit(tmp_path / "hdr.exr", tmp_path / "a.exr", "--maps", maps)
    expected = relight(make_gbuffer(linear, **tensors(maps), photo_encoding="linear"), RIG).image
    close(read_exr(tmp_path / "a.exr")["rgb"][None], expected, atol=1e-4)
    lit(tmp_path / "hdr.exr", tmp_path / "own.exr")  # the network accepts it too, with highlights clipped


# turntable and sheet


def test_orbit_is_a_pure_turn():
    panorama = torch.rand(1, 3, 8, 16)
    start = (
        Sun(az=-40.0, el=35.0), Rim(az=150.0), Point(x=0.9, y=0.5, height=0.7), Spot(x=0.1, y=0.2, aim_x=0.4),
        Environment(image=panorama, rotation=10.0), Ambient(intensity=0.2),
    )  # fmt: skip
    for turned in (orbit(start, 1), orbit(start, 0)):
        for before, after in zip(start, turned, strict=True):
            assert type(before) is type(after)
            for name, value in vars(before).items():
                assert vars(after)[name] is value or vars(after)[name] == pytest.approx(value, abs=1e-9)
    sun, rim, point, spot, environment, ambient = orbit(start, 0.25)
    like = torch.zeros(1)
    x, y, z = light_direction(-40.0, 35.0, like).flatten()
    close(
        light_direction(sun.az, sun.el, like).flatten(), torch.stack([z, y, -x])
    )  # what was in front is at the right
    assert rim.az == 240 and environment.rotation == 100 and environment.image is panorama and ambient is start[5]
    assert (point.x, point.y, point.height) == pytest.approx((0.5, 0.9, 0.7))  # right -> bottom: clockwise
    assert (spot.x, spot.y) == pytest.approx((0.8, 0.1)) and spot.aim_x == 0.4


def test_orbit_writes_frames_and_an_animation(photo, maps, tmp_path):
    out = tmp_path / "new" / "turn.webp"
    text = lit(photo, out, "--maps", maps, "--orbit", 8)
    assert "8 frames" in text
    frames = [f"turn_{i:03d}.png" for i in range(8)]
    assert sorted(path.name for path in (tmp_path / "new" / "turn").iterdir()) == [*frames, "turn_frames.json"]
    with Image.open(out) as animation:
        assert animation.n_frames == 8 and animation.size == (SIZE, SIZE) and animation.info["loop"] == 0
        animation.seek(1)
        animation.load()
        assert animation.info["duration"] == 500
    lit(photo, tmp_path / "still.png", "--maps", maps)
    lit(photo, tmp_path / "right.png", "--maps", maps, lights=("sun az=40 el=30 kelvin=4000", LIGHTS[1]))
    for frame, still in ((0, "still.png"), (2, "right.png")):
        ours, expected = (np.asarray(Image.open(path)).astype(int)
                          for path in (tmp_path / f"new/turn/turn_{frame:03d}.png", tmp_path / still))  # fmt: skip
        assert np.abs(ours - expected).max() <= 1
    assert "already exists" in lit(photo, out, "--maps", maps, "--orbit", 4, status=2)
    lit(photo, out, "--maps", maps, "--orbit", 4, "--overwrite")
    assert len(list((tmp_path / "new" / "turn").glob("*.png"))) == 4  # none of the longer turn is left


def test_sheet_shows_every_photo_under_every_preset(scene, photo, maps, tmp_path):
    (tmp_path / "other_rgb.png").write_bytes(photo.read_bytes())
    (tmp_path / "room_rgb.png").write_bytes(photo.read_bytes())
    for name in ("other.npz", "room.npz"):
        (tmp_path / name).write_bytes(maps.read_bytes())
    pair = (tmp_path / "room_rgb.png", tmp_path / "other_rgb.png")
    cli(
        "relight",
        *pair,
        "--out",
        tmp_path / "s.png",
        "--maps",
        tmp_path,
        "--sheet",
        "Split, window",
        "--device",
        "cpu",
    )
    shown = [read_picture(photo).rgb[0]]
    shown += [linear_to_srgb(directly(photo, maps, PRESETS[name])[1].image)[0] for name in ("split", "window")]
    columns = [(name, [picture] * 2) for name, picture in zip(("photo", "split", "window"), shown, strict=True)]
    sheet = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    assert np.abs(sheet - np.asarray(contact_sheet(columns)).astype(int)).max() <= 1
    text = cli("relight", photo, "--out", tmp_path / "all.png", "--maps", scene, "--sheet", "all", "--device", "cpu")
    assert all(name in text for name in PRESETS)


# what is refused


@pytest.mark.parametrize(
    "name, options, status, sentence",
    [
        ("a.jpg", (), 2, "must end in .png or .exr or .npz"),
        ("a.png", ("--format", "exr"), 2, "The format exr does not match the suffix of"),
        ("a.exr", ("--format", "png16"), 2, "The format png16 does not match the suffix of"),
        ("a.png", ("--preset", "disco"), 2, "Preset 'disco' not found; choose from rembrandt"),
        ("a.png", ("--preset", "split,rim"), 2, "Specify one preset"),
        ("a.png", ("--sheet", "split", "--preset", "rim"), 2, "each selects the lights"),
        ("a.png", ("--sheet", "split,,"), 2, "Preset '' not found"),
        ("a.png", ("--sheet", "split", "--passes"), 2, "cannot be combined with --orbit"),
        ("a.png", ("--orbit", 4), 2, "must end in .webp"),
        ("a.webp", ("--orbit", 4, "--sheet", "all"), 2, "--orbit and --sheet cannot be combined"),
        ("a.webp", ("--orbit", 1), 2, "Invalid value for '--orbit'"),
        ("a.png", ("--light", "sun elevation=3"), 1, "unknown field 'elevation'"),
        ("a.png", ("--light", "torch"), 1, "unknown type 'torch'"),
        ("a.png", ("--rig", "RIG"), 1, "not valid JSON"),
        ("a.png", ("--env", "PHOTO"), 1, "twice as wide as it is high"),
        ("a.png", ("--near", 3, "--far", 2), 1, "0 < near < far"),
        ("a.png", ("--base", "owner/sd15"), 2, "no model runs"),
        ("a.png", ("--depth-kind", "disparity", "--near", 0), 1, "0 < near < far"),
        ("a.npz", ("--exposure", 1000), 1, "not finite"),
        ("a.exr", ("--exposure", "nan"), 1, "not finite"),
        ("a.png", ("--device", "abacus"), 1, "abacus"),
    ],
)
def test_refusals(photo, maps, tmp_path, name, options, status, sentence):
    (tmp_path / "rig.json").write_text("{")
    given = {"RIG": tmp_path / "rig.json", "PHOTO": photo}
    words = [given.get(option, option) for option in options]
    text = cli("relight", photo, "--out", tmp_path / name, "--maps", maps, *words, status=status)
    assert sentence in text
    assert [path.name for path in tmp_path.iterdir()] == ["rig.json"]


def test_nothing_is_replaced_unasked(photo, maps, tmp_path):
    (tmp_path / "a.png").write_bytes(b"precious")
    (tmp_path / "b_shadow.png").write_bytes(b"precious")
    assert "already exists; use --overwrite" in lit(photo, tmp_path / "a.png", "--maps", maps, status=2)
    assert "b_shadow.png already exists" in lit(photo, tmp_path / "b.png", "--maps", maps, "--passes", status=2)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"precious"}
    lit(photo, tmp_path / "a.png", "--maps", maps, "--overwrite")
    assert read_picture(tmp_path / "a.png").rgb.shape == (1, 3, SIZE, SIZE)
    before = photo.read_bytes(), maps.read_bytes()
    assert "is also an input file" in lit(photo, photo, "--maps", maps, "--overwrite", status=2)
    assert "is also an input file" in lit(photo, maps, "--maps", maps, "--overwrite", status=2)
    assert (photo.read_bytes(), maps.read_bytes()) == before


def test_maps_that_cannot_be_used(photo, maps, tmp_path):
    def refused(sentence, source):
        text = lit(photo, tmp_path / "out.png", "--maps", source, status=1)
        assert sentence in text and not (tmp_path / "out.png").exists(), text

    empty = tmp_path / "empty"
    empty.mkdir()
    refused("holds no maps of room_rgb", empty)
    (tmp_path / "cut.npz").write_bytes(maps.read_bytes()[:500])
    refused("damaged or not an .npz file of maps", tmp_path / "cut.npz")
    (tmp_path / "text.npz").write_text("no zip")
    refused("damaged or not an .npz file of maps", tmp_path / "text.npz")
    np.savez(tmp_path / "pickled.npz", normals=np.array([{}], dtype=object))
    refused("damaged or not an .npz file of maps", tmp_path / "pickled.npz")
    (tmp_path / "maps.txt").write_text("no maps")
    refused("not from", tmp_path / "maps.txt")
    write_npz(tmp_path / "flat.npz", normals=np.zeros(3))
    refused("normals must hold floating-point numbers (H, W) or (H, W, C)", tmp_path / "flat.npz")
    write_npz(tmp_path / "grey.npz", normals=np.ones((SIZE, SIZE), np.float32))
    refused("normals have 3 channels, not 1", tmp_path / "grey.npz")
    write_npz(tmp_path / "nan.npz", normals=np.full((SIZE, SIZE, 3), np.nan, np.float32))
    refused("NaN", tmp_path / "nan.npz")
    write_npz(tmp_path / "wide.npz", normals=np.full((SIZE, 2 * SIZE, 3), 3**-0.5, np.float32))
    refused("do not show the same picture", tmp_path / "wide.npz")


def test_broken_panoramas_get_one_sentence(photo, maps, tmp_path):
    header = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 16 +X 32\n"
    nan = torch.rand(3, 16, 32)
    nan[0, 3, 3] = torch.nan
    write_exr(tmp_path / "nan.exr", {"rgb": nan})
    write_exr(tmp_path / "square.exr", {"rgb": torch.rand(3, 16, 16)})
    write_exr(tmp_path / "maps.exr", {"normals": torch.rand(3, 16, 32), "depth": torch.rand(1, 16, 32)})
    whole = (tmp_path / "nan.exr").read_bytes()
    files = {
        "empty.hdr": (b"", "empty"),
        "short.hdr": (header + bytes(99), "damaged or cut off"),
        "header.hdr": (b"#?RADIANCE\nnothing more", "header is damaged"),
        "zero.hdr": (header.replace(b"16", b"0") + bytes(99), "its size is"),
        "huge.hdr": (header.replace(b"16", b"90000").replace(b"32", b"180000") + bytes(99), "GB of memory"),
        "wide.hdr": (header.replace(b"32", b"64") + bytes(4 * 16 * 64), "twice as wide as it is high"),
        "short.exr": (whole[: len(whole) // 2], "Cannot read the EXR file"),
        "noise.exr": (b"v/1\x01" + bytes(range(256)), "Cannot read the EXR file"),
        "text.hdr": (b"no panorama", "not a picture in a supported format"),
        "nan.exr": (None, "holds NaN"),
        "square.exr": (None, "twice as wide"),
        "maps.exr": (None, "it is unclear which is the picture"),
    }
    for name, (data, sentence) in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        text = lit(photo, tmp_path / "out.png", "--maps", maps, "--env", tmp_path / name, status=1)
        assert text.startswith("Error: ") and "\n" not in text, text
        assert sentence in text and name in text and not (tmp_path / "out.png").exists(), text


def test_several_photos_only_on_a_sheet(photo, maps, tmp_path):
    two = (photo, photo)
    assert "Several photos require --sheet" in cli("relight", *two, "--out", tmp_path / "a.png", status=2)
    options = ("--sheet", "rim", "--maps", maps)
    assert "holds the maps of one photo" in cli("relight", *two, "--out", tmp_path / "a.png", *options, status=2)
    assert not list(tmp_path.iterdir())
