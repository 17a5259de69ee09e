"""The embedded default model on test scenes: the maps meet the specification."""

from statistics import mean

import pytest
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics import INTRINSICS
from intrinsic_lora.train.recipes.embedded.common import mean_scores
from intrinsic_lora.train.recipes.embedded.data import labelled
from intrinsic_lora.train.recipes.embedded.recipes import RECIPES
from intrinsic_lora.train.recipes.embedded.report import constant_scores

SCENES = 40


@pytest.fixture(scope="module")
def pipe():
    pipe = IntrinsicLoRAPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def truth():
    return labelled("test", SCENES)


@pytest.fixture(scope="module")
def maps(pipe, truth):
    return pipe(truth["rgb"], batch_size=20)


def test_it_brings_all_four_intrinsics(pipe):
    assert pipe.intrinsics == tuple(INTRINSICS)


def test_it_is_small(root):
    size = sum(path.stat().st_size for path in (root / "assets").rglob("*") if path.is_file())
    assert size < 60e6


def test_it_meets_the_required_figures(maps, truth):
    """The "must" column of the model's specification (issue #2), on the first test scenes."""
    scores = mean_scores({name: maps[name] for name in INTRINSICS}, truth)
    assert scores["normals"]["mean_angle"] <= 22 and scores["normals"]["median_angle"] <= 14
    assert scores["depth"]["delta1"] >= 0.80
    assert scores["albedo"]["si_rmse"] <= 0.10
    assert scores["shading"]["si_rmse"] <= 0.085


def test_it_is_far_better_than_not_looking(maps, truth):
    ours = mean_scores({name: maps[name] for name in INTRINSICS}, truth)
    blind = constant_scores(truth, RECIPES["64"])
    assert ours["normals"]["mean_angle"] < 0.7 * blind["normals"]["mean_angle"]
    assert ours["depth"]["abs_rel"] < 0.8 * blind["depth"]["abs_rel"]
    for name in ("albedo", "shading"):
        assert ours[name]["si_rmse"] < 0.8 * blind[name]["si_rmse"]


def test_the_loras_make_the_difference(pipe, truth):
    """Each map is best explained by its own LoRA, and the base alone draws none of them."""
    pictures = truth["rgb"][:8]
    normals = pipe(pictures, intrinsics="normals").normals
    rolled = mean_scores({"normals": normals.roll(1, dims=0)}, {k: v[:8] for k, v in truth.items()})
    own = mean_scores({"normals": normals}, {k: v[:8] for k, v in truth.items()})
    assert own["normals"]["mean_angle"] < rolled["normals"]["mean_angle"] - 5


def test_photo_is_about_albedo_times_shading(maps, truth):
    from intrinsic_lora.intrinsics import srgb_to_linear

    photo, product = srgb_to_linear(truth["rgb"]), maps.albedo * maps.shading
    errors = []
    for a, b in zip(photo, product, strict=True):
        scale = (a * b).sum() / (b * b).sum()
        errors.append(((a - scale * b).pow(2).mean() / a.pow(2).mean()).sqrt().item())
    assert mean(errors) < 0.35


@pytest.mark.parametrize("size", [(64, 64), (37, 91), (200, 120)])
def test_every_size_comes_back_as_it_went_in(pipe, size):
    maps = pipe(torch.rand(1, 3, *size))
    for name in (*INTRINSICS, "confidence"):
        assert maps[name].shape[-2:] == size and torch.isfinite(maps[name]).all()
