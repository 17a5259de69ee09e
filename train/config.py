# ruff: noqa: RUF009 - option() returns a dataclass field
"""Typed configuration of a training run, from presets, YAML files and `key=value` overrides."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import yaml

from ..intrinsics.vocabulary import CHECKPOINT_SUFFIXES, INTRINSICS, Convention, Intrinsic, Method
from .config_values import MISSING, load_omegaconf, read_layer, read_yaml, shortened, typed

GENERATOR_PRESETS = ("vqgan", "stylegan2", "stylegan-xl")  # without a base of their own
PRESETS = ("paper-sd15-r8", "paper-sd21-augunet", "embedded", *GENERATOR_PRESETS)


class UnknownKeyError(ValueError):
    """An unknown setting; the message is one sentence."""


def option(default: Any, text: str) -> Any:
    """Create a field with a help text. Lists and nested dataclasses are copied for every instance."""
    metadata = {"help": text}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class CustomConfig:
    """A custom intrinsic; its labels are in a folder of the same name."""

    prompt: str = option(MISSING, "Prompt of the intrinsic; stored in the LoRA and used unchanged.")
    channels: int = option(3, "Number of channels, 1 or 3.")
    convention: Convention = option("srgb", "srgb: labels are sRGB-encoded pictures; linear: labels are data.")


@dataclass
class DataConfig:
    source: Literal["folder", "diode", "datasets", "webdataset"] = option("folder", "Layout of the data.")
    path: str = option(MISSING, "A folder, the name of a dataset, or a pattern of tar shards.")
    val_path: str | None = option(None, "Validation data; null: hold out val_count pictures of path.")
    val_count: int = option(16, "Number of validation pictures; 0: no validation.")
    limit: int | None = option(None, "Maximum number of training pictures, spread evenly over all.")
    resolution: int = option(512, "Training resolution: pictures are resized to this short side and centre-cropped.")
    flip: bool = option(False, "Add a mirrored copy of every picture; X of normals is negated.")
    color_permutations: bool = option(False, "Add copies of every picture with permuted colour channels, six in all.")
    cache: str | None = option(None, "Folder of cached latents; null: OUT/cache.")


@dataclass
class LoRAConfig:
    rank: int = option(8, "Rank of the LoRA.")
    alpha: float | None = option(None, "The LoRA is scaled by alpha / rank; null: alpha = rank.")
    targets: list[str] | None = option(
        None, "Suffixes of the names of adapted layers; null: default of the base model."
    )


@dataclass
class OptimizerConfig:
    name: Literal["adamw", "adamw8bit"] = option("adamw", "Optimiser; adamw8bit requires the package bitsandbytes.")
    lr: float = option(1e-4, "Peak learning rate.")
    betas: list[float] = option([0.9, 0.999], "Adam betas.")
    weight_decay: float = option(1e-2, "Decoupled weight decay.")
    clip: float = option(1.0, "Maximum gradient norm, per LoRA; 0: no clipping.")


@dataclass
class ScheduleConfig:
    name: Literal["constant", "cosine", "linear"] = option(
        "constant", "Learning-rate schedule; cosine and linear decay to zero at max_steps."
    )
    warmup: int = option(0, "Number of warm-up steps.")


@dataclass
class TrainConfig:
    """One run. `max_steps`, `warmup` and all the `..._every` count optimiser steps, whatever the number of GPUs."""

    out: str = option(MISSING, "Folder of the run; an interrupted run resumes from its newest checkpoint.")
    base: str | None = option(
        None, "Base model: folder, .safetensors, hub id or imported generator; null: embedded model."
    )
    base_config: str | None = option(None, "Source of tokenizer and configuration for a single-file base.")
    method: Method = option("single-step", "Training method; multi-step is the AugUNet of the paper.")
    image_channels: str = option(
        "copy", "multi-step: initial weights of the image channels of conv_in: copy, zeros, or a model."
    )
    intrinsics: list[str] = option(
        [], "Intrinsics to train, one LoRA each: " + ", ".join(INTRINSICS) + ", or custom ones."
    )
    custom: dict[str, CustomConfig] = option(dict, "Custom intrinsics: custom.NAME.prompt, .channels, .convention.")
    data: DataConfig = option(DataConfig, "")
    lora: LoRAConfig = option(LoRAConfig, "")
    timestep: int = option(999, "Timestep of single-step prediction.")
    loss: Literal["latent", "pixel", "latent+pixel"] = option(
        "latent", "latent: in the output space of the base; pixel: a loss per kind of map."
    )
    pixel_weight: float = option(1.0, "Weight of the pixel loss in latent+pixel.")
    optimizer: OptimizerConfig = option(OptimizerConfig, "")
    schedule: ScheduleConfig = option(ScheduleConfig, "")
    batch_size: int = option(4, "Total batch size per optimiser step, over all processes and micro-batches.")
    accumulation: int = option(1, "Number of gradient-accumulation micro-batches per process.")
    max_steps: int = option(20_000, "Number of optimiser steps.")
    precision: Literal["no", "bf16", "fp16"] = option(
        "no", "Mixed precision of the base model; LoRAs are always kept in float32."
    )
    float32_base: bool = option(False, "Keep base weights in float32 under bf16 or fp16: more memory, less rounding.")
    seed: int = option(0, "Random seed of initial weights, data order and noise.")
    ema: float = option(0.0, "Decay of the moving average of the weights, which is validated and published; 0: off.")
    gradient_checkpointing: bool = option(False, "Use less memory at about a third more time.")
    checkpoint_every: int = option(500, "Steps between checkpoints.")
    keep: int = option(3, "Number of checkpoints to keep.")
    validate_every: int = option(500, "Steps between validations.")
    log: Literal["tensorboard", "wandb", "files"] = option("tensorboard", "Logger; metrics.jsonl is always written.")


def load_config(
    preset: str | None = None, file: str | Path | None = None, overrides: Sequence[str] = ()
) -> TrainConfig:
    """Defaults, then the preset, then the YAML file, then `key=value` (`optimizer.lr=1e-4`): the last one wins.

    A preset's validation data belongs to its own `data.path`: if you set another path, validation pictures are held
    out from it, unless `data.val_path` is set too.

    Raises:
        ValueError: an unknown key or preset, a value of the wrong kind, or values that do not fit together. Nothing is
            filled in from elsewhere: `${...}` is refused, so that a file cannot ask for the environment's secrets.
        FileNotFoundError: no such YAML file.
    """
    OmegaConf = load_omegaconf().OmegaConf
    layers = [] if file is None else [(str(file), read_yaml(Path(file)))]
    for item in overrides:
        if "=" not in item or item.startswith("-"):
            raise ValueError(f"{item!r} is not of the form key=value, as in optimizer.lr=1e-4.")
        where = shortened(item)
        layers.append((where, read_layer(partial(OmegaConf.from_dotlist, [item]), where)))
    config = OmegaConf.structured(TrainConfig)
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"Preset {preset!r} not found;{_nearest(preset, PRESETS)} choose {', '.join(PRESETS)}.")
        text = (files(__package__) / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
        where = f"the preset {preset}"
        config = _merged(config, read_layer(partial(OmegaConf.create, text), where), where)
        given = {key for _, layer in layers for key in flat(layer)}
        if "data.path" in given and "data.val_path" not in given:
            config.data.val_path, config.data.val_count = DataConfig.val_path, DataConfig.val_count
    for where, layer in layers:
        config = _merged(config, layer, where)
    missing = sorted(str(key) for key in OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{missing[0]} is not set; add {missing[0]}=... ({_help_of(missing[0]).rstrip('.')}).")
    resolved: TrainConfig = OmegaConf.to_object(config)
    if preset in GENERATOR_PRESETS and resolved.base is None:
        raise ValueError("base is not set; add base=... (the folder written by import-generator).")
    check_config(resolved)
    return resolved


def check_paths(config: TrainConfig) -> None:
    """Check, without torch, that local data and base exist. What may be on the hub is checked when it is opened.

    Raises:
        FileNotFoundError: a folder of pictures or the base's checkpoint is not found.
    """
    data = config.data
    if data.source in ("folder", "diode") and not Path(data.path).is_dir():
        raise FileNotFoundError(f"data.path={data.path}: folder not found.")
    if data.source in ("folder", "diode") and data.val_path is not None and not Path(data.val_path).is_dir():
        raise FileNotFoundError(
            f"data.val_path={data.val_path}: folder not found; set it to other data, or to null to hold "
            "data.val_count pictures out."
        )
    if config.base is not None and Path(config.base).suffix in CHECKPOINT_SUFFIXES and not Path(config.base).exists():
        raise FileNotFoundError(f"base={config.base}: checkpoint not found.")


def check_config(config: TrainConfig) -> None:
    """Check what types cannot express; raise ValueError with one sentence."""

    def refuse(wrong: bool, sentence: str) -> None:
        if wrong:
            raise ValueError(sentence)

    for key in ("batch_size", "accumulation", "max_steps", "checkpoint_every", "keep", "validate_every"):
        refuse(getattr(config, key) < 1, f"{key} must be at least 1, got {getattr(config, key)}.")
    refuse(config.lora.rank < 1, f"lora.rank must be at least 1, got {config.lora.rank}.")
    refuse(config.lora.targets == [], "lora.targets is empty; name the layers that take a LoRA, as in [to_q,to_v].")
    lr, betas = config.optimizer.lr, config.optimizer.betas
    refuse(not 0 < lr < math.inf, f"optimizer.lr must be a positive number, got {lr}.")
    refuse(
        len(betas) != 2 or not all(0 <= beta < 1 for beta in betas),
        f"optimizer.betas are two numbers of at least 0 and below 1, got {betas}.",
    )
    for key, value in (
        ("optimizer.weight_decay", config.optimizer.weight_decay),
        ("optimizer.clip", config.optimizer.clip),
        ("schedule.warmup", config.schedule.warmup),
        ("pixel_weight", config.pixel_weight),
        ("timestep", config.timestep),
    ):
        refuse(not 0 <= value < math.inf, f"{key} must be 0 or more, got {value}.")
    alpha, limit = config.lora.alpha, config.data.limit
    refuse(alpha is not None and not 0 < alpha < math.inf, f"lora.alpha must be a positive number, got {alpha}.")
    refuse(limit is not None and limit < 1, f"data.limit must be at least 1, got {limit}.")
    refuse(not 0 <= config.ema < 1, f"ema must be at least 0 (off) and below 1, got {config.ema}.")
    refuse(config.data.val_count < 0, f"data.val_count must be 0 or more, got {config.data.val_count}.")
    refuse(config.seed < 0, f"seed must be 0 or more, got {config.seed}.")
    refuse(
        config.data.resolution < 8 or config.data.resolution % 8 != 0,
        f"data.resolution must be a multiple of 8, got {config.data.resolution}.",
    )
    refuse(
        config.method == "multi-step" and config.loss != "latent",
        f"loss={config.loss} requires method=single-step: a multi-step network's output is not a picture.",
    )
    refuse(
        not config.intrinsics,
        f"intrinsics is empty; name what to train, such as intrinsics=[{next(iter(INTRINSICS))}].",
    )
    refuse(len(set(config.intrinsics)) < len(config.intrinsics), "intrinsics names one of them twice; remove it.")
    chosen_intrinsics(config)


def chosen_intrinsics(config: TrainConfig) -> list[Intrinsic]:
    """Return the intrinsics of a run, built in or custom; ValueError for an unknown name."""
    known = dict(INTRINSICS)
    for name, custom in config.custom.items():
        if name in INTRINSICS:
            raise ValueError(f"custom.{name}: {name} is built in; give yours another name.")
        if not name.isidentifier():
            raise ValueError(f"custom.{name}: a name has only letters, digits and underscores.")
        if custom.channels not in (1, 3):
            raise ValueError(f"custom.{name}.channels must be 1 or 3, got {custom.channels}.")
        known[name] = Intrinsic(name, custom.prompt, custom.channels, custom.convention)
    for name in config.intrinsics:
        if name not in known:
            raise ValueError(
                f"Unknown intrinsic {name!r};{_nearest(name, known)} choose from {', '.join(known)}, or describe it "
                f"with custom.{name}.prompt=..."
            )
    return [known[name] for name in config.intrinsics]


def to_yaml(config: TrainConfig) -> str:
    """Return the configuration as YAML that `load_config` reads."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def plain_dict(config: TrainConfig) -> dict[str, Any]:
    """Return every setting under its dotted key."""
    return flat(asdict(config))


def public_dict(config: TrainConfig) -> dict[str, Any]:
    """Return nested plain values fit to publish: local paths are reduced to their last part, `out` is dropped."""

    def last(path: str | None) -> str | None:
        if path is None or not (Path(path).expanduser().exists() or Path(path).is_absolute()):
            return path  # a hub id or a dataset's name
        return Path(path).name

    values = asdict(config)
    del values["out"]
    for key in ("base", "base_config", "image_channels"):
        values[key] = last(values[key])
    for key in ("path", "val_path", "cache"):
        values["data"][key] = last(values["data"][key])
    return values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: {"a": {"b": 1}} -> {"a.b": 1}."""
    items: dict[str, Any] = {}
    for key, value in values.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return items


def describe(cls: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted key, default, help) of every setting; `MISSING` if there is no default."""
    for item in fields(cls):
        default = item.default_factory() if callable(item.default_factory) else item.default
        if is_dataclass(default):
            yield from describe(type(default), f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, default, item.metadata["help"]
            if item.name == "custom":
                yield from describe(CustomConfig, "custom.NAME.")


def _merged(config: Any, layer: Mapping[str, Any], where: str) -> Any:
    omegaconf = load_omegaconf()
    try:
        return omegaconf.OmegaConf.merge(config, _fitted(layer, TrainConfig, "", where))
    except omegaconf.errors.MissingMandatoryValue as error:
        raise ValueError(f"{where}: {error.full_key} is not set; set it first or in the same YAML block.") from error
    except omegaconf.errors.OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{where}: {error.full_key or 'this'} cannot be read: {reason}.") from error


def _fitted(layer: Mapping[str, Any], cls: type, prefix: str, where: str) -> dict[str, Any]:
    """Fit settings to the dataclass `cls`; ValueError for an unknown key or a value of the wrong type."""
    kinds: dict[str, Any] = get_type_hints(cls)
    fitted: dict[str, Any] = {}
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if name not in kinds:
            known = [known for known, _, _ in describe()]
            near = _nearest(key, known)
            raise UnknownKeyError(f"Unknown key {shortened(key)!r} in {where}{f';{near}' if near else '.'}")
        kind = kinds[name]
        if is_dataclass(kind) and isinstance(kind, type):
            fitted[name] = _fitted(_mapping(value, key, where), kind, f"{key}.", where)
        elif get_origin(kind) is dict:
            groups = _mapping(value, key, where)
            fitted[name] = {
                str(group): _fitted(_mapping(layer, f"{key}.{group}", where), CustomConfig, f"{key}.{group}.", where)
                for group, layer in groups.items()
            }
        else:
            fitted[name] = typed(value, kind, key, where)
    return fitted


def _mapping(value: Any, key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {key} is a group of settings, as in {key}.NAME=...")
    return value


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """' did you mean x?' or nothing; `lr` finds `optimizer.lr`."""
    last = {key.rpartition(".")[2]: key for key in known}
    for candidates, wanted in ((list(known), name), (list(last), name.rpartition(".")[2])):
        close = get_close_matches(wanted, candidates, 1)
        if close:
            return f" did you mean {close[0] if close[0] in known else last[close[0]]}?"
    return ""


def _help_of(key: str) -> str:
    return next((text for known, _, text in describe() if known == key), "a setting")
