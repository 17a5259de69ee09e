"""Conversion of checkpoints of taming-transformers (Esser et al. 2021) to `diffusers.VQModel`, by renaming weights."""

import re
from typing import Any

from torch import Tensor

GROUPS = 32  # of all group norms
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vqgan_entries(content: Any) -> dict[str, Any]:
    """Select the entries of a checkpoint that belong to its VQGAN, which may be the first stage of a transformer.

    Lightning's other entries (callbacks, optimisers) and those only used in training (`loss.*`) are dropped.
    """
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    entries = (
        {key: value for key, value in content.items() if isinstance(key, str)} if isinstance(content, dict) else {}
    )
    first = "first_stage_model."  # the VQGAN for FFHQ was only published in this form
    if any(key.startswith(first) for key in entries):
        entries = {key.removeprefix(first): value for key, value in entries.items() if key.startswith(first)}
    return {key: value for key, value in entries.items() if not key.startswith("loss.")}


def averaged_entries(entries: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Replace the weights by their moving averages, which some forks store in addition (`LitEma`).

    The name of an average is `model_ema.` and the weight's name without dots. If averages are missing for some
    weights, none are used, because trained and averaged layers must not be mixed.

    Returns:
        The entries, and a note about the averages, "" if there are none.
    """
    prefix = "model_ema."
    weights = {key: value for key, value in entries.items() if not key.startswith(prefix)}
    if len(weights) == len(entries):
        return weights, ""
    names = {key: prefix + key.replace(".", "") for key in weights}
    if not all(name in entries for name in names.values()):
        return weights, "without their moving average, which lacks layers"
    return {key: entries[name] for key, name in names.items()}, "moving average (EMA) of the weights"


def vqgan_from_taming(state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert the state dict of taming's `VQModel` to constructor arguments and state dict of `diffusers.VQModel`.

    Raises:
        ValueError: the kind of VQGAN is not supported.
        KeyError: a required weight is missing.
    """
    if "quantize.embed.weight" in state:
        raise ValueError("its quantizer is a Gumbel softmax, which is not supported.")
    config = _config(state)
    levels = len(config["block_out_channels"])
    converted = {}
    for key, value in state.items():
        name = _rename(key, levels)
        squeeze = value.ndim == 4 and re.search(r"\.to_(q|k|v|out\.0)\.weight$", name)
        converted[name] = value[:, :, 0, 0] if squeeze else value  # 1x1 convolutions are linear layers in diffusers
    return config, converted


def _config(state: dict[str, Tensor]) -> dict[str, Any]:
    def count(pattern: str) -> int:
        return 1 + max((int(found[1]) for key in state if (found := re.match(pattern, key))), default=-1)

    levels = count(r"encoder\.down\.(\d+)\.")
    attention = [f"encoder.down.{i}.attn.0.norm.weight" in state for i in range(levels)]
    codes, dimensions = state["quantize.embedding.weight"].shape
    widths = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attention)],
        "block_out_channels": widths,
        "layers_per_block": count(r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": state["encoder.conv_out.weight"].shape[0],
        # Not in the file. All published VQGANs have attention at 16 x 16 codes and were trained at 16 f pixels.
        "sample_size": 16 * 2 ** (levels - 1),
        "num_vq_embeddings": codes,
        "vq_embed_dim": dimensions,
        "norm_num_groups": GROUPS,
    }


def _rename(key: str, levels: int) -> str:
    """Convert the name of a parameter to diffusers', where the decoder's levels have the opposite order."""
    key = key.replace(".norm_out.", ".conv_norm_out.").replace(".nin_shortcut.", ".conv_shortcut.")
    key = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
    key = re.sub(r"\.mid\.attn_1\.", ".mid_block.attentions.0.", key)
    key = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", key)
    key = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", key)
    key = re.sub(r"(_blocks\.\d+)\.block\.", r"\1.resnets.", key)
    key = re.sub(r"(_blocks\.\d+)\.attn\.", r"\1.attentions.", key)
    key = re.sub(r"\.(down|up)sample\.", r".\1samplers.0.", key)
    return re.sub(r"(attentions\.\d+)\.(\w+)\.", lambda m: f"{m[1]}.{_ATTENTION.get(m[2], m[2])}.", key)
