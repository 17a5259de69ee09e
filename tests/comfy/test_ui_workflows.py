"""Every workflow in the real page in a browser: nothing missing, nothing red, nothing covered; one is run from there.

`make screenshots` keeps what the browser shows in docs/comfyui.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy import workflows
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.train.scenes import render, sample_scene

RECTANGLES = """() => Object.fromEntries(window.app.graph.nodes.map((node) => {
  const [x, y, width, height] = Array.from(node.getBounding());
  const needed = Array.from(node.computeSize());
  return [`${node.type} ${node.id}`, { box: [x, y, x + width, y + height], size: Array.from(node.size), needed }];
}))"""


@pytest.fixture(scope="module")
def pictures(cache) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ["SCREENSHOTS"]) if "SCREENSHOTS" in os.environ else cache / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def room() -> np.ndarray:
    """uint8 (384, 384, 3): a rendered room, for a photo."""
    light = render(sample_scene(np.random.default_rng([11, 5])), 384)["rgb_linear"]
    return (linear_to_srgb(torch.from_numpy(light)).clamp(0, 1) * 255).round().byte().numpy()


def check(report: dict) -> None:
    """Nothing that a user would stumble over."""
    assert report["blocked"] == report["console"] == report["page_errors"] == report["dialogs"] == []
    for node in report["nodes"]:
        assert not node["missing"] and not node["errors"] and not node["red_widgets"] and not node["unlinked"], node


@pytest.mark.parametrize("name", workflows.NAMES)
def test_loads_whole_and_tidy(open_page, server, checkpoint, room, pictures, tmp_path, name):
    workflows.provide(server, checkpoint, room)
    script = tmp_path / "rectangles.js"
    script.write_text(RECTANGLES)
    workflow = workflows.read(name)
    report = open_page(workflow, "--script", script, "--screenshot", pictures / f"{name}.jpg")
    check(report)
    assert {node["id"] for node in report["nodes"]} == {node["id"] for node in workflow["nodes"]}
    found = report["script"]
    for node, sizes in found.items():  # the page does not have to make it larger, which might cover another
        assert sizes["size"][0] >= sizes["needed"][0] and sizes["size"][1] >= sizes["needed"][1], (node, sizes)
    for (a, left), (b, right) in itertools.combinations(found.items(), 2):
        (ax, ay, ar, ab), (bx, by, br, bb) = left["box"], right["box"]
        assert ar <= bx or br <= ax or ab <= by or bb <= ay, (a, b)


def test_one_runs_from_the_page(open_page, server, checkpoint, photo, cache):
    workflows.provide(server, checkpoint, photo)
    workflow = workflows.read("1-photo-to-four-maps")
    [decompose] = [node for node in workflow["nodes"] if node["type"] == "IntrinsicLora_Decompose"]
    assert decompose["widgets_values"][2] == 512
    decompose["widgets_values"][2] = workflows.SMALL["resolution"]
    report = open_page(workflow, "--queue", "--screenshot", cache / "run-from-the-page.png")
    check(report)
    assert report["run"]["status"] == "success" and report["run"]["previews_shown"]
    size = [photo.shape[1], photo.shape[0]]
    previews = [node["previews"] for node in report["nodes"] if node["type"] == "PreviewImage"]
    assert previews == [[size]] * 4
