"""Colour profiles, against closed forms: primaries as matrices, curves as formulas, a CMYK profile spelled out."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from intrinsic_lora.intrinsics.pictures import picture_from_pil, read_picture
from intrinsic_lora.intrinsics.profiles import profile_mode
from intrinsic_lora.tests.intrinsics.test_pictures import raw_png
from PIL import Image, ImageCms

WHITE = (0.3127, 0.3290)  # D65, so that no chromatic adaptation is between these spaces
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
COLOURS = np.array(
    [[60, 180, 70], [200, 60, 50], [128, 128, 128], [10, 20, 30], [255, 255, 255], [0, 0, 0], [90, 90, 200]]
)


def to_xyz(primaries):
    """Compute the matrix from linear RGB to XYZ, with columns scaled to give the white point."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    x, y = WHITE
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


def decode_srgb(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def encode_srgb(v):
    v = v.clip(0, 1)
    return np.where(v <= 0.0031308, v * 12.92, 1.055 * v ** (1 / 2.4) - 0.055)


def in_srgb(values, primaries, decode):
    """(..., 3) encoded values of a space -> sRGB-encoded, what sRGB does not have clipped."""
    return encode_srgb(decode(values) @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T)


def icc(primaries, gamma):
    flat = [number for primary in primaries for number in primary]
    return imagecodecs.cms_profile("rgb", whitepoint=[*WHITE, 1.0], primaries=flat, gamma=gamma)


SPACES = {"p3": (P3, 2.2), "adobe": (ADOBE, 2.2), "linear": (SRGB, 1.0), "gamma 1.8": (SRGB, 1.8)}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", ["png8", "rgba", "png16", "webp", "tif8", "tif16", "avif"])
def test_wide_gamut_pictures_come_in_as_srgb(tmp_path, space, kind):
    primaries, gamma = SPACES[space]
    path = tmp_path / f"x.{kind.rstrip('0123456789').replace('rgba', 'png')}"
    array = np.broadcast_to(COLOURS[:, None], (7, 8, 3)).astype(np.uint8)
    array, profile = np.repeat(array, 8, 0), icc(primaries, gamma)  # 8 x 8 of a colour, for the lossy
    if kind == "png16":
        chunk = b"x\0\0" + zlib.compress(profile)
        path.write_bytes(raw_png(array.astype(np.uint16) * 257, 2, 16, (b"iCCP", chunk)))
    elif kind == "tif16":
        tifffile.imwrite(path, array.astype(np.uint16) * 257, photometric="rgb", iccprofile=profile)
    elif kind == "rgba":
        Image.fromarray(np.dstack([array, np.full((56, 8), 255, np.uint8)])).save(path, icc_profile=profile)
    else:
        lossless = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
        Image.fromarray(array).save(path, icc_profile=profile, **lossless)
    rgb = read_picture(path).rgb[0, :, 4::8, 4].T.numpy()  # (7, 3)
    expected = in_srgb(COLOURS / 255, primaries, lambda v: v**gamma)
    # 16 bits are kept; 8 bits round once more than the formula; AVIF is a level off, which a steep curve stretches.
    level = 3 / 257 if kind in ("png16", "tif16") else 2 if kind != "avif" else 14 if gamma == 1 else 5
    np.testing.assert_allclose(rgb, expected, atol=level / 255)


def test_sixteen_bits_stay_sixteen(tmp_path):
    ramp = np.arange(0, 65536, 16, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", np.stack([ramp] * 3, -1)[None], photometric="rgb", iccprofile=icc(P3, 1.8))
    rgb = read_picture(tmp_path / "x.tif").rgb[0, 1, 0].numpy()
    np.testing.assert_allclose(rgb, encode_srgb((ramp / 65535) ** 1.8), atol=3 / 65535)
    assert len(np.unique(rgb[1000:])) == len(rgb) - 1000  # no two of these levels have become one


def test_srgb_in_its_versions_changes_no_bit(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    curve = decode_srgb(np.linspace(0, 1, 1024)).astype(np.float32)
    flat = [number for primary in SRGB for number in primary]
    table = imagecodecs.cms_profile("rgb", whitepoint=[*WHITE, 1.0], primaries=flat, transferfunction=curve)
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), table):
        Image.fromarray(array).save(tmp_path / "x.png", icc_profile=profile)
        assert profile_mode(profile) is None
        np.testing.assert_array_equal((read_picture(tmp_path / "x.png").rgb[0] * 255).round().permute(1, 2, 0), array)


def test_float_tiff_with_a_profile_stays_linear_and_unclipped(tmp_path):
    linear = np.float32([[[0.5, 0.25, 0.1], [3.0, 2.0, 1.0]]])
    tifffile.imwrite(tmp_path / "x.tif", linear, photometric="rgb", iccprofile=icc(P3, 1.0))
    rgb = read_picture(tmp_path / "x.tif", clip=False).rgb[0].permute(1, 2, 0).numpy()
    expected = linear @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(P3)).T
    np.testing.assert_allclose(decode_srgb(rgb), expected, atol=2e-3)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_profiles(mode):
    grey = imagecodecs.cms_profile("gray", gamma=1.0)
    image = Image.new("L", (4, 4), 100).convert("L" if mode != "LA" else "LA")
    if mode == "1":
        image = Image.new("1", (4, 4), 1)
    image.info["icc_profile"] = grey
    expected = 1.0 if mode == "1" else encode_srgb(np.array(100 / 255))
    np.testing.assert_allclose(picture_from_pil(image).rgb, expected, atol=1 / 255)
    deep = Image.fromarray(np.full((3, 3), 100 * 257, np.uint16))
    deep.info["icc_profile"] = grey
    np.testing.assert_allclose(picture_from_pil(deep).rgb, encode_srgb(np.array(100 / 255)), atol=3 / 65535)


def cmyk_profile():
    """Four inks to L*a*b*, two grid points each: L* falls evenly with C, M and Y to nothing, and with K alone too."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    clut = b"".join(bytes([round(255 * (1 - (c + m + y) / 3) * (1 - k)), 128, 128]) for c, m, y, k in corners)
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + bytes(range(256)) * 4 + clut + bytes(range(256)) * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    offset = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII4sII", 2, b"A2B0", offset, len(table), b"wtpt", offset + len(table), len(white))
    size = offset + len(table) + len(white)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + tags + table + white


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk_with_its_profile(tmp_path, suffix):
    # L* 50 is a luminance of ((50 + 16) / 116) ** 3.
    half = encode_srgb(np.array(((50 + 16) / 116) ** 3))
    for ink, grey in (((0, 0, 0, 0), 1.0), ((0, 0, 0, 255), 0.0), ((255, 255, 255, 0), 0.0), ((0, 0, 0, 128), half)):
        options = {"quality": 100} if suffix == "jpg" else {}
        Image.new("CMYK", (16, 16), ink).save(tmp_path / f"x.{suffix}", icc_profile=cmyk_profile(), **options)
        np.testing.assert_allclose(read_picture(tmp_path / f"x.{suffix}").rgb, grey, atol=2 / 255)


@pytest.mark.parametrize(
    "profile",
    [b"", b"no profile at all" * 20, icc(P3, 2.2)[:200], cmyk_profile()],
    ids=["empty", "text", "cut", "cmyk"],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_broken_and_foreign_profiles_mean_srgb(tmp_path, profile, bits):
    array = np.broadcast_to(COLOURS[:, None], (7, 2, 3)).astype(np.uint16 if bits == 16 else np.uint8)
    array = array * (257 if bits == 16 else 1)
    for chunk in (b"x\0\0" + zlib.compress(profile), b"x\0\0garbage", b""):
        (tmp_path / "x.png").write_bytes(raw_png(array, 2, bits, (b"iCCP", chunk)))
        np.testing.assert_allclose(read_picture(tmp_path / "x.png").rgb[0, :, :, 0].T, COLOURS / 255, atol=1e-6)


def gama(value):
    return b"gAMA", struct.pack(">I", round(value * 100000))


def chrm(primaries):
    numbers = [*WHITE, *(number for primary in primaries for number in primary)]
    return b"cHRM", struct.pack(">8I", *(round(number * 100000) for number in numbers))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("chunks", "primaries", "decode"),
    [
        ([gama(1 / 2.2)], SRGB, decode_srgb),  # what is written for sRGB
        ([gama(1.0)], SRGB, lambda v: v),
        ([gama(1 / 1.8)], SRGB, lambda v: v**1.8),
        ([gama(1 / 2.2), chrm(P3)], P3, decode_srgb),
        ([gama(1.0), (b"sRGB", b"\0")], SRGB, decode_srgb),
        ([gama(1.0), (b"iCCP", b"x\0\0" + zlib.compress(icc(P3, 2.2)))], P3, lambda v: v**2.2),
        ([(b"cICP", bytes([12, 13, 0, 1]))], P3, decode_srgb),
        ([(b"cICP", bytes([1, 8, 0, 1])), gama(1 / 1.8)], SRGB, lambda v: v),
        ([(b"cICP", bytes([9, 16, 0, 1]))], SRGB, decode_srgb),  # PQ, which no picture for a screen of today has
        ([gama(0)], SRGB, decode_srgb),
        ([gama(1.0), (b"cHRM", bytes(32))], SRGB, decode_srgb),  # no such space
    ],
)
def test_the_colours_a_png_states_without_a_profile(tmp_path, chunks, primaries, decode, bits):
    array = np.broadcast_to(COLOURS[:, None], (7, 2, 3)).astype(np.uint16 if bits == 16 else np.uint8)
    (tmp_path / "x.png").write_bytes(raw_png(array * (257 if bits == 16 else 1), 2, bits, *chunks))
    rgb = read_picture(tmp_path / "x.png").rgb[0, :, :, 0].T.numpy()
    np.testing.assert_allclose(rgb, in_srgb(COLOURS / 255, primaries, decode), atol=(2 if bits == 8 else 1) / 255)


def test_a_user_s_pillow_image_is_converted_once():
    image = Image.new("RGB", (4, 4), (60, 180, 70))
    image.info["icc_profile"] = icc(P3, 2.2)
    once = picture_from_pil(image).rgb
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc(P3, 2.2)))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
    torch.testing.assert_close(picture_from_pil(converted).rgb, once, atol=1.01 / 255, rtol=0)
