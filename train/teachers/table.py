"""Table of teachers: model, maps, licence and options."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class TeacherInfo:
    """A row of the table.

    Attributes:
        model: default model: a Hugging Face id (downloaded if not cached), or "embedded".
        makes: intrinsics it labels.
        licence: licence of the default model's weights, as stated in its model card or repository.
        options: names of its options, in addition to model, device and dtype.
    """

    model: str
    makes: tuple[str, ...]
    licence: str
    options: tuple[str, ...] = ()


MARIGOLD_OPTIONS = ("resolution", "steps", "ensemble", "seed")

TEACHERS: Mapping[str, TeacherInfo] = MappingProxyType(
    {
        "zoedepth": TeacherInfo("Intel/zoedepth-nyu-kitti", ("depth",), "MIT"),
        "depth-anything": TeacherInfo(
            "depth-anything/Depth-Anything-V2-Small-hf",
            ("depth",),
            "Apache-2.0 (the Base and Large models: CC-BY-NC-4.0)",
            ("far_over_near",),
        ),
        "normal-estimation": TeacherInfo("google/tipsv2-b14-dpt", ("normals",), "Apache-2.0", ("frame",)),
        "marigold-depth": TeacherInfo(
            "prs-eth/marigold-depth-v1-1", ("depth",), "OpenRAIL++-M", (*MARIGOLD_OPTIONS, "far_over_near")
        ),
        "marigold-normals": TeacherInfo(
            "prs-eth/marigold-normals-v1-1", ("normals",), "OpenRAIL++-M", MARIGOLD_OPTIONS
        ),
        "marigold-iid": TeacherInfo(
            "prs-eth/marigold-iid-lighting-v1-1", ("albedo", "shading"), "OpenRAIL++-M", MARIGOLD_OPTIONS
        ),
        "intrinsic-lora": TeacherInfo(
            "embedded",
            ("normals", "depth", "albedo", "shading"),
            "Apache-2.0 (the embedded model)",
            ("resolution", "loras", "base_config"),
        ),
    }
)


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not None.

    Raises:
        ValueError: an unknown teacher or an unsupported option.
    """
    if name not in TEACHERS:
        raise ValueError(f"Unknown teacher {name!r}; choose from {', '.join(TEACHERS)}.")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in TEACHERS[name].options:
            supported = ", ".join(TEACHERS[name].options) or "none"
            raise ValueError(f"The teacher {name} does not support {key}; its options: {supported}.")
    return given
