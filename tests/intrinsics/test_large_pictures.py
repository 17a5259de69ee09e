"""Large pictures: memory is counted before it is taken, and work in bands gives what work on the whole gives."""

import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from intrinsic_lora.intrinsics import budget
from intrinsic_lora.intrinsics.display import display_map
from intrinsic_lora.intrinsics.maps import maps_from_pictures
from intrinsic_lora.intrinsics.pictures import read_picture, write_png
from intrinsic_lora.intrinsics.resizing import guided_upsample, in_bands, resize, resize_rows
from intrinsic_lora.tests.intrinsics.test_pictures import samples_of_every_format
from PIL import Image


@pytest.fixture
def small_bands(monkeypatch):
    monkeypatch.setattr(budget, "BAND_PIXELS", 400)


def limit(monkeypatch, gigabytes):
    monkeypatch.setenv(budget.LIMIT_VARIABLE, str(gigabytes))


@pytest.mark.parametrize("factor", [1.0, 3.7])
def test_maps_made_in_bands_are_those_made_at_once(monkeypatch, factor):
    torch.manual_seed(0)
    low, photo = torch.rand(2, 3, 24, 32) * 1.4 - 0.2, torch.rand(2, 3, round(24 * factor), round(32 * factor))
    names = ("normals", "depth", "albedo", "shading")
    drawn = {name: low.roll(i, 0) for i, name in enumerate(names)}
    for how, options in (("guided", {}), ("bilinear", {"depth_scope": "batch", "shading_channels": 3})):
        whole = maps_from_pictures(drawn, photo, how, **options)
        with monkeypatch.context() as patch:
            patch.setattr(budget, "BAND_PIXELS", 400)
            bands = maps_from_pictures(drawn, photo, how, **options)
        assert bands.keys() == {*names, "confidence"}
        for name, values in bands.items():
            torch.testing.assert_close(values, whole[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(48, 64), (50, 77), (24, 200), (24, 32)])
def test_bilinear_bands_equal_torch(small_bands, size):
    low = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    # torch computes where it reads in float32: up to 24, a few times 24 * 2**-24 off.
    ours = in_bands(lambda rows: resize_rows(low, size, rows), *size)
    torch.testing.assert_close(
        ours, torch.nn.functional.interpolate(low, size, mode="bilinear"), atol=24 * 2**-21, rtol=0
    )


def test_guided_bands_on_a_flat_photo_are_plain_bilinear(small_bands):
    low = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    up = guided_upsample(low, torch.full((1, 3, 96, 128), 0.5))
    torch.testing.assert_close(up, resize(low, (96, 128)), atol=1e-5, rtol=0)


def test_pictures_read_in_bands_are_those_read_at_once(tmp_path, monkeypatch):
    for path in samples_of_every_format(tmp_path, np.random.default_rng(0)):
        whole = read_picture(path)
        with monkeypatch.context() as patch:
            patch.setattr(budget, "BAND_PIXELS", 400)
            torch.testing.assert_close(read_picture(path).rgb, whole.rgb, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_written_in_bands_holds_every_level(tmp_path, small_bands, bits, channels):
    peak = 2**bits - 1
    levels = np.random.default_rng(0).integers(0, peak, (37, 41, channels), endpoint=True)
    picture = torch.from_numpy(levels / peak).permute(2, 0, 1)
    write_png(tmp_path / "x.png", picture, bits)
    np.testing.assert_array_equal(np.atleast_3d(imagecodecs.png_decode((tmp_path / "x.png").read_bytes())), levels)
    write_png(tmp_path / "y.png", picture, bits, draw=lambda band: 1 - band)
    np.testing.assert_array_equal(
        np.atleast_3d(imagecodecs.png_decode((tmp_path / "y.png").read_bytes())), peak - levels
    )


def test_a_map_drawn_in_bands_is_the_map_drawn_at_once(tmp_path, small_bands):
    normals = torch.nn.functional.normalize(torch.randn(1, 3, 40, 50), dim=1)
    for frame in ("opengl", "directx"):
        write_png(tmp_path / "x.png", normals, 16, lambda band, frame=frame: display_map(band, "normals", frame))
        drawn = display_map(normals, "normals", frame)
        torch.testing.assert_close(read_picture(tmp_path / "x.png").rgb, drawn, atol=0.51 / 65535, rtol=0)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "bmp", "tif", "ppm", "avif", "jpg"])
def test_no_reader_takes_more_than_the_limit(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (1000, 800)).save(path)
    limit(monkeypatch, 0.04)  # 50 bytes per pixel
    assert read_picture(path).rgb.shape == (1, 3, 800, 1000)
    limit(monkeypatch, 0.0003)  # less than an eighth of the width and height of a JPEG takes
    with pytest.raises(
        ValueError, match=rf"x\.{suffix} \(1000 x 800 pixels\) needs 0\.0 GB .*limit of 0\.0003 GB; set"
    ):
        read_picture(path)


def test_deep_readers_keep_to_the_limit_too(tmp_path, monkeypatch):
    deep = np.zeros((80, 100, 3), np.uint16)
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(deep))
    tifffile.imwrite(tmp_path / "x.tif", deep, photometric="rgb")
    tifffile.imwrite(tmp_path / "f.tif", deep.astype(np.float32), photometric="rgb", compression="zlib")
    limit(monkeypatch, 0.00028)
    for name in ("x.png", "x.tif", "f.tif"):
        with pytest.raises(ValueError, match=rf"{name} \(100 x 80 pixels\) needs"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("kind", ["lossy", "lossless", "alpha"])
def test_the_size_of_a_webp_is_read_from_its_header(tmp_path, monkeypatch, kind):
    options = {"lossy": {}, "lossless": {"lossless": True}, "alpha": {"exif": b"Exif\0\0"}}[kind]
    Image.new("RGBA" if kind == "alpha" else "RGB", (301, 203), 7).save(tmp_path / "x.webp", **options)
    limit(monkeypatch, 0.001)
    with pytest.raises(ValueError, match=r"x\.webp \(301 x 203 pixels\)"):
        read_picture(tmp_path / "x.webp")


def test_a_jpeg_beyond_the_limit_is_read_smaller(tmp_path, monkeypatch):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "x.jpg", quality=95, exif=exif)
    whole = read_picture(tmp_path / "x.jpg")
    assert whole.full_size is None and whole.rgb.shape == (1, 3, 1600, 1200)
    for gigabytes, scale in ((0.03, 2), (0.01, 4), (0.002, 8)):
        limit(monkeypatch, gigabytes)
        picture = read_picture(tmp_path / "x.jpg")
        assert picture.full_size == (1200, 1600) and picture.rgb.shape == (1, 3, 1600 // scale, 1200 // scale)
        assert (picture.rgb - resize(whole.rgb, picture.rgb.shape[-2:])).abs().max() < 0.03
    image.save(tmp_path / "p.jpg", progressive=True)  # which is held whole before it can be shrunk
    with pytest.raises(ValueError, match=r"p\.jpg \(1600 x 1200 pixels\) needs"):
        read_picture(tmp_path / "p.jpg")


def test_pixel_limits_of_pillow_do_not_count_and_are_left_alone(tmp_path, monkeypatch):
    Image.new("1", (20000, 10000)).save(tmp_path / "x.png")  # 200 megapixels: Image.open refuses it
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png \(20000 x 10000 pixels\) needs 7\.2 GB of memory"):
        read_picture(tmp_path / "x.png")
    assert Image.MAX_IMAGE_PIXELS == 89478485


def test_a_small_file_of_many_pixels_is_refused_at_once(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 0) + b"IDAT"
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", zlib.crc32(b"IDAT")))
    code = (
        "import resource, sys; from intrinsic_lora.intrinsics.pictures import read_picture\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_picture(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.png"], capture_output=True, text=True)
    sentence, grown = done.stdout.strip().splitlines()
    assert "(65535 x 65535 pixels) needs 154.6 GB" in sentence
    assert int(grown) < 100_000  # kB: libraries that are loaded, no pixels
