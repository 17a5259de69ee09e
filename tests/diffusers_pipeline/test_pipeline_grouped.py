"""Grouped LoRAs against weights folded by hand, against PEFT, and under torch.compile."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from intrinsic_lora.intrinsics.lora.grouped import grouped_lora, stack_loras
from intrinsic_lora.tests.support import tiny
from torch._dynamo.utils import counters


def case(linear_projection: bool = False, images: int = 2) -> tuple:
    """Build a UNet, three LoRAs of different ranks, alphas and layers, and inputs for `images` images."""
    unet = tiny.components(linear_projection=linear_projection)["unet"]
    loras = [
        tiny.random_lora(unet, rank=4, seed=1),
        tiny.random_lora(unet, rank=2, alpha=5.0, targets=tiny.MORE, seed=2),
        tiny.random_lora(unet, rank=7, alpha=3.0, targets=("to_q", "ff.net.2"), seed=3),
    ]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(images, 4, 8, 12, generator=generator)
    text = torch.randn(len(loras), 24, 32, generator=generator)
    return unet, loras, latents, text, torch.tensor([999, 40, 500])


def run(unet, loras, latents, text, timesteps) -> torch.Tensor:
    """(T, b, C, h, w) by one grouped forward."""
    tasks, images = len(loras), len(latents)
    rows = (latents.repeat(tasks, 1, 1, 1), timesteps.repeat_interleave(images), text.repeat_interleave(images, 0))
    with torch.no_grad(), grouped_lora(unet, stack_loras(loras, "cpu", torch.float32)):
        return unet(*rows).sample.unflatten(0, (tasks, images))


def folded(unet, lora, latents, text, timestep) -> torch.Tensor:
    unet = copy.deepcopy(unet)
    tiny.fold(unet, lora)
    with torch.no_grad():
        return unet(latents, timestep, text.expand(len(latents), -1, -1)).sample


@pytest.mark.parametrize("linear_projection", [False, True])  # SD 1.x has 1x1 convolutions where SD 2.x has linears
@pytest.mark.parametrize("subset", [(0,), (1,), (2, 0), (0, 1, 2)])
def test_equals_hand_folded_weights(linear_projection, subset):
    unet, loras, latents, text, timesteps = case(linear_projection)
    chosen = torch.tensor(subset)
    got = run(unet, [loras[i] for i in subset], latents, text[chosen], timesteps[chosen])
    for row, i in enumerate(subset):
        wanted = folded(unet, loras[i], latents, text[i : i + 1], timesteps[i])
        torch.testing.assert_close(got[row], wanted, atol=1e-4, rtol=0)
        with torch.no_grad():
            assert (unet(latents, timesteps[i], text[[i, i]]).sample - wanted).abs().max() > 0.05  # the LoRA matters


def test_equals_peft_one_by_one():
    from peft import LoraConfig, inject_adapter_in_model

    unet, loras, latents, text, timesteps = case()
    got = run(unet, loras, latents, text, timesteps)
    for i, lora in enumerate(loras):
        rank = len(next(iter(lora.values()))[0])
        config = LoraConfig(r=rank, lora_alpha=next(iter(lora.values()))[2], target_modules=list(lora))
        wrapped = inject_adapter_in_model(config, copy.deepcopy(unet)).eval()
        with torch.no_grad():
            for name, (a, b, _) in lora.items():
                layer = wrapped.get_submodule(name)
                layer.lora_A["default"].weight.copy_(a.reshape(layer.lora_A["default"].weight.shape))
                layer.lora_B["default"].weight.copy_(b.reshape(layer.lora_B["default"].weight.shape))
            wanted = wrapped(latents, timesteps[i], text[[i, i]]).sample
        torch.testing.assert_close(got[i], wanted, atol=1e-4, rtol=0)


def test_adds_to_a_peft_lora_of_the_user():
    """A user's own LoRA (a style, a domain) loaded the usual way stays in force under ours."""
    from peft import LoraConfig

    unet, loras, latents, text, timesteps = case()
    both = copy.deepcopy(unet)
    both.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "proj_in"], init_lora_weights=False))
    got = run(both, loras, latents, text, timesteps)
    both.fuse_lora()
    both.unload_lora()
    for i, lora in enumerate(loras):
        wanted = folded(both, lora, latents, text[i : i + 1], timesteps[i])
        torch.testing.assert_close(got[i], wanted, atol=1e-4, rtol=0)


def test_convolutions_of_any_kernel_and_stride():
    """Not the attention layers only: a LoRA may sit on resnets and downsamplers too."""
    unet = tiny.components()["unet"]
    loras = []
    for seed, rank in enumerate((2, 3)):
        generator = torch.Generator().manual_seed(seed)
        loras.append({})
        for name in ("down_blocks.0.downsamplers.0.conv", "mid_block.resnets.0.conv1", "conv_out"):
            out_channels, in_channels, height, width = unet.get_submodule(name).weight.shape
            a = torch.randn(rank, in_channels, height, width, generator=generator) * 0.1
            b = torch.randn(out_channels, rank, 1, 1, generator=generator) * 0.1
            loras[-1][name] = (a, b, 4.0)
    latents, text = torch.randn(3, 4, 8, 8), torch.randn(2, 24, 32)
    got = run(unet, loras, latents, text, torch.tensor([10, 999]))
    for i, (lora, timestep) in enumerate(zip(loras, (10, 999), strict=True)):
        reference = copy.deepcopy(unet)
        with torch.no_grad():
            for name, (a, b, alpha) in lora.items():
                change = torch.einsum("or,rikl->oikl", b[..., 0, 0], a) * (alpha / len(a))
                reference.get_submodule(name).weight += change
            wanted = reference(latents, timestep, text[[i] * 3]).sample
        torch.testing.assert_close(got[i], wanted, atol=1e-4, rtol=0)


def modules(unet) -> dict:
    return {name: id(module) for name, module in unet.named_modules()}


def test_everything_is_back_afterwards_also_after_an_error():
    unet, loras, latents, text, timesteps = case()
    layers, processors, state = modules(unet), dict(unet.attn_processors), copy.deepcopy(unet.state_dict())
    run(unet, loras, latents, text, timesteps)
    with pytest.raises(RuntimeError):
        run(unet, loras, latents[:, :3], text, timesteps)  # a channel short: raises inside the forward
    stacks = stack_loras(loras, "cpu", torch.float32)
    stacks["mid_block.nothing"] = next(iter(stacks.values()))
    with pytest.raises(AttributeError), grouped_lora(unet, stacks):
        pass
    assert modules(unet) == layers
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())


def test_fused_projections_are_refused():
    unet, loras, *inputs = case()
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        run(unet, loras, *inputs)


def test_compiles_to_one_graph_and_never_again():
    unet, loras, latents, text, timesteps = case()
    with torch.no_grad():
        plain = unet(latents, 7, text[:2]).sample
    wanted = run(unet, loras, latents, text, timesteps)
    torch._dynamo.reset()
    counters.clear()
    compiled: UNet2DConditionModel = torch.compile(unet, fullgraph=True, backend="eager")  # type: ignore[assignment]
    for _ in range(3):
        got = run(compiled, loras, latents, text, timesteps)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
        with torch.no_grad():  # and between the calls it is the base model again, compiled or not
            torch.testing.assert_close(compiled(latents, 7, text[:2]).sample, plain, atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
