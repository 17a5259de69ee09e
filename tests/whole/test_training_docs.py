"""docs/training.md: its example runs (with fewer and smaller pictures), settings and links exist."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics.lora import read_lora
from intrinsic_lora.intrinsics.pictures import read_picture
from intrinsic_lora.intrinsics.vocabulary import Intrinsic
from intrinsic_lora.train.config import describe
from intrinsic_lora.train.scenes.render import render, sample_scene
from typer.testing import CliRunner

# Options that make each command of the example small. Everything else is run as printed.
SMALL = {
    "python": ["--train", "6", "--test", "3", "--size", "32"],
    "train": ["data.resolution=32", "data.val_count=2", "batch_size=2", "max_steps=3", "log=files"],
}


@pytest.fixture
def page(root) -> str:
    return (root / "docs" / "training.md").read_text(encoding="utf-8")


def commands(block: str) -> list[list[str]]:
    """Lines of a shell block, continuations joined and comments dropped, as arguments."""
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_example_of_a_new_intrinsic_runs(page, root, tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(root / "docs")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"<!-- tests/whole/test_training_docs.py runs this block -->\n```\n(.*?)```", page, re.DOTALL)
    for command in commands(block[1]):
        program, *arguments = command
        if program == "python":
            subprocess.run([sys.executable, *arguments, *SMALL["python"]], check=True, capture_output=True)
        else:
            assert program == "intrinsic-lora"
            result = CliRunner().invoke(app, arguments + SMALL.get(arguments[0], []))
            assert result.exit_code == 0, result.output

    # The renderer makes photos and labels, from different scenes in the two splits.
    train, test = (render(sample_scene(np.random.default_rng([seed, 1])), 32) for seed in (100, 101))
    label = read_picture("data/shadow/train/shadow/0001.png").rgb[0, 0].numpy()
    np.testing.assert_allclose(label, train["shadow"], atol=1e-5)
    np.testing.assert_array_equal(np.load("data/shadow/test/truth/0001.npz")["shadow"], test["shadow"])
    assert not np.array_equal(train["shadow"], test["shadow"])

    lora = read_lora("runs/shadow/intrinsic_lora_shadow.safetensors")
    assert lora.intrinsic == "shadow"
    assert lora.header.definition("shadow") == Intrinsic("shadow", "shadow mask", 1, "linear")
    drawn = np.load("maps/shadow/0001.npz")["shadow"]
    assert drawn.shape == (32, 32, 1) and drawn.min() >= 0 and drawn.max() <= 1
    assert "shadow" in result.output and "iou" in result.output  # of evaluate, the last command
    assert "<h2>shadow</h2>" in (tmp_path / "shadow.html").read_text(encoding="utf-8")
    assert "shadow mask" in (tmp_path / "runs/shadow/README.md").read_text(encoding="utf-8")


def test_settings_named_in_the_page_exist(page):
    known = {key for key, _, _ in describe()}
    named = set(re.findall(r"(?<![\w.\-/])([a-z][a-z_]*(?:\.[a-z_]+)*)=[\w\"\[]", page))
    assert len(named) > 8 and named - {"key"} <= known
    for key in re.findall(r"`((?:data|schedule|optimizer|lora)\.[a-z_]+)`", page):
        assert key in known


def test_links_of_the_page_lead_somewhere(page, root):
    titles = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)", page, re.M)
    }
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in titles
        else:
            assert (root / "docs" / link).exists()
