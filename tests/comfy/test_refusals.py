"""Models that the LoRAs do not fit are refused in one sentence, before any weight is moved to the device."""

import ast
from pathlib import Path

import pytest

INSIDE = (Path(__file__).parent / "inside.py").read_text()
CODE = """
import copy
import comfy.model_management
import comfy.sdxl_clip

model, clip, vae = base_model()
image = torch.rand(1, 64, 64, 3)


def config(name, value):  # the model with one setting of its UNet changed
    changed, changed.model = (copied := model.clone()), copy.copy(copied.model)
    base = model.model.model_config
    changed.model.model_config = type(base)(base.unet_config | {name: value})
    return changed


two_encoders = clip.clone()
two_encoders.tokenizer = comfy.sdxl_clip.SDXLTokenizer()
video = copy.copy(vae)
video.latent_channels, video.latent_dim = 16, 3
wrong = {
    "SDXL": {"model": base_model("tiny_sdxl.safetensors")[0]},
    "SD20": {"model": base_model("tiny_sd2.safetensors")[0]},
    "inpainting": {"model": config("in_channels", 9)},
    "no clip": {"clip": None},
    "SDXL's clip": {"clip": two_encoders},
    "another vae": {"vae": video},
}
sentences = {}
before = len(comfy.model_management.current_loaded_models)  # the loader itself may have loaded the text encoder
for name, inputs in wrong.items():
    inputs = {"model": model, "clip": clip, "vae": vae} | inputs
    without_vae = {key: value for key, value in inputs.items() if key != "vae"}
    nodes = {"Decompose": inputs | {"image": image}, "Sampling": inputs | {"image": image}}
    if name != "another vae":
        nodes["ModelPatch"] = without_vae
    for node_name, settings in nodes.items():
        try:
            node(node_name, **settings)
        except ValueError as error:
            sentences[f"{name}, {node_name}"] = str(error)
print(sentences)
print("loaded:", len(comfy.model_management.current_loaded_models) - before)
"""
WORDS = {
    "SDXL": "The model is SDXL, and intrinsic LoRAs are made for SD 1.5",
    "SD20": "The model is SD20, and intrinsic LoRAs are made for SD 1.5",
    "inpainting": "9 input channels",
    "no clip": "clip is empty",
    "SDXL's clip": "text encoders: g and l",
    "another vae": "16 channels",
}
NODES = [(name, node) for name in WORDS for node in ("Decompose", "Sampling", "ModelPatch")]
NODES.remove(("another vae", "ModelPatch"))  # which has no vae


@pytest.fixture(scope="module")
def said(run_in_comfy, server, tmp_path_factory) -> list[str]:
    output = run_in_comfy(INSIDE + CODE, server.base, server.pack, tmp_path_factory.mktemp("refusals"))
    return output.strip().splitlines()[-2:]


@pytest.mark.parametrize(("name", "node"), NODES)
def test_is_refused_in_one_sentence(said, name, node):
    sentence = ast.literal_eval(said[0])[f"{name}, {node}"]
    assert WORDS[name] in sentence and "load a Stable Diffusion 1.5 checkpoint" in sentence
    assert sentence.endswith(".") and "\n" not in sentence


def test_nothing_was_loaded_to_the_device(said):
    assert said[1] == "loaded: 0"
