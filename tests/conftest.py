"""What is set before anything is imported: no test touches the network, and none is drawn for a terminal."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
for colours in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):  # with these, typer writes escape codes between letters
    os.environ.pop(colours, None)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the repository."""
    return Path(__file__).resolve().parent.parent
