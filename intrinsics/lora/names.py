"""Interpretation of the names in a LoRA file: the module of diffusers' UNet, and the base model.

Both are derived from the structure of the names, without a table of modules.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

LDM = re.compile(r"(input|output)_blocks[._]|middle_block[._]|time_embed[._]|label_emb[._]|out[._]2$")

# Parts of module names of diffusers' SD UNets; kohya names join them by underscores instead of dots.
_WORDS = re.compile(
    r"(down_blocks|up_blocks|mid_block|transformer_blocks|to_q|to_k|to_v|to_out|proj_in|proj_out|conv_in|conv_out"
    r"|conv_shortcut|time_emb_proj|time_embedding|add_embedding|linear_1|linear_2|attentions|resnets|downsamplers"
    r"|upsamplers|attn1|attn2|ff|net|proj|conv1|conv2|conv|\d+)(?:_|$)"
)

_TEXT_ENCODER = re.compile(r"lora_te\d?_|te\d?[._]|text_(encoders?|model)|clip_[lgh][._]|cond_stage_model\.")
_TRANSFORMER = re.compile(r".*(double_blocks|single_blocks|single_transformer_blocks|joint_blocks)|transformer\.")
_XL = re.compile(r".*(add_embedding|label_emb|transformer_blocks[._][1-9])")
_UNET = re.compile(
    r"(down_blocks|up_blocks)\.\d+\..+|mid_block\..+|conv_(in|out)|(time|class|add)_embedding\..+|encoder_hid_proj(\..+)?"
)
TRANSFORMER = "Flux or another transformer model"
_BASE_BY_WIDTH = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}

# Other contents of LoRA files, which are not B @ A on the UNet.
_FOREIGN = {
    "a text encoder": _TEXT_ENCODER.pattern,
    "a DoRA": r".*(dora_scale|lora_magnitude_vector)",
    "a LyCORIS network": r".*\.(hada_|lokr_|lora_mid|oft_|glora|a1\.|b1\.)",
    "a set of weight differences": r".*\.(diff|diff_b|set_weight)$",
    "a LoRA with biases": r".*\.lora_[AB](\.[^.]+)?\.bias$",
}


def foreign_kind(key: str) -> str | None:
    """Describe what a key belongs to if it cannot belong to a plain LoRA of a UNet, else return None."""
    return next((kind for kind, pattern in _FOREIGN.items() if re.match(pattern, key)), None)


def guess_base(shapes: Mapping[str, Iterable[int]]) -> str | None:
    """Guess the base model from names and shapes.

    Args:
        shapes: shapes of LoRA weights by key (of any family), or of a UNet's weights by module name.
    """
    if any(_TRANSFORMER.match(name) for name in shapes):
        return TRANSFORMER
    for name, shape in shapes.items():
        shape = tuple(shape)
        # A cross-attention key or value projection has the text encoder's width as input width, except its "up" half.
        if re.search(r"attn2[._].*to_[kv]", name) and len(shape) > 1 and not re.search(r"lora_B|lora[._]up", name):
            width = shape[1]
            return _BASE_BY_WIDTH.get(width, f"a model with text embeddings of width {width}")
    return "SDXL" if any(_XL.match(name) for name in shapes) else None


def made_for(state: Mapping[str, Tensor], base_shapes: Mapping[str, Iterable[int] | None] | None) -> str:
    """Return the end of an error message that names both base models, or "" if they may be the same.

    Without the shapes of the base, only a LoRA of a model other than a UNet is known to be for another base.
    """
    wanted = guess_base({key: value.shape for key, value in state.items()})
    have = guess_base({name: shape for name, shape in base_shapes.items() if shape}) if base_shapes else None
    if wanted is None or wanted == have or (have is None and wanted != TRANSFORMER):
        return ""
    return f"; this LoRA was made for {wanted}" + (f", the base is {have}" if have else "")


def foreign_module(names: Iterable[str]) -> str | None:
    """Return the first module name that does not exist in any UNet of diffusers, or None."""
    return next((name for name in names if not _UNET.fullmatch(name)), None)


class Spelling:
    """Converts module names of any family to diffusers' names, using the base model's names if they are known.

    Args:
        names: module names of the base model, or None.
    """

    def __init__(self, names: Iterable[str] | None):
        self.layers_per_block = 2  # as in every Stable Diffusion
        self.by_kohya_name: dict[str, list[str]] | None = None
        if names is not None:
            names = list(names)
            layers = [int(match[1]) + 1 for n in names if (match := re.match(r"down_blocks\.\d+\.\w+\.(\d+)\.", n))]
            self.layers_per_block = max(layers, default=2)
            self.by_kohya_name = {}
            for name in names:
                self.by_kohya_name.setdefault(name.replace(".", "_"), []).append(name)

    def resolve(self, spelt: str) -> str:
        """Return the module's name in diffusers; a kohya name with no or several matches is returned unchanged."""
        name = spelt.removeprefix("lora_unet_")
        is_kohya = name != spelt
        if LDM.match(name):
            name = ldm_to_diffusers(name, self.layers_per_block)
        if not is_kohya:
            return re.sub(r"\.to_out$", ".to_out.0", name.replace(".processor.", "."))
        if self.by_kohya_name is not None:
            fitting = self.by_kohya_name.get(name, [])
            return fitting[0] if len(fitting) == 1 else spelt
        words = [match[1] for match in _WORDS.finditer(name)]
        return ".".join(words) if "_".join(words) == name else spelt


def ldm_to_diffusers(name: str, layers_per_block: int = 2) -> str:
    """Translate a CompVis (LDM) UNet module name to diffusers', with either `.` or `_` between the parts.

    LDM numbers its layers in the order of execution: `input_blocks.0` is `conv_in`, then each level has
    `layers_per_block` layers and a downsampler; in the output blocks each level has one more layer, and its upsampler
    shares the number of the last. Slot 0 of a layer is the resnet, slot 1 the attention.
    Other names are returned unchanged.
    """
    dot = "." if "." in name else "_"
    resnet = {"in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.3": "conv2"}
    resnet = {key.replace(".", dot): value for key, value in resnet.items()} | {"skip_connection": "conv_shortcut"}

    single = {
        "input_blocks.0.0": "conv_in",
        "out.2": "conv_out",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
    }
    single = {key.replace(".", dot): value.replace(".", dot) for key, value in single.items()}
    if name in single:
        return single[name]

    if match := re.fullmatch(r"middle_block[._]([012])[._](.+)", name):
        rest = match[2]
        inner = (("resnets", "0"), ("attentions", "0"), ("resnets", "1"))[int(match[1])]
        return dot.join(("mid_block", *inner, rest if match[1] == "1" else resnet.get(rest, rest)))

    match = re.fullmatch(r"(input|output)_blocks[._](\d{1,3})[._]([012])[._](.+)", name)
    if match is None:
        return name
    way, number, slot, rest = match[1], int(match[2]), match[3], match[4]
    block, layer = divmod(number - 1 if way == "input" else number, layers_per_block + 1)
    level = ("down_blocks" if way == "input" else "up_blocks", str(block))
    if rest == "op":
        return dot.join((*level, "downsamplers", "0", "conv"))
    if rest == "conv":
        return dot.join((*level, "upsamplers", "0", "conv"))
    if slot == "0":
        return dot.join((*level, "resnets", str(layer), resnet.get(rest, rest)))
    return dot.join((*level, "attentions", str(layer), rest))
