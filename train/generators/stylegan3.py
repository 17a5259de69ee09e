"""The StyleGAN3 generator (configs T and R) and StyleGAN-XL, implemented from their formulas in PyTorch.

Karras et al., "Alias-Free Generative Adversarial Networks" (2021); Sauer et al., "StyleGAN-XL" (2022). StyleGAN-XL is
StyleGAN3-T with more layers, a narrow z and a class embedding: its stem and super-resolution layers are one chain.
Gains of the fully connected layers are folded into their weights, as in `stylegan2.py`.

Under autocast the convolutions run in its precision, with inputs and kernels scaled so that half precision does not
overflow; everything else stays in float32.
"""

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .stylegan2 import MappingNetwork, style_affine, unit_rms
from .stylegan3_layout import lowpass


class ClassMappingNetwork(nn.Module):
    """Mapping of StyleGAN-XL with a class embedding: z (B, z_dim), one-hot class (B, label_dim) -> w (B, w_dim)."""

    def __init__(self, z_dim: int, w_dim: int, layers: int, label_dim: int, class_embedding: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(label_dim, class_embedding)
        self.embed_proj = nn.Linear(class_embedding, z_dim)
        self.layers = layers
        for i in range(layers):
            layer = nn.Linear(w_dim if i else 2 * z_dim, w_dim)
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
            self.add_module(f"fc{i}", layer)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        features = self.embed_proj(self.embed(label.argmax(1)))  # (B, z_dim)
        x = torch.cat([unit_rms(z), unit_rms(leaky_relu(features))], dim=1)  # (B, 2 z_dim)
        for i in range(self.layers):
            x = leaky_relu(self.get_submodule(f"fc{i}")(x))
        return x


class FourierInput(nn.Module):
    """Plane waves, translated and rotated by w.

    Buffers:
        freqs: (C, 2), cycles per picture, x before y.
        phases: (C,), cycles.
        transform: (3, 3), a user-defined motion in units of the picture, x right, y down, 0 in the centre.
    """

    def __init__(self, w_dim: int, channels: int, size: int, sampling_rate: float, bandwidth: float) -> None:
        super().__init__()
        self.size, self.sampling_rate, self.bandwidth = size, sampling_rate, bandwidth
        self.affine = nn.Linear(w_dim, 4)
        with torch.no_grad():  # initially the identity
            self.affine.weight.zero_()
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.weight = nn.Parameter(torch.randn(channels, channels))
        angle = 2 * torch.pi * torch.rand(channels)
        radius = bandwidth * torch.rand(channels).sqrt()  # uniform in the disc of the band
        self.freqs: Tensor
        self.phases: Tensor
        self.transform: Tensor
        self.register_buffer("freqs", radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1))
        self.register_buffer("phases", torch.rand(channels) - 0.5)
        self.register_buffer("transform", torch.eye(3))

    def forward(self, w: Tensor) -> Tensor:
        """Compute (B, C, size, size), channels last in memory, from w (B, w_dim)."""
        t = self.affine(w)
        cos, sin, right, below = (t / t[:, :2].norm(dim=1, keepdim=True)).unbind(1)  # (B,) each
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3)
        move = torch.stack([one, zero, -right, zero, one, -below, zero, zero, one], 1).view(-1, 3, 3)
        motion = turn @ move @ self.transform  # (B, 3, 3), of the coordinates
        phases = self.phases + (self.freqs @ motion[:, :2, 2:])[..., 0]  # (B, C)
        freqs = self.freqs @ motion[:, :2, :2]  # (B, C, 2)

        # Waves outside the band fade out before they would alias.
        beyond = (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        amplitudes = (1 - beyond).clamp(0, 1)  # (B, C)

        place = (torch.arange(self.size, device=w.device) + 0.5 - self.size / 2) / self.sampling_rate  # (size,)
        across = place * freqs[:, :, :1] + phases[..., None]  # (B, C, size): along x
        down = place * freqs[:, :, 1:]  # (B, C, size): along y
        waves = torch.sin(2 * torch.pi * (down.mT[:, :, None] + across.mT[:, None]))  # (B, size, size, C)
        mix = self.weight / sqrt(len(self.weight))
        return ((waves * amplitudes[:, None, None]) @ mix.T).permute(0, 3, 1, 2)


class Layer(nn.Module):
    """A modulated convolution with a leaky ReLU between up- and downsampling to avoid aliasing; or ToRGB.

    Args:
        w_dim: width of the style vectors.
        in_channels, out_channels, kernel: of the convolution.
        is_torgb: no demodulation and no nonlinearity.
        up_factor, down_factor: of the signal around the leaky ReLU.
        padding: samples to add (or, if negative, to remove) at left, right, top, bottom of the upsampled signal.
        conv_clamp: bound after the leaky ReLU, or None.
        up_filter, down_filter: {"shape": [taps]}, for the second also [taps, taps], or None. With "cutoff", "width"
            and "rate" (see `lowpass`) the filter is designed, otherwise it is zero until weights are loaded.
    """

    def __init__(
        self,
        w_dim: int,
        in_channels: int,
        out_channels: int,
        kernel: int,
        is_torgb: bool,
        up_factor: int,
        down_factor: int,
        padding: list[int],
        conv_clamp: float | None,
        up_filter: dict[str, Any] | None,
        down_filter: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.is_torgb, self.clamp = is_torgb, conv_clamp
        self.up_factor, self.down_factor, self.padding = up_factor, down_factor, tuple(padding)
        self.affine = style_affine(w_dim, in_channels)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.magnitude_ema: Tensor  # of the input's square, from training
        self.up_filter: Tensor | None
        self.down_filter: Tensor | None
        self.register_buffer("magnitude_ema", torch.ones(()))
        self.register_buffer("up_filter", _design(up_filter))
        self.register_buffer("down_filter", _design(down_filter))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Apply to x (B, I, h, h), w (B, w_dim) -> (B, O, H, H), float32."""
        with torch.autocast(x.device.type, enabled=False):
            style, gain = self.affine(w), self.magnitude_ema.rsqrt()  # (B, I), ()
            size = self.weight[0].numel()  # I k k
            if not self.is_torgb:
                # The papers divide style by its RMS over the whole batch. As demodulation cancels any factor, the RMS
                # of each sample is equivalent, and pictures do not depend on their batch.
                style = unit_rms(style)
                # Demodulation also cancels the papers' division of each kernel by its RMS, except for its eps.
                power = self.weight.square().sum((2, 3))  # (O, I)
                eps = 1e-8 * power.sum(1) / size  # (O,)
                demodulation = (style.square() @ power.T + eps).rsqrt() * sqrt(size)  # (B, O)
            # `gain` normalises inputs and the root outputs, so that half precision does not overflow.
            style = style * gain / sqrt(size)
        # Scaling input and output equals scaling the kernel per sample, with a single convolution.
        x = F.conv2d(x * style[:, :, None, None], self.weight, padding=self.weight.shape[2] - 1).float()
        bias = self.bias[:, None, None]
        if self.is_torgb:
            x = x + bias
            return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        # The gain sqrt(2) after the leaky ReLU (positively homogeneous) is applied before it, to smaller tensors.
        x = torch.addcmul(bias * sqrt(2), x, demodulation[:, :, None, None] * sqrt(2))
        with torch.autocast(x.device.type, enabled=False):
            return self._filtered_leaky_relu(x)

    def _filtered_leaky_relu(self, x: Tensor) -> Tensor:
        """Upsample, apply the leaky ReLU without its gain, clamp and downsample: (B, C, h, h) -> (B, C, H, H)."""
        left, right, top, bottom = self.padding
        x = resample(x, self.up_filter, up=self.up_factor, padding_x=(left, right), padding_y=(top, bottom))
        x = LeakyClamp.apply(x, self.clamp)
        if self.down_filter is not None and self.down_filter.ndim == 2:
            batch, channels = x.shape[:2]
            kernel = self.down_filter.flip(0, 1)[None, None]  # (1, 1, taps, taps)
            x = F.conv2d(x.reshape(batch * channels, 1, *x.shape[2:]), kernel, stride=self.down_factor)
            return x.view(batch, channels, *x.shape[2:])
        return resample(x, self.down_filter, down=self.down_factor)


class LeakyClamp(torch.autograd.Function):
    """Leaky ReLU of slope 0.2, clamped to +-bound unless that is None.

    Stores one byte per element for the backward pass instead of two floats, which dominate the memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float | None) -> Tensor:
        if ctx.needs_input_grad[0]:
            fifths = (x > 0).to(torch.int8).mul_(4).add_(1)  # five times the slope: 5 or 1, and 0 beyond the bound
            if bound is not None:
                fifths *= (x <= bound) & (x >= -5 * bound)
            ctx.save_for_backward(fifths)
        y = F.leaky_relu(x, 0.2)
        return y if bound is None else y.clamp_(-bound, bound)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (fifths,) = ctx.saved_tensors
        return (gradient * fifths).mul_(0.2), None


class StyleGAN3(nn.Module):
    """Mapping and synthesis network of StyleGAN3 or StyleGAN-XL, randomly initialised.

    Args:
        resolution: height and width of the picture.
        input: arguments of `FourierInput`.
        layers: arguments of each `Layer` and its "name", in order; see `stylegan3_config` for the papers' generators.
        z_dim, w_dim: widths of the latent and of the style vectors.
        mapping_layers: number of layers of the mapping network.
        label_dim: number of classes, 0 for an unconditional generator.
        class_embedding: width of the class embedding, or None for a linear layer.
        w_avg_per_class: truncation moves w towards the mean of its class instead of the global mean.
        output_scale: factor of ToRGB's output.

    Attributes:
        config: the arguments.
        num_ws: number of style vectors per picture, one for the input and one per layer.

    Raises:
        ValueError: the output size of the layers is not the resolution.
    """

    def __init__(
        self,
        resolution: int,
        input: dict[str, Any],  # noqa: A002  (a key of the stored configuration)
        layers: list[dict[str, Any]],
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 2,
        label_dim: int = 0,
        class_embedding: int | None = None,
        w_avg_per_class: bool = False,
        output_scale: float = 0.25,
    ) -> None:
        size = input["size"]
        for layer in layers:
            size = _size_after(size, layer)
        if size != resolution:
            raise ValueError(f"These layers output {size} pixels, not {resolution}: convert the file again.")
        super().__init__()
        self.config: dict[str, Any] = {
            "resolution": resolution,
            "input": input,
            "layers": layers,
            "z_dim": z_dim,
            "w_dim": w_dim,
            "mapping_layers": mapping_layers,
            "label_dim": label_dim,
            "class_embedding": class_embedding,
            "w_avg_per_class": w_avg_per_class,
            "output_scale": output_scale,
        }
        self.num_ws = 1 + len(layers)
        self.label_dim, self.output_scale = label_dim, output_scale
        self.mapping_network: nn.Module
        if class_embedding is None:
            self.mapping_network = MappingNetwork(z_dim, w_dim, mapping_layers, label_dim)
        else:
            self.mapping_network = ClassMappingNetwork(z_dim, w_dim, mapping_layers, label_dim, class_embedding)
        self.w_avg: Tensor
        self.register_buffer("w_avg", torch.zeros((label_dim, w_dim) if w_avg_per_class else w_dim))
        self.input = FourierInput(w_dim, **input)
        self.layers = nn.ModuleDict(
            {layer["name"]: Layer(w_dim, **{k: v for k, v in layer.items() if k != "name"}) for layer in layers}
        )

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
            w = self.mapping_network(z, label)  # (B, w_dim)
            if truncation != 1:
                mean = self.w_avg
                if label is not None and mean.ndim == 2:
                    mean = mean[label.argmax(1)]  # (B, w_dim)
                w = mean + truncation * (w - mean)
        return w[:, None].expand(-1, self.num_ws, -1)  # (B, num_ws, w_dim)

    def synthesis(self, ws: Tensor) -> Tensor:
        """Render pictures (B, 3, R, R), sRGB, about [-1, 1], not clamped, float32, from ws (B, num_ws, w_dim)."""
        first, *others = ws.float().unbind(1)
        with torch.autocast(ws.device.type, enabled=False):
            x = self.input(first)
        for layer, w in zip(self.layers.values(), others, strict=True):
            x = layer(x, w)
        return x * self.output_scale


def resample(
    x: Tensor,
    taps: Tensor | None,
    *,
    up: int = 1,
    down: int = 1,
    padding_x: tuple[int, int] = (0, 0),
    padding_y: tuple[int, int] = (0, 0),
) -> Tensor:
    """Resample (B, C, h, w) -> (B, C, H, W): zero-stuff, pad or crop, filter (gain up^2), take every down-th sample.

    Requires and keeps channels-last memory.
    """
    channels = x.shape[1]
    taps = x.new_ones(1) if taps is None else taps * up
    height, width = (
        (up * n + sum(p) - len(taps)) // down + 1 for n, p in zip(x.shape[2:], (padding_y, padding_x), strict=True)
    )
    x = x.permute(0, 2, 3, 1).flatten(2)  # (B, h, w C)
    x = Slide.apply(x, taps, up, down, padding_y[0], height)  # (B, H, w C)
    x = x.unflatten(2, (-1, channels)).flatten(0, 1)  # (B H, w, C)
    x = Slide.apply(x, taps, up, down, padding_x[0], width)  # (B H, W, C)
    return x.unflatten(0, (-1, height)).permute(0, 3, 1, 2)


class Slide(torch.autograd.Function):
    """Every `down`-th sample of a filtered signal with input j at `up j + before`: (N, length, M) -> (N, out, M).

    Uses matrix products, which on the CPU are faster than convolutions of thousands of single channels, in blocks,
    because most of a single matrix would be zeros. The adjoint swaps up and down and reverses the filter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, up: int, down: int, before: int, out: int) -> Tensor:
        ctx.save_for_backward(taps)
        ctx.adjoint = (down, up, len(taps) - 1 - before, x.shape[1])
        return _slide(x, taps, up, down, before, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (taps,) = ctx.saved_tensors
        return _slide(gradient.contiguous(), taps.flip(0), *ctx.adjoint), None, None, None, None, None


def _slide(x: Tensor, taps: Tensor, up: int, down: int, before: int, out: int) -> Tensor:
    """Compute y[m] = sum over j of taps[down m + last - before - up j] x[j]."""
    length, last = x.shape[1], len(taps) - 1
    block = up * (24 if x.device.type == "cpu" else 128)  # on a GPU, launching a kernel costs more than zeros do
    y = x.new_zeros(x.shape[0], out, x.shape[2])
    for start in range(0, out, block):
        stop = min(start + block, out)
        first = max(-((before - down * start) // up), 0)  # range of inputs of the block
        end = min((down * (stop - 1) + last - before) // up + 1, length)
        if first < end:
            output = torch.arange(start, stop, device=x.device)[:, None]
            tap = down * output + last - before - up * torch.arange(first, end, device=x.device)
            matrix = torch.where((tap >= 0) & (tap <= last), taps[tap.clamp(0, last)], 0.0)  # (outputs, inputs)
            y[:, start:stop] = matrix @ x[:, first:end]
    return y


def _size_after(size: int, layer: dict[str, Any]) -> int:
    """Compute the width of a layer's output for an input of width `size`."""
    taps = [layer[name]["shape"][0] - 1 if layer[name] else 0 for name in ("up_filter", "down_filter")]
    upsampled = (size + layer["kernel"] - 1) * layer["up_factor"] + sum(layer["padding"][:2])
    return (upsampled - sum(taps) - 1) // layer["down_factor"] + 1


def leaky_relu(x: Tensor) -> Tensor:
    """Apply a leaky ReLU of slope 0.2 with the gain sqrt(2)."""
    return F.leaky_relu(x, 0.2) * sqrt(2)


def _design(config: dict[str, Any] | None) -> Tensor | None:
    if config is None:
        return None
    return lowpass(**config) if "cutoff" in config else torch.zeros(config["shape"])
