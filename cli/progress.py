"""What all commands show while they work: a progress bar, the files that failed, and no control characters."""

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
    """A spinner while libraries and models are loaded, on a terminal only. Also a decorator. Not to be nested."""
    console = Console(stderr=True)
    with console.status(text) if console.is_terminal else nullcontext():
        yield


@contextmanager
def progress_bar(console: Console, started: bool = True) -> Iterator[Progress]:
    """A bar with count, rate and time left; with `started=False` it is shown once `start` is called."""
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
    """Show control characters as escapes such as \\x1b, so that a file's name or metadata cannot steer the terminal.

    Line breaks count as such too: what is said of one file is one line.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in str(text)
    )


def say(text: object, **options: Any) -> None:
    """`typer.secho` of one line that may hold names from files; with its options."""
    typer.secho(printable(text), **options)


def note(console: Console, text: object, style: str | None = None) -> None:
    """A line above the progress bar; it is text, not markup."""
    console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


def sentence_of(error: Exception) -> str:
    """What an error says, without the operating system's number."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror.rstrip('.')}."
    return str(error)


def say_failed(console: Console, path: Path, error: Exception) -> None:
    """The line about a file that is left out."""
    note(console, f"failed: {path}: {sentence_of(error)}", "red")


def finish(written: int, there: int, failures: int, started: float, out: Path) -> None:
    """The last line; exit status 1 where a picture failed."""
    sheets = f"; contact sheets: {out}/*_sheet.png" if written else ""
    seconds = time.monotonic() - started
    say(f"{written} extracted, {there} already there, {failures} failed in {seconds:.1f} s{sheets}")
    if failures:
        raise typer.Exit(1)
