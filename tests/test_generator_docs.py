"""docs/generators.md: every command, option, preset and setting on it exists."""

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


def lines(page: str) -> list[list[str]]:
    blocks = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_commands_and_their_options_exist(page):
    commands = lines(page)
    assert len(commands) > 15
    for program, name, *arguments in commands:
        assert program == "intrinsic-lora"
        options = {option for parameter in PROGRAM.commands[name].params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("-")} <= options, (name, arguments)


def test_trainings_are_configured(page):
    for _, name, *arguments in lines(page):
        if name == "train":
            assert arguments[0] == "--preset"
            config = load_config(arguments[1], None, arguments[2:])
            assert config.data.path.startswith("sets/") and config.base.startswith("generators/")


def test_every_folder_is_made_before_it_is_used(page):
    made: set[str] = set()
    for _, name, *arguments in lines(page):
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
        else:
            assert name == "extract"
            assert {arguments[arguments.index(key) + 1] for key in ("--generator", "--loras")} <= made


def test_files_and_sections_it_names_exist(page, root):
    for target in re.findall(r"\]\(([^)#]*)#([^)]*)\)", page):
        where = (root / "docs" / target[0]).read_text(encoding="utf-8") if target[0] else page
        titles = re.findall(r"^#+ (.*)$", where, re.M)
        sections = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
        assert target[1] in sections
    for path in re.findall(r"`((?:train|tests|benchmarks|docs)/[\w/.]+\.\w+)`", page):
        assert (root / path).is_file(), path
