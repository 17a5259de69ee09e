"""EXR, against OpenEXR's own view of the file (header and separate channels) and hand-placed windows."""

import sys

import numpy as np
import OpenEXR
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora.intrinsics.color import srgb_to_linear
from intrinsic_lora.intrinsics.exr import read_exr, write_exr
from intrinsic_lora.intrinsics.pictures import read_picture
from intrinsic_lora.intrinsics.relight import read_panorama

SCANLINES = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def plane(rng, height=4, width=6):
    return rng.standard_normal((height, width)).astype(np.float32)


def write_raw(path, channels, **header):
    # The binding writes into the dicts it is given, hence the copies.
    with OpenEXR.File({**SCANLINES, **header}, dict(channels)) as file:
        file.write(str(path))


def window(x0, y0, x1, y1):
    return (np.array([x0, y0], np.int32), np.array([x1, y1], np.int32))


@pytest.mark.parametrize("half", [False, True])
def test_channel_names_types_and_values_as_openexr_sees_them(tmp_path, half):
    layers = {
        "rgb": torch.rand(3, 5, 7),
        "normals": torch.randn(3, 5, 7),
        "depth": torch.rand(1, 5, 7),
        "albedo": torch.rand(3, 5, 7) * 4,
        "shading": torch.rand(1, 5, 7),
        "light": torch.rand(4, 5, 7),
    }
    path = tmp_path / "ma ps é 日本.exr"
    write_exr(path, layers, half=half)

    expected = {
        **dict(zip("RGB", layers["rgb"], strict=True)),
        **dict(zip(("normals.X", "normals.Y", "normals.Z"), layers["normals"], strict=True)),
        "depth.Z": layers["depth"][0],
        **dict(zip(("albedo.R", "albedo.G", "albedo.B"), layers["albedo"], strict=True)),
        "shading.Y": layers["shading"][0],
        **dict(zip(("light.R", "light.G", "light.B", "light.A"), layers["light"], strict=True)),
    }
    with OpenEXR.File(str(path), separate_channels=True) as file:
        assert file.header()["compression"] == OpenEXR.ZIP_COMPRESSION
        assert {channel.name for channel in file.header()["channels"]} == expected.keys()
        for name, channel in file.channels().items():
            assert channel.pixels.dtype == (np.float16 if half else np.float32)
            np.testing.assert_array_equal(channel.pixels, expected[name].numpy().astype(channel.pixels.dtype))
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.dictionaries(
        st.sampled_from(["rgb", "normals", "depth", "a.b", "shading"]), st.sampled_from([1, 3, 4])
    ),
    seed=st.integers(0, 99),
)
def test_round_trip(tmp_path_factory, height, width, channels, seed):
    channels = channels or {"depth": 1}
    generator = torch.Generator().manual_seed(seed)
    layers = {name: torch.randn(c, height, width, generator=generator) * 1e4 for name, c in channels.items()}
    path = tmp_path_factory.mktemp("exr") / "x.exr"
    write_exr(path, layers)
    back = read_exr(path)
    assert back.keys() == layers.keys()
    for name, layer in layers.items():
        assert torch.equal(back[name], layer), name


def test_half_rounds_to_nearest_and_refuses_what_it_cannot_hold(tmp_path):
    x = torch.rand(1, 8, 8)
    write_exr(tmp_path / "h.exr", {"shading": x}, half=True)
    assert (read_exr(tmp_path / "h.exr")["shading"] - x).abs().max() <= 2**-12  # half an ulp below 1
    with pytest.raises(ValueError, match="depth exceeds 65504"):
        write_exr(tmp_path / "big.exr", {"depth": x + 1e5}, half=True)
    assert not (tmp_path / "big.exr").exists()


def test_bfloat16_and_grad_tensors_are_written(tmp_path):
    x = torch.rand(3, 2, 2).bfloat16().requires_grad_()
    write_exr(tmp_path / "x.exr", {"rgb": x})
    assert torch.equal(read_exr(tmp_path / "x.exr")["rgb"], x.detach().float())


@pytest.mark.parametrize(
    "layers",
    [
        {},
        {"a": torch.zeros(3, 4, 4), "b": torch.zeros(3, 4, 5)},
        {"a": torch.zeros(1, 3, 4, 4)},
        {"a": torch.zeros(3, 0, 4)},
        {"a": torch.zeros(2, 4, 4)},
        {"a": torch.zeros(0, 4, 4)},
    ],
    ids=["none", "sizes", "batch", "empty", "two", "zero"],
)
def test_layers_that_cannot_be_written(tmp_path, layers):
    with pytest.raises(ValueError, match=r"An EXR needs layers|can be named"):
        write_exr(tmp_path / "x.exr", layers)
    assert not list(tmp_path.iterdir())


def test_channels_are_stacked_in_colour_order_whatever_their_names(tmp_path, rng):
    names = ["R", "G", "B", "A", "ViewLayer.Combined.R", "ViewLayer.Combined.G", "ViewLayer.Combined.B", "n.x", "n.y"]
    channels = {name: plane(rng) for name in [*names, "n.z", "Z", "ViewLayer.Mist.V", "crypto.red"]}
    write_raw(tmp_path / "x.exr", channels)
    layers = read_exr(tmp_path / "x.exr")
    expected = {
        "rgb": ["R", "G", "B", "A"],
        "ViewLayer.Combined": ["ViewLayer.Combined." + c for c in "RGB"],
        "n": ["n.x", "n.y", "n.z"],
        "depth": ["Z"],
        "ViewLayer.Mist": ["ViewLayer.Mist.V"],
        "crypto": ["crypto.red"],
    }
    assert layers.keys() == expected.keys()
    for layer, members in expected.items():
        np.testing.assert_array_equal(layers[layer].numpy(), np.stack([channels[name] for name in members]))


def test_names_of_colours_in_any_case_and_spelling(tmp_path, rng):
    red, green, blue, alpha = (plane(rng) for _ in range(4))
    spellings = [
        ("R", "G", "B", "A"),
        ("r", "g", "b", "a"),
        ("red", "green", "blue", "alpha"),
        ("Red", "Green", "Blue", "A"),
    ]
    for names in spellings:
        for layer in ("", "normals.", "a.b."):
            named = dict(zip((layer + name for name in names), (red, green, blue, alpha), strict=True))
            write_raw(tmp_path / "x.exr", named)
            found = read_exr(tmp_path / "x.exr")
            np.testing.assert_array_equal(found[layer[:-1] or "rgb"].numpy(), np.stack([red, green, blue, alpha]))
    write_raw(tmp_path / "twice.exr", {"R": red, "red": green, "G": green, "B": blue})
    with pytest.raises(ValueError, match=r"twice\.exr: two channels of its layer rgb mean R\.$"):
        read_exr(tmp_path / "twice.exr")


def test_the_primaries_of_rec_709_are_stated_as_openexr_sees_them(tmp_path):
    write_exr(tmp_path / "x.exr", {"rgb": torch.rand(3, 2, 2)})
    with OpenEXR.File(str(tmp_path / "x.exr"), header_only=True) as file:
        stated = file.header()["chromaticities"]
    # ITU-R BT.709-6, table 1
    np.testing.assert_allclose(stated, (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, 0.3127, 0.3290), atol=1e-7)


AP1 = (0.713, 0.293, 0.165, 0.830, 0.128, 0.044, 0.32168, 0.33767)
# Published: AP1 to Rec. 709 with the Bradford transform (ACES 1.x, as in OpenColorIO's built-in configurations), and
# Rec. 2020 to Rec. 709 (ITU-R BT.2087-0, equation 10).
PUBLISHED = {
    AP1: ((1.70505, -0.62179, -0.08326), (-0.13026, 1.14080, -0.01055), (-0.02400, -0.12897, 1.15297)),
    (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290): (
        (1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187),
    ),
}  # fmt: skip


@pytest.mark.parametrize("chromaticities", PUBLISHED)
def test_photos_and_panoramas_of_other_primaries_become_rec_709(tmp_path, rng, chromaticities):
    colour = rng.random((8, 16, 3), dtype=np.float32) * 0.5 + 0.4  # far from the border of either gamut
    channels = dict(zip("RGB", np.moveaxis(colour, -1, 0).copy(), strict=True))
    write_raw(tmp_path / "x.exr", channels, chromaticities=chromaticities)
    expected = colour @ np.array(PUBLISHED[chromaticities], np.float32).T
    panorama = read_panorama(tmp_path / "x.exr")[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(panorama, expected.clip(min=0), atol=2e-4)  # published to four or five decimals
    photo = srgb_to_linear(read_picture(tmp_path / "x.exr", clip=False).rgb)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(photo, panorama, atol=1e-5)
    white = {name: np.ones((8, 16), np.float32) for name in "RGB"}
    write_raw(tmp_path / "white.exr", white, chromaticities=chromaticities)
    np.testing.assert_allclose(read_panorama(tmp_path / "white.exr").numpy(), 1, atol=1e-5)


def test_an_infinite_sun_stays_one_and_senseless_primaries_are_refused(tmp_path):
    sky = {name: np.ones((8, 16), np.float32) for name in "RGB"}
    for channel in sky.values():
        channel[2, 3] = np.inf
    write_raw(tmp_path / "sun.exr", sky, chromaticities=AP1)
    assert (read_panorama(tmp_path / "sun.exr")[..., 2, 3] == 65504).all()
    for wrong in ((0.3,) * 8, (0.0,) * 8, (float("nan"),) * 8):
        write_raw(tmp_path / "x.exr", sky, chromaticities=wrong)
        with pytest.raises(ValueError, match=r"x\.exr: its chromaticities .* are not those of a colour space\.$"):
            read_panorama(tmp_path / "x.exr")


def test_a_large_window_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    channels = {name: np.zeros((4, 6), np.float32) for name in "RGB"}
    write_raw(tmp_path / "x.exr", channels, displayWindow=window(0, 0, 13000, 8000))
    for read in (read_exr, read_panorama, read_picture):
        with pytest.raises(
            ValueError, match=r"x\.exr \(.*\) needs [45]\.\d GB of memory, more than the limit of 4 GB"
        ):
            read(tmp_path / "x.exr")
    monkeypatch.setenv("INTRINSIC_LORA_MEMORY_GB", "0.00001")
    write_raw(tmp_path / "x.exr", {name: np.zeros((64, 64), np.float32) for name in "RGB"})
    with pytest.raises(ValueError, match="more than the limit"):
        read_exr(tmp_path / "x.exr")


def test_parts_of_a_multi_part_file_become_layers(tmp_path, rng):
    rgb, albedo, depth = plane(rng), plane(rng), plane(rng)
    parts = [
        OpenEXR.Part(dict(SCANLINES), {name: rgb for name in "RGB"}, "rgba"),
        OpenEXR.Part(dict(SCANLINES), {name: albedo for name in "RGB"}, "albedo"),
        OpenEXR.Part(dict(SCANLINES), {"depth.Z": depth}, "depth part"),
    ]
    OpenEXR.File(parts).write(str(tmp_path / "x.exr"))
    layers = read_exr(tmp_path / "x.exr")
    assert {name: tuple(layer.shape) for name, layer in layers.items()} == {
        "rgb": (3, 4, 6),
        "albedo": (3, 4, 6),
        "depth": (1, 4, 6),
    }
    np.testing.assert_array_equal(layers["albedo"][1].numpy(), albedo)
    np.testing.assert_array_equal(layers["depth"][0].numpy(), depth)


@pytest.mark.parametrize("pixel_type", [np.float16, np.uint32])
def test_half_and_integer_channels_become_float32(tmp_path, pixel_type):
    ids = np.arange(24, dtype=pixel_type).reshape(4, 6)
    write_raw(tmp_path / "x.exr", {"IndexOB.X": ids})
    assert torch.equal(read_exr(tmp_path / "x.exr")["IndexOB"], torch.arange(24.0).reshape(1, 4, 6))


@pytest.mark.parametrize("x0, y0", [(0, 0), (3, 2), (-2, -1), (7, 5), (-9, 0), (0, 30)])
def test_the_display_window_is_what_is_returned(tmp_path, rng, x0, y0):
    pixels = plane(rng, 4, 6)
    display = window(1, 1, 9, 6)  # 9 wide, 6 high
    write_raw(
        tmp_path / "x.exr",
        {"Y": pixels},
        dataWindow=window(1 + x0, 1 + y0, 6 + x0, 4 + y0),
        displayWindow=display,
    )
    expected = np.zeros((6, 9), np.float32)
    for row in range(6):
        for column in range(9):
            if 0 <= row - y0 < 4 and 0 <= column - x0 < 6:
                expected[row, column] = pixels[row - y0, column - x0]
    np.testing.assert_array_equal(read_exr(tmp_path / "x.exr")["rgb"][0].numpy(), expected)


def test_damaged_files_are_refused_whole(tmp_path, rng):
    path = tmp_path / "x.exr"
    write_raw(path, {name: plane(rng, 120, 40) for name in "RGB"})
    data = path.read_bytes()
    for length in [0, 3, 60, 300, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"Cannot read the EXR file .*x\.exr: (it is dam|OpenEXR could not)"):
            read_exr(path)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nothing\.exr"):
        read_exr(tmp_path / "nothing.exr")


def test_a_later_damaged_part_is_not_dropped_silently(tmp_path, rng):
    parts = [OpenEXR.Part(dict(SCANLINES), {"Y": plane(rng, 64, 64)}, name) for name in ("one", "two")]
    OpenEXR.File(parts).write(str(tmp_path / "x.exr"))
    data = (tmp_path / "x.exr").read_bytes()
    (tmp_path / "x.exr").write_bytes(data[: len(data) - 2000])
    with pytest.raises(ValueError, match="Cannot read the EXR file"):
        read_exr(tmp_path / "x.exr")


def test_subsampled_chroma_is_refused(tmp_path, rng):
    chroma = {name: OpenEXR.Channel(name, plane(rng), 2, 2) for name in ("RY", "BY")}
    write_raw(tmp_path / "x.exr", {"Y": plane(rng), **chroma})
    with pytest.raises(ValueError, match=r"x\.exr: deep pixels and subsampled channels"):
        read_exr(tmp_path / "x.exr")


def test_a_bomb_is_refused_from_its_header(tmp_path):
    write_raw(tmp_path / "x.exr", {"Y": np.zeros((1, 1), np.float32)}, displayWindow=window(0, 0, 99999, 99999))
    with pytest.raises(ValueError, match="100000 x 100000 pixels"):
        read_exr(tmp_path / "x.exr")


def test_without_openexr_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    write_exr(tmp_path / "x.exr", {"depth": torch.zeros(1, 2, 2)})
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ImportError, match="Writing EXR needs the package OpenEXR: pip install OpenEXR"):
        write_exr(tmp_path / "x.exr", {"depth": torch.zeros(1, 2, 2)})
    with pytest.raises(ImportError, match="Reading EXR needs the package OpenEXR: pip install OpenEXR"):
        read_exr(tmp_path / "x.exr")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.exr"
    write_exr(path, {"depth": torch.ones(1, 2, 2)})
    before = path.read_bytes()

    class Broken(OpenEXR.File):
        def write(self, name):
            super().write(name)
            raise RuntimeError("disk full")

    monkeypatch.setattr(OpenEXR, "File", Broken)
    with pytest.raises(RuntimeError, match="disk full"):
        write_exr(path, {"depth": torch.zeros(1, 2, 2)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
