"""The other generators end to end, on tiny random ones: make-set, label, train, extract, rejected input."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, VQModel
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics import INTRINSICS, decode, encode, read_lora, read_picture, write_lora, write_png
from intrinsic_lora.tests.support import tiny, tiny_training
from intrinsic_lora.tests.support.closeness import assert_rounded
from intrinsic_lora.train.backbones import backbone_class, load_backbone
from intrinsic_lora.train.backbones.adapted import Adapted
from intrinsic_lora.train.config import TrainConfig, load_config
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.data.cache import cache_bytes, cache_latents
from intrinsic_lora.train.data.conditions import Condition, read_condition, write_condition
from intrinsic_lora.train.data.make_set import make_set
from intrinsic_lora.train.dry_run import estimate
from intrinsic_lora.train.generators.folders import load_generator, save_generator
from intrinsic_lora.train.generators.lora_files import generator_loras, read_generator_lora
from intrinsic_lora.train.generators.stylegan2 import StyleGAN2
from intrinsic_lora.train.generators.stylegan3 import StyleGAN3
from intrinsic_lora.train.generators.stylegan3_layout import stylegan3_config
from intrinsic_lora.train.loop import train
from intrinsic_lora.train.methods import OnePass
from intrinsic_lora.train.prepare import build_method, changes_of, with_targets, write_config
from intrinsic_lora.train.teachers.base import LoadedTeacher
from intrinsic_lora.train.teachers.label import label_photos
from torch import nn
from typer.testing import CliRunner

SIZE = 32
NAMES = ("normals", "depth")
BOTH = [INTRINSICS[name] for name in NAMES]
FAMILIES = ("stylegan2", "stylegan3", "vqgan")


def network(family: str, seed: int = 0) -> nn.Module:
    """Random weights; three classes for StyleGAN3, 4 x 4 codes a picture's side of 16 for VQGAN."""
    torch.manual_seed(seed)
    if family == "stylegan2":
        model = StyleGAN2(SIZE, z_dim=12, w_dim=16, mapping_layers=2, channel_base=256, channel_max=16)
        model.w_avg.normal_()
    elif family == "stylegan3":
        sizes = {"channel_base": 256, "channel_max": 12, "num_layers": 6, "z_dim": 12, "w_dim": 16}
        model = StyleGAN3(**stylegan3_config("T", SIZE, label_dim=3, **sizes))
    else:
        model = VQModel(
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            latent_channels=4,
            num_vq_embeddings=64,
            norm_num_groups=4,
            sample_size=SIZE,
        )
        nn.init.normal_(model.quantize.embedding.weight, std=0.5)
    return model.eval().requires_grad_(False)


def draw(model: nn.Module, condition: torch.Tensor) -> torch.Tensor:
    """Generate pictures from conditions without our backbones."""
    with torch.no_grad():
        if not isinstance(model, VQModel):
            return model.synthesis(condition) * 0.5 + 0.5
        vectors = model.quantize.get_codebook_entry(condition.flatten(), (*condition.shape, 4))
        return model.decode(vectors, force_not_quantize=True).sample * 0.5 + 0.5


def teach(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute maps that depend on every pixel, in closed form."""
    red, green, blue = pictures.unbind(1)
    normals = torch.stack([red - 0.5, green - 0.3, blue + 0.2], 1)
    low, high = red.amin((1, 2), keepdim=True), red.amax((1, 2), keepdim=True)
    return {"normals": normals / normals.norm(dim=1, keepdim=True), "depth": ((red - low) / (high - low))[:, None]}


TEACHER = LoadedTeacher("formula", "none", "0" * 16, "public domain", "torch", NAMES, {}, teach)


def cli(*arguments, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Write a generator and a labelled set of every family, another StyleGAN2, and photos."""
    root = tmp_path_factory.mktemp("generators")
    (root / "photos").mkdir()
    for i in range(5):
        coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(i))
        write_png(root / "photos" / f"p{i}.png", nn.functional.interpolate(coarse, (SIZE, SIZE + 6), mode="bicubic"))
    for family in FAMILIES:
        model = network(family)
        if family == "vqgan":
            model.save_pretrained(root / family)
            more = ["--photos", root / "photos"]
        else:
            save_generator(model, root / family)
            more = ["--count", 5, "--seed", 3, "--truncation", 0.7]
            more += ["--classes", "0-2"] if family == "stylegan3" else []
        output = cli("make-set", root / family, root / f"{family}-set", *more, "--device", "cpu")
        assert "5 generated, 0 skipped (already exist), 0 failed" in output
        done = label_photos(root / f"{family}-set" / "photos", root / f"{family}-set", TEACHER)
        assert (done.written, done.failed) == (5, 0)
    save_generator(network("stylegan2", seed=9), root / "other")
    return root


def config(root: Path, family: str, out: Path, **changes):
    given = {"intrinsics": "[normals,depth]", "data__val_count": 1, "max_steps": 4, "validate_every": 4, **changes}
    return tiny_training.config(root / family, root / f"{family}-set", out, **given)


@pytest.fixture(scope="module")
def runs(root):
    """{family: folder of its run}"""
    for family in FAMILIES:
        train(config(root, family, root / f"{family}-run"))
    return {family: root / f"{family}-run" for family in FAMILIES}


# ---------------------------------------------------------------------- end to end


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_drawn_from_their_conditions(root, family):
    model, folder = network(family), root / f"{family}-set"
    names = sorted(path.stem for path in (folder / "photos").iterdir())
    assert names == ([f"p{i}" for i in range(5)] if family == "vqgan" else [f"{i:06d}" for i in range(3, 8)])
    for name in names:
        condition = read_condition(folder / "conditions" / f"{name}.safetensors")
        picture = draw(model, condition.value[None])
        written = read_picture(folder / "photos" / f"{name}.png").rgb
        assert (picture.clamp(0, 1) - written).abs().max() <= 0.5 / 255 + 1e-5
        if family != "vqgan":  # NVIDIA's way from a seed
            seed = int(name)
            z = torch.from_numpy(np.random.RandomState(seed).randn(1, 12)).float()
            label = nn.functional.one_hot(torch.tensor([seed % 3]), 3).float() if family == "stylegan3" else None
            assert_rounded(condition.value[None], model.mapping(z, label, 0.7))
            assert condition.origin == {"family": backbone_class(root / family).family, "seed": seed} | {
                "truncation": 0.7
            } | ({"classes": [seed % 3]} if family == "stylegan3" else {})


@pytest.mark.parametrize("family", FAMILIES)
def test_extract_draws_the_picture_and_what_the_folded_loras_draw(root, runs, family, tmp_path):
    """Compare with a separate network into whose weights the LoRA was folded."""
    loras, out = runs[family], tmp_path / "maps"
    arguments = ["extract", "--generator", root / family, "--loras", loras, "--out", out, "--format", "png16,npz"]
    if family == "vqgan":
        arguments += [root / "photos" / "p0.png", "--resolution", 0]
        stem = "p0"
        photo = read_picture(root / "photos" / "p0.png").rgb  # 38 x 32: reflected to a multiple of 4
        seen = torch.cat([photo, photo[..., -3:-1].flip(-1)], dim=3)
        _, _, (_, _, codes) = network(family).quantize(network(family).encode(seen * 2 - 1).latents)
        condition, shown = codes.view(1, SIZE // 4, -1), photo
    else:
        arguments += ["--seeds", "2,11", "--truncation", 0.5, *(["--class", 1] if family == "stylegan3" else [])]
        stem = "000011"
        z = torch.from_numpy(np.random.RandomState(11).randn(1, 12)).float()
        label = torch.tensor([[0.0, 1.0, 0.0]]) if family == "stylegan3" else None
        condition, shown = network(family).mapping(z, label, 0.5), None
    output = cli(*arguments, "--device", "cpu")
    assert "0 failed" in output
    assert "0 extracted" in cli(*arguments, "--device", "cpu")

    image = draw(network(family), condition)[..., : SIZE + 6]
    assert (read_picture(out / f"{stem}_image.png").rgb - image.clamp(0, 1)).abs().max() <= 0.5 / 65535 + 2e-5
    shown = image if shown is None else shown
    with np.load(out / f"{stem}.npz") as arrays:
        assert {*NAMES, "confidence"} <= set(arrays.files)
        for name in NAMES:
            weights = read_lora(loras / f"intrinsic_lora_{name}.safetensors", network(family)).weights
            assert all(b.abs().max() > 0 for _, b, _ in weights.values())
            folded = network(family)
            tiny.fold(folded, weights)
            wanted = decode(draw(folded, condition)[..., : SIZE + 6], name)[0].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(arrays[name], wanted.squeeze() if name == "depth" else wanted, atol=2e-4)
    for kind in (*(f"_{name}.png" for name in (*NAMES, "confidence")), "_sheet.png"):
        assert read_picture(out / f"{stem}{kind}").rgb.shape[-1] >= SIZE


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_lora_off_no_bit_of_the_picture_changes(root, runs, family):
    backbone = load_backbone(root / family, BOTH)
    condition = backbone.dummy_conditions(2, SIZE)
    with torch.no_grad():
        before = backbone.render(condition)
        for name, lora in generator_loras(runs[family], backbone).items():
            backbone.add_lora(name, 2, 2, backbone.targets, seed=0)
            backbone.load_lora_weights(name, lora.weights)
            assert not torch.equal(backbone.render(condition), before)
        backbone.activate(None)
        assert torch.equal(backbone.render(condition), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_run_writes(root, runs, family):
    backbone, out = load_backbone(root / family, BOTH), runs[family]
    text = (out / "config.yaml").read_text()
    assert all(target in text for target in backbone.targets)  # null became the family's own
    lora = read_generator_lora(out / "intrinsic_lora_depth.safetensors", backbone)
    fields = {key: getattr(lora.header, key) for key in ("method", "family", "base_hash", "intrinsic")}
    fits = {"method": "generator", "family": backbone.family, "base_hash": backbone.fingerprint, "intrinsic": "depth"}
    assert fields == fits
    wrong = [m for m in lora.weights if (("encoder" in m) if family == "vqgan" else not m.endswith("affine"))]
    assert wrong == [] and len(lora.weights) > 3 and not any(m.startswith("input") for m in lora.weights)
    card = (out / "README.md").read_text()
    pictures = "photo.jpg" if family == "vqgan" else "--seeds 0-7"
    assert f"extract {pictures}" in card and f"--generator {family} " in card
    assert "UNet" not in card and "kohya" not in card
    shard = next((out / "cache").rglob("*.safetensors"))
    source = open_source("folder", root / f"{family}-set", BOTH)
    cache = cache_latents(source, backbone, None, out / "cache", SIZE, BOTH, keep_maps=True)
    batch = cache.batch([0, 1])
    assert set(batch) == {"image", *NAMES} and shard.is_file()
    wanted = [source[i].condition.value for i in (0, 1)]
    assert torch.equal(batch["image"], torch.stack(wanted)) and batch["image"].dtype == wanted[0].dtype
    torch.testing.assert_close(batch["depth"][1], source[1].labels["depth"], atol=5e-4, rtol=0)
    stored = 2 * (3 + 1) * SIZE**2 + wanted[0].nbytes
    assert cache_bytes(5, backbone, SIZE, BOTH, label_latents=False, keep_maps=True) == 5 * stored
    assert "max_steps: 4" in text and json.loads((out / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_reduce_the_loss_which_is_the_error_of_the_picture(root, family):
    backbone = load_backbone(root / family, BOTH)
    backbone.add_lora("normals", 2, 2, backbone.targets, seed=0)
    condition = backbone.dummy_conditions(3, SIZE)
    truth = teach(torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))["normals"]
    mask = torch.ones(3, 1, SIZE, SIZE)
    mask[:, :, : SIZE // 2] = 0
    batch = {"image": condition, "normals": truth, "mask": mask}
    method = OnePass(backbone)
    loss = method.loss(batch, "normals", [])
    half = (backbone.render(condition) - encode(truth, "normals"))[:, :, SIZE // 2 :]
    torch.testing.assert_close(loss, half.square().mean())
    for kind in ("latent", "pixel", "latent+pixel"):
        method = OnePass(backbone, kind)
        optimizer = torch.optim.Adam(backbone.lora_parameters("normals"), lr=1e-2)
        losses = []
        for _ in range(3):
            loss = method.loss(batch, "normals", [])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_and_going_on_changes_no_bit(root, runs, family, tmp_path):
    train(config(root, family, tmp_path / "parted", max_steps=2))
    train(config(root, family, tmp_path / "parted"))
    for name in NAMES:
        file = f"intrinsic_lora_{name}.safetensors"
        whole, parted = (tiny_training.weights(folder / file) for folder in (runs[family], tmp_path / "parted"))
        assert whole.keys() == parted.keys()
        assert [key for key in whole if not torch.equal(whole[key], parted[key])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dry_run_tells_the_share_and_writes_nothing(root, family, tmp_path):
    out = tmp_path / "run"
    preset = {"stylegan2": "stylegan2", "stylegan3": "stylegan-xl", "vqgan": "vqgan"}[family]
    given = [f"base={root / family}", f"data.path={root / f'{family}-set'}", f"out={out}", "intrinsics=[normals]"]
    given += [f"data.resolution={SIZE}", "data.val_count=1", "log=files", "batch_size=2"]
    output = cli("train", "--preset", preset, *given, "--dry-run")
    model = network(family)
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (name.startswith("decoder") if family == "vqgan" else name.endswith("affine") and "input" not in name)
    ]
    trainable = sum(8 * (layer.in_features + layer.out_features) for layer in layers)
    share = 100 * trainable / sum(p.numel() for p in model.parameters())
    assert f"{len(layers)} per intrinsic" in output and f"{trainable:,}, {share:.3f} % of the base" in output
    assert not out.exists()


# ---------------------------------------------------------------------- make-set


def test_a_set_goes_on_grows_and_depends_on_its_seeds_alone(root, tmp_path):
    backbone = load_backbone(root / "stylegan2", [])
    make_set(backbone, tmp_path / "a", count=3, seed=4, truncation=0.7)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    before = read_condition(tmp_path / "a" / "conditions" / "000005.safetensors")
    (tmp_path / "a" / "photos" / "000005.png").unlink()
    done = make_set(backbone, tmp_path / "a", count=4, seed=4, truncation=0.7)
    assert (done.written, done.skipped, done.failed) == (2, 2, 0)
    assert {path: path.read_bytes() for path in files} == files
    after = read_condition(tmp_path / "a" / "conditions" / "000005.safetensors")
    assert torch.equal(before.value, after.value) and (before.base, before.origin) == (after.base, after.origin)
    same = (root / "stylegan2-set" / "photos" / "000006.png").read_bytes()
    assert (tmp_path / "a" / "photos" / "000006.png").read_bytes() == same
    for changes, sentence in (
        ({"truncation": 0.5}, "made with other settings"),
        ({"truncation": 0.7, "classes": [1]}, "is not class-conditional|made with other settings"),
        ({"truncation": 0.7, "prompt": "a room"}, "does not support prompt; its options: truncation, classes"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make_set(backbone, tmp_path / "a", count=1, **changes)
    with pytest.raises(ValueError, match="made with other settings"):
        make_set(load_backbone(root / "other", []), tmp_path / "a", count=1, truncation=0.7)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stylegan3", "--count", 1], "draws classes 0 to 2: name one for every picture"),
        (["stylegan3", "--count", 1, "--classes", "7"], "draws classes 0 to 2"),
        (["stylegan3", "--count", 1, "--classes", "2-0"], "nor a range such as 0-7"),
        (["stylegan2", "--count", 1, "--classes", "0"], "is not class-conditional"),
        (["stylegan2"], "Specify either --count or --photos"),
        (["vqgan", "--count", 1, "--truncation", 0.5], "does not support truncation; its options: none"),
        (["vqgan", "--photos", "photos", "--resolution", 30], "0 generated, 0 skipped (already exist), 5 failed"),
    ],
)
def test_sets_that_cannot_be_made(root, tmp_path, arguments, sentence):
    arguments = [root / part if part in (*FAMILIES, "photos") else part for part in arguments]
    result = CliRunner().invoke(
        app, ["make-set", *map(str, arguments[:1]), str(tmp_path / "set"), *map(str, arguments[1:])]
    )
    assert result.exit_code != 0 and sentence in " ".join(result.output.split()).replace("│ ", ""), result.output


def test_photos_that_cannot_be_read_do_not_end_a_set(root, tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    os.link(root / "photos" / "p1.png", tmp_path / "photos" / "deep" / "p1.png")
    output = cli("make-set", root / "vqgan", tmp_path / "set", "--photos", tmp_path / "photos", status=1)
    assert "1 generated, 0 skipped (already exist), 1 failed" in output and "bad" in output
    ours = (tmp_path / "set" / "photos" / "deep" / "p1.png").read_bytes()
    assert ours == (root / "vqgan-set" / "photos" / "p1.png").read_bytes()


# ---------------------------------------------------------------------- what does not fit


def without_conditions(root: Path, folder: Path) -> Path:
    label_photos(root / "stylegan2-set" / "photos", folder, TEACHER)
    return folder


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("stylegan2", {"data__flip": "true"}, "data.flip=false"),
        ("stylegan3", {"data__color_permutations": "true"}, "data.color_permutations=false"),
        ("vqgan", {"data__flip": "true"}, "data.flip=false"),
        ("stylegan2", {"method": "multi-step"}, "method=multi-step is for Stable Diffusion"),
        ("stylegan2", {"data__resolution": 64}, "draws 32 pixels: set data.resolution=32"),
        ("vqgan", {"data__resolution": 64}, "cannot be resized to 64"),
        ("stylegan2", {"gradient_checkpointing": "true"}, "gradient_checkpointing is for Stable Diffusion"),
        ("stylegan2", {"base_config": "somewhere"}, "does not support base_config"),
        ("stylegan2", {"lora__targets": "[affin]"}, "no layer called affin; its layers are"),
        ("stylegan2", {"lora__targets": "['(affine']"}, "not a regular expression"),
    ],
)
def test_runs_that_are_refused(root, tmp_path, family, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(config(root, family, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "config.yaml").exists()  # the corrected command would reject it


def test_a_dry_run_refuses_what_the_run_would(root, tmp_path):
    data = without_conditions(root, tmp_path / "data")
    for settings, sentence in (
        (config(root, "stylegan2", tmp_path / "run", data__flip="true"), "data.flip=false"),
        (tiny_training.config(root / "other", root / "stylegan2-set", tmp_path / "run"), "generated with the weights"),
        (tiny_training.config(root / "stylegan2", data, tmp_path / "run"), "cannot encode them"),
    ):
        with pytest.raises(ValueError, match=sentence):
            estimate(settings)


def test_a_run_of_older_times_named_its_targets_and_goes_on(root, tmp_path):
    write_config(config(root, "stylegan2", tmp_path / "run", lora__targets="[affine]"))
    assert changes_of(with_targets(config(root, "stylegan2", tmp_path / "run"))) == []
    for base in (None, "someone/model"):
        assert with_targets(TrainConfig(out="", base=base)).lora.targets == ["to_q", "to_k", "to_v", "to_out.0"]


def test_conditions_of_another_generator_or_none(root, tmp_path):
    with pytest.raises(ValueError, match="generated with the weights"):
        train(tiny_training.config(root / "other", root / "stylegan2-set", tmp_path / "run"))
    data = without_conditions(root, tmp_path / "data")
    with pytest.raises(ValueError, match="cannot encode them: train it on a set that make-set made"):
        train(tiny_training.config(root / "stylegan2", data, tmp_path / "run2"))
    train(
        tiny_training.config(root / "vqgan", data, tmp_path / "run3", max_steps=1, data__flip="true")
    )  # it sees them
    write_condition(tmp_path / "x.safetensors", Condition(torch.zeros(3), "abc", {"seed": 1, "classes": [2]}))
    back = read_condition(tmp_path / "x.safetensors")
    assert (back.base, back.origin) == ("abc", {"seed": 1, "classes": [2]}) and torch.equal(back.value, torch.zeros(3))
    write_lora(
        tmp_path / "y.safetensors",
        {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (torch.ones(1, 2), torch.ones(2, 1), 1.0)},
        intrinsic="depth",
    )
    with pytest.raises(ValueError, match="not a condition written by make-set"):
        read_condition(tmp_path / "y.safetensors")


def test_loras_on_the_wrong_base(root, runs, tmp_path):
    lora = runs["stylegan2"] / "intrinsic_lora_depth.safetensors"
    for other in ("other", "stylegan3", "vqgan"):
        with pytest.raises(ValueError, match=r"was trained on the StyleGAN2 stylegan2 .* means nothing"):
            read_generator_lora(lora, load_backbone(root / other, []))
    with pytest.raises(ValueError, match=r"no module for .*made for a StyleGAN2"):
        read_lora(lora, tiny.components()["unet"])
    output = cli("convert", lora, tmp_path / "out.safetensors", status=1)
    assert "a LoRA for a StyleGAN2" in output and not (tmp_path / "out.safetensors").exists()
    assert "StyleGAN2" in cli("info", lora)
    unet = tiny.components()["unet"]
    tiny.write_loras(tmp_path, unet, ("depth",))
    with pytest.raises(ValueError, match="not an I-LoRA for a generator; use a Stable Diffusion base"):
        generator_loras(tmp_path, load_backbone(root / "stylegan2", []))


@pytest.mark.parametrize(
    ("family", "arguments", "sentence"),
    [
        ("stylegan2", ["photos"], "cannot encode pictures; generate some with --seeds"),
        ("stylegan2", [], "Specify either --seeds or pictures"),
        ("stylegan2", ["--seeds", "0", "--class", "1"], "is not class-conditional"),
        ("stylegan2", ["--seeds", "0", "--resolution", "64"], "has a fixed resolution of 32 pixels"),
        (
            "stylegan2",
            ["--seeds", "0", "--intrinsics", "albedo"],
            "No LoRA was found for albedo; loaded: depth, normals",
        ),
        ("stylegan2", ["--seeds", "0", "--base", "someone/sd15"], "Cannot be combined with --base"),
        ("stylegan2", ["--seeds", "x"], "nor a range such as 0-7"),
        ("stylegan3", ["--seeds", "0"], "draws classes 0 to 2"),
        ("vqgan", ["--seeds", "0", "--truncation", "0.5"], "does not support truncation"),
        ("vqgan", ["photos", "--truncation", "0.5"], "require --seeds"),
    ],
)
def test_extractions_that_are_refused(root, runs, tmp_path, family, arguments, sentence):
    given = [root / part if part == "photos" else part for part in arguments]
    command = ["extract", "--generator", root / family, "--loras", runs[family], "--out", tmp_path / "maps", *given]
    result = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})
    assert result.exit_code != 0 and sentence in " ".join(result.output.split()), result.output


def test_extract_without_a_generator_is_as_it_was(tmp_path):
    for arguments, sentence in (
        (["--seeds", "0"], "require a generator"),
        ([], "Name a picture or a folder of pictures"),
    ):
        result = CliRunner().invoke(app, ["extract", "--out", str(tmp_path / "maps"), *arguments])
        assert result.exit_code == 2 and sentence in " ".join(result.output.split())


# ---------------------------------------------------------------------- the interface


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not the description of a generator"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not the description of a generator"),
        (lambda folder: (folder / "config.json").write_text('{"_class_name": "StyleGAN2"}'), "do not match"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99), "is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors not found"),
    ],
)
def test_a_damaged_folder_is_one_sentence(root, tmp_path, damage, sentence):
    folder = shutil.copytree(root / "stylegan2", tmp_path / "damaged")
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as error:
        load_generator(StyleGAN2, folder)
    assert str(folder) in str(error.value)


def test_the_same_set_is_the_same_bytes(root, tmp_path):
    backbone = load_backbone(root / "stylegan2", [])
    for name in ("a", "b"):
        make_set(backbone, tmp_path / name, count=3, truncation=0.7)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) == 7
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    (tmp_path / "a" / "make_set.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"make_set\.json is damaged"):
        make_set(backbone, tmp_path / "a", count=3, truncation=0.7)


def test_the_family_is_read_from_the_folder(root, tmp_path):
    names = {family: backbone_class(root / family).__name__ for family in FAMILIES}
    assert names == {"stylegan2": "StyleGAN2Backbone", "stylegan3": "StyleGANXLBackbone", "vqgan": "VQGANBackbone"}
    for base in (None, "someone/model", tmp_path):
        assert backbone_class(base).__name__ == "StableDiffusion"
    for text in ("[", "[" * 100_000, "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="not the description of a model"):
            backbone_class(tmp_path)
    with pytest.raises(ValueError, match="base is not set"):
        load_config("stylegan2", None, ["out=run", "data.path=data"])


def test_targets_are_ends_of_names_or_regular_expressions():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder, self.to_q = (nn.ModuleDict({"to_q": nn.Linear(3, 3)}) for _ in range(3))
            self.decoder["auto_q"] = nn.Linear(3, 3)

    for targets, layers in (
        (["to_q"], {"encoder.to_q", "decoder.to_q", "to_q.to_q"}),
        ([r"decoder\..*to_q"], {"decoder.to_q", "decoder.auto_q"}),
        ([r"decoder\.to_q", "auto_q"], {"decoder.to_q", "decoder.auto_q"}),
    ):
        adapted = Adapted(Net())
        adapted.add_lora("a", 2, 2, targets, seed=0)
        adapted.add_lora("b", 2, 2, targets, seed=0)
        assert set(adapted.lora_weights("a")) == set(adapted.lora_weights("b")) == layers


def test_stable_diffusion_samples_as_diffusers_does(tmp_path):
    base = tiny_training.write_base(tmp_path / "base")
    backbone = load_backbone(base, [], prompts=["a room"])
    parts = tiny.components()
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config)
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    for prompt, guidance in (("", 1.0), ("a room", 7.5)):
        ours = backbone.sample([5, 6], prompt=prompt, steps=4)
        theirs = pipe(
            [prompt] * 2, num_inference_steps=4, guidance_scale=guidance, latents=noise, output_type="latent"
        )
        torch.testing.assert_close(ours, theirs.images, atol=2e-3, rtol=1e-3)
    assert make_set(backbone, tmp_path / "set", count=1, prompt="").written == 1
    label_photos(tmp_path / "set" / "photos", tmp_path / "set", TEACHER)
    source = open_source("folder", tmp_path / "set", BOTH)
    side = backbone.resolution
    trained = load_backbone(base, BOTH)
    cache = cache_latents(source, trained, trained.encode_target, tmp_path / "cache", side, BOTH)
    torch.testing.assert_close(cache.batch([0])["image"], backbone.sample([0]))
    assert build_method(tiny_training.config(base, tmp_path / "set", tmp_path / "run"), backbone).timestep == 999
