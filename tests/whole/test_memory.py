"""Photos of 100 megapixels fit into 4 GB: peak memory at two sizes, extended to that one."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from intrinsic_lora.intrinsics import budget
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LARGEST = 11648 * 8736  # pixels of a camera of 100 megapixels
# Small bands give a small picture as many bands as a large photo has by default.
BANDS = 2**16
RUN = """
import json, sys
from pathlib import Path
from intrinsic_lora.intrinsics import budget
budget.BAND_PIXELS = {bands}
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics.pictures import read_picture

def extract(photo):
    # Two maps: together they would take more than is allowed.
    app(["extract", photo, "--out", photo + "_maps", "--intrinsics", "normals,albedo"], standalone_mode=False)

peaks = []
for photo in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    {action}(photo)
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    peaks.append(int(peak.split()[1]) * 1024)
print(json.dumps(peaks))
"""


def photo(path, width, height):
    """Build a smooth picture, which is fast to write; its content does not matter."""
    levels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    match path.name.split(".", 1):
        case _, "16.tif":
            tifffile.imwrite(path, np.asarray(picture).astype(np.uint16) * 257, photometric="rgb")
        case _, "rgba.png":
            picture.putalpha(255)
            picture.save(path, compress_level=1)
        case _:
            picture.save(path, **({"compress_level": 1} if path.suffix == ".png" else {}))
    return path


def peaks(action, photos):
    """Return the peak memory in bytes of each photo in turn, in one process."""
    run = RUN.format(bands=BANDS, action=action)
    done = subprocess.run([sys.executable, "-c", run, *map(str, photos)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def check(sizes, small, large):
    """Extend the peaks at two sizes to the largest photo."""
    pixels = [width * height for width, height in sizes]
    per_pixel = (large - small) / (pixels[1] - pixels[0])
    bands = 12 * 4 * 3 * budget.BAND_PIXELS  # a dozen float pictures of a band of the default size
    assert small + per_pixel * (LARGEST - pixels[0]) + bands < 4e9, (small, large, per_pixel)


def test_extracting_maps_of_100_megapixels_takes_less_than_4_gb(tmp_path):
    sizes = [(2048, 1536), (3072, 2304)]
    photos = [photo(tmp_path / f"{width}.jpg", width, height) for width, height in [(512, 384), *sizes]]
    check(sizes, *peaks("extract", photos)[1:])  # the first only loads what is needed


def test_reading_100_megapixels_takes_less_than_4_gb(tmp_path):
    sizes, kinds = [(1024, 768), (2048, 1536)], ("jpg", "png", "rgba.png", "16.tif")
    photos = [photo(tmp_path / f"{width}.{kind}", width, height) for kind in kinds for width, height in sizes]
    found = peaks("read_picture", [photos[0], *photos])[1:]
    for small, large in zip(found[::2], found[1::2], strict=True):
        check(sizes, small, large)
