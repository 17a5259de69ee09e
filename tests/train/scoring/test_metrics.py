"""Metrics against hand-computed cases, closed forms and other libraries (numpy lstsq, scipy, scikit-image)."""

import json

import numpy as np
import pytest
from intrinsic_lora.train.scoring.folders import evaluate_folders, score
from intrinsic_lora.train.scoring.metrics import (
    albedo_metrics,
    angular_error,
    confidence_ranking,
    depth_metrics,
    error_map,
    map_metrics,
    normal_metrics,
    shading_metrics,
)
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tilted(*degrees):
    """(1, N, 3) unit vectors tilted from +Z towards +X."""
    angle = np.radians(np.array([degrees]))
    return np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=-1)


# normals


def test_normals_by_hand():
    metrics = normal_metrics(tilted(0, 10, 20, 90), tilted(0, 0, 0, 0))
    assert metrics == pytest.approx(
        {"mean_angle": 30, "median_angle": 15, "under_11.25": 0.5, "under_22.5": 0.75, "under_30": 0.75}
    )


def test_normals_opposite_and_unnormalised():
    assert normal_metrics(-7 * tilted(5), 3 * tilted(5))["mean_angle"] == pytest.approx(180)


def test_small_angles_survive_where_arccos_loses_them():
    assert angular_error(tilted(1e-7), tilted(0))[0, 0] == pytest.approx(1e-7, rel=1e-6)


def test_angular_error_equals_arccos(rng):
    a, b = rng.normal(size=(2, 8, 9, 3))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(angular_error(a, b), np.degrees(np.arccos(cosine)), atol=1e-5)


def test_normals_leave_out_mask_sky_and_nan():
    pred, gt = tilted(0, 40, 40, 40, 20), tilted(0, 0, 0, 0, 0)
    gt[0, 2] = 0
    gt[0, 3] = np.nan
    metrics = normal_metrics(pred, gt, mask=np.array([[1, 0, 1, 1, 1]]))
    assert metrics["mean_angle"] == pytest.approx(10)


# depth


def test_depth_that_is_affine_to_truth_is_perfect(rng):
    gt = rng.uniform(1, 5, (12, 9))
    metrics = depth_metrics(0.3 * gt - 0.7, gt)
    assert metrics == pytest.approx({"abs_rel": 0, "rmse": 0, "delta1": 1, "delta2": 1, "delta3": 1}, abs=1e-12)


def test_depth_by_hand():
    # The residual (+1 -1 -1 +1) is orthogonal to 1 and to pred, so the fit of gt = 2 pred + 10 + residual is exact.
    pred = np.array([[0.0, 1, 2, 3]])
    gt = 2 * pred + 10 + np.array([[1.0, -1, -1, 1]])
    metrics = depth_metrics(pred, gt)
    assert metrics["rmse"] == pytest.approx(1)
    assert metrics["abs_rel"] == pytest.approx(np.mean([1 / 11, 1 / 11, 1 / 13, 1 / 17]))
    assert metrics["delta1"] == 1


def test_depth_deltas_count_their_thresholds():
    # Thousands of exact pixels hold the fit; the four odd ones hardly move it.
    pred = np.concatenate([np.full(5000, 1.0), np.full(5000, 3.0), [2.0, 2.0, 2.0, 2.0]])[None]
    gt = pred.copy()
    gt[0, -4:] = [2 / 1.2, 2 * 1.4, 2 * 1.8, 2 * 2.2]
    metrics = depth_metrics(pred, gt)
    assert metrics["delta1"] == pytest.approx(10001 / 10004)
    assert metrics["delta2"] == pytest.approx(10002 / 10004)
    assert metrics["delta3"] == pytest.approx(10003 / 10004)


def test_depth_fit_equals_polyfit_over_the_mask_only(rng):
    pred, gt = rng.uniform(0, 1, (2, 10, 11)) + 0.5
    mask = rng.random((10, 11)) > 0.4
    scale, shift = np.polyfit(pred[mask], gt[mask], 1)
    gt_outside = np.where(mask, gt, 1e6)
    expected = np.sqrt(np.mean((scale * pred[mask] + shift - gt[mask]) ** 2))
    assert depth_metrics(pred, gt_outside, mask)["rmse"] == pytest.approx(expected)


def test_depth_pixel_fitted_behind_the_camera_is_wrong_not_right():
    pred, gt = np.array([[0.0, 1, 2, 3, 4]]), np.array([[0.01, 0.01, 0.01, 10, 10]])
    aligned = np.polyval(np.polyfit(pred[0], gt[0], 1), pred[0])
    assert aligned[0] < 0
    assert depth_metrics(pred, gt)["delta3"] == pytest.approx(
        np.mean([a > 0 and max(a / g, g / a) < 1.25**3 for a, g in zip(aligned, gt[0], strict=True)])
    )


def test_depth_ratios_are_undefined_against_a_map_that_reaches_zero():
    gt = np.linspace(0, 1, 12).reshape(3, 4)
    metrics = depth_metrics(gt**2, gt)
    assert np.isnan([metrics[key] for key in ("abs_rel", "delta1", "delta2", "delta3")]).all()
    assert metrics["rmse"] > 0


def test_flat_depth_prediction_is_scored_as_the_mean(rng):
    gt = rng.uniform(1, 2, (6, 6))
    assert depth_metrics(np.full_like(gt, 0.4), gt)["rmse"] == pytest.approx(gt.std())


# albedo and shading


def test_albedo_by_hand():
    pred, gt = np.array([[[1.0], [2.0]]]), np.array([[[2.0], [2.0]]])
    metrics = albedo_metrics(pred, gt)
    assert metrics["rmse"] == pytest.approx(np.sqrt(1 / 2))
    # scale 6/5: residuals (2 - 1.2, 2 - 2.4)
    assert metrics["si_rmse"] == pytest.approx(np.sqrt((0.8**2 + 0.4**2) / 2))
    # one window: summed squared residual 0.8 over summed squared truth 8
    assert metrics["lmse"] == pytest.approx(0.1)
    assert np.isnan(metrics["ssim"])


def test_scaled_truth_is_perfect_but_for_rmse(rng):
    gt = rng.uniform(0.1, 1, (40, 33, 3))
    metrics = albedo_metrics(0.25 * gt, gt)
    assert metrics["rmse"] == pytest.approx(0.75 * np.sqrt((gt**2).mean()))
    assert [metrics["si_rmse"], metrics["lmse"], metrics["ssim"]] == pytest.approx([0, 0, 1], abs=1e-9)


def test_scale_invariant_rmse_equals_a_numerical_minimum(rng):
    pred, gt = rng.uniform(0, 1, (2, 15, 16, 3))
    best = minimize_scalar(lambda s: ((s * pred - gt) ** 2).mean())
    assert albedo_metrics(pred, gt)["si_rmse"] == pytest.approx(np.sqrt(best.fun))


@pytest.mark.parametrize("size", [(40, 55), (20, 64), (13, 9)])
def test_lmse_equals_the_loops_of_grosse_et_al(rng, size):
    pred, gt = rng.uniform(0, 1, (2, *size, 1))
    mask = rng.random(size) > 0.3
    rows, columns = min(20, size[0]), min(20, size[1])
    step = min(rows, columns) // 2
    error = total = 0.0
    for i in range(0, size[0] - rows + 1, step):
        for j in range(0, size[1] - columns + 1, step):
            here = np.s_[i : i + rows, j : j + columns]
            p, g = pred[here][mask[here]], gt[here][mask[here]]
            alpha = (p * g).sum() / (p * p).sum()
            error += ((g - alpha * p) ** 2).sum()
            total += (g * g).sum()
    assert albedo_metrics(pred, gt, mask)["lmse"] == pytest.approx(error / total)


def test_lmse_forgives_a_slow_drift_that_si_rmse_does_not():
    gt = np.tile(0.5 + 0.5 * (np.arange(80) % 2), (80, 1))[..., None]
    drift = np.linspace(0.5, 2, 80)[:, None, None]
    metrics = shading_metrics(gt * drift, gt)
    relative_si = metrics["si_rmse"] ** 2 / (gt**2).mean()
    assert metrics["lmse"] < 0.2 * relative_si


def test_ssim_equals_scikit_image(rng):
    gt = rng.uniform(0, 1, (24, 31, 3))
    pred = np.clip(gt + rng.normal(0, 0.1, gt.shape), 0, 1)
    scale = (pred * gt).sum() / (pred**2).sum()
    expected = structural_similarity(gt, scale * pred, channel_axis=-1, data_range=gt.max())
    assert albedo_metrics(pred, gt)["ssim"] == pytest.approx(expected)


def test_masked_pixels_change_nothing(rng):
    pred, gt = rng.uniform(0.1, 1, (2, 30, 30, 3))
    mask = np.zeros((30, 30))
    mask[4:25, 3:28] = 1
    spoilt = pred.copy()
    spoilt[mask == 0] = 99
    assert albedo_metrics(spoilt, gt, mask) == albedo_metrics(pred, gt, mask)
    spoilt_gt = gt.copy()
    spoilt_gt[mask == 0] = np.nan
    assert albedo_metrics(pred, spoilt_gt, mask) == albedo_metrics(pred, gt, mask)


def test_differing_channel_counts_are_reduced_by_mean(rng):
    colour, grey = rng.uniform(0, 1, (21, 22, 3)), rng.uniform(0, 1, (21, 22, 1))
    expected = shading_metrics(colour.mean(-1, keepdims=True), grey)
    assert shading_metrics(colour, grey) == pytest.approx(expected)
    assert shading_metrics(colour, grey[..., 0]) == pytest.approx(expected)
    assert shading_metrics(grey, colour)["rmse"] == pytest.approx(expected["rmse"])


def test_black_prediction_scores_the_whole_truth():
    metrics = albedo_metrics(np.zeros((20, 20, 3)), np.full((20, 20, 3), 0.5))
    assert metrics["si_rmse"] == pytest.approx(0.5)
    assert metrics["lmse"] == pytest.approx(1)


# confidence


def test_confidence_that_ranks_error_perfectly_is_one(rng):
    error = rng.uniform(0, 1, (8, 9))
    assert confidence_ranking(1 - error**3, error) == pytest.approx(1)
    assert confidence_ranking(error, error) == pytest.approx(-1)


def test_confidence_equals_scipy_and_skips_nan(rng):
    confidence, error = rng.uniform(0, 1, (2, 8, 9))
    holes = rng.random((8, 9)) > 0.7
    expected = spearmanr(1 - confidence[~holes], error[~holes]).statistic
    assert confidence_ranking(confidence, np.where(holes, np.nan, error)) == pytest.approx(expected)


def test_constant_confidence_has_no_ranking(rng):
    assert np.isnan(confidence_ranking(np.ones((4, 4)), rng.uniform(0, 1, (4, 4))))


def test_error_maps_average_to_the_metrics(rng):
    pred, gt = rng.normal(size=(2, 9, 8, 3))
    assert np.nanmean(error_map("normals", pred, gt)) == pytest.approx(normal_metrics(pred, gt)["mean_angle"])
    mask = rng.random((9, 8)) > 0.5
    pred, gt = rng.uniform(1, 2, (2, 9, 8))
    error = error_map("depth", pred, gt, mask)
    assert np.isnan(error[~mask]).all()
    assert error[mask].mean() == pytest.approx(depth_metrics(pred, gt, mask)["abs_rel"])
    error = error_map("shading", pred[..., None], gt[..., None])
    assert np.sqrt((error**2).mean()) == pytest.approx(shading_metrics(pred, gt)["si_rmse"])


# refusals


@pytest.mark.parametrize("metrics", [normal_metrics, albedo_metrics])
def test_refusals_say_what_is_wrong(metrics):
    ones = np.ones((8, 8, 3))
    with pytest.raises(ValueError, match=r"\(8, 8, 3\) and the ground truth \(8, 9, 3\)"):
        metrics(ones, np.ones((8, 9, 3)))
    with pytest.raises(ValueError, match="mask is empty"):
        metrics(ones, ones, np.zeros((8, 8)))
    with pytest.raises(ValueError, match="NaN"):
        metrics(np.full_like(ones, np.nan), ones)


# folders


@pytest.fixture
def folders(tmp_path, rng):
    """Two images with ground truth, one prediction without, one ground truth without; `depth_metric` and a mask."""
    pred_dir, gt_dir = tmp_path / "pred", tmp_path / "gt"
    pred_dir.mkdir()
    gt_dir.mkdir()
    for i in range(3):
        size = (24, 20 + i)
        truth = {
            "normals": rng.normal(size=(*size, 3)),
            "depth_metric": rng.uniform(1, 4, size),
            "albedo": rng.uniform(0.1, 1, (*size, 3)),
            "shading": rng.uniform(0.1, 1, (*size, 1)),
            "mask": rng.random(size) > 0.2,
        }
        prediction = {
            "normals": truth["normals"] + rng.normal(0, 0.1, (*size, 3)),
            "depth": 2 * truth["depth_metric"] - 1,
            "albedo": truth["albedo"] + 0.1,
            "shading": np.repeat(truth["shading"], 3, axis=-1),
            "confidence": rng.uniform(0, 1, size),
        }
        np.savez(gt_dir / f"{i:04d}.npz", depth=truth["depth_metric"] ** 2, **truth)
        np.savez(pred_dir / f"{i:04d}_rgb.npz", **prediction)
    (pred_dir / "0002_rgb.npz").rename(pred_dir / "other.npz")
    return pred_dir, gt_dir


def test_folders(folders):
    pred_dir, gt_dir = folders
    report = evaluate_folders(pred_dir, gt_dir)
    assert report["unmatched"] == {"predictions": ["other"], "ground_truth": ["0002"]}
    assert list(report["images"]) == ["0000", "0001"]

    pred, gt = np.load(pred_dir / "0001_rgb.npz"), np.load(gt_dir / "0001.npz")
    image = report["images"]["0001"]
    expected = normal_metrics(pred["normals"], gt["normals"], gt["mask"])
    assert {key: image["normals"][key] for key in expected} == expected
    assert image["depth"]["abs_rel"] == pytest.approx(0, abs=1e-9)  # fits depth_metric, not its square in `depth`
    assert image["albedo"]["rmse"] == pytest.approx(0.1)
    assert image["shading"]["si_rmse"] == pytest.approx(0, abs=1e-9)
    error = error_map("normals", pred["normals"], gt["normals"], gt["mask"])
    assert image["normals"]["confidence_spearman"] == confidence_ranking(pred["confidence"], error)

    for name, summary in report["summary"].items():
        assert summary.pop("images") == 2
        for metric, value in summary.items():
            assert value == pytest.approx(np.mean([report["images"][i][name][metric] for i in ("0000", "0001")]))
    json.dumps(report)


def test_score_takes_what_both_sides_have(rng):
    albedo = rng.uniform(0, 1, (9, 9, 3))
    assert list(score({"albedo": albedo, "depth": albedo[..., 0]}, {"albedo": albedo})) == ["albedo"]
    with pytest.raises(ValueError, match=r"prediction \(depth\) and the ground truth \(albedo\) share no map"):
        score({"depth": albedo[..., 0]}, {"albedo": albedo})


def test_folders_that_do_not_match_list_what_is_there(folders):
    pred_dir, gt_dir = folders
    for i in range(2):
        (pred_dir / f"000{i}_rgb.npz").unlink()
    with pytest.raises(ValueError, match=r"contains other\.npz, .* contains 0000\.npz, 0001\.npz, 0002\.npz"):
        evaluate_folders(pred_dir, gt_dir)


def test_folders_refuse_the_unusable(folders, tmp_path):
    pred_dir, gt_dir = folders
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        evaluate_folders(tmp_path / "nowhere", gt_dir)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.npz"):
        evaluate_folders(pred_dir, tmp_path / "empty")
    (pred_dir / "0001_rgb.npz").write_bytes((pred_dir / "0001_rgb.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"0001_rgb\.npz cannot be read: it is damaged or not an \.npz file"):
        evaluate_folders(pred_dir, gt_dir)
    (pred_dir / "0000.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="same stem"):
        evaluate_folders(pred_dir, gt_dir)


# custom maps


def test_a_plain_map_by_hand():
    pred, gt = np.array([[0.9, 0.6, 0.2, 0.0]]), np.array([[1.0, 0.0, 1.0, 0.0]])
    metrics = map_metrics(pred, gt)
    assert metrics["mae"] == pytest.approx((0.1 + 0.6 + 0.8 + 0) / 4)
    assert metrics["rmse"] == pytest.approx(np.sqrt((0.01 + 0.36 + 0.64) / 4))
    assert metrics["iou"] == pytest.approx(1 / 3)  # one pixel in both, three in either
    assert map_metrics(pred, gt, np.array([[1, 0, 1, 1]]))["iou"] == pytest.approx(1 / 2)
    assert np.isnan(map_metrics(np.zeros((1, 4)), np.zeros((1, 4)))["iou"])
    assert "iou" not in map_metrics(np.ones((9, 9, 3)), np.ones((9, 9, 3)))


def test_a_plain_maps_scale_is_not_forgiven(rng):
    gt = rng.uniform(0, 1, (20, 21))
    assert map_metrics(0.5 * gt, gt)["mae"] == pytest.approx(gt.mean() / 2)
    assert error_map("shadow", 0.5 * gt, gt) == pytest.approx(gt / 2)
    noisy = np.clip(gt + rng.normal(0, 0.1, gt.shape), 0, 1)
    expected = structural_similarity(gt, noisy, data_range=gt.max())
    assert map_metrics(noisy, gt[..., None])["ssim"] == pytest.approx(expected)


def test_folders_score_maps_of_other_names_but_nothing_that_is_none(tmp_path, rng):
    for folder in ("pred", "gt"):
        (tmp_path / folder).mkdir()
    shadow = rng.uniform(0, 1, (9, 8))
    shared = {"mask": np.ones((9, 8)), "rgb_linear": rng.uniform(0, 1, (9, 8, 3)), "caption": np.array("a room")}
    np.savez(tmp_path / "gt" / "a.npz", shadow=shadow, object=np.ones((9, 8), int), **shared)
    np.savez(tmp_path / "pred" / "a.npz", shadow=shadow[..., None] / 2, object=np.ones((9, 8), int), **shared)
    report = evaluate_folders(tmp_path / "pred", tmp_path / "gt")
    assert list(report["images"]["a"]) == list(report["summary"]) == ["shadow"]
    assert report["summary"]["shadow"]["mae"] == pytest.approx(shadow.mean() / 2)
