"""The output class of the pipelines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from ..intrinsics.display import display_map
from ..intrinsics.vocabulary import INTRINSICS, Intrinsic


@dataclass
class IntrinsicLoRAOutput(BaseOutput):
    """Canonical maps, float32. Maps that were not requested are None.

    For N images of one size each field is a tensor, or an array (N, H, W, C) with `output_type="np"`, or a list of
    PIL images with "pil". For images of different sizes each field is a list with one entry per image.

    Attributes:
        normals: (N, 3, H, W) unit vectors, OpenGL camera frame: X right, Y up, Z towards the viewer.
        depth: (N, 1, H, W) affine-invariant distance, 0 = nearest, 1 = farthest.
        albedo: (N, 3, H, W) linear light, >= 0.
        shading: (N, 1 or 3, H, W) linear light, >= 0, up to scale.
        confidence: (N, 1, H, W) in [0, 1], 1 = consistent: the minimum over the requested maps, except albedo.
        latents: with `output_latent`, {name: (N, C, h, w)}, scaled as the UNet returns them, including padding.
        custom: {name: (N, 1 or 3, H, W)} of custom intrinsics: linear light >= 0, or values in 0..1, depending on
            their convention.
        definitions: {name: `Intrinsic`} of the custom intrinsics.
    """

    normals: Any = None
    depth: Any = None
    albedo: Any = None
    shading: Any = None
    confidence: Any = None
    latents: Any = None
    custom: Any = None
    definitions: Any = None

    @classmethod
    def of(cls, maps: Mapping[str, Any], definitions: Mapping[str, Intrinsic], latents: Any = None) -> Self:
        """Build an output from maps by name; `definitions` are those of the custom intrinsics among them."""
        custom = {name: maps[name] for name in definitions}
        fields = {name: values for name, values in maps.items() if name not in custom}
        return cls(**fields, custom=custom or None, definitions=dict(definitions) or None, latents=latents)

    def visualize(self, normals: str = "opengl", depth: str = "near-white") -> dict[str, list[Image.Image]]:
        """Draw every map as 8-bit pictures.

        Args:
            normals: frame of the normals, one of `NORMAL_FRAMES`.
            depth: polarity of the depth, "near-white" or "near-black".

        Returns:
            {name: one picture per image}; linear light is sRGB-encoded.
        """
        pictures: dict[str, list[Image.Image]] = {}
        for name, maps in self.maps().items():
            if isinstance(maps, list) and isinstance(maps[0], Image.Image):
                raise ValueError("These maps are already PIL images; use output_type='pt' or 'np' to visualize them.")
            pictures[name] = []
            for group in maps if isinstance(maps, list) else [maps]:
                group = torch.from_numpy(group).permute(0, 3, 1, 2) if isinstance(group, np.ndarray) else group
                shown = (self.definitions or {}).get(name, name)
                pictures[name] += [_to_pil(x) for x in display_map(group, shown, normals, depth)]
        return pictures

    def maps(self) -> dict[str, Any]:
        """Return {name: maps} of all maps present, including custom intrinsics and confidence."""
        known = {name: getattr(self, name) for name in INTRINSICS}
        return {
            n: m for n, m in (known | (self.custom or {}) | {"confidence": self.confidence}).items() if m is not None
        }


def _to_pil(x: torch.Tensor) -> Image.Image:
    levels = (x.clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0).numpy()  # (H, W, C)
    return Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels)
