"""The field's metrics for normals, depth, albedo, shading and plain maps, in plain numpy.

Maps come in the layout of the `.npz` files: normals and albedo (H, W, 3), depth (H, W), shading (H, W, C), canonical
conventions. A `mask` (H, W) says where ground truth counts (non-zero = counts); pixels whose ground truth is not
finite never count. Every function computes in float64 and returns plain floats; a metric that is not defined for
its input (a ratio against depth 0, a rank correlation of a constant) is NaN, never a made-up number.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

LMSE_WINDOW = 20  # Grosse et al. 2009: windows of 20 x 20 pixels ...
SSIM_WINDOW = 7  # scikit-image's default


def normal_metrics(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Angular error of unit normals (H, W, 3) in one frame.

    Ground-truth vectors of length zero (sky, no surface) do not count.

    Returns: `mean_angle` and `median_angle` in degrees; `under_11.25`, `under_22.5`, `under_30`: the share of pixels,
    0..1, with a smaller error.
    """
    pred, gt, valid = _prepare(pred, gt, mask)
    valid &= np.linalg.norm(gt, axis=-1) > 0
    angle = angular_error(pred, gt)[valid]
    if not angle.size:
        raise ValueError("no pixel counts: the mask is empty or no ground-truth normal has a length.")
    return {
        "mean_angle": float(angle.mean()),
        "median_angle": float(np.median(angle)),
        "under_11.25": float((angle < 11.25).mean()),
        "under_22.5": float((angle < 22.5).mean()),
        "under_30": float((angle < 30).mean()),
    }


def depth_metrics(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Affine-invariant depth (H, W): errors after the least-squares scale and shift of `pred` to `gt`.

    `gt` should be metric (> 0). Where it reaches 0, as a canonical 0..1 map does, the ratios mean nothing and
    `abs_rel` and the deltas are NaN; `rmse` is still given. `rmse` has the unit of `gt`.

    Returns: `abs_rel`, `rmse`, `delta1`, `delta2`, `delta3` (share with max(p/g, g/p) < 1.25, 1.25^2, 1.25^3).
    """
    pred, gt, valid = _prepare(pred, gt, mask)
    aligned, gt = align_depth(pred, gt, valid)[valid], gt[valid]
    metrics = {"abs_rel": np.nan, "rmse": _rms(aligned - gt), "delta1": np.nan, "delta2": np.nan, "delta3": np.nan}
    if gt.min() > 0:
        # The fit may put a pixel behind the camera; a negative ratio would count as "within 1.25".
        ratio = np.maximum(gt / np.maximum(aligned, 1e-9), aligned / gt)
        metrics["abs_rel"] = float((np.abs(aligned - gt) / gt).mean())
        for k in (1, 2, 3):
            metrics[f"delta{k}"] = float((ratio < 1.25**k).mean())
    return metrics


def albedo_metrics(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Linear-light maps (H, W) or (H, W, C); where the channel counts differ, both are reduced to their mean.

    Returns:
        `rmse`: as the maps stand.
        `si_rmse`: after the one scale (shared by the channels) of `pred` that minimises it.
        `lmse`: Grosse et al. 2009: 20 x 20 windows every 10 pixels, each with its own scale, summed squared error
            over summed squared ground truth; a map smaller than a window is one window.
        `ssim`: scikit-image's structural similarity (7 x 7, uniform) after the scale of `si_rmse`, data range
            0..max(gt); NaN for maps smaller than 7 pixels. Masked pixels are blanked in both maps and not averaged.
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


shading_metrics = albedo_metrics  # the same four figures; shading is (H, W, C) and only ever known up to scale


def map_metrics(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Any other map in [0, 1], (H, W) or (H, W, C): no scale is forgiven. Channel counts as for `albedo_metrics`.

    Returns: `mae`; `rmse`; `ssim` as for `albedo_metrics`; and for maps of one channel `iou`, the intersection over
    union of what is above 0.5 in each: NaN where that is nothing in both.
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
    """Per-pixel error (H, W) behind the metrics; NaN where ground truth does not count.

    Degrees for normals; |difference| for depth after scale and shift, divided by the ground truth where that is
    positive everywhere; |difference|, averaged over channels, for the rest: after the best scale for albedo and
    shading, as it stands for a map of any other name.
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
    """How well `confidence` (H, W) ranks `error` (H, W): Spearman's rho of 1 - confidence against error.

    1: the least confident pixels are exactly the worst ones; 0: confidence says nothing; below 0: it misleads.
    NaN errors do not count; NaN is returned where either is constant.
    """
    from scipy.stats import spearmanr

    trust, wrong = np.asarray(confidence, np.float64), np.asarray(error, np.float64)
    if trust.shape != wrong.shape:
        raise ValueError(f"confidence has shape {trust.shape} and the map {wrong.shape}: they must be equal")
    valid = np.isfinite(wrong)
    trust, wrong = trust[valid], wrong[valid]
    if trust.size < 2 or np.ptp(trust) == 0 or np.ptp(wrong) == 0:
        return float("nan")
    return float(spearmanr(-trust, wrong).statistic)


def angular_error(pred: Array, gt: Array) -> Array:
    """Angle in degrees between vectors (..., 3) of any length; atan2 keeps it exact near 0, where arccos is not."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(pred, gt), axis=-1), (pred * gt).sum(-1)))


def align_depth(pred: Array, gt: Array, valid: Mask) -> Array:
    """`pred` (H, W) under the scale and shift that fit it to `gt` best over `valid`, in the least-squares sense."""
    system = np.stack([pred[valid], np.ones(valid.sum())], axis=1)  # (N, 2)
    scale, shift = np.linalg.lstsq(system, gt[valid], rcond=None)[0]
    return pred * scale + shift


def best_scale(pred: Array, gt: Array, valid: Mask) -> float:
    """The scale of `pred` (H, W, C) with the least squared error to `gt` over `valid`; 0 for an all-zero `pred`."""
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
    # min over s of |g - s p|^2 = gg - pg^2 / pp; rounding can take a perfect window a hair below 0
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
    # Like scikit-image's own mean, leave out the border, where the window hangs over the edge.
    inner = (slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2)),) * 2
    counted = similarity[inner][valid[inner]]
    return float(counted.mean()) if counted.size else float("nan")


def _same_channels(pred: ArrayLike, gt: ArrayLike) -> tuple[Array, Array]:
    """Both as (H, W, C); where C differs, both as the mean of their channels (H, W, 1)."""
    maps = [np.asarray(x, np.float64) for x in (pred, gt)]
    maps = [x[..., None] if x.ndim == 2 else x for x in maps]
    if maps[0].shape[-1] != maps[1].shape[-1]:
        maps = [x.mean(-1, keepdims=True) for x in maps]
    return maps[0], maps[1]


def _prepare(pred: ArrayLike, gt: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array, Mask]:
    pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
    if pred.shape != gt.shape:
        raise ValueError(f"the prediction has shape {pred.shape} and the ground truth {gt.shape}: they must be equal.")
    valid = np.isfinite(gt) if gt.ndim == 2 else np.isfinite(gt).all(-1)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != valid.shape:
            raise ValueError(f"the mask has shape {mask.shape} and the map {valid.shape}: they must be equal.")
        valid &= mask != 0
    if not valid.any():
        raise ValueError("no pixel counts: the mask is empty or the ground truth is nowhere finite.")
    if not np.isfinite(pred[valid]).all():
        raise ValueError("the prediction holds NaN or infinity where ground truth counts: it cannot be scored.")
    return pred, gt, valid


def _rms(x: Array) -> float:
    return float(np.sqrt((x**2).mean()))
