"""Decompose and Model Patch in a real ComfyUI, against the diffusers pipeline on the same checkpoint and LoRAs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from intrinsic_lora.intrinsics.display import display_map
from intrinsic_lora.intrinsics.lora import read_lora
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from PIL import Image
from torch import Tensor

INSIDE = (Path(__file__).parent / "inside.py").read_text()
TOLERANCE = 2 / 255
SET = "intrinsic_lora_*.safetensors"


def photos(count: int, height: int, width: int, seed: int = 1) -> Tensor:
    """(B, 3, H, W) in [0, 1]: smooth colours with some texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 8, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (x + 0.03 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


# Name: (photos, the node's settings, the pipeline's).
CASES = {
    "not a multiple of 8": (photos(1, 101, 139), {"resolution": 64}, {"processing_resolution": 64}),
    "own size": (photos(1, 75, 90), {"resolution": 0, "upsample": "bilinear"}, {"processing_resolution": 0}),
    "shrunk": (photos(1, 150, 130), {"resolution": 64}, {"processing_resolution": 64}),
    "batch": (
        photos(3, 101, 77),
        {"resolution": 64, "batch_size": 2, "upsample": "bilinear"},
        {"processing_resolution": 64, "batch_size": 2, "upsample": "bilinear"},
    ),
    "off": (
        photos(1, 60, 44),
        {"resolution": 64, "upsample": "off"},
        {"processing_resolution": 64, "match_input_resolution": False},
    ),
    "512": (photos(1, 512, 512), {}, {}),
}


@pytest.fixture(scope="module")
def inside(run_in_comfy, server, tmp_path_factory):
    """`inside(code, **tensors)` runs code after `inside.py` with the tensors as variables; returns its `result`."""

    def run(code: str, **tensors: object) -> dict:
        folder = tmp_path_factory.mktemp("inside")
        torch.save(tensors, folder / "in.pt")
        load = "globals().update(torch.load(OUT / 'in.pt', weights_only=True))\n"
        save = "\ntorch.save(result, OUT / 'out.pt')"
        print(run_in_comfy(f"{INSIDE}\n{load}{code}{save}", server.base, server.pack, folder))
        return torch.load(folder / "out.pt", weights_only=True)

    return run


@pytest.fixture(scope="module")
def made(inside) -> dict[str, dict[str, Tensor]]:
    """Per case, what the node gives: pictures (B, H, W, 3), confidence (B, H, W), and the packet's maps."""
    code = """
model, clip, vae = base_model()
result = {}
for name, (photo, settings) in cases.items():
    inputs = {"image": photo.movedim(1, -1), "model": model, "clip": clip, "vae": vae, "loras": chosen} | settings
    packet, *pictures, mask = node("Decompose", **inputs)
    named = zip(("normals", "depth", "albedo", "shading"), pictures)
    result[name] = {key: x for key, x in named if isinstance(x, torch.Tensor)} | {"mask": mask}
    result[name]["packet"] = {k: v for k, v in vars(packet).items() if isinstance(v, torch.Tensor)}
"""
    cases = {name: (photo, settings) for name, (photo, settings, _) in CASES.items()}
    return inside(code, cases=cases, chosen=SET)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_pipeline(made, pipeline, case):
    photo, settings, options = CASES[case]
    expected = pipeline(photo, **options)
    names = [settings["maps"]] if "maps" in settings else list(INTRINSICS)
    assert set(made[case]) == {*names, "mask", "packet"}
    for name in names:
        picture = display_map(expected[name], name).expand(-1, 3, -1, -1).movedim(1, -1)  # (B, H, W, 3)
        assert made[case][name].shape == picture.shape and made[case][name].dtype == torch.float32
        error = (made[case][name] - picture).abs().max().item()
        print(f"{case}, {name}: {255 * error:.3f} / 255, spread {made[case][name].std():.3f}")
        assert error <= TOLERANCE
        assert made[case][name].std() > 0.02  # a picture of something
        assert (made[case]["packet"][name] - expected[name]).abs().max() <= TOLERANCE * expected[name].abs().max()
    assert (made[case]["mask"][:, None] - expected.confidence).abs().max() <= TOLERANCE


@pytest.fixture(scope="module")
def seen_inside(inside, released) -> dict:
    """Run the checks that require ComfyUI's process."""
    code = """
import logging
import comfy.patcher_extension
runtime, packet_part = part("comfy_nodes.runtime"), part("comfy_nodes.photo_maps")
model, clip, vae = base_model()
settings = {"clip": clip, "vae": vae, "loras": chosen, "maps": "depth", "resolution": 64, "upsample": "bilinear"}
result = {}

# A frame alone and in a batch; how many at a time; what is warned of.
widths = {"encode": [], "unet": [], "decode": []}
def watch(executor, x, *args, **kwargs):
    widths["unet"].append(len(x))
    return executor(x, *args, **kwargs)
watched = model.clone()
watched.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, watch)
handles = []
for name in ("encode", "decode"):
    def call(x, name=name, original=getattr(vae.first_stage_model, name)):
        widths[name].append(len(x))
        return original(x)
    setattr(vae.first_stage_model, name, call)
logged = []
class Listener(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())
logging.getLogger().addHandler(Listener())
image = clip_of_five.movedim(1, -1)
whole = node("Decompose", image=image, model=watched, batch_size=2, **settings)
result["widths"] = {key: list(value) for key, value in widths.items()}
result["warned"] = [message for message in logged if "already has patches" in message]
logged.clear()
result["whole"], result["raw"] = whole[0].depth, whole[0].raw_depth
alone = [node("Decompose", image=image[i : i + 1], model=model, **settings) for i in range(5)]
result["alone"] = torch.cat([outputs[0].depth for outputs in alone])
result["trust"], result["trust alone"] = whole[5], torch.cat([outputs[5] for outputs in alone])
result["warned of nothing"] = [message for message in logged if "already has patches" in message]

# Transparency.
packet = node("Decompose", image=rgba.movedim(1, -1), model=model, **settings | {"maps": "albedo"})[0]
result["photo"], result["alpha"], result["albedo"] = packet.photo, packet.mask, packet.albedo

# The unclamped decode is core's, but for the clamp, and core's VAE stays as it was.
latent = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
before = vae.process_output
result["raw picture"], result["core picture"] = runtime.decode(vae, latent), vae.decode(latent).movedim(-1, 1)
result["kept"] = vae.process_output is before

# A LoRA's patches by weight, from our file and from one as the authors released it, given by name.
for name in ("intrinsic_lora_albedo.safetensors", "released/albedo.bin"):
    patched, conditioning = node("ModelPatch", model=model, clip=clip, intrinsic="albedo", lora_name=name)
    patches = {key: [p[1] for p in value][0].weights for key, value in patched.patches.items()}
    result[name] = {key: (w[0] @ w[1]) * (w[2] / w[1].shape[0] if w[2] else 1) for key, w in patches.items()}
    result[name + " keys"] = len(model.patches)
result["timestep"] = int(patched.get_model_object("model_sampling").timestep(torch.tensor(14.6146)))
result["schedule"] = len(patched.get_model_object("model_sampling").sigmas)
result["replacement"] = part("comfy_nodes.retired").REPLACEMENT
result["modules"] = [name for name in ("diffusers", "peft", "OpenEXR", "intrinsic_lora") if name in sys.modules]
"""
    code += """
# All LoRAs in one forward, and one after the other; the model afterwards as it was; with too small a batch not.
runtime_files = part("comfy_nodes.loras").choose(part("comfy_nodes.loras").lora_files(), tuple(TASKS), chosen)
seen = torch.randn(3, 4, 8, 9, generator=torch.Generator().manual_seed(1))
loras = [runtime.read_for(file, name, model) for name, file in runtime_files.items()]
positives = [runtime.conditioning(clip, prompt) for prompt in TASKS.values()]
def plain():  # the model without any LoRA
    return runtime.predict(runtime._one_step(model, 999), positives[0])(seen)
before = plain()
with torch.inference_mode():
    result["each"] = runtime.predict_each(runtime.with_loras(model, loras), positives)(seen)
    result["one by one"] = torch.stack(
        [runtime.predict(runtime.with_lora(model, x), p)(seen) for x, p in zip(loras, positives)], 1
    )
result["plain"], result["plain again"] = before, plain()
result["swapped"] = [n for n, m in model.model.named_modules() if type(m).__name__.startswith("GroupedLoRA")]
widths["unet"].clear()
for size in (2, 4, 9):
    node("Decompose", image=image[:2], model=watched, batch_size=size, **settings | {"maps": "all"})
    widths["unet"].append("next")
result["rows"] = list(widths["unet"])

# Half precision, as ComfyUI chooses on most accelerators.
comfy.cli_args.args.bf16_unet = comfy.cli_args.args.bf16_vae = True
half, clip, half_vae = base_model()
result["dtypes"] = [str(half.model_dtype()), str(half_vae.vae_dtype)]
settings |= {"clip": clip, "maps": "shading"}
for key, pair in {"half": (half, half_vae), "full": (model, vae)}.items():
    result[key] = node("Decompose", image=image[:1], model=pair[0], **settings | {"vae": pair[1]})[0].shading
"""
    tasks = {name: INTRINSICS[name].prompt for name in INTRINSICS}
    code = f"TASKS = {tasks!r}\n" + code
    rgba = torch.cat([photos(1, 64, 72), torch.linspace(0, 1, 72).expand(1, 1, 64, 72)], dim=1)
    rgba = (rgba * 255).round() / 255
    return inside(code, clip_of_five=photos(5, 70, 66, seed=5), rgba=rgba, chosen=SET) | {"rgba": rgba}


@pytest.fixture(scope="module")
def released(base, loras) -> Iterator[Path]:
    """Write the albedo LoRA as in the authors' files: diffusers 0.20's keys in a .bin, no alpha, no metadata."""
    state = {}
    for module, (A, B, alpha) in read_lora(loras / "intrinsic_lora_albedo.safetensors").weights.items():
        attention, layer = module.removesuffix(".0").rsplit(".", 1)
        key = f"{attention}.processor.{layer}_lora"
        state |= {f"{key}.down.weight": A, f"{key}.up.weight": B * (alpha / len(A))}
    path = base / "models" / "intrinsic_loras" / "released" / "albedo.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    yield path
    path.unlink()


def test_a_frame_alone_is_the_frame_in_a_batch(seen_inside):
    assert (seen_inside["whole"] - seen_inside["alone"]).abs().max() < 1e-4
    assert (seen_inside["trust"] - seen_inside["trust alone"]).abs().max() < 1e-4
    raw = seen_inside["raw"]
    assert raw.std() > 0.01 and torch.equal(raw.flatten(1).argmax(1), seen_inside["whole"].flatten(1).argmax(1))


def test_no_stage_sees_more_than_batch_size(seen_inside):
    assert seen_inside["widths"] == {"encode": [2, 2, 1], "unet": [2, 2, 1], "decode": [2, 2, 1]}


def test_all_maps_in_one_forward_are_those_of_one_after_the_other(seen_inside):
    """x W + x A B in place of x (W + A B): another order of float32 sums through some hundred layers."""
    each, alone = seen_inside["each"], seen_inside["one by one"]
    assert each.shape == alone.shape == (3, 4, 4, 8, 9)
    effect = (alone - seen_inside["plain"][:, None]).abs().max()  # or there would be nothing to compare
    assert effect > 0.01 * alone.abs().max()
    assert (each - alone).abs().max() < 1e-4 * alone.abs().max()
    assert (each[:, 1:] - each[:, :-1]).abs().amax((0, 2, 3, 4)).min() > 0.01 * alone.abs().max()  # each its own
    assert seen_inside["swapped"] == []
    assert torch.equal(seen_inside["plain"], seen_inside["plain again"])


def test_rows_of_one_forward_are_at_most_batch_size(seen_inside):
    """Two photos, four maps: too few rows for all maps go map by map; four a photo at a time; nine both at once."""
    assert seen_inside["rows"] == [2, 2, 2, 2, "next", 4, 4, "next", 8, "next"]


def test_patches_of_others_are_warned_of(seen_inside):
    assert len(seen_inside["warned"]) == 1 and seen_inside["warned of nothing"] == []


def test_transparency_is_mid_grey_and_the_mask(seen_inside, pipeline):
    rgba = seen_inside["rgba"]
    assert torch.equal(seen_inside["alpha"], rgba[:, 3:])
    picture = Image.fromarray((rgba[0].movedim(0, -1) * 255).round().byte().numpy(), "RGBA")
    expected = pipeline(picture, intrinsics="albedo", processing_resolution=64, upsample="bilinear").albedo
    assert (seen_inside["albedo"] - expected).abs().max() < 1e-4
    assert (seen_inside["photo"][..., 0] - 0.5).abs().max() < 1e-6  # where alpha is 0


def test_decoding_only_leaves_out_the_clamp(seen_inside):
    raw, core = seen_inside["raw picture"], seen_inside["core picture"]
    assert raw.min() < -0.01 and raw.max() > 1.01
    assert (raw.clamp(0, 1) - core).abs().max() < 1e-6
    assert seen_inside["kept"]


def test_released_files_give_the_same_weights(seen_inside, loras):
    ours, released = seen_inside["intrinsic_lora_albedo.safetensors"], seen_inside["released/albedo.bin"]
    assert ours.keys() == released.keys()
    assert len(ours) == len(read_lora(loras / "intrinsic_lora_albedo.safetensors").weights)
    assert all(torch.allclose(ours[key], released[key], atol=1e-6) and ours[key].abs().max() > 0.01 for key in ours)
    assert seen_inside["released/albedo.bin keys"] == 0  # the model that came in is as it was


def test_the_step_is_the_last(seen_inside):
    assert seen_inside["timestep"] == 999 and seen_inside["schedule"] == 1000


def test_half_precision(seen_inside):
    assert seen_inside["dtypes"] == ["torch.bfloat16", "torch.bfloat16"]
    half, full = seen_inside["half"], seen_inside["full"]
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().mean() < 0.1 * full.std()


def test_the_retired_node_finds_its_successor(seen_inside, client):
    replacement = seen_inside["replacement"]
    info = client.object_info(replacement["new_node_id"])
    assert {mapping["new_id"] for mapping in replacement["input_mapping"]} == set(info["input"]["required"])
    old_inputs = {"image", "model", "clip", "vae", *replacement["old_widget_ids"]}
    assert {mapping["old_id"] for mapping in replacement["input_mapping"]} <= old_inputs
    assert info["output"] == ["IMAGE", "LATENT"]
    assert set(info["input"]["required"]["task"][1]["options"]) == {
        "depth map",
        "surface normals",
        "albedo",
        "shading",
    }
    try:
        offered = client.get("api/node_replacements")
    except OSError:  # v0.3.64 has none
        return
    assert offered["Intrinsic_lora_sampling"][0]["new_node_id"] == replacement["new_node_id"]


def test_nothing_foreign_is_imported(seen_inside):
    assert seen_inside["modules"] == []


def test_beside_an_installed_copy(run_in_comfy, server, root, tmp_path):
    """The pip package, on the path under its own name, and the clone keep apart."""
    (tmp_path / "intrinsic_lora").symlink_to(root)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import intrinsic_lora, intrinsic_lora.intrinsics.codec
{INSIDE}
inside, installed = part("intrinsics.codec"), intrinsic_lora.intrinsics.codec
assert inside is not installed and inside.__file__ != installed.__file__, (inside, installed)
assert type(extension).__module__.startswith(NAME)
assert all(sys.modules[key].__file__.startswith(str(PACK)) for key in sys.modules if key.startswith(NAME + "."))
"""
    run_in_comfy(code, server.base, server.pack, tmp_path)
