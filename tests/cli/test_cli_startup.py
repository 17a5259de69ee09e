"""Help and refusals answer before a heavy library is imported."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

HEAVY = {"PIL", "accelerate", "diffusers", "huggingface_hub", "numpy", "peft", "safetensors", "scipy", "skimage"}
HEAVY |= {"tensorboard", "torch", "transformers"}

# One process per command; for each call its status, its output and the modules imported by then.
RUN = """
import json, sys
from typer.testing import CliRunner
from intrinsic_lora.cli.main import app

results = []
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments)
    trace = result.exception is not None and not isinstance(result.exception, SystemExit)
    results.append([result.exit_code, result.output, trace, sorted({name.partition(".")[0] for name in sys.modules})])
print(json.dumps(results))
"""

REFUSALS = {
    "extract": (
        "nothing.png --out o",
        "photo.png --out o --upsample cubic",
        "photo.png --out o --normals left-handed",
        "photo.png --out o --format jpeg",
        "photo.png --out o --format png,png16",
        "photo.png --out o --intrinsics colour",
        "photo.png --out o --resolution 100",
        "photo.png --out o --loras missing/",
        "photo.png --out o --base missing.safetensors",
        "photo.png --out o --seeds 0-3",
        "photo.png other/photo.png --out o",
        "empty --out o",
        "--out o",
        "--out o --generator missing --loras folder --seeds 0",
        "--out o --generator folder --seeds 0",
        "--out o --generator folder --loras folder --seeds 3-1",
        "photo.png --out o --generator folder --loras folder --seeds 0",
        "photo.png --out o --generator folder --loras folder --truncation 0.5",
    ),
    "relight": (
        "nothing.png --out o.png",
        "photo.png --out o.jpg",
        "photo.png --out photo.png",
        "photo.png --out taken.png",
        "photo.png --out o.png --preset sunset",
        "photo.png --out o.png --mode multiply",
        "photo.png --out o.png --maps missing",
        "photo.png --out o.png --maps folder --depth-kind metres",
        "photo.png --out o.png --maps folder --base folder",
        "photo.png --out o.png --rig missing.json",
        "photo.png --out o.png --format exr",
        "photo.png --out o.png --preset loop --sheet all",
    ),
    "info": ("missing.safetensors", "folder"),
    "convert": (
        "missing.safetensors o.safetensors",
        "photo.png o.bin",
        "photo.png taken.safetensors",
    ),
    "render-scenes": ("--out o --count 0 --seed 0", "--out o --count 1", "--out photo.png --count 1 --seed 0"),
    "import-generator": ("missing.pkl o", "photo.png folder"),
    "make-set": (
        "missing/ o --count 1",
        "folder o",
        "folder o --count 1 --photos empty",
        "folder o --count 1 --classes 9-1",
        "folder o --photos empty --truncation 0.5",
    ),
    "label": (
        "folder --out o --teacher nobody",
        "missing --out o --teacher zoedepth",
        "folder --out o --teacher zoedepth --intrinsics shadow",
        "folder --out o --teacher zoedepth --steps 4",
        "folder --out o --teacher zoedepth --format exr",
        "folder --out o --teacher zoedepth --model missing/",
    ),
    "train": (
        "rank=4",
        "optimizer.lr=fast data.path=folder out=o intrinsics=[depth]",
        "data.path=folder out=o intrinsics=[depth] batch_size=0",
        "data.path=folder out=o intrinsics=[colour]",
        "data.path=missing out=o intrinsics=[depth]",
        "data.path=folder data.val_path=missing out=o intrinsics=[depth]",
        "data.path=folder base=missing.safetensors out=o intrinsics=[depth]",
        "--preset sd99",
        "--config missing.yaml",
    ),
    "evaluate": (
        "missing folder",
        "folder folder --report scores.txt",
        "folder folder --report missing/scores.html",
        "folder folder --json missing/scores.json",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Create files whose content is never read."""
    folder = tmp_path_factory.mktemp("refusals")
    for name in ("photo.png", "other/photo.png", "taken.png", "taken.safetensors", "folder/file"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "empty").mkdir()
    return folder


def outcomes(folder, calls):
    command = [sys.executable, "-c", RUN, json.dumps(calls)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_every_command_is_listed_here(folder):
    [(status, output, _, _)] = outcomes(folder, [["--help"]])
    assert status == 0
    assert all(f" {command} " in output for command in REFUSALS)
    from intrinsic_lora.cli.main import app

    assert len(app.registered_commands) == len(REFUSALS)


@pytest.mark.parametrize("command", [None, *REFUSALS])
def test_help_imports_nothing_heavy(folder, command):
    call = ["--help"] if command is None else [command, "--help"]
    [(status, output, _, modules)] = outcomes(folder, [call])
    assert status == 0 and "Usage" in output
    assert not HEAVY & set(modules)


@pytest.mark.parametrize("command", REFUSALS)
def test_refusals_import_nothing_heavy(folder, command):
    before = sorted(folder.rglob("*"))
    calls = [[command, *line.split()] for line in REFUSALS[command]]
    for call, (status, output, trace, modules) in zip(calls, outcomes(folder, calls), strict=True):
        assert status in (1, 2) and not trace, (call, output)
        assert "Error" in output or "Invalid value" in output, (call, output)
        assert not HEAVY & set(modules), (call, output)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_spinner_shows_on_a_terminal_only(root):
    import pty

    file = root / "assets/embedded/loras/intrinsic_lora_depth.safetensors"
    command = [sys.executable, "-m", "intrinsic_lora.cli.main", "info", str(file)]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stderr == b"" and b"rank" in piped.stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux: the terminal has no writer left
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0 and b"rank" in out
    assert b"Loading" in shown
    assert shown.rstrip().endswith(b"\x1b[2K")  # erased in the end
