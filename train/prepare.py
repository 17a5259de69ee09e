"""The preparation of a run: its folder, its data, its network."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from ..intrinsics.files import atomic_path
from ..intrinsics.vocabulary import Intrinsic
from .backbones import backbone_class, load_backbone
from .backbones.interfaces import Backbone, Checkpointing, PictureEncoder, Trainable
from .backbones.latent import LatentBackbone
from .config import TrainConfig, flat, plain_dict, to_yaml
from .config_values import read_yaml
from .data import open_source
from .data.cache import ORDERS, LatentCache, cache_latents
from .data.conditions import encode_conditions
from .data.sample import Selection, Source, try_read, variant
from .methods import Method, OnePass, SingleStep

# Settings that may change when a run is resumed; any other change would make it another run.
MAY_CHANGE = (
    "out", "max_steps", "optimizer.lr", "optimizer.clip", "optimizer.weight_decay", "schedule.name",
    "schedule.warmup", "accumulation", "gradient_checkpointing", "checkpoint_every", "keep", "validate_every", "log",
)  # fmt: skip

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_data(config: TrainConfig, intrinsics: Sequence[Intrinsic]) -> tuple[Source, Source | None]:
    """Return the training source, and the validation source or None.

    Without `val_path`, `val_count` pictures spread over the whole set are held out.

    Raises:
        ValueError: no picture has all its labels, or none is left to train on.
        FileNotFoundError: nothing at a path.
    """
    data = config.data
    if not data.val_count:
        training = open_source(data.source, data.path, intrinsics, data.limit)
        return training, None
    if data.val_path is not None:
        training = open_source(data.source, data.path, intrinsics, data.limit)
        try:
            validation = open_source(data.source, data.val_path, intrinsics, data.val_count)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(
                f"data.val_path={data.val_path}: {str(error).rstrip('.')}; set it to other data, or to null to hold "
                "data.val_count pictures out."
            ) from error
        return training, validation
    source = open_source(data.source, data.path, intrinsics, data.limit and data.limit + data.val_count)
    count, held = len(source), data.val_count
    if count <= held:
        raise ValueError(
            f"{data.path} has {count} labelled pictures and data.val_count={held} are to be held out; give more "
            "pictures, a smaller data.val_count, or data.val_path."
        )
    held_out = {i * count // held for i in range(held)}
    rest = [i for i in range(count) if i not in held_out]
    return Selection(source, rest), Selection(source, sorted(held_out))


def problems_of(*sources: Source | None) -> list[str]:
    """Return the problems of the data so far, each sentence once."""
    return list(dict.fromkeys(problem for source in sources if source is not None for problem in source.problems))


def check_packages(config: TrainConfig) -> None:
    """Raise ImportError, before anything else, if a package that the run requires is missing."""
    wanted = {"log=tensorboard": "tensorboard", "log=wandb": "wandb", "optimizer.name=adamw8bit": "bitsandbytes"}
    for setting, package in wanted.items():
        asked = setting in (f"log={config.log}", f"optimizer.name={config.optimizer.name}")
        if asked and find_spec(package) is None:
            raise ImportError(f"{setting} needs the package {package}: pip install {package}, or change the setting.")


def with_targets(config: TrainConfig) -> TrainConfig:
    """Return the configuration with explicit LoRA targets, so that config.yaml names them."""
    if config.lora.targets is not None:
        return config
    return replace(config, lora=replace(config.lora, targets=list(backbone_class(config.base).targets)))


def load_base(config: TrainConfig, intrinsics: Sequence[Intrinsic], device: torch.device) -> Backbone:
    """Load the base model in the precision of the run, without LoRAs."""
    dtype = torch.float32 if config.float32_base else DTYPES[config.precision]
    return load_backbone(config.base, intrinsics, base_config=config.base_config, dtype=dtype, device=device)


def build_method(config: TrainConfig, backbone: Backbone) -> Method:
    """Build the training method. Multi-step widens the UNet, so this comes before `add_loras`.

    Here alone it matters whether a backbone predicts latents or draws pixels.
    """
    if config.method == "multi-step":
        from .backbones.stable_diffusion import StableDiffusion
        from .methods.multi_step import MultiStep

        if not isinstance(backbone, StableDiffusion):
            raise ValueError(f"method=multi-step is for Stable Diffusion; {backbone.name} is a {backbone.family}.")
        return MultiStep(backbone, image_channels=config.image_channels)
    if isinstance(backbone, LatentBackbone):
        return SingleStep(backbone, config.timestep, config.loss, config.pixel_weight)
    return OnePass(backbone, config.loss, config.pixel_weight)


def add_loras(config: TrainConfig, backbone: Trainable, intrinsics: Sequence[Intrinsic]) -> None:
    """Add one LoRA per intrinsic, all from one seed, so that one trained alone equals one trained among others."""
    alpha = float(config.lora.rank if config.lora.alpha is None else config.lora.alpha)
    for intrinsic in intrinsics:
        targets = backbone.targets if config.lora.targets is None else config.lora.targets
        backbone.add_lora(intrinsic.name, config.lora.rank, alpha, targets, config.seed)
    if config.gradient_checkpointing:
        if not isinstance(backbone, Checkpointing):
            raise ValueError(
                f"gradient_checkpointing is for Stable Diffusion; {backbone.name} is a {backbone.family}: remove it."
            )
        backbone.enable_gradient_checkpointing()


def offload_encoders(backbone: Trainable) -> None:
    """Move what only encodes and decodes to the CPU. Encoding and decoding bring it back: call this again then."""
    for encoder in backbone.encoders:
        encoder.to("cpu")


def changes_of(config: TrainConfig) -> list[str]:
    """Return the changed settings of the run in the folder, one line each; nothing is written.

    Raises:
        ValueError: the folder holds another run.
    """
    file = Path(config.out) / "config.yaml"
    if not file.exists():
        return []
    changes = []
    before, now = flat(read_yaml(file)), plain_dict(config)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        if key not in MAY_CHANGE:
            raise ValueError(
                f"{config.out} holds a run with {key}={before.get(key)}, not {now.get(key)}; choose "
                "another out, or delete the folder to start over."
            )
        changes.append(f"{key} was {before.get(key)} and is now {now.get(key)}")
    return changes


def write_config(config: TrainConfig) -> None:
    """Write config.yaml. Called once nothing can be refused any more: it would block a corrected command."""
    Path(config.out).mkdir(parents=True, exist_ok=True)
    with atomic_path(Path(config.out) / "config.yaml") as path:
        path.write_text(to_yaml(config), encoding="utf-8")


def check_first(config: TrainConfig, source: Source, backbone: Trainable) -> None:
    """Encode the first sample's condition of a generator, so that errors appear before the run starts."""
    backbone.dummy_conditions(1, config.data.resolution)
    first = try_read(source, 0, config.data.resolution)
    if first is not None and (first.condition is not None or not isinstance(backbone, PictureEncoder)):
        order = ORDERS[-1] if config.data.color_permutations else ORDERS[0]
        encode_conditions([variant(first, config.data.flip, order)], backbone)


def open_cache(
    config: TrainConfig,
    source: Source,
    method: Method,
    intrinsics: Sequence[Intrinsic],
    progress: Callable[[int, int], None] | None,
) -> LatentCache:
    """Open the cache of what the method trains on; encode what it does not hold yet."""
    return cache_latents(
        source,
        method.backbone,
        method.encode_label,
        Path(config.data.cache or Path(config.out) / "cache"),
        config.data.resolution,
        intrinsics,
        flip=config.data.flip,
        color_permutations=config.data.color_permutations,
        keep_maps=method.needs_maps,
        progress=progress,
    )


def weights_bytes(config: TrainConfig, trainable: int) -> int:
    """Return the disk space in bytes of a run's checkpoints and results, float32."""
    copies = 3 + (1 if config.ema else 0)  # the weights, Adam's two moments, the average
    return 4 * trainable * (copies * (config.keep + 1) + 2)


def check_disk(folder: Path, needed: int) -> None:
    """Raise OSError if less than `needed` bytes are free where `folder` is or will be."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"The run needs up to {needed / 2**30:.2f} GiB in {folder} and {free / 2**30:.2f} GiB are free; free some "
            "space, or set out (and data.cache) to another disk."
        )
