"""What can be taught. Each backbone draws a picture from a condition and says which of its layers take the LoRA.

A condition is what fixes the picture: the latent of a photo (Stable Diffusion), the codes of one (VQGAN), a style w
(StyleGAN). With no LoRA on, the generator draws the picture; with one on, the map of the same picture.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...intrinsics.vocabulary import Intrinsic

Weights = dict[str, tuple[Tensor, Tensor, float]]  # {module: (A, B, alpha)}, see intrinsics.lora.LoRA

# What `config.json` calls a generator -> the module here, and the class in it. Everything else is Stable Diffusion.
GENERATORS = {
    "VQModel": ("vqgan", "VQGANBackbone"),
    "StyleGAN2": ("stylegan2", "StyleGAN2Backbone"),
    "StyleGAN3": ("stylegan_xl", "StyleGANXLBackbone"),
}


class Backbone(Protocol):
    """What training and `make-set` ask of a generator. Pictures are (B, 3, H, W), sRGB, in [0, 1].

    Attributes:
        model: frozen; the LoRAs live in it.
        family: what sentences call this kind of generator.
        name: of this one, for the metadata of what is trained on it.
        fingerprint: 16 hexadecimal digits that tell its weights from all others.
        intrinsics: {name: Intrinsic} it was loaded for.
        targets: the layers that take a LoRA unless others are named; regular expressions for ends of module names.
        loss_space: "latent" or "pixel": where a prediction is compared with its target.
        resolution: side in pixels of the pictures it was trained on.
        downsample: what sides of pictures must be multiples of; 0 for a generator that cannot see pictures.
        timesteps: how many it can be asked at; 0 for a generator that has none.
        sample_options: what `sample` takes besides the seeds.
    """

    model: nn.Module
    family: str
    name: str
    intrinsics: dict[str, Intrinsic]
    device: torch.device
    targets: tuple[str, ...]
    loss_space: str
    resolution: int
    downsample: int
    timesteps: int
    sample_options: tuple[str, ...]

    @property
    def fingerprint(self) -> str: ...

    def sample(self, seeds: Sequence[int], **options: Any) -> Tensor:
        """One condition per seed, (B, ...), each a function of its own seed alone.

        Raises:
            ValueError: there is no way to sample, or an option is wrong; one sentence.
        """
        ...

    def render(self, conditions: Tensor) -> Tensor:
        """What the generator's own head draws: the picture; in pixel space, with a LoRA on, the map of that picture.
        About [0, 1], **not clamped**."""
        ...

    def made_up(self, count: int, resolution: int) -> Tensor:
        """Conditions of the right shape and kind but of no meaning, to time a step; ValueError for a resolution that
        the generator does not draw."""
        ...

    def encode_picture(self, pictures: Tensor) -> Tensor:
        """The conditions of pictures; ValueError where the generator cannot see any."""
        ...

    def encode_target(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a prediction is to be: mean and standard deviation; in pixel space the pictures themselves and None."""
        ...

    def predict(self, conditions: Tensor, name: str, timestep: int | Tensor) -> Tensor: ...
    def decode(self, predicted: Tensor) -> Tensor: ...
    def offload_encoders(self) -> None: ...
    def enable_gradient_checkpointing(self) -> None: ...

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
        """Writes the LoRA called `name`, which is also the name of its intrinsic, as it is published."""
        ...

    def load_lora(self, path: Path, name: str) -> None:
        """Reads what `save_lora` wrote into the LoRA called `name`; ValueError where it does not fit."""
        ...


def backbone_class(base: str | Path | None) -> Any:
    """The class for what is at `base`: a folder whose `config.json` names a generator, else Stable Diffusion."""
    kind = None
    if base is not None and (Path(base) / "config.json").is_file():
        try:
            kind = json.loads((Path(base) / "config.json").read_text()).get("_class_name")
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{Path(base) / 'config.json'} is not the description of a model: {error}.") from error
    module, name = GENERATORS.get(kind or "", ("stable_diffusion", "StableDiffusion"))
    return getattr(import_module(f".{module}", __package__), name)


def load_backbone(
    base: str | Path | None,
    intrinsics: Sequence[Intrinsic],
    *,
    base_config: str | Path | None = None,
    prompts: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Any:
    """Loads a generator of any family, without LoRAs.

    Args:
        base: None for the embedded Stable Diffusion; a folder that `import-generator` made; or what
            `StableDiffusion.load` takes.
        intrinsics: what LoRAs will be trained for.
        base_config: for a Stable Diffusion in one file: where its configuration comes from.
        prompts: for a Stable Diffusion: texts to `sample` with.
        dtype: of Stable Diffusion's UNet; the other generators stay in float32.

    Raises:
        FileNotFoundError: there is no such base.
        ValueError: it is none of the families, or damaged.
    """
    family = backbone_class(base)
    given = {"base_config": base_config, "prompts": prompts}
    options = {key: value for key, value in given.items() if value}
    if options and family.loss_space == "pixel":
        raise ValueError(f"{base} is a {family.family}, which does not support {' or '.join(options)}; omit it.")
    return family.load(base, intrinsics, dtype=dtype, device=device, **options)
