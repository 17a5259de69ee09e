"""Panorama files. Radiance files are written here byte by byte, and by imagecodecs."""

import imagecodecs
import numpy as np
import OpenEXR
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora.intrinsics.color import srgb_to_linear
from intrinsic_lora.intrinsics.exr import write_exr
from intrinsic_lora.intrinsics.relight import Environment, read_panorama
from intrinsic_lora.intrinsics.relight.environment import irradiance
from PIL import Image

HEADER = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 16\n"


@pytest.fixture
def rgbe():
    """(8,16,4) mantissas and exponent: runs and noise, from deep shadow to a sun."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 16, 4), dtype=np.uint8)
    pixels[..., :3] |= 128  # normalised, as encoders leave them
    pixels[..., 3] = rng.integers(118, 146, (8, 16))
    pixels[2:4, 3:12] = (200, 150, 255, 145)
    pixels[5] = (130, 140, 150, 128)
    return pixels


def radiance_of(rgbe):
    return rgbe[..., :3] * np.exp2(rgbe[..., 3:].astype(np.float64) - 136)


def run_length_encoded(rgbe):
    """Radiance's own encoding: per row 2 2 width, then R, G, B, E apart: runs (128 + n, v), literals (n, ...)."""
    out = bytearray()
    for row in rgbe:
        out += bytes([2, 2, len(row) >> 8, len(row) & 255])
        for plane in row.T:
            i = 0
            while i < len(plane):
                run = 1
                while i + run < len(plane) and plane[i + run] == plane[i]:
                    run += 1
                if run > 2:
                    out += bytes([128 + run, plane[i]])
                    i += run
                else:
                    out += bytes([1, plane[i]])
                    i += 1
    return bytes(out)


def assert_is(path, expected):
    found = read_panorama(path)
    assert found.dtype == torch.float32 and found.shape == (1, 3, *expected.shape[:2])
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, rtol=1e-6)


def test_radiance_run_length_encoded_and_flat(tmp_path, rgbe):
    encoded = run_length_encoded(rgbe)
    assert len(encoded) < rgbe.nbytes * 1.7 and b"\x82" in encoded  # there are runs
    for name, body in (("rle.hdr", encoded), ("flat.hdr", rgbe.tobytes()), ("a panorama é.txt", encoded)):
        (tmp_path / name).write_bytes(HEADER + body)
        assert_is(tmp_path / name, radiance_of(rgbe))
    assert read_panorama(tmp_path / "rle.hdr").max() > 500


def with_old_run_lengths(rgbe):
    """As Radiance wrote before 1991: 1 1 1 n repeats the pixel before n times; further counts weigh 256 times."""
    out = bytearray()
    for row in rgbe:
        x = 0
        while x < len(row):
            run = 1
            while x + run < len(row) and (row[x + run] == row[x]).all():
                run += 1
            out += bytes(row[x])
            count = run - 1
            while count:
                out += bytes([1, 1, 1, count & 255])
                count >>= 8
            x += run
    return bytes(out)


def test_radiance_lines_of_every_kind(tmp_path, rgbe):
    lines = {"encoded": [run_length_encoded(row[None]) for row in rgbe], "flat": [row.tobytes() for row in rgbe]}
    lines["old"] = [with_old_run_lengths(row[None]) for row in rgbe]
    kinds = ["flat", "encoded", "old", "encoded", "old", "flat", "encoded", "flat"]
    mixed = b"".join(lines[kind][y] for y, kind in enumerate(kinds))
    bodies = {"mixed": mixed, "old": b"".join(lines["old"]), "tail": mixed + b"\n", "long": mixed + bytes(999)}
    assert len(bodies["old"]) < rgbe.nbytes
    for name, body in bodies.items():
        (tmp_path / f"{name}.hdr").write_bytes(HEADER + body)
        assert_is(tmp_path / f"{name}.hdr", radiance_of(rgbe))
    rgbe[0, 0] = (2, 2, 0, 128)  # looks like the start of an encoded line of 128 pixels
    (tmp_path / "start.hdr").write_bytes(HEADER + rgbe.tobytes())
    assert_is(tmp_path / "start.hdr", radiance_of(rgbe))


def test_old_run_lengths_beyond_a_byte_and_narrow_pictures(tmp_path):
    wide = np.full((2, 5, 4), (200, 150, 130, 130), np.uint8)
    for rgbe in (wide.repeat(140, 1).repeat(175, 0), wide[:, :4]):
        height, width = rgbe.shape[:2]
        header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
        (tmp_path / "sky.hdr").write_bytes(header + with_old_run_lengths(rgbe))
        assert_is(tmp_path / "sky.hdr", radiance_of(rgbe))


@pytest.mark.parametrize(
    "body",
    [
        bytes([1, 1, 1, 5]) + bytes(999),  # nothing to repeat
        bytes([9, 9, 9, 128, 1, 1, 1, 16]) + bytes(999),  # beyond the line
        bytes([2, 2, 0, 16, 128 + 17, 7]) + bytes(999),  # likewise
        bytes([2, 2, 0, 16, 0]) + bytes(999),  # of no length
        bytes(4 * 8 * 16 - 1),
    ],
)
def test_damaged_runs(tmp_path, body):
    (tmp_path / "sky.hdr").write_bytes(HEADER + body)
    with pytest.raises(ValueError, match=r"sky\.hdr: its pixels are damaged or cut off\.$"):
        read_panorama(tmp_path / "sky.hdr")


@pytest.mark.parametrize(
    "header",
    [
        b"#?RGBE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 16\n",
        b"#?RADIANCE\n\n-Y 8 +X 16\n",  # FORMAT is optional
        b"#?RADIANCE\r\nFORMAT=32-bit_rle_rgbe\r\n\r\n-Y 8 +X 16\r\n",
        b"#?RADIANCE\n# Made with a program\nEXPOSURE=2.0\nGAMMA=1\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 16\n",
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\npfilt -e 2\nEXPOSURE= 0.5\n\n-Y 8 +X 16\n",
        b"#?RADIANCE\nSOFTWARE=" + b"x" * 5000 + b"\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 16\n",
    ],
)
def test_radiance_headers_as_programs_write_them(tmp_path, rgbe, header):
    (tmp_path / "sky.hdr").write_bytes(header + run_length_encoded(rgbe))
    assert_is(tmp_path / "sky.hdr", radiance_of(rgbe))


def test_radiance_from_imagecodecs(tmp_path):
    image = np.random.default_rng(0).lognormal(0, 3, (32, 8, 3)).astype(np.float32).repeat(8, 1)
    (tmp_path / "sky.hdr").write_bytes(imagecodecs.rgbe_encode(image))
    found = read_panorama(tmp_path / "sky.hdr")[0].permute(1, 2, 0).numpy()
    assert (np.abs(found - image) <= image.max(-1, keepdims=True) / 128).all()  # 8 bits below the largest channel
    assert found.max() > 1000


def test_exr(tmp_path):
    image = torch.rand(3, 8, 16, generator=torch.manual_seed(0)) * 3
    image[:, 2, 5] = 9e4
    write_exr(tmp_path / "rgb.exr", {"rgb": image})
    assert torch.equal(read_panorama(tmp_path / "rgb.exr")[0], image)
    write_exr(tmp_path / "alpha.exr", {"rgb": torch.cat([image, torch.rand(1, 8, 16)]), "depth": torch.rand(1, 8, 16)})
    assert torch.equal(read_panorama(tmp_path / "alpha.exr")[0], image)
    write_exr(tmp_path / "named.exr", {"sky": image})
    assert torch.equal(read_panorama(tmp_path / "named.exr")[0], image)
    write_exr(tmp_path / "grey.exr", {"rgb": image[:1]})
    assert torch.equal(read_panorama(tmp_path / "grey.exr")[0], image[:1].expand(3, -1, -1))
    write_exr(tmp_path / "two.exr", {"left": image, "right": image})
    with pytest.raises(ValueError, match=r"two\.exr: it has the layers left, right, .* save it as plain R, G, B"):
        read_panorama(tmp_path / "two.exr")


def test_infinite_suns_and_negative_light_are_cleaned_and_nan_refused(tmp_path):
    image = np.ones((8, 16, 3), np.float16)
    image[1, 2] = np.inf
    image[3, 4] = -0.25
    image[4, 4] = -np.inf

    def write():
        channels = {"RGB": image.copy()}
        with OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, channels) as file:
            file.write(str(tmp_path / "sky.exr"))

    write()
    found = read_panorama(tmp_path / "sky.exr")
    expected = torch.ones(1, 3, 8, 16)
    expected[..., 1, 2], expected[..., 3, 4], expected[..., 4, 4] = 65504, 0, 0
    assert torch.equal(found, expected)
    image[0, 0] = np.nan
    write()
    with pytest.raises(ValueError, match=r"sky\.exr holds NaN values"):
        read_panorama(tmp_path / "sky.exr")


def test_ordinary_pictures_are_decoded_from_srgb(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "sky.png")
    expected = srgb_to_linear(torch.from_numpy(levels / 255)).permute(2, 0, 1)[None]
    torch.testing.assert_close(read_panorama(tmp_path / "sky.png"), expected)


def test_a_float_tiff_keeps_its_sun(tmp_path):
    image = np.random.default_rng(0).lognormal(0, 3, (8, 16, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "sky.tif", image, photometric="rgb")
    found = read_panorama(tmp_path / "sky.tif")[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, image, rtol=1e-5)


@pytest.mark.parametrize(("width", "good"), [(14, True), (15, True), (18, True), (19, False), (8, False), (13, False)])
def test_a_panorama_is_twice_as_wide_as_high_give_or_take_rounding(tmp_path, width, good):
    write_exr(tmp_path / "sky.exr", {"rgb": torch.rand(3, 8, width)})
    if good:
        assert read_panorama(tmp_path / "sky.exr").shape == (1, 3, 8, width)
    else:
        with pytest.raises(ValueError, match=rf"sky\.exr is {width} x 8 pixels: .* twice as wide as it is high"):
            read_panorama(tmp_path / "sky.exr")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty"),
        (b"#?RADIANCE", "its header is damaged"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n-Y 8 +X 16\n" + bytes(999), "its header is damaged"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_xyze\n\n-Y 8 +X 16\n" + bytes(999), "CIE XYZ colours: convert it to RGB"),
        (b"#?RADIANCE\n\n+X 16 -Y 8\n" + bytes(999), r"its size is '\+X 16 -Y 8', not '-Y <height> \+X <width>'"),
        (b"#?RADIANCE\n\n-Y 0 +X 0\n" + bytes(999), "its size is"),
        (b"#?RADIANCE\n\n-Y 99999999 +X 199999999\n" + bytes(999), "needs .* GB of memory, more than the limit"),
        (HEADER + bytes(100), "its pixels are damaged or cut off"),
        (HEADER, "its pixels are damaged or cut off"),
        (b"v/1\x01" + bytes(99), "EXR"),
        (b"not a picture at all", "not a picture in a supported format"),
    ],
)
def test_bad_files_get_one_sentence_that_names_them(tmp_path, data, sentence):
    (tmp_path / "sky.hdr").write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_panorama(tmp_path / "sky.hdr")
    assert "sky.hdr" in str(caught.value) and "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*sky\.hdr"):
        read_panorama(tmp_path / "sky.hdr")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_radiance_file_is_refused_or_read_as_finite_light(tmp_path_factory, data):
    rng = np.random.default_rng(0)
    whole = bytearray(HEADER + run_length_encoded(rng.integers(0, 4, (8, 16, 4), dtype=np.uint8) * 60))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "sky.hdr"
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    try:
        image = read_panorama(path)
    except ValueError as error:
        assert "sky.hdr" in str(error)
    else:
        assert image.isfinite().all() and (image >= 0).all()
        assert irradiance(Environment(image=image), torch.tensor([0.0, 1, 0])[None, :, None, None]).isfinite().all()
