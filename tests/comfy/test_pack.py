"""ComfyUI loads the pack from a clone, in an environment that has only ComfyUI's own requirements."""


def test_nothing_of_ours_is_installed(run_in_comfy):
    code = """
from importlib.util import find_spec
print(*(n for n in ("intrinsic_lora", "diffusers", "peft", "accelerate", "OpenEXR", "imagecodecs") if find_spec(n)))
"""
    assert run_in_comfy(code).strip() == ""


def test_the_core_imports_under_the_name_comfyui_gives(run_in_comfy, server):
    """Every module of intrinsics/, the way ComfyUI loads a folder: its path, with spaces, is the module's name."""
    code = """
import importlib, pathlib, sys
from importlib.util import module_from_spec, spec_from_file_location
folder = pathlib.Path(sys.argv[1])
name = str(folder).replace(".", "_x_")
spec = spec_from_file_location(name, folder / "__init__.py")
sys.modules[name] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
modules = [f".intrinsics.{path.stem}" for path in (folder / "intrinsics").glob("[!_]*.py")]
for module in modules:
    importlib.import_module(module, name)
print(len(modules), "intrinsic_lora" in sys.modules, "diffusers" in sys.modules)
"""
    number, *foreign = run_in_comfy(code, server.pack).split()
    assert int(number) > 10 and foreign == ["False", "False"]


def test_comfyui_imports_the_pack(server, client):
    assert any(name.startswith("IntrinsicLora_") for name in client.object_info())
    assert "IMPORT FAILED" not in server.log.read_text()
