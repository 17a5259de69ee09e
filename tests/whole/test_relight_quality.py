"""Relighting against the renderer: true pictures of scenes under a lamp they did not have, and what others do.

The figures of `benchmarks/relight_quality.py` on its first test scenes, at the size of the embedded model.
"""

import runpy
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics import linear_to_srgb, srgb_to_linear
from intrinsic_lora.intrinsics.relight import EXACT_DEPTH, Camera, make_gbuffer, relight
from intrinsic_lora.train.scenes import render as scenes

SCENES, SIZE = 24, 64
MEASURED = 34.5  # dB, both modes with true maps
MAPS = ("normals", "depth", "albedo", "shading")


@pytest.fixture(scope="module")
def quality(root):
    return SimpleNamespace(**runpy.run_path(str(root / "benchmarks" / "relight_quality.py")))


@pytest.fixture(scope="module")
def pairs(quality):
    return [quality.make_pair("test", i, SIZE) for i in range(SCENES)]


@pytest.fixture(scope="module")
def extracted(quality, pairs):
    """G-buffers of the embedded model's maps, with the true camera."""
    pipe = IntrinsicLoRAPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    maps = quality.extract(pipe, pairs)
    return [make_gbuffer(p.photo, **m, camera=p.gbuffer.camera) for p, m in zip(pairs, maps, strict=True)]


def relit(quality, pairs, gbuffers, **options):
    """PSNR per scene."""
    return [quality.psnr(relight(g, p.lights, **options).image, p.truth) for p, g in zip(pairs, gbuffers, strict=True)]


def multiplied(quality, pairs, gbuffers, gamma=True):
    """PSNR per scene of the photo times N.L."""
    return [quality.psnr(quality.multiply(g, p.lights, gamma), p.truth) for p, g in zip(pairs, gbuffers, strict=True)]


def test_without_shadows_the_renderers_light_is_ours_in_the_same_units(quality):
    """An empty room under one lamp: both renderers agree on the falloff and the lamp's position."""
    for i in range(6):
        scene = replace(scenes.sample_scene(np.random.default_rng([5, i])), solids=(), ambient=0.0)
        b = scenes.render(scene, SIZE)
        maps = {name: torch.from_numpy(np.atleast_3d(b[name])).permute(2, 0, 1)[None] for name in MAPS}
        camera = Camera(near=b["depth_metric"].min().item(), far=b["depth_metric"].max().item(), fov=scene.fov)
        gbuffer = make_gbuffer(**maps, photo=maps["albedo"], camera=camera)
        lamp, position = quality.hang_lamp(scene, gbuffer, np.random.default_rng(i))
        rendered = scenes.render(replace(scene, lights=(scenes.Light(position, 2.0, 0.1, softening=0.0),)), SIZE)
        ours = relight(gbuffer, [replace(lamp, intensity=2.0)], shadow=0).shading[0, 0].numpy()
        expected = rendered["shading"][..., 0] * rendered["shading_scale"]
        np.testing.assert_allclose(ours, expected, atol=2e-3 * expected.max())


def test_psnr_is_blind_to_exposure_and_to_nothing_else(quality, pairs):
    truth = pairs[0].truth
    linear = srgb_to_linear(truth.clamp(max=0.9))
    reference = linear_to_srgb(linear)
    assert quality.psnr(0.13 * linear, reference) > 50
    noisy = reference + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert quality.psnr(srgb_to_linear(noisy), reference) == pytest.approx(26.0, abs=0.5)


def test_with_true_maps_the_relit_photo_is_the_renderers(quality, pairs):
    true = [pair.gbuffer for pair in pairs]
    others = mean(multiplied(quality, pairs, true))
    for mode in ("ratio", "albedo"):
        assert mean(relit(quality, pairs, true, mode=mode, march=EXACT_DEPTH)) > max(MEASURED - 1, others + 8)


def test_with_extracted_maps_ratio_beats_the_photo_times_n_l(quality, pairs, extracted):
    ours = mean(relit(quality, pairs, extracted))
    assert ours > mean(multiplied(quality, pairs, extracted)) + 2  # on sRGB values, as nodes do
    assert ours > mean(multiplied(quality, pairs, extracted, gamma=False)) + 0.5  # on light


def test_shadows_are_where_the_renderer_has_them(quality, pairs):
    dark = [pair for pair in pairs if pair.shadowed > 0.02]
    true = [pair.gbuffer for pair in dark]
    assert len(dark) >= 5
    assert mean(relit(quality, dark, true)) > mean(relit(quality, dark, true, shadow=0)) + 3


def test_without_shadows_in_the_scene_marching_finds_none(quality, pairs):
    bright = [pair for pair in pairs if pair.shadowed == 0]
    true = [pair.gbuffer for pair in bright]
    assert len(bright) >= 3
    assert mean(relit(quality, bright, true)) > mean(relit(quality, bright, true, shadow=0)) - 1
