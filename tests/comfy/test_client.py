"""The harness itself: errors arrive as exceptions and leave a server that works; the bad files are what they claim."""

import json

import pytest
from intrinsic_lora.tests.comfy.client import Client, ExecutionError, Interrupted, PromptRejected
from intrinsic_lora.tests.comfy.graphs import vanilla


@pytest.fixture
def graph(client: Client, photo) -> dict:
    return vanilla(client.upload_image("photo.png", photo), "intrinsic_lora_albedo.safetensors", "albedo")


def test_a_rejected_graph_says_which_node(client, graph):
    graph["base"]["inputs"]["ckpt_name"] = "absent.safetensors"
    with pytest.raises(PromptRejected) as caught:
        client.queue(graph)
    assert caught.value.node_errors["base"]["errors"][0]["type"] == "value_not_in_list"


def test_a_node_that_raises(client, graph):
    graph["base"]["inputs"]["ckpt_name"] = "tiny_sdxl.safetensors"  # has no CLIP and no VAE
    with pytest.raises(ExecutionError) as caught:
        client.queue(graph)
    assert (caught.value.node_id, caught.value.node_type) in (("encode", "VAEEncode"), ("prompt", "CLIPTextEncode"))
    assert caught.value.exception_type == "RuntimeError" and "is invalid: None" in caught.value.message


def test_interrupt_then_the_next_graph_runs(client, graph):
    long = graph | {"sigmas": json.loads(json.dumps(graph["sigmas"]))}
    long["sigmas"]["inputs"]["steps"] = 500
    seen = []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and not seen:
            seen.append(data)
            client.interrupt()

    with pytest.raises(Interrupted):
        client.queue(long, on_event=stop)
    assert seen[0]["node"] == "sample" and seen[0]["max"] == 500
    assert client.fetch_image(client.queue(graph).files("picture")[0]).shape == (96, 128, 3)


def test_comfyui_takes_the_bad_checkpoints_for_what_they_imitate(run_in_comfy, base):
    code = """
import sys, comfy.sd
for path in sys.argv[1:]:
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(path)
    print("FOUND", type(model.model.model_config).__name__, clip is None)
"""
    paths = [base / "models" / "checkpoints" / f"tiny_{name}.safetensors" for name in ("sd15", "sdxl", "sd2")]
    found = [line.split()[1:] for line in run_in_comfy(code, *paths).splitlines() if line.startswith("FOUND")]
    assert found == [["SD15", "False"], ["SDXL", "True"], ["SD20", "True"]]
