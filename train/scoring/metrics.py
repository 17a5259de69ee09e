"""Metrics for normals, depth, albedo, shading and other maps, in numpy.

Maps have the layout of the `.npz` files: normals and albedo (H, W, 3), depth (H, W), shading (H, W, C), canonical
conventions. A `mask` (H, W) is non-zero where ground truth is valid; pixels whose ground truth is not finite are
always excluded. All functions compute in float64 and return floats; a metric that is undefined for
its input (a ratio to depth 0, a rank correlation of a constant) is NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

LMSE_WINDOW = 20  # pixels, Grosse et al. 2009
SSIM_WINDOW = 7  # scikit-image's default


def normal_metrics(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Compute the angular error of unit normals (H, W, 3) in the same frame.

    Ground-truth vectors of length zero (sky, no surface) are excluded.

    Returns:
        `mean_angle` and `median_angle` in degrees; `under_11.25`, `under_22.5`, `under_30`: the share of pixels,
        0..1, with a smaller error.

    Raises:
        ValueError: shapes differ, no pixel is valid, or the prediction is not finite at a valid pixel.
    """
    pred, gt, valid = _prepare(pred, gt, mask)
    valid &= np.linalg.norm(gt, axis=-1) > 0
    angle = angular_error(pred, gt)[valid]
    if not angle.size:
        raise ValueError("No pixel is valid: the mask is empty or all ground-truth normals are zero.")
    return {
        "mean_angle": float(angle.mean()),
        "median_angle": float(np.median(angle)),
        "under_11.25": float((angle < 11.25).mean()),
        "under_22.5": float((angle < 22.5).mean()),
        "under_30": float((angle < 30).mean()),
    }


def depth_metrics(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Compute errors of affine-invariant depth (H, W) after the least-squares scale and shift of `pred` to `gt`.

    `gt` should be metric (> 0). If it reaches 0, as a canonical 0..1 map does, ratios are undefined and
    `abs_rel` and the deltas are NaN. `rmse` has the unit of `gt`.

    Returns:
        `abs_rel`, `rmse`, `delta1`, `delta2`, `delta3` (share with max(p/g, g/p) < 1.25, 1.25^2, 1.25^3).

    Raises:
        ValueError: shapes differ, no pixel is valid, or the prediction is not finite at a valid pixel.
    """
    pred, gt, valid = _prepare(pred, gt, mask)
    aligned, gt = align_depth(pred, gt, valid)[valid], gt[valid]
    metrics = {"abs_rel": np.nan, "rmse": _rms(aligned - gt), "delta1": np.nan, "delta2": np.nan, "delta3": np.nan}
    if gt.min() > 0:
        # The fit may place pixels behind the camera, whose negative ratio would be below 1.25.
        ratio = np.maximum(gt / np.maximum(aligned, 1e-9), aligned / gt)
        metrics["abs_rel"] = float((np.abs(aligned - gt) / gt).mean())
        for k in (1, 2, 3):
            metrics[f"delta{k}"] = float((ratio < 1.25**k).mean())
    return metrics


def albedo_metrics(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Compute errors of linear-light maps (H, W) or (H, W, C); if channels differ, both are reduced to their mean.

    Returns:
        `rmse`: without alignment.
        `si_rmse`: after the scale (shared by the channels) of `pred` that minimises it.
        `lmse`: Grosse et al. 2009: 20 x 20 windows every 10 pixels, each with its own scale, summed squared error
            over summed squared ground truth; a map smaller than a window is one window.
        `ssim`: scikit-image's structural similarity (7 x 7, uniform) after the scale of `si_rmse`, data range
            0..max(gt); NaN for maps smaller than 7 pixels. Masked pixels are 0 in both maps and not averaged.

    Raises:
        ValueError: shapes differ, no pixel is valid, or the prediction is not finite at a valid pixel.
    """
    pred, gt = _same_channels(pred, gt)
    pred, gt, valid = _prepare(pred, gt, mask)
    scaled = pred * best_scale(pred, gt, valid)
    return {
        "rmse": _rms((pred - gt)[valid]),
        "si_rmse": _rms((scaled - gt)[valid]),
        "lmse": _lmse(pred, gt, valid),
        "ssim": _ssim(scaled, gt, valid),
    }


shading_metrics = albedo_metrics  # shading is (H, W, C) and known up to scale


def map_metrics(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Compute errors of any other map in [0, 1], (H, W) or (H, W, C), without alignment.

    Channels are treated as in `albedo_metrics`.

    Returns:
        `mae`; `rmse`; `ssim` as for `albedo_metrics`; and for maps of one channel `iou`, the intersection over
        union of the pixels above 0.5, NaN if there are none.

    Raises:
        ValueError: shapes differ, no pixel is valid, or the prediction is not finite at a valid pixel.
    """
    pred, gt = _same_channels(pred, gt)
    pred, gt, valid = _prepare(pred, gt, mask)
    metrics = {
        "mae": float(np.abs(pred - gt)[valid].mean()),
        "rmse": _rms((pred - gt)[valid]),
        "ssim": _ssim(pred, gt, valid),
    }
    if gt.shape[-1] == 1:
        ours, true = pred[valid] > 0.5, gt[valid] > 0.5
        union = (ours | true).sum()
        metrics["iou"] = float((ours & true).sum() / union) if union else float("nan")
    return metrics


def error_map(intrinsic: str, pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Compute the per-pixel error (H, W) of the metrics; NaN where ground truth is invalid.

    For normals degrees; for depth |difference| after scale and shift, divided by the ground truth if that is
    positive everywhere; for other maps |difference| averaged over channels, after the best scale for albedo and
    shading.
    """
    if intrinsic not in ("normals", "depth"):
        pred, gt = _same_channels(pred, gt)
    pred, gt, valid = _prepare(pred, gt, mask)
    if intrinsic == "normals":
        valid &= np.linalg.norm(gt, axis=-1) > 0
        error = angular_error(pred, gt)
    elif intrinsic == "depth":
        error = np.abs(align_depth(pred, gt, valid) - gt)
        if gt[valid].min() > 0:
            error = error / np.where(valid, gt, 1)
    else:
        scale = best_scale(pred, gt, valid) if intrinsic in ("albedo", "shading") else 1.0
        error = np.abs(pred * scale - gt).mean(-1)
    return np.where(valid, error, np.nan)


def confidence_ranking(confidence: ArrayLike, error: ArrayLike) -> float:
    """Compute Spearman's rank correlation of 1 - `confidence` (H, W) and `error` (H, W).

    1: the least confident pixels are exactly the worst ones; 0: no correlation; below 0: misleading.
    NaN errors are excluded; the result is NaN if either is constant.
    """
    from scipy.stats import spearmanr

    confidences, errors = np.asarray(confidence, np.float64), np.asarray(error, np.float64)
    if confidences.shape != errors.shape:
        raise ValueError(
            f"The confidence has shape {confidences.shape} and the map {errors.shape}: they must be equal."
        )
    valid = np.isfinite(errors)
    confidences, errors = confidences[valid], errors[valid]
    if confidences.size < 2 or np.ptp(confidences) == 0 or np.ptp(errors) == 0:
        return float("nan")
    return float(spearmanr(-confidences, errors).statistic)


def angular_error(pred: Array, gt: Array) -> Array:
    """Compute angles in degrees between vectors (..., 3) of any length; atan2 is accurate near 0, unlike arccos."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(pred, gt), axis=-1), (pred * gt).sum(-1)))


def align_depth(pred: Array, gt: Array, valid: Mask) -> Array:
    """Apply the scale and shift to `pred` (H, W) that fit it to `gt` over `valid` by least squares."""
    system = np.stack([pred[valid], np.ones(valid.sum())], axis=1)  # (N, 2)
    scale, shift = np.linalg.lstsq(system, gt[valid], rcond=None)[0]
    return pred * scale + shift


def best_scale(pred: Array, gt: Array, valid: Mask) -> float:
    """Compute the scale of `pred` (H, W, C) that fits `gt` over `valid` by least squares; 0 for an all-zero `pred`."""
    energy = (pred[valid] ** 2).sum()
    return float((pred[valid] * gt[valid]).sum() / energy) if energy > 0 else 0.0


def _lmse(pred: Array, gt: Array, valid: Mask) -> float:
    height, width = valid.shape
    window = (min(LMSE_WINDOW, height), min(LMSE_WINDOW, width))
    step = max(1, min(window) // 2)

    def window_sums(x: Array) -> Array:  # (H, W) -> (windows down, windows across)
        return np.lib.stride_tricks.sliding_window_view(x, window)[::step, ::step].sum((-2, -1))

    pred, gt = pred * valid[..., None], np.where(valid[..., None], gt, 0)
    pp, pg, gg = (window_sums((a * b).sum(-1)) for a, b in ((pred, pred), (pred, gt), (gt, gt)))
    # min over s of |g - s p|^2 = gg - pg^2 / pp; rounding may give a negative value for a perfect window
    residual = np.maximum(gg - np.divide(pg**2, pp, out=np.zeros_like(pp), where=pp > 0), 0)
    return float(residual.sum() / gg.sum()) if gg.sum() > 0 else float("nan")


def _ssim(pred: Array, gt: Array, valid: Mask) -> float:
    from skimage.metrics import structural_similarity

    data_range = gt[valid].max()
    if min(valid.shape) < SSIM_WINDOW or data_range <= 0:
        return float("nan")
    pred, gt = (np.where(valid[..., None], x, 0) for x in (pred, gt))
    similarity = structural_similarity(
        gt, pred, win_size=SSIM_WINDOW, data_range=data_range, channel_axis=-1, full=True
    )[1]
    # As in scikit-image's mean, the border, where windows exceed the map, is excluded.
    inner = (slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2)),) * 2
    counted = similarity[inner][valid[inner]]
    return float(counted.mean()) if counted.size else float("nan")


def _same_channels(pred: ArrayLike, gt: ArrayLike) -> tuple[Array, Array]:
    """Return both maps as (H, W, C); if C differs, as the mean of their channels (H, W, 1)."""
    maps = [np.asarray(x, np.float64) for x in (pred, gt)]
    maps = [x[..., None] if x.ndim == 2 else x for x in maps]
    if maps[0].shape[-1] != maps[1].shape[-1]:
        maps = [x.mean(-1, keepdims=True) for x in maps]
    return maps[0], maps[1]


def _prepare(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array, Mask]:
    pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
    if pred.shape != gt.shape:
        raise ValueError(f"The prediction has shape {pred.shape} and the ground truth {gt.shape}: they must be equal.")
    valid = np.isfinite(gt) if gt.ndim == 2 else np.isfinite(gt).all(-1)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != valid.shape:
            raise ValueError(f"The mask has shape {mask.shape} and the map {valid.shape}: they must be equal.")
        valid &= mask != 0
    if not valid.any():
        raise ValueError("No pixel is valid: the mask is empty or the ground truth is nowhere finite.")
    if not np.isfinite(pred[valid]).all():
        raise ValueError("The prediction holds NaN or infinity where ground truth is valid: it cannot be scored.")
    return pred, gt, valid


def _rms(x: Array) -> float:
    return float(np.sqrt((x**2).mean()))
