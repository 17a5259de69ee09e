"""docs/architecture.md: the folders in its tables exist, and imports follow its arrows."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# Within train/: what each folder may import of the others. Modules beside the folders may import all but recipes.
FOLDERS: dict[str, set[str]] = {
    "generators": set(),
    "scenes": set(),
    "scoring": set(),
    "backbones": {"generators"},
    "data": {"backbones"},
    "methods": {"backbones", "losses"},
    "teachers": {"data"},
}
ROOMS = ("intrinsics", "comfy_nodes", "diffusers_pipeline", "train", "cli")


def modules(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


def imported(path: Path, text: str | None = None) -> set[str]:
    """Absolute dotted names of the package's modules that a file imports, anywhere in it; or its `text` would."""
    package = ("intrinsic_lora", *path.relative_to(ROOT).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if text is None else text)):
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


def climbing(folder: str, path: Path, text: str | None = None) -> set[str]:
    """Return the imports of a file in train/`folder` from train/ that violate `FOLDERS`."""
    parts = {name.split(".")[1] for name in imported(path, text) if name.startswith("train.")}
    return parts - FOLDERS[folder] - {folder}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_of_train_imports_one_above_it(folder):
    against = {str(path): climbing(folder, path) for path in modules(f"train/{folder}")}
    assert {path: found for path, found in against.items() if found} == {}


def test_every_folder_of_train_has_its_place():
    found = {path.parent.name for path in (ROOT / "train").glob("*/*.py")}
    assert found == {*FOLDERS, "recipes"}


def graph_of(paths: list[Path]) -> dict[str, set[str]]:
    """Return {module: the modules it imports}, anywhere in the file."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        # `from .x import y`: y is a module, or something in x.
        found = {key if key in names else key.rpartition(".")[0] for key in imported(path)}
        graph[name] = (found & names.keys()) - {name}
    return graph


def test_no_module_imports_itself_by_way_of_others():
    graph = graph_of([path for room in ROOMS for path in modules(room)])
    assert len(graph) > 150 and "train.backbones.adapted" in graph["train.backbones.latent"]
    TopologicalSorter(graph).prepare()  # or CycleError


@pytest.mark.parametrize(
    ("planted", "folder"),
    [
        ("from ..data.cache import LatentCache", "backbones"),
        ("from ..loop import train", "data"),
        ("def late():\n    from .. import prepare", "scoring"),
        ("from ..scenes import render", "teachers"),
    ],
)
def test_a_planted_import_that_climbs_is_found(planted, folder):
    path = ROOT / "train" / folder / "planted_by_test_layout.py"
    assert climbing(folder, path, planted) != set()


def test_a_planted_circle_is_found():
    graph = graph_of(modules("train/scenes"))
    graph["train.scenes.parts"].add("train.scenes.files")
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_imports_are_resolved_to_absolute_names():
    # Written out: train/loop.py holds `from ..intrinsics.files import ...`, cli/main.py `from .. import __version__`.
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
