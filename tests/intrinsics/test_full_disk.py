"""A full disk: one sentence names the file, and no partial file is left.

The file-size limit simulates it, which the operating system enforces in every library's writer.
"""

import errno
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics.exr import write_exr
from intrinsic_lora.intrinsics.files import atomic_path
from intrinsic_lora.intrinsics.pictures import write_json, write_npz, write_png
from intrinsic_lora.tests.support import tiny_training
from intrinsic_lora.train.checkpoints import checkpoints, newest_sound
from intrinsic_lora.train.data.conditions import Condition, write_condition
from intrinsic_lora.train.loop import train
from PIL import Image
from typer.testing import CliRunner

resource = pytest.importorskip("resource", reason="Windows knows no limit of a file's size")
NOISE = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))  # 0.8 MB, and no PNG makes it small


@contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _webp(path):
    frame = Image.fromarray((NOISE.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    with atomic_path(path) as temporary:
        frame.save(temporary, save_all=True, append_images=[frame], quality=100)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", lambda path: write_png(path, NOISE)),
        ("deep.png", lambda path: write_png(path, NOISE, 16)),
        ("a.npz", lambda path: write_npz(path, normals=NOISE.numpy())),
        ("a.exr", lambda path: write_exr(path, {"rgb": NOISE})),
        ("a.json", lambda path: write_json(path, "x" * 300_000)),
        ("a.safetensors", lambda path: write_condition(path, Condition(NOISE, "", {}))),
        ("a.webp", _webp),
    ],
)
def test_every_writer_names_the_file(tmp_path, name, write):
    path = tmp_path / name
    with largest_file(50_000), pytest.raises(OSError, match=re.escape(f"Cannot write {path}: ")) as error:
        write(path)
    assert error.value.errno == errno.EFBIG and not list(tmp_path.iterdir())
    write(path)
    assert path.stat().st_size > 50_000


def test_a_checkpoint_that_does_not_fit(tmp_path):
    base, data = tiny_training.write_base(tmp_path / "base"), tiny_training.write_scenes(tmp_path / "scenes", 4)

    def run(steps):
        return tiny_training.config(base, data, tmp_path / "run", max_steps=steps, lora__rank=16)

    train(run(2))
    (there,) = checkpoints(tmp_path / "run" / "checkpoints")
    before = (there / "state.pt").read_bytes()
    lora = (there / "intrinsic_lora_normals.safetensors").stat().st_size
    assert lora < len(before)
    for limit, file in ((lora + 1000, "checkpoints/step_000004"), (lora - 1000, r"(checkpoints|best)/\S*")):
        sentence = rf"Cannot write {tmp_path}/run/{file}: .*; the newest good checkpoint is {there}\.$"
        with largest_file(limit), pytest.raises(OSError, match=sentence):
            train(run(6))
        assert checkpoints(tmp_path / "run" / "checkpoints") == [there]
        assert [path.name for path in there.parent.iterdir()] == [there.name]
        assert (there / "state.pt").read_bytes() == before
    train(run(6))  # there is room again
    assert newest_sound(there.parent)[1]["step"] == 6


def test_the_command_says_it_in_one_sentence(tmp_path):
    photo = tmp_path / "photo.png"
    write_png(photo, NOISE)
    with largest_file(50_000):
        result = CliRunner().invoke(app, ["extract", str(photo), "--out", str(tmp_path / "maps")])
    text = " ".join(result.output.split())
    assert result.exit_code == 1 and "Errno" not in text and "Traceback" not in text
    assert re.search(rf"Cannot write {tmp_path}/maps/photo\S*: \w[^.;]*; make room and run it again\.", text)
