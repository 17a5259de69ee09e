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
            picture.save(path)
    return path


@pytest.mark.parametrize(
    ("action", "kind"),
    [("extract", "jpg"), *(("read_picture", kind) for kind in ("jpg", "png", "rgba.png", "16.tif"))],
)
def test_photos_of_100_megapixels_take_less_than_4_gb(tmp_path, action, kind):
    sizes = [(512, 384), (2048, 1536), (4096, 3072)]  # the first only loads what is needed
    paths = [photo(tmp_path / f"{width}.{kind}", width, height) for width, height in sizes]
    run = RUN.format(bands=BANDS, action=action)
    done = subprocess.run([sys.executable, "-c", run, *map(str, paths)], capture_output=True, text=True, check=True)
    _, small, large = json.loads(done.stdout.splitlines()[-1])
    pixels = [width * height for width, height in sizes]
    per_pixel = (large - small) / (pixels[2] - pixels[1])
    bands = 12 * 4 * 3 * budget.BAND_PIXELS  # a dozen float pictures of a band of the default size
    assert small + per_pixel * (LARGEST - pixels[1]) + bands < 4e9, (small, large, per_pixel)
