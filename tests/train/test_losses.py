"""Pixel losses against closed forms, against the metrics' own numpy code, and their gradients."""

import math

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics import INTRINSICS, Intrinsic, decode, encode, normalize_depth, normalize_normals
from intrinsic_lora.train.losses import angular, pixel_loss, scale_and_shift_invariant, scale_invariant
from intrinsic_lora.train.scoring.metrics import align_depth, best_scale, normal_metrics

NORMALS, DEPTH, ALBEDO, SHADING = INTRINSICS.values()
SHADOW = Intrinsic("shadow", "shadow mask", 1, "linear")
ALL = (NORMALS, DEPTH, ALBEDO, SHADING, SHADOW)


def random_map(intrinsic: Intrinsic, count: int = 2, size: int = 12, seed: int = 0) -> torch.Tensor:
    x = torch.rand(count, intrinsic.channels, size, size, generator=torch.Generator().manual_seed(seed))
    if intrinsic.name == "normals":
        return normalize_normals(x - 0.5)
    return normalize_depth(x) if intrinsic.name == "depth" else x


def noisy_picture(count: int = 2, size: int = 12, seed: int = 1) -> torch.Tensor:
    """Return a picture as drawn by a decoder: about [0, 1], with some values outside."""
    return 0.5 + 0.35 * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def everywhere(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x[:, :1], dtype=torch.bool)


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("degrees", [0.0, 0.01, 20.0, 90.0, 179.0])
@pytest.mark.parametrize("frame", ["opengl", "directx", "opencv", "controlnet"])
def test_normals_turned_by_a_known_angle(degrees, frame):
    theta = math.radians(degrees)
    truth = torch.zeros(1, 3, 4, 4)
    truth[:, 2] = 1
    turned = torch.zeros(1, 3, 4, 4)
    turned[:, 0], turned[:, 2] = math.sin(theta), math.cos(theta)
    intrinsic = Intrinsic("normals", "surface normal", 3, frame)
    picture = encode(turned, intrinsic)
    shorter = (picture - 0.5) * 0.4 + 0.5  # the length of a drawn normal does not matter
    for drawn in (picture, shorter):
        assert pixel_loss(drawn, truth, intrinsic).item() == pytest.approx(theta, abs=1e-4)


def test_depth_is_blind_to_scale_and_shift_but_not_to_the_sense():
    truth = random_map(DEPTH)
    picture = encode(truth, DEPTH)
    for scale, shift in ((1, 0), (0.3, 0.2), (2.5, -1)):
        torch.testing.assert_close(
            pixel_loss(scale * picture + shift, truth, DEPTH), torch.zeros(2), atol=1e-5, rtol=0
        )
    wrong = picture + 0.3 * noisy_picture()
    torch.testing.assert_close(pixel_loss(0.4 * wrong + 3, truth, DEPTH), pixel_loss(wrong, truth, DEPTH))
    spread = (truth - truth.mean((1, 2, 3), keepdim=True)).abs().mean((1, 2, 3))
    assert (pixel_loss(1 - picture, truth, DEPTH) > spread).all()  # far is bright: worse than drawing nothing


def test_albedo_and_shading_are_blind_to_scale():
    for intrinsic in (ALBEDO, SHADING):
        truth = random_map(intrinsic)
        for scale in (0.25, 1.0):
            picture = encode(scale * truth, intrinsic)
            torch.testing.assert_close(pixel_loss(picture, truth, intrinsic), torch.zeros(2), atol=1e-5, rtol=0)
        assert (pixel_loss(encode(1 - truth, intrinsic), truth, intrinsic) > 0.1).all()


def test_a_custom_intrinsic_is_compared_as_drawn():
    truth = random_map(SHADOW)
    picture = encode(truth, SHADOW)
    assert pixel_loss(picture, truth, SHADOW).abs().max() == 0
    torch.testing.assert_close(pixel_loss(picture + 0.25, truth, SHADOW), torch.full((2,), 0.25))
    light = Intrinsic("specular", "specular light", 3, "srgb")
    truth = random_map(light)
    assert pixel_loss(encode(truth, light), truth, light).abs().max() == 0


# ---------------------------------------------------------------------- against the metrics


def test_losses_are_what_the_metrics_measure():
    picture = noisy_picture(1)
    truth = random_map(NORMALS, 1)
    drawn = decode(picture, "normals")[0].permute(1, 2, 0).numpy()
    expected = math.radians(normal_metrics(drawn, truth[0].permute(1, 2, 0).numpy())["mean_angle"])
    assert pixel_loss(picture, truth, NORMALS).item() == pytest.approx(expected, rel=1e-4)

    truth = random_map(DEPTH, 1)
    grey = truth * 0.6 + 0.1 * noisy_picture(1)[:, :1]  # correlated, as far is far
    fitted = align_depth(*(x[0, 0].double().numpy() for x in (grey, truth)), np.ones((12, 12), bool))
    expected = np.abs(fitted - truth[0, 0].numpy()).mean()
    assert pixel_loss((1 - grey).expand(-1, 3, -1, -1), truth, DEPTH).item() == pytest.approx(expected, rel=1e-4)

    truth = random_map(ALBEDO, 1)
    picture = noisy_picture(1).clamp(0, 1)
    drawn, wanted = (x[0].permute(1, 2, 0).double().numpy() for x in (decode(picture, "albedo"), truth))
    expected = np.abs(drawn * best_scale(drawn, wanted, np.ones((12, 12), bool)) - wanted).mean()
    assert pixel_loss(picture, truth, ALBEDO).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("intrinsic", ALL, ids=lambda i: i.name)
def test_descending_a_loss_finds_the_map(intrinsic):
    truth = random_map(intrinsic, 1, 8)
    picture = noisy_picture(1, 8).requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        loss = pixel_loss(picture, truth, intrinsic).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = decode(picture.detach(), intrinsic)
    if intrinsic.name in ("albedo", "shading"):
        found = found * (found * truth).mean() / (found * found).mean()
    assert (found - truth).abs().mean() < 0.01


# ---------------------------------------------------------------------- what counts


@pytest.mark.parametrize("intrinsic", ALL, ids=lambda i: i.name)
def test_masked_and_unknown_pixels_do_not_count(intrinsic):
    truth, picture = random_map(intrinsic), noisy_picture()
    mask = torch.zeros(2, 1, 12, 12)
    mask[:, :, :, :7] = 1
    expected = pixel_loss(picture[..., :7], truth[..., :7], intrinsic)
    spoilt = torch.where(mask > 0, truth, 0.5 if intrinsic.name != "normals" else -truth)
    torch.testing.assert_close(pixel_loss(picture, spoilt, intrinsic, mask), expected)
    unknown = torch.where(mask > 0, truth, torch.nan)
    torch.testing.assert_close(pixel_loss(picture, unknown, intrinsic), expected)
    assert pixel_loss(picture, truth, intrinsic, torch.zeros(2, 1, 12, 12)).abs().max() == 0


def test_normals_of_no_length_do_not_count():
    truth, picture = random_map(NORMALS), noisy_picture()
    sky = truth.clone()
    sky[..., 7:] = 0
    torch.testing.assert_close(
        pixel_loss(picture, sky, NORMALS), pixel_loss(picture[..., :7], truth[..., :7], NORMALS)
    )


@pytest.mark.parametrize("intrinsic", ALL, ids=lambda i: i.name)
def test_every_sample_has_its_own_loss(intrinsic):
    truth, picture = random_map(intrinsic, 3), noisy_picture(3)
    mask = (torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(2)) > 0.3).float()
    alone = [pixel_loss(picture[i : i + 1], truth[i : i + 1], intrinsic, mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(pixel_loss(picture, truth, intrinsic, mask), torch.cat(alone))


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("loss", [angular, scale_and_shift_invariant, scale_invariant])
def test_gradients_against_finite_differences(loss):
    generator = torch.Generator().manual_seed(3)
    truth = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator)
    x = (0.5 * truth + 0.4 * torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    valid = torch.rand(2, 1, 4, 4, generator=generator) > 0.3
    assert torch.autograd.gradcheck(lambda x: loss(x, truth, valid), x)


@pytest.mark.parametrize("intrinsic", ALL, ids=lambda i: i.name)
def test_gradients_are_finite_wherever_the_picture_is(intrinsic):
    truth = random_map(intrinsic)
    truth[:, :, :2] = torch.nan
    right = encode(random_map(intrinsic), intrinsic)
    for start in (torch.full_like(right, 0.5), torch.zeros_like(right), -torch.ones_like(right), right, 9 * right):
        picture = start.clone().requires_grad_()
        loss = pixel_loss(picture, truth, intrinsic)
        (gradient,) = torch.autograd.grad(loss.sum(), picture)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()
        assert gradient[:, :, :2].abs().max() == 0


def test_pixels_below_black_find_the_way_back():
    picture = torch.full((1, 3, 4, 4), -0.2)
    picture[..., 2:] = 0.5
    picture.requires_grad_()
    (gradient,) = torch.autograd.grad(pixel_loss(picture, torch.full((1, 3, 4, 4), 0.3), ALBEDO).sum(), picture)
    assert (gradient[..., :2] < 0).all()  # brighter is better
