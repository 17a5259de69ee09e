"""Validation of a run: scores on held-out pictures, and a sheet of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..intrinsics.display import display_map
from ..intrinsics.sheet import contact_sheet
from ..intrinsics.vocabulary import Intrinsic
from .backbones.interfaces import Named
from .data.conditions import encode_conditions
from .data.sample import Source, nothing_readable, prepare, stack_maps, try_read
from .methods import Method
from .scoring.folders import score

# The metric that chooses the best weights; smaller is better. Labels of depth reach 0, so ratios mean nothing there.
METRIC = {"normals": "mean_angle", "depth": "rmse", "albedo": "si_rmse", "shading": "si_rmse"}
SHEET_ROWS = 6

Scores = dict[str, dict[str, float]]  # {intrinsic: {metric: mean over pictures}}


@dataclass(frozen=True)
class Validation:
    """Pictures, their conditions, labels and masks, all prepared to the training resolution; N of each."""

    photos: Tensor  # (N, 3, H, W)
    conditions: Tensor  # (N, ...), what the generator draws from
    labels: dict[str, Tensor]  # canonical, (N, C, H, W)
    masks: list[Tensor | None]  # (1, H, W)


def main_metric(name: str) -> str:
    """Return the metric that decides which weights of an intrinsic are best."""
    return METRIC.get(name, "rmse")


def load_validation(source: Source, backbone: Named, intrinsics: Sequence[Intrinsic], resolution: int) -> Validation:
    """Read and encode all readable samples of `source`; ValueError if there are none."""
    read = [try_read(source, i) for i in range(len(source))]
    samples = [prepare(sample, resolution) for sample in read if sample is not None]
    if not samples:
        raise nothing_readable(source)
    photos = torch.stack([sample.photo for sample in samples])  # (N, 3, H, W)
    conditions = encode_conditions(samples, backbone)  # (N, ...)
    labels = {i.name: stack_maps([sample.labels[i.name] for sample in samples]) for i in intrinsics}
    return Validation(photos, conditions, labels, [sample.mask for sample in samples])


@torch.no_grad()
def predict_maps(method: Method, name: str, conditions: Tensor, batch_size: int = 4) -> Tensor:
    """Return canonical maps (N, C, H, W) on the CPU."""
    device = method.backbone.device
    return torch.cat([method.maps(z.to(device), name).float().cpu() for z in conditions.split(batch_size)])


def score_maps(maps: Mapping[str, Tensor], validation: Validation) -> Scores:
    """Return the metrics, each averaged over the pictures where it is defined."""
    scores: Scores = {}
    for name, predicted in maps.items():
        rows = []
        for p, t, mask in zip(predicted, validation.labels[name], validation.masks, strict=True):
            truth = {name: _array(t)} | ({} if mask is None else {"mask": mask[0].numpy()})
            rows.append(score({name: _array(p)}, truth)[name])
        scores[name] = {}
        for metric in rows[0]:
            defined = [row[metric] for row in rows if math.isfinite(row[metric])]
            scores[name][metric] = float(np.mean(defined)) if defined else math.nan
    return scores


def sheet(maps: Mapping[str, Tensor], validation: Validation, intrinsics: Sequence[Intrinsic]) -> Image.Image:
    """Draw the first pictures: photo, then label and prediction of every intrinsic side by side."""
    columns: list[tuple[str, Tensor]] = [("photo", validation.photos[:SHEET_ROWS])]
    for intrinsic in intrinsics:
        pairs = (("label", validation.labels[intrinsic.name]), ("prediction", maps[intrinsic.name]))
        columns += [(f"{intrinsic.name}: {what}", display_map(x[:SHEET_ROWS], intrinsic)) for what, x in pairs]
    return contact_sheet(columns, cell_width=192)


def _array(canonical: Tensor) -> np.ndarray:
    """Return (H, W, C), or (H, W) for a single channel, of (C, H, W), as the metrics take them."""
    return canonical.permute(1, 2, 0).squeeze(-1).numpy()
