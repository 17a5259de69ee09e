"""The small generators of assets/generators: they load offline, and their LoRAs draw the maps of their pictures."""

from pathlib import Path

import pytest
import torch
from intrinsic_lora.intrinsics import INTRINSICS, decode, encode
from intrinsic_lora.train.backbones import load_backbone
from intrinsic_lora.train.generators.lora_files import attach_lora, generator_loras
from intrinsic_lora.train.methods import OnePass
from intrinsic_lora.train.recipes.embedded.common import mean_scores
from intrinsic_lora.train.recipes.embedded.data import labelled
from intrinsic_lora.train.teachers.load import load_teacher
from torch import Tensor

GENERATORS = Path(__file__).parents[3] / "assets" / "generators"
MAIN = {"normals": "mean_angle", "depth": "rmse", "albedo": "si_rmse", "shading": "si_rmse"}

Maps = dict[str, Tensor]


def draw(backbone, folder: Path, conditions: Tensor) -> tuple[Tensor, Maps]:
    """Render the plain pictures, which the LoRAs do not change, and the maps."""
    with torch.no_grad():
        plain = backbone.render(conditions)
    loras = generator_loras(folder / "loras", backbone)
    for name, lora in loras.items():
        attach_lora(backbone, name, lora)
    maps = {name: OnePass(backbone).maps(conditions, name) for name in loras}
    backbone.activate(None)
    with torch.no_grad():
        assert torch.equal(backbone.render(conditions), plain)
    return plain, maps


def errors(maps: Maps, truth: Maps) -> dict[str, float]:
    scores = mean_scores(maps, {"depth_metric": truth["depth"]} | truth)
    return {name: scores[name][MAIN[name]] for name in maps}


def constant(truth: Maps) -> Maps:
    """Score the mean of these labels, slightly better than the best prediction that ignores the picture."""
    means = {name: decode(encode(truth[name], name).mean(0, keepdim=True), name) for name in INTRINSICS}
    return {name: mean.expand(len(truth[name]), -1, -1, -1) for name, mean in means.items()}


def test_vqgan_draws_unseen_scenes_and_their_maps():
    truth = labelled("test", 24)
    truth.pop("depth_metric")  # the canonical one stands in for it: no ratio of it is looked at
    backbone = load_backbone(GENERATORS / "vqgan", list(INTRINSICS.values()))
    plain, maps = draw(backbone, GENERATORS / "vqgan", backbone.encode_picture(truth["rgb"]))
    psnr = -10 * torch.log10((plain.clamp(0, 1) - truth["rgb"]).square().mean()).item()
    assert psnr > 31
    ours, theirs = errors(maps, truth), errors(constant(truth), truth)
    assert set(ours) == set(INTRINSICS)
    for name in ("albedo", "shading"):
        assert ours[name] < 0.8 * theirs[name], name


def test_stylegan_draws_the_maps_that_the_embedded_pipeline_sees():
    backbone = load_backbone(GENERATORS / "stylegan2", list(INTRINSICS.values()))
    plain, maps = draw(backbone, GENERATORS / "stylegan2", backbone.sample(range(10_000, 10_024), truncation=0.7))
    labels = load_teacher("intrinsic-lora")((plain.clamp(0, 1) * 255).round() / 255)
    ours, theirs = errors(maps, labels), errors(constant(labels), labels)
    for name in INTRINSICS:
        assert ours[name] < 0.85 * theirs[name], name


@pytest.mark.parametrize("name", ["vqgan", "stylegan2"])
def test_shipped_files_are_small_and_say_whose_they_are(name):
    files = [path for path in (GENERATORS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6
    assert (GENERATORS / name / "README.md") in files
    backbone = load_backbone(GENERATORS / name, [])
    for lora in generator_loras(GENERATORS / name / "loras", backbone).values():
        assert lora.header.base_model == name
        assert lora.header.base_hash == backbone.fingerprint
