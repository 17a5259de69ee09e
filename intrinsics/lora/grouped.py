"""Several LoRAs in one forward pass: each row of the batch uses its own LoRA.

Within a `with` block every adapted layer is replaced by a small module that runs the original layer on the whole batch
and adds each row's low-rank term with one batched product. Replacing layers, rather than attention processors, works
for attention projections, feed-forward layers and convolutions, with any attention processor (SDPA, sliced,
xFormers). Forward hooks are not used because `torch.compile` does not guard on them: a model compiled before a hook
was added would silently run without the LoRAs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .read import Weights

Stacks = dict[str, tuple[torch.Tensor, torch.Tensor]]  # module -> A (T, r, in, ...), B (T, out, r, ...)


def stack_loras(loras: Sequence[Weights], device: torch.device | str, dtype: torch.dtype) -> Stacks:
    """Stack T LoRAs layer by layer, with alpha / rank folded into B.

    Ranks may differ (smaller ones are padded with zeros, which is exact), and so may the adapted layers.
    """
    stacks: Stacks = {}
    for module in dict.fromkeys(name for lora in loras for name in lora):
        rows = [lora.get(module) for lora in loras]
        present = [row for row in rows if row is not None]
        a, b, _ = present[0]
        rank = max(len(a) for a, _, _ in present)
        down = torch.zeros(len(rows), rank, *a.shape[1:])  # (T, r, in) or (T, r, in, kh, kw)
        up = torch.zeros(len(rows), len(b), rank, *b.shape[2:])  # (T, out, r) or (T, out, r, 1, 1)
        for task, row in enumerate(rows):
            if row is not None:
                a, b, alpha = row
                down[task, : len(a)] = a
                up[task, :, : len(a)] = b.float() * (alpha / len(a))
        stacks[module] = (down.to(device, dtype), up.to(device, dtype))
    return stacks


class GroupedLoRALinear(nn.Module):
    """A linear layer with T LoRAs, `base(x) + x A_t^T B_t^T`: row `t * b + i` of a batch of T * b uses LoRA t."""

    down: torch.Tensor
    up: torch.Tensor

    def __init__(self, base: nn.Module, down: torch.Tensor, up: torch.Tensor):
        super().__init__()
        self.base = base
        self.register_buffer("down", down.transpose(1, 2), persistent=False)  # (T, in, r)
        self.register_buffer("up", up.transpose(1, 2), persistent=False)  # (T, r, out)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # (T*b, ..., in) -> (T*b, ..., out)
        y = self.base(x, *args, **kwargs)
        tasks, width, _ = self.down.shape
        low = x.reshape(tasks, -1, width) @ self.down  # (T, b*n, r)
        return torch.baddbmm(y.reshape(tasks, -1, y.shape[-1]), low, self.up).reshape(y.shape)


class GroupedLoRAConv2d(nn.Module):
    """A convolution with T LoRAs, each a group of channels; rows as in `GroupedLoRALinear`."""

    down: torch.Tensor
    up: torch.Tensor

    def __init__(self, base: nn.Module, down: torch.Tensor, up: torch.Tensor):
        super().__init__()
        self.base = base
        self.tasks = len(down)
        conv = _plain(base)
        self.geometry = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        kernel = down.reshape(-1, down.shape[2], *conv.kernel_size)  # (T*r, in, kh, kw)
        self.register_buffer("down", kernel, persistent=False)
        self.register_buffer("up", up.reshape(-1, up.shape[2], 1, 1), persistent=False)  # (T*out, r, 1, 1)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # (T*b, in, h, w)
        y = self.base(x, *args, **kwargs)
        x = x.unflatten(0, (self.tasks, -1)).transpose(0, 1).flatten(1, 2)  # (b, T*in, h, w)
        low = F.conv2d(x, self.down, groups=self.tasks, **self.geometry)  # (b, T*r, h', w')
        change = F.conv2d(low, self.up, groups=self.tasks)  # (b, T*out, h', w')
        return y + change.unflatten(1, (self.tasks, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return]


def _plain(layer: nn.Module) -> Any:
    return getattr(layer, "base_layer", layer)  # peft wraps the layers of a UNet with loaded LoRAs


@contextmanager
def grouped_lora(unet: nn.Module, stacks: Stacks) -> Iterator[None]:
    """Apply T LoRAs within the block to batches of T * b rows (the b rows of LoRA 0 first).

    The original layers are restored afterwards, even on error. `unet` may be compiled.

    Raises:
        ValueError: q, k and v are fused, so that the adapted layers would not run.
    """
    model = getattr(unet, "_orig_mod", unet)  # torch.compile wraps the model
    if any(getattr(module, "fused_projections", False) for module in model.modules()):
        raise ValueError("The UNet's q, k, v projections are fused; call unfuse_qkv_projections() before using LoRAs.")
    originals = []
    try:
        for name, (down, up) in stacks.items():
            parent_name, _, child = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            base = getattr(parent, child)
            originals.append((parent, child, base))
            grouped = GroupedLoRAConv2d if isinstance(_plain(base), nn.Conv2d) else GroupedLoRALinear
            setattr(parent, child, grouped(base, down, up))
        yield
    finally:
        for parent, child, base in originals:
            setattr(parent, child, base)
