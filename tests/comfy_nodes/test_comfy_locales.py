"""What ComfyUI's page says about the nodes: locales and help pages, against the stored definitions. No ComfyUI here.

tests/comfy/test_locales.py holds the stored definitions against a real server's.
"""

import json
import re

import pytest
from intrinsic_lora.tests.comfy.definitions import ROOT, english, inputs_of, stored

LANGUAGES = ("zh", "ja")
NODES = stored()
DOCS = ROOT / "comfy_nodes" / "web" / "docs"
SAME = {"x", "y"}  # what is the same in every language
HAN, KANA = r"[\u4e00-\u9fff]", r"[\u3040-\u30ff]"
NUMBER = re.compile(r"(?<![\w#.-])-?\d+(?:\.\d+)?")


def locale(language: str, file: str = "nodeDefs.json") -> dict:
    return json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))


def texts(content: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """{("IntrinsicLora_Light", "inputs", "az", "tooltip"): text} of a nodeDefs.json."""
    found = {}
    for key, value in content.items():
        found |= texts(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


def options_of(node: str, name: str) -> list[str]:
    return inputs_of(NODES[node])[name].get("options", [])


def test_every_node_input_and_output_has_a_tooltip_or_description():
    empty = [path for path, text in texts(english(NODES)).items() if not (text or "").strip()]
    assert not empty and len(NODES) >= 12


def test_english_is_what_the_nodes_say():
    assert locale("en") == english(NODES), "run python -m comfy.definitions"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_everything_and_nothing_else(language):
    assert list(texts(locale(language))) == list(texts(locale("en")))


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_left_in_english(language):
    en = texts(locale("en"))
    for path, text in texts(locale(language)).items():
        assert text != en[path] or (text in SAME and path[-1] == "name"), path
        if path[-1] in ("tooltip", "description"):
            assert re.search(HAN if language == "zh" else KANA, text), path


def test_each_translation_is_in_its_own_language():
    assert not [path for path, text in texts(locale("zh")).items() if re.search(KANA, text)]
    zh, ja = texts(locale("zh")), texts(locale("ja"))
    long = [path for path in zh if path[-1] in ("tooltip", "description")]
    assert not [path for path in long if zh[path] == ja[path]]


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_survive_translation(language):
    """Angles, kelvins and ranges: whatever the English text says in figures."""
    translated = texts(locale(language))
    for path, text in texts(locale("en")).items():
        wanted = {number.lstrip("-") for number in NUMBER.findall(text)}
        assert wanted <= set(re.findall(r"\d+(?:\.\d+)?", translated[path])), (path, translated[path])
        negative = {number for number in NUMBER.findall(text) if number.startswith("-")}
        assert negative <= set(re.findall(r"-\d+(?:\.\d+)?", translated[path])), (path, translated[path])


@pytest.mark.parametrize("language", LANGUAGES)
def test_choices_are_called_by_what_the_menu_shows(language):
    """The page does not translate the choices of a menu, so a tooltip must name them as they are."""
    translated = texts(locale(language))
    for path, text in texts(locale("en")).items():
        if path[1] == "inputs" and path[-1] == "tooltip":
            named = [o for o in options_of(path[0], path[2]) if re.search(rf"\b{o}:", text, re.IGNORECASE)]
            assert not [option for option in named if option not in translated[path]], path


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_no_text_has_signs_that_the_page_would_interpret(language):
    """vue-i18n compiles messages: braces and @ raise, | means plural, < is markup.

    Some versions of the page do not compile tooltips, so that escaping would show.
    """
    content = texts(locale(language)) | (texts(locale(language, "main.json")) if language != "en" else {})
    assert not [path for path, text in content.items() if re.search(r"[{}@|<]", text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_folders_of_the_node_menu_are_translated(language):
    ours = {part for node in NODES.values() for part in node["category"].split("/")} - {"image"}  # core's own
    assert set(locale(language, "main.json")["nodeCategories"]) == ours


# --------------------------------------------------------------------- help pages


def names(definition: dict) -> set[str]:
    """Return inputs and outputs by the names shown by the page."""
    return {options.get("display_name", name) for name, options in inputs_of(definition).items()} | set(
        definition["output_name"]
    )


def pages(node: str) -> list[str]:
    """Of all languages: where the page looks, DOCS/<node>/<language>.md, then DOCS/<node>.md."""
    files = [DOCS / f"{node}.md", *sorted((DOCS / node).glob("*.md"))]
    return [file.read_text(encoding="utf-8") for file in files]


def test_every_node_has_a_help_page_and_every_page_a_node():
    assert {file.stem for file in DOCS.glob("*.md")} == set(NODES)
    assert {folder.name for folder in DOCS.iterdir() if folder.is_dir()} <= set(NODES)
    assert {file.stem for file in DOCS.glob("*/*")} <= set(LANGUAGES)


@pytest.mark.parametrize("node", NODES)
def test_a_help_page_explains_every_input_output_and_choice(node):
    definition = NODES[node]
    needed = names(definition) | {option for name in inputs_of(definition) for option in options_of(node, name)}
    for page in pages(node):
        assert not needed - set(re.findall(r"`([^`\n]+)`", page))


@pytest.mark.parametrize("node", NODES)
def test_a_help_page_lists_nothing_that_is_not_there(node):
    known = names(NODES[node]) | set(inputs_of(NODES[node]))
    for page in pages(node):
        terms = [re.split("[:：]", line)[0] for line in page.splitlines() if line.startswith("- `")]
        assert {name for term in terms for name in re.findall(r"`([a-z_]+)`", term)} <= known
