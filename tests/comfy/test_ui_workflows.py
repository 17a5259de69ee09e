"""Every workflow in the real page in a browser: nothing missing, nothing red, nothing covered; one is run from there.

`make screenshots` keeps what the browser shows in docs/comfyui.
"""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from intrinsic_lora.comfy_nodes.rigs import TYPES, light_inputs
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.display import display_map
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from intrinsic_lora.tests.comfy import workflows
from intrinsic_lora.tests.comfy.client import Client
from intrinsic_lora.tests.comfy.graphs import BYPASSED
from intrinsic_lora.tests.comfy.server import Server, clone_pack, running_server
from intrinsic_lora.train.scenes.render import render, sample_scene
from safetensors.torch import save_file

TOLD = (Path(__file__).parent / "ui" / "told.js").read_text()
RECTANGLES = """() => Object.fromEntries(window.app.graph.nodes.map((node) => {
  const [x, y, width, height] = Array.from(node.getBounding());
  const needed = Array.from(node.computeSize());
  return [`${node.type} ${node.id}`, { box: [x, y, x + width, y + height], size: Array.from(node.size), needed }];
}))"""


# Opens the template browser at our workflows; the pictures of the cards that are there.
TEMPLATES = """async () => {
  const tenth = () => new Promise((resolve) => setTimeout(resolve, 100));
  const dialog = () => document.querySelector("[role=dialog]");
  const named = (e) => e.children.length === 0 && e.textContent.trim() === "intrinsic-lora";
  const choose = () => [...document.querySelectorAll("[role=dialog] *")].find(named)?.click();
  const cards = () => [...dialog().querySelectorAll("img")].map((e) => [e.naturalWidth, e.naturalHeight]);
  const ours = () => dialog() && NAMES.every((name) => dialog().innerText.includes(name)) &&
    cards().length === NAMES.length && cards().every(([width]) => width > 0);
  await window.app.extensionManager.command.execute("Comfy.BrowseTemplates");
  for (let i = 0; !ours(); i++) {  // as long as the test lets it
    if (i % 50 === 0) choose();  // lists that arrive late put the choice back
    await tenth();
  }
  await new Promise((resolve) => setTimeout(resolve, 1000)); // they fade in
  return cards();
}"""


@pytest.fixture(scope="module")
def artists_server(comfyui_dir, comfy_python, root, checkpoint, loras) -> Callable[[Path], AbstractContextManager]:
    """`with artists_server(folder) as server`: the clone under its own name, files under published names."""

    @contextmanager
    def start(base: Path) -> Iterator[Server]:
        for name in ("checkpoints", "loras"):
            (base / "models" / name).mkdir(parents=True)
        for path in loras.iterdir():
            shutil.copy(path, base / "models" / "loras" / path.name.replace("normals", "normal"))
        clone_pack(root, base / "custom_nodes" / "intrinsic-lora")
        with running_server(comfyui_dir, comfy_python, base) as server:
            workflows.provide(server, checkpoint, room()[0])
            yield server

    return start


@pytest.fixture(scope="module")
def artist(artists_server, tmp_path_factory) -> Iterator[Server]:
    """Start a server as users have it."""
    with artists_server(tmp_path_factory.mktemp("artist")) as server:
        yield server


@pytest.fixture(scope="module")
def rendered(artists_server, tmp_path_factory) -> Iterator[Server]:
    """Such a server where the room's exact maps stand in for a model's; see stand_in/."""
    base = tmp_path_factory.mktemp("rendered")
    pack = base / "custom_nodes" / "stand_in"
    shutil.copytree(Path(__file__).parent / "stand_in", pack)
    maps = room()[1]
    save_file(maps | {"drawn shading": display_map(maps["shading"], "shading")}, pack / "maps.safetensors")
    with artists_server(base) as server:
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


def room() -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Render a room: a photo, uint8 (384, 384, 3), and its maps by intrinsic, canonical (1, C, 384, 384)."""
    found = render(sample_scene(np.random.default_rng([11, 5])), 384)
    light = linear_to_srgb(torch.from_numpy(found["rgb_linear"])).clamp(0, 1)
    maps = {name: torch.from_numpy(np.atleast_3d(found[name])).permute(2, 0, 1)[None].float() for name in INTRINSICS}
    return (light * 255).round().byte().numpy(), {name: x.contiguous() for name, x in maps.items()}


def check(report: dict) -> None:
    """Nothing that a user would stumble over."""
    assert report["blocked"] == report["console"] == report["page_errors"] == report["dialogs"] == []
    for node in report["nodes"]:
        assert not node["missing"] and not node["errors"] and not node["red_widgets"] and not node["unlinked"], node


def check_tidy(rectangles: dict[str, dict[str, list[float]]]) -> None:
    """No node is on another, and the page does not have to make one larger, which might bring it there."""
    for node, sizes in rectangles.items():
        assert sizes["size"][0] >= sizes["needed"][0] and sizes["size"][1] >= sizes["needed"][1], (node, sizes)
    for (a, left), (b, right) in itertools.combinations(rectangles.items(), 2):
        (ax, ay, ar, ab), (bx, by, br, bb) = left["box"], right["box"]
        assert ar <= bx or br <= ax or ab <= by or bb <= ay, (a, b)


def check_groups(workflow: dict[str, Any], rectangles: dict[str, dict[str, list[float]]]) -> None:
    """No node has grown out of the group it was put in."""
    boxes = {key.split()[1]: sizes["box"] for key, sizes in rectangles.items()}
    for node, group in itertools.product(workflow["nodes"], workflow["groups"]):
        (x, y), (left, top, width, height) = node["pos"], group["bounding"]
        if left <= x < left + width and top <= y < top + height:
            _, _, right, bottom = boxes[str(node["id"])]
            assert right <= left + width and bottom <= top + height, (node["type"], group["title"])


@pytest.fixture(params=("classic", "vue"))
def renderer(request, artist) -> str:
    """How the page draws nodes: on a canvas, or as Nodes 2.0."""
    version = Client(artist.url).get("system_stats")["system"]["comfyui_version"]
    if request.param == "vue" and version.startswith("0.3."):
        pytest.skip(f"Nodes 2.0 of ComfyUI {version} is a preview that leaves text fields out")
    return request.param


@pytest.mark.parametrize("name", workflows.NAMES)
def test_loads_whole_and_tidy(show, cache, tmp_path, renderer, name):
    script = tmp_path / "rectangles.js"
    script.write_text(RECTANGLES)
    workflow = workflows.read(name)
    picture = cache / f"{name}-{renderer}.png"
    report = show(workflow, "--renderer", renderer, "--script", script, "--screenshot", picture)
    check(report)
    assert {node["id"] for node in report["nodes"]} == {str(node["id"]) for node in workflow["nodes"]}
    check_tidy(report["script"])


@pytest.mark.parametrize("renderer", ["vue"], indirect=True)
@pytest.mark.parametrize("name", workflows.NAMES)
def test_is_tidy_after_a_run(open_page, rendered, pictures, tmp_path, renderer, name):
    """With the pictures on its nodes, which do not grow over their neighbours."""
    script = tmp_path / "rectangles.js"
    script.write_text(RECTANGLES)
    workflow = workflows.read(name)
    for node in workflow["nodes"]:
        if node["type"] == "IntrinsicLora_SaveEXR":
            node["widgets_values"][1] = "PNG 16 bit"  # ComfyUI's environment here has no OpenEXR
    looks = ("--renderer", renderer, "--queue", "--close", "--screenshot", pictures / f"{name}.jpg")
    report = open_page(workflow, "--url", rendered.url, "--script", script, *looks)
    check(report)
    check_tidy(report["script"])
    check_groups(workflow, report["script"])
    assert report["run"]["status"] == "success" and report["run"]["previews_shown"]


def test_one_runs_from_the_page(show, cache, tmp_path, renderer):
    """And its nodes show their pictures without growing over their neighbours."""
    script = tmp_path / "rectangles.js"
    script.write_text(RECTANGLES)
    workflow = workflows.read("2-portrait-light")
    [decompose] = [node for node in workflow["nodes"] if node["type"] == "IntrinsicLora_Decompose"]
    assert decompose["widgets_values"][2] == 512
    decompose["widgets_values"][2] = workflows.SMALL["resolution"]
    picture = cache / f"run-from-the-page-{renderer}.png"
    report = show(workflow, "--renderer", renderer, "--queue", "--script", script, "--screenshot", picture)
    check(report)
    check_tidy(report["script"])
    assert report["run"]["status"] == "success" and report["run"]["previews_shown"]
    previews = {node["type"]: node["previews"] for node in report["nodes"] if node["previews"]}
    assert previews == {
        "LoadImage": [[384, 384]],
        "IntrinsicLora_Decompose": [[384, 384]] * 4,
        "PreviewImage": [[384, 384]],
        "IntrinsicLora_Relight": [[384, 384]] * (2 if renderer == "vue" else 1),  # before and after, under a slider
        "SaveImage": [[384, 384]],
    }


FIELDS = """async () => {
  const [light] = window.app.graph.nodes.filter((node) => node.type === "IntrinsicLora_Light");
  const [menu] = light.widgets;
  const shown = () => {
    const element = document.querySelector(`[data-node-id="${light.id}"]`);  // of Nodes 2.0
    const drawn = light.widgets.filter((widget) => !widget.hidden).map((widget) => widget.name);
    return { drawn, text: element ? element.innerText.split("\\n") : drawn };
  };
  const names = light.widgets.filter((widget) => widget !== menu).map((widget) => widget.name);
  const settled = async () => {  // Vue draws later
    const agrees = ({ drawn, text }) => names.every((name) => drawn.includes(name) === text.includes(name));
    for (let i = 0; i < 600 && !agrees(shown()); i++) await new Promise((resolve) => setTimeout(resolve, 100));
    return shown();
  };
  const found = { loaded: await settled() };
  for (const type of menu.options.values) {
    menu.value = type;
    menu.callback(type, window.app.canvas, light);
    found[type] = await settled();
  }
  const { output } = await window.app.graphToPrompt();
  return { found, sent: Object.values(output).find((node) => node.class_type === "IntrinsicLora_Light").inputs };
}"""


def test_a_light_shows_the_fields_of_its_type(show, tmp_path, renderer):
    """And sends all of them, so that no value is lost."""
    script = tmp_path / "fields.js"
    script.write_text(FIELDS)
    report = show(workflows.read("2-portrait-light"), "--renderer", renderer, "--script", script)
    check(report)
    names = list(light_inputs())
    for kind, seen in report["script"]["found"].items():
        own = {name for name in names if (kind if kind in TYPES else "rim") in light_inputs()[name].types}
        assert set(seen["drawn"]) == {"type", *own}, kind
        assert set(names) & set(seen["text"]) == own, kind
    assert set(report["script"]["sent"]) >= set(names)


def test_bypass_in_the_page_sends_the_photo(show, tmp_path, renderer):
    workflow = workflows.read("2-portrait-light")
    [relight] = [node for node in workflow["nodes"] if node["type"] == "IntrinsicLora_Relight"]
    relight["mode"] = BYPASSED
    file = tmp_path / "sent.json"
    check(show(workflow, "--renderer", renderer, "--save-api", file))
    sent = json.loads(file.read_text())
    [saved] = [node for node in sent.values() if node["class_type"] == "SaveImage"]
    assert sent[saved["inputs"]["images"][0]]["class_type"] == "LoadImage"


def test_the_blueprint_runs_with_its_widgets_on_the_outside(show, artist, renderer):
    if Client(artist.url).get("system_stats")["system"]["comfyui_version"].startswith("0.3."):
        pytest.skip("this ComfyUI offers no blueprints of packs")
    graph = workflows.blueprint()
    [host] = graph["nodes"]
    [inner] = graph["definitions"]["subgraphs"]
    [decompose] = [node for node in inner["nodes"] if node["type"] == "IntrinsicLora_Decompose"]
    decompose["widgets_values"][2] = workflows.SMALL["resolution"]
    source = workflows.read("1-photo-to-four-maps")["nodes"]
    loaders = [node for node in source if node["type"] in ("CheckpointLoaderSimple", "LoadImage")]
    [save] = [node for node in workflows.read("2-portrait-light")["nodes"] if node["type"] == "SaveImage"]
    names = [socket["name"] for socket in host["inputs"]]
    wires = [(2, 0, "model", "MODEL"), (2, 1, "clip", "CLIP"), (2, 2, "vae", "VAE"), (3, 0, "image", "IMAGE")]
    host["id"] = 40
    links = [[i, a, slot, 40, names.index(name), kind] for i, (a, slot, name, kind) in enumerate(wires, start=1)]
    links.append([5, 40, 0, save["id"], 0, "IMAGE"])
    for number, origin, slot, target, place, _ in links:
        nodes = {node["id"]: node for node in (*loaders, host, save)}
        nodes[target]["inputs"][place]["link"] = number
        nodes[origin]["outputs"][slot]["links"] = [number]
    graph |= {"nodes": [*loaders, host, save], "links": links, "last_node_id": 40, "last_link_id": 5}
    report = show(graph, "--renderer", renderer, "--queue")
    check(report)
    assert report["run"]["status"] == "success"
    [shown] = [node for node in report["nodes"] if node["title"] == "Photo Relight"]
    assert {"preset", "az", "el", "intensity", "exposure"} <= set(shown["widgets"])


def test_the_template_browser_shows_them(show, pictures, tmp_path):
    script = tmp_path / "templates.js"
    script.write_text(TEMPLATES.replace("NAMES", json.dumps(workflows.NAMES)))
    workflow = workflows.read("1-photo-to-four-maps")
    report = show(workflow, "--script", script, "--screenshot", pictures / "templates.jpg")
    assert report["script"] == [[400, 400]] * len(workflows.NAMES)


def test_missing_files_are_offered_for_download(show, artist, checkpoint, tmp_path):
    script = tmp_path / "missing.js"
    script.write_text(TOLD.replace("PATTERN", "/Download[^]*Download/"))
    lora = artist.base / "models" / "loras" / "intrinsic_lora_shading.safetensors"
    (artist.base / "models" / "checkpoints" / "v1-5-pruned-emaonly.safetensors").unlink()
    lora.rename(artist.base / "shading")
    text = show(workflows.read("vanilla-core-nodes"), "--script", script)["script"]
    (artist.base / "shading").rename(lora)
    workflows.provide(artist, checkpoint, room()[0])
    assert "v1-5-pruned-emaonly.safetensors" in text and "intrinsic_lora_shading.safetensors" in text
