"""One photo with its labels, what a source of samples is, and what is done to every sample."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...intrinsics.normals import mirror_normals, normalize_normals
from ...intrinsics.pictures import Picture
from ...intrinsics.relight.files import fit_maps
from ...intrinsics.resizing import resize
from .conditions import Condition

PERMUTED = ("albedo", "shading")  # what takes the photo's colours with it when these are permuted


@dataclass(frozen=True, eq=False)
class Sample:
    """One photo and its labels, all of one size.

    Attributes:
        name: unique in its source.
        photo: (3,H,W) sRGB in [0,1]; what is transparent is mid grey.
        labels: {intrinsic: canonical map (C,H,W)}, finite everywhere.
        mask: (1,H,W) of 0 and 1, 1 where all labels count (opaque, masked out by nothing, valid); None = everywhere.
            Where it comes from grey or from resampling, only what counts in full is 1.
        condition: what a generator drew the photo from, if `make-set` made it.
    """

    name: str
    photo: Tensor
    labels: dict[str, Tensor]
    mask: Tensor | None
    condition: Condition | None = None


def stack_maps(maps: Sequence[Tensor]) -> Tensor:
    """Stack maps (C, H, W) as one (N, C, H, W): grey shading beside coloured gets three channels."""
    channels = max(len(x) for x in maps)
    return torch.stack([x if len(x) == channels else x.expand(channels, -1, -1) for x in maps])


class Source(Protocol):
    """A list of samples.

    Attributes:
        names: of the samples, in their order, which is sorted.
        problems: sentences about what was left out, with counts. Reading may add to them.
    """

    problems: list[str]

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read a sample. ValueError or OSError, one sentence that names the file, where that cannot be done."""
        ...

    def stamp(self, index: int) -> str:
        """A text that changes when the sample's files or their convention do; made without reading the files."""
        ...


class Selection:
    """Some samples of a source, for instance the training or the validation part of it. Shares its problems."""

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
    """Read every sample once and return the indices of those that can be read; the others go to `problems`.

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
    """The sample, prepared if a resolution is given, or None and a sentence in `source.problems`."""
    try:
        return source[index] if resolution is None else prepare(source[index], resolution)
    except (ValueError, OSError, MemoryError) as error:
        sentence = f"{source.names[index]}: {error}"
        if sentence not in source.problems:
            source.problems.append(sentence)
        return None


def nothing_readable(source: Source) -> ValueError:
    """The error for a source of which no sample can be read."""
    return ValueError(f"None of the {len(source)} samples can be read; the last one: {source.problems[-1]}")


def prepare(sample: Sample, resolution: int) -> Sample:
    """The paper's preprocessing: the short side to `resolution` (bilinear, antialiased), then the centre square.

    Sizes are rounded as torchvision's Resize and CenterCrop do, which the paper used. Normals are brought back to
    unit length. Depth is not stretched again: the square keeps the distances of the whole picture.

    Raises:
        ValueError: nothing in the square counts, or the photo has a condition, which is of the whole photo, and is of
            another size.
    """
    height, width = sample.photo.shape[-2:]
    if sample.condition is not None and (height, width) != (resolution, resolution):
        raise ValueError(
            f"it is {width} x {height} and comes with its generator's condition, so that it cannot be resized to "
            f"{resolution}: set data.resolution to the size of the set's pictures."
        )
    short = min(height, width)
    size = (int(resolution * height / short), int(resolution * width / short))
    top, left = (round((side - resolution) / 2) for side in size)

    def square(x: Tensor) -> Tensor:
        return resize(x[None], size)[0, :, top : top + resolution, left : left + resolution].contiguous()  # (C,R,R)

    labels = {name: square(map) for name, map in sample.labels.items()}
    if "normals" in labels:
        labels["normals"] = normalize_normals(labels["normals"])
    mask = None if sample.mask is None else _in_full(square(sample.mask))
    return replace(sample, photo=square(sample.photo), labels=labels, mask=mask)


def variant(sample: Sample, mirrored: bool = False, order: Sequence[int] = (0, 1, 2)) -> Sample:
    """The sample seen in a mirror (normals' X negated), with its colour channels in another order.

    Albedo and coloured shading change their channels with the photo; other labels do not depend on its colours.

    Raises:
        ValueError: the sample has a condition, which is of the photo as it is.
    """
    if sample.condition is not None and (mirrored or tuple(order) != (0, 1, 2)):
        raise ValueError(
            "Pictures of make-set come with their conditions, and those of mirrored or recoloured ones are not known: "
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
    """A sample of the photo's size: labels and masks are resampled to it.

    Raises:
        ValueError: a label or mask of another aspect.
    """
    height, width = photo.rgb.shape[-2:]
    maps = {label: fit_maps({label: map[None]}, height, width)[label][0] for label, (map, _) in labels.items()}
    if "normals" in maps and maps["normals"].shape != labels["normals"][0].shape:
        maps["normals"] = normalize_normals(maps["normals"])
    masks = masks + [mask for _, mask in labels.values() if mask is not None]
    masks = [fit_maps({"mask": mask[None]}, height, width)["mask"][0] for mask in masks]
    if photo.alpha is not None:
        masks.append(photo.alpha[0])
    mask = _in_full(torch.stack(masks).amin(0)) if masks else None  # (1,H,W)
    return Sample(name, photo.rgb[0], maps, mask)


def _in_full(mask: Tensor) -> Tensor:
    if not (mask > 0.99).any():
        raise ValueError("nothing of it counts: its masks leave no pixel.")
    return (mask > 0.99).float()
