"""LoRAs inside a frozen network, several side by side, by stock peft."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .interfaces import Weights

# The part of a layer's path that only says where it is: of `...transformer_blocks.0.attn1.to_q`, `to_q`.
_PATH = re.compile(r".*(?:blocks|attentions|resnets|samplers)\.\d+\.(?:attn\d\.)?")


class Adapted:
    """A frozen network that holds LoRAs by name, at most one of them active.

    Attributes:
        model: the network. peft puts its layers around the ones that take a LoRA.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.requires_grad_(False)
        self._active: str | None = None

    def add_lora(self, name: str, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """Add a LoRA that changes nothing yet (A ~ N(0, 1/rank) in float32, B = 0) and activate it.

        Args:
            name: name of the LoRA: letters, digits and underscores.
            rank, alpha: the change of a weight is `alpha / rank * B @ A`.
            targets: ends of module names, whole words: "to_q", "to_out.0", "ff.net.2"; regular expressions where that
                is ambiguous: "decoder.*to_q".
            seed: random seed of A. The global random state is not changed.

        Raises:
            ValueError: a target is not found, or the name is taken.
        """
        if name in {key for _, layer in self._layers() for key in layer.lora_A}:
            raise ValueError(f"There is a LoRA called {name!r} already; choose another name.")
        modules = [
            key.replace(".base_layer", "")  # peft's, where another LoRA is in place
            for key, module in self.model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in key
        ]
        patterns = {target: _pattern(target) for target in targets}
        chosen = [key for key in modules if any(pattern.fullmatch(key) for pattern in patterns.values())]
        missing = [t for t, pattern in patterns.items() if not any(pattern.fullmatch(key) for key in modules)]
        if missing or not targets:
            layers = sorted({_PATH.sub("", key) for key in modules})
            what = f"has no layer called {', '.join(missing)}" if missing else "was given no LoRA targets"
            raise ValueError(f"The base model {what}; its layers are {', '.join(layers)}.")
        with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, from the global generator
            torch.manual_seed(seed)
            config = LoraConfig(
                r=rank,
                lora_alpha=alpha,
                init_lora_weights="gaussian",
                target_modules="|".join(re.escape(key) for key in chosen),  # type: ignore[arg-type]
            )
            with warnings.catch_warnings():  # peft's, of a second LoRA being there
                warnings.simplefilter("ignore", UserWarning)
                inject_adapter_in_model(config, self.model, name)
        for parameter in self.lora_parameters(name):
            parameter.data = parameter.data.float()  # peft follows the base, where bf16 would swallow small updates
        self.activate(name)

    def activate(self, name: str | None) -> None:
        """Make one LoRA the only active and trainable one; None gives the plain base.

        Gradients are computed against what is active during `backward`, so that comes before the next `activate`.
        """
        if name == self._active:
            return
        if name is not None:
            self.lora_parameters(name)  # or KeyError
        for _, layer in self._layers():
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)
        self._active = name

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 over the weights of the base."""
        return fingerprint_of(self.model)

    @property
    def active(self) -> str | None:
        """The name of the active LoRA."""
        return self._active

    def lora_parameters(self, name: str) -> list[nn.Parameter]:
        """Return A and B of every layer, in the order of the modules."""
        parameters = []
        for _, layer in self._layers(name):
            parameters += [layer.lora_A[name].weight, layer.lora_B[name].weight]
        return parameters

    def lora_weights(self, name: str) -> Weights:
        """Return a copy of the LoRA on the CPU, as `write_lora` takes it."""
        return {
            module: (_copy(layer.lora_A[name].weight), _copy(layer.lora_B[name].weight), float(layer.lora_alpha[name]))
            for module, layer in self._layers(name)
        }

    def load_lora_weights(self, name: str, weights: Mapping[str, tuple[Tensor, Tensor, float]]) -> None:
        """Load what `lora_weights` returned, bit for bit, alpha included.

        Raises:
            ValueError: `weights` are for other modules or of another rank than the LoRA that was added.
        """
        layers = dict(self._layers(name))
        if different := sorted(layers.keys() ^ weights.keys()):
            raise ValueError(
                f"The LoRA to load has {len(weights)} layers and {name} has {len(layers)}; the first that differs is "
                f"{different[0]}: train it with the targets it was saved with."
            )
        for module, (a, b, _) in weights.items():
            have = layers[module].lora_A[name].weight.shape
            if a.shape != have or b.shape != layers[module].lora_B[name].weight.shape:
                raise ValueError(
                    f"The LoRA to load has rank {len(a)} at {module} and {name} has rank {have[0]}; "
                    "train it with the rank it was saved with."
                )
        with torch.no_grad():
            for module, (a, b, alpha) in weights.items():
                layer = layers[module]
                layer.lora_A[name].weight.copy_(a)
                layer.lora_B[name].weight.copy_(b)
                layer.lora_alpha[name] = alpha
                layer.scaling[name] = alpha / layer.r[name]

    def _layers(self, name: str | None = None) -> Iterator[tuple[str, LoraLayer]]:
        """Yield the layers that hold the LoRA `name`, or any, under the names that modules have without peft."""
        found = False
        for module, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer) and (name is None or name in layer.lora_A):
                found = True
                yield module, layer
        if name is not None and not found:
            raise KeyError(f"There is no LoRA called {name!r}.")


def fingerprint_of(*parts: nn.Module) -> str:
    """Return the first 16 hex digits of a SHA-256 over all weights and buffers, LoRAs excluded."""
    digest = hashlib.sha256()
    for part in parts:
        for key, value in part.state_dict().items():
            if ".lora_" not in key:
                digest.update(key.replace(".base_layer.", ".").encode())
                digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _pattern(target: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?:.*\.)?(?:{target})")
    except re.error as error:
        raise ValueError(f"The LoRA target {target!r} is not a regular expression: {error}.") from error


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to("cpu", copy=True)
