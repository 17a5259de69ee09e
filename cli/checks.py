"""Validation of options before torch is imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from ..diffusers_pipeline.jobs import UnsuitableOutput, UnsuitablePictures
from ..intrinsics.files import may_be_hub_id


def path_or_hub_id(value: str | None) -> str | None:
    """Reject a value that is neither an existing path nor a possible Hugging Face id; an option callback."""
    if value is not None and not Path(value).expanduser().exists() and not may_be_hub_id(value):
        raise typer.BadParameter(
            f"No file or folder {value} was found, and a Hugging Face id has the form owner/name; check the path."
        )
    return value


def loras(value: str | None) -> str | None:
    """Apply `path_or_hub_id` to each comma-separated LoRA source other than `embedded`; an option callback."""
    if value is not None and not Path(value).expanduser().exists():
        for part in value.split(","):
            if part.strip() != "embedded":
                path_or_hub_id(part.strip())
    return value


def writable(path: Path | None, option: str) -> None:
    """Reject an output file whose folder does not exist."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(
            f"The folder {path.parent} does not exist; create it first.", param_hint=f"'{option}'"
        )


def choices(given: list[str], known: tuple[str, ...], option: str, others: bool = False) -> list[str]:
    """Split comma-separated and repeated values; return known names in their fixed order, then `others` if allowed."""
    chosen = list(dict.fromkeys(name.strip() for value in given for name in value.split(",") if name.strip()))
    for name in chosen:
        if name not in known and not others:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}.", param_hint=f"'{option}'")
    return [*(name for name in known if name in chosen), *(name for name in chosen if name not in known)]


@contextmanager
def usage_errors() -> Iterator[None]:
    """Convert errors of the library about PATH and --out to usage errors."""
    try:
        yield
    except UnsuitableOutput as error:
        raise typer.BadParameter(str(error), param_hint="'--out'") from error
    except UnsuitablePictures as error:
        raise typer.BadParameter(str(error), param_hint="'PATH'") from error
