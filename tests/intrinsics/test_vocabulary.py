"""The vocabulary and the lazy package around it."""

import subprocess
import sys
from importlib import import_module

import intrinsic_lora.intrinsics as core
import pytest
from intrinsic_lora.intrinsics import vocabulary
from intrinsic_lora.intrinsics.files import may_be_hub_id
from intrinsic_lora.intrinsics.relight import PRESETS


def test_vocabulary_needs_the_standard_library_only():
    code = """
import sys
before = set(sys.modules)
import intrinsic_lora.intrinsics.vocabulary, intrinsic_lora.intrinsics.files
new = {name.partition(".")[0] for name in sys.modules.keys() - before}
print(*sorted(new - sys.stdlib_module_names - {"intrinsic_lora"}))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == []


def test_the_package_hands_out_what_its_modules_define():
    # Every module is imported first, because a module of the same name would then hide a function.
    modules = {name: import_module(f"{core.__name__}.{name}") for name in core._LAZY}
    assert sorted(name for names in core._LAZY.values() for name in names) == sorted(core.__all__)
    for module, names in core._LAZY.items():
        for name in names:
            assert getattr(core, name) is getattr(modules[module], name), name


def test_every_preset_has_a_description_and_a_rig():
    assert list(PRESETS) == list(vocabulary.PRESET_DESCRIPTIONS)
    assert all(PRESETS.values())


@pytest.mark.parametrize("text", ["owner/name", "stable-diffusion-v1-5/stable-diffusion-v1-5", "o_1/n.v1-2"])
def test_hub_ids(text):
    assert may_be_hub_id(text)


@pytest.mark.parametrize(
    "text",
    ["name", "", "/", "name/", "/name", "./name", "~/name", "../name", "a/b/c", "owner/x.safetensors", "a b/c"],
)
def test_paths_are_not_hub_ids(text):
    assert not may_be_hub_id(text)
