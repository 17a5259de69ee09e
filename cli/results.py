"""Which pictures `extract` reads and which files it writes of each."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..intrinsics.vocabulary import PICTURE_SUFFIXES, DepthPolarity, Intrinsic, NormalFrame

if TYPE_CHECKING:
    from torch import Tensor

    from ..intrinsics.pictures import Picture


def choices(given: list[str], known: tuple[str, ...], option: str, others: bool = False) -> list[str]:
    """Comma-separated and repeated values -> the chosen names in their fixed order, then `others` if allowed."""
    chosen = list(dict.fromkeys(name.strip() for value in given for name in value.split(",") if name.strip()))
    for name in chosen:
        if name not in known and not others:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}.", param_hint=f"'{option}'")
    return [*(name for name in known if name in chosen), *(name for name in chosen if name not in known)]


def collect(paths: list[Path], out: Path) -> list[Path]:
    """The pictures meant by `paths`; refuses those whose results would have the same names."""
    pictures: dict[Path, None] = {}
    for path in paths:
        found = [path]
        if path.is_dir():
            if path.resolve() == out.resolve():
                raise typer.BadParameter(
                    f"{out} is also read as input, so a rerun would read its own results; choose another folder.",
                    param_hint="'--out'",
                )
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
            if not found:
                raise typer.BadParameter(
                    f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).", param_hint="'PATH'"
                )
        pictures.update(dict.fromkeys(found))
    # Lower case, because Windows and macOS keep one file for both spellings.
    stems = Counter(path.stem.lower() for path in pictures)
    twins = [str(path) for path in pictures if stems[path.stem.lower()] > 1]
    if twins:
        raise typer.BadParameter(
            f"{', '.join(twins[:4])} would write the same files; rename them or extract them to different folders.",
            param_hint="'PATH'",
        )
    return list(pictures)


def refuse_overwriting(pictures: list[Path], out: Path, names: list[str], kinds: list[str]) -> None:
    """Raises typer.BadParameter when a result would be one of the pictures."""
    inputs = {path.resolve(): path for path in pictures}
    for path in pictures:
        for result in results_of(path, out, names, kinds):
            if result.resolve() in inputs:
                raise typer.BadParameter(
                    f"the results of {path} would overwrite the picture {result}; choose another folder.",
                    param_hint="'--out'",
                )


def results_of(path: Path, out: Path, names: list[str], kinds: list[str]) -> list[Path]:
    """The files that `write_results` makes of a picture."""
    files = [out / f"{path.stem}_sheet.png"]
    if "png" in kinds or "png16" in kinds:
        files += [out / f"{path.stem}_{name}.png" for name in (*names, "confidence")]
    return files + [out / f"{path.stem}.{kind}" for kind in ("npz", "exr") if kind in kinds]


def write_results(
    path: Path,
    picture: "Picture",
    maps: dict[str, "Tensor"],
    out: Path,
    kinds: list[str],
    frame: NormalFrame,
    polarity: DepthPolarity,
    definitions: dict[str, Intrinsic],
) -> None:
    """Canonical maps (1, C, H, W) of a picture as pictures, npz, exr and a contact sheet; `definitions` of those that
    are not built in."""
    from ..intrinsics.display import display_map
    from ..intrinsics.files import atomic_path
    from ..intrinsics.pictures import write_npz, write_png
    from ..intrinsics.sheet import contact_sheet

    drawn = {name: display_map(map, definitions.get(name, name), frame, polarity) for name, map in maps.items()}
    if "png" in kinds or "png16" in kinds:
        for name, map in drawn.items():
            write_png(out / f"{path.stem}_{name}.png", map, bits=16 if "png16" in kinds else 8)
    if picture.alpha is not None:
        maps = {**maps, "mask": picture.alpha}
    if "npz" in kinds:
        arrays = {name: map[0].permute(1, 2, 0).numpy() for name, map in maps.items()}  # (H, W, C)
        flat = ("depth", "confidence", "mask")
        write_npz(out / f"{path.stem}.npz", **{n: a[..., 0] if n in flat else a for n, a in arrays.items()})
    if "exr" in kinds:
        from ..intrinsics.exr import write_exr

        write_exr(out / f"{path.stem}.exr", {name: map[0] for name, map in maps.items()})
    sheet = contact_sheet([("photo", picture.rgb), *drawn.items()])
    with atomic_path(out / f"{path.stem}_sheet.png") as temporary:
        sheet.save(temporary)
