"""What the generators that draw pictures directly have in common: no latent to compare in, no timestep, no prompt."""

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
    """A frozen generator whose own head draws the map. A family adds `load`, `sample`, `render` and `made_up`, and
    `encode_picture` if it can see pictures; see `Backbone` for what they are.

    Always in float32: the networks are small, and half precision shows in their pictures.
    """

    loss_space = "pixel"
    timesteps = 0
    downsample = 0  # of a generator that cannot see pictures
    family: str
    targets: ClassVar[tuple[str, ...]]
    resolution: int
    sample_options: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, intrinsics: Sequence[Intrinsic], name: str) -> None:
        super().__init__(model.eval())
        self.intrinsics = {intrinsic.name: intrinsic for intrinsic in intrinsics}
        self.name = name

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @abstractmethod
    def render(self, conditions: Tensor) -> Tensor:
        """What the generator draws: the picture with no LoRA on, else the map. About [0, 1], **not clamped**."""

    def encode_picture(self, pictures: Tensor) -> Tensor:
        raise ValueError(
            f"{self.name} is a {self.family}, which draws pictures and cannot see any: train it on what make-set made "
            "with it, labelled in that same folder, and extract from seeds."
        )

    def encode_target(self, pictures: Tensor) -> tuple[Tensor, None]:
        """The label pictures themselves, (B, 3, H, W): nothing is to be drawn from around them."""
        return pictures.to(self.device, torch.float32), None

    def predict(self, conditions: Tensor, name: str, timestep: int | Tensor) -> Tensor:
        """`render`; there is neither a prompt nor a timestep to show."""
        return self.render(conditions)

    def decode(self, predicted: Tensor) -> Tensor:
        """A prediction is a picture already."""
        return predicted

    def offload_encoders(self) -> None:
        """Do nothing: there are no encoders to move."""

    def enable_gradient_checkpointing(self) -> None:
        raise ValueError(f"gradient_checkpointing is for Stable Diffusion; {self.name} is a {self.family}: remove it.")

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
        """Writes the LoRA `name` with the hash of this generator, the only one it fits."""
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
        """Reads what `save_lora` wrote into the LoRA called `name`."""
        self.load_lora_weights(name, read_generator_lora(path, self).weights)
