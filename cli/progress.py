"""Terminal output shared by the commands: progress bars, failed files, and escaping of control characters."""

import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.2f} pictures/s", style="progress.data.speed")


@contextmanager
def loading(text: str = "Loading") -> Iterator[None]:
    """Show a spinner while libraries and models are loaded, on a terminal only. Also a decorator; do not nest."""
    console = Console(stderr=True)
    with console.status(text) if console.is_terminal else nullcontext():
        yield


@contextmanager
def progress_bar(console: Console, started: bool = True) -> Iterator[Progress]:
    """Show a progress bar with count, rate and time left; with `started=False` it is shown once `start` is called."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    progress = Progress(*columns, console=console)
    try:
        if started:
            progress.start()
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()


def printable(text: object) -> str:
    """Escape control characters, as in \\x1b, so that file names and metadata cannot control the terminal.

    Line breaks are escaped too, so that a message about one file is one line.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in str(text)
    )


def say(text: object, **options: Any) -> None:
    """Print one line that may contain names from files; options are those of `typer.secho`."""
    typer.secho(printable(text), **options)


def note(console: Console, text: object, style: str | None = None) -> None:
    """Print a line of plain text above the progress bar."""
    console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


def sentence_of(error: Exception) -> str:
    """Return the message of an error, without the operating system's error number."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror.rstrip('.')}."
    return str(error)


def say_failed(console: Console, path: Path, error: Exception) -> None:
    """Report a file that is skipped because of an error."""
    sentence = sentence_of(error)
    note(console, f"Failed: {sentence if sentence.startswith(str(path)) else f'{path}: {sentence}'}", "red")


def finish(written: int, skipped: int, failures: int, started: float, out: Path) -> None:
    """Print the summary; exit with status 1 if a picture failed."""
    sheets = f"; contact sheets: {out}/*_sheet.png" if written else ""
    seconds = time.monotonic() - started
    say(f"{written} extracted, {skipped} skipped (already exist), {failures} failed in {seconds:.1f} s{sheets}")
    if failures:
        raise typer.Exit(1)
