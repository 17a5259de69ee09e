"""Several LoRAs in one forward: each row of the batch goes through its own.

Every layer that a LoRA touches is swapped, for the length of one `with` block, for a small module that runs
the original layer on the whole batch and adds each row's own low-rank term with one batched product. Swapping
the layer, rather than the attention processor, serves attention projections, feed-forward layers and
convolutions alike, under whichever attention processor the user has chosen (SDPA, sliced, xFormers). It is
not a forward hook because `torch.compile` does not guard on hooks: a model compiled before the hook was added
would silently run without the LoRAs.
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

    Ranks may differ (padded with zeros to the largest, which is exact), and so may the layers the LoRAs touch.
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
    """`base(x) + x A_t^T B_t^T`, where row `t * b + i` of a batch of T * b uses LoRA t."""

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
    """The same for a convolution: one group of channels per LoRA."""

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
    return getattr(layer, "base_layer", layer)  # peft wraps the layers of a UNet that has other LoRAs loaded


@contextmanager
def grouped_lora(unet: nn.Module, stacks: Stacks) -> Iterator[None]:
    """Within the block, a batch of T * b rows (the b rows of LoRA 0 first) runs through `unet` with T LoRAs.

    The original layers are back afterwards, also when the forward raised. `unet` may be compiled.

    Raises:
        ValueError: q, k and v were fused: the layers the LoRAs belong to are not run then.
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
