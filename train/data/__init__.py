"""Sources of photos and labels: folders, DIODE, Hugging Face `datasets`, WebDataset shards.

A source lists its files when it is opened and reads one sample at a time, so that memory does not grow with the set.
Errors in single files are not fatal: they are described in `problems`, and the other samples are used.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ...intrinsics.vocabulary import Intrinsic
from .diode import DiodeSource
from .folder import FolderSource
from .packed import DatasetsSource, ShardSource
from .sample import Sample, Source

__all__ = ["Sample", "Source", "open_source"]


def open_source(kind: str, path: str | Path, intrinsics: Sequence[Intrinsic], limit: int | None = None) -> Source:
    """Open a source of samples.

    Args:
        kind: "folder" (see `FolderSource`), "diode" (`DiodeSource`), "datasets" (`DatasetsSource`) or "webdataset"
            (`ShardSource`).
        path: the folder, file, or name on the hub.
        intrinsics: required labels; photos without all of them are skipped.
        limit: maximum number of samples, spread evenly, because neighbours in a set often show the same scene.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: an unknown kind, or no usable sample; the message lists what was expected and what was found.
        ImportError: the kind requires a package that is not installed.
    """
    kinds: dict[str, Callable[[str | Path, Sequence[Intrinsic], int | None], Source]] = {
        "folder": FolderSource,
        "diode": DiodeSource,
        "datasets": DatasetsSource,
        "webdataset": ShardSource,
    }
    if kind not in kinds:
        raise ValueError(f"Unknown kind of data source {kind!r}; choose from {', '.join(kinds)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"The limit of samples must be at least 1, got {limit}.")
    return kinds[kind](path, intrinsics, limit)
