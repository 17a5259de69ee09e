"""Our nodes as a real ComfyUI describes them, stored for the tests that do without one, and the English locale.

After a change of a node's inputs, outputs or texts, in the project's environment:

    COMFYUI_DIR=<a checkout> python -m intrinsic_lora.tests.comfy.definitions

It writes tests/comfy/object_info.json and locales/en/nodeDefs.json. The other locales are translated by hand.
"""

import json
import os
import tempfile
from copy import deepcopy
from itertools import compress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).parent / "object_info.json"
PREFIX = "IntrinsicLora_"
NEWER = ("light_info", "before_after")  # inputs and outputs that only a later ComfyUI has
FILE_LISTS = {"loras": "automatic", "lora_name": "automatic", "file": "none yet"}
STATED = (
    "input", "input_order", "output", "output_is_list", "output_name", "output_tooltips", "name", "display_name",
    "description", "category", "output_node", "deprecated", "experimental",
)  # fmt: skip


def ours(object_info: dict[str, Any]) -> dict[str, Any]:
    """Return the definitions of our nodes.

    Without what depends on the machine (the files, the name of the clone) and on the version of ComfyUI (the keys that
    it adds to every node, the colour picker, `NEWER` inputs).
    """
    nodes = {
        name: {key: deepcopy(node[key]) for key in STATED}
        for name, node in sorted(object_info.items())
        if name.startswith(PREFIX)
    }
    for node in nodes.values():
        node["input_order"] = {
            group: [name for name in names if name not in NEWER] for group, names in node["input_order"].items()
        }
        kept = [name not in NEWER for name in node["output_name"]]
        for key in ("output", "output_is_list", "output_name", "output_tooltips"):
            node[key] = list(compress(node[key], kept))
        for inputs in (node["input"][group] for group in ("required", "optional") if group in node["input"]):
            for name in set(inputs) & set(NEWER):
                del inputs[name]
            for name in set(inputs) & set(FILE_LISTS):
                inputs[name][1] |= {"options": [FILE_LISTS[name]], "default": FILE_LISTS[name]}
            for spec in inputs.values():
                if spec[0] == "COLOR,STRING":  # text in v0.3.64
                    picker = ("socketless", "widgetType")
                    spec[:] = "STRING", {key: value for key, value in spec[1].items() if key not in picker}
                spec[1].pop("multiline", None)
    return nodes


def stored() -> dict[str, Any]:
    """{node id: definition} of object_info.json."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def inputs_of(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{input name: its options} of a definition, required and optional ones in the node's order."""
    visible = [inputs for kind, inputs in node["input"].items() if kind != "hidden"]
    return {name: spec[1] for inputs in visible for name, spec in inputs.items()}


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """nodeDefs.json as the definitions say it themselves, in the form that the page looks up."""
    return {name: _english_node(node) for name, node in object_info.items()}


def _english_node(node: dict[str, Any]) -> dict[str, Any]:
    inputs = {
        name: {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
        for name, options in inputs_of(node).items()
    }
    outputs = {
        str(i): {"name": name, "tooltip": tooltip}
        for i, (name, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
    }
    texts = {"display_name": node["display_name"], "description": node["description"], "inputs": inputs}
    return texts | ({"outputs": outputs} if outputs else {})


def write_json(path: Path, content: Any) -> None:
    """Indented, as people's own characters, with a last line break."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    from intrinsic_lora.tests.comfy.client import Client
    from intrinsic_lora.tests.comfy.server import PACK, clone_pack, running_server

    python = ROOT / os.environ.get("COMFYUI_PYTHON", ".venv-comfy/bin/python")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        clone_pack(ROOT, base / "custom_nodes" / PACK)
        with running_server(Path(os.environ["COMFYUI_DIR"]).resolve(), python, base) as server:
            nodes = ours(Client(server.url).object_info())
    write_json(STORED, nodes)
    write_json(ROOT / "locales" / "en" / "nodeDefs.json", english(nodes))
    print(f"{len(nodes)} nodes, {sum(len(inputs_of(node)) for node in nodes.values())} inputs")


if __name__ == "__main__":
    main()
