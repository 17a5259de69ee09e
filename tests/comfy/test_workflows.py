"""Every workflow runs in a real ComfyUI to its end, with the files that users have, and gives what it promises."""

import copy
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from intrinsic_lora.intrinsics.exr import read_exr
from intrinsic_lora.tests.comfy import definitions, workflows
from intrinsic_lora.tests.comfy.client import LIMIT, Client, Graph, Result
from intrinsic_lora.tests.comfy.graphs import BYPASSED, to_api, vanilla
from intrinsic_lora.tests.comfy.server import clone_pack, environment, running_server

SHOWN = (
    "PreviewImage", "SaveImage", "SaveVideo", "IntrinsicLora_SaveEXR",
    "IntrinsicLora_Decompose", "IntrinsicLora_Relight", "IntrinsicLora_RenderMap", "IntrinsicLora_EditShading",
)  # fmt: skip


@pytest.fixture(scope="module")
def everything(server) -> dict[str, Any]:
    """/object_info of all nodes."""
    return Client(server.url).object_info()


@pytest.fixture(scope="module")
def graphs(server, checkpoint, photo, everything) -> dict[str, Graph]:
    """Return the workflows by name, reduced, as sent by the page; their files are on the server."""
    workflows.provide(server, checkpoint, photo)
    return {name: workflows.small(to_api(workflows.read(name), everything)) for name in workflows.NAMES}


@pytest.fixture(scope="module")
def run(server, graphs):
    """`run(name)` -> (graph, result) of a workflow, run once; 3 with 16-bit PNGs for the EXR."""
    done: dict[str, tuple[Graph, Result]] = {}

    def once(name: str) -> tuple[Graph, Result]:
        if name not in done:
            graph = copy.deepcopy(graphs[name])
            for node in graph.values():
                if node["class_type"] == "IntrinsicLora_SaveEXR":
                    node["inputs"]["format"] = "PNG 16 bit"
            done[name] = graph, Client(server.url).queue(graph)
        return done[name]

    return once


def only(graph: Graph, class_type: str) -> str:
    """Return the number of the only node of this type."""
    [number] = [number for number, node in graph.items() if node["class_type"] == class_type]
    return number


def shows(graph: Graph, source: str, slot: int) -> str:
    """Return the number of the preview or save node of one output."""
    [number] = [
        number
        for number, node in graph.items()
        if node["class_type"] in ("PreviewImage", "SaveImage") and node["inputs"]["images"] == [source, slot]
    ]
    return number


def upstream(graph: Graph, number: str) -> set[str]:
    """Return a node and all its inputs."""
    sources = [value[0] for value in graph[number]["inputs"].values() if isinstance(value, list)]
    return {number}.union(*(upstream(graph, source) for source in sources))


def test_the_stored_definitions_are_the_servers(everything):
    """tests/whole/test_workflows.py compares the workflows with the stored ones."""
    assert definitions.stored() == definitions.ours(everything), "anew: see tests/comfy/definitions.py"


def test_core_nodes_are_as_the_server_describes_them(everything):
    for name in workflows.NAMES:
        for node in workflows.read(name)["nodes"]:
            if node["type"] == "MarkdownNote":  # the page's own
                continue
            definition = everything[node["type"]]
            inputs = definition["input"]["required"] | definition["input"].get("optional", {})
            for socket in node["inputs"]:
                assert inputs[socket["name"]][0] == socket["type"], (name, node["type"])
            found = [output["type"] for output in node["outputs"]]  # Preview Image has had one since v0.3.64
            assert found == definition["output"][: len(found)], (name, node["type"])


def test_the_template_browser_finds_them(comfyui_dir, comfy_python, root, tmp_path):
    """With a server of its own: from a folder with a space in its name ComfyUI lists templates, and serves none."""
    clone_pack(root, tmp_path / "custom_nodes" / "intrinsic-lora")
    with running_server(comfyui_dir, comfy_python, tmp_path) as server:
        assert sorted(Client(server.url).get("workflow_templates")["intrinsic-lora"]) == list(workflows.NAMES)
        for name in workflows.NAMES:
            address = f"{server.url}/api/workflow_templates/intrinsic-lora/{name}"  # as the page writes it
            assert requests.get(f"{address}.json", timeout=LIMIT).json() == workflows.read(name)
            picture = requests.get(f"{address}.jpg", timeout=LIMIT)
            assert picture.ok and picture.content == (workflows.FOLDER / f"{name}.jpg").read_bytes()


def test_the_blueprint_is_offered(client):
    """Newer versions list it among their own subgraphs."""
    try:
        found = client.get("global_subgraphs")
    except OSError:
        pytest.skip("this ComfyUI has no subgraphs of packs")
    [number] = [number for number, entry in found.items() if entry["name"] == "Photo Relight"]
    assert found[number]["source"] == "custom_node"
    assert json.loads(client.get(f"global_subgraphs/{number}")["data"]) == workflows.blueprint()


@pytest.mark.parametrize("name", workflows.NAMES)
def test_runs_to_its_end(run, client, name):
    graph, result = run(name)
    expected = {number for number, node in graph.items() if node["class_type"] in SHOWN}
    assert set(result.outputs) == expected
    executed = {data["node"] for kind, data in result.events if kind == "executing"} - {None}
    cached = {number for kind, data in result.events if kind == "execution_cached" for number in data["nodes"]}
    assert executed | cached == set(graph)
    for number in expected:
        kind = "files" if graph[number]["class_type"] == "IntrinsicLora_SaveEXR" else "images"
        for file in result.files(number, kind):
            if file["filename"].endswith(".png"):
                picture = client.fetch_image(file)
                picture = picture * (255 / np.iinfo(picture.dtype).max)  # 16 bits, some of them
                assert min(picture.shape[:2]) >= 64, graph[number]
                assert picture.std() > 2, graph[number]
                assert 5 < picture.mean() < 250, graph[number]


def test_photo_to_four_maps(run, client, photo):
    graph, result = run("1-photo-to-four-maps")
    source = only(graph, "IntrinsicLora_Decompose")
    previews = [client.fetch_image(result.files(shows(graph, source, slot))[0]) for slot in (1, 2, 3, 4)]
    assert all(picture.shape == photo.shape for picture in previews)
    normals, depth, albedo, shading = (picture.astype(float) for picture in previews)
    length = np.linalg.norm(normals / 255 * 2 - 1, axis=-1)
    assert np.abs(length - 1).max() < 0.02
    assert (depth.min(), depth.max()) == (0, 255)
    for grey, coloured in ((depth, normals), (shading, albedo)):
        assert np.ptp(grey, -1).max() == 0 and np.ptp(coloured, -1).mean() > 5
    assert len({picture.tobytes() for picture in previews}) == 4

    files = {file["filename"]: file for file in result.files(only(graph, "IntrinsicLora_SaveEXR"), "files")}
    layers = {re.fullmatch(r"maps_\d{5}_?_(\w+)\.png", name)[1]: file for name, file in files.items()}
    assert set(layers) == {"photo", "normals", "depth", "albedo", "shading", "confidence"}
    assert np.abs(client.fetch_image(layers["photo"]).astype(int) - photo).max() <= 1
    assert np.abs(client.fetch_image(layers["normals"]) - normals).max() <= 1


def test_portrait(run, client, photo):
    graph, result = run("2-portrait-light")
    source = only(graph, "IntrinsicLora_Relight")
    relit = client.fetch_image(result.files(shows(graph, source, 0))[0])
    assert relit.shape == photo.shape and np.abs(relit.astype(int) - photo).mean() > 5

    without = copy.deepcopy(graph)
    del without[source]["inputs"]["lights"]  # the rim light does something
    del without[only(graph, "IntrinsicLora_Light")]
    alone = client.fetch_image(client.queue(without).files(shows(graph, source, 0))[0])
    assert np.abs(relit.astype(int) - alone).max() > 5


def test_product_to_exr(run, graphs, client, photo):
    graph, result = run("3-product-hdri-softboxes")
    files = {file["filename"]: file for file in result.files(only(graph, "IntrinsicLora_SaveEXR"), "files")}
    layers = {name.removesuffix(".png").split("_")[-1]: file for name, file in files.items()}
    assert set(layers) == {"photo", "normals", "depth", "albedo", "shading"}
    relit = client.fetch_image(result.files(shows(graph, only(graph, "IntrinsicLora_Relight"), 0))[0])
    assert np.abs(client.fetch_image(layers["photo"]).astype(int) - relit).max() <= 1  # the relit photo is in it

    # As it is: ComfyUI's environment here has no OpenEXR. That is said at once, and the rest runs.
    shipped = graphs["3-product-hdri-softboxes"]
    save = only(shipped, "IntrinsicLora_SaveEXR")
    assert save not in client.queue(shipped).outputs
    number, sentence = client.refusal({name: shipped[name] for name in upstream(shipped, save)})
    assert number == save and "pip install OpenEXR" in sentence


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("2-portrait-light", "IntrinsicLora_Relight"),
        ("2-portrait-light", "IntrinsicLora_Decompose"),
        ("3-product-hdri-softboxes", "IntrinsicLora_Relight"),
        ("3-product-hdri-softboxes", "IntrinsicLora_Decompose"),
        ("6-other-maps-our-shading", "IntrinsicLora_Relight"),  # there Decompose stands in for maps: no photo is one
    ],
)
def test_a_bypassed_node_shows_the_photo(graphs, everything, client, photo, name, kind):
    """What the page sends then runs, and where the relit photo was there is the photo."""
    number = shows(graphs[name], only(graphs[name], "IntrinsicLora_Relight"), 0)
    workflow = workflows.read(name)
    for node in workflow["nodes"]:
        if node["type"] == kind:
            node["mode"] = BYPASSED
    graph = workflows.small(to_api(workflow, everything))
    seen = client.fetch_image(client.queue(graph).files(number)[0])
    assert np.abs(seen.astype(int) - photo).max() <= 1


def test_each_light_of_the_studio_counts(client, everything):
    """With the panorama, which the workflow has bypassed until the user has one."""
    workflow = workflows.read("3-product-hdri-softboxes")
    for node in workflow["nodes"]:
        node["mode"] = 0
    graph = workflows.small(to_api(workflow, everything))
    del graph[only(graph, "IntrinsicLora_SaveEXR")]
    number = shows(graph, only(graph, "IntrinsicLora_Relight"), 0)
    relit = client.fetch_image(client.queue(graph).files(number)[0]).astype(float)
    kinds = ("IntrinsicLora_Light", "IntrinsicLora_EnvironmentLight")
    lights = [light for light, node in graph.items() if node["class_type"] in kinds]
    assert len(lights) == 3
    for light in lights:
        dark = copy.deepcopy(graph)
        dark[light]["inputs"]["intensity"] = 0.0
        less = client.fetch_image(client.queue(dark).files(number)[0])
        assert (relit - less).mean() > 1 and (relit - less).min() >= -1


def test_finish_with_diffusion(run, client):
    graph, result = run("4-relight-then-diffusion")
    number = shows(graph, only(graph, "VAEDecode"), 0)
    finished = client.fetch_image(result.files(number)[0]).astype(int)
    free = copy.deepcopy(graph)
    free[only(graph, "ControlNetApplyAdvanced")]["inputs"]["strength"] = 0.0
    assert np.abs(client.fetch_image(client.queue(free).files(number)[0]) - finished).mean() > 1


def frames(client: Client, file: dict[str, str]) -> np.ndarray:
    """Read a saved video as pictures: uint8 (N, H, W, 3)."""
    name = client.upload("clip.mp4", client.fetch(file))
    graph = {
        "load": {"class_type": "LoadVideo", "inputs": {"file": name}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["load", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["parts", 0], "filename_prefix": "frames"}},
    }
    return np.stack([client.fetch_image(file) for file in client.queue(graph).files("save")])


def test_moving_light(run, client, photo):
    graph, result = run("5-moving-light-video")
    source = only(graph, "IntrinsicLora_Relight")
    [relit, depth] = [  # the order of their sources in the graph
        next(
            save
            for save, node in graph.items()
            if node["class_type"] == "SaveVideo"
            and graph[node["inputs"]["video"][0]]["inputs"]["images"][0] == from_node
        )
        for from_node in (source, only(graph, "IntrinsicLora_RenderMap"))
    ]
    clip = frames(client, result.files(relit)[0]).astype(int)
    assert clip.shape == (3, *photo.shape)
    assert min(np.abs(clip[i] - clip[i - 1]).mean() for i in range(3)) > 3  # the light moves
    still = frames(client, result.files(depth)[0]).astype(int)
    assert np.abs(still - still[:1]).mean() < 3  # of frames that are all the same

    # As the note says: a video in place of the repeated photo.
    repeat, photo_node = only(graph, "RepeatImageBatch"), only(graph, "LoadImage")
    video = copy.deepcopy(graph)
    video[photo_node] = {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}
    video[repeat] = {"class_type": "GetVideoComponents", "inputs": {"video": [photo_node, 0]}}
    assert len(frames(client, client.queue(video).files(relit)[0])) == 3


def test_other_maps(run, client, photo):
    """The map that was put in comes out of the check, and the light follows it, not the estimate."""
    graph, _ = run("6-other-maps-our-shading")
    graph = copy.deepcopy(graph)
    made, relight = only(graph, "IntrinsicLora_MakeGBuffer"), only(graph, "IntrinsicLora_Relight")
    check = shows(graph, only(graph, "IntrinsicLora_RenderMap"), 0)
    found = []
    for x in (-0.6, 0.6):  # a wall that faces left, one that faces right; the preset's window is on the left
        wall = np.broadcast_to(np.array([x, 0.0, 0.8]) * 0.5 + 0.5, photo.shape)
        level = np.rint(wall * 255).astype(np.uint8)
        for name, picture in {"normals": level, "depth": np.full_like(photo, 128)}.items():
            file = client.upload_image(f"{name}.png", picture)  # as the note says, with the loaders that are muted
            graph[name] = {"class_type": "LoadImage", "inputs": {"image": file}}
            graph[made]["inputs"][name] = [name, 0]
        result = client.queue(graph)
        assert np.abs(client.fetch_image(result.files(check)[0]).astype(int) - level).max() <= 1
        found.append(client.fetch_image(result.files(shows(graph, relight, 0))[0]).mean())
    assert found[0] > found[1] + 10


def test_vanilla_is_the_graph_that_equals_the_pipeline(graphs):
    """test_vanilla.py compares that one's pictures with our pipeline's. Here the photo is made smaller first."""

    def by_type(graph: Graph) -> dict[str, Any]:
        def named(value: object) -> object:
            if not isinstance(value, list):
                return value
            kind = graph[value[0]]["class_type"]
            return ("LoadImage", 0) if kind == "ImageScaleToTotalPixels" else (kind, value[1])

        kept = {n["class_type"]: {k: named(v) for k, v in n["inputs"].items()} for n in graph.values()}
        assert len(kept) == len(graph)
        return {kind: values for kind, values in kept.items() if kind not in ("ImageScaleToTotalPixels", "SaveLatent")}

    proven = by_type(
        vanilla("example.png", "intrinsic_lora_shading.safetensors", "shading", "v1-5-pruned-emaonly.safetensors")
    )
    shipped = by_type(graphs["vanilla-core-nodes"])
    proven["SaveImage"]["filename_prefix"] = shipped["SaveImage"]["filename_prefix"]
    assert shipped == proven


def test_product_to_exr_where_openexr_is_installed(graphs, server, comfyui_dir, comfy_python, root, tmp_path):
    """Workflow 3 as it is shipped, on a server that finds the test's own OpenEXR."""
    library = Path(importlib.util.find_spec("OpenEXR").origin)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / library.name).symlink_to(library)
    site = os.pathsep.join([environment()["PYTHONPATH"], str(tmp_path / "site")])
    for folder in ("models", "input"):
        (tmp_path / folder).symlink_to(server.base / folder)
    clone_pack(root, tmp_path / "custom_nodes" / "intrinsic-lora")
    graph = graphs["3-product-hdri-softboxes"]
    with running_server(comfyui_dir, comfy_python, tmp_path, env={"PYTHONPATH": site}) as other:
        Client(other.url).queue(graph)
    [file] = (tmp_path / "output").rglob("*.exr")
    layers = read_exr(file)
    assert {"rgb", "normals", "depth", "albedo", "shading"} <= layers.keys()
    assert (layers["normals"].norm(dim=0) - 1).abs().max() < 0.01
    assert layers["rgb"].isfinite().all() and layers["rgb"].std() > 0.01
