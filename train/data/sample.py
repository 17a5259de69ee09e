"""Samples (a photo with its labels), the protocol of their sources, and preprocessing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...intrinsics.files import continued
from ...intrinsics.normals import mirror_normals, normalize_normals
from ...intrinsics.pictures import Picture
from ...intrinsics.relight.files import fit_maps
from ...intrinsics.resizing import resize
from .conditions import Condition

PERMUTED = ("albedo", "shading")  # labels whose colour channels are permuted together with the photo's


@dataclass(frozen=True, eq=False)
class Sample:
    """A photo and its labels, all of one size.

    Attributes:
        name: unique in its source.
        photo: (3, H, W) sRGB in [0, 1]; transparent pixels are mid grey.
        labels: {intrinsic: canonical map (C, H, W)}, finite everywhere.
        mask: (1, H, W) of 0 and 1, 1 where all labels are valid (opaque, not masked, valid depth etc.); None = all
            valid. Fractional values from grey masks or resampling become 0.
        condition: the generator's condition of the photo, if it was made by `make-set`.
    """

    name: str
    photo: Tensor
    labels: dict[str, Tensor]
    mask: Tensor | None
    condition: Condition | None = None


def stack_maps(maps: Sequence[Tensor]) -> Tensor:
    """Stack maps (C, H, W) to (N, C, H, W); grey shading is expanded to three channels if another one is coloured."""
    channels = max(len(x) for x in maps)
    return torch.stack([x if len(x) == channels else x.expand(channels, -1, -1) for x in maps])


class Source(Protocol):
    """A list of samples.

    Attributes:
        names: names of the samples, sorted.
        problems: messages about skipped files, with counts. Reading samples may add to them.
    """

    problems: list[str]

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read a sample; raise ValueError or OSError, with a message that names the file, if that fails."""
        ...

    def stamp(self, index: int) -> str:
        """Return a text that changes when the sample's files or conventions change, without reading the files."""
        ...


class Selection:
    """A subset of the samples of a source, such as its training or validation part. Shares its problems."""

    def __init__(self, source: Source, indices: Iterable[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.names = [source.names[i] for i in self.indices]
        self.problems = source.problems

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]

    def stamp(self, index: int) -> str:
        return self.source.stamp(self.indices[index])


def usable(source: Source, progress: Callable[[int, int], None] | None = None) -> list[int]:
    """Read every sample once and return the indices of the readable ones; the others are added to `problems`.

    Raises:
        ValueError: none can be read.
    """
    good = []
    for i in range(len(source)):
        if try_read(source, i) is not None:
            good.append(i)
        if progress:
            progress(i + 1, len(source))
    if not good:
        raise nothing_readable(source)
    return good


def try_read(source: Source, index: int, resolution: int | None = None) -> Sample | None:
    """Return a sample, prepared if a resolution is given; on errors return None and add to `source.problems`."""
    try:
        return source[index] if resolution is None else prepare(source[index], resolution)
    except (ValueError, OSError, MemoryError) as error:
        sentence = f"{source.names[index]}: {continued(error)}"
        if sentence not in source.problems:
            source.problems.append(sentence)
        return None


def nothing_readable(source: Source) -> ValueError:
    """Return the error for a source without readable samples."""
    return ValueError(f"None of the {len(source)} samples can be read; the last one: {source.problems[-1]}")


def prepare(sample: Sample, resolution: int) -> Sample:
    """Apply the paper's preprocessing: resize the short side to `resolution` (bilinear, antialiased) and centre-crop.

    Sizes are rounded as in torchvision's Resize and CenterCrop, which the paper used. Normals are renormalised to
    unit length. Depth is not renormalised: the crop keeps the distances of the whole picture.

    Raises:
        ValueError: no pixel of the crop is valid, or the photo has a condition, which cannot be resized, and another
            size.
    """
    height, width = sample.photo.shape[-2:]
    if sample.condition is not None and (height, width) != (resolution, resolution):
        raise ValueError(
            f"It is {width} x {height} pixels and has a generator's condition, so it cannot be resized to "
            f"{resolution}: set data.resolution to the size of the set's pictures."
        )
    short = min(height, width)
    size = (int(resolution * height / short), int(resolution * width / short))
    top, left = (round((side - resolution) / 2) for side in size)

    def square(x: Tensor) -> Tensor:
        return resize(x[None], size)[0, :, top : top + resolution, left : left + resolution].contiguous()  # (C, R, R)

    labels = {name: square(label) for name, label in sample.labels.items()}
    if "normals" in labels:
        labels["normals"] = normalize_normals(labels["normals"])
    mask = None if sample.mask is None else _binary(square(sample.mask))
    return replace(sample, photo=square(sample.photo), labels=labels, mask=mask)


def variant(sample: Sample, mirrored: bool = False, order: Sequence[int] = (0, 1, 2)) -> Sample:
    """Return the sample mirrored (with normals' X negated) and with its colour channels in another order.

    Albedo and coloured shading are permuted with the photo; other labels do not depend on its colours.

    Raises:
        ValueError: the sample has a condition, which does not apply to variants.
    """
    if sample.condition is not None and (mirrored or tuple(order) != (0, 1, 2)):
        raise ValueError(
            "The conditions of mirrored or recoloured pictures of make-set are unknown: "
            "set data.flip=false and data.color_permutations=false."
        )
    labels, photo, mask = dict(sample.labels), sample.photo[list(order)], sample.mask
    for name in PERMUTED:
        if name in labels and len(labels[name]) == 3:
            labels[name] = labels[name][list(order)]
    if mirrored:
        photo = photo.flip(-1)
        mask = None if mask is None else mask.flip(-1)
        labels = {name: mirror_normals(x) if name == "normals" else x.flip(-1) for name, x in labels.items()}
    return replace(sample, photo=photo, labels=labels, mask=mask)


Label = tuple[Tensor, Tensor | None]


def assemble(name: str, photo: Picture, labels: dict[str, Label], masks: list[Tensor]) -> Sample:
    """Build a sample, resampling labels and masks to the photo's size.

    Raises:
        ValueError: a label or mask has another aspect ratio.
    """
    height, width = photo.rgb.shape[-2:]
    maps = {label: fit_maps({label: values[None]}, height, width)[label][0] for label, (values, _) in labels.items()}
    if "normals" in maps and maps["normals"].shape != labels["normals"][0].shape:
        maps["normals"] = normalize_normals(maps["normals"])
    masks = masks + [mask for _, mask in labels.values() if mask is not None]
    masks = [fit_maps({"mask": mask[None]}, height, width)["mask"][0] for mask in masks]
    if photo.alpha is not None:
        masks.append(photo.alpha[0])
    mask = _binary(torch.stack(masks).amin(0)) if masks else None  # (1, H, W)
    return Sample(name, photo.rgb[0], maps, mask)


def _binary(mask: Tensor) -> Tensor:
    if not (mask > 0.99).any():
        raise ValueError("It has no valid pixels: its masks exclude all of them.")
    return (mask > 0.99).float()
