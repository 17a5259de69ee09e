"""Where photos and their labels come from: folders, DIODE, Hugging Face `datasets`, WebDataset shards.

A source lists what is there when it is opened and reads one sample at a time, so memory does not grow with the set.
Nothing that is wrong with single files is fatal: it is put into words in `problems`, and the rest is used.
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
    """Open a source.

    Args:
        kind: "folder" (see `FolderSource`), "diode" (`DiodeSource`), "datasets" (`DatasetsSource`) or "webdataset"
            (`ShardSource`).
        path: the folder, file, or name on the hub.
        intrinsics: every one of these labels must be there for a photo to count.
        limit: use at most so many samples, spread evenly over all: neighbours in a set often show the same scene.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: an unknown kind, or nothing usable: the sentence says what was looked for and what was found.
        ImportError: the kind needs a package that is not installed.
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
