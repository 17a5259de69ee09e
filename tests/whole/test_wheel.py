"""The wheel, installed into an empty folder and used from outside the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    # No isolation: setuptools comes with the test extras, so that building needs no network.
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, root]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "intrinsic_lora/py.typed" in names
    assert {
        "intrinsic_lora/diffusers_pipeline/pipeline.py",
        "intrinsic_lora/diffusers_pipeline/multi_step_pipeline.py",
    } <= set(names)
    assert "intrinsic_lora/assets/embedded/model_index.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "tests/" in name or "benchmarks/" in name or "runs/" in name]


def test_the_installed_wheel_works_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    # An editable install's finder comes after PYTHONPATH, so the wheel is what is imported.
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*arguments) -> str:
        command = [sys.executable, *map(str, arguments)]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert python("-c", "import intrinsic_lora; print(intrinsic_lora.__file__)").startswith(str(site))
    cli = ("-m", "intrinsic_lora.cli.main")
    python(*cli, "render-scenes", "--out", "scenes", "--count", 1, "--seed", 3, "--size", 64)
    python(*cli, "extract", "scenes", "--out", "maps", "--format", "npz")
    table = python(*cli, "evaluate", "maps", "scenes", "--json", "figures.json")
    assert "normals" in table and (tmp_path / "figures.json").exists()


def test_importing_the_package_imports_nothing_heavy(root):
    code = "import sys, intrinsic_lora; sys.exit(bool({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root.parent)
