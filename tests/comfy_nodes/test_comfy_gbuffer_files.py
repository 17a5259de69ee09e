"""G-buffers in files: what comes back is what went in, and what is no such file is refused in one sentence."""

import json
import os
import struct
from dataclasses import replace

import pytest
import torch
from intrinsic_lora.comfy_nodes.gbuffer_files import FORMAT, SUFFIX, load_photo_maps, save_photo_maps
from intrinsic_lora.comfy_nodes.photo_maps import PhotoMaps
from intrinsic_lora.intrinsics.relight import Camera
from safetensors.torch import save_file

SIZE = (6, 10)


@pytest.fixture
def photo_maps():
    generator = torch.Generator().manual_seed(0)
    three = {name: torch.rand(2, 3, *SIZE, generator=generator) for name in ("photo", "normals", "albedo")}
    one = {name: torch.rand(2, 1, *SIZE, generator=generator) for name in ("depth", "shading", "raw_depth")}
    return PhotoMaps(**three, **one, there=one["depth"] < 0.8, camera=Camera(0.7, 9.5, 33.0))


@pytest.fixture
def path(tmp_path):
    return tmp_path / f"a_00001_{SUFFIX}"


def test_floats_come_back_exactly(photo_maps, path):
    save_photo_maps(photo_maps, "float", path)
    found = load_photo_maps(path)
    assert found.camera == photo_maps.camera and found.mask is found.roughness is found.confidence is None
    for name, values in vars(photo_maps).items():
        if isinstance(values, torch.Tensor):
            assert torch.equal(getattr(found, name), values)


def test_half_floats_lose_less_than_a_level(photo_maps, path):
    """A half float has 11 bits: rounding is at most 2^-12 of a value in [0.5, 1], and less below."""
    bright = replace(photo_maps, photo=photo_maps.photo * 3, camera=None)  # beyond white, where light was edited
    save_photo_maps(bright, "half float", path)
    found = load_photo_maps(path)
    assert found.camera is None and found.photo.dtype == torch.float32
    assert ((found.photo - bright.photo).abs() <= bright.photo * 2**-11).all()
    assert 0 < (found.depth - photo_maps.depth).abs().max() <= 2**-12
    assert (
        path.stat().st_size
        < 2 * sum(x.numel() for x in vars(photo_maps).values() if isinstance(x, torch.Tensor)) + 2000
    )


def test_maps_that_share_memory(path):
    rgba = torch.rand(1, 4, *SIZE)
    save_photo_maps(PhotoMaps(photo=rgba[:, :3], shading=rgba[:, :1], mask=rgba[:, 3:]), "float", path)
    assert torch.equal(load_photo_maps(path).shading, rgba[:, :1]) and torch.equal(
        load_photo_maps(path).mask, rgba[:, 3:]
    )


def test_nothing_half_written(photo_maps, path, monkeypatch):
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_photo_maps(photo_maps, "float", path)
    assert [file.name for file in path.parent.iterdir()] == [path.name] and path.read_bytes() == b"before"


def test_an_unknown_precision(photo_maps, path):
    with pytest.raises(ValueError, match="precision must be one of half float, float, not 'double'"):
        save_photo_maps(photo_maps, "double", path)
    assert not path.exists()


def write(path, metadata=None, **maps):
    save_file({k: x.clone() for k, x in maps.items()}, path, {"format": FORMAT} if metadata is None else metadata)


PHOTO = torch.rand(1, 3, *SIZE)
BAD = {
    "another program's": (
        lambda path: write(path, {"format": "pt"}, photo=PHOTO),
        "is not a G-buffer of this version",
    ),
    "no photo": (lambda path: write(path, depth=PHOTO[:, :1]), "has no photo"),
    "no map": (lambda path: write(path, photo=PHOTO, beauty=PHOTO), "has beauty of shape"),
    "another size": (lambda path: write(path, photo=PHOTO, depth=PHOTO[:, :1, 1:]), "has depth of shape"),
    "two channels": (lambda path: write(path, photo=PHOTO, shading=PHOTO[:, :2]), "has shading of shape"),
    "no batch": (lambda path: write(path, photo=PHOTO[0]), "has photo of shape"),
    "NaN": (lambda path: write(path, photo=PHOTO * torch.nan), "contains NaN or infinity in photo"),
    "a bad camera": (
        lambda path: write(
            path, {"format": FORMAT, "camera": json.dumps({"near": 3, "far": 1, "fov": 40})}, photo=PHOTO
        ),
        "has an invalid camera",
    ),
    "no camera at all": (
        lambda path: write(path, {"format": FORMAT, "camera": "[]"}, photo=PHOTO),
        "has an invalid camera",
    ),
    "text": (lambda path: path.write_text("hello, this is no tensor"), "is damaged or not a G-buffer"),
    "cut short": (
        lambda path: (write(path, photo=PHOTO), path.write_bytes(path.read_bytes()[:-7])),
        "is damaged or not a G-buffer",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_sentence(path, case):
    make, words = BAD[case]
    make(path)
    with pytest.raises(ValueError, match=words) as error:
        load_photo_maps(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match="There is no file a_00001_"):
        load_photo_maps(path)


def test_a_file_that_claims_too_much_is_not_read(path):
    """A hole of 6 GB behind a small header."""
    size = 3 * 20000 * 25000 * 4
    header = {"__metadata__": {"format": FORMAT}}
    header["photo"] = {"dtype": "F32", "shape": [1, 3, 20000, 25000], "data_offsets": [0, size]}
    text = json.dumps(header).encode()
    with path.open("wb") as sparse:
        sparse.write(struct.pack("<Q", len(text)) + text)
        sparse.truncate(8 + len(text) + size)
    with pytest.raises(ValueError, match=r"25000 x 20000 pixels\) needs 6.0 GB"):
        load_photo_maps(path)
