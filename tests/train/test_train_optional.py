"""Optional packages, where they are installed: wandb (offline) and bitsandbytes (on the CPU)."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from intrinsic_lora.tests.support import tiny_training
from intrinsic_lora.train.loop import train
from PIL import Image, ImageChops


@pytest.fixture
def run(tmp_path):
    """Return a function that builds a configuration: `run("name", key=value)`."""
    base, data = tiny_training.write_base(tmp_path / "base"), tiny_training.write_scenes(tmp_path / "data", 5)
    return lambda name, **changes: tiny_training.config(base, data, tmp_path / name, **changes)


def rows(config) -> list[dict]:
    with open(Path(config.out) / "metrics.jsonl") as file:
        return [json.loads(line) for line in file]


# ---------------------------------------------------------------------- wandb


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Read the records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


def test_wandb_gets_what_metrics_jsonl_has_and_one_run_stays_one(run, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports] - optional

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    given = {"log": "wandb", "validate_every": 10, "checkpoint_every": 10}
    config = run("run", max_steps=10, **given)
    train(config)
    train(run("run", max_steps=20, **given))  # resumes
    files = sorted(Path(config.out).glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    records = [Record.FromString(data) for file in files for data in wandb_records(file.read_bytes())]
    assert len({record.run.run_id for record in records if record.HasField("run")}) == 1
    history = {}
    for record in records:
        if record.HasField("history"):
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            history[row["_step"]] = row
    assert sorted(history) == [0, 10, 20]
    for row in rows(config):
        told = history.get(row["step"])
        if "validation" in row:
            assert told["val/normals/mean_angle"] == pytest.approx(row["validation"]["normals"]["mean_angle"])
        elif told is not None:
            assert told["loss/normals"] == pytest.approx(row["loss"]["normals"])
            assert told["grad_norm/normals"] == pytest.approx(row["grad_norm"]["normals"])
    (sheet,) = (Path(config.out) / "wandb").glob("offline-run-*/files/media/images/validation_20_*.png")
    ours = Image.open(Path(config.out) / "validation" / "step_000020.png").convert("RGB")
    assert ImageChops.difference(Image.open(sheet).convert("RGB"), ours).getbbox() is None


# ---------------------------------------------------------------------- bitsandbytes


def test_adamw8bit_keeps_its_state_in_bytes_and_goes_on_exactly(run):
    pytest.importorskip("bitsandbytes")
    given = {"lora__rank": 64, "max_steps": 8, "checkpoint_every": 4, "optimizer__lr": 1e-3}
    exact, whole = run("exact", **given), run("whole", optimizer__name="adamw8bit", **given)
    parted = [run("parted", optimizer__name="adamw8bit", **(given | {"max_steps": steps})) for steps in (4, 8)]
    for config in (exact, whole, *parted):
        train(config)
    state = torch.load(Path(whole.out) / "checkpoints/step_000008/state.pt", weights_only=True)["optimizer"]["state"]
    kinds = {
        x.dtype for one in state.values() for x in one["__bnb_optimizer_quant_state__"].values() if x.numel() > 4095
    }
    assert kinds == {torch.uint8}
    for a, b in zip(rows(exact), rows(whole), strict=True):
        if "loss" in a:
            assert b["loss"]["normals"] == pytest.approx(a["loss"]["normals"], rel=0.05)
    results = [
        tiny_training.weights(Path(c.out) / "intrinsic_lora_normals.safetensors") for c in (exact, whole, parted[1])
    ]
    assert all(torch.equal(results[1][key], results[2][key]) for key in results[1])
    assert not all(torch.equal(results[0][key], results[1][key]) for key in results[0])
