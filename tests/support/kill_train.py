"""Kills a training run at random moments and sees whether it ends as if nothing had happened.

    python tests/support/kill_train.py --kills 20

Every attempt is a process of its own that gets SIGKILL at a random moment: while it loads, trains, validates, writes
a checkpoint or removes an old one. After each kill every checkpoint that can be seen must be whole. At the end the run
is left alone to finish; its weights, its `best/` and its losses must equal, bit for bit, those of a run that nobody
disturbed.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from intrinsic_lora.intrinsics import read_lora
from intrinsic_lora.tests.support import tiny_training
from intrinsic_lora.train.checkpoints import checkpoints, newest_sound
from intrinsic_lora.train.config import TrainConfig
from intrinsic_lora.train.loop import train

INTRINSICS = ("normals", "depth")


def kill_test(folder: Path, kills: int, seed: int, steps: int, say: Callable[[str], None] = print) -> None:
    """Raise AssertionError if a kill caused damage. Uses fork, so the caller must not have started threads."""
    base = tiny_training.write_base(folder / "base")
    data = tiny_training.write_scenes(folder / "scenes", 8)

    def config(name: str) -> TrainConfig:
        changes = {"intrinsics": f"[{','.join(INTRINSICS)}]", "checkpoint_every": 1, "keep": 2, "ema": 0.9}
        return tiny_training.config(base, data, folder / name, max_steps=steps, validate_every=10, **changes)

    started = time.monotonic()
    assert _run(config("undisturbed"), None) == 0
    duration = time.monotonic() - started
    moments = random.Random(seed)
    landed = attempt = 0
    while landed < kills:
        out = folder / f"killed_{attempt}"
        while landed < kills:
            status = _run(config(out.name), moments.uniform(0, 0.6 * duration))
            if status == 0:
                break  # it was done before the kill came: on with a fresh run
            assert status == -signal.SIGKILL, f"the run ended by itself with status {status}"
            landed += 1
            say(f"kill {landed}: {_check(out)}")
        assert _run(config(out.name), None) == 0
        _compare(folder / "undisturbed", out)
        say(f"{out.name}: finished; weights, best/ and losses equal those of the undisturbed run bit for bit")
        attempt += 1


def _run(config: TrainConfig, kill_after: float | None) -> int:
    """Train in a child process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
                train(config)
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _check(out: Path) -> str:
    """All that can be seen is whole: the checkpoints, `best/`, the results."""
    for path in checkpoints(out / "checkpoints"):
        state = torch.load(path / "state.pt", weights_only=True)
        assert state["step"] == int(path.name.removeprefix("step_"))
        for name in INTRINSICS:
            read_lora(path / f"intrinsic_lora_{name}.safetensors")
    for path in (*out.glob("best/*.safetensors"), *out.glob("*.safetensors")):
        read_lora(path)
    found = newest_sound(out / "checkpoints")
    leftovers = " (half-written ones left over)" if any(out.glob("checkpoints/.step_*")) else ""
    return f"newest checkpoint at step {found[1]['step']}{leftovers}" if found else "before the first checkpoint"


def _compare(ours: Path, theirs: Path) -> None:
    for name in INTRINSICS:
        for place in (".", "best"):
            files = [run / place / f"intrinsic_lora_{name}.safetensors" for run in (ours, theirs)]
            a, b = map(tiny_training.weights, files)
            assert a.keys() == b.keys()
            different = [key for key in a if not torch.equal(a[key], b[key])]
            assert not different, f"{place}/{name}: {different[0]} differs"
    a, b = ([json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (ours, theirs))
    assert a == b, "metrics.jsonl differs"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # fork and OpenMP do not mix
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        kill_test(Path(folder), arguments.kills, arguments.seed, arguments.steps)
    print(f"{arguments.kills} kills: no checkpoint was ever unreadable, and every run ended the same")
