"""StyleGAN3 and StyleGAN-XL against their formulas, each written out a second way, and as base models for LoRAs."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from intrinsic_lora.intrinsics.vocabulary import get_intrinsic
from intrinsic_lora.tests.support.closeness import assert_rounded
from intrinsic_lora.train.backbones.interfaces import require_encoder
from intrinsic_lora.train.backbones.stylegan_xl import StyleGANXLBackbone
from intrinsic_lora.train.generators.folders import save_generator
from intrinsic_lora.train.generators.stylegan3 import FourierInput, Layer, LeakyClamp, StyleGAN3, resample
from intrinsic_lora.train.generators.stylegan3_layout import lowpass, stylegan3_config

SMALL = {"channel_base": 256, "channel_max": 12, "w_dim": 16}
CLASSES = {"label_dim": 5, "class_embedding": 7, "z_dim": 6}


def small(kind="T", resolution=32, seed=0, **options):
    """Build a random generator whose biases and averages differ from their initial values, so that they matter."""
    torch.manual_seed(seed)
    model = StyleGAN3(**stylegan3_config(kind, resolution, **SMALL, **options)).eval().requires_grad_(False)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(".bias") and "affine" not in name:
            tensor.normal_(std=0.3)
        elif name.endswith("magnitude_ema"):
            tensor.uniform_(0.5, 2)
        elif name == "w_avg":
            tensor.normal_()
    return model


@pytest.fixture
def folder(tmp_path):
    save_generator(small("XL", 32, **CLASSES), tmp_path / "xl", source="random")
    return tmp_path / "xl"


# ---------------------------------------------------------------- layouts


def test_layouts_are_those_of_the_official_generators():
    """Names, parameters and buffers that NVIDIA's training script prints (issues 40 and 181 of its repository)."""
    names = [layer["name"] for layer in stylegan3_config("R", 128)["layers"]]
    assert names[8:11] == ["L8_84_1024", "L9_148_1024", "L10_148_912"]
    assert names[11:] == ["L11_148_683", "L12_148_512", "L13_128_512", "L14_128_3"]
    names = [layer["name"] for layer in stylegan3_config("R", 1024)["layers"]]
    assert names[10:] == ["L10_1044_161", "L11_1044_102", "L12_1044_64", "L13_1024_64", "L14_1024_3"]
    with torch.device("meta"):
        model = StyleGAN3(**stylegan3_config("R", 1024))
        sizes = [sum(b.numel() for b in layer.buffers()) for layer in model.layers.values()]
        assert sum(p.numel() for p in model.parameters()) == 15_093_151
        assert sum(b.numel() for b in model.buffers()) == 5_600
        assert sizes[10:] == [169, 157, 25, 25, 1]
        assert model.num_ws == 16
        assert sum(p.numel() for p in StyleGAN3(**stylegan3_config("T", 1024)).parameters()) == 22_313_167  # "22.3M"


def test_super_resolution_grows_out_of_the_stem():
    stem, grown = (stylegan3_config("XL", resolution, **SMALL)["layers"] for resolution in (16, 64))
    numbers = [int(re.match(r"L(\d+)_", layer["name"])[1]) for layer in grown]
    assert len(stem) == 11 and len(grown) == 11 + 2 * (7 - 2)  # what the paper counts
    assert grown[:8] == stem[:8]
    assert numbers == [*range(8), *range(11, 16), *range(19, 27)]
    before, after = small("XL", 16), small("XL", 64)
    kept = {k: v for k, v in before.state_dict().items() if k in after.state_dict()}
    after.load_state_dict(kept, strict=False)  # or RuntimeError: another shape
    assert sum(key.startswith("layers.") for key in kept) == 8 * 7


def test_share_of_a_rank_8_lora_in_stylegan_xl_imagenet_256():
    with torch.device("meta"):
        model = StyleGAN3(**stylegan3_config("XL", 256))
    assert len(model.layers) == 31
    pattern = rf"(?:.*\.)?(?:{StyleGANXLBackbone.targets[0]})"
    taken = [m for name, m in model.named_modules() if re.fullmatch(pattern, name)]
    assert len(taken) == 31
    lora = sum(8 * (m.in_features + m.out_features) for m in taken)
    assert round(100 * lora / sum(p.numel() for p in model.parameters()), 3) == 0.147


def test_bad_layouts_are_refused():
    with pytest.raises(ValueError, match="StyleGAN3 'S'"):
        stylegan3_config("S")
    with pytest.raises(ValueError, match=r"16, 32, \.\.\. pixels, not 48"):
        stylegan3_config("XL", 48)
    with pytest.raises(ValueError, match="output 32 pixels, not 64"):
        StyleGAN3(**stylegan3_config("T", 32, **SMALL) | {"resolution": 64})


@pytest.mark.parametrize(
    ("taps", "cutoff", "width", "rate"), [(12, 2.0, 12.0, 32), (24, 5.1, 8.0, 64), (12, 16, 9, 64)]
)
def test_filters_equal_those_of_scipy(taps, cutoff, width, rate):
    signal, special = pytest.importorskip("scipy.signal"), pytest.importorskip("scipy.special")
    expected = signal.firwin(taps, cutoff, width=width, fs=rate)
    np.testing.assert_allclose(lowpass([taps], cutoff, width, rate), expected, atol=1e-7)
    # The radial one: the jinc function under the same window.
    beta = signal.kaiser_beta(signal.kaiser_atten(taps, width / (rate / 2)))
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    r = np.hypot(*np.meshgrid(x, x))
    radial = special.j1(2 * np.pi * cutoff * r) / r * np.outer(np.kaiser(taps, beta), np.kaiser(taps, beta))
    np.testing.assert_allclose(lowpass([taps, taps], cutoff, width, rate), radial / radial.sum(), atol=1e-7)


# ---------------------------------------------------------------- layers


def resampled(x, taps, up=1, down=1, padding=(0, 0)):
    """Along the last axis of a numpy array: zeros between samples, padding or cutting, convolution, every down-th."""
    stuffed = np.zeros((*x.shape[:-1], x.shape[-1] * up))
    stuffed[..., ::up] = x
    before, after = padding
    stuffed = np.pad(stuffed, [(0, 0)] * (x.ndim - 1) + [(max(before, 0), max(after, 0))])
    stuffed = stuffed[..., max(-before, 0) : stuffed.shape[-1] - max(-after, 0)]
    return np.apply_along_axis(lambda row: np.convolve(row, taps, "valid"), -1, stuffed)[..., ::down] * up


def dense(length, *args, **kwargs):
    """Return the same as one (out, length) matrix, float64."""
    return torch.from_numpy(resampled(np.eye(length), *args, **kwargs).T.copy())


@pytest.mark.parametrize(
    ("up", "down", "padding_x", "padding_y"),
    [
        (1, 1, (0, 0), (0, 0)),
        (2, 1, (9, 8), (3, 5)),
        (4, 1, (-6, -9), (2, -3)),
        (1, 2, (0, 0), (7, 0)),
        (3, 2, (40, 1), (-2, 50)),
    ],
)
def test_resampling_is_zeros_padding_convolution_and_thinning(up, down, padding_x, padding_y):
    taps = torch.randn(11, dtype=torch.float64)  # not symmetric
    x = torch.randn(2, 3, 40, 61, dtype=torch.float64)  # more than one block
    y = resample(x, taps, up=up, down=down, padding_x=padding_x, padding_y=padding_y)
    expected = resampled(x.numpy(), taps.numpy(), up, down, padding_x)
    expected = resampled(expected.swapaxes(2, 3), taps.numpy(), up, down, padding_y).swapaxes(2, 3)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    assert resample(x, None).equal(x)


def test_gradients_of_our_own_functions():
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(5, dtype=torch.float64)
    for up, down, padding in [(2, 1, (3, -2)), (1, 2, (0, 1)), (4, 3, (-5, 60))]:
        assert torch.autograd.gradcheck(
            lambda x, o=(up, down, padding): resample(x, taps, up=o[0], down=o[1], padding_x=o[2], padding_y=(4, 1)), x
        )
    for bound in (0.5, None):
        assert torch.autograd.gradcheck(lambda x, bound=bound: LeakyClamp.apply(x, bound), x)


def test_the_leaky_relu_keeps_one_byte_per_element():
    kept = []
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        LeakyClamp.apply(x, 256.0)
    assert sum(t.numel() * t.element_size() for t in kept) == x.numel()


def reference(layer, x, w):
    """Compute the layer in float64 as in the papers: kernels per sample, dense matrices around the leaky ReLU."""
    double = {k: v.double() for k, v in layer.state_dict().items()}
    x, batch = x.double(), len(x)
    style = w.double() @ double["affine.weight"].T + double["affine.bias"]  # (B, I)
    weight = double["weight"]
    if layer.is_torgb:
        kernels = weight * style[:, None, :, None, None] / math.sqrt(weight.shape[1])
    else:
        weight = weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()
        style = style / style.square().mean().sqrt()  # over the batch, too
        kernels = weight * style[:, None, :, None, None]  # (B, O, I, k, k)
        kernels = kernels / (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    kernels = kernels / double["magnitude_ema"].sqrt()
    size = kernels.shape[-1]
    x = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), padding=size - 1, groups=batch)
    x = x.view(batch, -1, *x.shape[2:]) + double["bias"][:, None, None]
    if not layer.is_torgb:
        left, right, top, bottom = layer.padding
        taps = double["up_filter"].numpy()
        x = dense(x.shape[2], taps, layer.up_factor, 1, (top, bottom)) @ x
        x = x @ dense(x.shape[3], taps, layer.up_factor, 1, (left, right)).T
        x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
    if layer.clamp is not None:
        x = x.clamp(-layer.clamp, layer.clamp)
    if layer.is_torgb:
        return x
    taps, down = double["down_filter"].numpy(), layer.down_factor
    if taps.ndim == 1:
        return dense(x.shape[2], taps, 1, down) @ x @ dense(x.shape[3], taps, 1, down).T
    windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), taps.shape, axis=(2, 3))[:, :, ::down, ::down]
    return torch.from_numpy(np.einsum("bcyxij,ij->bcyx", windows, taps[::-1, ::-1]))


@pytest.mark.parametrize("kind", ["T", "R", "XL"])
def test_every_layer_equals_its_formula(kind):
    model = small(kind, 32)
    layers = list(model.layers.values())
    seen = {(la.up_factor, la.down_filter is not None and la.down_filter.ndim, min(la.padding) < 0) for la in layers}
    assert len(seen) >= 4  # factors 2 and 4, cut and padded, radial in R, ToRGB
    size = model.config["input"]["size"]
    for layer in layers:
        layer.affine.weight.normal_(std=0.3)
        x, w = torch.randn(2, layer.weight.shape[1], size, size), torch.randn(2, 16)
        y = layer(x, w)
        expected = reference(layer, x, w)
        assert_rounded(y, expected)
        size = y.shape[2]
    assert size == 32


def test_clamp_and_unequal_padding():
    torch.manual_seed(0)
    taps = {"shape": [6]}
    layer = Layer(4, 3, 5, 3, False, 2, 2, [4, -3, -2, 6], 0.4, taps, taps).requires_grad_(False)
    layer.up_filter.normal_()
    layer.down_filter.normal_()
    x, w = torch.randn(3, 3, 9, 9), torch.randn(3, 4)
    y = layer(x, w)
    assert y.shape[2] != y.shape[3]
    assert_rounded(y, reference(layer, x, w))
    layer.clamp = None
    assert not torch.allclose(layer(x, w), y)


def test_magnitude_ema_makes_the_scale_of_the_input_immaterial():
    layer = next(iter(small().layers.values()))
    x, w = torch.randn(1, layer.weight.shape[1], 36, 36), torch.randn(1, 16)
    y = layer(x, w)
    layer.magnitude_ema *= 9
    torch.testing.assert_close(layer(3 * x, w), y, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer(x, w), y, rtol=0.1)


def test_input_is_plane_waves_seen_from_a_turned_and_shifted_place():
    torch.manual_seed(1)
    layer = FourierInput(4, 5, 12, 8, 2.0).requires_grad_(False)
    layer.freqs *= torch.tensor([1, 1, 1.4, 2.2, 1])[:, None]  # some beyond the band, where they fade
    angle, shift = 0.3, np.array([0.2, -0.1])
    layer.affine.weight.zero_()
    t = torch.tensor([math.cos(angle), math.sin(angle), *shift])
    layer.affine.bias.copy_(2.5 * t)  # length does not matter
    layer.transform.copy_(torch.tensor([[1, 0.1, 0.3], [0, 0.9, 0.05], [0, 0, 1]]))

    freqs, phases, mix = (tensor.double().numpy() for tensor in (layer.freqs, layer.phases, layer.weight))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    user = layer.transform.double().numpy()
    expected = np.zeros((5, 12, 12))
    for row in range(12):
        for column in range(12):
            place = np.array([column + 0.5 - 6, row + 0.5 - 6]) / 8  # pictures from the centre
            place = turn @ (user[:2, :2] @ place + user[:2, 2] - shift)
            for i in range(5):
                size = np.linalg.norm(freqs[i] @ turn @ user[:2, :2])
                fade = np.clip(1 - (size - 2) / (4 - 2), 0, 1)
                wave = fade * math.sin(2 * math.pi * (freqs[i] @ place + phases[i]))
                expected[:, row, column] += mix[:, i] * wave / math.sqrt(5)
    np.testing.assert_allclose(layer(torch.randn(1, 4))[0], expected, atol=1e-4)  # sines of phases up to 1e2


# ---------------------------------------------------------------- the whole


def unit(x):
    return x / (x**2).mean(-1, keepdims=True) ** 0.5


def lrelu(x):
    return np.where(x > 0, x, 0.2 * x) * 2**0.5


@pytest.mark.parametrize("kind", ["plain", "labels", "classes"])
def test_mapping_and_truncation(kind):
    options = {"plain": {}, "labels": {"label_dim": 5, "z_dim": 6}, "classes": CLASSES}[kind]
    model = small("XL" if kind == "classes" else "T", 16, **options)
    z, label = torch.randn(3, model.config["z_dim"]), torch.eye(5)[[4, 0, 2]]
    label = None if kind == "plain" else label
    p = {k: v.double().numpy() for k, v in model.state_dict().items()}
    x = unit(z.double().numpy())
    if kind == "labels":
        features = p["mapping_network.embed.weight"].T[[4, 0, 2]] + p["mapping_network.embed.bias"]
        x = np.concatenate([x, unit(features)], 1)
    if kind == "classes":
        rows = p["mapping_network.embed.weight"][[4, 0, 2]]  # (3, 7)
        rows = rows @ p["mapping_network.embed_proj.weight"].T + p["mapping_network.embed_proj.bias"]
        x = np.concatenate([x, unit(lrelu(rows))], 1)
    for i in range(2):
        x = lrelu(x @ p[f"mapping_network.fc{i}.weight"].T + p[f"mapping_network.fc{i}.bias"])
    ws = model.mapping(z, label)
    assert ws.shape == (3, model.num_ws, 16)
    np.testing.assert_allclose(ws, np.repeat(x[:, None], model.num_ws, 1), rtol=1e-4, atol=1e-5)

    mean = p["w_avg"][[4, 0, 2]] if kind == "classes" else p["w_avg"]
    halfway = model.mapping(z, label, truncation=0.5)[:, 0]
    np.testing.assert_allclose(halfway, (x + mean) / 2, rtol=1e-4, atol=1e-5)
    wrong = torch.eye(5)[:3] if kind == "plain" else None
    with pytest.raises(ValueError, match="is unconditional" if kind == "plain" else "requires a label of 5"):
        model.mapping(z, wrong)


def test_ws_go_to_the_layers_in_order():
    model = small()
    ws = torch.randn(1, model.num_ws, 16)
    x = model.input(ws[:, 0])
    for i, layer in enumerate(model.layers.values()):
        x = layer(x, ws[:, i + 1])
    assert model.synthesis(ws).equal(x * 0.25)


def test_a_picture_does_not_depend_on_its_neighbours():
    model = small("XL", 32, label_dim=0)
    ws = model.mapping(torch.randn(3, 64))
    torch.testing.assert_close(model.synthesis(ws)[1:2], model.synthesis(ws[1:2]), rtol=1e-4, atol=1e-5)


def shift_error(model, pixels):
    """Return how far the picture of a shifted input is from the shifted picture, inside, relative to its contrast."""
    ws = model.mapping(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)))
    still = model.synthesis(ws)
    model.input.transform[0, 2] = -pixels / 64
    moved = model.synthesis(ws)
    inside = slice(16, 48)
    difference = moved[..., inside, 16 + pixels : 48 + pixels] - still[..., inside, 16:48]
    return float(difference.square().mean().sqrt() / still[..., inside, 16:48].std())


def test_shifting_the_input_shifts_the_picture():
    """One pixel is a quarter of a sample in the first layers: only filters without aliasing get that right."""
    errors = [shift_error(small("T", 64), pixels) for pixels in (1, 2, 5)]
    assert max(errors) < 0.05
    aliasing = small("T", 64)
    for layer in aliasing.layers.values():
        if layer.up_filter is not None:  # nearest neighbour, and a box
            for taps, factor in ((layer.up_filter, layer.up_factor), (layer.down_filter, layer.down_factor)):
                taps.zero_()
                middle = len(taps) // 2
                taps[middle - factor // 2 : middle + (factor + 1) // 2] = 1 / factor
    assert shift_error(aliasing, 1) > 3 * max(errors)


@pytest.mark.parametrize(("kind", "turns"), [("R", True), ("T", False)])
def test_turning_the_input_by_a_right_angle_turns_the_picture_of_r_alone(kind, turns):
    model = small(kind, 32)
    ws = model.mapping(torch.randn(1, 512))
    still = model.synthesis(ws)
    model.input.transform[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turned = torch.rot90(still, 1, (2, 3))
    assert torch.allclose(model.synthesis(ws), turned, rtol=1e-3, atol=1e-4 * float(still.std())) == turns


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.bfloat16), torch.float16])
def test_autocast_runs_forward_and_backward(dtype):
    model = small("XL", 32, label_dim=0)
    ws = model.mapping(torch.randn(2, 64)).clone().requires_grad_()
    exact = model.synthesis(ws)
    (expected,) = torch.autograd.grad(exact.square().sum(), ws)
    with torch.autocast("cpu", dtype):
        picture = model.synthesis(ws)
    assert picture.dtype == torch.float32
    (gradient,) = torch.autograd.grad(picture.square().sum(), ws)
    assert float((picture - exact).detach().norm() / exact.detach().norm()) < 0.05
    assert float((gradient - expected).norm() / expected.norm()) < 0.2


def test_half_precision_does_not_overflow_at_the_clamp():
    """The largest sum there is: 1024 x 3 x 3 inputs at the clamp and all of one sign. Half precision ends at 65504."""
    layer = Layer(4, 1024, 8, 3, False, 2, 2, [9, 8, 9, 8], 256.0, {"shape": [12]}, {"shape": [12]}).requires_grad_(
        False
    )
    layer.weight.fill_(1)
    layer.up_filter.fill_(1 / 12)
    layer.down_filter.fill_(1 / 12)
    x, w = torch.full((1, 1024, 12, 12), 256.0), torch.zeros(1, 4)
    with torch.autocast("cpu", torch.float16):
        y = layer(x, w)
    torch.testing.assert_close(y, layer(x, w), rtol=1e-2, atol=1e-2)


# ---------------------------------------------------------------- as a base model


def test_backbone_samples_by_seed_and_class(folder):
    base = StyleGANXLBackbone.load(folder, [get_intrinsic("depth")])
    one = base.sample([3], classes=[2])
    both = base.sample([9, 3], classes=[2, 2])
    torch.testing.assert_close(both[1:], one)  # a function of its own seed
    z = torch.from_numpy(np.random.RandomState(3).randn(1, 6)).float()
    torch.testing.assert_close(one, base.model.mapping(z, torch.eye(5)[2:3]))
    torch.testing.assert_close(base.sample([3], classes=[2], truncation=0.0)[0, 0], base.model.w_avg[2])
    pictures = base.render(both)
    assert pictures.shape == (2, 3, 32, 32) and pictures.dtype == torch.float32
    torch.testing.assert_close(pictures * 2 - 1, base.model.synthesis(both))
    for classes in ([5], [0, 1]):
        with pytest.raises(ValueError, match="classes 0 to 4"):
            base.sample([3], classes=classes)
    with pytest.raises(ValueError, match="make-set"):
        require_encoder(base)


def test_xl_draws_the_class_from_the_seed_and_goes_towards_the_nearest_centroid(folder, tmp_path):
    """Compare with the authors' script in NumPy and float64, from the mapping network's output."""
    base = StyleGANXLBackbone.load(folder, [get_intrinsic("depth")])
    assert base.family == "StyleGAN-XL"
    seeds = [0, 1, 2, 3, 4, 5]
    classes = [np.random.RandomState(seed).randint(low=0, high=5, size=1)[0] for seed in seeds]
    assert len(set(classes)) > 1
    ws = base.sample(seeds, classes=classes)
    torch.testing.assert_close(base.sample(seeds), ws, rtol=0, atol=0)

    w = ws[:, 0].double().numpy()
    means = w[[1, 4]] + 0.01  # so that the nearest one differs from picture to picture
    np.save(tmp_path / "centroids.npy", means)
    distances = np.linalg.norm(means[None] - w[:, None], axis=2)  # (6, 2)
    nearest = means[distances.argmin(1)]
    assert len(set(distances.argmin(1))) == 2
    drawn = base.sample(seeds, truncation=0.3, centroids=tmp_path / "centroids.npy")
    expected = nearest + 0.3 * (w - nearest)
    np.testing.assert_allclose(drawn, np.repeat(expected[:, None], base.num_ws, 1), rtol=1e-4, atol=1e-5)


def test_stylegan3_has_neither(tmp_path):
    model = small("T", 16, label_dim=5)
    save_generator(model, tmp_path / "t")
    base = StyleGANXLBackbone.load(tmp_path / "t", [])
    assert base.family == "StyleGAN3" and "centroids" not in base.sample_options
    with pytest.raises(ValueError, match="classes 0 to 4"):
        base.sample([3])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (np.zeros((4, 7)), r"must hold centroids \(N, 16\), not float64 \(4, 7\)"),
        (np.zeros((0, 16)), "must hold centroids"),
        (np.zeros((4, 16), int), "must hold centroids"),
        (np.full((4, 16), np.nan), "NaN or infinity"),
        (np.array([{}] * 4, object), "cannot be read"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 16), }",
            "cannot be read",
        ),
        (b"nothing", "cannot be read"),
    ],
)
def test_centroids_that_are_none(folder, tmp_path, content, sentence):
    file = tmp_path / "centroids.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    base = StyleGANXLBackbone.load(folder, [])
    with pytest.raises(ValueError, match=sentence) as error:
        base.sample([0], truncation=0.5, centroids=file)
    assert str(file) in str(error.value)


def test_lora_changes_only_the_styles_and_comes_off_without_a_trace(folder):
    base = StyleGANXLBackbone.load(folder, [get_intrinsic("depth")])
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    ws = base.sample([0, 1], classes=[0, 4])
    picture = base.render(ws)
    base.add_lora("depth", 8, 8.0, base.targets, seed=0)
    assert base.render(ws).equal(picture)

    lora = base.lora_weights("depth")
    assert list(lora) == [f"layers.{layer['name']}.affine" for layer in base.config["layers"]]  # ToRGB, not the input
    layers = [base.config["w_dim"] + layer["in_channels"] for layer in base.config["layers"]]
    assert sum(a.numel() + b.numel() for a, b, _ in lora.values()) == 8 * sum(layers)

    base.render(ws).square().mean().backward()
    trained = [name for name, p in base.model.named_parameters() if p.grad is not None]
    assert trained and all(".lora_" in name for name in trained)
    assert all(float(p.grad.abs().max()) > 0 for name, p in base.model.named_parameters() if ".lora_B." in name)

    torch.manual_seed(0)
    moved = {name: (a, torch.randn_like(b) * 0.3, alpha) for name, (a, b, alpha) in lora.items()}
    base.load_lora_weights("depth", moved)
    drawn = base.render(ws).detach()
    assert float((drawn - picture).norm()) > 0.1 * float(picture.std()) * picture.numel() ** 0.5
    base.activate(None)
    assert base.render(ws).equal(picture)
    after = {key.replace(".base_layer", ""): value for key, value in base.model.state_dict().items()}
    assert all(after[key].equal(value) for key, value in before.items())

    folded = small("XL", 32, **CLASSES)
    for name, (a, b, _) in moved.items():
        folded.get_submodule(name).weight += b @ a  # alpha / rank is 1
    torch.testing.assert_close(folded.synthesis(ws) * 0.5 + 0.5, drawn, rtol=1e-3, atol=1e-3)
