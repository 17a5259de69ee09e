"""`intrinsic-lora`: the command line. Commands import torch and diffusers only when they run, so help is instant."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from .. import __version__
from .evaluate import evaluate
from .extract import extract
from .files import convert, info
from .import_generator import import_generator
from .label import label
from .make_set import make_set
from .progress import printable, say, sentence_of
from .relight import relight
from .scenes import render_scenes
from .threads import configure_threads
from .train import train

app = typer.Typer(
    name="intrinsic-lora",
    help="Decompose pictures into surface normals, depth, albedo and shading, and relight them.",
    epilog="Start with: intrinsic-lora extract photo.jpg --out maps",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _one_sentence(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print a library error (ValueError, OSError, ImportError) as one sentence without traceback; exit status 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except typer.BadParameter as error:
            error.message = printable(error.message)
            raise
        except (ValueError, OSError, ImportError) as error:
            say(f"Error: {sentence_of(error)}", fg="red", err=True)
            raise typer.Exit(1) from error

    return run


def _version(show: bool) -> None:
    if show:
        typer.echo(f"intrinsic-lora {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    configure_threads()


for command in (extract, relight, info, convert, render_scenes, import_generator, make_set, label, train, evaluate):
    app.command(no_args_is_help=True)(_one_sentence(command))

if __name__ == "__main__":
    app()
