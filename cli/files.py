"""`intrinsic-lora info` and `convert`: what is in a LoRA file, and any readable format to ours."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..intrinsics.lora import LoRA

# ModelSpec entries that stay true when a file changes its format.
AUTHORSHIP = tuple(
    f"modelspec.{key}" for key in ("author", "date", "description", "license", "tags", "thumbnail", "usage_hint")
)


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA file: .safetensors, .bin or .pt.")],
) -> None:
    """Say what a LoRA file is: key format, ranks, alpha, base model, intrinsic, metadata.

    The file is read as strictly as the pipeline reads it, so a damaged or foreign one is refused with the reason.

    **Example**

    - `intrinsic-lora info intrinsic_lora_normals.safetensors`
    """
    from ..intrinsics.lora import lora_base, lora_intrinsic, read_lora

    lora = read_lora(file)
    rows = {
        "format": lora.format,
        "intrinsic": lora_intrinsic(lora) or "not said by the file or its name",
        "base model": lora_base(lora) or "unknown",
        "modules": f"{len(lora)} ({_counted(name.split('.')[-1] for name in _layers(lora))})",
        "rank": _counted(len(a) for a, _, _ in lora.values()),
        "alpha": _counted(f"{alpha:g}" for _, _, alpha in lora.values()),
        "parameters": f"{sum(a.numel() + b.numel() for a, b, _ in lora.values()):,}",
        "size": f"{file.stat().st_size / 1e6:.2f} MB",
    }
    table = Table("", "", show_header=False, title=str(file), title_justify="left", title_style="bold")
    for key, value in rows.items():
        table.add_row(key, Text(value))
    if lora.metadata:
        table.add_section()
        for key, value in sorted(lora.metadata.items()):
            table.add_row(Text(key, style="dim"), Text(value, overflow="fold"))
    Console().print(table)


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA file in any format that `info` reads.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    intrinsic: Annotated[
        str | None,
        typer.Option(
            help="Which intrinsic it is: normals, depth, albedo or shading.",
            show_default="what the file or its name says",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:
    """Convert a LoRA to the format that diffusers, ComfyUI and this package all load.

    Weights and alpha keep their exact values (stored as float32), and what the file says about its making is kept.

    **Example**

    - `intrinsic-lora convert pytorch_lora_weights.bin intrinsic_lora_normals.safetensors --intrinsic normals`
    """
    from ..intrinsics.lora import PREFIX, lora_base, lora_definition, lora_intrinsic, read_lora
    from ..intrinsics.lora_write import write_lora
    from ..intrinsics.registry import INTRINSICS

    if intrinsic is not None and intrinsic not in INTRINSICS:
        raise typer.BadParameter(f"{intrinsic!r} is not one of {', '.join(INTRINSICS)}.", param_hint="'--intrinsic'")
    if target.suffix != ".safetensors":
        raise typer.BadParameter(f"{target} must end in .safetensors.", param_hint="'OUT'")
    if target.exists() and not overwrite:
        raise typer.BadParameter(f"{target} is already there; add --overwrite to replace it.", param_hint="'OUT'")
    lora = read_lora(source)
    if family := lora.metadata.get(f"{PREFIX}family"):
        raise ValueError(f"{source} is a LoRA of a {family}: `extract --generator` loads it, and nothing else could.")
    intrinsic = intrinsic or lora_intrinsic(lora)
    if intrinsic is None:
        raise typer.BadParameter(
            f"neither {source} nor its name says which intrinsic it is; say so.", param_hint="'--intrinsic'"
        )
    definition = lora_definition(intrinsic, lora)
    write_lora(target, lora, intrinsic=definition, base_model=lora_base(lora), **_said(lora))
    typer.echo(f"{target}: {intrinsic}, {len(lora)} modules, from {lora.format} keys")


def _said(lora: "LoRA") -> dict[str, Any]:
    """The other arguments of `write_lora` that the file's own header answers."""
    from ..intrinsics.lora import PREFIX, lora_timestep

    ours = {key.removeprefix(PREFIX): value for key, value in lora.metadata.items() if key.startswith(PREFIX)}
    said: dict[str, Any] = {"extra": {key: lora.metadata[key] for key in AUTHORSHIP if key in lora.metadata}}
    if "method" in ours:
        said["method"] = ours["method"]
    if "timestep" in ours:
        said["timestep"] = lora_timestep(lora)
    if "training" in ours:
        try:
            said["training"] = json.loads(ours["training"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"What the LoRA's header says of its training is not JSON: {error}.") from error
    return said


def _layers(lora: "LoRA") -> list[str]:
    """Module names whose last part tells the kind of layer: `to_out.0` -> `to_out`."""
    return [name.removesuffix(".0") for name in lora]


def _counted(values) -> str:
    """ "8", or with how often where there are several: "4 x 12, 8 x 20"."""
    counts = Counter(values)
    return str(next(iter(counts))) if len(counts) == 1 else ", ".join(f"{value} x {n}" for value, n in counts.items())
