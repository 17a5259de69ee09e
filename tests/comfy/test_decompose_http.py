"""Decompose and its kin over HTTP: what runs, what is refused in which words, and that the server goes on."""

import os

import numpy as np
import pytest
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from intrinsic_lora.tests.comfy.client import Client, ExecutionError, Graph, Interrupted
from intrinsic_lora.tests.comfy.graphs import vanilla
from safetensors.torch import load

OUTPUTS = ("normals", "depth", "albedo", "shading")  # in the order of the sockets, from 1


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def graph(image: str, checkpoint: str = "tiny_sd15.safetensors", **settings: object) -> Graph:
    """Build a graph from a photo to its maps, each saved under the name of its output."""
    settings = {"maps": "all", "loras": "automatic", "resolution": 64, "upsample": "off", "batch_size": 4} | settings
    model = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    nodes = {
        "base": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "photo": node("LoadImage", image=image),
        "maps": node("IntrinsicLora_Decompose", image=["photo", 0], **model, **settings),
        "trust": node("MaskToImage", mask=["maps", 5]),
        "confidence": node("SaveImage", images=["trust", 0], filename_prefix="confidence"),
    }
    saved = {name: node("SaveImage", images=["maps", i + 1], filename_prefix=name) for i, name in enumerate(OUTPUTS)}
    return nodes | saved


@pytest.fixture(scope="module")
def image(server, photo) -> str:
    return Client(server.url).upload_image("photo.png", photo)


def test_every_map(client, image, photo):
    result = client.queue(graph(image, upsample="guided"))
    pictures = {name: client.fetch_image(result.files(name)[0]) for name in (*OUTPUTS, "confidence")}
    assert {picture.shape for picture in pictures.values()} == {photo.shape}
    for name in OUTPUTS:
        assert pictures[name].std() > 5
    for name in ("depth", "shading"):
        assert np.ptp(pictures[name], axis=-1).max() == 0  # grey
    assert pictures["depth"].min() == 0 and pictures["depth"].max() == 255
    steps = [data for kind, data in result.events if kind == "progress" and data["node"] == "maps"]
    found = [(step["value"], step["max"]) for step in steps]
    # Encode, UNet for all maps, 4 decode; newer versions leave some out where they come fast.
    assert found == sorted(found) and found[-1] == (6, 6) and set(found) <= {(i, 6) for i in range(1, 7)}


def test_what_hangs_on_a_map_that_was_not_asked_for_does_not_run(client, image):
    result = client.queue(graph(image, maps="depth"))
    assert set(result.outputs) == {"maps", "depth", "confidence"}  # "maps" shows the one there is
    assert "execution_success" in [kind for kind, _ in result.events]


def test_core_samplers_draw_the_same_latent(client, image):
    """Core nodes alone; the Model Patch with a sampler that adds noise; and what Decompose decodes."""
    model = {"model": ["base", 0], "clip": ["base", 1]}
    for name in ("normals", "shading"):
        nodes = vanilla(image, f"intrinsic_lora_{name}.safetensors", INTRINSICS[name].prompt)
        nodes["patch"] = node("IntrinsicLora_ModelPatch", **model, intrinsic=name, lora_name="automatic", strength=1.0)
        once = {"seed": 7, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        once |= {"model": ["patch", 0], "positive": ["patch", 1], "negative": ["patch", 1]}
        nodes["ours"] = node("KSampler", latent_image=["encode", 0], **once)
        nodes["ours latent"] = node("SaveLatent", samples=["ours", 0], filename_prefix="ours")
        task = {"normals": "surface normals", "shading": "shading"}[name]
        nodes["old"] = node(
            "IntrinsicLora_Sampling", image=["photo", 0], **model, vae=["base", 2], task=task, batch_size=16
        )
        nodes["old latent"] = node("SaveLatent", samples=["old", 1], filename_prefix="old")
        nodes["old picture"] = node("SaveImage", images=["old", 0], filename_prefix="old")
        result = client.queue(nodes)
        latents = {
            key: load(client.fetch(result.files(key, "latents")[0]))["latent_tensor"]
            for key in ("latent", "ours latent", "old latent")
        }
        for key in ("ours latent", "old latent"):
            error = (latents[key] - latents["latent"]).abs().max().item()
            print(name, key, error)
            assert error < 1e-4 * latents["latent"].abs().max()

        pictures = [client.fetch_image(result.files(key)[0]).astype(int) for key in ("old picture", "picture")]
        if name == "shading":  # core's picture, made grey in linear light
            old, drawn = pictures[0][..., 0] / 255, pictures[1] / 255
            linear = np.where(drawn <= 0.04045, drawn / 12.92, ((drawn + 0.055) / 1.055) ** 2.4).mean(-1)
            again = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
            inside = (pictures[1] > 0).all(-1) & (pictures[1] < 255).all(-1)  # core clips before, we after
            assert np.abs(old - again)[inside].max() < 2 / 255
        else:  # KJNodes' frame is the raw one with every axis turned, and of unit length
            vectors = [picture / 127.5 - 1 for picture in pictures]
            long = np.linalg.norm(vectors[1], axis=-1) > 0.5
            inside = long & (pictures[1] > 0).all(-1) & (pictures[1] < 255).all(-1)
            unit = vectors[1] / np.linalg.norm(vectors[1], axis=-1, keepdims=True).clip(1e-6)
            assert np.abs(vectors[0] + unit)[inside].max() < 0.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"checkpoint": "tiny_sdxl.safetensors"}, ("SDXL", "SD 1.5")),
        ({"checkpoint": "tiny_sd2.safetensors"}, ("SD20", "SD 1.5")),
        (
            {"maps": "normals", "loras": "sdxl_lora.safetensors"},
            ("sdxl_lora", "made for SDXL", "Stable Diffusion 1.x"),
        ),
        ({"loras": "gone_*.safetensors"}, ("No LoRA for normals", "gone_*", "models/loras")),
        ({"maps": "roughness"}, ("roughness", "albedo")),
        ({"resolution": 60}, ("multiple of 8", "60")),
        ({"upsample": "bicubic"}, ("upsample", "guided")),
    ],
)
def test_refused_in_one_sentence(client, image, settings, words):
    number, sentence = client.refusal(graph(image, **settings))
    assert number == "maps"
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence
    assert client.queue(graph(image, maps="albedo", resolution=72)).files("albedo")


def test_a_wrong_or_damaged_file_is_refused(client, image, base):
    (base / "models" / "loras" / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not a header}..")
    patch = {"model": ["base", 0], "clip": ["base", 1], "intrinsic": "depth", "strength": 1.0}
    for file, words in {
        "damaged.safetensors": "damaged",
        "intrinsic_lora_albedo.safetensors": "a LoRA for albedo, not for depth",
        "nowhere.safetensors": "no LoRA nowhere.safetensors",
    }.items():
        nodes = vanilla(image, "intrinsic_lora_albedo.safetensors", "albedo")
        nodes["patch"] = node("IntrinsicLora_ModelPatch", **patch, lora_name=file)
        nodes["model"]["inputs"]["model"] = ["patch", 0]
        number, sentence = client.refusal(nodes)
        assert number == "patch" and words in sentence


def test_a_lora_that_changed_is_read_again(client, image, base):
    def ran() -> bool:
        events = client.queue(graph(image, maps="shading", resolution=80)).events
        return "maps" not in [name for kind, data in events if kind == "execution_cached" for name in data["nodes"]]

    assert [ran(), ran()] == [True, False]
    os.utime(base / "models" / "loras" / "intrinsic_lora_shading.safetensors")
    assert ran()


def test_odd_images(client):
    one = client.upload_image("one.png", np.full((1, 1, 3), 200, np.uint8))
    result = client.queue(graph(one, upsample="guided"))
    assert client.fetch_image(result.files("normals")[0]).shape == (1, 1, 3)
    assert client.fetch_image(client.queue(graph(one, resolution=0)).files("albedo")[0]).shape == (1, 1, 3)

    strip = client.upload_image("strip.png", np.zeros((8, 200, 3), np.uint8))
    with pytest.raises(ExecutionError, match="16:1"):
        client.queue(graph(strip))


def test_interrupt_in_the_middle_of_a_batch(client, image):
    nodes = graph(image, batch_size=1, maps="normals")
    nodes["clip"] = node("RepeatImageBatch", image=["photo", 0], amount=100)
    nodes["maps"]["inputs"]["image"] = ["clip", 0]
    seen = []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "maps":
            seen.append(data["value"])
            if len(seen) == 3:
                client.interrupt()

    with pytest.raises(Interrupted):
        client.queue(nodes, on_event=stop)
    assert len(seen) < 100
    nodes["clip"]["inputs"]["amount"] = 3
    assert len(client.queue(nodes).files("normals")) == 3


def test_every_input_and_output_has_a_tooltip(client):
    ours = {name: info for name, info in client.object_info().items() if name.startswith("IntrinsicLora_")}
    assert {"IntrinsicLora_Decompose", "IntrinsicLora_ModelPatch", "IntrinsicLora_Sampling"} <= set(ours)
    for name, info in ours.items():
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        assert all(options.get("tooltip") for _, options in inputs.values()), name
        assert all(info["output_tooltips"]) and info["description"], name
    combo = ours["IntrinsicLora_Decompose"]["input"]["required"]["loras"][1]["options"]
    assert combo[:2] == ["automatic", "intrinsic_lora_*.safetensors"]
    assert ours["IntrinsicLora_Sampling"]["deprecated"]


def test_a_map_alone_is_the_same_as_among_all(client, image):
    every, alone = client.queue(graph(image)), client.queue(graph(image, maps="shading"))
    pictures = [client.fetch_image(result.files("shading")[0]).astype(int) for result in (every, alone)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
