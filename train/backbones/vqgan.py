"""VQGAN (Esser et al. 2021) through `diffusers.VQModel`: a picture is a grid of codes, drawn by the decoder.

With a LoRA in the decoder's attention the same codes are drawn as the map. The encoder takes none, so that a picture
keeps its codes whatever is trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from diffusers import VQModel
from torch import Tensor

from ...intrinsics.vocabulary import Intrinsic
from .picture import PictureGenerator


class VQGANBackbone(PictureGenerator):
    """A VQGAN; its conditions are codes, (B, h, w) int64 from 0 to the size of the codebook.

    Attributes:
        downsample: H / h.
        codes: size of the codebook.
        resolution: of the pictures it was trained on, pixels; it draws other sizes, too.
    """

    model: VQModel
    family = "VQGAN"
    targets: ClassVar[tuple[str, ...]] = (
        r"decoder\..*\.to_q",
        r"decoder\..*\.to_k",
        r"decoder\..*\.to_v",
        r"decoder\..*\.to_out\.0",
    )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        intrinsics: Sequence[Intrinsic],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a `VQModel` folder of diffusers' layout; always in float32, whatever `dtype` says.

        Raises:
            FileNotFoundError: the weights are not there.
            ValueError: they do not belong to the configuration.
        """
        try:
            # Some models keep "decode takes codes" in their configuration; here it always takes the codes' vectors.
            model, found = VQModel.from_pretrained(
                str(folder),
                torch_dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                lookup_from_codebook=False,
                output_loading_info=True,
            )
        except OSError as error:
            raise FileNotFoundError(
                f"{folder} has no weights (diffusion_pytorch_model.safetensors); make it again with import-generator."
            ) from error
        except (ValueError, RuntimeError) as error:  # shapes
            raise ValueError(f"Weights and config of {folder} do not belong together; convert it again.") from error
        if found["missing_keys"] or found["unexpected_keys"]:
            raise ValueError(f"Weights and config of {folder} do not belong together; convert it again.")
        return cls(model.to(device), intrinsics, Path(folder).resolve().name)

    def __init__(self, model: VQModel, intrinsics: Sequence[Intrinsic], name: str) -> None:
        super().__init__(model, intrinsics, name)
        self.downsample: int = 2 ** (len(model.config.block_out_channels) - 1)
        self.codes: int = model.config.num_vq_embeddings
        self.resolution: int = model.config.sample_size

    @torch.no_grad()
    def encode_picture(self, pictures: Tensor) -> Tensor:
        """Return the codes (B, h, w), int64, of pictures (B, 3, H, W).

        Raises:
            ValueError: a side is not a multiple of `downsample`.
        """
        height, width = pictures.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(
                f"{self.name} sees pictures whose sides are multiples of {self.downsample}, not {width} x {height}: "
                "resize them."
            )
        with torch.autocast(self.device.type, enabled=False):
            latents = self.model.encode(pictures.to(self.device, torch.float32) * 2 - 1).latents  # (B, D, h, w)
            _, _, (_, _, codes) = self.model.quantize(latents)  # (B h w,)
        return codes.view(len(latents), *latents.shape[2:])

    def render(self, conditions: Tensor) -> Tensor:
        """Draw codes (B, h, w) as pictures (B, 3, H, W): about [0, 1], not clamped. Always in float32."""
        with torch.autocast(self.device.type, enabled=False):
            vectors = self.model.quantize.embedding(conditions.to(self.device)).permute(0, 3, 1, 2)  # (B, D, h, w)
            return self.model.decode(vectors.contiguous(), force_not_quantize=True).sample * 0.5 + 0.5

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """Return random codes (B, h, w), of pictures of the size the model was trained at.

        Such pictures show no scene, only a patchwork of textures: what VQGAN draws from its own imagination comes
        from a transformer that proposes codes, which is another network and not part of it. Give it photos.
        """
        side = self.resolution // self.downsample
        grids = [torch.randint(self.codes, (side, side), generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(grids).to(self.device)

    def dummy_conditions(self, count: int, resolution: int) -> Tensor:
        """Return random codes (count, h, w)."""
        if resolution % self.downsample:
            raise ValueError(
                f"{self.name} draws multiples of {self.downsample} pixels: data.resolution={resolution} is none."
            )
        side = resolution // self.downsample
        return torch.randint(self.codes, (count, side, side), generator=torch.Generator().manual_seed(0))
