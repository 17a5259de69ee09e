"""Scoring of a folder of predictions against a folder of ground truth; files are matched by stem.

Both folders contain `.npz` files with canonical maps `normals` (H, W, 3), `depth` (H, W), `albedo` (H, W, 3),
`shading` (H, W, C), as written by extraction and by the scene renderer. Ground truth may also contain `mask` (H, W),
non-zero where it is valid, and `depth_metric` (H, W), which replaces `depth` and is valid as defined by
`intrinsics.depth.valid_depth`. Any other map in both files, (H, W) or (H, W, C) in [0, 1], is a custom intrinsic.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...intrinsics.depth import valid_depth
from ...intrinsics.files import continued, list_files, some_names
from ...intrinsics.map_files import plain_stem, read_npz
from ...intrinsics.vocabulary import PICTURE_SUFFIXES
from .metrics import (
    albedo_metrics,
    confidence_ranking,
    depth_metrics,
    error_map,
    map_metrics,
    normal_metrics,
    shading_metrics,
)

__all__ = [
    "albedo_metrics",
    "depth_metrics",
    "evaluate_folders",
    "find_stems",
    "load_maps",
    "map_metrics",
    "normal_metrics",
    "score",
    "shading_metrics",
]

METRICS = {
    "normals": normal_metrics,
    "depth": depth_metrics,
    "albedo": albedo_metrics,
    "shading": shading_metrics,
}
ENDINGS = tuple(f"_{suffix[1:]}" for suffix in PICTURE_SUFFIXES)
NO_INTRINSICS = ("mask", "confidence", "depth_metric", "rgb_linear")


def evaluate_folders(pred_dir: str | Path, gt_dir: str | Path) -> dict[str, Any]:
    """Compute the metrics of all predictions with ground truth; `0003_rgb.npz` and `0003.npz` have the same stem.

    Returns:
        `images`: {stem: {intrinsic: {metric: float}}};
        `summary`: {intrinsic: {"images": count, metric: mean over images}}. Metrics are computed per image,
            so `median_angle` is the mean of the images' medians, not the median of all pixels; images for which a
            metric is undefined (NaN) are excluded from its mean;
        `unmatched`: {"predictions": [stems], "ground_truth": [stems]}.

    Raises:
        FileNotFoundError: a folder does not exist or contains no `.npz`.
        ValueError: no stems match, two files have the same stem, or a file, named by the message, cannot be scored.
    """
    predictions, truths = find_stems(pred_dir), find_stems(gt_dir)
    pairs = pair_stems(predictions, truths)
    if not pairs:
        ours, theirs = (some_names([path.name for path in stems.values()]) for stems in (predictions, truths))
        raise ValueError(
            f"No prediction has ground truth of the same name: {pred_dir} contains {ours}, {gt_dir} contains {theirs}."
        )
    images = {}
    for stem, truth in pairs.items():
        pred, gt = load_maps(predictions[stem]), load_maps(truths[truth])
        try:
            images[stem] = score(pred, gt)
        except ValueError as error:
            raise ValueError(f"{predictions[stem]}: {continued(error)}") from error
    return {
        "images": images,
        "summary": _summary(images),
        "unmatched": {
            "predictions": sorted(predictions.keys() - pairs.keys()),
            "ground_truth": sorted(truths.keys() - set(pairs.values())),
        },
    }


def pair_stems(predictions: Mapping[str, Path], truths: Mapping[str, Path]) -> dict[str, str]:
    """Match stems as {stem of a prediction: stem of its ground truth}, sorted.

    `a_jpg`, the name of the results of a.jpg if there is also an a.png, matches `a` if there is no `a_jpg`.
    """
    pairs = {}
    for stem in sorted(predictions):
        plain = next((stem.removesuffix(ending) for ending in ENDINGS if stem.endswith(ending)), stem)
        truth = next((name for name in (stem, plain, plain_stem(plain)) if name in truths), None)
        if truth is not None:
            pairs[stem] = truth
    return pairs


def score(pred: dict[str, np.ndarray], gt: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Compute {intrinsic: {metric: float}} of one image for all intrinsics in both `pred` and `gt`.

    If `pred` has `confidence` (H, W), each intrinsic also gets `confidence_spearman`, see `confidence_ranking`.
    """
    truths = ground_truth(gt)
    scores = {}
    for name in (*METRICS, *(name for name in pred if _is_custom(name, pred[name]))):
        if name not in pred or name not in truths:
            continue
        try:
            scores[name] = METRICS.get(name, map_metrics)(pred[name], truths[name], gt.get("mask"))
            if "confidence" in pred:
                error = error_map(name, pred[name], truths[name], gt.get("mask"))
                scores[name]["confidence_spearman"] = confidence_ranking(pred["confidence"], error)
        except ValueError as error:
            raise ValueError(f"{name}: {continued(error)}") from error
    if not scores:
        raise ValueError(f"The prediction ({', '.join(pred)}) and the ground truth ({', '.join(gt)}) share no map.")
    return scores


def ground_truth(gt: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the maps of ground truth, with `depth` replaced by `depth_metric`, if present, and NaN if invalid."""
    if "depth_metric" not in gt:
        return gt
    metric = gt["depth_metric"]
    return {**gt, "depth": np.where(valid_depth(metric), metric, np.nan)}


def _is_custom(name: str, array: np.ndarray) -> bool:
    return name not in METRICS and name not in NO_INTRINSICS and array.ndim in (2, 3) and array.dtype.kind in "fbu"


def _summary(images: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    summary: dict[str, dict[str, float]] = {}
    custom = sorted({name for image in images.values() for name in image} - METRICS.keys())
    for name in (*METRICS, *custom):
        scored = [image[name] for image in images.values() if name in image]
        if not scored:
            continue
        summary[name] = {"images": len(scored)}
        for metric in dict.fromkeys(key for scores in scored for key in scores):
            values = np.array([scores.get(metric, np.nan) for scores in scored])
            defined = values[np.isfinite(values)]
            summary[name][metric] = float(defined.mean()) if defined.size else float("nan")
    return summary


def find_stems(folder: str | Path) -> dict[str, Path]:
    """List the `.npz` files at the top level of `folder` as {stem without `_rgb`: path}.

    Raises:
        FileNotFoundError: the folder does not exist or contains no `.npz`.
        ValueError: two files have the same stem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; name the folder that contains the .npz files.")
    stems: dict[str, Path] = {}
    for path in list_files(folder):
        if path.suffix != ".npz":
            continue
        stem = plain_stem(path.stem)
        if stem in stems:
            raise ValueError(
                f"{stems[stem]} and {path.name} have the same stem; keep predictions and truth in separate folders."
            )
        stems[stem] = path
    if not stems:
        raise FileNotFoundError(f"{folder} contains no .npz files; name a folder of maps as .npz files.")
    return stems


def load_maps(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` by name; ValueError if it requires pickle or is too large."""
    return read_npz(path)
