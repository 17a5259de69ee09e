"""Damaged or malicious parquet, npz and tar files: one sentence each, in `train` as in `label`."""

import io
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics import INTRINSICS
from intrinsic_lora.tests.support import tiny, tiny_training
from intrinsic_lora.tests.support.data_files import npz, png8
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.data.sample import usable
from typer.testing import CliRunner

DEPTH = INTRINSICS["depth"]
PHOTO = png8(np.linspace(0, 1, 16 * 16 * 3).reshape(16, 16, 3))
MAP = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
RAN = []


class Trap:
    """What a pickle that is executed would call."""

    def __reduce__(self):
        return RAN.append, ("a pickle ran",)


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def zipped(content: bytes, name: str = "depth.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


def doubled() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("depth.npy", header("(4, 4)") + bytes(64))
        file.writestr("depth.npy", b"second")
    return buffer.getvalue()


GOOD = npz(depth=MAP)
TRAP = pickle.dumps(np.array([[Trap()]], object))
NPZ = {
    "empty": b"",
    "truncated": GOOD[: len(GOOD) // 2],
    "without its directory": GOOD[:-30],
    "no zip": b"\x93NUMPY" * 9,
    "a pickle": TRAP,
    "objects": zipped(header("(1, 1)", "'|O'") + TRAP),
    "a pickle as a member": zipped(TRAP),
    "claims 4 TB": zipped(header("(1000000, 1000000)") + bytes(64)),
    "negative shape": zipped(header("(-1, 4)") + bytes(64)),
    "overflowing shape": zipped(header(f"({2**62}, {2**62})") + bytes(64)),
    "a header that is code": zipped(header("(__import__('os').system('true'), 4)") + bytes(64)),
    "a header nested deep": zipped(header("(" * 9000 + ")" * 9000) + bytes(64)),
    "text": npz(depth=np.array([["a", "b"]])),
    "dates": npz(depth=np.array([["2020-01-01"]], "datetime64[D]")),
    "complex": npz(depth=MAP.astype(complex)),
    "records": npz(depth=np.zeros((4, 4), [("a", "f4")])),
    "one axis": npz(depth=MAP[0]),
    "five axes": npz(depth=MAP[None, None, None]),
    "no pixels": npz(depth=MAP[:0]),
    "only NaN": npz(depth=np.full((16, 16), np.nan, np.float32)),
    "another shape": npz(depth=MAP[:2]),
    "another name": npz(shallow=MAP),
    "twice": doubled(),
}


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def only_good_is_left(source, bad: int) -> None:
    good = usable(source)
    assert [source.names[i].rpartition("/")[2] for i in good] == ["good"]
    assert len(source.problems) == bad
    assert all("\n" not in sentence and "Traceback" not in sentence for sentence in source.problems)
    assert not RAN


def test_npz_in_a_folder(tmp_path):
    for name, content in {**NPZ, "good": GOOD}.items():
        put(tmp_path / "photos" / f"{name}.png", PHOTO)
        put(tmp_path / "depth" / f"{name}.npz", content)
    source = open_source("folder", tmp_path, [DEPTH])
    only_good_is_left(source, len(NPZ))
    for name in NPZ:
        assert any(sentence.startswith(f"{name}: ") for sentence in source.problems)


def test_npz_beside_the_photos(tmp_path):
    """Opening the folder reads only the names of the arrays."""
    for name, content in {**NPZ, "good": GOOD}.items():
        put(tmp_path / f"{name}_rgb.png", PHOTO)
        put(tmp_path / f"{name}.npz", content)
    source = open_source("folder", tmp_path, [DEPTH])
    good = [source.names[i] for i in usable(source)]
    assert good == ["good_rgb"] and all("\n" not in sentence for sentence in source.problems) and not RAN


def test_npz_in_shards(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in {**NPZ, "good": GOOD}.items():
            for ending, data in (("png", PHOTO), ("depth.npz", content)):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    only_good_is_left(open_source("webdataset", tmp_path / "a.tar", [DEPTH]), len(NPZ))


def test_a_shards_member_beyond_the_memory(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for ending, data in (("png", PHOTO), ("depth.npz", bytes(2_000_000))):
            info = tarfile.TarInfo(f"a.{ending}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    monkeypatch.setenv("INTRINSIC_LORA_MEMORY_GB", "0.001")
    with pytest.raises(ValueError, match=r"depth\.npz in .*a\.tar needs 0\.0 GB of memory, more than the limit"):
        open_source("webdataset", tmp_path / "a.tar", [DEPTH])[0]


def test_a_run_leaves_them_out_and_label_keeps_them(tmp_path):
    """Run `train` on a folder with some damaged labels, and `label`, whose contact sheet reads them back."""
    base = tiny_training.write_base(tmp_path / "base")
    data = tmp_path / "data"
    put(data / "photos" / "good.png", PHOTO)
    put(data / "depth" / "good.npz", GOOD)
    for name in ("truncated", "objects", "a pickle"):
        put(data / "photos" / f"{name}.png", PHOTO)
        put(data / "depth" / f"{name}.npz", NPZ[name])
    given = {"base": base, "data.path": data, "out": tmp_path / "run", "intrinsics": "depth", "data.resolution": 16}
    given |= {"data.val_count": 0, "lora.rank": 2, "max_steps": 1, "batch_size": 1, "log": "files"}
    output = _cli("train", *(f"{key}={value}" for key, value in given.items()))
    assert output.count("damaged or not an .npz file of maps") == 3 and not RAN

    teacher = IntrinsicLoRAPipeline(**tiny.components(seed=5), default_processing_resolution=16)
    tiny.write_loras(tmp_path / "loras", teacher.unet, ("depth",))
    teacher.load_intrinsics(tmp_path / "loras")
    teacher.save_pretrained(tmp_path / "teacher")
    label = ("label", data / "photos", "--out", data, "--teacher", "intrinsic-lora", "--model", tmp_path / "teacher")
    assert "were not made by a teacher" in _cli(*label, status=1)
    put(data / "depth" / "label.json", b"[" * 100_000)
    output = _cli(*label, status=1)
    assert "label.json is not JSON" in output and "Traceback" not in output and not RAN


def _cli(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


# ---------------------------------------------------------------- parquet


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """Return a function that writes a parquet file of one row, or of bytes, and opens it."""
    datasets = pytest.importorskip("datasets")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(depth, photo=None):
        photo = {"bytes": PHOTO, "path": None} if photo is None else photo
        table = pa.table({"photo": pa.array([photo]), "depth": pa.array([depth])})
        pq.write_table(table, tmp_path / "data.parquet")
        return tmp_path / "data.parquet"

    return write


def picture(data: bytes | None, path: str | None = None) -> dict:
    return {"bytes": data, "path": path}


@pytest.mark.parametrize(
    "depth",
    [
        "text",
        b"bytes",
        PHOTO,
        TRAP,
        None,
        [["a", "b"]],
        [[0.1, 0.2], [0.3]],
        [[], [0.3]],
        [0.1, 0.2],
        [[[[0.1]]]],
        [[float("nan")] * 16] * 16,
        [[0.5] * 20_000],
        {"a": 1},
        picture(b"garbage"),
        picture(b""),
        picture(None, __file__),
        {"bytes": "text", "path": None},
    ],
)
def test_labels_in_parquet(parquet, depth):
    source = open_source("datasets", parquet(depth), [DEPTH])
    with pytest.raises(ValueError, match=r"None of the 1 samples can be read; the last one: 0: .") as error:
        usable(source)
    assert "\n" not in str(error.value) and not RAN


@pytest.mark.parametrize("photo", ["text", 3, b"garbage", TRAP, MAP.tolist(), {"a": 1}, picture(TRAP)])
def test_photos_in_parquet(parquet, photo):
    source = open_source("datasets", parquet(MAP.tolist(), photo), [DEPTH])
    with pytest.raises(ValueError, match=r"photo of row 0") as error:
        usable(source)
    assert "\n" not in str(error.value) and not RAN


def test_damaged_parquet(parquet):
    path = parquet(MAP.tolist())
    assert usable(open_source("datasets", path, [DEPTH])) == [0]
    whole = path.read_bytes()
    damaged = [whole[:n] for n in (0, 10, len(whole) // 2, len(whole) - 4)]
    damaged += [whole[:-8] + b"\xff\xff\xff\x7fPAR1", TRAP]
    for i, content in enumerate(damaged):
        file = put(path.with_name(f"damaged{i}.parquet"), content)
        with pytest.raises(ValueError, match=r"damaged\d\.parquet cannot be opened as a data set") as error:
            open_source("datasets", file, [DEPTH])
        assert "\n" not in str(error.value) and not RAN
