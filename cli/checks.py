"""Refusals that the options alone can tell, made before torch is loaded."""

from pathlib import Path

import typer

from ..intrinsics.files import may_be_hub_id


def path_or_hub_id(value: str | None) -> str | None:
    """Option callback: refuse what neither exists nor can be the name of a Hugging Face repository."""
    if value is not None and not Path(value).expanduser().exists() and not may_be_hub_id(value):
        raise typer.BadParameter(
            f"there is no file or folder {value}, and a Hugging Face id has the form owner/name; check the path."
        )
    return value


def loras(value: str | None) -> str | None:
    """Option callback: `path_or_hub_id` for each comma-separated source of LoRAs, of which one may be `embedded`."""
    if value is not None and not Path(value).expanduser().exists():
        for part in value.split(","):
            if part.strip() != "embedded":
                path_or_hub_id(part.strip())
    return value


def writable(path: Path | None, option: str) -> None:
    """Refuse a file to be written whose folder is not there."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(
            f"the folder {path.parent} does not exist; create it first.", param_hint=f"'{option}'"
        )
