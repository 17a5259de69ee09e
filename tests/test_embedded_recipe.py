"""Every stage of the embedded model's recipe, run end to end with a handful of pictures and steps."""

import json
import shutil

import pytest
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics import INTRINSICS, read_lora, write_lora
from intrinsic_lora.train.backbones.stable_diffusion import EMBEDDED_NAME, StableDiffusion
from intrinsic_lora.train.config import load_config
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.embedded import data, loras, package, report, unet, vae
from intrinsic_lora.train.embedded.common import learning_rate
from safetensors.torch import load_file

TINY = ["data.limit=2", "data.val_count=2", "batch_size=2", "lora.rank=2", "log=files"]


def few_labelled(split: str, count: int) -> dict[str, torch.Tensor]:
    """Two validation scenes: to render and score the 64 takes longer than all the rest of this file."""
    return data.labelled(split, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The stages up to the report, once for this file."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    data.main(folder, count=12, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "labelled", few_labelled)
        vae.main(folder, steps=2, batch=2)
    unet.main(folder, steps=2, batch=2)
    loras.main(folder, TINY, seeds="0", steps=2, workers=1)
    loras.main(folder, TINY, "normals", seeds="0", control=True, steps=2, workers=1)
    report.main(folder, count=2)
    return folder


def test_the_recipe_ends_in_a_model_the_pipeline_loads(run, tmp_path):
    out = tmp_path / "model"
    package.main(run, out)
    pipe = IntrinsicLoRAPipeline.from_pretrained(out)
    assert pipe.intrinsics == tuple(INTRINSICS)
    assert pipe.config.default_processing_resolution == data.SIZE
    maps = pipe(torch.rand(1, 3, 40, 56))
    assert maps.normals.shape == (1, 3, 40, 56) and torch.isfinite(maps.depth).all()
    assert all(t.dtype == torch.float16 for t in load_file(out / "unet/diffusion_pytorch_model.safetensors").values())
    assert not [path for path in out.rglob("*") if path.is_file() and str(run.parent).encode() in path.read_bytes()]
    lora = read_lora(out / "loras/intrinsic_lora_normals.safetensors", pipe.unet)
    assert lora.header.timestep == 50
    assert lora.header.base_model == EMBEDDED_NAME
    trained = read_lora(run / "loras/transformer/seed0/normals/intrinsic_lora_normals.safetensors")
    for module, (a, b, alpha) in trained.weights.items():
        packed = lora.weights[module]
        assert torch.equal(packed[0], a.half()) and torch.equal(packed[1], b.half())
        assert packed[2] == alpha == 2
    card = (out / "README.md").read_text()
    assert "12 rendered scenes" in card and "LoRA, control (1)" in card and "2 (normals)" in card


def test_labels_are_never_part_of_what_the_base_sees(run):
    assert sorted(p.name for p in run.glob("*.npy")) == ["rgb.npy"]
    assert len(json.loads((run / "captions.json").read_text())) == 12


def test_training_resumes_where_it_stopped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(vae, "labelled", few_labelled)
    for name in ("rgb.npy", "vae.ckpt"):
        shutil.copyfile(run / name, tmp_path / name)

    def weights() -> torch.Tensor:
        return torch.load(tmp_path / "vae.ckpt", weights_only=True)["model"]["decoder.conv_out.bias"]

    before = weights()
    vae.main(tmp_path, steps=2, batch=2)  # nothing left to do
    assert torch.equal(weights(), before)
    vae.main(tmp_path, steps=3, batch=2)
    assert torch.load(tmp_path / "vae.ckpt", weights_only=True)["step"] == 3
    assert not torch.equal(weights(), before)


def test_the_text_model_can_tell_every_caption_and_prompt_apart(run):
    captions = json.loads((run / "captions.json").read_text())
    tokenizer = unet.build_tokenizer(sorted(set(captions)))
    texts = sorted({*captions, *(i.prompt for i in INTRINSICS.values()), ""})
    tokens = unet.tokenize(tokenizer, texts)
    assert tokens.shape == (len(texts), unet.TOKENS)
    assert len({tuple(row.tolist()) for row in tokens}) == len(texts)
    assert all(
        tokenizer.decode(row, skip_special_tokens=True) == text for row, text in zip(tokens, texts, strict=True)
    )
    assert (unet.tokenize(tokenizer, ["ümlaut €"]) < len(tokenizer)).all()


def test_the_labels_are_the_first_scenes_of_the_train_split(run):
    """Scored on the validation split; exactly what `labelled` renders, which the report scores with."""
    for split in ("train", "val"):
        source = open_source("folder", run / "scenes" / f"{split}2", list(INTRINSICS.values()))
        truth = data.labelled(split, 2)
        assert len(source) == 2
        for i in range(2):
            torch.testing.assert_close(source[i].photo, truth["rgb"][i], rtol=0, atol=1e-6)
            for name in INTRINSICS:
                torch.testing.assert_close(source[i].labels[name], truth[name][i], rtol=0, atol=1e-6)


def test_each_lora_says_on_which_base_it_was_trained_and_how(run):
    everything = list(INTRINSICS.values())
    trained = StableDiffusion.load(run, everything)
    control = StableDiffusion.load(run / "control/seed0", everything)
    for variant, base in (("transformer", trained), ("control", control)):
        header = loras.training_of(loras.lora_files(run / "loras" / variant / "seed0")["normals"])
        assert header["base"] == base.fingerprint and header["steps"] == 2 and header["pictures"] == 2
        assert 0 < header["validation"]["mean_angle"] < 180
    weights = [dict(backbone.vae.named_parameters()) for backbone in (trained, control)]
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())
    weights = [dict(backbone.unet.named_parameters()) for backbone in (trained, control)]
    assert not torch.equal(*(unet["conv_in.weight"] for unet in weights))


def test_the_same_command_goes_on_with_a_run(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "loras/transformer/seed0/normals/intrinsic_lora_normals.safetensors"
    steps = file.parent / "metrics.jsonl"
    before = steps.read_text()
    moved = [f"data.path={run}/scenes/train2", f"data.val_path={run}/scenes/val2", f"base={run}"]
    moved += [f"data.cache={run}/latents"]
    config = load_config("embedded", file.parent / "config.yaml", [f"out={file.parent}", *moved])
    assert config.max_steps == 2
    loras.train_one(config)  # finished: nothing is trained
    assert steps.read_text() == before
    config.max_steps = 3
    line = loras.train_one(config)
    assert loras.training_of(file)["steps"] == 3 and steps.read_text().startswith(before[: before.index("\n")])
    shown = loras.training_of(file)["validation"]["mean_angle"]
    assert line.startswith(f"{file.parent}: mean_angle {shown:.3f}")


def test_without_options_it_makes_what_is_shipped(tmp_path):
    configs = loras.configs_of(tmp_path)
    assert len(configs) == 3 * 4 and len({config.out for config in configs}) == 12
    for config in configs:
        (name,) = config.intrinsics
        assert config.out == str(tmp_path / f"loras/transformer/seed{config.seed}/{name}")
        assert config.max_steps == config.validate_every == (600 if name == "normals" else 450)
        assert config.base == str(tmp_path) and (config.data.limit, config.data.val_count) == (250, 100)
        # All else is the preset's.
        same = load_config("embedded", overrides=[f"intrinsics=[{name}]", f"seed={config.seed}"])
        for key in ("base", "out", "max_steps", "validate_every", "data"):
            setattr(same, key, getattr(config, key))
        assert config == same


def test_variants_have_their_own_folders_layers_and_bases(tmp_path):
    (config,) = loras.configs_of(tmp_path, "depth", "5", targets="attention", steps=7)
    assert config.lora.targets == ["to_q", "to_k", "to_v", "to_out.0"] and config.max_steps == 7
    assert config.out == str(tmp_path / "loras/attention/seed5/depth")
    (config,) = loras.configs_of(tmp_path, "depth", "5", control=True)
    assert (config.base, config.out) == (str(tmp_path / "control/seed5"), str(tmp_path / "loras/control/seed5/depth"))
    (config,) = loras.configs_of(tmp_path, "depth", "5", variant="few", overrides=["data.limit=10", "lora.rank=4"])
    assert config.lora.rank == 4 and config.data.path.endswith("scenes/train10")
    assert config.out == str(tmp_path / "loras/few/seed5/depth")
    with pytest.raises(ValueError, match=r"did you mean lora.rank\?"):
        loras.configs_of(tmp_path, overrides=["lora.rankk=4"])


def test_a_seed_is_a_run_or_a_folder_of_runs_and_the_best_has_the_best_normals(run, tmp_path):
    lora = read_lora(run / "loras/transformer/seed0/normals/intrinsic_lora_normals.safetensors")

    def write(folder, intrinsic, angle):
        folder.mkdir(parents=True)
        training = {"validation": {"mean_angle": angle}}
        write_lora(
            folder / f"intrinsic_lora_{intrinsic}.safetensors", dict(lora), intrinsic=intrinsic, training=training
        )

    write(tmp_path / "seed0", "normals", 20.0)
    write(tmp_path / "seed0/best", "normals", 1.0)  # of the same run: by validation, which is what is compared
    write(tmp_path / "seed1/n1", "normals", 10.0)
    write(tmp_path / "seed1/n1/best", "normals", 30.0)
    write(tmp_path / "seed1/rest", "depth", 0.0)
    (tmp_path / "seed2/normals/checkpoints").mkdir(parents=True)  # not finished
    write(tmp_path / "seed3/rest", "shading", 0.0)
    assert [path.name for path in report.seeds_of(tmp_path)] == ["seed0", "seed1", "seed3"]
    assert report.best_seed(tmp_path).name == "seed1"
    files = loras.lora_files(tmp_path / "seed1")
    assert {name: path.parent.name for name, path in files.items()} == {"normals": "n1", "depth": "rest"}
    with pytest.raises(ValueError, match="no finished LoRA of normals"):
        report.best_seed(tmp_path / "seed3")


def test_the_learning_rate_rises_holds_and_ends_at_zero():
    rates = [learning_rate(step, 1000, 1.0, warmup=100) for step in range(1001)]
    assert rates[0] == 0.01 and rates[99] == rates[700] == 1.0 and rates[1000] == 0.0
    assert rates[875] == pytest.approx(0.5)
