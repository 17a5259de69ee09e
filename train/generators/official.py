"""Conversion of the networks in NVIDIA's and StyleGAN-XL's pickles to this package's `StyleGAN2` and `StyleGAN3`.

The attributes of each layer in the file are used instead of the constructor arguments, which are incomplete for
StyleGAN-XL. The gains of fully connected layers are folded into their weights.
"""

import re
from typing import Any

import torch
from torch import Tensor

from .unpickle_values import Array, Module, find_inert

MAX_MODULES, MAX_DEPTH = 10_000, 8
MAX_SIDE = 4096  # pixels
FAMILIES = ("StyleGAN2", "StyleGAN3", "StyleGAN-XL")
_CLASSES = {
    "Generator",
    "SuperresGenerator",
    "MappingNetwork",
    "SynthesisNetwork",
    "SynthesisBlock",
    "SynthesisInput",
    "SynthesisLayer",
    "ToRGBLayer",
    "FullyConnectedLayer",
    "Embedding",
}


def stylegan_from_official(generator: Any, max_bytes: int) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Convert the "G_ema" of an official pickle, as returned by `read_untrusted`.

    Returns:
        The family, one of `FAMILIES`, the constructor arguments of its class, and its state dict, float32.

    Raises:
        ValueError: it is not such a generator, or has an unsupported architecture.
    """
    inert = find_inert(generator)
    if inert is not None:
        raise ValueError(f"its generator contains {inert}, which no generator needs (nothing was executed).")
    if not isinstance(generator, Module):
        raise ValueError('its "G_ema" is not a network.')
    modules: dict[str, Module] = {}
    _walk(generator, "", modules)
    tensors = _tensors(modules, max_bytes)
    if "synthesis.input" in modules:
        # Even unconditional StyleGAN-XL has a class embedding.
        table = "mapping.embed" in modules and modules["mapping.embed"].class_name == "Embedding"
        return "StyleGAN-XL" if table else "StyleGAN3", *_stylegan3(modules, tensors)
    if "synthesis.b4" in modules:
        return "StyleGAN2", *_stylegan2(modules, tensors)
    raise ValueError("its generator is neither a StyleGAN2 nor a StyleGAN3.")


def _walk(module: Any, path: str, modules: dict[str, Module]) -> None:
    """Collect a module and all its submodules by name."""
    if not isinstance(module, Module) or module.class_name not in _CLASSES:
        kind = module.class_name if isinstance(module, Module) else type(module).__name__
        if path.endswith(".skip"):
            raise ValueError("it is of resnet architecture; only skip is supported.")
        raise ValueError(f"{path or 'the generator'} is a {kind[:80]}, which is not supported.")
    if len(modules) == MAX_MODULES or path.count(".") >= MAX_DEPTH:
        raise ValueError("it is nested more deeply than any generator.")
    if module.state.get("_forward_hooks") or module.state.get("_forward_pre_hooks"):
        raise ValueError(f"{path or 'the generator'} has hooks, which cannot be converted.")
    modules[path] = module
    for name, child in _dict(module, "_modules").items():
        if child is not None:
            _walk(child, f"{path}.{name}".lstrip("."), modules)


def _tensors(modules: dict[str, Module], max_bytes: int) -> dict[str, Tensor]:
    """Return parameters and buffers by name, in float32 with gains folded in; shared ones count every time."""
    tensors, size = {}, 0
    for path, module in modules.items():
        for name, value in (_dict(module, "_parameters") | _dict(module, "_buffers")).items():
            if value is None:
                continue
            key = f"{path}.{name}".lstrip(".")
            if not isinstance(value, Array) or value.value is None or value.value.dtype.kind != "f":
                raise ValueError(f"{key} is not a tensor of real numbers.")
            size += 4 * value.value.size
            if size > max_bytes:
                raise ValueError(f"its tensors take more than {max_bytes:,} bytes.")
            tensor = torch.from_numpy(value.value.copy()).float()
            if module.class_name == "FullyConnectedLayer":
                tensor = tensor * _number(module, path, {"weight": "weight_gain", "bias": "bias_gain"}[str(name)])
            tensors[key] = tensor
    return tensors


def _stylegan2(modules: dict[str, Module], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    blocks = {int(found[1]): path for path in modules if (found := re.fullmatch(r"synthesis\.b(\d+)", path))}
    resolution = max(blocks)
    if resolution > MAX_SIDE:
        raise ValueError(f"it draws pictures of more than {MAX_SIDE} pixels.")
    for res, path in blocks.items():
        architecture = modules[path].state.get("architecture", "skip")
        if architecture != "skip" or f"{path}.torgb" not in modules:
            kind = architecture if architecture in ("orig", "resnet") else "another"
            raise ValueError(f"it is of {kind} architecture; only skip is supported.")
        layers = [f"{path}.{name}" for name in (("conv1",) if res == 4 else ("conv0", "conv1"))]
        if not all(f"{layer}.noise_const" in tensors for layer in layers):
            raise ValueError("it has no noise inputs, which is not supported.")
        for layer in layers:
            _expect(modules, layer, "activation", "lrelu")
    clamps = {
        _clamp(modules[path].state.get("conv_clamp")) for path in modules if re.search(r"\.(conv\d|torgb)$", path)
    }
    if len(clamps) != 1:
        raise ValueError("its layers are clamped differently, which is not supported.")

    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    binomial = torch.outer(taps, taps) / 64  # (4, 4)
    state: dict[str, Tensor] = {"resample_filter": binomial}
    for key, value in tensors.items():
        if key.endswith(".resample_filter"):
            if value.shape != (4, 4) or not torch.allclose(value, binomial, atol=1e-6):
                raise ValueError("it resamples with another filter than [1, 3, 3, 1], which is not supported.")
        else:
            state[re.sub(r"^synthesis\.b(\d+)\.", r"blocks.\1.", _mapping_name(key))] = value
    channels = {res: tensors[f"{path}.conv1.weight"].shape[0] for res, path in blocks.items()}
    config = {
        "resolution": resolution,
        **_mapping_config(modules, tensors),
        "channel_base": channels[resolution] * resolution,
        "channel_max": max(channels.values()),
        "conv_clamp": clamps.pop(),
        "picture_channels": tensors[f"{blocks[resolution]}.torgb.weight"].shape[0],
    }
    return config, state


def _stylegan3(modules: dict[str, Module], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    names = modules["synthesis"].state.get("layer_names")
    found = {path.removeprefix("synthesis.") for path in modules if re.fullmatch(r"synthesis\.L[^.]*", path)}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or set(names) != found:
        raise ValueError("its layers do not match the list of their names.")
    start = modules["synthesis.input"]
    sides = start.state.get("size")
    sides = sides.value.tolist() if isinstance(sides, Array) and sides.value is not None else [sides, sides]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError("its input is not square, which is not supported.")
    resolution = _whole(modules["synthesis"], "synthesis", "img_resolution")
    if not 0 < int(sides[0]) <= MAX_SIDE or resolution > MAX_SIDE:
        raise ValueError(f"it draws pictures of more than {MAX_SIDE} pixels.")

    mapping = _mapping_config(modules, tensors)
    embedding = modules.get("mapping.embed")
    is_table = embedding is not None and embedding.class_name == "Embedding"
    state = {}
    for key, value in tensors.items():
        if is_table and not mapping["label_dim"] and key.startswith("mapping.embed"):
            continue  # an unconditional StyleGAN-XL contains ImageNet's class embedding but does not use it
        name = re.sub(r"^synthesis\.L", "layers.L", _mapping_name(key))
        state[name.replace("synthesis.input.", "input.")] = value
    conditional_table = is_table and mapping["label_dim"] > 0
    config = {
        "resolution": resolution,
        "input": {
            "channels": _whole(start, "synthesis.input", "channels"),
            "size": int(sides[0]),
            "sampling_rate": _number(start, "synthesis.input", "sampling_rate"),
            "bandwidth": _number(start, "synthesis.input", "bandwidth"),
        },
        "layers": [_layer(modules[f"synthesis.{name}"], name, tensors) for name in names],
        **mapping,
        "class_embedding": tensors["mapping.embed.weight"].shape[1] if conditional_table else None,
        "w_avg_per_class": tensors["mapping.w_avg"].ndim == 2,
        "output_scale": _number(modules["synthesis"], "synthesis", "output_scale"),
    }
    return config, state


def _layer(module: Module, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    path = f"synthesis.{name}"
    padding = module.state.get("padding")
    if not isinstance(padding, list) or len(padding) != 4 or not all(type(side) is int for side in padding):
        raise ValueError(f"{path} has no padding of four numbers.")
    filters = {kind: tensors.get(f"{path}.{kind}") for kind in ("up_filter", "down_filter")}
    layer = {
        "name": name,
        "in_channels": _whole(module, path, "in_channels"),
        "out_channels": _whole(module, path, "out_channels"),
        "kernel": _whole(module, path, "conv_kernel"),
        "is_torgb": module.state.get("is_torgb") is True,
        "up_factor": _whole(module, path, "up_factor"),
        "down_factor": _whole(module, path, "down_factor"),
        "padding": padding,
        "conv_clamp": _clamp(module.state.get("conv_clamp")),
        **{kind: None if taps is None else {"shape": list(taps.shape)} for kind, taps in filters.items()},
    }
    plain = layer["up_factor"] == layer["down_factor"] == layer["kernel"] == 1 and not any(padding)
    if layer["is_torgb"] and not (plain and all(taps is None for taps in filters.values())):
        raise ValueError(f"{path} both outputs the picture and resamples it, which is not supported.")
    return layer


def _mapping_config(modules: dict[str, Module], tensors: dict[str, Tensor]) -> dict[str, Any]:
    layers = [path for path in modules if re.fullmatch(r"mapping\.fc\d+", path)]
    labels = _whole(modules[""], "the generator", "c_dim", least=0)
    if not layers or "mapping.w_avg" not in tensors or tensors["mapping.w_avg"].ndim not in (1, 2):
        raise ValueError("it has no mapping network, or no mean w.")
    for path, module in modules.items():
        if module.class_name == "FullyConnectedLayer":
            active = path in layers or path == "mapping.embed_proj"
            _expect(modules, path, "activation", "lrelu" if active else "linear")
    return {
        "z_dim": _whole(modules[""], "the generator", "z_dim"),
        "w_dim": tensors["mapping.w_avg"].shape[-1],
        "mapping_layers": len(layers),
        "label_dim": labels,
    }


def _mapping_name(key: str) -> str:
    return "w_avg" if key == "mapping.w_avg" else re.sub(r"^mapping\.", "mapping_network.", key)


def _dict(module: Module, name: str) -> dict[Any, Any]:
    value = module.state.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"a layer's {name} is not a dictionary.")
    return value


def _expect(modules: dict[str, Module], path: str, name: str, wanted: str) -> None:
    if modules[path].state.get(name) != wanted:
        raise ValueError(f"{path} has another {name} than {wanted!r}, which is not supported.")


def _number(module: Module, path: str, name: str) -> float:
    value = module.state.get(name)
    if not isinstance(value, int | float) or not abs(value) < 1e9:  # also rejects NaN
        raise ValueError(f"{path} has no {name}.")
    return value


def _whole(module: Module, path: str, name: str, least: int = 1) -> int:
    value = module.state.get(name)
    if type(value) is not int or not least <= value < 2**31:
        raise ValueError(f"{path} has no {name}.")
    return value


def _clamp(value: Any) -> float | None:
    if value is not None and (not isinstance(value, int | float) or not value > 0):
        raise ValueError("it has a clamp that is not a positive number.")
    return None if value is None else float(value)
