"""What the page asks the server for, to show our nodes in the user's language and their help."""

import pytest
import requests
from intrinsic_lora.tests.comfy.client import LIMIT, Client
from intrinsic_lora.tests.comfy.definitions import ROOT, ours, stored
from intrinsic_lora.tests.comfy.server import clone_pack, running_server

NODES = stored()


def test_the_stored_definitions_are_what_the_server_says(client):
    assert ours(client.object_info()) == NODES, "run python -m comfy.definitions"


@pytest.mark.parametrize("language", ("en", "zh", "ja"))
def test_the_server_gives_the_page_our_translations(client, language):
    texts = client.get("i18n")[language]
    assert {name for name in texts["nodeDefs"] if name in NODES} == set(NODES)
    if language != "en":
        assert {"intrinsic", "lighting"} <= set(texts["nodeCategories"])


@pytest.fixture(scope="module")
def plain(comfyui_dir, comfy_python, root, tmp_path_factory):
    """Start a server with the pack in a folder with a usual name.

    Where the name has a space, aiohttp serves no static file below it, of any pack; where it has a dot, the page asks
    under another name. Both then show help made from the tooltips.
    """
    base = tmp_path_factory.mktemp("plain")
    clone_pack(root, base / "custom_nodes" / "intrinsic-lora")
    with running_server(comfyui_dir, comfy_python, base) as server:
        yield server


def fetch_help(url: str, python_module: str, node: str, language: str) -> str:
    """As the page of v0.3.64 does: the text in the user's language, else the one without."""
    pack = python_module.split(".")[1]
    for path in (f"{node}/{language}.md", f"{node}.md"):
        answer = requests.get(f"{url}/extensions/{pack}/docs/{path}", timeout=LIMIT)
        if answer.ok:
            return answer.content.decode("utf-8")
    raise AssertionError(f"no help page for {node} ({answer.status_code})")


def test_every_help_page_is_served_where_the_page_looks(plain):
    docs = ROOT / "comfy_nodes" / "web" / "docs"
    definitions = Client(plain.url).object_info()
    for node in NODES:
        for language in ("en", "zh", "ja", "fr"):
            own = docs / node / f"{language}.md"
            page = own if own.exists() else docs / f"{node}.md"
            text = fetch_help(plain.url, definitions[node]["python_module"], node, language)
            assert text == page.read_text(encoding="utf-8")
