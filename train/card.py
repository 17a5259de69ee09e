"""The README beside published LoRAs: what they are, how good, and the command that reproduces them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..intrinsics.files import atomic_path
from ..intrinsics.vocabulary import Intrinsic
from .validation import main_metric

CARD = """\
---
{front}---
# {title}

{what} The network draws the map in {steps}; the base model itself is unchanged.

![Validation pictures: photo, label, prediction](validation.png)

## Use

{use}
The files are {format} LoRAs whose headers say intrinsic, prompt, timestep and convention.

## Figures

After {step} steps on {pictures} pictures; on {val_pictures} held-out pictures, against their labels. `best/` in
the folder of the run holds the weights with the lowest value of the metric in bold.

{table}

## Reproduction

```
intrinsic-lora train --config config.yaml
```

with this `config.yaml` (fingerprint of base and data: `{fingerprint}`):

```yaml
{config}```
"""

COMMAND = """\
```
intrinsic-lora extract photo.jpg --out maps{base_option} --loras path/to/this/folder
```
"""

GENERATOR = """\
```
intrinsic-lora extract {pictures} --out maps --generator {base} --loras path/to/this/folder
```

where `{base}` is the converted generator (`intrinsic-lora import-generator`) that these LoRAs were trained on; every
file has the hash of its weights, and it loads on no other generator. The pictures to train on were made by
`intrinsic-lora make-set`, or are photos for a generator that can encode photos.
"""

PIPELINE = """
or in Python:

```python
from intrinsic_lora import {pipeline}

pipe = {pipeline}.from_pretrained({base})
pipe.load_intrinsics("path/to/this/folder")
maps = pipe(photo)
```
"""

SDXL = """\
`intrinsic-lora extract` and the ComfyUI nodes know Stable Diffusion 1.x and 2.x only. On SDXL, diffusers draws the
map:

```python
import torch
from diffusers import StableDiffusionXLPipeline
from intrinsic_lora.intrinsics import crop_to, decode, pad_to, processing_size, read_header, read_picture, resize

file = "path/to/this/folder/intrinsic_lora_{name}.safetensors"
intrinsic = read_header(file).definition("{name}")
pipe = StableDiffusionXLPipeline.from_pretrained({base})  # add .to("cuda") here, and .cuda() to tensors
pipe.load_lora_weights(file)
photo = read_picture("photo.jpg").rgb  # (1, 3, H, W), sRGB in [0, 1]
fit = processing_size(*photo.shape[-2:], {resolution}, 8)
seen = pad_to(resize(photo, fit.resized), *fit.padded)
scale = pipe.vae.config.scaling_factor
with torch.no_grad():
    text, _, pooled, _ = pipe.encode_prompt(intrinsic.prompt, do_classifier_free_guidance=False)
    size = torch.tensor([[*fit.padded, 0, 0, *fit.padded]])
    conditions = {{"text_embeds": pooled, "time_ids": size}}
    latents = pipe.vae.encode(seen * 2 - 1).latent_dist.mode() * scale
    clean = pipe.unet(latents, {timestep}, text, added_cond_kwargs=conditions).sample
    picture = pipe.vae.decode(clean / scale).sample * 0.5 + 0.5  # not clamped
map = decode(crop_to(picture, *fit.resized), intrinsic)  # (1, C, h, w), see intrinsic_lora.intrinsics.decode
```
"""


def write_card(
    folder: Path,
    *,
    family: str,
    config: Mapping[str, Any],
    intrinsics: Sequence[Intrinsic],
    scores: Mapping[str, Mapping[str, float]],
    step: int,
    pictures: int,
    val_pictures: int,
    fingerprint: str,
) -> None:
    """Write `README.md` into `folder`.

    Args:
        family: of the base, as its backbone says it: the code that uses a LoRA depends on it.
        config: fit to be published: see `config.public_dict`.
    """
    names = ", ".join(intrinsic.name for intrinsic in intrinsics)
    base = config["base"]
    front: dict[str, Any] = {"library_name": "diffusers", "tags": ["lora", "intrinsic-lora", *names.split(", ")]}
    if base is not None and base.count("/") == 1:  # a hub id
        front["base_model"] = base
    diffusion = family in ("Stable Diffusion", "SDXL")
    one_step = f"one UNet step at timestep {config['timestep']}" if diffusion else "one pass"
    text = CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=f"Intrinsic LoRA: {names}",
        what=f"LoRAs (rank {config['lora']['rank']}) that make {base or 'the embedded model of intrinsic-lora'} draw "
        + "; ".join(f"{i.name} (prompt `{i.prompt}`)" if diffusion else i.name for i in intrinsics)
        + " of a picture.",
        steps="several denoising steps" if config["method"] == "multi-step" else one_step,
        use=_use(family, config, intrinsics[0].name),
        format="kohya-format" if diffusion else "safetensors",
        step=step,
        pictures=pictures,
        val_pictures=val_pictures,
        table=_table(scores),
        fingerprint=fingerprint,
        config=yaml.safe_dump(dict(config), sort_keys=False),
    )
    if not scores:
        text = text.replace("![Validation pictures: photo, label, prediction](validation.png)\n\n", "")
    with atomic_path(folder / "README.md") as path:
        path.write_text(text, encoding="utf-8")


def _use(family: str, config: Mapping[str, Any], name: str) -> str:
    base = config["base"]
    if family == "SDXL":
        resolution, timestep = config["data"]["resolution"], config["timestep"]
        return SDXL.format(base=repr(base), name=name, resolution=resolution, timestep=timestep)
    if family != "Stable Diffusion":
        pictures = "photo.jpg" if family == "VQGAN" else "--seeds 0-7 --truncation 0.7"
        return GENERATOR.format(pictures=pictures, base=base)
    command = COMMAND.format(base_option="" if base is None else f" --base {base}")
    pipeline = "IntrinsicLoRAMultiStepPipeline" if config["method"] == "multi-step" else "IntrinsicLoRAPipeline"
    return command + PIPELINE.format(pipeline=pipeline, base="" if base is None else repr(base))


def _table(scores: Mapping[str, Mapping[str, float]]) -> str:
    if not scores:
        return "No validation pictures were given."
    lines = ["| intrinsic | metrics |", "|---|---|"]
    for name, metrics in scores.items():
        cells = []
        for metric, value in metrics.items():
            if not math.isnan(value):
                cell = f"{metric} {value:.4g}"
                cells.append(f"**{cell}**" if metric == main_metric(name) else cell)
        lines.append(f"| {name} | {', '.join(cells)} |")
    return "\n".join(lines)
