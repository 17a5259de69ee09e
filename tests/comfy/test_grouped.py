"""Four LoRAs in one forward of ComfyUI's UNet: equal to one forward per LoRA, and the model left as it was."""

from pathlib import Path

import pytest
import torch
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from intrinsic_lora.tests.support.closeness import assert_rounded

INSIDE = (Path(__file__).parent / "inside.py").read_text()
PROMPTS = {name: INTRINSICS[name].prompt for name in INTRINSICS}
PREPARE = f"""
import comfy.model_management
from comfy.patcher_extension import WrappersMP

runtime, loras = part("comfy_nodes.runtime"), part("comfy_nodes.loras")
PROMPTS = {PROMPTS!r}
model, clip, vae = base_model()
files = loras.choose(loras.lora_files(), tuple(PROMPTS), "intrinsic_lora_*.safetensors")
adapters = [runtime.read_for(file, name, model) for name, file in files.items()]
positives = [runtime.conditioning(clip, prompt) for prompt in PROMPTS.values()]
latent = torch.randn(3, 4, 8, 9, generator=torch.Generator().manual_seed(1))


def state():
    return {{key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}}


def unchanged(before):
    after = model.model.diffusion_model.state_dict()
    return list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)


def draw(patched):
    with torch.inference_mode():
        return runtime.predict_each(patched, positives)(latent)
"""
EQUAL = """
with torch.inference_mode():
    base = runtime.predict(runtime._one_step(model, 999), positives[0])(latent)
    alone = [runtime.predict(runtime.with_lora(model, x), p)(latent) for x, p in zip(adapters, positives)]
result = {"base": base, "alone": torch.stack(alone, 1)}
comfy.model_management.unload_all_models()
before = state()
patched = runtime.with_loras(model, adapters)
result["grouped"] = draw(patched)
result["unchanged"] = unchanged(before)  # while the clone is loaded and still referred to

# Half of the model offloaded: the layers that stay behind cast their weights at every call.
comfy.model_management.unload_all_models()
half = model.model_size() / 2
patched.patch_model(device_to=patched.load_device, lowvram_model_memory=half)
offloaded = [name for name, m in model.model.named_modules() if hasattr(m, "prev_comfy_cast_weights")]
result["offloaded"] = sum(name.endswith(".to_q") for name in offloaded)
context = torch.cat([p[0][0].expand(3, -1, -1) for p in positives])
rows = latent.repeat(4, 1, 1, 1)
sigma = patched.get_model_object("model_sampling").sigma_max
options = {"wrappers": patched.wrappers}
with torch.inference_mode():
    y = model.model.apply_model(
        model.model.process_latent_in(rows), sigma.expand(12), c_crossattn=context, transformer_options=options
    )
result["lowvram"] = model.model.process_latent_out(y).unflatten(0, (4, 3)).transpose(0, 1)
patched.unpatch_model(patched.offload_device)
result["unchanged after lowvram"] = unchanged(before)
torch.save(result, OUT / "result.pt")
"""
FAIL = """
class Broken(Exception):
    pass


def fail(error):
    def hook(module, args):
        raise error
    return model.model.diffusion_model.out[2].register_forward_pre_hook(hook)


before = state()
kept = []  # as ComfyUI keeps the error of a prompt, with all frames that were running
for error in (Broken(), comfy.model_management.InterruptProcessingException()):
    patched = runtime.with_loras(model, adapters)
    handle = fail(error)
    try:
        draw(patched)
    except (Broken, comfy.model_management.InterruptProcessingException) as raised:
        kept.append(raised)
    handle.remove()
    assert unchanged(before), type(error)
assert len(kept) == 2
assert torch.equal(draw(patched), draw(runtime.with_loras(model, adapters)))
print("as before")
"""


@pytest.fixture(scope="module")
def drawn(run_in_comfy, server, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("grouped")
    print(run_in_comfy(INSIDE + PREPARE + EQUAL, server.base, server.pack, folder))
    return torch.load(folder / "result.pt", weights_only=True)


def test_one_forward_draws_what_one_forward_per_lora_draws(drawn):
    """x W + x A B in place of x (W + A B): the same numbers in another order of float32 sums."""
    assert drawn["grouped"].shape == (3, 4, 4, 8, 9)
    effect = (drawn["alone"] - drawn["base"][:, None]).abs().amax((0, 2, 3, 4))  # of each LoRA
    assert effect.min() > 100 * drawn["alone"].abs().max() * 2000 * 2**-24  # far more than the bound
    assert_rounded(drawn["grouped"], drawn["alone"])


def test_offloaded_weights_draw_the_same(drawn):
    assert drawn["offloaded"] > 0  # of the layers that have a LoRA
    assert_rounded(drawn["lowvram"], drawn["alone"])


def test_the_model_is_as_it_was(drawn):
    assert drawn["unchanged"] and drawn["unchanged after lowvram"]


def test_the_model_is_as_it_was_after_an_error_or_an_interrupt(run_in_comfy, server, tmp_path):
    assert "as before" in run_in_comfy(INSIDE + PREPARE + FAIL, server.base, server.pack, tmp_path)
