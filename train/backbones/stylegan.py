"""What all StyleGANs share: seeds become styles w, and w is what fixes a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...intrinsics.budget import check_memory
from ...intrinsics.vocabulary import Intrinsic
from ..generators.folders import load_generator
from ..generators.stylegan2 import StyleGAN2
from ..generators.stylegan3 import StyleGAN3
from .picture import PictureGenerator

Network = StyleGAN2 | StyleGAN3


class StyleGAN(PictureGenerator):
    """A StyleGAN; its conditions are (B, num_ws, w_dim) float32.

    Attributes:
        network: the class of `model`; its `config` holds resolution, z_dim, w_dim and label_dim (0: no classes).
    """

    sample_options: tuple[str, ...] = ("truncation", "classes")
    network: ClassVar[type[Network]]
    model: Network
    class_of_seed = False  # whether a seed without a class draws one, as the authors' own script does

    @classmethod
    def load(
        cls,
        folder: str | Path,
        intrinsics: Sequence[Intrinsic],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a folder that `import-generator` wrote; always in float32, whatever `dtype` says.

        Raises:
            FileNotFoundError, ValueError: the folder is incomplete or damaged.
        """
        return cls(load_generator(cls.network, folder).to(device), intrinsics, Path(folder).resolve().name)

    def __init__(self, model: Network, intrinsics: Sequence[Intrinsic], name: str) -> None:
        super().__init__(model, intrinsics, name)
        self.config: dict[str, Any] = model.config
        self.num_ws: int = model.num_ws
        self.resolution: int = model.config["resolution"]

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        *,
        truncation: float = 1.0,
        classes: Sequence[int] | None = None,
        centroids: str | Path | None = None,
    ) -> Tensor:
        """Map seeds to styles (B, num_ws, w_dim): those of the pictures that the authors' `gen_images.py` draws.

        Args:
            seeds: 0 to 2**32 - 1.
            truncation: psi; 1 is the full variety, 0 the mean picture.
            classes: one class per seed, for a generator that has classes; with `class_of_seed` they may be left out.
            centroids: multimodal truncation: an .npy of means (N, w_dim), of which each w goes towards the nearest.

        Raises:
            ValueError: classes are missing, too many, out of range, or the generator has none; centroids that are no
                such array.
            FileNotFoundError: there are no centroids.
        """
        count, label = self.config["label_dim"], None
        if count:
            if classes is None and self.class_of_seed:
                classes = [int(np.random.RandomState(seed).randint(count)) for seed in seeds]
            if classes is None or len(classes) != len(seeds) or not all(0 <= one < count for one in classes):
                raise ValueError(f"{self.name} draws classes 0 to {count - 1}: name one for every picture.")
            label = F.one_hot(torch.tensor(classes), count).float().to(self.device)  # (B, classes)
        elif classes is not None:
            raise ValueError(f"{self.name} is not class-conditional; omit the classes.")
        # NVIDIA's own way from a seed to z, so that a seed means the same picture here and there.
        width = self.config["z_dim"]
        z = np.stack([np.random.RandomState(seed).randn(width) for seed in seeds])  # (B, z_dim)
        latents = torch.from_numpy(z).float().to(self.device)
        if centroids is None:
            return self.model.mapping(latents, label, truncation)
        means = _read_centroids(Path(centroids), self.config["w_dim"]).to(self.device)  # (N, w_dim)
        ws = self.model.mapping(latents, label)  # (B, num_ws, w_dim)
        nearest = means[torch.cdist(ws[:, 0], means).argmin(1)][:, None]  # (B, 1, w_dim)
        return nearest + truncation * (ws - nearest)

    def render(self, conditions: Tensor) -> Tensor:
        """(B, num_ws, w_dim) -> (B, 3, R, R), about [0, 1], not clamped. In float32, also within `autocast`."""
        with torch.autocast(self.device.type, enabled=False):
            return self.model.synthesis(conditions.to(self.device, torch.float32)) * 0.5 + 0.5

    def dummy_conditions(self, count: int, resolution: int) -> Tensor:
        """Return noise (count, num_ws, w_dim)."""
        if resolution != self.resolution:
            raise ValueError(f"{self.name} draws {self.resolution} pixels: set data.resolution={self.resolution}.")
        return torch.randn(count, self.num_ws, self.config["w_dim"])


def _read_centroids(path: Path, width: int) -> Tensor:
    """(N, width) float32."""
    if not path.is_file():
        raise FileNotFoundError(f"There are no centroids at {path}.")
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        fits = mapped.ndim == 2 and mapped.shape[1] == width and len(mapped) > 0 and mapped.dtype.kind == "f"
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an .npy of centroids: it is damaged or something else.") from error
    if not fits:
        raise ValueError(f"{path} must hold centroids (N, {width}), not {mapped.dtype} {mapped.shape}.")
    check_memory(2 * mapped.size * 8, str(path))
    means = torch.from_numpy(np.array(mapped, np.float32))
    if not means.isfinite().all():
        raise ValueError(f"{path} holds NaN or infinity, and no centroids.")
    return means
