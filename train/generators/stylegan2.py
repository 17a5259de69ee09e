"""The StyleGAN-v2 generator (skip architecture), implemented from its formulas in PyTorch, without custom ops.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020). Gains of the fully connected layers
(equalised learning rate) are folded into their weights, so that they are plain `nn.Linear` layers that can be adapted
by a LoRA. Noise is constant, so that a picture depends only on w.

Under autocast the convolutions run in its precision; styles, norms and the sum of the pictures stay in float32.
"""

from math import log2, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MappingNetwork(nn.Module):
    """Mapping of z (B, z_dim) and, in a conditional generator, a one-hot label (B, label_dim) to w (B, w_dim)."""

    def __init__(self, z_dim: int, w_dim: int, layers: int, label_dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.embed = nn.Linear(label_dim, w_dim) if label_dim else None
        width = z_dim + (w_dim if label_dim else 0)
        for i in range(layers):
            layer = nn.Linear(width if i == 0 else w_dim, w_dim)
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
            self.add_module(f"fc{i}", layer)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        x = unit_rms(z)  # (B, z_dim)
        if self.embed is not None:
            x = torch.cat([x, unit_rms(self.embed(label))], dim=1)  # (B, z_dim + w_dim)
        for i in range(self.layers):
            x = F.leaky_relu(self.get_submodule(f"fc{i}")(x), 0.2) * sqrt(2)
        return x


class StyleConv(nn.Module):
    """A 3x3 convolution modulated by w and demodulated, with optional upsampling; noise, bias, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = style_affine(w_dim, in_channels)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.noise_const: Tensor
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, up_filter: Tensor | None = None) -> Tensor:
        """Apply to x (B, I, h, h), w (B, w_dim) -> (B, O, h, h), or (B, O, 2h, 2h) with the (4, 4) `up_filter`."""
        with torch.autocast(x.device.type, enabled=False):
            style = self.affine(w)  # (B, I)
            demodulation = (style.square() @ self.weight.square().sum((2, 3)).T + 1e-8).rsqrt()  # (B, O)
        # Scaling input and output equals scaling the kernel per sample, with a single convolution.
        x = x * style[:, :, None, None].to(x.dtype)
        if up_filter is None:
            x = F.conv2d(x, self.weight, padding=1)
        else:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)  # (B, O, 2h+1, 2h+1)
            x = filter_2d(x, up_filter * 4, padding=1)
        # The gain sqrt(2) after the leaky ReLU (positively homogeneous) is applied before it, to smaller tensors.
        shift = self.noise_const * self.noise_strength + self.bias[:, None, None]  # (O, H, H)
        gain = demodulation[:, :, None, None] * sqrt(2)
        x = F.leaky_relu(torch.addcmul((shift * sqrt(2)).to(x.dtype), x, gain.to(x.dtype)), 0.2)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """A 1x1 convolution modulated by w, not demodulated."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = style_affine(w_dim, in_channels)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Apply to x (B, I, h, h), w (B, w_dim) -> (B, picture channels, h, h), float32."""
        with torch.autocast(x.device.type, enabled=False):
            style = self.affine(w) / sqrt(self.weight.shape[1])  # (B, I)
        x = F.conv2d(x * style[:, :, None, None].to(x.dtype), self.weight).float() + self.bias[:, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class Block(nn.Module):
    """The layers of one resolution. The first block starts from a constant instead of `conv0`."""

    def __init__(
        self, in_channels: int, out_channels: int, resolution: int, w_dim: int, clamp: float | None, rgb: int
    ):
        super().__init__()
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = StyleConv(in_channels, out_channels, w_dim, resolution, clamp)
        self.conv1 = StyleConv(out_channels, out_channels, w_dim, resolution, clamp)
        self.torgb = ToRGB(out_channels, rgb, w_dim, clamp)


class StyleGAN2(nn.Module):
    """Mapping and synthesis network of StyleGAN-v2, randomly initialised.

    Args:
        resolution: height and width of the picture, a power of two.
        z_dim, w_dim: widths of the latent and of the style vectors.
        mapping_layers: number of layers of the mapping network.
        label_dim: number of classes, 0 for an unconditional generator.
        channel_base, channel_max: a block of resolution r has `min(channel_base // r, channel_max)` channels. 32768 is
            the paper's config F, 16384 is called "paper256" in the official code.
        conv_clamp: bound of every layer's output, or None.
        picture_channels: channels of the picture.

    Attributes:
        config: the arguments.
        num_ws: number of style vectors per picture, 2 log2(resolution) - 2.

    Raises:
        ValueError: the resolution is not a power of two of at least 8.
    """

    def __init__(
        self,
        resolution: int = 256,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        label_dim: int = 0,
        channel_base: int = 32768,
        channel_max: int = 512,
        conv_clamp: float | None = None,
        picture_channels: int = 3,
    ) -> None:
        if resolution < 8 or resolution & (resolution - 1):
            raise ValueError(f"StyleGAN2 makes pictures of 8, 16, 32, ... pixels, not of {resolution}.")
        super().__init__()
        self.config: dict[str, Any] = {
            "resolution": resolution,
            "z_dim": z_dim,
            "w_dim": w_dim,
            "mapping_layers": mapping_layers,
            "label_dim": label_dim,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "conv_clamp": conv_clamp,
            "picture_channels": picture_channels,
        }
        levels = int(log2(resolution))
        self.num_ws = 2 * levels - 2
        self.label_dim = label_dim
        self.mapping_network = MappingNetwork(z_dim, w_dim, mapping_layers, label_dim)
        self.blocks = nn.ModuleDict()
        before = 0
        for res in (2**i for i in range(2, levels + 1)):
            channels = min(channel_base // res, channel_max)
            self.blocks[str(res)] = Block(before, channels, res, w_dim, conv_clamp, picture_channels)
            before = channels
        self.w_avg: Tensor
        self.resample_filter: Tensor
        self.register_buffer("w_avg", torch.zeros(w_dim))
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("resample_filter", torch.outer(taps, taps) / 64)

    def mapping(self, z: Tensor, label: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Map latents to style vectors.

        Args:
            z: (B, z_dim), standard normal.
            label: (B, label_dim) one-hot, for a conditional generator.
            truncation: 1 leaves w unchanged, 0 gives the mean w.

        Returns:
            (B, num_ws, w_dim), float32; the same w for every layer.

        Raises:
            ValueError: a label is missing for a conditional generator, or given for an unconditional one.
        """
        if (label is not None) != bool(self.label_dim):
            need = (
                f"requires a label of {self.label_dim} classes"
                if self.label_dim
                else "is unconditional; omit the label"
            )
            raise ValueError(f"This generator {need}.")
        with torch.autocast(z.device.type, enabled=False):
            w = self.mapping_network(z, label)
            if truncation != 1:
                w = self.w_avg + truncation * (w - self.w_avg)
        return w[:, None].expand(-1, self.num_ws, -1)  # (B, num_ws, w_dim)

    def synthesis(self, ws: Tensor) -> Tensor:
        """Render pictures (B, 3, R, R), sRGB, about [-1, 1], not clamped, float32, from ws (B, num_ws, w_dim)."""
        layers = iter(ws.unbind(1))
        w = next(layers)
        # On the CPU, convolutions are two to three times faster with the channels last.
        order = torch.channels_last if ws.device.type == "cpu" else torch.contiguous_format
        const = self.get_parameter("blocks.4.const")  # (C, 4, 4)
        x = const.expand(len(ws), -1, -1, -1).contiguous(memory_format=order)
        picture: Any = None
        block: Any
        for block in self.blocks.values():
            if picture is not None:
                x = block.conv0(x, w, self.resample_filter)
                w = next(layers)
            x = block.conv1(x, w)
            w = next(layers)  # for ToRGB and for the next block's first convolution
            rgb = block.torgb(x, w)
            picture = rgb if picture is None else rgb + upsample(picture, self.resample_filter)
        return picture


def style_affine(w_dim: int, channels: int) -> nn.Linear:
    """Build the linear layer from w to the scales of a layer's input channels, which are initially close to 1."""
    affine = nn.Linear(w_dim, channels)
    nn.init.normal_(affine.weight, std=w_dim**-0.5)
    nn.init.ones_(affine.bias)
    return affine


def unit_rms(x: Tensor) -> Tensor:
    """Divide (B, C) by its root mean square over C."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def filter_2d(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Filter (B, C, H, W) by one symmetric (k, k) kernel in every channel."""
    channels = x.shape[1]
    return F.conv2d(x, kernel.to(x.dtype).expand(channels, 1, -1, -1), padding=padding, groups=channels)


def upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """Upsample (B, C, h, w) -> (B, C, 2h, 2w): insert a zero after every sample, then filter with a (4, 4) kernel."""
    with torch.autocast(x.device.type, enabled=False):
        channels = x.shape[1]
        weight = (kernel * 4).expand(channels, 1, -1, -1)
        # A transposed convolution combines zero-stuffing and filtering; padding 1 corresponds to (2, 1) at the output.
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=channels)
