"""Every workflow in the real page in a browser: nothing missing, nothing red, nothing covered; one is run from there.

`make screenshots` keeps what the browser shows in docs/comfyui.
"""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy import workflows
from comfy.server import Server, clone_pack, running_server
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.train.scenes import render, sample_scene

RECTANGLES = """() => Object.fromEntries(window.app.graph.nodes.map((node) => {
  const [x, y, width, height] = Array.from(node.getBounding());
  const needed = Array.from(node.computeSize());
  return [`${node.type} ${node.id}`, { box: [x, y, x + width, y + height], size: Array.from(node.size), needed }];
}))"""


# Opens the template browser at our workflows; the pictures of the cards that are there.
TEMPLATES = """async () => {
  const shown = async (find) => {
    for (;;) {  // as long as the test lets it
      const found = find();
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  };
  await window.app.extensionManager.command.execute("Comfy.BrowseTemplates");
  const named = (e) => e.children.length === 0 && e.textContent.trim() === "intrinsic-lora";
  (await shown(() => [...document.querySelectorAll("[role=dialog] *")].find(named))).click();
  const dialog = () => document.querySelector("[role=dialog]");
  const cards = () => [...dialog().querySelectorAll("img")].map((e) => [e.naturalWidth, e.naturalHeight]);
  const ours = () => NAMES.every((name) => dialog().innerText.includes(name)) && cards().length === NAMES.length;
  await shown(() => ours() && cards().every(([width]) => width > 0));
  await new Promise((resolve) => setTimeout(resolve, 1000)); // they fade in
  return cards();
}"""


@pytest.fixture(scope="module")
def artist(comfyui_dir, comfy_python, root, checkpoint, loras, tmp_path_factory) -> Iterator[Server]:
    """A server as an artist has it: the clone under its own name, files under the names they are published with."""
    base = tmp_path_factory.mktemp("artist")
    for name in ("checkpoints", "loras"):
        (base / "models" / name).mkdir(parents=True)
    for path in loras.iterdir():
        shutil.copy(path, base / "models" / "loras" / path.name.replace("normals", "normal"))
    clone_pack(root, base / "custom_nodes" / "intrinsic-lora")
    with running_server(comfyui_dir, comfy_python, base) as server:
        workflows.provide(server, checkpoint, room())
        yield server


@pytest.fixture(scope="module")
def show(open_page, artist) -> Callable[..., dict[str, Any]]:
    """`open_page` on that server."""
    return lambda workflow, *options: open_page(workflow, "--url", artist.url, *options)


@pytest.fixture(scope="module")
def pictures(cache) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ["SCREENSHOTS"]) if "SCREENSHOTS" in os.environ else cache / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
def test_loads_whole_and_tidy(show, pictures, tmp_path, name):
    script = tmp_path / "rectangles.js"
    script.write_text(RECTANGLES)
    workflow = workflows.read(name)
    report = show(workflow, "--script", script, "--screenshot", pictures / f"{name}.jpg")
    check(report)
    assert {node["id"] for node in report["nodes"]} == {node["id"] for node in workflow["nodes"]}
    found = report["script"]
    for node, sizes in found.items():  # the page does not have to make it larger, which might cover another
        assert sizes["size"][0] >= sizes["needed"][0] and sizes["size"][1] >= sizes["needed"][1], (node, sizes)
    for (a, left), (b, right) in itertools.combinations(found.items(), 2):
        (ax, ay, ar, ab), (bx, by, br, bb) = left["box"], right["box"]
        assert ar <= bx or br <= ax or ab <= by or bb <= ay, (a, b)


def test_one_runs_from_the_page(show, cache):
    workflow = workflows.read("1-photo-to-four-maps")
    [decompose] = [node for node in workflow["nodes"] if node["type"] == "IntrinsicLora_Decompose"]
    assert decompose["widgets_values"][2] == 512
    decompose["widgets_values"][2] = workflows.SMALL["resolution"]
    report = show(workflow, "--queue", "--screenshot", cache / "run-from-the-page.png")
    check(report)
    assert report["run"]["status"] == "success" and report["run"]["previews_shown"]
    previews = [node["previews"] for node in report["nodes"] if node["type"] == "PreviewImage"]
    assert previews == [[[384, 384]]] * 4


def test_the_template_browser_shows_them(show, pictures, tmp_path):
    script = tmp_path / "templates.js"
    script.write_text(TEMPLATES.replace("NAMES", json.dumps(workflows.NAMES)))
    workflow = workflows.read("1-photo-to-four-maps")
    report = show(workflow, "--script", script, "--screenshot", pictures / "templates.jpg")
    assert report["script"] == [[400, 400]] * len(workflows.NAMES)


def test_missing_files_are_offered_for_download(show, artist, checkpoint):
    (artist.base / "models" / "checkpoints" / "v1-5-pruned-emaonly.safetensors").unlink()
    (artist.base / "models" / "loras" / "intrinsic_lora_shading.safetensors").rename(artist.base / "shading")
    [dialog] = show(workflows.read("vanilla-core-nodes"))["dialogs"]
    (artist.base / "shading").rename(artist.base / "models" / "loras" / "intrinsic_lora_shading.safetensors")
    workflows.provide(artist, checkpoint, room())
    assert "checkpoints / v1-5-pruned-emaonly.safetensors" in dialog
    assert "loras / intrinsic_lora_shading.safetensors" in dialog and dialog.count("Download") == 2
