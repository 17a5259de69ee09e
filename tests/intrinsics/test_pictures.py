"""Pictures in and out, against the writers and readers of Pillow, imagecodecs, tifffile and OpenEXR."""

import json
import os
import struct
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import OpenEXR
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora.intrinsics.pictures import (
    picture_from_pil,
    read_picture,
    write_json,
    write_npz,
    write_png,
)
from intrinsic_lora.intrinsics.vocabulary import PICTURE_SUFFIXES
from PIL import Image, ImageOps

DATA = Path(os.environ.get("INTRINSIC_LORA_DATA", Path(__file__).parents[3] / "shared/data/paper_examples"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def noise(rng, *shape, dtype=np.uint8):
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def as_rgb(array, peak):
    """(H,W[,3]) integers -> (1,3,H,W) float64 in [0,1]: the plainest reading."""
    array = np.broadcast_to(np.atleast_3d(array), (*array.shape[:2], 3))
    return torch.from_numpy(array / peak).permute(2, 0, 1)[None]


def assert_picture(picture, expected, alpha=None, bit_depth=8):
    assert picture.rgb.dtype == torch.float32 and picture.rgb.shape == expected.shape
    assert picture.rgb.is_contiguous() and picture.bit_depth == bit_depth
    assert picture.rgb.min() >= 0 and picture.rgb.max() <= 1
    if alpha is None:
        assert picture.alpha is None
    else:
        alpha = torch.from_numpy(np.asarray(alpha, np.float64))[None, None]
        torch.testing.assert_close(picture.alpha.double(), alpha, atol=1e-6, rtol=0)
        expected = expected * alpha + 0.5 * (1 - alpha)
    torch.testing.assert_close(picture.rgb.double(), expected, atol=2e-6, rtol=0)


# In: PNG


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_every_kind_at_full_depth(tmp_path, rng, dtype, channels):
    array = noise(rng, 5, 7, channels, dtype=dtype)
    path = tmp_path / "a picture é 日本.png"
    path.write_bytes(imagecodecs.png_encode(array if channels > 1 else array[..., 0]))
    peak = np.iinfo(dtype).max
    alpha = array[..., -1] / peak if channels in (2, 4) else None
    colour = array[..., : channels - (channels in (2, 4))]
    assert_picture(read_picture(path), as_rgb(colour, peak), alpha, bit_depth=8 * array.itemsize)


def raw_png(array, colour_type, bits, *chunks):
    """Write a PNG chunk by chunk, for features that available writers do not support."""

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in body)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour_type, channels", [(0, 1), (2, 3)])
def test_png_key_colour_is_transparency(tmp_path, rng, bits, colour_type, channels):
    array = noise(rng, 4, 5, channels, dtype=np.uint16 if bits == 16 else np.uint8)
    key = array[1, 2].astype(">u2").tobytes()
    (tmp_path / "x.png").write_bytes(raw_png(array, colour_type, bits, (b"tRNS", key)))
    alpha = (array != array[1, 2]).any(-1)
    assert not alpha[1, 2]
    assert_picture(read_picture(tmp_path / "x.png"), as_rgb(array, 2**bits - 1), alpha, bits)


def test_png_palette_with_transparency(tmp_path, rng):
    colours, alphas = noise(rng, 16, 3), noise(rng, 16)
    index = rng.integers(0, 16, (6, 5)).astype(np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=alphas.tobytes())
    assert_picture(read_picture(tmp_path / "opaque.png"), as_rgb(colours[index], 255))
    assert_picture(read_picture(tmp_path / "clear.png"), as_rgb(colours[index], 255), alphas[index] / 255)


def test_one_bit(tmp_path, rng):
    array = rng.integers(0, 2, (5, 9)).astype(bool)
    Image.fromarray(array).save(tmp_path / "x.png")
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="miniswhite")
    assert_picture(read_picture(tmp_path / "x.png"), as_rgb(array, 1))
    assert_picture(read_picture(tmp_path / "x.tif"), as_rgb(~array, 1))


# In: JPEG, WebP, GIF, PPM


@pytest.mark.parametrize("suffix, options", [(".jpg", {"quality": 95}), (".webp", {"quality": 80})])
def test_lossy_formats_equal_the_codec_itself(tmp_path, rng, suffix, options):
    smooth = np.asarray(Image.fromarray(noise(rng, 4, 6, 3)).resize((48, 32)))
    path = tmp_path / f"x{suffix}"
    Image.fromarray(smooth).save(path, **options)
    decode = {".jpg": imagecodecs.jpeg_decode, ".webp": imagecodecs.webp_decode}[suffix]
    difference = read_picture(path).rgb - as_rgb(decode(path.read_bytes()), 255)
    assert difference.abs().max() < 3 / 255  # decoders round differently
    assert (read_picture(path).rgb - as_rgb(smooth, 255)).abs().mean() < 0.02


def test_webp_with_alpha(tmp_path, rng):
    array = noise(rng, 9, 8, 4)
    Image.fromarray(array).save(tmp_path / "x.webp", lossless=True, exact=True)
    assert_picture(read_picture(tmp_path / "x.webp"), as_rgb(array[..., :3], 255), array[..., 3] / 255)


def test_cmyk_jpeg_with_adobes_inversion(tmp_path):
    # Adobe stores CMYK JPEGs inverted and says so in a marker, which Pillow writes and honours.
    inks = {(0, 255, 255, 0): (1, 0, 0), (255, 0, 255, 0): (0, 1, 0), (0, 0, 0, 255): (0, 0, 0), (0,) * 4: (1, 1, 1)}
    for ink, rgb in inks.items():
        Image.new("CMYK", (16, 8), ink).save(tmp_path / "x.jpg", quality=100)
        assert b"Adobe" in (tmp_path / "x.jpg").read_bytes()
        expected = torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 8, 16)
        torch.testing.assert_close(read_picture(tmp_path / "x.jpg").rgb, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_the_first_of_several_frames(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:])
    rgb = read_picture(tmp_path / f"x{suffix}").rgb
    torch.testing.assert_close(rgb, torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 6), atol=0.02, rtol=0)


def test_16_bit_pgm(tmp_path, rng):
    array = noise(rng, 4, 6, dtype=np.uint16)
    (tmp_path / "x.pgm").write_bytes(b"P5 6 4 65535\n" + array.astype(">u2").tobytes())
    assert_picture(read_picture(tmp_path / "x.pgm"), as_rgb(array, 65535), bit_depth=16)


# In: orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "webp", "png8", "png16", "tif8", "tif16"])
def test_exif_orientation_as_pillow_turns_it(tmp_path, rng, kind, orientation):
    array = noise(rng, 3, 5) // 16 * 16
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"x.{kind.rstrip('0123456789')}"
    deep = array.astype(np.uint16) * 257
    if kind == "png16":
        data = exif.tobytes().removeprefix(b"Exif\0\0")
        path.write_bytes(raw_png(np.stack([deep] * 3, -1), 2, 16, (b"eXIf", data)))
    elif kind.startswith("tif"):
        samples = array if kind == "tif8" else deep
        tifffile.imwrite(path, samples, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    else:
        lossless = {"lossless": True} if kind == "webp" else {"quality": 100} if kind == "jpg" else {}
        Image.fromarray(array).save(path, exif=exif, **lossless)
    image = Image.fromarray(array)
    image.getexif()[274] = orientation
    expected = as_rgb(np.asarray(ImageOps.exif_transpose(image)), 255)
    assert tuple(expected.shape[2:]) == ((3, 5) if orientation < 5 else (5, 3))
    torch.testing.assert_close(read_picture(path).rgb.double(), expected, atol=0.02 if kind == "jpg" else 1e-6, rtol=0)
    torch.testing.assert_close(picture_from_pil(image).rgb.double(), expected, atol=1e-6, rtol=0)


# In: TIFF


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_tiff_colour_at_full_depth(tmp_path, rng, dtype, planar, compression):
    array = noise(rng, 6, 5, 3, dtype=dtype)
    stored = array if planar == "contig" else np.moveaxis(array, -1, 0)
    tifffile.imwrite(
        tmp_path / "x.tif", stored, photometric="rgb", planarconfig=planar, compression=compression, predictor=None
    )
    assert_picture(
        read_picture(tmp_path / "x.tif"), as_rgb(array, np.iinfo(dtype).max), bit_depth=8 * array.dtype.itemsize
    )


@pytest.mark.parametrize("bigtiff, byteorder", [(False, ">"), (True, "<"), (True, ">")])
def test_tiff_byte_orders_and_bigtiff(tmp_path, rng, bigtiff, byteorder):
    array = noise(rng, 6, 5, 3, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", bigtiff=bigtiff, byteorder=byteorder)
    assert_picture(read_picture(tmp_path / "x.tif"), as_rgb(array, 65535), bit_depth=16)


def test_tiff_grey_both_ways_round(tmp_path, rng):
    array = noise(rng, 6, 5, dtype=np.uint16)
    for photometric, expected in (("minisblack", array), ("miniswhite", 65535 - array)):
        tifffile.imwrite(tmp_path / "x.tif", array, photometric=photometric)
        assert_picture(read_picture(tmp_path / "x.tif"), as_rgb(expected, 65535), bit_depth=16)


def test_tiff_of_12_bits_reaches_white(tmp_path):
    # Three 12-bit grey samples, packed most significant bit first: 0, 4095, 2048 (the last nibble is padding).
    tags = [(256, 3, 1, 3), (257, 3, 1, 1), (258, 3, 1, 12), (262, 3, 1, 1), (273, 4, 1, 8), (278, 3, 1, 1)]
    tags += [(279, 4, 1, 5)]
    pixels = bytes.fromhex("000fff8000")
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0\0\0\0"
    (tmp_path / "x.tif").write_bytes(struct.pack("<2sHI", b"II", 42, 14) + pixels + b"\0" + directory)
    assert_picture(read_picture(tmp_path / "x.tif"), as_rgb(np.array([[0, 4095, 2048]]), 4095), bit_depth=12)


@pytest.mark.parametrize("extra, premultiplied", [("unassalpha", False), ("assocalpha", True)])
def test_tiff_alpha_of_both_kinds(tmp_path, rng, extra, premultiplied):
    colour, alpha = rng.random((6, 5, 3)), rng.random((6, 5, 1))
    alpha[0], alpha[1] = 0, 1
    stored = np.concatenate([colour * alpha if premultiplied else colour, alpha], -1)
    array = np.round(stored * 65535).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extrasamples=[extra])
    picture = read_picture(tmp_path / "x.tif")
    expected = torch.from_numpy(colour * alpha + 0.5 * (1 - alpha)).permute(2, 0, 1)[None]
    torch.testing.assert_close(picture.rgb.double(), expected, atol=2e-5, rtol=0)
    np.testing.assert_allclose(picture.alpha[0, 0].numpy(), alpha[..., 0], atol=1e-5)


def test_tiff_extra_samples_that_are_not_alpha_are_ignored(tmp_path, rng):
    array = noise(rng, 6, 5, 5, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extrasamples=["unspecified", "unassalpha"])
    expected = as_rgb(array[..., :3], 65535)
    assert_picture(read_picture(tmp_path / "x.tif"), expected, array[..., 4] / 65535, bit_depth=16)


SRGB_PAIRS = [(0.0, 0.0), (0.0031308, 0.04045), (0.2140411, 0.5), (1.0, 1.0), (4.0, 1.0), (-0.5, 0.0)]  # IEC 61966-2-1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_tiff_is_linear_light(tmp_path, dtype):
    linear, encoded = np.array(SRGB_PAIRS).T
    for shape in ((1, 6), (1, 6, 3)):
        array = np.broadcast_to(linear.reshape(1, 6, *[1] * (len(shape) - 2)), shape).astype(dtype)
        tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb" if len(shape) == 3 else "minisblack")
        picture = read_picture(tmp_path / "x.tif")
        assert picture.bit_depth == 8 * np.dtype(dtype).itemsize and picture.alpha is None
        np.testing.assert_allclose(picture.rgb[0, :, 0].numpy(), np.stack([encoded] * 3), atol=3e-4)


@pytest.mark.parametrize(
    "array, options",
    [
        (np.zeros((4, 4, 4), np.uint16), {"photometric": "separated"}),
        (np.zeros((4, 4), np.int16), {"photometric": "minisblack"}),
        (np.zeros((4, 4), np.complex64), {"photometric": "minisblack"}),
        (np.zeros((4, 4, 3), np.uint16), {"photometric": "cielab"}),
        (np.zeros((16, 16, 16), np.uint16), {"photometric": "minisblack", "volumetric": True, "tile": (16, 16, 16)}),
    ],
    ids=["cmyk", "signed", "complex", "lab", "volume"],
)
def test_deep_tiffs_that_are_no_rgb_picture(tmp_path, array, options):
    tifffile.imwrite(tmp_path / "x.tif", array, **options)
    with pytest.raises(ValueError, match=r"x\.tif: a TIFF of more than 8 bits must be grey or RGB"):
        read_picture(tmp_path / "x.tif")


# In: EXR


def write_exr(path, channels):
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, dict(channels)) as file:
        file.write(str(path))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_exr_is_linear_light(tmp_path, dtype):
    linear, encoded = np.array(SRGB_PAIRS).T
    plane = linear[None].astype(dtype)
    for channels in ({"R": plane, "G": plane, "B": plane}, {"Y": plane}):
        write_exr(tmp_path / "x.exr", channels)
        picture = read_picture(tmp_path / "x.exr")
        assert picture.bit_depth == 8 * np.dtype(dtype).itemsize and picture.alpha is None
        np.testing.assert_allclose(picture.rgb[0, :, 0].numpy(), np.stack([encoded] * 3), atol=3e-4)


def test_exr_alpha_is_premultiplied_in_linear_light(tmp_path):
    # Linear 0.2140411 is 0.5 encoded; the last pixel, light without coverage, is composited away.
    colour, alpha = np.float32([[0.2140411, 1.0, 0.2140411, 0.7]]), np.float32([[1.0, 0.5, 0.25, 0.0]])
    premultiplied = np.where(alpha > 0, colour * alpha, colour)
    write_exr(tmp_path / "x.exr", {**{c: premultiplied for c in "RGB"}, "A": alpha})
    picture = read_picture(tmp_path / "x.exr")
    np.testing.assert_allclose(picture.rgb[0, 1, 0].numpy(), [0.5, 0.75, 0.5, 0.5], atol=1e-5)
    np.testing.assert_array_equal(picture.alpha[0, 0].numpy(), alpha)


def test_exr_layers_which_one_is_the_picture(tmp_path):
    def layer(name, value):
        return {name + c: np.full((2, 3), value, np.float32) for c in "RGB"}

    plain, combined, albedo = layer("", 1.0), layer("ViewLayer.Combined.", 0.2140411), layer("albedo.", 0.0)
    for channels, value in (({**plain, **combined, **albedo}, 1.0), ({**combined, **albedo}, 0.5), (albedo, 0.0)):
        write_exr(tmp_path / "x.exr", channels)
        assert read_picture(tmp_path / "x.exr").rgb.mean().item() == pytest.approx(value, abs=1e-6)
    for channels in ({**albedo, **layer("diffuse.", 1.0)}, {"Z": np.ones((2, 3), np.float32)}):
        write_exr(tmp_path / "x.exr", channels)
        with pytest.raises(ValueError, match=r"x\.exr: it has the layers? .*, and it is unclear which is the picture"):
            read_picture(tmp_path / "x.exr")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path, bad):
    plane = np.float32([[0.5, bad], [0, 0]])
    write_exr(tmp_path / "x.exr", {"Y": plane})
    tifffile.imwrite(tmp_path / "x.tif", plane)
    for name in ("x.exr", "x.tif"):
        with pytest.raises(ValueError, match=f"Cannot read the picture .*{name}: it holds NaN or infinite values"):
            read_picture(tmp_path / name)


# In: Pillow images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_common_pillow_mode(rng, mode):
    source = Image.fromarray(noise(rng, 6, 7, 4), "RGBA")
    image = source.convert("RGB").convert("P").convert("PA") if mode == "PA" else None
    image = image or (source.convert(mode) if mode in ("LA", "RGBa") else source.convert("RGB").convert(mode))
    if mode == "RGBA":
        image = source
    transparent = mode in ("LA", "PA", "RGBA", "RGBa")
    array = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    alpha = array[..., 3] / 255 if transparent else None
    assert_picture(picture_from_pil(image), as_rgb(array[..., :3], 255), alpha)


def test_pillow_deep_modes(rng):
    array = noise(rng, 3, 4, dtype=np.uint16)
    assert_picture(picture_from_pil(Image.fromarray(array)), as_rgb(array, 65535), bit_depth=16)
    assert_picture(picture_from_pil(Image.fromarray(array.astype(np.int32))), as_rgb(array, 65535), bit_depth=16)
    half = picture_from_pil(Image.fromarray(np.full((2, 2), 0.2140411, np.float32)))
    torch.testing.assert_close(half.rgb, torch.full((1, 3, 2, 2), 0.5), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="beyond 16 bits"):
        picture_from_pil(Image.fromarray(array.astype(np.int32) + 70000))


# In: what is no picture


def test_zero_size(tmp_path):
    with pytest.raises(ValueError, match=r"no pixels \(0 x 5\)"):
        picture_from_pil(Image.new("RGB", (0, 5)))
    for bits in (8, 16):
        (tmp_path / "x.png").write_bytes(raw_png(np.zeros((0, 5, 3)), 2, bits))
        with pytest.raises(ValueError, match=r"x\.png"):
            read_picture(tmp_path / "x.png")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"v/1\x01",
        b"\xff\xd8\xff",
        b"hello, I am text" * 9,
        b"%!PS-Adobe-3.0 EPSF",
    ],
)
def test_files_that_are_no_pictures(tmp_path, content):
    (tmp_path / "x y.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"x y\.jpg") as caught:
        read_picture(tmp_path / "x y.jpg")
    assert "\n" not in str(caught.value)


def test_formats_that_run_other_programs_are_not_opened(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps")  # Pillow would hand it to Ghostscript
    with pytest.raises(ValueError, match=r"x\.eps is not a picture in a supported format"):
        read_picture(tmp_path / "x.eps")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nothing\.png"):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_picture(tmp_path)


def samples_of_every_format(folder, rng):
    rgb = noise(rng, 40, 60, 3)
    deep = noise(rng, 40, 60, 3, dtype=np.uint16)
    for suffix in (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"):
        Image.fromarray(rgb).save(folder / f"8{suffix}")
    (folder / "16.png").write_bytes(imagecodecs.png_encode(deep))
    tifffile.imwrite(folder / "16.tif", deep, photometric="rgb")
    tifffile.imwrite(folder / "16z.tif", deep, photometric="rgb", compression="zlib")
    write_exr(folder / "float.exr", {c: rng.random((40, 60)).astype(np.float32) for c in "RGB"})
    return sorted(folder.iterdir())


def test_truncated_files_name_the_file_and_are_never_half_read(tmp_path, rng):
    for path in samples_of_every_format(tmp_path, rng):
        data = path.read_bytes()
        assert read_picture(path).rgb.shape == (1, 3, 40, 60)
        for length in (20, len(data) // 2, len(data) - 200):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=path.name) as caught:
                read_picture(path)
            assert "\n" not in str(caught.value), path.name


def test_flipped_bytes_give_a_picture_or_one_value_error(tmp_path, rng):
    for path in samples_of_every_format(tmp_path, rng):
        data = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(data)
            for position in rng.integers(0, min(len(data), 400), 3):
                damaged[position] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                rgb = read_picture(path).rgb
                assert rgb.isfinite().all() and rgb.min() >= 0 and rgb.max() <= 1
            except ValueError as error:
                assert path.name in str(error) and "\n" not in str(error)


def test_decompression_bombs_are_refused_before_anything_is_allocated(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 16, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    (tmp_path / "x.png").write_bytes(png + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    tags = [(256, 4, 1, 60000), (257, 4, 1, 60000), (258, 3, 1, 16), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 4)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0\0\0\0"
    (tmp_path / "x.tif").write_bytes(struct.pack("<2sHI", b"II", 42, 8) + directory)
    for name in ("x.png", "x.tif"):
        # 3.6e9 pixels of (3 + 3 + 1) floats, and the samples, at most twice 3 in the PNG
        with pytest.raises(ValueError, match=rf"{name} \(60000 x 60000 pixels\) needs 1\d\d\.\d GB of memory"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("library, suffix", [("imagecodecs", ".png"), ("tifffile", ".tif"), ("OpenEXR", ".exr")])
def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch, rng, library, suffix):
    path = next(
        path for path in samples_of_every_format(tmp_path, rng) if path.suffix == suffix
    )  # "16.png" sorts first
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"needs the package {library}: pip install {library}"):
        read_picture(path)


def test_the_published_examples():
    if not DATA.is_dir():
        pytest.skip("the published example pictures are not here")
    paths = [path for path in DATA.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES]
    assert paths
    for path in paths:
        with Image.open(path) as image:
            expected = as_rgb(np.asarray(ImageOps.exif_transpose(image).convert("RGB")), 255)
        torch.testing.assert_close(read_picture(path).rgb.double(), expected, atol=1e-6, rtol=0)


# Out


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([8, 16]), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_png_levels_survive_a_round_trip(tmp_path_factory, data, bits, channels, height, width):
    peak = 2**bits - 1
    count = channels * height * width
    levels = np.array(data.draw(st.lists(st.integers(0, peak), min_size=count, max_size=count)))
    levels = levels.reshape(channels, height, width)
    path = tmp_path_factory.mktemp("png") / "x.png"
    write_png(path, torch.from_numpy(levels / peak).float(), bits=bits)
    back = imagecodecs.png_decode(path.read_bytes())
    assert back.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(
        back, np.moveaxis(levels, 0, -1).squeeze(-1) if channels == 1 else np.moveaxis(levels, 0, -1)
    )
    if channels in (1, 3):
        picture = read_picture(path)
        assert picture.bit_depth == bits and torch.equal(
            (picture.rgb * peak).round()[0, :channels], torch.tensor(levels).float()
        )


@pytest.mark.parametrize("bits", [8, 16])
def test_png_rounds_to_the_nearest_level_and_clips(tmp_path, bits):
    peak = 2**bits - 1
    values = torch.tensor(
        [-3.0, 0.49 / peak, 0.51 / peak, 100.49 / peak, 100.51 / peak, 1 - 0.49 / peak, 7.0, torch.inf]
    )
    write_png(tmp_path / "x.png", values.double().expand(1, 3, 2, 8), bits=bits)
    back = imagecodecs.png_decode((tmp_path / "x.png").read_bytes())
    np.testing.assert_array_equal(back[1, :, 2], [0, 0, 1, 100, 101, peak, peak, peak])


def test_png_of_bfloat16_with_grad(tmp_path):
    x = torch.tensor([[[0.0, 0.5, 1.0]]], dtype=torch.bfloat16, requires_grad=True)
    write_png(tmp_path / "x.png", x)
    assert np.asarray(Image.open(tmp_path / "x.png")).tolist() == [[0, 128, 255]]  # 127.5 goes to the even level


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 4), (5, 4, 4), (3, 0, 4)])
def test_png_shapes_that_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="A PNG holds one picture"):
        write_png(tmp_path / "x.png", torch.zeros(shape))


def test_png_other_refusals_leave_the_old_file(tmp_path):
    path = tmp_path / "x.png"
    write_png(path, torch.zeros(3, 4, 4))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="8 or 16 bits, not 12"):
        write_png(path, torch.ones(3, 4, 4), bits=12)
    with pytest.raises(ValueError, match="holds NaN"):
        write_png(path, torch.full((3, 4, 4), torch.nan))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_npz_holds_tensors_and_arrays_without_pickle(tmp_path):
    path = tmp_path / "no suffix"
    write_npz(path, normals=torch.rand(4, 5, 3, requires_grad=True), depth=np.float32([[1, 2]]), name="a room")
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["normals"].shape == (4, 5, 3) and arrays["normals"].dtype == np.float32
        assert arrays["depth"].tolist() == [[1, 2]] and arrays["name"] == "a room"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="x: an npz holds numbers and text"):
        write_npz(tmp_path / "y.npz", x=[object()])
    assert list(tmp_path.iterdir()) == [path]


def test_json(tmp_path):
    value = {"π": [1, 2.5, None], "name": "größe"}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"mean": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value


def test_a_git_lfs_pointer_is_named_as_one(tmp_path):
    (tmp_path / "photo.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"photo\.png is a Git LFS pointer"):
        read_picture(tmp_path / "photo.png")
    (tmp_path / "other.png").write_text("no pointer")
    with pytest.raises(ValueError, match="not a picture in a supported format"):
        read_picture(tmp_path / "other.png")
