"""The DIODE data set (diode-dataset.org), used in the paper."""

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

DIODE_RANGE = (0.5, 300.0)  # metres; the display range of DIODE's devkit


class DiodeSource:
    """DIODE in its published layout, or in that of the paper's scripts.

    Files in PATH and its subfolders, such as `val/indoors/scene_00019/scan_00183/`: `X.png`, `X_depth.npy` (H, W, 1)
    in metres, `X_depth_mask.npy` (H, W) and `X_normal.npy` (H, W, 3). Normals are a separate download; if PATH has the
    folders `depths` and `normals` (the paper's scripts), photos and depth are read from the first, normals from the
    second. DIODE has ground truth for normals and depth only; to train on pseudo labels of its photos, as in the
    paper, put the photos into the folder `photos` of a `FolderSource`.

    DIODE's normals are in the OpenGL frame: the paper's code negates Y and Z "to be consistent with Omnidatav2", whose
    pictures are in the OpenCV frame (intrinsics/normals.py). Unknown normals are zero vectors. Depth is
    clipped to 0.5 .. min(300, 99th percentile) metres, as in the devkit and the paper's code; pixels outside the depth
    mask are farthest and invalid.
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
        folders = [root / "depths", root / "normals"] if split else [root]
        photos = files_by_stem(folders[0], (".png",))[0]
        arrays: dict[str, Path] = {}
        for folder in folders:
            arrays |= files_by_stem(folder, (".npy",))[0]
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
                f"{root} contains no labelled photos of DIODE: expected X.png with {wanted} in any subfolder, found "
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
            values = _read(item[intrinsic.name], intrinsic.name)  # (C, H, W)
            if intrinsic.name == "normals":
                labels["normals"] = canonical(values, None, intrinsic, "opengl")
            else:
                labels["depth"] = canonical(_distance(values, mask), None, intrinsic, "distance")
        return assemble(name, read_picture(item["photo"]), labels, [])

    def stamp(self, index: int) -> str:
        item = self.items[self.names[index]]
        return f"{self.names[index]} {[file_stamp(item[key]) for key in sorted(item)]}"


def _distance(depth: Tensor, mask: Tensor | None) -> Tensor:
    """Clip metres (1, H, W) as the devkit does and normalise them to 0..1; invalid depth becomes NaN."""
    valid = valid_depth(depth) if mask is None else valid_depth(depth) & (mask > 0)
    if not valid.any():
        return torch.full_like(depth, torch.nan)
    low, high = DIODE_RANGE
    high = max(min(high, float(np.percentile(depth[valid].numpy(), 99))), low)
    near, far = (x.item() for x in depth[valid].clamp(low, high).aminmax())
    return torch.where(valid, (depth.clamp(low, high) - near) / max(far - near, 1e-6), torch.nan)


def _read(path: Path, name: str) -> Tensor:
    """Read an array as a map (C, H, W)."""
    return as_map(read_npy(path), str(path), name)
