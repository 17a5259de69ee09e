"""`intrinsic-lora train`: I-LoRAs of your own."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..train.config import MISSING, PRESETS, TrainConfig, UnknownKeyError, describe, load_config, to_yaml
from .progress import loading, say

if TYPE_CHECKING:
    from ..train.dry_run import Estimate


def _key_list(value: bool) -> None:
    """Prints every key with its default and meaning, then leaves."""
    if not value:
        return
    groups: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for key, default, help in describe():
        groups[key.rpartition(".")[0]].append((key, _shown(default), help))
    table = Table("key", "default", "meaning", show_lines=False, box=None, pad_edge=False)
    for rows in groups.values():
        for key, default, help in rows:
            table.add_row(key, default, help)
        table.add_section()
    Console().print(table)
    raise typer.Exit


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...", help="Settings, as in optimizer.lr=1e-4; they win.", show_default=False
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Start from one of {', '.join(PRESETS)}.",
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
            "--dry-run", help="Write nothing; print the settings, what the data holds, and what a run would take."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from the newest checkpoint in `out`, if there is one.")
    ] = True,
    keys: Annotated[
        bool, typer.Option("--keys", callback=_key_list, is_eager=True, help="List all settings and leave.")
    ] = False,
) -> None:
    """Train I-LoRAs: one per intrinsic, on a frozen base model.

    Needed are `data.path` (photos and their labels: see `label`), `intrinsics` and `out`, the folder of the run. It
    gets `intrinsic_lora_NAME.safetensors`, a model card, `best/` (by the validation metric), checkpoints, validation
    sheets and `metrics.jsonl`. The same command goes on with a run that stopped; Ctrl-C or SIGTERM saves first
    (status 130 or 143). Steps are optimiser steps and `batch_size` is the whole batch, on one GPU or on many with
    `accelerate launch -m intrinsic_lora.cli.main train ...`.

    **The settings used most** (all of them: `--keys`)

    - `base` a Stable Diffusion 1.x, 2.x or SDXL, or a folder of `import-generator`
    - `intrinsics=[normals,depth]`; `data.path`; `data.val_path`; `out`
    - `lora.rank` 8; `optimizer.lr` 1e-4; `schedule.name` constant; `batch_size` 4; `max_steps` 20000
    - `precision` no, bf16, fp16; `accumulation` and `gradient_checkpointing` to save memory; `ema`; `seed`

    **Examples**

    - `intrinsic-lora train --preset paper-sd15-r8 data.path=data out=runs/mine "intrinsics=[normals]" --dry-run`
    - `intrinsic-lora train --config my.yaml optimizer.lr=5e-5`
    - `intrinsic-lora train data.path=data out=runs/shadow "intrinsics=[shadow]" custom.shadow.prompt="shadow mask"`
    """
    if not (overrides or preset or config):
        raise typer.BadParameter("say what to train: a --preset, a --config or KEY=VALUE.")
    if config is not None and not config.is_file():
        raise typer.BadParameter(f"there is no configuration at {config}; presets are named with --preset.")
    try:
        settings = load_config(preset, config, overrides or [])
    except UnknownKeyError as error:
        said = str(error)
        raise ValueError(f"{said if said.endswith('?') else said[:-1] + ';'} --keys lists all.") from error
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
    say(f"Trained: {out}; look at {out / 'README.md'}")


def _report(estimate: "Estimate", settings: TrainConfig) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in estimate.lines(settings):
        table.add_row(name, value)
    Console().print(table)
    for problem in estimate.problems:
        say(f"data: {problem}", fg="yellow", err=True)


@loading()
def _quiet() -> None:
    """Bars for reading files from disk would bury ours."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    if default == MISSING:
        return "(needed)"
    return f"[{', '.join(map(str, default))}]" if isinstance(default, list) else str(default)
