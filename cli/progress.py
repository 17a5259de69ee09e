"""What all commands show while they work: a progress bar, and the files that failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
def progress_bar(console: Console) -> Iterator[Progress]:
    """A bar with count, rate and time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


def sentence_of(error: Exception) -> str:
    """What an error says, without the operating system's number."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror.rstrip('.')}."
    return str(error)


def say_failed(console: Console, path: Path, error: Exception) -> None:
    """The line about a file that is left out; what it says is text, not markup."""
    console.print(f"failed: {path}: {sentence_of(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
