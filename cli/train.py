"""`intrinsic-lora train`: train I-LoRAs."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..train.config import MISSING, PRESETS, TrainConfig, UnknownKeyError, check_paths, describe, load_config, to_yaml
from .progress import loading, say

if TYPE_CHECKING:
    from ..train.dry_run import Estimate


def _key_list(value: bool) -> None:
    """Print every key with its default and meaning, then exit."""
    if not value:
        return
    groups: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for key, default, meaning in describe():
        groups[key.rpartition(".")[0]].append((key, _shown(default), meaning))
    table = Table("key", "default", "meaning", show_lines=False, box=None, pad_edge=False)
    for rows in groups.values():
        for row in rows:
            table.add_row(*row)
        table.add_section()
    Console().print(table)
    raise typer.Exit


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Settings, such as optimizer.lr=1e-4; they override --preset and --config.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Preset to start from: {', '.join(PRESETS)}.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, such as the config.yaml of an earlier run.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the settings, a summary of the data and the estimated cost; write nothing."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Resume from the newest checkpoint in `out`, if one exists.")
    ] = True,
    keys: Annotated[
        bool, typer.Option("--keys", callback=_key_list, is_eager=True, help="List all settings and exit.")
    ] = False,
) -> None:
    """Train I-LoRAs, one per intrinsic, on a frozen base model.

    Requires `data.path` (photos and labels; see `label`), `intrinsics`, and `out`, the folder of the run. The run
    writes `intrinsic_lora_NAME.safetensors`, a model card, `best/` (best validation metric), checkpoints, validation
    sheets and `metrics.jsonl`. Run the same command to resume. Ctrl-C and SIGTERM save a checkpoint before exiting
    (status 130 or 143). Steps are optimiser steps and `batch_size` is the total batch size, also on several GPUs with
    `accelerate launch -m intrinsic_lora.cli.main train ...`.

    **Common settings** (`--keys` lists all)

    - `base` a Stable Diffusion 1.x, 2.x or SDXL model, or a folder written by `import-generator`
    - `intrinsics=[normals,depth]`; `data.path`; `data.val_path`; `out`
    - `lora.rank` 8; `optimizer.lr` 1e-4; `schedule.name` constant; `batch_size` 4; `max_steps` 20000
    - `precision` no, bf16, fp16; `accumulation` and `gradient_checkpointing` to save memory; `ema`; `seed`

    **Examples**

    - `intrinsic-lora train --preset paper-sd15-r8 data.path=data out=runs/mine "intrinsics=[normals]" --dry-run`
    - `intrinsic-lora train --config my.yaml optimizer.lr=5e-5`
    - `intrinsic-lora train data.path=data out=runs/shadow "intrinsics=[shadow]" custom.shadow.prompt="shadow mask"`
    """
    if not (overrides or preset or config):
        raise typer.BadParameter("Specify what to train: --preset, --config or KEY=VALUE.")
    if config is not None and not config.is_file():
        raise typer.BadParameter(f"Configuration file {config} not found; use --preset for a preset.")
    try:
        settings = load_config(preset, config, overrides or [])
    except UnknownKeyError as error:
        raise ValueError(f"{error} --keys lists all settings.") from error
    if not dry_run:  # which lists what is wrong with the data
        check_paths(settings)
    _quiet()
    if dry_run:
        typer.echo(to_yaml(settings))
        with loading():
            from ..train.dry_run import estimate

            estimated = estimate(settings)
        _report(estimated, settings)
        return
    with loading():
        from ..train.loop import TrainingStopped
        from ..train.loop import train as run

    try:
        out = run(settings, resume=resume)
    except TrainingStopped as stopped:
        say(stopped, fg="yellow", err=True)
        raise typer.Exit(128 + stopped.signal) from None
    except FloatingPointError as error:
        raise ValueError(str(error)) from error
    say(f"Training finished: {out}; the model card is {out / 'README.md'}.")


def _report(estimate: "Estimate", settings: TrainConfig) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in estimate.lines(settings):
        table.add_row(name, value)
    Console().print(table)
    for problem in estimate.problems:
        say(f"Data: {problem}", fg="yellow", err=True)


@loading()
def _quiet() -> None:
    """Disable the libraries' progress bars for reading files, which would hide ours."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    if default == MISSING:
        return "(required)"
    return f"[{', '.join(map(str, default))}]" if isinstance(default, list) else str(default)
