"""StyleGANs under the names that the official pickles have, random, drawing by the papers' formulas written plainly.

Every layer here keeps its gain beside its weight and multiplies at run time, modulates one sample's kernel after the
other, and filters by explicit zero-stuffing in float64: nothing is shared with the package but the table of layers.
"""

import sys
from collections import OrderedDict
from math import log2, sqrt
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from intrinsic_lora.train.generators.stylegan3_layout import lowpass
from torch import Tensor, nn

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
BINOMIAL = torch.outer(TAPS, TAPS) / 64


def stub_modules(monkeypatch) -> None:
    """Lets pickles name `torch_utils.persistence` and `dnnlib.util` as official ones do, while the test runs."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the reader called a function of the file")

    class EasyDict(dict):
        pass

    _reconstruct_persistent_obj.__module__, EasyDict.__module__ = persistence.__name__, util.__name__
    EasyDict.__qualname__ = "EasyDict"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj, util.EasyDict = _reconstruct_persistent_obj, EasyDict
    for child in (persistence, util):
        name, _, attribute = child.__name__.partition(".")
        parent = ModuleType(name)
        setattr(parent, attribute, child)  # dill looks there
        monkeypatch.setitem(sys.modules, name, parent)
        monkeypatch.setitem(sys.modules, child.__name__, child)


class Persistent(nn.Module):
    """Pickled as `torch_utils.persistence` does: a function's name, and the class's source and state as data."""

    def __reduce__(self):
        state = {k: OrderedDict(v) if isinstance(v, dict) else v for k, v in self.__dict__.items()}
        state["_init_kwargs"] = sys.modules["dnnlib.util"].EasyDict(a=1)
        source = "raise AssertionError('the source in the file was run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": type(self).__name__, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


class FullyConnectedLayer(Persistent):
    def __init__(self, inputs: int, outputs: int, activation: str = "linear", rate: float = 1.0, bias: float = 0.0):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter((torch.randn(outputs) * 0.1 + bias) / rate)
        self.weight_gain, self.bias_gain = rate / np.sqrt(inputs), rate  # the first a numpy scalar, as there

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (self.weight * self.weight_gain).T + self.bias * self.bias_gain
        return lrelu(y) if self.activation == "lrelu" else y


class MappingNetwork(Persistent):
    def __init__(self, z_dim: int, c_dim: int, w_dim: int, layers: int, table: int = 0):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_layers = z_dim, c_dim, w_dim, layers
        self.embed, width = None, z_dim
        if table:
            self.embed = nn.Embedding(c_dim or 1000, table)  # StyleGAN-XL has one even without classes
            self.embed_proj = FullyConnectedLayer(table, z_dim, "lrelu") if c_dim else None
            width += z_dim if c_dim else 0
        elif c_dim:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
            width += w_dim
        for i in range(layers):
            self.add_module(f"fc{i}", FullyConnectedLayer(w_dim if i else width, w_dim, "lrelu", rate=0.01))
        self.register_buffer("w_avg", torch.randn(c_dim, w_dim) if table and c_dim else torch.randn(w_dim))

    def forward(self, z: Tensor, label: Tensor | None, truncation: float) -> Tensor:
        x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
        mean = self.w_avg
        if label is not None:
            is_table = isinstance(self.embed, nn.Embedding)
            y = self.embed_proj(self.embed.weight[label.argmax(1)]) if is_table else self.embed(label)
            x = torch.cat([x, y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()], 1)
            mean = mean[label.argmax(1)] if is_table else mean
        for i in range(self.num_layers):
            x = self.get_submodule(f"fc{i}")(x)
        return mean + truncation * (x - mean)


class ToRGBLayer(Persistent):
    def __init__(self, channels: int, w_dim: int, clamp: float | None):
        super().__init__()
        self.conv_clamp = clamp
        self.affine = FullyConnectedLayer(w_dim, channels, bias=1)
        self.weight = nn.Parameter(torch.randn(3, channels, 1, 1))
        self.bias = nn.Parameter(torch.randn(3))
        self.weight_gain = 1 / np.sqrt(channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        kernels = self.weight[None] * (self.affine(w) * self.weight_gain)[:, None, :, None, None]  # (B, 3, I, 1, 1)
        y = torch.cat([F.conv2d(a[None], k) for a, k in zip(x, kernels, strict=True)]) + self.bias[:, None, None]
        return y if self.conv_clamp is None else y.clamp(-self.conv_clamp, self.conv_clamp)


class SynthesisLayer2(Persistent):
    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, up: int, clamp: float | None):
        super().__init__()
        self.up, self.activation, self.use_noise, self.conv_clamp = up, "lrelu", True, clamp
        self.affine = FullyConnectedLayer(w_dim, inputs, bias=1)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.randn(()))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.register_buffer("resample_filter", BINOMIAL.clone())
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        kernels = self.weight[None] * self.affine(w)[:, None, :, None, None]  # (B, O, I, 3, 3)
        kernels = kernels / (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
        pictures = []
        for a, k in zip(x, kernels, strict=True):
            if self.up == 1:
                y = F.conv2d(a[None], k, padding=1)
            else:  # zero-stuff, convolve (with the kernel turned round), filter
                stuffed = zero_stuff(a[None], 2)[:, :, :-1, :-1]
                y = fir(F.conv2d(F.pad(stuffed, [2] * 4), k.flip(2, 3)), BINOMIAL * 4, [1] * 4)
            pictures.append(y)
        y = torch.cat(pictures) + self.noise_const * self.noise_strength + self.bias[:, None, None]
        y = lrelu(y)
        return y if self.conv_clamp is None else y.clamp(-self.conv_clamp, self.conv_clamp)


SynthesisLayer2.__name__ = "SynthesisLayer"


class SynthesisBlock(Persistent):
    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, clamp: float | None):
        super().__init__()
        self.architecture, self.resolution = "skip", resolution
        self.register_buffer("resample_filter", BINOMIAL.clone())
        if inputs == 0:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer2(inputs, outputs, w_dim, resolution, 2, clamp)
        self.conv1 = SynthesisLayer2(outputs, outputs, w_dim, resolution, 1, clamp)
        self.torgb = ToRGBLayer(outputs, w_dim, clamp)


class SynthesisNetwork2(Persistent):
    def __init__(self, w_dim: int, resolution: int, base: int, most: int, clamp: float | None):
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels, before = w_dim, resolution, 3, 0
        self.block_resolutions = [2**i for i in range(2, int(log2(resolution)) + 1)]
        for res in self.block_resolutions:
            channels = min(base // res, most)
            self.add_module(f"b{res}", SynthesisBlock(before, channels, w_dim, res, clamp))
            before = channels

    def forward(self, w: Tensor) -> Tensor:
        """w (B, w_dim), the same for every layer."""
        x, picture = self.b4.const[None].repeat(len(w), 1, 1, 1), None
        for res in self.block_resolutions:
            block = self.get_submodule(f"b{res}")
            x = block.conv1(x if res == 4 else block.conv0(x, w), w)
            y = block.torgb(x, w)
            picture = y if picture is None else y + fir(zero_stuff(picture, 2), BINOMIAL * 4, [2, 1, 2, 1])
        return picture


SynthesisNetwork2.__name__ = "SynthesisNetwork"


class SynthesisInput(Persistent):
    def __init__(self, w_dim: int, channels: int, size: int, sampling_rate: float, bandwidth: float):
        super().__init__()
        self.w_dim, self.channels, self.size = w_dim, channels, np.array([size, size])
        self.sampling_rate, self.bandwidth = np.float64(sampling_rate), np.float64(bandwidth)
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = FullyConnectedLayer(w_dim, 4)
        self.register_buffer("transform", torch.eye(3) + torch.randn(3, 3) * torch.tensor([[0.1], [0.1], [0.0]]))
        self.register_buffer("freqs", torch.randn(channels, 2) * bandwidth / 2)
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, w: Tensor) -> Tensor:
        size, rate, pictures = int(self.size[0]), float(self.sampling_rate), []
        for t in self.affine(w):
            cos, sin, x, y = (t / t[:2].norm()).tolist()
            turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
            move = torch.tensor([[1.0, 0.0, -x], [0.0, 1.0, -y], [0.0, 0.0, 1.0]])
            motion = (turn @ move @ self.transform.float()).to(w.dtype)
            freqs = self.freqs @ motion[:2, :2]  # (C, 2)
            phases = self.phases + self.freqs @ motion[:2, 2]
            fade = (1 - (freqs.norm(dim=1) - self.bandwidth) / (rate / 2 - self.bandwidth)).clamp(0, 1)
            at = (torch.arange(size, dtype=w.dtype) + 0.5 - size / 2) / rate
            down, across = torch.meshgrid(at, at, indexing="ij")
            turns = across[..., None] * freqs[:, 0] + down[..., None] * freqs[:, 1] + phases  # (size, size, C)
            waves = torch.sin(2 * torch.pi * turns) * fade
            pictures.append((waves @ self.weight.T / sqrt(self.channels)).permute(2, 0, 1))
        return torch.stack(pictures)


class SynthesisLayer3(Persistent):
    def __init__(self, w_dim: int, spec: dict):
        super().__init__()
        self.w_dim, self.is_torgb, self.use_fp16 = w_dim, spec["is_torgb"], True
        self.in_channels, self.out_channels, self.conv_kernel = (
            spec["in_channels"],
            spec["out_channels"],
            spec["kernel"],
        )
        self.up_factor, self.down_factor = spec["up_factor"], spec["down_factor"]
        self.padding, self.conv_clamp = list(spec["padding"]), spec["conv_clamp"]
        self.in_cutoff = np.float64(1.5)
        self.affine = FullyConnectedLayer(w_dim, self.in_channels, bias=1)
        shape = (self.out_channels, self.in_channels, self.conv_kernel, self.conv_kernel)
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(self.out_channels) * 0.1)
        self.register_buffer("magnitude_ema", torch.rand(()) + 0.5)
        for name in ("up_filter", "down_filter"):
            self.register_buffer(name, lowpass(**spec[name]) if spec[name] else None)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.affine(w), self.weight
        if self.is_torgb:
            style = style / sqrt(self.in_channels)
        else:
            weight = weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()
            style = style / style.square().mean().sqrt()
        kernels = weight[None] * style[:, None, :, None, None]  # (B, O, I, k, k)
        if not self.is_torgb:
            kernels = kernels / (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
        kernels = kernels * self.magnitude_ema.rsqrt()
        k = self.conv_kernel - 1
        x = torch.cat([F.conv2d(a[None], b, padding=k) for a, b in zip(x, kernels, strict=True)])
        x = x + self.bias[:, None, None]
        x = zero_stuff(x, self.up_factor)
        x = fir(x, square(self.up_filter) * self.up_factor**2, self.padding)
        x = x if self.is_torgb else lrelu(x)
        x = x if self.conv_clamp is None else x.clamp(-self.conv_clamp, self.conv_clamp)
        return fir(x, square(self.down_filter), [0] * 4)[:, :, :: self.down_factor, :: self.down_factor]


SynthesisLayer3.__name__ = "SynthesisLayer"


class SynthesisNetwork3(Persistent):
    def __init__(self, config: dict):
        super().__init__()
        self.w_dim, self.img_resolution, self.output_scale = (
            config["w_dim"],
            config["resolution"],
            config["output_scale"],
        )
        self.input = SynthesisInput(self.w_dim, **config["input"])
        self.layer_names = [spec["name"] for spec in config["layers"]]
        for spec in config["layers"]:
            self.add_module(spec["name"], SynthesisLayer3(self.w_dim, spec))

    def forward(self, w: Tensor) -> Tensor:
        x = self.input(w)
        for name in self.layer_names:
            x = self.get_submodule(name)(x, w)
        return x * self.output_scale


SynthesisNetwork3.__name__ = "SynthesisNetwork"


class Generator(Persistent):
    def __init__(self, mapping: MappingNetwork, synthesis: nn.Module):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = mapping.z_dim, mapping.c_dim, mapping.w_dim
        self.mapping, self.synthesis = mapping, synthesis

    def forward(self, z: Tensor, label: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        return self.synthesis(self.mapping(z, label, truncation))


def official_stylegan2(resolution: int, classes: int = 0, clamp: float | None = 256.0) -> Generator:
    mapping = MappingNetwork(16, classes, 24, 3)
    return Generator(mapping, SynthesisNetwork2(24, resolution, 4 * resolution, 20, clamp))


def official_stylegan3(config: dict, unused_table: bool = False) -> Generator:
    table = config["class_embedding"] or (7 if unused_table else 0)
    sizes = (config[name] for name in ("z_dim", "label_dim", "w_dim", "mapping_layers"))
    return Generator(MappingNetwork(*sizes, table=table), SynthesisNetwork3(config))


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * sqrt(2)


def zero_stuff(x: Tensor, up: int) -> Tensor:
    y = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    y[:, :, ::up, ::up] = x
    return y


def square(taps: Tensor | None) -> Tensor:
    """Return a filter as a (k, k) kernel."""
    taps = torch.ones(1) if taps is None else taps
    return taps if taps.ndim == 2 else torch.outer(taps, taps)


def fir(x: Tensor, kernel: Tensor, padding: list[int]) -> Tensor:
    """Pad (or crop, if negative) left, right, top, bottom, and convolve every channel."""
    x = F.pad(x, padding)
    channels = x.shape[1]
    return F.conv2d(x, kernel.to(x.dtype).flip(0, 1).expand(channels, 1, -1, -1), groups=channels)
