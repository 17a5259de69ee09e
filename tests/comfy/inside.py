"""Runs in ComfyUI's own environment (see `run_in_comfy`), in front of a test's code: the pack, loaded as ComfyUI does.

sys.argv: the server's base folder, the pack's folder in it, a folder for results. Of ComfyUI, nothing is replaced.
"""

import asyncio
import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import comfy.cli_args

BASE, PACK, OUT = (Path(argument) for argument in sys.argv[1:4])
comfy.cli_args.args.base_directory = str(BASE)  # before folder_paths is imported

import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

NAME = str(PACK).replace(".", "_x_")  # the name that ComfyUI gives to a folder's module
spec = spec_from_file_location(NAME, PACK / "__init__.py")
pack = sys.modules[NAME] = module_from_spec(spec)
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
NODES = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


def part(name):
    """Import a module of the pack, such as "comfy_nodes.runtime"."""
    return importlib.import_module(f".{name}", NAME)


def base_model(name="tiny_sd15.safetensors"):
    """(model, clip, vae) of a checkpoint in the base folder."""
    return comfy.sd.load_checkpoint_guess_config(folder_paths.get_full_path("checkpoints", name))[:3]


def node(name, **inputs):
    """Return the outputs of one node's execute, without a graph."""
    with torch.inference_mode():
        return NODES[f"IntrinsicLora_{name}"].execute(**inputs).args
