"""Test whether small generators know their scenes' intrinsics: the paper's experiment on a small scale.

    python -m intrinsic_lora.train.recipes.generators.study run runs/vqgan/model runs/generators/vqgan
    python -m intrinsic_lora.train.recipes.generators.study run runs/stylegan2/generator runs/generators/stylegan2
    python -m intrinsic_lora.train.recipes.generators.study sheet runs/generators docs/generators.png

250 labelled pictures and a LoRA of rank 8 per intrinsic. A VQGAN is trained on rendered scenes with exact ground
truth; a StyleGAN on its own samples, labelled by the embedded pipeline in the role of the paper's Omnidata. The
learning rate is searched for normals on validation pictures; test pictures are used only for the report.

There are two controls. *Mean of the labels* ignores the picture. *Random generator* has the same architecture and the
same conditions, labels, LoRA and steps, but the adapted network (VQGAN's decoder, StyleGAN's synthesis) has initial
weights. Encoder, codebook and mapping network stay trained, so that conditions carry the same information about the
scene: only the knowledge in the weights differs.
"""

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ....intrinsics import INTRINSICS, decode, encode, get_intrinsic
from ....intrinsics.display import display_map
from ....intrinsics.files import atomic_path
from ....intrinsics.lora import read_header
from ....intrinsics.pictures import write_json
from ....intrinsics.sheet import contact_sheet
from ...backbones import load_backbone
from ...backbones.interfaces import Named, require_encoder
from ...config import load_config
from ...data import open_source
from ...data.conditions import read_condition, write_condition
from ...data.make_set import make_set
from ...generators.folders import atomic_folder, save_generator
from ...loop import train
from ...methods import OnePass
from ...scenes.files import write_scenes
from ...teachers.label import label_photos
from ...teachers.load import load_teacher
from ...validation import Validation, load_validation, main_metric, predict_maps, score_maps

SIZE = 64
RANK = 8
BATCH = 4
COUNTS = {"train": 250, "val": 32, "test": 64}  # pictures per split
RATES = (3e-3, 1e-2, 3e-2)
PRESETS = {"VQGAN": "vqgan", "StyleGAN2": "stylegan2"}

app = typer.Typer(help=__doc__, add_completion=False)


def make_data(base: Path, out: Path, truncation: float) -> None:
    """Create the three splits as labelled folders, keeping existing files."""
    backbone = load_backbone(base, [])
    if backbone.family == "VQGAN":
        for seed, (split, count) in enumerate(COUNTS.items()):
            write_scenes(out / split, count, seed, SIZE)
        return
    teacher, first = load_teacher("intrinsic-lora"), 0
    for split, count in COUNTS.items():
        make_set(backbone, out / split, count=count, seed=first, truncation=truncation)
        label_photos(out / split / "photos", out / split, teacher, batch_size=25)
        first += count


def make_random(base: Path, out: Path) -> None:
    """Write the base with initial weights in the adapted network, see above."""
    backbone = load_backbone(base, [])
    model: Any = copy.deepcopy(backbone.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10_000)
        if backbone.family == "VQGAN":
            fresh = type(model).from_config(model.config)
            for part in ("post_quant_conv", "decoder"):
                getattr(model, part).load_state_dict(getattr(fresh, part).state_dict())
            with atomic_folder(out) as folder:
                model.save_pretrained(folder)
        else:
            model.blocks.load_state_dict(type(model)(**model.config).blocks.state_dict())
            save_generator(model, out, source=f"{base.name}, synthesis not trained")


def restamp(data: Path, out: Path, base: Path) -> Path:
    """Copy the labelled folders, assigning their conditions to another generator of the same architecture."""
    fingerprint = load_backbone(base, []).fingerprint
    shutil.copytree(data, out, dirs_exist_ok=True)
    for file in out.glob("*/conditions/*.safetensors"):
        write_condition(file, replace(read_condition(file), base=fingerprint))
    return out


def teach(base: Path, data: Path, out: Path, name: str, rate: float, steps: int) -> Path:
    """Train a LoRA by the function of the `train` command, unless it is finished; return the best weights."""
    file = f"intrinsic_lora_{name}.safetensors"
    if not (out / file).exists():
        settings = {
            "base": base, "out": out, "intrinsics": f"[{name}]", "lora.rank": RANK, "optimizer.lr": rate,
            "data.path": data / "train", "data.val_path": data / "val", "data.val_count": COUNTS["val"],
            "data.resolution": SIZE, "data.cache": data.parent / "cache", "batch_size": BATCH,
            "max_steps": steps, "validate_every": ceil(steps / 4), "checkpoint_every": 100,
            "schedule.name": "cosine", "schedule.warmup": 10, "log": "files",
        }  # fmt: skip
        preset = PRESETS[load_backbone(base, []).family]
        train(load_config(preset, None, [f"{key}={value}" for key, value in settings.items()]))
    return out / "best" / file


def open_split(backbone: Named, folder: Path, names: Sequence[str]) -> Validation:
    intrinsics = [get_intrinsic(name) for name in names]
    return load_validation(open_source("folder", folder, intrinsics), backbone, intrinsics, SIZE)


def draw(base: Path, loras: Mapping[str, Path], folder: Path) -> tuple[dict[str, Tensor], Validation]:
    """Predict canonical maps (N, C, H, W) of a split; also return the split."""
    backbone = load_backbone(base, [get_intrinsic(name) for name in loras])
    held = open_split(backbone, folder, list(loras))
    maps = {}
    for name, file in loras.items():
        backbone.add_lora(name, RANK, RANK, backbone.targets, seed=0)
        backbone.load_lora(file, name)
        maps[name] = predict_maps(OnePass(backbone), name, held.conditions, batch_size=16)
    return maps, held


def mean_maps(base: Path, data: Path, names: Sequence[str], count: int) -> dict[str, Tensor]:
    """Decode the mean of the training labels' pictures, repeated `count` times."""
    labels = open_split(load_backbone(base, []), data / "train", names).labels
    means = {name: encode(labels[name], name).mean(0, keepdim=True) for name in names}
    return {name: decode(mean, name).expand(count, -1, -1, -1) for name, mean in means.items()}


@torch.no_grad()
def ceiling_maps(base: Path, held: Validation, names: Sequence[str]) -> dict[str, Tensor]:
    """Reconstruct the labels' pictures by a VQGAN: the best that its codes and decoder can represent."""
    backbone = load_backbone(base, [])
    encoder = require_encoder(backbone)
    codes = {name: encoder.encode_picture(encode(held.labels[name], name)) for name in names}
    return {name: decode(backbone.render(value), name) for name, value in codes.items()}


def best_loras(study: Path) -> dict[str, Path]:
    """Return {intrinsic: its LoRA} of a finished study."""
    files = {name: study / "loras" / name / "best" / f"intrinsic_lora_{name}.safetensors" for name in INTRINSICS}
    return {name: file for name, file in files.items() if file.exists()}


def search(base: Path, data: Path, out: Path, rates: Sequence[float], steps: int) -> float:
    """Return the learning rate whose short run predicts the best normals of the validation pictures."""
    found = {}
    for rate in rates:
        lora = teach(base, data, out / f"{rate:g}", "normals", rate, steps)
        maps, held = draw(base, {"normals": lora}, data / "val")
        found[rate] = score(maps, held)["normals"]
        print(f"learning rate {rate:g}, {steps} steps: {found[rate]:.2f} degrees on validation", flush=True)
    write_json(out / "search.json", {f"{rate:g}": value for rate, value in found.items()})
    return min(found, key=found.__getitem__)


def score(maps: dict[str, Tensor], held: Validation) -> dict[str, float]:
    """Compute the main metric of every intrinsic; smaller is better."""
    return {name: scores[main_metric(name)] for name, scores in score_maps(maps, held).items()}


def table(report: dict[str, dict[str, float]]) -> str:
    """Format a table with a row for the LoRA and each control, and a column for each intrinsic."""
    names = list(report["LoRA"])
    heads = [f"{name}, {main_metric(name)}" for name in names]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(names)) + "|"]
    for row, scores in report.items():
        lines.append(f"| {row} | " + " | ".join(f"{scores[name]:.3g}" for name in names) + " |")
    return "\n".join(lines)


@app.command()
def run(
    base: Annotated[Path, typer.Argument(help="Folder of the generator.")],
    out: Annotated[Path, typer.Argument(help="Folder of the study; existing results are kept.")],
    intrinsics: Annotated[str, typer.Option(help="Intrinsics, comma-separated.")] = ",".join(INTRINSICS),
    steps: Annotated[int, typer.Option(help="Optimiser steps of each LoRA.")] = 800,
    search_steps: Annotated[int, typer.Option(help="Optimiser steps in the search of the learning rate.")] = 150,
    rates: Annotated[str, typer.Option(help="Learning rates to search.")] = ",".join(f"{rate:g}" for rate in RATES),
    truncation: Annotated[float, typer.Option(help="Truncation of a StyleGAN's samples.")] = 1.0,
) -> None:
    """Label, search the learning rate, train LoRAs and controls, print the table and write `report.json`."""
    names, data = intrinsics.split(","), out / "data"
    make_data(base, data, truncation)
    candidates = [float(rate) for rate in rates.split(",")]
    rate = search(base, data, out / "search", candidates, search_steps) if len(candidates) > 1 else candidates[0]
    ours = {name: teach(base, data, out / "loras" / name, name, rate, steps) for name in names}
    maps, held = draw(base, ours, data / "test")
    report = {"mean of the labels": score(mean_maps(base, data, names, len(held.photos)), held)}
    random = out / "random"
    if not random.exists():
        make_random(base, random)
    random_data = restamp(data, out / "data-random", random)
    control = {name: teach(random, random_data, out / "loras-random" / name, name, rate, steps) for name in names}
    report["LoRA, random generator"] = score(draw(random, control, random_data / "test")[0], held)
    report["LoRA"] = score(maps, held)
    if load_backbone(base, []).family == "VQGAN":
        report["ground truth through the codes"] = score(ceiling_maps(base, held, names), held)
    write_json(out / "report.json", {"base": str(base.name), "rate": rate, "steps": steps, "scores": report})
    print(f"\nlearning rate {rate:g}, {steps} steps, {len(held.photos)} test pictures\n\n{table(report)}", flush=True)


@app.command()
def package(
    base: Annotated[Path, typer.Argument(help="Folder of the generator.")],
    study: Annotated[Path, typer.Argument(help="Folder of its study.")],
    out: Annotated[Path, typer.Argument(help="Output folder of the generator, with its LoRAs in loras/.")],
) -> None:
    """Write the shipped generator and its LoRAs."""
    shutil.copytree(base, out)
    (out / "loras").mkdir()
    backbone = load_backbone(out, list(INTRINSICS.values()))
    for name, file in best_loras(study).items():
        backbone.add_lora(name, RANK, RANK, backbone.targets, seed=0)
        backbone.load_lora(file, name)
        training = read_header(file).training
        backbone.save_lora(out / "loras" / file.name, name, method="single-step", timestep=0, training=training)


@app.command()
def sheet(
    studies: Annotated[Path, typer.Argument(help="Folder with the folders of the studies.")],
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    bases: Annotated[str, typer.Option(help="Generators of the studies, comma-separated NAME=FOLDER.")] = (
        "vqgan=runs/vqgan/model,stylegan2=runs/stylegan2/generator"
    ),
    count: Annotated[int, typer.Option(help="Number of test pictures of each, from the first.")] = 4,
) -> None:
    """Draw pictures, the teachers' maps and ours."""
    pictures: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {}
    rows = []
    for name, base in (item.split("=") for item in bases.split(",")):
        loras = best_loras(studies / name)
        maps, held = draw(Path(base), loras, studies / name / "data" / "test")
        pictures += list(held.photos[:count])
        rows += [name] * count
        for i in loras:
            columns.setdefault(f"{i}: teacher", []).extend(display_map(held.labels[i][:count], i))
            columns.setdefault(f"{i}: ours", []).extend(display_map(maps[i][:count], i))
    with atomic_path(out) as path:
        contact_sheet([("picture", pictures), *columns.items()], row_labels=rows, cell_width=112, gap=4).save(path)


if __name__ == "__main__":
    app()
