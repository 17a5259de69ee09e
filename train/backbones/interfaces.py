"""What the rest of the package asks of a backbone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...intrinsics.vocabulary import Intrinsic

Weights = dict[str, tuple[Tensor, Tensor, float]]  # {module: (A, B, alpha)}, see intrinsics.lora.LoRA

LabelEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]  # pictures (B, 3, H, W) -> mean and std, (B, C, h, w) each


class Named(Protocol):
    """The identity of a base model.

    Attributes:
        family: kind of model, as messages name it, such as "StyleGAN2".
        name: name of this model, stored in the metadata of its LoRAs.
        fingerprint: 16 hexadecimal digits that identify its weights.
    """

    name: str

    @property
    def family(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


class Generator(Named, Protocol):
    """What drawing needs: `make-set` and `extract --generator`. Pictures are (B, 3, H, W), sRGB, about [0, 1].

    Attributes:
        resolution: side in pixels of the pictures it was trained on.
        sample_options: keyword arguments of `sample`.
    """

    resolution: int

    @property
    def device(self) -> torch.device: ...
    @property
    def sample_options(self) -> tuple[str, ...]: ...

    def sample(self, seeds: Sequence[int], *args: Any, **options: Any) -> Tensor:
        """Return one condition per seed, (B, ...); each depends on its own seed alone.

        Args:
            options: those of `sample_options`.

        Raises:
            ValueError: an option is out of range.
        """
        ...

    def render(self, conditions: Tensor) -> Tensor:
        """Draw the pictures (B, 3, H, W) of conditions (B, ...): about [0, 1], **not clamped**."""
        ...


@runtime_checkable
class PictureEncoder(Protocol):
    """A backbone that can encode pictures. A StyleGAN, for example, cannot.

    Attributes:
        downsample: sides of pictures must be multiples of this many pixels.
    """

    downsample: int

    def encode_picture(self, pictures: Tensor) -> Tensor:
        """Return the conditions (B, ...) of pictures (B, 3, H, W), sRGB in [0, 1].

        Raises:
            ValueError: a side is not a multiple of `downsample`.
        """
        ...


class Trainable(Named, Protocol):
    """What training needs: a frozen model that holds LoRAs by name, at most one of them active.

    Attributes:
        model: the network that holds the LoRAs.
        encoders: networks beside `model`, used only to encode and decode; moved to the CPU between uses.
        intrinsics: {name: Intrinsic} it was loaded for.
        targets: layers that take a LoRA by default; regular expressions for ends of module names.
    """

    intrinsics: dict[str, Intrinsic]

    @property
    def model(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def encoders(self) -> tuple[nn.Module, ...]: ...
    @property
    def targets(self) -> tuple[str, ...]: ...

    def dummy_conditions(self, count: int, resolution: int) -> Tensor:
        """Return meaningless conditions (count, ...) of the right shape and type, to measure time and memory.

        Raises:
            ValueError: the model does not draw pictures of `resolution` pixels.
        """
        ...

    def add_lora(self, name: str, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None: ...
    def activate(self, name: str | None) -> None: ...
    def lora_parameters(self, name: str) -> list[nn.Parameter]: ...
    def lora_weights(self, name: str) -> Weights: ...
    def load_lora_weights(self, name: str, weights: Mapping[str, tuple[Tensor, Tensor, float]]) -> None: ...

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
        """Write the LoRA `name`, which is also the name of its intrinsic, in the published format."""
        ...

    def load_lora(self, path: Path, name: str) -> None:
        """Read a file of `save_lora` into the LoRA `name`; ValueError if it does not fit."""
        ...


class Backbone(Generator, Trainable, Protocol):
    """A base model: every one draws and can be trained."""


@runtime_checkable
class Checkpointing(Protocol):
    """A backbone that supports gradient checkpointing."""

    def enable_gradient_checkpointing(self) -> None:
        """Use less memory and more time: recompute activations in the backward pass."""
        ...


class BackboneClass(Protocol):
    """What is known of a backbone before it is loaded.

    Attributes:
        load_options: keyword arguments of `load` beside `dtype` and `device`.
    """

    @property
    def family(self) -> str: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def load_options(self) -> tuple[str, ...]: ...
    def load(self, base: Any, intrinsics: Sequence[Intrinsic], /, *args: Any, **options: Any) -> Backbone: ...


def require_encoder(backbone: Named) -> PictureEncoder:
    """Return the backbone; raise ValueError if it cannot encode pictures."""
    if isinstance(backbone, PictureEncoder):
        return backbone
    raise ValueError(
        f"{backbone.name} is a {backbone.family}, which generates pictures but cannot encode them: train it on a "
        "set that make-set made with it, labelled in the same folder, and extract from seeds."
    )
