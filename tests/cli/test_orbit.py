"""`relight --orbit`: it removes nothing that is not its own, and resumes after a real kill."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.pictures import write_npz, write_png
from intrinsic_lora.tests.cli.test_cli_relight import lit
from intrinsic_lora.train.scenes.render import render, sample_scene
from PIL import Image

COUNT = 24


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """(photo, maps) of a size at which a frame takes long enough to be killed in."""
    folder = tmp_path_factory.mktemp("scene")
    buffers = render(sample_scene(np.random.default_rng([7, 5])), 256)
    photo, maps = folder / "room_rgb.png", folder / "room.npz"
    write_png(photo, linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]).permute(2, 0, 1)))
    write_npz(maps, **{name: buffers[name] for name in ("normals", "depth", "albedo", "shading")})
    return photo, maps


def turn(scene, out, *options, count=2, status=0):
    return lit(scene[0], out, "--maps", scene[1], "--orbit", count, *options, status=status)


def killed(scene, out, *options, after):
    """Run it in a separate process, which is killed (SIGKILL) after `after` new frames."""
    old = set(states(out).items())
    command = [sys.executable, "-m", "intrinsic_lora.cli.main", "relight", scene[0], "--maps", scene[1], "--out", out]
    command += ["--device", "cpu", "--orbit", COUNT, "--light", "sun az=-50 el=30 kelvin=4000", *options]
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(set(states(out).items()) - old) < after:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    return states(out)


def states(out):
    while True:
        try:
            return {path: path.stat().st_mtime_ns for path in finished(out)}
        except FileNotFoundError:  # removed between listing and looking
            continue


def finished(out):
    return sorted(out.with_suffix("").glob(f"{out.stem}_[0-9][0-9][0-9].png"))


def test_files_of_others_are_kept(scene, tmp_path):
    out, folder = tmp_path / "turn.webp", tmp_path / "turn"
    folder.mkdir()
    mine = folder / "turn_900.png"
    Image.new("RGB", (8, 8)).save(mine)
    before = mine.read_bytes()
    for options in ((), ("--overwrite",)):
        assert "turn_900.png is not a frame that this command wrote" in turn(scene, out, *options, status=2)
        assert mine.read_bytes() == before and list(folder.iterdir()) == [mine] and not out.exists()
    taken = mine.rename(folder / "turn_001.png")
    assert "turn_001.png already exists" in turn(scene, out, status=2)
    turn(scene, out, "--overwrite")  # which allows replacing files with the frames' names
    assert taken.read_bytes() != before

    painted = folder / "turn_001.png"
    Image.new("RGB", (8, 8), "red").save(painted)  # the user's own work on one of our frames
    out.unlink()
    assert "turn_001.png already exists and was changed since this command wrote it" in turn(scene, out, status=2)
    assert Image.open(painted).size == (8, 8)
    (folder / "turn_frames.json").write_text("[1, 2]")
    assert "turn_frames.json is not a manifest" in turn(scene, out, "--overwrite", status=2)


def test_other_options_are_refused_and_named(scene, tmp_path):
    out = tmp_path / "turn.webp"
    turn(scene, out)
    out.unlink()  # as if it had been interrupted before the last file
    first = {path: path.read_bytes() for path in finished(out)}
    output = turn(scene, out, "--shadow", 0.5, status=2)
    assert "of a run with other settings (shadow)" in output and "--overwrite" in output
    assert {path: path.read_bytes() for path in finished(out)} == first
    turn(scene, out, "--shadow", 0.5, "--overwrite")
    assert {path: path.read_bytes() for path in finished(out)} != first and out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_turn_is_resumed(scene, tmp_path):
    undisturbed, out = tmp_path / "a" / "turn.webp", tmp_path / "b" / "turn.webp"
    lights = ("sun az=-50 el=30 kelvin=4000",)
    lit(scene[0], undisturbed, "--maps", scene[1], "--orbit", COUNT, lights=lights)
    expected = {path.name: path.read_bytes() for path in finished(undisturbed)}

    kept = killed(scene, out, after=3)
    assert 3 <= len(kept) < COUNT and not out.exists()
    kept |= killed(scene, out, after=4)
    assert len(kept) >= 7 and not out.exists()
    lit(scene[0], out, "--maps", scene[1], "--orbit", COUNT, lights=lights)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())  # none was drawn again
    assert {path.name: path.read_bytes() for path in finished(out)} == expected
    assert out.read_bytes() == undisturbed.read_bytes()

    # Replaced by another turn, and killed again: no old WebP beside mixed frames.
    kept = killed(scene, out, "--shadow", 0, "--overwrite", after=2)
    assert not out.exists() and len(kept) < COUNT
    assert all(path.read_bytes() != expected[path.name] for path in kept)
    lit(scene[0], out, "--maps", scene[1], "--orbit", COUNT, "--shadow", 0, "--overwrite", lights=lights)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert out.exists() and len(finished(out)) == COUNT
