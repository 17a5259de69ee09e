"""Generators that draw pictures directly: without a latent space, timestep or prompt."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...intrinsics.vocabulary import Intrinsic
from ..generators.lora_files import read_generator_lora, write_generator_lora
from .adapted import Adapted


class PictureGenerator(Adapted, ABC):
    """A frozen generator whose own head draws the picture, and with a LoRA the map.

    A family adds `load`, `sample`, `render`, `dummy_conditions` and the attributes without a value here; one that can
    encode pictures adds the members of `PictureEncoder`.

    Always in float32: the networks are small, and half precision shows in their pictures.
    """

    family: str
    targets: ClassVar[tuple[str, ...]]
    resolution: int
    sample_options: tuple[str, ...] = ()
    load_options: ClassVar[tuple[str, ...]] = ()
    encoders: tuple[nn.Module, ...] = ()

    def __init__(self, model: nn.Module, intrinsics: Sequence[Intrinsic], name: str) -> None:
        super().__init__(model.eval())
        self.intrinsics = {intrinsic.name: intrinsic for intrinsic in intrinsics}
        self.name = name

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @abstractmethod
    def sample(self, seeds: Sequence[int]) -> Tensor:
        """Return one condition per seed, (B, ...); each depends on its own seed alone."""

    @abstractmethod
    def render(self, conditions: Tensor) -> Tensor:
        """Draw the picture, or with an active LoRA the map, (B, 3, H, W): about [0, 1], **not clamped**."""

    @abstractmethod
    def dummy_conditions(self, count: int, resolution: int) -> Tensor:
        """Return meaningless conditions (count, ...); ValueError for a resolution that it does not draw."""

    def save_lora(
        self,
        path: Path,
        name: str,
        *,
        method: str,
        timestep: int,
        training: Mapping[str, Any],
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Write the LoRA `name` with the hash of this generator, the only one it fits."""
        write_generator_lora(
            path,
            self.lora_weights(name),
            intrinsic=self.intrinsics[name],
            family=self.family,
            base_model=self.name,
            base_hash=self.fingerprint,
            training=training,
        )

    def load_lora(self, path: Path, name: str) -> None:
        """Read a file of `save_lora` into the LoRA `name`."""
        self.load_lora_weights(name, read_generator_lora(path, self).weights)
