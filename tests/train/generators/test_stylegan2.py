"""StyleGAN-v2: every layer against its formula written a second way, in float64; LoRAs on the styles; the recipe."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from intrinsic_lora.intrinsics import INTRINSICS
from intrinsic_lora.tests.support.closeness import assert_rounded
from intrinsic_lora.train.backbones import load_backbone
from intrinsic_lora.train.backbones.stylegan2 import StyleGAN2Backbone
from intrinsic_lora.train.generators.folders import load_generator, save_generator
from intrinsic_lora.train.generators.stylegan2 import StyleConv, StyleGAN2, ToRGB, unit_rms, upsample
from intrinsic_lora.train.recipes.generators import adversary
from intrinsic_lora.train.recipes.generators import stylegan2 as recipe
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.signal import convolve2d
from torch import nn

FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def lively(module, seed=0):
    """Randomise every parameter that starts at zero or one, so that it matters."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                p.add_(0.3 * torch.randn(p.shape, generator=rng))
    return module


def small(resolution=16, **changes):
    torch.manual_seed(1)
    arguments = {"z_dim": 12, "w_dim": 10, "mapping_layers": 3, "channel_base": 160, "channel_max": 20}
    model = lively(StyleGAN2(resolution, **{**arguments, **changes})).eval().requires_grad_(False)
    model.w_avg.copy_(torch.randn(len(model.w_avg)))
    return model


@pytest.fixture(scope="module")
def model():
    return small(conv_clamp=1.5)


@pytest.fixture(scope="module")
def ws(model):
    return torch.randn(3, model.num_ws, 10)  # another w for every layer


def double(t):
    return t.detach().double()


def by_hand(layer, w):
    """Kernels (B, O, I, k, k) of a layer in float64: modulated, and normalised if it is a StyleConv."""
    style = double(w) @ double(layer.affine.weight).T + double(layer.affine.bias)  # (B, I)
    kernel = double(layer.weight)[None] * style[:, None, :, None, None]
    if isinstance(layer, ToRGB):
        return kernel / layer.weight.shape[1] ** 0.5
    return kernel / (kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()


def grouped(x, kernels):
    """Sample i convolved with kernel i, as one grouped convolution."""
    batch, out, _, k, _ = kernels.shape
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), padding=k // 2, groups=batch)
    return y.reshape(batch, out, *y.shape[2:])


def stuffed(x):
    """Insert zeros between neighbours: (h, w) -> (2h - 1, 2w - 1)."""
    y = np.zeros((2 * x.shape[0] - 1, 2 * x.shape[1] - 1))
    y[::2, ::2] = x
    return y


def up_by_hand(x, kernels):
    """Zero-stuffing, full convolution, then the filter with gain 4 on one more pixel of zeros; plane by plane."""
    batch, out, inp = kernels.shape[:3]
    y = np.zeros((batch, out, 2 * x.shape[2], 2 * x.shape[3]))
    for b, o, i in np.ndindex(batch, out, inp):
        full = convolve2d(stuffed(x[b, i].numpy()), kernels[b, o, i].numpy(), "full")  # (2h+1, 2w+1)
        y[b, o] += convolve2d(np.pad(full, 1), FIR * 4, "valid")  # (2h, 2w)
    return torch.from_numpy(y)


def finish_by_hand(layer, y):
    """Noise, bias, leaky ReLU, gain, clamp."""
    y = y + double(layer.noise_const) * double(layer.noise_strength) + double(layer.bias)[:, None, None]
    y = torch.where(y < 0, 0.2 * y, y) * 2**0.5
    return y if layer.clamp is None else y.clip(-layer.clamp, layer.clamp)


def upsampled_by_hand(picture):
    """Insert a zero after every sample, pad two zeros before and one after, and filter with gain 4."""
    planes = []
    for plane in picture.flatten(0, 1).numpy():
        y = np.zeros([2 * n for n in plane.shape])
        y[::2, ::2] = plane
        planes.append(convolve2d(np.pad(y, (2, 1)), FIR * 4, "valid"))
    return torch.from_numpy(np.stack(planes)).unflatten(0, picture.shape[:2])


def picture_by_hand(model, ws):
    """Run the whole synthesis network: convolutions use the w's in order, ToRGB the next one."""
    x = double(model.blocks["4"].const).expand(len(ws), -1, -1, -1)
    picture, i = 0, 0
    for block in model.blocks.values():
        if hasattr(block, "conv0"):
            x = finish_by_hand(block.conv0, up_by_hand(x, by_hand(block.conv0, ws[:, i])))
            picture = upsampled_by_hand(picture)
            i += 1
        x = finish_by_hand(block.conv1, grouped(x, by_hand(block.conv1, ws[:, i])))
        i += 1
        rgb = grouped(x, by_hand(block.torgb, ws[:, i])) + double(block.torgb.bias)[:, None, None]
        picture = picture + (rgb if block.torgb.clamp is None else rgb.clip(-block.torgb.clamp, block.torgb.clamp))
    assert i == ws.shape[1] - 1
    return picture


@pytest.mark.parametrize("clamp", [None, 0.9])
@pytest.mark.parametrize("up", [False, True])
def test_style_convolution_is_a_convolution_with_a_kernel_per_sample(up, clamp):
    torch.manual_seed(0)
    layer = lively(StyleConv(6, 5, 10, 14 if up else 7, clamp)).requires_grad_(False)
    x, w = torch.randn(3, 6, 7, 7), torch.randn(3, 10)
    y = layer(x, w, torch.from_numpy(FIR).float() if up else None)
    expected = (up_by_hand if up else grouped)(double(x), by_hand(layer, w))
    torch.testing.assert_close(y.double(), finish_by_hand(layer, expected), atol=2e-5, rtol=1e-5)
    assert clamp is None or y.abs().max() == pytest.approx(clamp)


def test_to_rgb_is_not_demodulated():
    layer = lively(ToRGB(6, 3, 10, None))
    x, w = torch.randn(3, 6, 7, 7), torch.randn(3, 10)
    expected = grouped(double(x), by_hand(layer, w)) + double(layer.bias)[:, None, None]
    torch.testing.assert_close(layer(x, w).double(), expected, atol=1e-5, rtol=1e-5)


def test_upsampling_of_the_picture():
    x = torch.randn(2, 3, 5, 5)
    y = upsample(x, torch.from_numpy(FIR).float())
    torch.testing.assert_close(y.double(), upsampled_by_hand(double(x)), atol=1e-6, rtol=1e-6)
    inside = F.interpolate(x, scale_factor=2, mode="bilinear")  # the same but at the borders
    torch.testing.assert_close(y[..., 1:-1, 1:-1], inside[..., 1:-1, 1:-1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("clamp", [None, 1.5])
def test_synthesis(clamp):
    model = small(conv_clamp=clamp)
    ws = torch.randn(2, model.num_ws, 10)
    expected = picture_by_hand(model, ws)
    torch.testing.assert_close(model.synthesis(ws).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("resolution", "count"), [(8, 4), (64, 10), (256, 14), (1024, 18)])
def test_number_of_styles(resolution, count):
    model = StyleGAN2(resolution, z_dim=4, w_dim=4, mapping_layers=1, channel_base=16, channel_max=4)
    assert model.num_ws == count
    assert model.mapping(torch.randn(2, 4)).shape == (2, count, 4)


def test_each_style_matters(model, ws):
    ws = ws.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.synthesis(ws).square().sum(), ws)
    assert (slope.abs().amax((0, 2)) > 1e-3).all()


def mapped_by_hand(network, x, normalise=True):
    x = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-8) if normalise else x
    for i in range(network.layers):
        layer = network.get_submodule(f"fc{i}")
        x = x @ double(layer.weight).numpy().T + double(layer.bias).numpy()
        x = np.where(x < 0, 0.2 * x, x) * np.sqrt(2)
    return x


def test_mapping_and_truncation(model):
    z = torch.randn(4, 12)
    w = mapped_by_hand(model.mapping_network, double(z).numpy())
    ws = model.mapping(z)
    np.testing.assert_allclose(ws.numpy(), np.repeat(w[:, None], model.num_ws, 1), atol=1e-5)
    mean = double(model.w_avg).numpy()
    np.testing.assert_allclose(model.mapping(z, truncation=0.7)[:, 0], 0.3 * mean + 0.7 * w, atol=1e-5)
    np.testing.assert_allclose(model.mapping(z, truncation=0.0)[:, 0], mean + 0 * w, atol=1e-6)


def test_conditional_mapping_normalises_latent_and_label_separately():
    model = small(8, label_dim=5)
    z, label = torch.randn(4, 12), torch.eye(5)[[0, 3, 3, 1]]
    embed = model.mapping_network.embed
    e = double(label).numpy() @ double(embed.weight).numpy().T + double(embed.bias).numpy()
    parts = [x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-8) for x in (double(z).numpy(), e)]
    expected = mapped_by_hand(model.mapping_network, np.concatenate(parts, 1), normalise=False)
    np.testing.assert_allclose(model.mapping(z, label)[:, 0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="requires a label of 5 classes"):
        model.mapping(z)
    with pytest.raises(ValueError, match="is unconditional"):
        small(8).mapping(z, label)


@pytest.mark.parametrize("resolution", [4, 48, 0])
def test_sizes_that_do_not_exist(resolution):
    with pytest.raises(ValueError, match=f"not of {resolution}"):
        StyleGAN2(resolution)


def test_a_picture_does_not_depend_on_its_batch(model, ws):
    together = model.synthesis(ws)
    alone = torch.cat([model.synthesis(one) for one in ws.split(1)])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)


@pytest.mark.bfloat16
def test_autocast_keeps_norms_and_sums_in_float32(model, ws):
    z = 1e-6 * torch.randn(3, 12)  # its square underflows half precision
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            w, picture = model.mapping(z), model.synthesis(ws * 100)
        assert w.dtype == picture.dtype == torch.float32
        torch.testing.assert_close(w, model.mapping(z))
        exact = model.synthesis(ws * 100)
        # bfloat16 keeps 8 bits, and here some 7 % of the picture; where its sums were rounded too, nothing is left.
        assert (picture - exact).square().mean() < 5e-3 * exact.var()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(model, ws):
    there = small(conv_clamp=1.5).cuda()
    torch.testing.assert_close(there.synthesis(ws.cuda()).cpu(), model.synthesis(ws), atol=2e-3, rtol=2e-3)


# --- as a base model


@pytest.fixture
def backbone(tmp_path):
    save_generator(small(), tmp_path / "base", source="a test")
    return load_backbone(tmp_path / "base", [INTRINSICS["normals"], INTRINSICS["depth"]])


def filled(backbone, name="normals"):
    """Build a LoRA on the default layers that changes the output."""
    backbone.add_lora(name, 2, 2.0, backbone.targets, seed=0)
    with torch.no_grad():
        for p in backbone.lora_parameters(name)[1::2]:
            p.copy_(0.3 * torch.randn(p.shape))
    return backbone


def test_lora_is_on_every_affine_and_alone_has_gradients(backbone):
    assert isinstance(backbone, StyleGAN2Backbone)
    filled(backbone)
    blocks = {"4": ["conv1", "torgb"], "8": ["conv0", "conv1", "torgb"], "16": ["conv0", "conv1", "torgb"]}
    expected = {f"blocks.{res}.{layer}.affine" for res, layers in blocks.items() for layer in layers}
    assert set(backbone.lora_weights("normals")) == expected
    backbone.render(backbone.sample([0, 1])).square().mean().backward()
    with_gradient = {name for name, p in backbone.model.named_parameters() if p.grad is not None}
    assert len(with_gradient) == 2 * len(expected) and all(".lora_" in name for name in with_gradient)
    assert all(p.grad.abs().max() > 0 for p in backbone.lora_parameters("normals"))


def test_without_the_lora_the_picture_is_the_plain_one_bit_for_bit(backbone):
    conditions = backbone.sample([5, 6], truncation=0.7)
    plain = small().synthesis(conditions) * 0.5 + 0.5
    assert torch.equal(backbone.render(conditions), plain)
    filled(backbone)
    assert not torch.allclose(backbone.render(conditions), plain, atol=1e-2)
    backbone.activate(None)
    assert torch.equal(backbone.render(conditions), plain)


def test_a_lora_is_its_product_added_to_the_affine(backbone):
    conditions = filled(backbone).sample([1, 2])
    folded = small()
    for module, (a, b, alpha) in backbone.lora_weights("normals").items():
        folded.get_submodule(module).weight += alpha / len(a) * b @ a
    expected = folded.synthesis(conditions) * 0.5 + 0.5
    assert_rounded(backbone.render(conditions), expected)


@pytest.mark.bfloat16
def test_rendering_is_in_float32_within_autocast(backbone):
    conditions = filled(backbone).sample([1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        within = backbone.render(conditions)
    assert torch.equal(within, backbone.render(conditions))


@pytest.mark.parametrize(("resolution", "base", "percent"), [(256, 16384, "0.571"), (1024, 32768, "0.590")])
def test_share_of_the_parameters(resolution, base, percent):
    with torch.device("meta"):
        # Only the filter computes with values while the network is built, and a meta tensor suffices there.
        model = StyleGAN2(resolution, channel_base=base)
    whole = sum(p.numel() for p in model.parameters())  # mapping and synthesis; constant noise is no parameter
    target = rf"(?:.*\.)?(?:{StyleGAN2Backbone.targets[0]})"
    inject_adapter_in_model(LoraConfig(r=8, target_modules=target), model, "a")
    lora = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert f"{100 * lora / whole:.3f}" == percent


# --- its folder


def test_a_folder_gives_the_same_generator_back(tmp_path, model, ws):
    save_generator(model, tmp_path / "g", source="here")
    assert json.loads((tmp_path / "g" / "config.json").read_text()) == {
        "_class_name": "StyleGAN2",
        "format_version": 1,
        "source": "here",
        **model.config,
    }
    again = load_generator(StyleGAN2, tmp_path / "g")
    assert torch.equal(again.synthesis(ws), model.synthesis(ws)) and torch.equal(again.w_avg, model.w_avg)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    with pytest.raises(FileExistsError, match="choose a new folder"):
        save_generator(model, tmp_path / "g")
    save_generator(small(8), tmp_path / "g", replace=True)
    assert load_generator(StyleGAN2, tmp_path / "g").num_ws == 4
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_folders_that_are_no_generator(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"config\.json not found"):
        load_generator(StyleGAN2, tmp_path)
    save_generator(model, tmp_path / "g")
    with pytest.raises(ValueError, match="holds a StyleGAN2, not a Linear"):
        load_generator(nn.Linear, tmp_path / "g")
    state = load_file(tmp_path / "g" / "model.safetensors")
    save_file({key: value for key, value in state.items() if key != "w_avg"}, tmp_path / "g" / "model.safetensors")
    with pytest.raises(ValueError, match="do not match"):
        load_generator(StyleGAN2, tmp_path / "g")
    (tmp_path / "g" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_generator(StyleGAN2, tmp_path / "g")
    (tmp_path / "g" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is a Git LFS pointer"):
        load_generator(StyleGAN2, tmp_path / "g")
    config = json.loads((tmp_path / "g" / "config.json").read_text())
    (tmp_path / "g" / "config.json").write_text(json.dumps({**config, "format_version": 2}))
    with pytest.raises(ValueError, match="newer format"):
        load_generator(StyleGAN2, tmp_path / "g")


# --- the recipe


def test_folded_layers_learn_as_with_an_equalised_learning_rate():
    """Adam on w = g v with the rate g lr is Adam on v with the rate lr, to the last step."""
    torch.manual_seed(0)
    model = StyleGAN2(8, z_dim=9, w_dim=16, mapping_layers=1, channel_base=32)
    affine, fc = model.blocks["8"].conv0.affine, model.mapping_network.fc0
    groups = adversary.equalised(model, lr=0.01)
    gains = {affine.weight: 16**-0.5, affine.bias: 1.0, fc.weight: 0.1 * 9**-0.5, fc.bias: 0.1}
    gains[model.blocks["8"].conv0.weight] = 1.0  # is not folded
    optimizer = torch.optim.Adam(groups, betas=(0.0, 0.99), eps=0)
    for p, gain in gains.items():
        free = nn.Parameter(p.detach() / gain)
        separate = torch.optim.Adam([free], lr=0.01, betas=(0.0, 0.99), eps=0)
        for step in range(3):
            goal = torch.linspace(-9, 9, p.numel()).reshape(p.shape) * (step + 1)  # out of reach: no gradient is zero
            for tensor, adam in ((p, optimizer), (free, separate)):
                adam.zero_grad()
                ((tensor if tensor is p else gain * tensor) - goal).pow(3).sum().backward()
                adam.step()
        torch.testing.assert_close(p, gain * free)
    assert sorted(map(id, (p for group in groups for p in group["params"]))) == sorted(map(id, model.parameters()))


@pytest.fixture
def narrow(monkeypatch):
    """Networks of eight channels."""
    monkeypatch.setattr(adversary, "CHANNEL_MAX", 8)
    torch.manual_seed(0)


def test_the_discriminator_compares_within_groups_of_four(narrow):
    d = adversary.Discriminator(32)
    x = torch.randn(8, 3, 32, 32)
    logits = d(x)
    order = [2, 1, 4, 3, 6, 5, 0, 7]  # the groups are {0, 2, 4, 6} and {1, 3, 5, 7}
    torch.testing.assert_close(d(x[order]), logits[order], atol=1e-4, rtol=1e-4)
    x[2] = 0
    moved = (d(x) - logits).abs() > 1e-4
    assert moved.tolist() == [True, False] * 4


def test_halving():
    x = torch.randn(1, 1, 8, 8)
    y = adversary.halved(x, torch.from_numpy(FIR).float())[0, 0]
    expected = convolve2d(np.pad(x[0, 0].numpy(), 1), FIR, "valid")[::2, ::2]
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_growing_changes_nothing_but_the_size(narrow):
    old = adversary.Players(16, 2e-3)
    lively(old.average, 1)
    new = old.grown()
    z, x = torch.randn(4, 128), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for before, after in ((old.generator, new.generator), (old.average, new.average)):
            small_picture = before.synthesis(before.mapping(z))
            expected = upsample(small_picture, before.resample_filter)
            torch.testing.assert_close(after.synthesis(after.mapping(z)), expected)
        halved = adversary.halved(x, old.discriminator.trunk.resample_filter)
        torch.testing.assert_close(new.discriminator(x), old.discriminator(halved))
    new.discriminator(new.generator.synthesis(new.generator.mapping(z))).sum().backward()
    assert new.generator.blocks["32"].torgb.weight.grad.abs().max() > 0  # and it is not stuck there
    assert new.discriminator.trunk.blocks["32"]["skip"].weight.grad.abs().max() > 0


def test_aligned_latents_are_distributed_as_codes(narrow):
    """Before the first nonlinearity, mapped random latents have the same moments as mapped codes."""
    data = torch.randint(0, 256, (2048, 3, 64, 64), dtype=torch.uint8).numpy()
    data[:, 0] //= np.linspace(1, 20, 2048).astype(np.uint8)[:, None, None]  # the pictures differ
    generator, encoder = adversary.small_generator(32), adversary.Encoder(32)
    with torch.no_grad():
        encoder.out.bias[:128] += 1.0
        encoder.out.bias[128:] -= 4.0
    before = copy.deepcopy(generator.mapping_network.fc0)
    recipe.align(generator, encoder, data)
    with torch.no_grad():
        x = F.avg_pool2d(torch.from_numpy(data).float() / 127.5 - 1, 2)
        mean, log_variance = encoder(x)
        code = unit_rms(mean + (log_variance / 2).exp() * torch.randn(mean.shape))
        goal, got = before(code), generator.mapping_network.fc0(unit_rms(torch.randn(20_000, 128)))
    assert (got.mean(0) - goal.mean(0)).abs().max() < 0.1 * goal.mean(0).std()
    assert (torch.cov(got.T) - torch.cov(goal.T)).norm() < 0.2 * torch.cov(goal.T).norm()


def test_the_recipe_trains_grows_and_resumes(tmp_path, narrow):
    options = {"scenes": 16, "start": 16, "coarse": 16, "batch": 8, "lr": 2e-3, "gamma": 0.2, "every": 99, "seed": 0}
    recipe.main(tmp_path, fine=0, **options)
    data = np.load(tmp_path / "plain.npy")
    assert data.shape == (16, 3, 64, 64) and data.std((1, 2, 3)).min() > 5  # pictures, none of them blank
    first = load_file(tmp_path / "generator" / "model.safetensors")
    assert load_generator(StyleGAN2, tmp_path / "generator").config["resolution"] == 32
    start = torch.load(tmp_path / "start.ckpt", weights_only=True)
    assert start["step"] == 2 and start["adam"]["state"][0]["step"] == 2
    recipe.main(tmp_path, fine=16, **options)
    second = load_file(tmp_path / "generator" / "model.safetensors")
    state = torch.load(tmp_path / "stylegan2.ckpt", weights_only=True)
    assert state["step"] == 4 and state["resolution"] == 64 and state["adam_d"]["state"][0]["step"] == 2
    assert second["blocks.64.torgb.weight"].shape == (3, 8, 1, 1) and "blocks.64.torgb.weight" not in first
    backbone = load_backbone(tmp_path / "generator", [INTRINSICS["normals"]])
    assert backbone.render(backbone.sample([0])).shape == (1, 3, 64, 64)
    assert Image.open(tmp_path / "samples_adversarial_000004.png").size == (12 * 64, 8 * 64)


def test_the_autoencoder_learns_and_the_players_begin_with_it(tmp_path, narrow, monkeypatch):
    monkeypatch.setattr(recipe, "HEAD_START", 99)  # the generator does not move
    data = np.repeat(np.random.RandomState(0).randint(0, 256, (16, 3, 1, 1)).astype(np.uint8), 64, 2).repeat(64, 3)
    common = {"batch": 8, "lr": 5e-3, "every": 99, "seed": 0}
    recipe.reconstruct(tmp_path, data, shown=8 * 150, **common)
    start = torch.load(tmp_path / "start.ckpt", weights_only=True)
    generator, encoder = adversary.small_generator(32), adversary.Encoder(32)
    generator.load_state_dict(start["generator"])
    encoder.load_state_dict(start["encoder"])
    x = torch.from_numpy(data).float()[:, :, ::2, ::2] / 127.5 - 1
    with torch.no_grad():
        error = (generator.synthesis(generator.mapping(encoder(x)[0])) - x).square().mean()
    assert error < 0.5 * x.var(0).mean()  # half of what is left without a code
    recipe.play(tmp_path, data, shown=(8, 0), gamma=0.2, **common)
    state = torch.load(tmp_path / "stylegan2.ckpt", weights_only=True)
    for key, value in recipe.align(generator, encoder, data).state_dict().items():
        assert torch.equal(state["generator"][key], value)
