"""A long clip needs the memory of one chunk of frames: measured, as the highest resident size of a process.

COMFY_MEMORY_SIZE=512 and COMFY_MEMORY_FRAMES=100 measure at the size of real clips; the defaults are small, for the
time that takes.
"""

import os
from pathlib import Path

import pytest

INSIDE = (Path(__file__).parent / "inside.py").read_text()
SIZE = int(os.environ.get("COMFY_MEMORY_SIZE", "160"))
CHUNK, FRAMES = 4, int(os.environ.get("COMFY_MEMORY_FRAMES", "32"))
MEASURE = """
frames, size, chunk = map(int, sys.argv[4:])
model, clip, vae = base_model()
photo = torch.rand(1, size, size, 3)
settings = {"model": model, "clip": clip, "vae": vae, "maps": "normals", "upsample": "off", "resolution": size}
node("Decompose", image=photo, **settings)  # models are loaded and patched now


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


images = photo.repeat(frames, 1, 1, 1)
Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
before = resident("VmRSS")
node("Decompose", image=images, batch_size=chunk, **settings)
print(f"peak {resident('VmHWM') - before:.0f} MiB above the models and the input")
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_clip_needs_the_memory_of_a_chunk(run_in_comfy, server, tmp_path):
    peaks = {}
    for frames in (CHUNK, FRAMES):
        said = run_in_comfy(INSIDE + MEASURE, server.base, server.pack, tmp_path, frames, SIZE, CHUNK)
        peaks[frames] = float(said.rpartition("peak ")[2].split()[0])
    # What the further frames keep: their maps, as the node's outputs and in the G-buffer, and latents.
    kept = (FRAMES - CHUNK) * SIZE * SIZE * 4 * 20 / 2**20
    print(
        f"\n{SIZE} px, {CHUNK} at a time: {peaks[CHUNK]:.0f} MiB for {CHUNK}, {peaks[FRAMES]:.0f} for {FRAMES} frames"
    )
    # Resident sizes vary by half on a busy machine; frames that were not split would need FRAMES / CHUNK = 8 times.
    assert peaks[FRAMES] < 2 * peaks[CHUNK] + kept
