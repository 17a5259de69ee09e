"""`intrinsic-lora info` and `convert`: what is in a LoRA file, and any readable format to ours."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..intrinsics.vocabulary import INTRINSICS
from .progress import loading, printable, say

LONGEST, MOST_ENTRIES = 2000, 200  # of what `info` shows of a header, which may hold all captions of a data set
# Entries that stay true when a file changes its format, beside those that `write_lora` is told.
AUTHORSHIP = ("author", "date", "description", "license", "tags", "thumbnail", "usage_hint")
KEPT = (
    *(f"modelspec.{key}" for key in AUTHORSHIP),
    "intrinsic_lora.image_channels",
    "intrinsic_lora.image_channels_origin",
)


def info(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A LoRA file: .safetensors, .bin or .pt."),
    ],
) -> None:
    """Say what a LoRA file is: key format, ranks, alpha, base model, intrinsic, metadata.

    The file is read as strictly as the pipeline reads it, so a damaged or foreign one is refused with the reason.

    **Example**

    - `intrinsic-lora info intrinsic_lora_normals.safetensors`
    """
    with loading():
        from ..intrinsics.lora import read_lora

        lora = read_lora(file)
    weights = lora.weights
    rows = {
        "format": lora.format,
        "intrinsic": lora.intrinsic or "not said by the file or its name",
        "base model": lora.base_model or "unknown",
        # The last part of a module's name tells the kind of layer; `to_out.0` counts as `to_out`.
        "modules": f"{len(weights)} ({_counted(name.removesuffix('.0').split('.')[-1] for name in weights)})",
        "rank": _counted(len(a) for a, _, _ in weights.values()),
        "alpha": _counted(f"{alpha:g}" for _, _, alpha in weights.values()),
        "parameters": f"{sum(a.numel() + b.numel() for a, b, _ in weights.values()):,}",
        "size": f"{file.stat().st_size / 1e6:.2f} MB",
    }
    table = Table("", "", show_header=False, title=printable(file), title_justify="left", title_style="bold")
    for key, value in rows.items():
        table.add_row(key, Text(_shown(value)))
    if entries := sorted(lora.header.entries.items()):
        table.add_section()
        for key, value in entries[:MOST_ENTRIES]:
            table.add_row(Text(_shown(key), style="dim"), Text(_shown(value), overflow="fold"))
        if len(entries) > MOST_ENTRIES:
            table.add_row("", f"and {len(entries) - MOST_ENTRIES:,} more entries")
    Console().print(table)


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", exists=True, dir_okay=False, help="A LoRA file in any format that `info` reads."),
    ],
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
    if target.suffix != ".safetensors":
        raise typer.BadParameter(f"{target} must end in .safetensors.", param_hint="'OUT'")
    if target.exists() and not overwrite:
        raise typer.BadParameter(f"{target} is already there; add --overwrite to replace it.", param_hint="'OUT'")

    with loading():
        from ..intrinsics.lora import read_lora, write_lora

        lora = read_lora(source)
    known = list(dict.fromkeys(name for name in (*INTRINSICS, lora.header.intrinsic) if name))
    if intrinsic is not None and intrinsic not in known:
        raise typer.BadParameter(f"{intrinsic!r} is not one of {', '.join(known)}.", param_hint="'--intrinsic'")
    if family := lora.header.family:
        raise ValueError(f"{source} is a LoRA of a {family}: `extract --generator` loads it, and nothing else could.")
    intrinsic = intrinsic or lora.intrinsic
    if intrinsic is None:
        raise typer.BadParameter(
            f"neither {source} nor its name says which intrinsic it is; say so.", param_hint="'--intrinsic'"
        )
    training = lora.header.training
    try:
        write_lora(
            target,
            lora.weights,
            intrinsic=lora.header.definition(intrinsic),
            method=lora.header.method or "single-step",
            timestep=lora.header.single_step_timestep,
            base_model=lora.base_model,
            training=training,
            extra={key: lora.header.entries[key] for key in KEPT if key in lora.header.entries},
        )
    except ValueError as error:
        raise ValueError(f"{source} cannot be converted: {error}") from error
    say(f"{target}: {intrinsic}, {len(lora.weights)} modules, from {lora.format} keys")


def _shown(text: str) -> str:
    """Text of a file for the terminal: no control characters, and no more than a screen of it."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[:LONGEST])
    return shown if len(text) <= LONGEST else f"{shown}... ({len(text):,} characters)"


def _counted(values) -> str:
    """ "8", or with how often where there are several: "4 x 12, 8 x 20"."""
    counts = Counter(values)
    return str(next(iter(counts))) if len(counts) == 1 else ", ".join(f"{value} x {n}" for value, n in counts.items())
