"""Every stage of the embedded model's recipe, run end to end with a handful of pictures and steps."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.diffusers_pipeline import multi_step as multi_step_pipeline
from intrinsic_lora.diffusers_pipeline.aug_unet import sample
from intrinsic_lora.intrinsics import INTRINSICS, read_lora, write_lora
from intrinsic_lora.train.backbones.stable_diffusion import EMBEDDED_NAME, StableDiffusion
from intrinsic_lora.train.config import load_config
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.methods import multi_step as multi_step_training
from intrinsic_lora.train.recipes.embedded import all as every_stage
from intrinsic_lora.train.recipes.embedded import (
    captions,
    choose,
    common,
    data,
    latents,
    loras,
    package,
    report,
    unet,
    vae,
)
from intrinsic_lora.train.recipes.embedded.common import learning_rate
from intrinsic_lora.train.recipes.embedded.recipes import RECIPES, choose_recipe
from intrinsic_lora.train.scenes.parts import KINDS
from intrinsic_lora.train.scenes.render import render, scene_caption
from intrinsic_lora.train.scenes.worlds import scene_of
from safetensors.torch import load_file

TINY = ["data.limit=2", "data.val_count=2", "batch_size=4", "lora.rank=2", "log=files"]
SMALL = replace(
    RECIPES["128"],
    scenes={"plain": 8, "rich": 4},
    vae_steps=2,
    vae_batch=4,
    decoder_steps=1,
    unet_steps=2,
)


def few_labelled(split: str, count: int, size: int, worlds: Sequence[str] = ("plain",)) -> dict[str, torch.Tensor]:
    """Two scenes: rendering and scoring all of them takes longer than the rest of this file."""
    return data.labelled(split, 2, size, worlds)


def few_solver_steps(scheduler, noise, velocities, steps, *options, **more):
    return sample(scheduler, noise, velocities, 2, *options, **more)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Run the recipe's networks with few pictures and steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "128", SMALL)
        patch.setattr(data, "CHUNK", 3)
        patch.setattr(vae, "labelled", few_labelled)
        patch.setattr(report, "labelled", few_labelled)
        patch.setattr(unet, "VALIDATION_SCENES", 2)
        patch.setattr(unet, "sample_sheet", partial(unet.sample_sheet, steps=2))
        for module in (multi_step_training, multi_step_pipeline):
            patch.setattr(module, "sample", few_solver_steps)
        patch.setattr(
            choose, "AXES", {"trained": {"timestep": (50, 999)}, "control": {"optimizer.lr": (0.0625, 1e-5)}}
        )
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the stages up to the report, once for this file."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    stages = every_stage.stages(folder, "128", workers=1)
    assert list(stages)[:4] == ["data", "vae", "unet", "decoder"]
    for name in ("data", "vae"):
        stages[name]()
    shutil.copytree(folder / "vae", folder / "vae_before")  # the decoder is trained alone
    unet.main(folder, batch=4)
    stages["decoder"]()
    captions.main(folder, steps=2, batch=4, count=2)
    loras.main(folder, TINY, seeds="0", steps=2, workers=1)
    loras.main(folder, TINY, "normals", seeds="0", control=True, steps=2, workers=1)
    loras.main(folder, TINY, "normals", seeds="0", multi_step=True, steps=2, workers=1)
    report.main(folder, count=2)
    return folder


def test_the_recipe_ends_in_a_model_the_pipeline_loads(run, tmp_path):
    out = tmp_path / "model"
    package.main(run, out)
    pipe = IntrinsicLoRAPipeline.from_pretrained(out)
    assert pipe.intrinsics == tuple(INTRINSICS)
    assert pipe.config.default_processing_resolution == 128
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
    assert "The plain world:" in card and "The rich world:" in card and "LoRA, multi-step (1)" in card


def test_labels_are_never_part_of_what_the_base_sees(run):
    assert sorted(p.name for p in run.glob("*.npy")) == ["latents.npy", "rgb.npy"]
    assert len(json.loads((run / "captions.json").read_text())) == 12


def test_training_resumes_where_it_stopped(run, tmp_path):
    for name in ("rgb.npy", "vae.ckpt", "captions.json", "recipe.json"):
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
    decoded = [tokenizer.decode(row, skip_special_tokens=True).replace(" ,", ",") for row in tokens]  # as CLIP's own
    assert decoded == texts
    assert (unet.tokenize(tokenizer, ["ümlaut €"]) < len(tokenizer)).all()


def test_the_labels_are_the_first_scenes_of_the_train_split(run):
    """The scenes alternate between the worlds and equal those that `labelled` renders."""
    for split in ("train", "val"):
        source = open_source("folder", run / "scenes" / f"{split}2", list(INTRINSICS.values()))
        truth = data.labelled(split, 2, 128, ("plain", "rich"))
        assert len(source) == 2
        for i in range(2):
            torch.testing.assert_close(source[i].photo, truth["rgb"][i], rtol=0, atol=1e-6)
            for name in INTRINSICS:
                label = source[i].labels[name].expand_as(truth[name][i])  # what is grey is read as one channel
                torch.testing.assert_close(label, truth[name][i], rtol=0, atol=1e-6)


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
    choose_recipe(tmp_path, "64")
    configs = loras.configs_of(tmp_path)
    assert len(configs) == 3 * 4 and len({config.out for config in configs}) == 12
    for config in configs:
        (name,) = config.intrinsics
        assert config.out == str(tmp_path / f"loras/transformer/seed{config.seed}/{name}")
        assert config.max_steps == config.validate_every == (600 if name == "normals" else 450)
        assert config.base == str(tmp_path) and (config.data.limit, config.data.val_count) == (250, 100)
        # All else is the preset's.
        same = load_config("embedded", overrides=[f"intrinsics=[{name}]", f"seed={config.seed}"])
        assert config.data.resolution == same.data.resolution
        for key in ("base", "out", "max_steps", "validate_every", "data"):
            setattr(same, key, getattr(config, key))
        assert config == same


def test_variants_have_their_own_folders_layers_and_bases(tmp_path):
    choose_recipe(tmp_path, "128")
    (config,) = loras.configs_of(tmp_path, "depth", "5", targets="attention", steps=7)
    assert config.lora.targets == ["to_q", "to_k", "to_v", "to_out.0"] and config.max_steps == 7
    assert config.out == str(tmp_path / "loras/attention/seed5/depth")
    (config,) = loras.configs_of(tmp_path, "depth", "5", control=True)
    assert (config.base, config.out) == (str(tmp_path / "control/seed5"), str(tmp_path / "loras/control/seed5/depth"))
    (config,) = loras.configs_of(tmp_path, "depth", "5", variant="few", overrides=["data.limit=10", "lora.rank=4"])
    assert config.lora.rank == 4 and config.data.path.endswith("scenes/train10")
    assert config.out == str(tmp_path / "loras/few/seed5/depth")
    (config,) = loras.configs_of(tmp_path, "depth", "5", multi_step=True)
    assert config.method == "multi-step" and config.lora.targets[-1] == "conv_in" and config.data.resolution == 128
    assert config.out == str(tmp_path / "loras/multi-step/seed5/depth")
    with pytest.raises(ValueError, match=r"did you mean lora.rank\?"):
        loras.configs_of(tmp_path, overrides=["lora.rankk=4"])


def test_a_seed_is_a_run_or_a_folder_of_runs_and_the_best_has_the_best_normals(run, tmp_path):
    lora = read_lora(run / "loras/transformer/seed0/normals/intrinsic_lora_normals.safetensors")

    def write(folder, intrinsic, angle):
        folder.mkdir(parents=True)
        training = {"validation": {"mean_angle": angle}}
        write_lora(
            folder / f"intrinsic_lora_{intrinsic}.safetensors", lora.weights, intrinsic=intrinsic, training=training
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
    with pytest.raises(ValueError, match="no finished LoRA for normals"):
        report.best_seed(tmp_path / "seed3")


def test_processes_answer_in_order_and_one_worker_is_this_process():
    questions = [f"({n}, __import__('os').getpid())" for n in range(3)]
    order, processes = zip(*common.process_map(eval, questions, workers=2), strict=True)
    assert order == (0, 1, 2) and os.getpid() not in processes
    assert {process for _, process in common.process_map(eval, questions, workers=1)} == {os.getpid()}


def test_the_learning_rate_rises_holds_and_ends_at_zero():
    rates = [learning_rate(step, 1000, 1.0, warmup=100) for step in range(1001)]
    assert rates[0] == 0.01 and rates[99] == rates[700] == 1.0 and rates[1000] == 0.0
    assert rates[875] == pytest.approx(0.5)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_the_recipe_of_64_px_is_of_the_shipped_networks(part):
    folder = package.Path(common.__file__).parents[3] / "assets" / "embedded" / part
    shipped = load_file(folder / "diffusion_pytorch_model.safetensors")
    network = {"vae": common.build_vae, "unet": common.build_unet}[part](RECIPES["64"])
    network.load_state_dict(shipped)  # every name and shape
    config = json.loads((folder / "config.json").read_text())
    ours = json.loads(network.to_json_string())
    later = {"_name_or_path", "scaling_factor", "_diffusers_version"}
    assert {k: v for k, v in ours.items() if k not in later} == {k: v for k, v in config.items() if k not in later}


def test_pictures_are_those_of_the_worlds_in_order_and_rendering_resumes(run, tmp_path):
    rgb, words = data.rendered(run)
    assert rgb.shape == (12, 128, 128, 3) and len(words) == 12
    for i, (world, index) in {0: ("plain", 0), 7: ("plain", 7), 8: ("rich", 0), 11: ("rich", 3)}.items():
        picture, caption = data.scene_rgb("train", index, 128, world)
        np.testing.assert_array_equal(rgb[i], picture)
        assert words[i] == caption
    # Stopped after two chunks: what came later is missing.
    shutil.copyfile(run / "recipe.json", tmp_path / "recipe.json")
    half = np.lib.format.open_memmap(tmp_path / "rgb.npy", "w+", np.uint8, rgb.shape)
    half[:6] = rgb[:6]
    half.flush()
    (tmp_path / "captions.json").write_text(json.dumps(words[:6]))
    assert len(data.rendered(tmp_path)[0]) == 6
    data.main(tmp_path, "128", workers=1)
    np.testing.assert_array_equal(data.rendered(tmp_path)[0], rgb)
    assert data.rendered(tmp_path)[1] == words


def test_a_run_keeps_to_its_recipe(run):
    with pytest.raises(ValueError, match=r"has the recipe 128; choose another folder\.$"):
        choose_recipe(run, "64")
    with pytest.raises(ValueError, match=r"^Recipe 96 not found; choose one of 64, 128\.$"):
        choose_recipe(run, "96")


def test_latents_are_of_the_picture_mirrored_and_in_other_colours(run, tmp_path):
    model = AutoencoderKL.from_pretrained(run / "vae")
    stored, (rgb, _) = latents.cached_latents(run), data.rendered(run)
    assert stored.shape == (12, latents.COPIES, 16, 16, 16)
    for i in (0, 9):
        picture = np.asarray(rgb[i])
        variants = [picture, picture[:, ::-1]]
        for copy, mirrored in ((2, picture), (3, picture[:, ::-1])):
            tries = [mirrored[..., order] for order in ([0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])]
            errors = [np.abs(encoded(model, x) - stored[i, copy]).max() for x in tries]
            variants.append(tries[int(np.argmin(errors))])
        for copy, variant in enumerate(variants):
            np.testing.assert_allclose(stored[i, copy], encoded(model, variant), atol=0.15, rtol=0.05)
    # Resumes where it was stopped: what is noted as done is not encoded again.
    for name in ("rgb.npy", "captions.json", "recipe.json", "latents.npy"):
        shutil.copyfile(run / name, tmp_path / name)
    shutil.copytree(run / "vae", tmp_path / "vae")
    marked = np.load(tmp_path / "latents.npy", mmap_mode="r+")
    marked[:5], marked[5:] = 7, 0
    marked.flush()
    (tmp_path / "latents.json").write_text("5")
    resumed = latents.cached_latents(tmp_path)
    assert (resumed[:5] == 7).all()
    np.testing.assert_allclose(resumed[5:], stored[5:], atol=0.15, rtol=0.05)


@torch.inference_mode()
def encoded(model: AutoencoderKL, picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> scaled latents (C, h, w), in float32 arithmetic; the cache's is bfloat16."""
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return (model.encode(x).latent_dist.mode()[0] * model.config.scaling_factor).numpy()


def test_the_decoder_alone_is_trained_afterwards(run):
    before, after = (load_file(run / name / "diffusion_pytorch_model.safetensors") for name in ("vae_before", "vae"))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder", "post_quant_conv"}
    configs = [json.loads((run / name / "config.json").read_text()) for name in ("vae_before", "vae")]
    assert configs[0]["scaling_factor"] == configs[1]["scaling_factor"]


def test_weights_of_the_way_there_are_kept(run):
    assert unet.snapshot_steps(16_000) == {250, 500, 1000, 2000, 4000, 8000, 16_000}
    first, last = (run / "snapshots" / f"{step:06d}" / "unet" for step in sorted(unet.snapshot_steps(2)))
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (first, last)]
    assert all(w.dtype == torch.float16 for w in weights[0].values())
    assert not torch.equal(weights[0]["conv_in.weight"], weights[1]["conv_in.weight"])
    final = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(final["conv_in.weight"].half(), weights[1]["conv_in.weight"])


def test_min_snr_weights_the_velocity():
    """Hang et al. 2023: min(SNR, limit) / (SNR + 1) for v-prediction; here of mean 1 over the timesteps."""
    scheduler = common.build_scheduler("v_prediction")
    weights = unet.min_snr(scheduler, torch.arange(1000), 5.0)
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - beta)
    expected = np.minimum(alpha / (1 - alpha), 5) * (1 - alpha)  # 1 / (SNR + 1) is 1 - alpha
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-3)


def test_counts_are_those_of_the_caption():
    for i in range(40):
        scene = scene_of(3, i, ("plain", "rich"))
        index = render(scene, 32)["object"]
        visible = [s.kind for n, s in enumerate(scene.solids) if (index == n).mean() > 0.004]
        assert captions.counts_of(scene_caption(scene, index)) == [visible.count(kind) for kind in KINDS]


def test_agreement_with_a_caption_is_counted_by_kind():
    def always_one_box(pictures):
        logits = torch.zeros(len(pictures), len(KINDS), 5)
        logits[..., 0], logits[:, KINDS.index("box")] = 1, torch.tensor([0.0, 1, 0, 0, 0])
        return logits

    told = ["a room with one box", "a room with two boxes", "a room with one sphere and one box", "an empty room"]
    shares = captions.accuracy(always_one_box, torch.rand(4, 3, 64, 64), told)
    assert shares == {"all": 0.25, "kinds": 0.5, "sphere": 0.75, "box": 0.5, "cylinder": 1, "cone": 1}


def test_caption_report(run):
    told = json.loads((run / "captions_report.json").read_text())
    assert set(told) == {"renders", "samples", "samples, another's caption"}
    assert all(0 <= share <= 1 for shares in told.values() for share in shares.values())


def test_settings_are_chosen_by_validation_and_used_from_then_on(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.npy", "snapshots", "*.ckpt"))
    choose.main(copy, TINY, steps=1)
    choice = json.loads((copy / "choice.json").read_text())
    steps, rates = (choice["scores"][key] for key in ("trained, timestep", "control, optimizer.lr"))
    best = {"timestep": int(min(steps, key=steps.get))}
    assert set(steps) == {"50", "999"} and choice["trained"] == best
    # The control has what is not searched for it from the base.
    assert len(rates) == 2 and choice["control"] == {**best, "optimizer.lr": float(min(rates, key=rates.get))}
    (config,) = loras.configs_of(copy, "depth", "0")
    assert config.timestep == choice["trained"]["timestep"]
    (config,) = loras.configs_of(copy, "depth", "0", control=True)
    assert config.optimizer.lr == choice["control"]["optimizer.lr"] and config.timestep == best["timestep"]


def test_the_report_has_every_world_and_variant(run):
    told = json.loads((run / "report_test.json").read_text())
    assert told["count"] == 2 and list(told["worlds"]) == ["plain", "rich"]
    rows = {"mean of the labels", "VAE ceiling", "LoRA, transformer", "LoRA, control", "LoRA, multi-step"}
    for report_of_world in told["worlds"].values():
        assert set(report_of_world) == rows
        assert 0 < report_of_world["LoRA, multi-step"][0]["normals"]["mean_angle"] < 180
    plain, rich = told["worlds"].values()
    assert plain["VAE ceiling"] != rich["VAE ceiling"]


@torch.inference_mode()
def test_a_new_autoencoder_passes_blurred_colours_on():
    torch.manual_seed(0)
    model = common.build_vae(RECIPES["128"])
    vae.pass_colours(model)
    pictures = data.labelled("val", 4, 128)["rgb"] * 2 - 1
    drawn = model.decode(model.encode(pictures).latent_dist.mode()).sample

    def chroma(x):
        coarse = torch.nn.functional.avg_pool2d(x, 16)
        return (coarse - coarse.mean(1, keepdim=True)).flatten()

    assert torch.corrcoef(torch.stack([chroma(drawn), chroma(pictures)]))[0, 1] > 0.7
