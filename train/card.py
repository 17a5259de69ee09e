"""The README beside published LoRAs: what they are, how good, and the command that makes them again."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..intrinsics.files import atomic_path
from ..intrinsics.registry import Intrinsic
from .validation import main_metric

CARD = """\
---
{front}---
# {title}

{what} The network draws the map in {steps}; the base model itself is unchanged.

![Validation pictures: photo, label, ours](validation.png)

## Use

```python
from intrinsic_lora import {pipeline}

pipe = {pipeline}.from_pretrained({base_argument})
pipe.load_intrinsics("path/to/this/folder")
maps = pipe(photo)
```

{command}The files are kohya-format LoRAs whose headers say intrinsic, prompt, timestep and convention.

## Figures

After {step} steps on {pictures} pictures; on {val_pictures} pictures not learnt from, against their labels. `best/` in
the folder of the run holds the weights with the lowest value of the metric in bold.

{table}

## Make it again

```
intrinsic-lora train --config config.yaml
```

with this `config.yaml` (fingerprint of base and data: `{fingerprint}`):

```yaml
{config}```
"""


def write_card(
    folder: Path,
    *,
    config: Mapping[str, Any],
    intrinsics: Sequence[Intrinsic],
    scores: Mapping[str, Mapping[str, float]],
    step: int,
    pictures: int,
    val_pictures: int,
    fingerprint: str,
) -> None:
    """Write `README.md` into `folder`. `config` is fit to be published: see `config.public_dict`."""
    names = ", ".join(intrinsic.name for intrinsic in intrinsics)
    base = config["base"]
    front: dict[str, Any] = {"library_name": "diffusers", "tags": ["lora", "intrinsic-lora", *names.split(", ")]}
    if base is not None and base.count("/") == 1:  # a hub id
        front["base_model"] = base
    multi = config["method"] == "multi-step"
    extract = "intrinsic-lora extract photo.jpg --out maps" + ("" if base is None else f" --base {base}")
    text = CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=f"Intrinsic LoRA: {names}",
        what=f"LoRAs (rank {config['lora']['rank']}) that make {base or 'the embedded model of intrinsic-lora'} draw "
        + "; ".join(f"{i.name} (prompt `{i.prompt}`)" for i in intrinsics)
        + " of a picture.",
        steps="several denoising steps" if multi else f"one UNet step at timestep {config['timestep']}",
        base_argument="" if base is None else repr(base),
        pipeline="IntrinsicLoRAMultiStepPipeline" if multi else "IntrinsicLoRAPipeline",
        command="" if multi else f"or `{extract} --loras path/to/this/folder`.\n",
        step=step,
        pictures=pictures,
        val_pictures=val_pictures,
        table=_table(scores),
        fingerprint=fingerprint,
        config=yaml.safe_dump(dict(config), sort_keys=False),
    )
    if not scores:
        text = text.replace("![Validation pictures: photo, label, ours](validation.png)\n\n", "")
    with atomic_path(folder / "README.md") as path:
        path.write_text(text)


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
