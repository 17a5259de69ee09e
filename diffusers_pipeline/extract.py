"""Extraction of the maps of whole folders to disk, the library function behind `intrinsic-lora extract`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..intrinsics.batches import run_batches
from ..intrinsics.files import map_paths
from ..intrinsics.map_writer import write_maps
from ..intrinsics.maps import each_map
from ..intrinsics.pictures import Picture, read_picture
from ..intrinsics.vocabulary import FORMATS, INTRINSICS
from .base import IntrinsicsPipeline
from .jobs import Collected, Failed, collect, refuse_overwriting, to_do

Note = Callable[[str], None]


@dataclass(frozen=True)
class Extracted:
    """Numbers of pictures that were extracted, skipped because their results exist, and failed."""

    written: int
    skipped: int
    failed: int


def extract_folder(
    pipe: IntrinsicsPipeline,
    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Collected,
    out: str | os.PathLike[str],
    intrinsics: Sequence[str] | None = None,
    formats: Sequence[str] = ("png",),
    *,
    recursive: bool = False,
    resolution: int | None = None,
    upsample: str = "guided",
    normals: str = "opengl",
    depth: str = "near-white",
    batch_size: int = 1,
    overwrite: bool = False,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    failed: Failed = lambda path, error: None,
    note: Note = lambda sentence: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Extracted:
    """Extract the maps of pictures and folders of pictures into a folder.

    Pictures whose results all exist are skipped, so an interrupted call can be resumed.

    Args:
        pipe: a single-step or multi-step pipeline with LoRAs.
        pictures: a picture, a folder, several of both, or the result of `jobs.collect`.
        out: output folder, see `map_writer.write_maps`; created if missing.
        intrinsics: names of the maps; None for all loaded.
        formats: any of "png" (8 bits), "png16", "npz" and "exr"; a contact sheet is always written.
        recursive: also read subfolders; `out` gets the same subfolders.
        resolution: `processing_resolution` of the pipeline's call.
        upsample: "guided" or "bilinear", the method of upsampling maps to the picture's size.
        normals: frame of the normals in PNGs.
        depth: polarity of the depth in PNGs.
        batch_size: maximum number of pictures, all of the same size, in a batch.
        overwrite: overwrite existing results.
        seed: random seed of a multi-step pipeline's noise, the same for every picture.
        options: further arguments of the pipeline's call, such as `num_inference_steps`.
        failed: called with the path and the error of every picture that fails.
        note: called with a sentence about each partially read picture and each skipped file.
        progress: called with the number of pictures done and to do.

    Raises:
        ValueError: no pictures, an unknown intrinsic or format, results that would overwrite pictures or each
            other, multi-step LoRAs with a batch size above 1, or out of memory.
        OSError: `out` cannot be written. Files already written are complete.
    """
    out = Path(out)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"{', '.join(unknown)}: results are written as {', '.join(FORMATS)}.")
    if {"png", "png16"} <= set(formats):
        raise ValueError("The formats png and png16 write the same file names; choose one of them.")
    if pipe.method == "multi-step" and batch_size > 1:
        raise ValueError("Multi-step LoRAs take one picture at a time; leave the batch size at 1.")
    if missing := [name for name in intrinsics or () if name not in pipe.intrinsics]:
        raise ValueError(f"No LoRA was found for {', '.join(missing)}; loaded: {', '.join(pipe.intrinsics)}.")
    names = list(intrinsics or pipe.intrinsics)
    if isinstance(pictures, Collected):
        found = pictures
    else:
        given = [pictures] if isinstance(pictures, str | os.PathLike) else pictures
        found = collect([Path(path) for path in given], out, recursive)
        for sentence in found.notes:
            note(sentence)
    refuse_overwriting(found.jobs, out, names, formats)
    definitions = {name: pipe.definition(name) for name in names}
    custom = {name: definition for name, definition in definitions.items() if name not in INTRINSICS}

    def network(rgb: Tensor) -> dict[str, Tensor]:
        noise = {"generator": torch.Generator().manual_seed(seed)} if pipe.method == "multi-step" else {}
        output: Any = pipe(  # the signature depends on the pipeline
            rgb,
            intrinsics=names,
            processing_resolution=resolution,
            batch_size=len(rgb),
            output_type="raw",
            **noise,
            **(options or {}),
        )
        drawn: dict[str, Tensor] = output.maps()
        return drawn

    out.mkdir(parents=True, exist_ok=True)
    written = bad = total = 0

    def give_up(path: Path, error: Exception) -> None:
        nonlocal bad
        bad += 1
        failed(path, error)
        progress(written + bad, total or len(found.jobs))

    todo, skipped = to_do(found.jobs, lambda job: map_paths(out / job.name, names, formats), out, overwrite, give_up)
    total = len(found.jobs) - skipped
    progress(bad, total)
    batches = run_batches(
        todo,
        lambda job: read_noting(job.path, note),
        network,
        batch_size,
        lambda job, error: give_up(job.path, error),
    )
    for job, picture, drawn in batches:
        shown = {definitions[name]: values for name, values in drawn.items()}  # {intrinsic: (1, 3, h, w)}
        maps = each_map(shown, picture.rgb.to(next(iter(drawn.values())).device), upsample)
        write_maps(out / job.name, picture, maps, formats, normals, depth, custom)
        written += 1
        progress(written + bad, total)
        del picture, drawn, shown, maps  # free a large picture before the next one is read
    return Extracted(written, skipped, bad)


def read_noting(path: Path, note: Note) -> Picture:
    """Read a picture; call `note` with a sentence if only a part of the file or a smaller version is read."""
    picture = read_picture(path)
    if picture.frames > 1:
        note(f"{path}: only the first of {picture.frames} frames or pages is read.")
    if picture.full_size is not None:
        (height, width), (h, w) = picture.full_size, picture.rgb.shape[-2:]
        note(f"{path}: {width} x {height} pixels exceed the memory limit; read at {w} x {h}.")
    return picture
