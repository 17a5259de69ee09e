"""Maps, lights, Relight and saving in a real ComfyUI over HTTP, against the Python library on the same pictures."""

import importlib.util
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics import linear_to_srgb, srgb_to_linear
from intrinsic_lora.intrinsics.depth import render_depth
from intrinsic_lora.intrinsics.exr import read_exr
from intrinsic_lora.intrinsics.relight import (
    PRESETS,
    Ambient,
    Camera,
    Environment,
    Point,
    Spot,
    Sun,
    make_gbuffer,
    relight,
    rig_to_json,
)
from intrinsic_lora.intrinsics.relight.animate import orbit
from intrinsic_lora.tests.comfy.client import Client, ExecutionError, Graph, Interrupted, PromptRejected
from intrinsic_lora.tests.support.relit import array, ball, tensor
from torch import Tensor

INSIDE = (Path(__file__).parent / "inside.py").read_text()
LOOK = {"mode": "ratio", "keep_original": 0.0, "ambient": 0.1, "shadow": 0.8, "specular": 0.2, "occlusion": 0.5}
SETTINGS = {"preset": "none", "roughness": 0.5, "exposure": 0.0, "near": 0.0, "far": 0.0, "fov": 0.0, **LOOK}
LIGHT = {
    "type": "sun", "az": -50.0, "el": 30.0, "softness": 0.1, "shadow": True, "color": "#ffddaa", "kelvin": 0.0,
    "intensity": 1.2, "x": 0.7, "y": 0.25, "height": 0.5, "aim_x": 0.5, "aim_y": 0.5, "angle": 50.0, "blend": 0.3,
    "width": 0.5, "name": "key", "enabled": True,
}  # fmt: skip
MADE = {
    "normals_frame": "opencv", "depth_kind": "near-white", "albedo_encoding": "srgb", "shading_encoding": "linear",
    "near": 1.0, "far": 4.0, "fov": 50.0,
}  # fmt: skip
DRAWN = {
    "frame": "opengl", "strength": 1.0, "near": "near-white", "scope": "image", "low_percentile": 0.0,
    "high_percentile": 100.0, "gamma": 1.0, "encoding": "srgb", "exposure": 0.0,
}  # fmt: skip
ANIMATED = {"path": "orbit", "amount": 1.0, "ease": "linear", "keyframes": "[]", "flicker_seed": 0}
LINEAR_AMBER = tuple(srgb_to_linear(torch.tensor([255, 221, 170]) / 255).tolist())


def node(class_type: str, /, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def ours(name: str, /, **inputs: object) -> dict:
    return node(f"IntrinsicLora_{name}", **inputs)


def saved(name: str, slot: int, mask: bool = False, source: str = "relit") -> Graph:
    """Add a preview of one output; a mask is converted to a picture."""
    picture = {f"{name} picture": node("MaskToImage", mask=[source, slot])} if mask else {}
    images = [f"{name} picture", 0] if mask else [source, slot]
    return picture | {name: node("SaveImage", images=images, filename_prefix="test")}


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """Upload a ball in front of a wall as 8-bit pictures of 64 x 48 pixels, and a mask that is white on the left."""
    b = ball(48, 64)
    light = np.clip(b.normals @ np.array([0.4, 0.5, 0.77]), 0.1, 1)[..., None]
    generator = np.random.default_rng(0)
    albedo = generator.uniform(0.3, 0.9, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
    depth = (b.z - b.z.min()) / (b.z.max() - b.z.min())
    floats = {
        "photo": linear_to_srgb(torch.from_numpy(albedo * light)).numpy(),
        "normals": b.normals * [1, -1, -1] * 0.5 + 0.5,  # OpenCV
        "depth": 1 - depth,
        "albedo": linear_to_srgb(torch.from_numpy(albedo)).numpy(),
        "shading": light[..., 0],
    }
    levels = {name: np.rint(x * 255).astype(np.uint8) for name, x in floats.items()}
    panorama = generator.integers(0, 255, (16, 32, 3)).astype(np.uint8)
    left = np.zeros((12, 16), np.uint8)
    left[:, :8] = 255
    return levels | {"panorama": panorama, "left": left}


@pytest.fixture(scope="module")
def loaded(server, pictures) -> Graph:
    """Nodes that load every picture under its name, and a G-buffer "gbuffer" of them; the mask is "white left"."""
    client = Client(server.url)
    # Grey as RGB: ComfyUI 0.33 reads a grey PNG up to a level too dark, and none that is 16 pixels wide.
    colour = {name: np.stack([p] * 3, axis=-1) if p.ndim == 2 else p for name, p in pictures.items()}
    files = {name: client.upload_image(f"relight_{name}.png", picture) for name, picture in colour.items()}
    graph = {name: node("LoadImage", image=file) for name, file in files.items()}
    graph["white left"] = node("ImageToMask", image=["left", 0], channel="red")
    maps = {name: [name, 0] for name in ("normals", "depth", "albedo", "shading")}
    graph["gbuffer"] = ours("MakeGBuffer", image=["photo", 0], **maps, **MADE)
    return graph


@pytest.fixture(scope="module")
def gbuffer(pictures):
    """Compute the same with the library."""
    maps = {name: tensor(pictures[name] / 255) for name in ("photo", "normals", "depth", "albedo", "shading")}
    return make_gbuffer(
        maps["photo"],
        maps["normals"] * 2 - 1,
        maps["depth"],
        maps["albedo"],
        maps["shading"],
        normals_frame="opencv",
        depth_kind="near-white",
        albedo_encoding="srgb",
        camera=Camera(1, 4, 50),
    )


def assert_equal(levels: np.ndarray, expected: Tensor) -> None:
    """uint8 (H,W,3) as SaveImage wrote it against (1,1 or 3,H,W): at most one level off."""
    shown = array(expected.expand(-1, 3, -1, -1).clamp(0, 1)) * 255
    assert levels.shape == shown.shape
    assert np.abs(levels - shown).max() <= 1.01, np.abs(levels - shown).max()


def assert_relit(client, result, found) -> None:
    assert_equal(client.fetch_image(result.files("image")[0]), linear_to_srgb(found.image))
    assert_equal(client.fetch_image(result.files("diffuse")[0]), linear_to_srgb(found.diffuse))
    assert_equal(client.fetch_image(result.files("specular")[0]), linear_to_srgb(found.specular))
    assert_equal(client.fetch_image(result.files("shadow")[0]), found.shadow)
    assert_equal(client.fetch_image(result.files("new shading")[0]), linear_to_srgb(found.shading))


OUTPUTS = (
    saved("image", 0) | saved("diffuse", 1) | saved("specular", 2) | saved("shadow", 3, True) | saved("new shading", 4)
)

# --- what runs


def test_every_input_has_a_tooltip_and_a_sound_default(client):
    nodes = {name: info for name, info in client.object_info().items() if name.startswith("IntrinsicLora_")}
    wanted = "RenderMap ConvertNormalMap MakeGBuffer EditShading Light EnvironmentLight AnimateLights Relight SaveEXR"
    assert {f"IntrinsicLora_{name}" for name in wanted.split()} <= nodes.keys()
    for name, info in nodes.items():
        assert info["description"] and all(info["output_tooltips"]), name
        for group in ("required", "optional"):
            for key, (kind, options) in info["input"].get(group, {}).items():
                assert len(options.get("tooltip", "")) > 5, (name, key)
                if kind in ("INT", "FLOAT"):
                    assert options["min"] <= options["default"] <= options["max"], (name, key)
                if kind == "COMBO":
                    assert options["default"] in options["options"], (name, key)
    info = nodes["IntrinsicLora_Relight"]["input"]
    assert all(info["required"][key][1]["advanced"] for key in ("near", "far", "fov"))


def test_relight_with_chained_lights_and_masks_equals_the_library(client, loaded, gbuffer, pictures):
    graph = loaded | {
        "sun": ours("Light", **LIGHT, mask=["white left", 0]),
        "spot": ours("Light", **LIGHT | {"type": "spot", "kelvin": 3200.0, "angle": 70.0}, lights=["sun", 0]),
        "sky": ours(
            "EnvironmentLight",
            image=["panorama", 0], encoding="srgb", rotation=40.0, intensity=0.7, lights=["spot", 0],
        ),
        "relit": ours("Relight", gbuffer=["gbuffer", 0], lights=["sky", 0], **SETTINGS | {"exposure": 0.2}),
    }  # fmt: skip
    result = client.queue(graph | OUTPUTS)
    left = torch.nn.functional.interpolate(tensor(pictures["left"] / 255), (48, 64), mode="bilinear")
    shared = {"softness": 0.1, "intensity": 1.2, "color": LINEAR_AMBER}
    panorama = srgb_to_linear(tensor(pictures["panorama"] / 255))
    lights = (
        Sun(az=-50, el=30, mask=left, **shared),
        Spot(x=0.7, y=0.25, height=0.5, angle=70, blend=0.3, kelvin=3200, **shared),
        Environment(image=panorama, rotation=40, intensity=0.7),
    )
    found = relight(gbuffer, lights, exposure=0.2, **LOOK)
    assert found.shadow.min() < 0.98 and found.specular.max() > 0.01  # or there would be nothing to compare
    assert_relit(client, result, found)


@pytest.mark.parametrize("mode", ["ratio", "albedo", "add"])
def test_modes_with_preset_rig_and_mask(client, loaded, gbuffer, mode, pictures):
    rig = rig_to_json([Point(x=0.1, y=0.8, intensity=0.5)])
    settings = SETTINGS | {"preset": "rembrandt", "mode": mode, "keep_original": 0.3, "near": 2.0, "roughness": 0.2}
    graph = loaded | {
        "rig": node("PrimitiveString", value=rig),
        "relit": ours("Relight", gbuffer=["gbuffer", 0], rig=["rig", 0], mask=["white left", 0], **settings),
    }
    result = client.queue(graph | OUTPUTS)
    left = torch.nn.functional.interpolate(tensor(pictures["left"] / 255), (48, 64), mode="bilinear")
    closer = make_gbuffer(
        gbuffer.photo, gbuffer.normals, gbuffer.depth, gbuffer.albedo, gbuffer.shading, 0.2 * gbuffer.mask, left,
        photo_encoding="linear", camera=Camera(2, 4, 50),
    )  # fmt: skip
    look = LOOK | {"mode": mode, "keep_original": 0.3}
    found = relight(closer, (*PRESETS["rembrandt"], Point(x=0.1, y=0.8, intensity=0.5)), **look)
    assert_relit(client, result, found)
    right = client.fetch_image(result.files("image")[0])[:, 40:]
    assert np.abs(right - pictures["photo"][:, 40:].astype(float)).max() <= 1


def test_one_picture_under_moving_lights(client, loaded, gbuffer):
    graph = loaded | {
        "sun": ours("Light", **LIGHT),
        "moving": ours("AnimateLights", lights=["sun", 0], frames=3, **ANIMATED),
        "relit": ours("Relight", gbuffer=["gbuffer", 0], lights=["moving", 0], **SETTINGS),
    }
    result = client.queue(graph | saved("image", 0))
    assert len(result.files("image")) == 3
    sun = (Sun(az=-50, el=30, softness=0.1, intensity=1.2, color=LINEAR_AMBER),)
    for i, file in enumerate(result.files("image")):
        assert_equal(
            client.fetch_image(file), linear_to_srgb(relight(gbuffer, orbit(sun, i / 3), **LOOK).image).clamp(0, 1)
        )
    steps = [data["value"] for kind, data in result.events if kind == "progress" and data["node"] == "relit"]
    assert steps[-1] == 3 and set(steps) <= {1, 2, 3}  # newer versions leave some out where they come fast


def test_a_clip_under_moving_lights_frame_by_frame(client, loaded, gbuffer):
    graph = loaded | {
        "dark": node("ImageInvert", image=["photo", 0]),
        "both": node("ImageBatch", image1=["photo", 0], image2=["dark", 0]),
        "lamp": ours("Light", **LIGHT | {"type": "ambient"}),
        "moving": ours(
            "AnimateLights",
            lights=["lamp", 0],
            frames=2,
            **ANIMATED
            | {"path": "keyframes", "keyframes": '[{"frame": 0, "intensity": 1}, {"frame": 1, "intensity": 0.25}]'},
        ),
        "relit": ours("Relight", gbuffer=["gbuffer", 0], lights=["moving", 0], **SETTINGS),
    }
    graph["gbuffer"] = ours("MakeGBuffer", **(loaded["gbuffer"]["inputs"] | {"image": ["both", 0]}))
    result = client.queue(graph | saved("image", 0))
    dark = make_gbuffer(
        1 - linear_to_srgb(gbuffer.photo), gbuffer.normals, gbuffer.depth, gbuffer.albedo, gbuffer.shading,
        camera=gbuffer.camera,
    )  # fmt: skip
    for file, one, intensity in zip(result.files("image"), (gbuffer, dark), (1, 0.25), strict=True):
        found = relight(one, [Ambient(intensity=intensity, color=LINEAR_AMBER)], **LOOK)
        assert_equal(client.fetch_image(file), linear_to_srgb(found.image))


def test_render_map(client, loaded, gbuffer):
    def drawn(name: str, **options: object) -> dict:
        return ours("RenderMap", gbuffer=["gbuffer", 0], map=name, **DRAWN | options)

    graph = loaded | {
        "a": drawn("normals", frame="directx"),
        "b": drawn("depth", near="near-black", low_percentile=5.0, high_percentile=60.0, gamma=1.5),
        "c": drawn("albedo", encoding="linear", exposure=-1.0),
    }
    graph |= saved("normals out", 0, source="a") | saved("facing", 1, True, source="a")
    graph |= saved("depth out", 0, source="b") | saved("albedo out", 0, source="c")
    result = client.queue(graph)
    fetched = {key: client.fetch_image(result.files(key)[0]) for key in result.outputs}
    flip = torch.tensor([1.0, -1, 1]).view(3, 1, 1)
    assert_equal(fetched["normals out"], gbuffer.normals * flip * 0.5 + 0.5)
    assert_equal(fetched["facing"], gbuffer.normals[:, 2:])
    assert_equal(fetched["depth out"], render_depth(gbuffer.depth, "near-black", low=5, high=60, gamma=1.5))
    assert_equal(fetched["albedo out"], gbuffer.albedo / 2)


def test_convert_normal_map(client, loaded, pictures):
    convert = ours(
        "ConvertNormalMap",
        normals=["normals", 0], source="opencv", target="controlnet", strength=1.0, renormalize=False,
        background=["white left", 0],
    )  # fmt: skip
    result = client.queue(loaded | {"relit": convert} | saved("image", 0))
    got = client.fetch_image(result.files("image")[0])
    expected = 255 - pictures["normals"].astype(float)  # all three axes turn round
    assert np.abs(got[:, 40:] - expected[:, 40:]).max() <= 1
    assert (np.abs(got[:, :24] - np.array([127.5, 127.5, 255])) <= 1).all()


def test_edit_shading(client, loaded, gbuffer, pictures):
    neutral = {"contrast": 1.0, "tint": "#ffffff", "soften": 0.0, "flatten": 0.0}
    graph = loaded | {
        "same": ours("EditShading", gbuffer=["gbuffer", 0], **neutral),
        "flat": ours("EditShading", gbuffer=["gbuffer", 0], **neutral | {"flatten": 1.0}),
        "again": ours("RenderMap", gbuffer=["flat", 1], map="shading", **DRAWN | {"encoding": "linear"}),
    }
    graph |= saved("one", 0, source="same") | saved("two", 0, source="flat") | saved("three", 0, source="again")
    result = client.queue(graph)
    one, two, three = (client.fetch_image(result.files(key)[0]) for key in ("one", "two", "three"))
    assert np.abs(one - pictures["photo"].astype(float)).max() <= 1
    assert np.ptp(three) <= 1  # even light
    middle = gbuffer.shading.flatten().median()
    assert_equal(two, linear_to_srgb(gbuffer.photo / gbuffer.shading * middle))


def test_16_bit_pngs(client, loaded, gbuffer):
    save = ours(
        "SaveEXR", gbuffer=["gbuffer", 0], filename_prefix="maps/ball", format="PNG 16 bit", layers="normals,depth"
    )
    result = client.queue(loaded | {"save": save})
    files = result.files("save", "files")
    assert [file["filename"] for file in files] == ["ball_00001_normals.png", "ball_00001_depth.png"]
    assert files[0]["subfolder"] == "maps"
    normals, depth = (imagecodecs.png_decode(client.fetch(file)) for file in files)
    assert normals.dtype == np.uint16 and normals.shape == (48, 64, 3)
    np.testing.assert_allclose(normals, array(gbuffer.normals * 0.5 + 0.5) * 65535, atol=1)
    np.testing.assert_allclose(depth, array(1 - gbuffer.depth) * 65535, atol=1)
    save["inputs"]["layers"] = "depth, normals"  # or the cache would spare it the work
    assert client.queue(loaded | {"save": save}).files("save", "files")[0]["filename"] == "ball_00002_depth.png"


def test_exr_in_comfyuis_own_process(run_in_comfy, server, gbuffer, tmp_path):
    """With OpenEXR, which ComfyUI's environment does not have: the test's own, linked into it."""
    found = importlib.util.find_spec("OpenEXR").origin
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / Path(found).name).symlink_to(found)
    names = ("photo", "normals", "depth", "albedo", "shading")
    torch.save({name: getattr(gbuffer, name).contiguous() for name in names}, tmp_path / "maps.pt")
    code = """
sys.path.append(str(OUT / "site"))
maps = torch.load(OUT / "maps.pt", weights_only=True)
PhotoMaps = part("comfy_nodes.photo_maps").PhotoMaps
for name, layers in (("EXR half float", "all"), ("EXR float", "normals, photo")):
    NODES["IntrinsicLora_SaveEXR"].execute(PhotoMaps(**maps), "renders/ball", name, layers)
"""
    run_in_comfy(INSIDE + code, server.base, server.pack, tmp_path)
    folder = server.base / "output" / "renders"
    assert sorted(file.name for file in folder.iterdir()) == ["ball_00001_.exr", "ball_00002_.exr"]
    half, full = (read_exr(folder / f"ball_0000{i}_.exr") for i in (1, 2))
    assert half.keys() == {"rgb", "normals", "depth", "albedo", "shading"} and full.keys() == {"rgb", "normals"}
    assert torch.equal(full["normals"], gbuffer.normals[0])
    torch.testing.assert_close(full["rgb"], srgb_to_linear(gbuffer.photo[0]), atol=1e-6, rtol=0)
    for name in ("depth", "albedo", "shading"):
        torch.testing.assert_close(half[name], getattr(gbuffer, name)[0], atol=2e-3, rtol=1e-3)


def test_one_pixel(client, loaded):
    graph = loaded | {
        "tiny": node("EmptyImage", width=1, height=1, batch_size=1, color=0x8080FF),
        "grey": node("EmptyImage", width=1, height=1, batch_size=1, color=0x808080),
        "gbuffer": ours("MakeGBuffer", image=["tiny", 0], normals=["tiny", 0], depth=["grey", 0], **MADE),
        "relit": ours("Relight", gbuffer=["gbuffer", 0], **SETTINGS | {"preset": "window"}),
    }
    assert client.fetch_image(client.queue(graph | saved("image", 0)).files("image")[0]).shape == (1, 1, 3)


# --- bypass, previews, files


def test_no_light_is_ambient_and_a_warning(client, loaded, gbuffer, server):
    graph = relit(loaded)
    del graph["relit"]["inputs"]["lights"]
    result = client.queue(graph)
    look = LOOK | {"mode": "ratio"}
    assert_equal(client.fetch_image(result.files("image")[0]), linear_to_srgb(relight(gbuffer, (), **look).image))
    assert "There is no light, only ambient" in server.log.read_text()
    assert "There is no light, only ambient" in "".join(result.texts("relit"))


def test_where_decompose_is_bypassed_relight_shows_the_photo(client, loaded, pictures):
    """The page then sends no gbuffer; what hangs on the passes does not run."""
    graph = relit(loaded, photo=["photo", 0]) | saved("diffuse", 1)
    del graph["relit"]["inputs"]["gbuffer"]
    result = client.queue(graph)
    assert np.abs(client.fetch_image(result.files("image")[0]) - pictures["photo"].astype(float)).max() <= 1
    assert "diffuse" not in result.outputs
    del graph["relit"]["inputs"]["photo"]
    assert client.refusal(graph)[1].startswith("Relight has no gbuffer: make it with Intrinsic Decompose")


def test_mix(client, loaded, pictures):
    shown = {}
    for share in (0.0, 0.5, 1.0):
        result = client.queue(relit(loaded, mix=share))
        shown[share] = client.fetch_image(result.files("image")[0]).astype(float)
    assert np.abs(shown[0.0] - pictures["photo"]).max() <= 1
    assert np.abs(shown[0.5] - (shown[0.0] + shown[1.0]) / 2).max() <= 1
    assert np.abs(shown[1.0] - shown[0.0]).max() > 20


def test_nodes_show_their_result(client, loaded):
    graph = relit(loaded) | {"map": ours("RenderMap", gbuffer=["gbuffer", 0], map="depth", **DRAWN)}
    graph |= {
        "edit": ours("EditShading", gbuffer=["gbuffer", 0], contrast=1.5, tint="#ffffff", soften=0.0, flatten=0.0)
    }
    graph |= saved("map out", 0, source="map") | saved("edit out", 0, source="edit")
    result = client.queue(graph)
    for node, out in {"relit": "image", "map": "map out", "edit": "edit out"}.items():
        [file] = result.files(node)
        assert file["type"] == "temp"
        assert np.array_equal(client.fetch_image(file), client.fetch_image(result.files(out)[0]))


def test_previews_are_few_and_small(client, loaded):
    graph = relit(loaded, ours("AnimateLights", lights=["still", 0], frames=6, **ANIMATED))
    graph |= {"still": ours("Light", **LIGHT)}
    graph |= {
        f"{name} large": node(
            "ImageScale", image=[name, 0], upscale_method="bilinear", width=1600, height=1200, crop="disabled"
        )
        for name in ("photo", "normals", "depth")
    }
    maps = {name: [f"{name} large", 0] for name in ("normals", "depth")}
    graph["gbuffer"] = ours("MakeGBuffer", image=["photo large", 0], **maps, **MADE)
    graph["relit"]["inputs"]["lights"] = ["lights", 0]
    graph["relit"]["inputs"]["shadow"] = 0.0
    files = client.queue(graph).files("relit")
    assert [client.fetch_image(file).shape for file in files] == [(576, 768, 3)] * 4


def test_a_gbuffer_comes_back_from_its_file(client, loaded):
    save = ours("SaveGBuffer", gbuffer=["gbuffer", 0], filename_prefix="kept/ball", precision="float")
    [file] = client.queue(loaded | {"save": save}).files("save", "files")
    assert file == {"filename": "ball_00001_.gbuffer.safetensors", "subfolder": "kept", "type": "output"}
    name = "kept/ball_00001_.gbuffer.safetensors [output]"
    options = client.object_info("IntrinsicLora_LoadGBuffer")["input"]["required"]["file"][1]
    assert name in options["options"] and options["default"] in options["options"]
    before = client.queue(relit(loaded))
    again = client.queue(relit(loaded, gbuffer=ours("LoadGBuffer", file=name)))
    shown = [client.fetch_image(result.files("image")[0]) for result in (before, again)]
    assert np.array_equal(*shown)


# --- what is refused


def relit(loaded: Graph, lights: dict | None = None, gbuffer: dict | None = None, **settings: object) -> Graph:
    """Relight with one thing changed."""
    extra = {"lights": lights or ours("Light", **LIGHT)}
    if gbuffer is not None:
        extra["gbuffer"] = gbuffer
    inputs = {"gbuffer": ["gbuffer", 0], "lights": ["lights", 0], **SETTINGS, **settings}
    return loaded | extra | {"relit": ours("Relight", **inputs)} | saved("image", 0)


REFUSED = {
    "a G-buffer without normals": (
        {"gbuffer": ours("MakeGBuffer", image=["photo", 0], **MADE)},
        "gbuffer has no normals (only photo): make it with Intrinsic Decompose",
    ),
    "a normal map of another aspect": (
        {"gbuffer": ours("MakeGBuffer", image=["photo", 0], normals=["panorama", 0], **MADE)},
        "The normals map is 32 x 16 pixels and the photo 64 x 48",
    ),
    "an unknown preset": ({"preset": "noir"}, "preset must be one of none, rembrandt"),
    "an unknown mode": ({"mode": "screen"}, "mode must be one of ratio, albedo, add, not 'screen'"),
    "an unknown type": ({"lights": ours("Light", **LIGHT | {"type": "laser"})}, "type must be one of sun, point"),
    "a colour by name": (
        {"lights": ours("Light", **LIGHT | {"color": "red"})},
        "color must be a colour such as #ff8040, not 'red'",
    ),
    "a cold kelvin": ({"lights": ours("Light", **LIGHT | {"kelvin": 5.0})}, "kelvin must be 1000 to 40000"),
    "near beyond far": ({"near": 9.0}, "0 < near < far, not 9 and 4"),
    "a panorama that is none": (
        {"lights": ours("EnvironmentLight", image=["photo", 0], encoding="srgb", rotation=0.0, intensity=1.0)},
        "64 x 48 pixels: an equirectangular panorama is twice as wide as high",
    ),
    "an unknown frame": (
        {"gbuffer": ours("MakeGBuffer", image=["photo", 0], normals=["normals", 0], **MADE | {"normals_frame": "x"})},
        "normals_frame must be one of opengl, directx, opencv, controlnet",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence_on_the_node(client, loaded, name):
    changes, sentence = REFUSED[name]
    _, found = client.refusal(relit(loaded, **changes))
    assert sentence in found and "\n" not in found


@pytest.mark.parametrize(
    ("node", "values"),
    [
        ("Relight", {"preset": "noir"}),
        ("Relight", {"mode": "screen"}),
        ("Light", {"type": "laser"}),
        ("MakeGBuffer", {"depth_kind": "x"}),
        ("RenderMap", {"map": "beauty"}),
        ("RenderMap", {"frame": "unreal"}),
        ("EnvironmentLight", {"encoding": "log"}),
        ("AnimateLights", {"ease": "bounce"}),
        ("ConvertNormalMap", {"target": "maya"}),
        ("SaveEXR", {"format": "EXR float"}),
        ("SaveGBuffer", {"precision": "double"}),
        ("LoadGBuffer", {"file": "../../etc/passwd"}),
    ],
)
def test_menus_are_checked_before_anything_runs(client, node, values):
    """Also what EXR needs. The node stands alone: that sockets are empty is said beside it."""
    graph = {"bad": ours(node, **values), "shown": globals()["node"]("PreviewAny", source=["bad", 0])}
    with pytest.raises(PromptRejected) as error:
        client.queue({"bad": graph["bad"]} if node.startswith("Save") else graph)
    [value] = values.values()
    [(_, sentence)] = error.value.sentences()
    assert value in sentence or "OpenEXR" in sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"save": {"format": "EXR float"}}, "needs the package OpenEXR: pip install OpenEXR"),
        ({"save": {"format": "TIFF"}}, "format must be one of EXR half float, EXR float, PNG 16 bit"),
        ({"save": {"layers": "beauty"}}, "layers must be one of all, photo, normals"),
        ({"save": {"layers": "roughness"}}, "gbuffer has no roughness"),
        ({"save": {"filename_prefix": "../../outside"}}, "outside the output folder is not allowed"),
        ({"drawn": {"map": "confidence"}}, "gbuffer has no confidence (only normals, depth, albedo, shading, photo)"),
        ({"drawn": {"map": "depth", "scope": "movie"}}, "scope must be one of image, batch, clip"),
        ({"drawn": {"map": "depth", "gamma": 1.0, "near": "white"}}, "near must be one of near-white, near-black"),
        ({"moving": {"path": "loop"}}, "path must be one of orbit, sweep, flicker, keyframes"),
        ({"moving": {"path": "keyframes", "keyframes": "["}}, "Keyframes are JSON such as"),
        ({"edit": {"tint": "#000000"}}, "A black tint leaves no light"),
    ],
)
def test_refusals_of_the_other_nodes(client, loaded, server, changes, sentence):
    ((key, values),) = changes.items()
    nodes = {
        "save": ours("SaveEXR", gbuffer=["gbuffer", 0], filename_prefix="x", format="PNG 16 bit", layers="all"),
        "drawn": ours("RenderMap", gbuffer=["gbuffer", 0], map="normals", **DRAWN),
        "moving": ours("AnimateLights", lights=["lights", 0], frames=2, **ANIMATED),
        "edit": ours(
            "EditShading", gbuffer=["gbuffer", 0], contrast=1.0, tint="#ffffff", soften=0.0, flatten=0.0
        ),
    }  # fmt: skip
    nodes[key]["inputs"] |= values
    graph = relit(loaded) | {key: nodes[key]}
    if key == "moving":
        graph["relit"]["inputs"]["lights"] = ["moving", 0]
    elif key == "save":
        del graph["image"]  # it would run without the other
    else:
        graph |= saved("image", 0, source=key)
    assert sentence in client.refusal(graph)[1]
    assert not list(server.base.parent.glob("outside*"))


def test_wrong_sockets_and_numbers_out_of_range(client, loaded):
    with pytest.raises(PromptRejected, match="mismatch"):
        client.queue(relit(loaded) | {"relit": ours("Relight", gbuffer=["photo", 0], **SETTINGS)})
    with pytest.raises(PromptRejected, match="bigger than max"):
        client.queue(relit(loaded, shadow=1.5))
    numbers = relit(loaded, ours("AnimateLights", lights=["still", 0], frames=3, **ANIMATED))
    numbers |= {"still": ours("Light", **LIGHT), "two": node("RepeatImageBatch", image=["photo", 0], amount=2)}
    numbers["gbuffer"] = ours("MakeGBuffer", image=["two", 0], normals=["normals", 0], **MADE)
    with pytest.raises(ExecutionError, match="2 pictures and 3 frames of lights: give one picture"):
        client.queue(numbers)
    assert client.queue(relit(loaded)).files("image")  # and the server goes on


def test_interrupt_between_frames(client, loaded):
    graph = relit(loaded, ours("AnimateLights", lights=["still", 0], frames=2000, **ANIMATED))
    graph["still"] = ours("Light", **LIGHT)

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "relit" and data["value"] >= 3:
            client.interrupt()

    with pytest.raises(Interrupted):
        client.queue(graph, on_event=stop)
    assert client.queue(relit(loaded)).files("image")
