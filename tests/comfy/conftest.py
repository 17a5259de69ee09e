"""A real ComfyUI for the tests in this folder, run by `make test-comfy COMFYUI_DIR=...`.

The tests run in the project's own environment; ComfyUI runs in another process with an environment that has its
requirements and nothing of ours (no intrinsic_lora, diffusers, peft or OpenEXR).
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics.lora import write_lora
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from intrinsic_lora.tests.comfy import checkpoint as make
from intrinsic_lora.tests.comfy.client import Client
from intrinsic_lora.tests.comfy.server import PACK, Server, clone_pack, environment, running_server
from intrinsic_lora.tests.support import tiny


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Here rather than in a fixture, so that pytest reports all the skips of this folder in one line.
    if "COMFYUI_DIR" not in os.environ:
        pytest.skip("no ComfyUI: run make test-comfy COMFYUI_DIR=<a checkout>")
    if "open_page" in item.fixturenames and "COMFY_UI_MODULES" not in os.environ:
        pytest.skip("no browser: run make test-comfy-ui COMFYUI_DIR=<a checkout>")


@pytest.fixture(scope="session")
def comfyui_dir() -> Path:
    """Return the checkout of ComfyUI."""
    folder = Path(os.environ["COMFYUI_DIR"]).resolve()
    if not (folder / "main.py").is_file():
        pytest.fail(f"COMFYUI_DIR={folder} has no main.py; name a checkout of ComfyUI.")
    return folder


@pytest.fixture(scope="session")
def comfy_python(root: Path, comfyui_dir: Path) -> Path:
    """Return the interpreter of ComfyUI's environment (COMFYUI_PYTHON; .venv-comfy by default)."""
    python = Path(os.environ.get("COMFYUI_PYTHON", ".venv-comfy/bin/python"))
    python = python if python.is_absolute() else root / python  # not resolved: the link is what makes it a venv
    if not python.is_file():
        pytest.fail(f"There is no {python}; `make test-comfy` makes it, or set COMFYUI_PYTHON.")
    return python


@pytest.fixture(scope="session")
def run_in_comfy(comfyui_dir: Path, comfy_python: Path) -> Callable[..., str]:
    """`run_in_comfy(code, *arguments)` runs Python in ComfyUI's environment and folder, in a process of its own.

    ComfyUI's modules can be imported and are set to the CPU; the arguments are in sys.argv[1:]. Returns what was
    printed; raises AssertionError with the output where the code fails.
    """

    def run(code: str, *arguments: object) -> str:
        code = "import comfy.cli_args; comfy.cli_args.args.cpu = True\n" + code
        command = [str(comfy_python), "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=comfyui_dir, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def cache(root: Path) -> Path:
    """Folder for what is slow to make and always the same."""
    folder = root / "build" / "comfy"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def checkpoint(cache: Path) -> Path:
    """Return the small SD 1.5 checkpoint (502 MB), see `checkpoint.write_sd15`; delete it after changing that."""
    path = cache / "tiny_sd15.safetensors"
    if not path.is_file():
        make.write_sd15(path)
    return path


@pytest.fixture(scope="session")
def model_config(comfyui_dir: Path, tmp_path_factory) -> Path:
    """Return the diffusers folder without weights that describes `checkpoint`."""
    folder = tmp_path_factory.mktemp("config")
    make.write_sd15_config(folder, comfyui_dir)
    return folder


@pytest.fixture(scope="session")
def loras(model_config: Path, tmp_path_factory) -> Path:
    """Folder of intrinsic_lora_{normals,depth,albedo,shading}.safetensors for `checkpoint`, of ranks 2 to 5."""
    folder = tmp_path_factory.mktemp("loras")
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model_config / "unet"))
    tiny.write_loras(folder, unet, tuple(INTRINSICS))
    return folder


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path, model_config: Path, loras: Path) -> IntrinsicLoRAPipeline:
    """Return the reference: our diffusers pipeline with the same checkpoint and LoRAs, in float32."""
    pipe = IntrinsicLoRAPipeline.from_single_file(checkpoint, config=str(model_config), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_intrinsics(loras)
    return pipe


@pytest.fixture(scope="session")
def base(root: Path, checkpoint: Path, loras: Path, tmp_path_factory) -> Path:
    """Create a base directory of ComfyUI: the pack as a clone, valid and invalid checkpoints and LoRAs.

    models/checkpoints: tiny_sd15; tiny_sdxl and tiny_sd2, which are to be refused (zeros, no CLIP, no VAE).
    models/loras: those of `loras`, and sdxl_lora, which fits no SD 1.5.
    models/intrinsic_loras: empty.
    """
    base = tmp_path_factory.mktemp("comfy base")
    checkpoints, lora_folder = base / "models" / "checkpoints", base / "models" / "loras"
    for folder in (checkpoints, lora_folder, base / "models" / "intrinsic_loras", base / "custom_nodes"):
        folder.mkdir(parents=True)
    clone_pack(root, base / "custom_nodes" / PACK)
    (checkpoints / "tiny_sd15.safetensors").symlink_to(checkpoint)
    make.write_sdxl(checkpoints / "tiny_sdxl.safetensors")
    make.write_sd2(checkpoints / "tiny_sd2.safetensors")
    for path in loras.iterdir():
        shutil.copy(path, lora_folder)
    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    weights = {module: (torch.randn(4, 2048), torch.randn(640, 4), 4.0)}
    write_lora(lora_folder / "sdxl_lora.safetensors", weights, intrinsic="normals", base_model="SDXL")
    return base


@pytest.fixture(scope="session")
def server(comfyui_dir: Path, comfy_python: Path, base: Path) -> Iterator[Server]:
    """ComfyUI, running on `base` for the whole session."""
    with running_server(comfyui_dir, comfy_python, base) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Client:
    """Return a new client of the server."""
    return Client(server.url)


@pytest.fixture(scope="session")
def open_page(server: Server, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """`open_page(workflow, *options)` loads a workflow into the server's page in a browser; see ui/page.mjs.

    Returns its report. Tests that use it are skipped without COMFY_UI_MODULES, a node_modules folder with
    playwright-core.
    """

    def run(workflow: dict[str, Any], *options: object) -> dict[str, Any]:
        file = tmp_path_factory.mktemp("page") / "workflow.json"
        file.write_text(json.dumps(workflow))
        script = Path(__file__).parent / "ui" / "page.mjs"
        command = ["node", str(script), "--url", server.url, "--workflow", str(file), *map(str, options)]
        env = os.environ | {"NODE_PATH": str(Path(os.environ["COMFY_UI_MODULES"]).resolve())}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """uint8 (96, 128, 3): colours that vary smoothly, with some texture. Its sides are multiples of 8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic")
    picture = picture + 0.05 * torch.randn(picture.shape, generator=generator)
    return (picture[0].permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Show the end of ComfyUI's log if a test failed."""
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and server is not None:
        report.sections.append(("the end of ComfyUI's log", server.log.read_text(errors="replace")[-8000:]))
    return report
