"""`intrinsic-lora info` and `convert`: inspect LoRA files and convert them to safetensors."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..intrinsics.vocabulary import INTRINSICS
from .progress import loading, printable, say

LONGEST, MOST_ENTRIES = 2000, 200  # display limits of `info`: a header may hold all captions of a data set
# Entries that stay true when a file changes its format, in addition to the arguments of `write_lora`.
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
    """Show what a LoRA file contains: key format, ranks, alpha, base model, intrinsic, metadata.

    The file is checked as strictly as when the pipeline loads it: a damaged or unsupported file is an error.

    **Example**

    - `intrinsic-lora info intrinsic_lora_normals.safetensors`
    """
    with loading():
        from ..intrinsics.lora import read_lora

        lora = read_lora(file)
    weights = lora.weights
    rows = {
        "format": lora.format,
        "intrinsic": lora.intrinsic or "not stated in the file or its name",
        "base model": lora.base_model or "unknown",
        # The last part of a module's name is the kind of layer; `to_out.0` counts as `to_out`.
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
            help="Intrinsic of the LoRA: normals, depth, albedo or shading.",
            show_default="as stated in the file or its name",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite OUT if it exists.")] = False,
) -> None:
    """Convert a LoRA to the format that diffusers, ComfyUI and this package all load.

    Weights and alpha keep their exact values, stored as float32; authorship and training metadata are kept.

    **Example**

    - `intrinsic-lora convert pytorch_lora_weights.bin intrinsic_lora_normals.safetensors --intrinsic normals`
    """
    if target.suffix != ".safetensors":
        raise typer.BadParameter(f"{target} must end in .safetensors.", param_hint="'OUT'")
    if target.exists() and not overwrite:
        raise typer.BadParameter(f"{target} already exists; use --overwrite to replace it.", param_hint="'OUT'")

    with loading():
        from ..intrinsics.lora import read_lora, write_lora

        lora = read_lora(source)
    known = list(dict.fromkeys(name for name in (*INTRINSICS, lora.header.intrinsic) if name))
    if intrinsic is not None and intrinsic not in known:
        raise typer.BadParameter(f"{intrinsic!r} is not one of {', '.join(known)}.", param_hint="'--intrinsic'")
    if family := lora.header.family:
        raise ValueError(f"{source} is a LoRA for a {family} generator, which only `extract --generator` can load.")
    intrinsic = intrinsic or lora.intrinsic
    if intrinsic is None:
        raise typer.BadParameter(
            f"Neither {source} nor its name states the intrinsic; specify it.", param_hint="'--intrinsic'"
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
    say(f"Wrote {target}: {intrinsic}, {len(lora.weights)} modules, converted from {lora.format} keys.")


def _shown(text: str) -> str:
    """Prepare text from a file for the terminal: replace control characters and limit the length."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[:LONGEST])
    return shown if len(text) <= LONGEST else f"{shown}... ({len(text):,} characters)"


def _counted(values) -> str:
    """Summarise values: "8" if all are equal, else with counts, "4 x 12, 8 x 20"."""
    counts = Counter(values)
    return str(next(iter(counts))) if len(counts) == 1 else ", ".join(f"{value} x {n}" for value, n in counts.items())
