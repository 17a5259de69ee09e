"""HTML reports of evaluations: worst, median and best cases with error maps, and histograms of metrics.

A report is a single file without scripts; pictures are embedded PNGs, histograms inline SVG. Names from files
(of pictures and intrinsics) are escaped.
"""

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...intrinsics.color import linear_to_srgb
from ...intrinsics.display import display_map
from ...intrinsics.files import atomic_path, list_files, with_ending
from ...intrinsics.map_files import plain_stem
from ...intrinsics.pictures import read_picture
from ...intrinsics.vocabulary import PICTURE_SUFFIXES
from .folders import find_stems, ground_truth, load_maps, pair_stems
from .metrics import align_depth, best_scale, error_map

RANKED_BY = {"normals": ("mean_angle",), "depth": ("abs_rel", "rmse"), "albedo": ("si_rmse",), "shading": ("si_rmse",)}
UNITS = {
    "normals": "degrees",
    "depth": "|error| after scale and shift, relative where ground truth is metric",
    "albedo": "|error| after scale, linear light",
    "shading": "|error| after scale, linear light",
}
CASES = 3  # per kind
WIDTH = 256  # of an embedded picture in pixels
BINS = 24
# matplotlib's inferno at 0, 1/4, 1/2, 3/4, 1: perceptually uniform, bright = large error
INFERNO = torch.tensor([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]) / 255  # (5, 3)
EXCLUDED = 0.5  # grey, which does not occur in the colour scale

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .2rem .6rem; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } tr:nth-child(even) { background: #f4f4f4 }
img { display: block; width: 256px; max-width: 20vw; image-rendering: pixelated } img.scale { height: 12px }
.scale { width: 256px; max-width: 20vw; display: flex; justify-content: space-between }
th { overflow-wrap: anywhere; max-width: 12rem }
figure { display: inline-block; margin: .5rem 1rem .5rem 0 } figcaption { font-size: 13px } rect { fill: #49739c }
"""


@dataclass(frozen=True)
class Case:
    """One case of the report: display pictures (3, H, W) in [0, 1] and `error` (H, W), NaN at invalid pixels."""

    kind: str  # worst, median, best
    stem: str
    photo: Tensor | None
    truth: Tensor
    prediction: Tensor
    error: np.ndarray


def write_report(
    path: str | Path,
    result: dict[str, Any],
    pred_dir: str | Path,
    gt_dir: str | Path,
    photos: str | Path | None = None,
) -> None:
    """Write the report of `result`, atomically.

    Args:
        path: an `.html` file.
        result: result of `evaluate_folders(pred_dir, gt_dir)`.
        pred_dir: folder of predictions.
        gt_dir: folder of ground truth.
        photos: folder of the photos, matched by stem; defaults to `gt_dir`, as written by `render-scenes`. Without a
            photo the ground truth's `rgb_linear` is shown, if present.

    Raises:
        ValueError: another suffix, or a photo that cannot be read.
        FileNotFoundError: `photos` is not a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path.name}: a report is written as .html; change the suffix.")
    folder = Path(gt_dir if photos is None else photos)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; name the folder that contains the photos.")
    pictures = [path for path in list_files(folder) if path.suffix.lower() in PICTURE_SUFFIXES]
    found = {with_ending(path): path for path in pictures}  # a_jpg, if there are a.jpg and a.png
    found |= {plain_stem(path.stem): path for path in pictures}
    predictions, truths = find_stems(pred_dir), find_stems(gt_dir)
    pairs = pair_stems(predictions, truths)
    cases = {
        name: [
            _case(name, kind, stem, predictions[stem], truths[pairs[stem]], found.get(stem))
            for kind, stem in pick_cases({stem: ranking(name, image) for stem, image in result["images"].items()})
        ]
        for name in result["summary"]
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(_html(result, cases))


def ranking(name: str, image: dict[str, dict[str, float]]) -> float:
    """Return the error by which images are ranked for the intrinsic `name`; NaN if undefined."""
    scores = image.get(name, {})
    errors = [scores[metric] for metric in RANKED_BY.get(name, ("rmse",)) if metric in scores]
    return next((error for error in errors if math.isfinite(error)), math.nan)


def pick_cases(errors: dict[str, float]) -> list[tuple[str, str]]:
    """Select cases from {stem: error} as [(kind, stem)], worst first, at most `CASES` per kind, without duplicates."""
    ranked = sorted((stem for stem in errors if math.isfinite(errors[stem])), key=lambda stem: -errors[stem])
    count = max(1, min(CASES, len(ranked) // 3))
    middle = (len(ranked) - count) // 2
    groups = {"worst": ranked[:count], "median": ranked[middle : middle + count], "best": ranked[-count:]}
    kinds: dict[str, str] = {}
    for kind, stems in groups.items():
        for stem in stems:
            kinds.setdefault(stem, kind)
    return [(kind, stem) for stem, kind in kinds.items()]


def color_error(error: np.ndarray, limit: float) -> Tensor:
    """Colour an error map (H, W) as (3, H, W) in [0, 1]: 0 is black, `limit` and above pale yellow, NaN grey."""
    x = torch.from_numpy(np.asarray(error, np.float32)) / limit * (len(INFERNO) - 1)  # (H, W)
    position = x.nan_to_num(0).clamp(0, len(INFERNO) - 1)
    low = position.floor().long().clamp(max=len(INFERNO) - 2)
    color = torch.lerp(INFERNO[low], INFERNO[low + 1], (position - low)[..., None])  # (H, W, 3)
    return torch.where(x.isnan()[..., None], EXCLUDED, color).permute(2, 0, 1)


def error_limit(errors: list[np.ndarray]) -> float:
    """Compute the top of a common scale: the 99th percentile of the errors, rounded up to 1, 2 or 5 times 10^n."""
    values = np.concatenate([error[np.isfinite(error)] for error in errors])
    top = float(np.percentile(values, 99))
    if top < 1e-6:  # a perfect prediction, apart from rounding noise
        return 1.0
    power = 10.0 ** math.floor(math.log10(top))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= top * (1 - 1e-9))


def figure(value: float) -> str:
    """Format a metric with few digits, or as "-" if it is undefined."""
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def _case(name: str, kind: str, stem: str, pred_file: Path, gt_file: Path, photo_file: Path | None) -> Case:
    pred, gt = load_maps(pred_file), load_maps(gt_file)
    truth = ground_truth(gt)[name]
    error = error_map(name, pred[name], truth, gt.get("mask"))
    photo = None
    if photo_file is not None:
        photo = read_picture(photo_file).rgb[0]
    elif "rgb_linear" in gt:
        photo = linear_to_srgb(torch.from_numpy(gt["rgb_linear"]).permute(2, 0, 1)).clamp(max=1)
    drawn = _drawn(name, np.asarray(pred[name], np.float64), np.asarray(truth, np.float64), np.isfinite(error))
    return Case(kind, stem, photo, *drawn, error)


def _drawn(name: str, pred: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> tuple[Tensor, Tensor]:
    """Draw ground truth and prediction, (H, W) or (H, W, C), as pictures (3, H, W), aligned as for the metric."""
    truth = np.where(np.isfinite(truth), truth, 0)
    if name == "depth":
        near, far = truth[valid].min(), truth[valid].max()
        both = [truth, align_depth(pred, truth, valid)]
        both = [((x - near) / max(far - near, 1e-12)).clip(0, 1) for x in both]
    elif name in ("albedo", "shading"):
        truth, pred = (x if x.ndim == 3 else x[..., None] for x in (truth, pred))
        mean = truth.shape[-1] != pred.shape[-1]
        fitted = [x.mean(-1, keepdims=True) if mean else x for x in (pred, truth)]
        white = max(1.0, float(truth[valid].max()))  # a common white, because shading is known up to scale
        both = [truth / white, pred * best_scale(fitted[0], fitted[1], valid) / white]
    else:
        both = [truth, pred]
    pictures = []
    for x in both:
        values = torch.from_numpy(x.astype(np.float32)).reshape(*x.shape[:2], -1).permute(2, 0, 1)  # (C, H, W)
        pictures.append(display_map(values[None], name)[0].clamp(0, 1).expand(3, -1, -1))
    return pictures[0], pictures[1]


def _html(result: dict[str, Any], cases: dict[str, list[Case]]) -> bytes:
    lines = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style>',
        f"<h1>Evaluation of {len(result['images'])} images</h1>",
        *_summary(result["summary"]),
    ]
    for side, stems in result["unmatched"].items():
        if stems:
            lines.append(f"<p>{len(stems)} without a match in {side.replace('_', ' ')}.</p>")
    for name in result["summary"]:
        lines.append(f"<h2>{escape(name)}</h2>")
        images = [image[name] for image in result["images"].values() if name in image]
        for metric in dict.fromkeys(metric for scores in images for metric in scores):
            lines.append(_histogram(metric, [scores.get(metric, math.nan) for scores in images]))
        lines += _case_table(name, cases[name], result["images"])
    lines += [
        "<h2>Every image</h2><details><summary>Show</summary><table>",
        *_every_image(result),
        "</table></details>",
    ]
    # Bytes in file names that are not UTF-8 become "?".
    return "\n".join([*lines, "</html>", ""]).encode("utf-8", "replace")


def _summary(summary: dict[str, dict[str, float]]) -> Iterator[str]:
    yield "<table><tr><th>mean over images</th>" + "".join(f"<th>{escape(name)}</th>" for name in summary) + "</tr>"
    for metric in dict.fromkeys(metric for scores in summary.values() for metric in scores):
        cells = (figure(scores.get(metric, math.nan)) for scores in summary.values())
        yield f"<tr><th>{escape(metric)}</th>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"
    yield "</table>"


def _case_table(name: str, cases: list[Case], images: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    if not cases:
        yield "<p>No image can be ranked.</p>"
        return
    limit = error_limit([case.error for case in cases])
    ramp = color_error(np.linspace(0, limit, WIDTH)[None], limit)  # (3, 1, WIDTH)
    scale = f'<img class="scale" alt="" src="{_png(ramp)}"><span class="scale"><i>0</i><i>{limit:g}</i></span>'
    unit = UNITS.get(name, "|error|")
    yield f"<table><tr><th></th><th>photo</th><th>ground truth</th><th>prediction</th><th>{unit}{scale}</th></tr>"
    for case in cases:
        metric = figure(ranking(name, images[case.stem]))
        shown = (case.photo, case.truth, case.prediction, color_error(case.error, limit))
        cells = "".join(f'<td><img alt="" src="{_png(x)}"></td>' if x is not None else "<td></td>" for x in shown)
        yield f"<tr><th>{case.kind}<br>{escape(case.stem)}<br>{metric}</th>{cells}</tr>"
    yield "</table>"


def _every_image(result: dict[str, Any]) -> Iterator[str]:
    columns = [(name, metric) for name, scores in result["summary"].items() for metric in scores if metric != "images"]
    yield (
        "<tr><th></th>" + "".join(f"<th>{escape(name)}<br>{escape(metric)}</th>" for name, metric in columns) + "</tr>"
    )
    for stem, image in result["images"].items():
        cells = (figure(image.get(name, {}).get(metric, math.nan)) for name, metric in columns)
        yield f"<tr><th>{escape(stem)}</th>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"


def _histogram(metric: str, values: list[float]) -> str:
    """Draw a histogram of a metric over images as inline SVG."""
    defined = np.array([value for value in values if math.isfinite(value)])
    if not defined.size:
        return f"<figure><figcaption>{escape(metric)}: not defined</figcaption></figure>"
    counts, edges = np.histogram(defined, BINS)
    bars = "".join(
        f'<rect x="{10 * i}" y="{60 - 60 * n / counts.max():.1f}" width="9" height="{60 * n / counts.max():.1f}">'
        f"<title>{figure(edges[i])} to {figure(edges[i + 1])}: {n}</title></rect>"
        for i, n in enumerate(counts)
        if n
    )
    caption = (
        f"{escape(metric)}: {figure(defined.min())} to {figure(defined.max())}, median {figure(np.median(defined))}"
    )
    return f'<figure><svg width="240" height="60" role="img">{bars}</svg><figcaption>{caption}</figcaption></figure>'


def _png(picture: Tensor) -> str:
    """Encode (C, H, W) in [0, 1] as a data URL of a PNG, at most `WIDTH` pixels wide."""
    levels = (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(levels.numpy()))
    image.thumbnail((WIDTH, 4 * WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
