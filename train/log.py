"""Progress, metrics and signals of a run: a progress bar, `metrics.jsonl`, TensorBoard or wandb, and SIGTERM."""

import json
import math
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..intrinsics.files import atomic_path, naming_full_disk
from .config import TrainConfig, plain_dict

if TYPE_CHECKING:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

TRACK_EVERY = 10  # steps between two points in TensorBoard or wandb; metrics.jsonl has every step
SHOWN_PROBLEMS = 10


class Log:
    """All output of a run; silent in all processes but the first."""

    def __init__(self, config: TrainConfig, active: bool) -> None:
        self.config = config
        self.active = active
        self.out = Path(config.out)
        self.console = Console(stderr=True, quiet=not active)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not active)
        self.task: Any = None  # a TaskID, from `begin` on
        self.file: Any = None  # metrics.jsonl, from `begin` on
        self.tracker: TensorBoardTracker | WandBTracker | None = None
        self.shown: list[str] = []  # problems with the data
        self.smooth: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.progress.stop()
        # On a full disk these fail too, and must not hide the error that says so.
        with suppress(OSError) if kind is not None else nullcontext():
            if self.file is not None:
                self.file.close()
            if self.tracker is not None:
                self.tracker.finish()

    def say(self, line: str, style: str = "") -> None:
        """Print one line above the progress bar."""
        self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def problems(self, problems: Sequence[str]) -> None:
        """Report problems of the data: new ones on the screen, all of them in `problems.txt`."""
        new = [line for line in problems if line not in self.shown]
        self.shown += new
        for line in new[:SHOWN_PROBLEMS]:
            self.say(f"data: {line}", "yellow")
        if len(new) > SHOWN_PROBLEMS:
            self.say(f"data: {len(new) - SHOWN_PROBLEMS} more in {self.out / 'problems.txt'}", "yellow")
        if self.active and new:
            self.out.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.out / "problems.txt") as path:
                path.write_text("\n".join(self.shown) + "\n", encoding="utf-8")

    def encoding(self, done: int, total: int) -> None:
        """Show the progress of encoding."""
        if self.task is None:
            self.task = self.progress.add_task("encode", total=total, note="")
        self.progress.update(self.task, completed=done, total=total)

    def begin(self, step: int) -> None:
        """Start, or resume, after `step` steps; later lines of the log files are dropped."""
        if not self.active:
            return
        if self.task is not None:
            self.progress.remove_task(self.task)
        path = self.out / "metrics.jsonl"
        kept = (
            [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            if path.exists()
            else []
        )
        if step == 0:
            kept = []
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self.tracker = _tracker(self.config, step)
        self.task = self.progress.add_task("train", total=self.config.max_steps, completed=step, note="")
        self.started, self.first = time.monotonic(), step

    def step(self, step: int, losses: Mapping[str, float], rate: float, norms: Mapping[str, float]) -> None:
        """Log one optimiser step."""
        if not self.active:
            return
        self._write({"step": step, "loss": losses, "lr": rate, "grad_norm": norms})
        for name, loss in losses.items():
            self.smooth[name] = 0.95 * self.smooth.get(name, loss) + 0.05 * loss
        speed = (step - self.first) / (time.monotonic() - self.started)
        shown = " ".join(f"{name} {loss:.4f}" for name, loss in self.smooth.items())
        self.progress.update(self.task, completed=step, note=f"loss {shown}, {speed:.2f} steps/s")
        if self.tracker is not None and step % TRACK_EVERY == 0:
            values = {f"loss/{name}": loss for name, loss in losses.items()} | {"lr": rate, "steps_per_s": speed}
            self.tracker.log(values | {f"grad_norm/{name}": norm for name, norm in norms.items()}, step=step)

    def validation(self, step: int, scores: Mapping[str, Mapping[str, float]], grid: Image.Image) -> None:
        """Log scores and a sheet of pictures after `step` steps."""
        folder = self.out / "validation"
        folder.mkdir(exist_ok=True)
        with atomic_path(folder / f"step_{step:06d}.png") as path:
            grid.save(path)
        defined = {name: {k: v for k, v in row.items() if math.isfinite(v)} for name, row in scores.items()}
        self._write({"step": step, "validation": defined})
        for name, row in defined.items():
            self.say(f"step {step}: {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
        if self.tracker is not None:
            values = {f"val/{name}/{key}": value for name, row in defined.items() for key, value in row.items()}
            self.tracker.log(values, step=step)
            if self.config.log == "tensorboard":
                self.tracker.log_images({"validation": np.asarray(grid)[None]}, step=step, dataformats="NHWC")
            else:
                self.tracker.log_images({"validation": [grid]}, step=step)

    def _write(self, row: dict[str, Any]) -> None:
        with naming_full_disk(self.file.name):
            self.file.write(json.dumps(row) + "\n")


class StopSignal:
    """Within the block SIGTERM and SIGINT are remembered instead of killing; a second one of them does kill.

    Attributes:
        signal: the number of the one that came, else 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self.before[number])


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # torn by a kill
        return math.inf


def _tracker(config: TrainConfig, step: int) -> Any:
    """Return accelerate's wrapper around TensorBoard or wandb, or None."""
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    out = Path(config.out)
    if config.log == "files":
        return None
    if config.log == "tensorboard":
        tracker: Any = TensorBoardTracker("tensorboard", str(out), purge_step=step + 1 if step else None)
        tracker.start()
    else:
        identity = out / "wandb_run.txt"  # a resumed run is one run there, too
        if step == 0 or not identity.exists():
            with atomic_path(identity) as path:
                path.write_text(uuid4().hex[:8], encoding="utf-8")
        run_id = identity.read_text(encoding="utf-8")
        tracker = WandBTracker("intrinsic-lora", dir=str(out), name=out.name, id=run_id, resume="allow")
        tracker.start()
        tracker.store_init_configuration(plain_dict(config))
    return tracker
