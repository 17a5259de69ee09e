"""Training components of a small StyleGAN-v2: discriminator, encoder, equalised learning rate, growth."""

import copy
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...generators.stylegan2 import StyleGAN2, filter_2d

CHANNEL_BASE, CHANNEL_MAX = 1024, 192  # of all networks
WIDTHS = {"z_dim": 128, "w_dim": 256, "mapping_layers": 3}  # of the generator
R1_INTERVAL = 16


class Trunk(nn.Module):
    """Residual blocks that halve the resolution: picture (B, 3, R, R) -> features (B, C, 4, 4).

    Downscaled pictures are added at every resolution, so that a block can be prepended without a discontinuity.
    """

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.sizes = [2**i for i in range(resolution.bit_length() - 1, 2, -1)]  # resolution, ..., 16, 8
        self.width = min(CHANNEL_BASE // 4, CHANNEL_MAX)
        self.from_rgb, self.blocks = nn.ModuleDict(), nn.ModuleDict()
        for res in self.sizes:
            width, half = (min(CHANNEL_BASE // r, CHANNEL_MAX) for r in (res, res // 2))
            conv0 = nn.Conv2d(width, width, 3, padding=1)
            conv1 = nn.Conv2d(width, half, 3, stride=2)
            skip = nn.Conv2d(width, half, 1, bias=False)
            self.from_rgb[str(res)] = nn.Conv2d(3, width, 1)
            self.blocks[str(res)] = nn.ModuleDict({"conv0": conv0, "conv1": conv1, "skip": skip})
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", StyleGAN2(8).resample_filter)
        plain_start(self)

    def forward(self, picture: Tensor) -> Tensor:
        picture = picture.contiguous(memory_format=torch.channels_last)
        x = picture.new_zeros(())
        block: Any
        for from_rgb, block in zip(self.from_rgb.values(), self.blocks.values(), strict=True):
            x = x + lrelu(from_rgb(picture))
            y = block["conv1"](filter_2d(lrelu(block["conv0"](x)), self.resample_filter, padding=2))
            x = (block["skip"](halved(x, self.resample_filter)) + lrelu(y)) * sqrt(0.5)
            picture = halved(picture, self.resample_filter)
        return x


class Discriminator(nn.Module):
    """Discriminator of pictures (B, 3, R, R), with the standard deviation in groups of four as a feature."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.trunk = Trunk(resolution)
        width = self.trunk.width
        self.conv = nn.Conv2d(width + 1, width, 3, padding=1)
        self.fc = nn.Linear(width * 16, width)
        self.out = nn.Linear(width, 1)
        for layer in (self.conv, self.fc, self.out):
            plain_start(layer)

    def forward(self, picture: Tensor) -> Tensor:
        x = self.trunk(picture)
        groups = x.float().reshape(4, -1, *x.shape[1:])  # (4, B/4, C, 4, 4): a group is a column
        variance = (groups - groups.mean(0)).square().mean(0)  # (B/4, C, 4, 4)
        spread = (variance + 1e-8).sqrt().mean((1, 2, 3))  # (B/4,)
        spread = spread.repeat(4)[:, None, None, None].expand(-1, 1, 4, 4)
        x = lrelu(self.conv(torch.cat([x, spread.to(x.dtype)], 1)))
        return self.out(lrelu(self.fc(x.flatten(1)))).float().squeeze(1)


class Encoder(nn.Module):
    """Encoder of pictures (B, 3, R, R) to mean and log variance of z, (B, z_dim) each."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.trunk = Trunk(resolution)
        self.fc = nn.Linear(self.trunk.width * 16, 256)
        self.out = nn.Linear(256, 2 * WIDTHS["z_dim"])
        for layer in (self.fc, self.out):
            plain_start(layer)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.out(lrelu(self.fc(self.trunk(picture).flatten(1)))).float().chunk(2, 1)
        return mean, log_variance


class Players:
    """Both networks, the averaged generator and the optimisers, at one resolution."""

    def __init__(self, resolution: int, lr: float) -> None:
        self.resolution, self.lr = resolution, lr
        self.generator = small_generator(resolution)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.discriminator = Discriminator(resolution)
        self.adam_g = torch.optim.Adam(equalised(self.generator, lr), betas=(0.0, 0.99), fused=True)
        # The paper's correction for lazy regularisation: the step with R1 counts as two.
        share = R1_INTERVAL / (R1_INTERVAL + 1)
        groups = equalised(self.discriminator, lr * share)
        self.adam_d = torch.optim.Adam(groups, betas=(0.0, 0.99**share), fused=True)
        self.peaks = [[group["lr"] for group in adam.param_groups] for adam in (self.adam_g, self.adam_d)]

    def slow_down(self, factor: float) -> None:
        """Set all learning rates to `factor` times their initial values."""
        for adam, peaks in zip((self.adam_g, self.adam_d), self.peaks, strict=True):
            for group, peak in zip(adam.param_groups, peaks, strict=True):
                group["lr"] = factor * peak

    def parts(self) -> dict[str, Any]:
        """Return all objects with a state by their names in a checkpoint."""
        return {key: value for key, value in vars(self).items() if hasattr(value, "load_state_dict")}

    def grown(self) -> "Players":
        """Return the networks at twice the resolution; new layers output zero, so only the picture size changes."""
        new = Players(2 * self.resolution, self.lr)
        key = str(new.resolution)
        with torch.no_grad():
            last = [model.get_submodule(f"blocks.{key}.torgb") for model in (new.generator, new.average)]
            last += [new.discriminator.trunk.get_submodule(f"blocks.{key}.{name}") for name in ("conv1", "skip")]
            for layer in last:
                for p in layer.parameters(recurse=False):
                    p.zero_()
        for name in ("generator", "average", "discriminator"):
            getattr(new, name).load_state_dict(getattr(self, name).state_dict(), strict=False)
        return new


def small_generator(resolution: int) -> StyleGAN2:
    """Build a generator whose noise is fixed at 0; constant noise would add the same texture to all pictures."""
    model = StyleGAN2(resolution, **WIDTHS, channel_base=CHANNEL_BASE, channel_max=CHANNEL_MAX)
    for name, p in model.named_parameters():
        p.requires_grad_("noise_strength" not in name)
    return model


def equalised(model: nn.Module, lr: float, mapping: float = 0.1) -> list[dict]:
    """Build parameter groups of Adam with equalised learning rates.

    The steps of Adam do not depend on the scale of gradients, so for a layer whose gain 1/sqrt(inputs) is folded into
    its weights the equalised learning rate is that gain times the learning rate. Layers of the mapping network have
    another factor, `mapping` (the paper's 0.01 is for eight layers and a hundred times as many steps).
    """
    groups, seen = [], set()
    slow = set(model.mapping_network.modules()) if isinstance(model, StyleGAN2) else set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            rate = lr * (mapping if module in slow else 1)
            groups.append({"params": [module.weight], "lr": rate * module.weight[0].numel() ** -0.5})
            if module.bias is not None:
                groups.append({"params": [module.bias], "lr": rate})
            seen |= {module.weight, module.bias}
    return [*groups, {"params": [p for p in model.parameters() if p not in seen], "lr": lr}]


def plain_start(model: nn.Module) -> None:
    """Initialise weights so that they preserve the variance, and biases to zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def lrelu(x: Tensor) -> Tensor:
    """Apply a leaky ReLU that preserves the variance."""
    return F.leaky_relu(x, 0.2) * sqrt(2)


def halved(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter and halve (B, C, h, w) -> (B, C, h/2, w/2); a strided filter has a several times slower backward pass."""
    return filter_2d(x, kernel, padding=1)[:, :, ::2, ::2]
