"""The studies on the embedded model, with a handful of scenes and steps, through their command."""

import json

import pytest
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics import read_lora
from intrinsic_lora.train.recipes.embedded.common import mean_scores
from intrinsic_lora.train.recipes.embedded.data import labelled
from intrinsic_lora.train.recipes.embedded.studies import app
from typer.testing import CliRunner


def table(text: str) -> tuple[list[str], dict[str, list[float]]]:
    """Parse the only Markdown table in a text: headings, and {first cell: its numbers}."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return rows[0], {row[0]: [float(cell) for cell in row[1:]] for row in rows[2:]}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_pixel_losses_are_compared_by_what_the_pipeline_draws(tmp_path):
    few = ["--intrinsics", "normals", "--losses", "latent,pixel", "--steps", 2, "--labels", 3, "--scenes", 2]
    heads, rows = table(run("pixel", *few, "--seeds", "0,1", "--timed", 1, "--out", tmp_path))
    assert heads == ["normals, mean_angle", "seed 0", "seed 1", "mean", "spread", "CPU s per step"]
    assert list(rows) == ["latent", "pixel"]
    truth = labelled("val", 2)
    pipe = IntrinsicLoRAPipeline.from_pretrained()
    for loss, (first, second, mean, spread, seconds) in rows.items():
        assert mean == pytest.approx((first + second) / 2, rel=1e-3) and seconds > 0
        assert spread == pytest.approx(abs(first - second), abs=0.01)
        folder = tmp_path / "pixel" / f"normals-{loss}-2-1"
        pipe.load_intrinsics(folder)
        drawn = pipe(truth["rgb"], intrinsics=["normals"]).normals
        # The trainer validates under bf16 autocast, the pipeline draws in float32.
        assert mean_scores({"normals": drawn}, truth)["normals"]["mean_angle"] == pytest.approx(second, rel=0.02)
        header = read_lora(folder / "intrinsic_lora_normals.safetensors").header.entries
        assert json.loads(header["intrinsic_lora.training"])["config"]["loss"] == loss
    assert rows["latent"][:2] != rows["pixel"][:2]


def test_one_step_and_many_are_compared_on_the_same_layers(tmp_path):
    few = ["--intrinsics", "albedo", "--steps", 1, "--labels", 2, "--scenes", 1, "--split", "val"]
    heads, rows = table(run("multi-step", *few, "--out", tmp_path))
    assert heads == ["albedo", "si_rmse", "edges_truth", "edges_photo", "displaced", "colour_shift"]
    assert [label.split(",")[0] for label in rows] == ["single step", *["multi step"] * 3, "ground truth"]
    assert rows["ground truth"][0] == 0 and rows["ground truth"][1] == 1
    assert all(values[0] > 0 for label, values in rows.items() if label != "ground truth")
    single, multi = (
        read_lora(tmp_path / "multi_step" / f"albedo-{method}-1" / "intrinsic_lora_albedo.safetensors").weights
        for method in ("single-step", "multi-step")
    )
    assert single.keys() == multi.keys() and "conv_in" in single
    a, _, _ = multi["conv_in"]
    assert a.shape[1] == 2 * single["conv_in"][0].shape[1]  # it sees the noise and the photo
