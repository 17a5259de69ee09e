"""import-generator on files laid out as the official ones. Hostile files: test_import_hostile.py."""

import json
import pathlib
import pickle
from collections import OrderedDict
from pathlib import Path

import dill
import numpy as np
import pytest
import torch
from diffusers import VQModel
from intrinsic_lora.cli.main import app
from intrinsic_lora.tests.support.closeness import assert_rounded
from intrinsic_lora.tests.support.official_stylegan import (
    Persistent,
    official_stylegan2,
    official_stylegan3,
    stub_modules,
)
from intrinsic_lora.train.backbones import load_backbone
from intrinsic_lora.train.generators.folders import load_generator
from intrinsic_lora.train.generators.importer import import_generator
from intrinsic_lora.train.generators.stylegan2 import StyleGAN2
from intrinsic_lora.train.generators.stylegan3 import StyleGAN3
from intrinsic_lora.train.generators.stylegan3_layout import stylegan3_config
from intrinsic_lora.train.generators.unpickle import read_untrusted
from intrinsic_lora.train.generators.unpickle_values import Array, find_inert
from torch import nn
from typer.testing import CliRunner

SMALL = {"channel_base": 256, "channel_max": 12, "w_dim": 20}


@pytest.fixture(autouse=True)
def official_names(monkeypatch):
    torch.manual_seed(0)
    stub_modules(monkeypatch)


# ---------------------------------------------------------------------- official shapes


def dumped(path: Path, generator, dumps=pickle.dumps, **kwargs) -> Path:
    content = {"G": None, "D": None, "G_ema": generator, "training_set_kwargs": {"path": "ffhq.zip", "max_size": None}}
    path.write_bytes(dumps(content, **kwargs))
    return path


def same_pictures(generator, imported, classes: int = 0) -> None:
    z = torch.randn(2, generator.z_dim)
    label = torch.eye(classes)[[1, classes - 1]] if classes else None
    with torch.no_grad():
        expected = generator.double()(z.double(), None if label is None else label.double(), 0.7)
        got = imported.synthesis(imported.mapping(z, label, 0.7))
    assert_rounded(got, expected)


@pytest.mark.parametrize(
    ("resolution", "classes", "clamp", "protocol"), [(256, 0, 256.0, 3), (32, 5, None, 4), (64, 0, 20.0, 5)]
)
def test_stylegan2_draws_what_its_formulas_say(tmp_path, resolution, classes, clamp, protocol):
    generator = official_stylegan2(resolution, classes, clamp)
    file = dumped(tmp_path / "g.pkl", generator, protocol=protocol)
    summary = import_generator(file, tmp_path / "out")
    assert summary.startswith(f"StyleGAN2, {resolution} x {resolution} pixels, {classes or 'no'} classes")
    same_pictures(generator, load_generator(StyleGAN2, tmp_path / "out"), classes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["source"] == "g.pkl" and config["_class_name"] == "StyleGAN2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.pkl", "out"]


def test_stylegan2_gains_are_folded_into_plain_linear_layers(tmp_path):
    generator = official_stylegan2(32)
    import_generator(dumped(tmp_path / "g.pkl", generator), tmp_path / "out")
    imported = load_generator(StyleGAN2, tmp_path / "out")
    affine, there = imported.blocks["16"].conv0.affine, generator.synthesis.b16.conv0.affine
    assert type(affine) is nn.Linear
    torch.testing.assert_close(affine.weight, there.weight / 24**0.5)
    torch.testing.assert_close(affine.bias, there.bias)
    fc, there = imported.mapping_network.get_submodule("fc1"), generator.mapping.fc1
    torch.testing.assert_close(fc.weight, there.weight * 0.01 / 24**0.5)
    torch.testing.assert_close(fc.bias, there.bias * 0.01)


@pytest.mark.parametrize("kind", ["T", "R"])
def test_stylegan3_draws_what_its_formulas_say(tmp_path, kind):
    generator = official_stylegan3(stylegan3_config(kind, 32, z_dim=10, num_layers=6, **SMALL))
    import_generator(dumped(tmp_path / "g.pkl", generator), tmp_path / "out")
    same_pictures(generator, load_generator(StyleGAN3, tmp_path / "out"))


def negate_style(layer):
    layer.affine.weight.neg_()


def drop_a_gain(layer):
    layer.bias.mul_(0.99)


def swap_channels(layer):
    layer.weight.copy_(layer.weight.transpose(0, 1).clone())


@pytest.mark.parametrize("mistake", [negate_style, drop_a_gain, swap_channels])
def test_a_mistake_in_one_layer_is_no_rounding(tmp_path, mistake):
    """The comparison above detects an importer's mistake, here in the third layer of five."""
    generator = official_stylegan3(stylegan3_config("T", 16, z_dim=10, num_layers=5, **SMALL))
    import_generator(dumped(tmp_path / "g.pkl", generator), tmp_path / "out")
    imported = load_generator(StyleGAN3, tmp_path / "out")
    with torch.no_grad():
        mistake(list(imported.layers.values())[2])
    with pytest.raises(AssertionError, match="not close"):
        same_pictures(generator, imported)


@pytest.mark.parametrize("classes", [0, 6])
def test_stylegan_xl_as_dill_writes_it(tmp_path, classes):
    """dill pickles arrays and types differently; without classes, the table of classes is unused."""
    config = stylegan3_config("XL", 32, label_dim=classes, class_embedding=9, num_layers=5, head_layers=4, **SMALL)
    generator = official_stylegan3(config, unused_table=True)
    file = dumped(tmp_path / "g.pkl", generator, dill.dumps)
    assert b"_create_array" in file.read_bytes() and b"Embedding" in file.read_bytes()
    summary = import_generator(file, tmp_path / "out")
    assert summary.startswith(f"StyleGAN-XL, 32 x 32 pixels, {classes or 'no'} classes")
    same_pictures(generator, load_generator(StyleGAN3, tmp_path / "out"), classes)
    backbone = load_backbone(tmp_path / "out", [])
    assert backbone.family == "StyleGAN-XL" and backbone.sample([0]).shape[0] == 1  # of a class that the seed draws


def test_unknown_objects_beside_the_generator_do_not_matter(tmp_path):
    generator = official_stylegan2(8)
    content = {"G_ema": generator, "D": pathlib.PurePosixPath("a"), "augment_pipe": {(1, (2,)): OrderedDict(a=len)}}
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(content))
    import_generator(tmp_path / "g.pkl", tmp_path / "out")
    same_pictures(generator, load_generator(StyleGAN2, tmp_path / "out"))


def change_resnet(generator):
    generator.synthesis.b8.architecture = "resnet"


def change_skip(generator):
    class Conv2dLayer(Persistent):
        pass

    generator.synthesis.b8.skip = Conv2dLayer()


def change_orig(generator):
    del generator.synthesis.b4.torgb


def change_noise(generator):
    del generator.synthesis.b8.conv1.noise_const


def change_filter(generator):
    generator.synthesis.b8.resample_filter.mul_(2)


def change_extra(generator):
    generator.synthesis.b8.conv1.more = nn.Parameter(torch.zeros(2))


def change_missing(generator):
    del generator.synthesis.b8.conv1.bias


def change_shape(generator):
    generator.mapping.fc1.weight = nn.Parameter(torch.zeros(3, 3))


def change_activation(generator):
    generator.mapping.fc1.activation = "relu"


def change_hook(generator):
    generator.mapping.register_forward_hook(print)


def change_clamp(generator):
    generator.synthesis.b8.torgb.conv_clamp = None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_resnet, "resnet architecture; only skip"),
        (change_skip, "resnet architecture; only skip"),
        (change_orig, "architecture; only skip"),
        (change_noise, "no noise inputs"),
        (change_filter, r"another filter than \[1, 3, 3, 1\]"),
        (change_extra, "blocks.8.conv1.more is unknown"),
        (change_missing, "blocks.8.conv1.bias is missing"),
        (change_shape, r"mapping_network.fc1.weight has the shape \(3, 3\), not \(24, 24\)"),
        (change_activation, "mapping.fc1 has another activation than 'lrelu'"),
        (change_hook, "print|hooks"),
        (change_clamp, "clamped differently"),
    ],
)
def test_other_networks_are_refused_with_a_sentence(tmp_path, change, sentence):
    generator = official_stylegan2(8)
    change(generator)
    file = dumped(tmp_path / "g.pkl", generator)
    with pytest.raises(ValueError, match=sentence):
        import_generator(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- VQGAN


def small_vqgan() -> VQModel:
    model = VQModel(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        latent_channels=6,
        num_vq_embeddings=11,
        vq_embed_dim=4,
    )
    for parameter in model.parameters():  # norms and biases too, so that none can be mistaken for another
        nn.init.normal_(parameter, std=0.2)
    return model


def taming_state(model: VQModel) -> dict[str, torch.Tensor]:
    """Rename the weights to taming's names, module by module, without using the package's key map."""
    state = {f"quantize.embedding.{k}": v for k, v in model.quantize.embedding.state_dict().items()}

    def add(name: str, module: nn.Module) -> None:
        state.update({f"{name}.{key}": value for key, value in module.state_dict().items()})

    def resnet(name: str, block) -> None:
        for part in ("norm1", "conv1", "norm2", "conv2"):
            add(f"{name}.{part}", getattr(block, part))
        if block.conv_shortcut is not None:
            add(f"{name}.nin_shortcut", block.conv_shortcut)

    def attention(name: str, block) -> None:
        add(f"{name}.norm", block.group_norm)
        parts = {"q": block.to_q, "k": block.to_k, "v": block.to_v, "proj_out": block.to_out[0]}
        for part, linear in parts.items():
            state[f"{name}.{part}.weight"] = linear.weight.detach()[:, :, None, None]
            state[f"{name}.{part}.bias"] = linear.bias.detach()

    for name in ("quant_conv", "post_quant_conv"):
        add(name, getattr(model, name))
    for side, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        add(f"{side}.conv_in", network.conv_in)
        resnet(f"{side}.mid.block_1", network.mid_block.resnets[0])
        attention(f"{side}.mid.attn_1", network.mid_block.attentions[0])
        resnet(f"{side}.mid.block_2", network.mid_block.resnets[1])
        add(f"{side}.norm_out", network.conv_norm_out)
        add(f"{side}.conv_out", network.conv_out)
        levels = network.down_blocks if side == "encoder" else list(network.up_blocks)[::-1]
        where, resample = ("down", "downsample") if side == "encoder" else ("up", "upsample")
        for i, level in enumerate(levels):
            for j, block in enumerate(level.resnets):
                resnet(f"{side}.{where}.{i}.block.{j}", block)
            for j, block in enumerate(getattr(level, "attentions", ())):
                attention(f"{side}.{where}.{i}.attn.{j}", block)
            for sampler in getattr(level, f"{resample}rs") or ():
                add(f"{side}.{where}.{i}.{resample}.conv", sampler.conv)
    return state


class ModelCheckpoint:
    """Replace Lightning's class, which is a key in checkpoints of that time."""


def lightning(state, prefix: str = "") -> dict:
    losses = {f"{prefix}loss.discriminator.main.0.weight": torch.zeros(3), f"{prefix}loss.logvar": torch.zeros(())}
    return {
        "epoch": 3,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "path": pathlib.PurePosixPath("a")}},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(4)}}}],
        "state_dict": OrderedDict({f"{prefix}{k}": v for k, v in state.items()} | losses),
    }


def as_saved(state):
    return state


def as_checkpoint(state):
    return lightning(state)


def as_first_stage(state):
    content = lightning(state, "first_stage_model.")
    content["state_dict"]["transformer.tok_emb.weight"] = torch.zeros(5, 3)
    return content


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", [as_saved, as_checkpoint, as_first_stage])
def test_vqgan_is_the_model_it_came_from(tmp_path, zipped, form):
    model = small_vqgan().eval()
    torch.save(form(taming_state(model)), tmp_path / "v.ckpt", _use_new_zipfile_serialization=zipped)
    summary = import_generator(tmp_path / "v.ckpt", tmp_path / "out")
    assert summary.startswith("VQGAN, 64 x 64 pixels, 11 codes")
    imported = VQModel.from_pretrained(tmp_path / "out")
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = model.encode(pictures).latents
        torch.testing.assert_close(imported.encode(pictures).latents, latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(imported.decode(latents).sample, model.decode(latents).sample, rtol=1e-5, atol=1e-5)
    theirs = imported.state_dict()
    assert theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_a_moving_average_beside_the_weights_is_preferred(tmp_path, whole):
    """LitEma keeps buffers named after the parameters, without their dots, and two numbers."""
    trained, average = small_vqgan(), small_vqgan()
    kept = {f"model_ema.{key.replace('.', '')}": value for key, value in taming_state(average).items()}
    kept |= {"model_ema.lossdiscriminatormain0weight": torch.zeros(3)}
    kept |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5, dtype=torch.int)}
    if not whole:
        del kept["model_ema.decoderconv_outbias"]
    torch.save(lightning(taming_state(trained) | kept), tmp_path / "v.ckpt")
    summary = import_generator(tmp_path / "v.ckpt", tmp_path / "out")
    assert ("moving average (EMA) of the weights." if whole else "without their moving average") in summary
    imported = VQModel.from_pretrained(tmp_path / "out").state_dict()
    expected = (average if whole else trained).state_dict()
    assert all(torch.equal(value, imported[key]) for key, value in expected.items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.update({"quantize.embed.weight": torch.zeros(2)}), "Gumbel"),
        (lambda state: state.update({"colorize": torch.zeros(2)}), "colorize is unknown"),
        (lambda state: state.pop("decoder.mid.attn_1.q.bias"), "decoder.mid_block.attentions.0.to_q.bias is missing"),
        (lambda state: state.pop("encoder.conv_in.weight"), "encoder.conv_in.weight' is missing"),
        (lambda state: [state.pop(k) for k in list(state) if k.startswith("encoder.")], "neither"),
        (lambda state: state.update({"encoder.conv_in.bias": "text"}), "encoder.conv_in.bias is not a tensor"),
    ],
)
def test_other_checkpoints_are_refused_with_a_sentence(tmp_path, change, sentence):
    state = taming_state(small_vqgan())
    change(state)
    torch.save({"state_dict": state}, tmp_path / "v.ckpt")
    with pytest.raises(ValueError, match=sentence):
        import_generator(tmp_path / "v.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- the reader against torch and numpy


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_are_those_that_torch_reads(tmp_path, zipped):
    shared = torch.randn(40)
    tensors = {
        "view": shared[3:27].view(4, 6).t(),
        "step": shared[::3],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(3)),
        "half": torch.randn(3).half(),
        "double": torch.randn(3).double(),
        "int": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(3, 0),
    }
    torch.save(tensors, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(tensors))
    reference = torch.load(tmp_path / "t.pt", weights_only=True)
    for name in ("t.pt", "t.pkl"):
        got = read_untrusted(tmp_path / name)
        assert got.keys() == reference.keys()
        for key, value in reference.items():
            assert isinstance(got[key], Array)
            assert torch.equal(torch.from_numpy(got[key].value.copy()), value.detach()), key


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_and_plain_values(tmp_path, protocol):
    values = {
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.float64(1.5),
        "int": np.int64(-3),
        "set": {1, "a"},
        "plain": [None, True, -(2**40), 2.5, b"b", "\u00e9", (1,), {"k": ()}],
    }
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(values, protocol=protocol))
    got = read_untrusted(tmp_path / "n.pkl")
    np.testing.assert_array_equal(got.pop("array").value, values.pop("array"))
    np.testing.assert_array_equal(got.pop("fortran").value, values.pop("fortran"))
    assert got == values
    assert find_inert(got) is None


def test_command(tmp_path):
    file = dumped(tmp_path / "g.pkl", official_stylegan2(8))
    done = CliRunner().invoke(app, ["import-generator", str(file), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "StyleGAN2, 8 x 8 pixels" in done.output
    again = CliRunner().invoke(app, ["import-generator", str(file), str(tmp_path / "out")], env={"COLUMNS": "400"})
    assert again.exit_code == 2 and "already exists" in again.output
