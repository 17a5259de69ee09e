"""docs/generators.md: every command, option, preset and setting on it exists."""

import importlib
import re
import shlex

import pytest
import typer
from intrinsic_lora.cli.main import app
from intrinsic_lora.train.config import load_config

PROGRAM = typer.main.get_command(app)


@pytest.fixture
def page(root) -> str:
    return (root / "docs" / "generators.md").read_text(encoding="utf-8")


def lines(page: str, program: str) -> list[list[str]]:
    """Return the words after `program` of every line that begins with it; all lines begin with one of the two."""
    blocks = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert {command[0] for command in commands} <= {"intrinsic-lora", "python"}
    return [rest for first, *rest in commands if first == program]


def check_options(command, arguments: list[str]) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("-")} <= options, (command.name, arguments)


def test_commands_and_their_options_exist(page):
    commands = lines(page, "intrinsic-lora")
    assert len(commands) > 15
    for name, *arguments in commands:
        check_options(PROGRAM.commands[name], arguments)


def test_recipes_and_their_options_exist(page):
    recipes = [rest for rest in lines(page, "python") if rest[0] == "-m"]
    assert len(recipes) > 5
    for _, name, *arguments in recipes:
        module = importlib.import_module(name)
        if hasattr(module, "app"):
            command = typer.main.get_command(module.app).commands[arguments[0]]
        else:
            recipe = typer.Typer()
            recipe.command()(module.main)
            command = typer.main.get_command(recipe)
        check_options(command, arguments)


def test_trainings_are_configured(page):
    for name, *arguments in lines(page, "intrinsic-lora"):
        if name == "train":
            assert arguments[0] == "--preset"
            config = load_config(arguments[1], None, arguments[2:])
            assert config.data.path.startswith("sets/") and config.base.startswith("generators/")


def test_every_folder_is_made_before_it_is_used(page, root):
    shipped = [path for path in (root / "assets" / "generators").rglob("*") if path.is_dir()]
    made = {path.relative_to(root).as_posix() for path in shipped}
    for name, *arguments in lines(page, "intrinsic-lora"):
        if name == "import-generator":
            made.add(arguments[1])
        elif name == "make-set":
            assert arguments[0] in made
            made.add(arguments[1])
        elif name == "label":
            assert arguments[0] == f"{arguments[arguments.index('--out') + 1]}/photos"
            assert arguments[0].removesuffix("/photos") in made
        elif name == "train":
            settings = dict(word.split("=", 1) for word in arguments[2:])
            assert {settings["base"], settings["data.path"]} <= made
            made.add(settings["out"])
        elif name == "extract":
            assert {arguments[arguments.index(key) + 1] for key in ("--generator", "--loras")} <= made
        else:
            assert name == "render-scenes"


def test_files_and_sections_it_names_exist(page, root):
    for target in re.findall(r"\]\(([^)#]*)#([^)]*)\)", page):
        where = (root / "docs" / target[0]).read_text(encoding="utf-8") if target[0] else page
        titles = re.findall(r"^#+ (.*)$", where, re.M)
        sections = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
        assert target[1] in sections
    for path in re.findall(r"`((?:train|tests|benchmarks|docs)/[\w/.]+\.\w+)`", page):
        assert (root / path).is_file(), path
