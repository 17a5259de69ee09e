"""The page of the real frontend in a real browser: what loads, what is red, what runs. See ui/page.mjs."""

import json
from pathlib import Path

import pytest
from intrinsic_lora.tests.comfy.graphs import numbered, to_api, vanilla

TOLD = (Path(__file__).parent / "ui" / "told.js").read_text()


@pytest.fixture(scope="module")
def graph(open_page, server, photo) -> dict:
    from intrinsic_lora.tests.comfy.client import Client

    image = Client(server.url).upload_image("photo.png", photo)
    return numbered(vanilla(image, "intrinsic_lora_normals.safetensors", "surface normal"))


@pytest.fixture(scope="module")
def workflow(open_page, graph, tmp_path_factory) -> dict:
    """`graph` as the page saves it."""
    file = tmp_path_factory.mktemp("saved") / "workflow.json"
    open_page(graph, "--save-ui", file)
    return json.loads(file.read_text())


def test_a_good_workflow_loads_and_runs(open_page, workflow, cache):
    report = open_page(workflow, "--queue", "--screenshot", cache / "vanilla.png")
    assert report["blocked"] == report["console"] == report["page_errors"] == report["dialogs"] == []
    for node in report["nodes"]:
        assert not node["missing"] and not node["errors"] and not node["red_widgets"] and not node["unlinked"], node
    assert report["run"]["status"] == "success" and report["run"]["previews_shown"]
    previews = {node["type"]: node["previews"] for node in report["nodes"]}
    assert previews["SaveImage"] == [[128, 96]]


def test_a_bad_workflow_is_reported(open_page, workflow, tmp_path):
    nodes = {node["type"]: node for node in json.loads(json.dumps(workflow))["nodes"]}
    nodes["CheckpointLoaderSimple"]["widgets_values"] = ["absent.safetensors"]
    nodes["VAEEncode"]["type"] = "NoSuchNode"
    nodes["BasicGuider"]["inputs"][0]["link"] = None
    links = [link for link in workflow["links"] if link[3] != nodes["BasicGuider"]["id"] or link[4] != 0]
    script = tmp_path / "told.js"
    script.write_text(TOLD.replace("PATTERN", "/NoSuchNode/"))
    report = open_page(workflow | {"nodes": list(nodes.values()), "links": links}, "--queue", "--script", script)
    found = {node["type"]: node for node in report["nodes"]}
    assert found["NoSuchNode"]["missing"]
    assert found["CheckpointLoaderSimple"]["red_widgets"] == ["ckpt_name"]
    assert found["BasicGuider"]["unlinked"] == ["model"]
    assert "NoSuchNode" in report["script"]
    assert report["run"]["status"] == "rejected"


def test_to_api_gives_what_the_page_sends(open_page, graph, client, tmp_path):
    seeded = {  # the seed's widget has another after it, which is not sent
        "21": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "22": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["3", 0],
                "positive": ["4", 0],
                "negative": ["4", 0],
                "latent_image": ["21", 0],
                "seed": 7,
                "steps": 1,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "23": {"class_type": "SaveLatent", "inputs": {"samples": ["22", 0], "filename_prefix": "seeded"}},
    }
    open_page(graph | seeded, "--save-ui", tmp_path / "ui.json", "--save-api", tmp_path / "api.json")
    sent = json.loads((tmp_path / "api.json").read_text())
    sent = {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in sent.items()}
    assert sent == graph | seeded
    assert to_api(json.loads((tmp_path / "ui.json").read_text()), client.object_info()) == sent
