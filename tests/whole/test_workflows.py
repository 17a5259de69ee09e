"""The workflows as files: whole, tidy, and in step with our nodes as ComfyUI describes them. No ComfyUI needed."""

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "workflows").glob("*.json"))
OURS = json.loads((ROOT / "tests" / "comfy" / "object_info.json").read_text())  # node id -> its definition
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
TITLE = 30  # pixels of a node's title bar, above its position
Workflow = dict[str, Any]


@pytest.fixture(params=FILES, ids=[file.stem for file in FILES])
def file(request) -> Path:
    return request.param


@pytest.fixture
def workflow(file) -> Workflow:
    return json.loads(file.read_text())


def rectangle(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, with the title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def test_there_are_the_seven():
    assert [file.stem.split("-")[0] for file in FILES] == ["1", "2", "3", "4", "5", "6", "vanilla"]


def test_no_other_folder_is_taken_for_that_of_the_templates():
    """ComfyUI serves the first of these folders that is there, and lists the templates of all."""
    names = ("example_workflows", "example", "examples", "workflow", "workflows")
    assert [name for name in names if (ROOT / name).exists()] == ["workflows"]


def test_is_a_workflow_of_the_format_0_4(workflow):
    assert workflow["version"] == 0.4
    ids = [node["id"] for node in workflow["nodes"]]
    assert len(set(ids)) == len(ids) and max(ids) == workflow["last_node_id"]
    links = [link[0] for link in workflow["links"]]
    assert len(set(links)) == len(links) and max(links) == workflow["last_link_id"]


def test_links_and_sockets_agree(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, slot, target, place, kind in workflow["links"]:
        output, socket = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert output["type"] == socket["type"] == kind
        assert number in output["links"] and socket["link"] == number
    known = {link[0] for link in workflow["links"]}
    for node in workflow["nodes"]:
        assert {socket["link"] for socket in node["inputs"]} - {None} <= known
        for output in node["outputs"]:
            assert set(output["links"] or ()) <= known


def test_runs_in_order(workflow):
    """The field "order": no node before what it takes its inputs from; so there is no circle either."""
    order = {node["id"]: node["order"] for node in workflow["nodes"]}
    assert sorted(order.values()) == list(range(len(order)))
    assert all(order[source] < order[target] for _, source, _, target, _, _ in workflow["links"])


def test_our_nodes_are_as_comfyui_describes_them(workflow):
    for node in workflow["nodes"]:
        if not node["type"].startswith("IntrinsicLora_"):
            continue
        definition = OURS[node["type"]]
        sockets, widgets = [], []
        for group in ("required", "optional"):
            for name in definition["input_order"].get(group, []):
                kind, options = definition["input"][group][name]
                widget = kind in WIDGETS and not options.get("forceInput")
                (widgets if widget else sockets).append((name, kind, options, group == "required"))
        assert [(i["name"], i["type"]) for i in node["inputs"]] == [(name, kind) for name, kind, *_ in sockets]
        for socket, (name, _, _, required) in zip(node["inputs"], sockets, strict=True):
            assert socket["link"] is not None or not required, f"{node['type']}.{name}"
        found = [(output["name"], output["type"]) for output in node["outputs"]]
        assert found == list(zip(definition["output_name"], definition["output"], strict=True))
        for value, (name, kind, options, _) in zip(node["widgets_values"], widgets, strict=True):
            where = f"{node['type']}.{name} = {value!r}"
            if kind == "COMBO":
                assert value in options["options"], where
            elif kind in ("INT", "FLOAT"):
                assert isinstance(value, int | float) and not isinstance(value, bool), where
                assert options.get("min", value) <= value <= options.get("max", value), where
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), where


def test_no_two_nodes_overlap(workflow):
    for a, b in itertools.combinations(workflow["nodes"], 2):
        (ax, ay, ar, ab), (bx, by, br, bb) = rectangle(a), rectangle(b)
        apart = ar <= bx or br <= ax or ab <= by or bb <= ay
        assert apart, f"{a['type']} ({a['id']}) and {b['type']} ({b['id']})"


def test_groups_hold_whole_nodes_and_do_not_overlap(workflow):
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    for (ax, ay, ar, ab), (bx, by, br, bb) in itertools.combinations(boxes, 2):
        assert ar <= bx or br <= ax or ab <= by or bb <= ay
    for node in workflow["nodes"]:
        x, y, right, bottom = rectangle(node)
        inside = [gx <= x and gy <= y and right <= gr and bottom <= gb for gx, gy, gr, gb in boxes]
        assert sum(inside) == (node["type"] != "MarkdownNote"), node["type"]
    titles = [group["title"] for group in workflow["groups"]]
    assert [title.split()[0] for title in titles] == [str(i + 1) for i in range(len(titles))]


def test_every_link_goes_to_the_right_or_down(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for _, source, _, target, _, _ in workflow["links"]:
        (x, y), (u, v) = nodes[source]["pos"], nodes[target]["pos"]
        assert u > x or v > y, (nodes[source]["type"], nodes[target]["type"])


def test_a_note_teaches(workflow):
    [note] = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    [text] = note["widgets_values"]
    assert text.startswith("# ") and "**Models**" in text and len(text) < 2500
    for node in workflow["nodes"]:  # every file that the graph wants by its name is in the note
        for model in node["properties"].get("models", ()):
            assert model["url"] in text and f"models/{model['directory']}" in text


def test_models_have_links(workflow):
    """Whatever a loader asks for by name; and for Intrinsic Decompose the LoRAs of its maps."""
    loaders = {"CheckpointLoaderSimple", "LoraLoaderModelOnly", "ControlNetLoader", "IntrinsicLora_Decompose"}
    for node in workflow["nodes"]:
        models = node["properties"].get("models", [])
        assert bool(models) == (node["type"] in loaders), node["type"]
        for model in models:
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
        if node["type"] in loaders - {"IntrinsicLora_Decompose"}:
            assert node["widgets_values"][0] in [model["name"] for model in models]
        if node["type"] == "IntrinsicLora_Decompose" and node["widgets_values"][0] == "all":
            assert len(models) == 4


def test_shows_and_keeps_a_result(workflow):
    kinds = {node["type"] for node in workflow["nodes"]}
    assert kinds & {"SaveImage", "SaveVideo", "IntrinsicLora_SaveEXR"}
    pictures = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "LoadImage"]
    assert pictures and set(pictures) == {"example.png"}  # which every ComfyUI has


def test_vanilla_needs_nothing_of_ours():
    workflow = json.loads((ROOT / "workflows" / "vanilla-core-nodes.json").read_text())
    assert not any(node["type"].startswith("IntrinsicLora_") for node in workflow["nodes"])


def test_thumbnail(file):
    data = file.with_suffix(".jpg").read_bytes()
    assert len(data) < 60_000
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "JPEG" and picture.size == (400, 400)


def test_no_folder_of_one_machine(file):
    assert not re.search(r"/home/|/root/|/work/|[A-Z]:\\\\", file.read_text())
