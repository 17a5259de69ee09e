"""Graphs in ComfyUI's API format, and workflows as the page saves them turned into it."""

from collections.abc import Iterator
from typing import Any

from intrinsic_lora.tests.comfy.client import Graph

_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR")
MUTED, BYPASSED = 2, 4  # a node's mode


def vanilla(image: str, lora: str, prompt: str, checkpoint: str = "tiny_sd15.safetensors") -> Graph:
    """One intrinsic with core nodes alone: the photo's latent goes through the UNet once, at the last timestep.

    "img_to_img" makes the sampler feed the latent unscaled and take the UNet's output for the clean latent; one Euler
    step from the schedule's first sigma to 0 then returns just that output.

    Args:
        image: name in the input folder.
        lora: name in models/loras.
        prompt: the intrinsic's own.

    Returns:
        The graph; node "picture" saves the decoded picture as PNG, "latent" the latent.
    """

    def node(class_type: str, **inputs: object) -> dict:
        return {"class_type": class_type, "inputs": inputs}

    return {
        "base": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "lora": node("LoraLoaderModelOnly", model=["base", 0], lora_name=lora, strength_model=1.0),
        "model": node("ModelSamplingDiscrete", model=["lora", 0], sampling="img_to_img", zsnr=False),
        "prompt": node("CLIPTextEncode", clip=["base", 1], text=prompt),
        "photo": node("LoadImage", image=image),
        "encode": node("VAEEncode", pixels=["photo", 0], vae=["base", 2]),
        "guider": node("BasicGuider", model=["model", 0], conditioning=["prompt", 0]),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=1, denoise=1.0),
        "noise": node("DisableNoise"),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["encode", 0],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="vanilla"),
        "latent": node("SaveLatent", samples=["sample", 0], filename_prefix="vanilla"),
    }


def numbered(graph: Graph) -> Graph:
    """Return the graph with node ids "1", "2", ..., as the page requires; links are lists of two."""
    ids = {name: str(number) for number, name in enumerate(graph, start=1)}

    def renamed(value: object) -> object:
        return [ids[value[0]], value[1]] if isinstance(value, list) else value

    return {
        ids[name]: node | {"inputs": {key: renamed(value) for key, value in node["inputs"].items()}}
        for name, node in graph.items()
    }


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> Graph:
    """Convert a saved workflow to the form in which the page sends it to the server.

    Notes and muted nodes are left out, with what is linked to them; a bypassed node passes on its first input of the
    type of the output.

    Raises:
        ValueError: a node is unknown but something hangs on it (subgraphs, reroutes and primitives are unknown too),
            or a node has more widget values than widgets, or fewer and the missing ones no default.
    """
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}  # id: (node, output)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    graph: Graph = {}

    def source(link: int | None) -> list | None:
        if link is None:
            return None
        number, slot = links[link]
        node = nodes[number]
        if node["mode"] == MUTED:
            return None
        if node["mode"] == BYPASSED:
            kind = node["outputs"][slot]["type"]
            fitting = [socket for socket in node["inputs"] if socket["type"] == kind]
            return source(fitting[0]["link"]) if fitting else None
        return [str(number), slot]

    for node in workflow["nodes"]:
        if node["mode"] in (MUTED, BYPASSED) or node["type"] not in object_info:
            continue
        values = list(node.get("widgets_values") or [])
        definition = object_info[node["type"]]
        inputs = dict(_values(_ordered(definition), values, f"{node['type']} ({node['id']})"))
        if values:
            raise ValueError(f"{node['type']} ({node['id']}) has values for no widget: {values}.")
        for socket in node["inputs"]:
            if (origin := source(socket.get("link"))) is not None:
                inputs[socket["name"]] = origin
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    for number, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] not in graph:
                raise ValueError(f"{node['class_type']} ({number}): {name} comes from a node that cannot run.")
    return graph


Specs = list[tuple[str, list]]  # (name, [type, options]) of inputs in order


def _ordered(definition: dict[str, Any]) -> Specs:
    groups = [group for group in ("required", "optional") if group in definition["input_order"]]
    return [(name, definition["input"][group][name]) for group in groups for name in definition["input_order"][group]]


def _values(specs: Specs, values: list, where: str) -> Iterator[tuple[str, Any]]:
    """Name and value of the widgets among `specs`; takes the values from the front of `values`."""
    for name, (kind, *rest) in specs:
        options = rest[0] if rest else {}
        kind = options.get("widgetType", kind)  # of a socket that takes several types
        dynamic = kind == "COMFY_DYNAMICCOMBO_V3"
        if not (isinstance(kind, list) or kind in _WIDGETS or dynamic) or options.get("forceInput"):
            continue
        if options.get("hidden"):
            continue
        if not values and "default" not in options:
            raise ValueError(f"{where} has no value for {name}.")
        value = values.pop(0) if values else options["default"]
        yield name, value
        if options.get("control_after_generate"):
            values.pop(0)  # what becomes of the seed after a run: the page's affair
        if options.get("image_upload"):
            values.pop(0)  # the upload button
        if dynamic:  # with inputs of its own for each choice
            [chosen] = [option["inputs"] for option in options["options"] if option["key"] == value]
            inner = [item for group in ("required", "optional") for item in chosen.get(group, {}).items()]
            yield from _values([(f"{name}.{key}", spec) for key, spec in inner], values, where)
