"""`extract_folder` from Python: it writes the pipeline's maps, resumes, and reports."""

import numpy as np
import pytest
from intrinsic_lora import IntrinsicLoRAPipeline, extract_folder
from intrinsic_lora.diffusers_pipeline.extract import Extracted
from intrinsic_lora.tests.support import tiny
from PIL import Image

NAMES = ("normals", "depth")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    pipe = IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=16)
    tiny.write_loras(folder, pipe.unet, NAMES, timestep=100)
    pipe.load_intrinsics(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "sub/c.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_files_hold_what_the_pipeline_returns(pipe, photos, tmp_path):
    steps = []
    done = extract_folder(
        pipe, photos, tmp_path / "maps", formats=["npz"], recursive=True, progress=lambda *counts: steps.append(counts)
    )
    assert done == Extracted(written=3, skipped=0, failed=0)
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for stem in ("a", "b", "sub/c"):
        expected = pipe(Image.open(photos / f"{stem}.png"), upsample="guided")
        with np.load(tmp_path / "maps" / f"{stem}.npz") as stored:
            assert set(stored.files) == {*NAMES, "confidence"}
            np.testing.assert_allclose(stored["normals"], expected.normals[0].permute(1, 2, 0), atol=1e-5)
            np.testing.assert_allclose(stored["depth"], expected.depth[0, 0], atol=1e-5)


def test_a_second_call_resumes_and_a_bad_picture_is_left_out_alone(pipe, photos, tmp_path):
    failures, notes = {}, []
    assert extract_folder(pipe, photos / "a.png", tmp_path / "maps") == Extracted(1, 0, 0)
    (photos / "b.png").write_bytes(b"damaged")
    (photos / "film.mp4").write_bytes(b"")
    Image.new("RGB", (400, 8)).save(photos / "wide.png")  # beyond 16:1
    done = extract_folder(
        pipe, str(photos), str(tmp_path / "maps"), batch_size=4, failed=failures.__setitem__, note=notes.append
    )
    assert done == Extracted(written=0, skipped=1, failed=2)
    assert set(failures) == {photos / "b.png", photos / "wide.png"}
    assert [sentence for sentence in notes if "film.mp4" in sentence]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"intrinsics": ["albedo"]}, "No LoRA was found for albedo; loaded: normals, depth"),
        ({"formats": ["jpg"]}, "jpg: results are written as png"),
        ({"formats": ["png", "png16"]}, "same file names"),
    ],
)
def test_refusals_come_before_anything_is_written(pipe, photos, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        extract_folder(pipe, photos, tmp_path / "maps", **options)
    assert not (tmp_path / "maps").exists()


def test_results_never_overwrite_pictures(pipe, photos):
    with pytest.raises(ValueError, match="choose another folder"):
        extract_folder(pipe, photos, photos)
    Image.open(photos / "a.png").save(photos / "a_depth.png")
    with pytest.raises(ValueError, match="would overwrite the picture"):
        extract_folder(pipe, [photos / "a.png", photos / "a_depth.png"], photos)
