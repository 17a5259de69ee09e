"""The repository's workflows, made small enough to run on a CPU in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from intrinsic_lora.tests.comfy import checkpoint as make
from intrinsic_lora.tests.comfy.client import Client, Graph
from intrinsic_lora.tests.comfy.server import Server

FOLDER = Path(__file__).resolve().parent.parent.parent / "workflows"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
CONTROLNET = "control_v11p_sd15_normalbae_fp16.safetensors"
SMALL = {"resolution": 64, "megapixels": 0.01, "steps": 2, "amount": 3, "frames": 3}  # by input, where it is a number


def read(name: str) -> dict[str, Any]:
    """Return a workflow as saved by the page."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def blueprint() -> dict[str, Any]:
    """Return the subgraph for ComfyUI's list of blueprints."""
    return json.loads((FOLDER.parent / "subgraphs" / "Photo Relight.json").read_text())


def provide(server: Server, checkpoint: Path, photo: np.ndarray) -> None:
    """Put the files of the workflows into their folders under their published names.

    The LoRAs, which they find by themselves, are there.
    """
    models = server.base / "models"
    link = models / "checkpoints" / "v1-5-pruned-emaonly.safetensors"
    if not link.exists():
        link.symlink_to(checkpoint)
    (models / "controlnet").mkdir(exist_ok=True)
    if not (models / "controlnet" / CONTROLNET).exists():
        make.write_controlnet(models / "controlnet" / CONTROLNET)
    Client(server.url).upload_image("example.png", photo)


def small(graph: Graph) -> Graph:
    """Reduce the pixels, steps and frames of a graph."""

    def reduced(name: str, value: object) -> object:
        return SMALL[name] if name in SMALL and isinstance(value, int | float) and value > SMALL[name] else value

    return {
        number: node | {"inputs": {name: reduced(name, value) for name, value in node["inputs"].items()}}
        for number, node in graph.items()
    }
