"""Which LoRA files ComfyUI has, and which intrinsic each of them draws.

Files are searched in models/loras, models/intrinsic_loras and the folders that extra_model_paths.yaml adds to them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..intrinsics.lora import LoRAHeader, named_intrinsic, read_header
from ..intrinsics.vocabulary import INTRINSICS

FOLDERS = ("intrinsic_loras", "loras")  # the first one wins where both have a file of one name
SUFFIXES = (".safetensors", ".bin")
OTHER_BASES = {"stable-diffusion-v2": "Stable Diffusion 2", "stable-diffusion-xl": "SDXL"}  # by ModelSpec's prefix
AUTOMATIC = "automatic"
WHERE = "models/loras or models/intrinsic_loras"


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA file that ComfyUI has.

    Attributes:
        name: the path below its models folder, as ComfyUI lists it.
        path: of the file.
        intrinsic: what it draws, of the four or another; None if neither its metadata nor its name says so.
        other_base: the base it was trained on, if its metadata names another one than Stable Diffusion 1.x.
    """

    name: str
    path: Path
    intrinsic: str | None
    other_base: str | None = None

    @property
    def set(self) -> str:
        """The name with "*" for the intrinsic: what the files of one training have in common."""
        if self.intrinsic is None:
            return self.name
        folder, slash, file = self.name.rpartition("/")
        return (
            folder
            + slash
            + re.sub(rf"{re.escape(self.intrinsic.removesuffix('s'))}s?", "*", file, flags=re.IGNORECASE)
        )


def lora_files() -> list[LoRAFile]:
    """Return every LoRA file that ComfyUI has, of an intrinsic or not."""
    import folder_paths

    found: dict[str, LoRAFile] = {}
    for folder in FOLDERS:
        for name in folder_paths.get_filename_list(folder):
            path = folder_paths.get_full_path(folder, name)
            if path is not None and name.endswith(SUFFIXES):
                name = name.replace("\\", "/")
                found.setdefault(name, LoRAFile(name, Path(path), *identify(Path(path), folder == "intrinsic_loras")))
    return list(found.values())


def identify(path: Path, ours: bool) -> tuple[str | None, str | None]:
    """Return which intrinsic a file draws, None for other LoRAs, and `LoRAFile.other_base`; reads only the header.

    Args:
        path: an existing file.
        ours: whether it is in a folder of intrinsic LoRAs. Elsewhere a name counts only if it says "intrinsic" too,
            since many a style LoRA has "normal" or "depth" in its name.
    """
    stat = path.stat()
    return _identify(path, ours or "intrinsic" in path.stem.lower(), stat.st_mtime_ns, stat.st_size)


@lru_cache(4096)
def _identify(path: Path, by_name: bool, *version: int) -> tuple[str | None, str | None]:
    try:
        header = read_header(path)
    except (ValueError, OSError):  # damaged: reported when the file is used
        header = LoRAHeader()
    intrinsic = header.intrinsic or (named_intrinsic(path) if by_name else None)
    architecture = header.entries.get("modelspec.architecture", "")
    known = (base for prefix, base in OTHER_BASES.items() if architecture.startswith(prefix))
    return intrinsic, next(known, header.family)


def sets(files: Iterable[LoRAFile]) -> list[str]:
    """List what can be chosen as a whole: the sets of the four maps that the nodes draw."""
    return sorted({file.set for file in files if file.intrinsic in INTRINSICS})


def choose(files: Sequence[LoRAFile], names: Iterable[str], choice: str = AUTOMATIC) -> dict[str, LoRAFile]:
    """Choose {intrinsic: its file}.

    Args:
        files: what there is.
        names: the intrinsics asked for.
        choice: "automatic", or one of `sets`.

    Raises:
        FileNotFoundError: an intrinsic has no file.
        ValueError: it has several, or one for another base model.
    """
    chosen = {}
    for name in names:
        fitting = [file for file in files if file.intrinsic == name and choice in (AUTOMATIC, file.set)]
        if choice == AUTOMATIC:
            fitting = [file for file in fitting if file.other_base is None] or fitting
        if not fitting:
            lack = f"No LoRA for {name} in {WHERE}" + ("" if choice == AUTOMATIC else f" belongs to {choice}")
            raise FileNotFoundError(
                f"{lack}: put one there (intrinsic_lora_{name}.safetensors) and refresh (R), or choose other maps."
            )
        if len(fitting) > 1:
            both = " and ".join(file.name for file in fitting)
            raise ValueError(f"{both} are all for {name}: choose one set under loras instead of {choice}.")
        chosen[name] = _for_this_base(fitting[0])
    return chosen


def choose_file(files: Sequence[LoRAFile], intrinsic: str, name: str = AUTOMATIC) -> LoRAFile:
    """Return the file `name`, or for "automatic" the one of the intrinsic.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it draws another intrinsic or is for another base model, or "automatic" finds several.
    """
    if name == AUTOMATIC:
        return choose(files, [intrinsic])[intrinsic]
    fitting = [file for file in files if file.name == name.replace("\\", "/")]
    if not fitting:
        raise FileNotFoundError(
            f"There is no LoRA {name} in {WHERE}: put it there and refresh (R), or choose another."
        )
    file = fitting[0]
    if file.intrinsic not in (None, intrinsic):
        raise ValueError(f"{file.name} is a LoRA for {file.intrinsic}, not for {intrinsic}: change one of the two.")
    return _for_this_base(file)


def _for_this_base(file: LoRAFile) -> LoRAFile:
    if file.other_base is not None:
        raise ValueError(
            f"{file.name} was made for {file.other_base}, and these nodes take LoRAs for Stable Diffusion 1.x: choose "
            "another one."
        )
    return file


def fingerprint(files: Iterable[LoRAFile]) -> str:
    """Return a text that changes when a file of an intrinsic is added, removed or written."""
    stats = ((file, file.path.stat()) for file in files if file.intrinsic is not None)
    return repr(sorted((file.name, stat.st_mtime_ns, stat.st_size) for file, stat in stats))
