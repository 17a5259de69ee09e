"""What the loop asks of a training method."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...diffusers_pipeline.aug_unet import ImageChannels
from ..backbones.interfaces import LabelEncoder, Trainable


class Method(Protocol):
    """A training method.

    Attributes:
        backbone: holds a LoRA of the name of every intrinsic.
        encode_label: encodes label pictures; batches then hold `<name>_mean` and `<name>_std`. None where labels are
            compared as pictures.
        needs_maps: whether batches must hold the canonical maps of the labels.
        image_channels: written beside the LoRAs and named in their headers; None where the base has its own inputs.
    """

    @property
    def image_channels(self) -> ImageChannels | None: ...
    @property
    def backbone(self) -> Trainable: ...
    @property
    def encode_label(self) -> LabelEncoder | None: ...
    @property
    def needs_maps(self) -> bool: ...

    def loss(self, batch: Mapping[str, Tensor], name: str, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the loss of one intrinsic, a scalar with gradients to its LoRA, which is activated.

        It is the mean of the samples' own losses, so that a batch may be split into micro-batches.

        Args:
            batch: `image`, the conditions (B, ...); of the labels `<name>_mean` and `<name>_std`, (B, C, h, w), with
                `encode_label`, and the canonical map `<name>` (B, 1 or 3, H, W) with `needs_maps`; optionally `mask`
                (B, 1, H, W).
            name: the intrinsic.
            generators: random generators, one per row; on the CPU, whatever the device, so that runs repeat.
        """
        ...

    def maps(self, conditions: Tensor, name: str) -> Tensor:
        """Return canonical maps (B, 1 or 3, H, W) of conditions, without gradients. Activates the LoRA."""
        ...
