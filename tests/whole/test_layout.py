"""docs/architecture.md: the folders in its tables exist, and imports follow its arrows."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = ("intrinsics", "comfy_nodes", "diffusers_pipeline", "train", "cli")


def modules(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


def imported(path: Path) -> set[str]:
    """Absolute dotted names of the package's modules that a file imports, anywhere in it."""
    package = ("intrinsic_lora", *path.relative_to(ROOT).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("intrinsic_lora.") for name in names if name.startswith("intrinsic_lora.")}


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} & set(ROOMS)


@pytest.mark.parametrize(
    "room, allowed",
    [
        ("intrinsics", set()),
        ("comfy_nodes", {"intrinsics"}),
        ("diffusers_pipeline", {"intrinsics"}),
        ("train", {"intrinsics", "diffusers_pipeline"}),
        ("cli", {"intrinsics", "diffusers_pipeline", "train"}),
    ],
)
def test_imports_follow_the_arrows(room, allowed):
    against = {}
    for path in modules(room):
        against[str(path)] = rooms_of(imported(path)) - allowed - {room}
    assert {path: found for path, found in against.items() if found} == {}


def test_the_product_imports_no_recipe():
    product = [path for path in modules("train") if "recipes" not in path.parts] + modules("cli")
    against = {str(path): {x for x in imported(path) if x.startswith("train.recipes")} for path in product}
    assert {path: found for path, found in against.items() if found} == {}


def test_imports_are_resolved_to_absolute_names():
    # By hand: train/loop.py holds `from ..intrinsics.files import ...`, cli/main.py `from .. import __version__`.
    assert "intrinsics.files" in {name.rpartition(".")[0] for name in imported(ROOT / "train" / "loop.py")}
    assert "__version__" in imported(ROOT / "cli" / "main.py")
    assert "train" in rooms_of(imported(ROOT / "cli" / "label.py"))


def test_every_path_in_the_tables_exists():
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ")]
    named = [
        name for cells in rows for cell in cells for name in cell.split("`")[1::2] if "/" in name and " " not in name
    ]
    assert len(named) > 30
    # Within the row of a room, a path may be relative to that room.
    missing = [name for name in named if not any((ROOT / room / name).exists() for room in ("", "tests", *ROOMS))]
    assert missing == []
