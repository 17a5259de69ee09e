"""DIODE (diode-dataset.org), the data set of the paper."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...intrinsics.depth import valid_depth
from ...intrinsics.map_files import as_map, read_npy
from ...intrinsics.pictures import read_picture
from ...intrinsics.vocabulary import Intrinsic
from .label_files import canonical
from .listing import file_stamp, files_by_stem, lacking, spread
from .sample import Sample, assemble

DIODE_RANGE = (0.5, 300.0)  # metres: the range in which DIODE's own devkit shows its depth


class DiodeSource:
    """DIODE as published (diode-dataset.org), or as the paper's scripts expect it.

    Below PATH, at any depth, as in `val/indoors/scene_00019/scan_00183/`: `X.png`, `X_depth.npy` (H,W,1) in metres,
    `X_depth_mask.npy` (H,W) and `X_normal.npy` (H,W,3). Normals are a download of their own; where PATH has the
    folders `depths` and `normals` (the paper's scripts), photos and depth are looked for in the first, normals in the
    second. Only normals and depth have ground truth here; to train on pseudo labels of DIODE's photos, as the paper
    did, put the photos below `photos` of a `FolderSource`.

    DIODE's normals are in the OpenGL frame: the paper's code negates Y and Z "to be consistent with Omnidatav2", whose
    pictures are in the OpenCV frame (intrinsics/normals.py). Where no normal is known, the vector is zero. Depth is
    clipped to 0.5 .. min(300, 99th percentile) metres, as the devkit and the paper's code do; what the depth mask
    leaves out is farthest, and does not count.
    """

    problems: list[str]

    def __init__(self, path: str | Path, intrinsics: Sequence[Intrinsic], limit: int | None = None) -> None:
        root = Path(path)
        if not root.is_dir():
            raise FileNotFoundError(f"Folder {path} not found.")
        unknown = [i.name for i in intrinsics if i.name not in ("normals", "depth")]
        if unknown:
            raise ValueError(f"DIODE has normals and depth, not {', '.join(unknown)}; use a folder of labels.")
        self.intrinsics, self.problems = list(intrinsics), []
        split = (root / "depths").is_dir() and (root / "normals").is_dir()
        photos = files_by_stem(root / "depths" if split else root, (".png",))[0]
        arrays: dict[str, Path] = {}
        for place in (root / "depths", root / "normals") if split else (root,):
            arrays |= files_by_stem(place, (".npy",))[0]
        self.items: dict[str, dict[str, Path]] = {}
        missing: dict[str, list[str]] = {i.name: [] for i in intrinsics}
        for stem, photo in photos.items():
            files = {"normals": f"{stem}_normal", "depth": f"{stem}_depth", "mask": f"{stem}_depth_mask"}
            item = {"photo": photo} | {key: arrays[file] for key, file in files.items() if file in arrays}
            for name in missing:
                if name not in item:
                    missing[name].append(stem)
            if all(name in item for name in missing):
                self.items[stem] = item
        self.problems += [lacking(name, stems, len(photos)) for name, stems in missing.items() if stems]
        if not self.items:
            wanted = " and ".join("X_normal.npy" if name == "normals" else "X_depth.npy" for name in missing)
            raise ValueError(
                f"{root} holds nothing of DIODE to train on: looked for X.png with {wanted} in all subfolders, found "
                f"{len(photos)} pictures and {len(arrays)} .npy files."
            )
        self.names = spread(list(self.items), limit)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        item = self.items[name]
        mask = _read(item["mask"], "mask") if "mask" in item else None
        labels = {}
        for intrinsic in self.intrinsics:
            values = _read(item[intrinsic.name], intrinsic.name)  # (C,H,W)
            if intrinsic.name == "normals":
                labels["normals"] = canonical(values, None, intrinsic, "opengl")
            else:
                labels["depth"] = canonical(_distance(values, mask), None, intrinsic, "distance")
        return assemble(name, read_picture(item["photo"]), labels, [])

    def stamp(self, index: int) -> str:
        item = self.items[self.names[index]]
        return f"{self.names[index]} {[file_stamp(item[key]) for key in sorted(item)]}"


def _distance(depth: Tensor, mask: Tensor | None) -> Tensor:
    """(1,H,W) metres as the devkit clips them, stretched to 0..1; NaN where they are not valid."""
    valid = valid_depth(depth) if mask is None else valid_depth(depth) & (mask > 0)
    if not valid.any():
        return torch.full_like(depth, torch.nan)
    low, high = DIODE_RANGE
    high = max(min(high, float(np.percentile(depth[valid].numpy(), 99))), low)
    near, far = (x.item() for x in depth[valid].clamp(low, high).aminmax())
    return torch.where(valid, (depth.clamp(low, high) - near) / max(far - near, 1e-6), torch.nan)


def _read(path: Path, name: str) -> Tensor:
    """(C,H,W)"""
    return as_map(read_npy(path), str(path), name)
