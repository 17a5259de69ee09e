"""VQGAN through diffusers' VQModel: codes, rendering, LoRAs in the decoder's attention alone."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from intrinsic_lora.diffusers_pipeline.base import EMBEDDED
from intrinsic_lora.intrinsics import get_intrinsic
from intrinsic_lora.tests.support.closeness import assert_rounded
from intrinsic_lora.train.backbones import load_backbone
from intrinsic_lora.train.backbones.vqgan import VQGANBackbone
from intrinsic_lora.train.data.conditions import check_base, read_condition
from intrinsic_lora.train.data.make_set import make_set
from intrinsic_lora.train.recipes.embedded.data import labelled
from intrinsic_lora.train.recipes.generators import vqgan as recipe
from intrinsic_lora.train.recipes.generators.study import make_random, restamp
from intrinsic_lora.train.recipes.generators.vqgan import Codebook
from torch import nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def tiny() -> VQModel:
    """16 px -> 4 x 4 codes out of 32; attention in the middle and at the lowest resolution, as in taming's f16."""
    torch.manual_seed(0)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=32,
        norm_num_groups=4,
        sample_size=16,
    )
    nn.init.normal_(model.quantize.embedding.weight, std=0.5)  # its own initial codes are all but one point
    return model.eval()


@pytest.fixture
def backbone() -> VQGANBackbone:
    return VQGANBackbone(tiny(), [get_intrinsic("normals")], "tiny")


def pictures(count: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_codes_are_the_nearest_vectors_of_the_codebook(backbone):
    codes = backbone.encode_picture(pictures())
    assert codes.shape == (3, 4, 4) and codes.dtype == torch.int64
    with torch.no_grad():
        z = backbone.model.encode(pictures() * 2 - 1).latents.permute(0, 2, 3, 1).double()  # (B, h, w, D)
    book = backbone.model.quantize.embedding.weight.double()  # (K, D)
    nearest = (z[..., None, :] - book).square().sum(-1).argmin(-1)
    assert torch.equal(codes, nearest)
    assert len(codes.unique()) > 1


def test_codes_survive_a_round_trip_through_their_own_vectors(backbone):
    """Codes -> vectors -> the quantiser -> the same codes."""
    codes = backbone.sample([3, 4])
    vectors = backbone.model.quantize.embedding(codes).permute(0, 3, 1, 2)
    assert torch.equal(backbone.model.quantize(vectors)[2][2].view_as(codes), codes)


@pytest.mark.bfloat16
def test_render_is_the_models_own_decoding_bit_for_bit_with_and_without_an_idle_lora(backbone):
    model = copy.deepcopy(backbone.model)
    x = pictures()
    codes = backbone.encode_picture(x)
    with torch.no_grad():
        vectors = model.quantize.get_codebook_entry(codes.flatten(), (3, 4, 4, 4))
        picture = model.decode(vectors, force_not_quantize=True).sample * 0.5 + 0.5
        assert torch.equal(backbone.render(codes), picture)
        # The model's whole forward quantises by itself; its straight-through sum rounds.
        assert_rounded(model(x * 2 - 1).sample * 0.5 + 0.5, picture)
        backbone.add_lora("normals", 2, 2, backbone.targets, seed=0)
        for p in backbone.lora_parameters("normals"):
            nn.init.normal_(p)
        assert not torch.allclose(backbone.render(codes), picture, atol=1e-2)
        backbone.activate(None)
        assert torch.equal(backbone.render(codes), picture)
        assert torch.equal(backbone.encode_picture(x), codes)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(backbone.render(codes), picture)


def test_lora_is_the_folded_decoder_and_leaves_the_encoder_alone(backbone):
    folded = copy.deepcopy(backbone.model)
    codes = backbone.encode_picture(pictures())
    backbone.add_lora("normals", 2, 4, backbone.targets, seed=0)
    for p in backbone.lora_parameters("normals"):
        nn.init.normal_(p, std=0.3)
    weights = backbone.lora_weights("normals")
    # One attention in the middle and one after each of the two lowest blocks of the decoder.
    assert len(weights) == 3 * 4
    assert all(key.startswith("decoder.") and key.endswith(ATTENTION) for key in weights)
    with torch.no_grad():
        for key, (a, b, alpha) in weights.items():
            folded.get_submodule(key).weight += alpha / len(a) * b @ a
        expected = folded.decode(folded.quantize.embedding(codes).permute(0, 3, 1, 2), force_not_quantize=True).sample
        assert_rounded(backbone.render(codes), expected * 0.5 + 0.5)
    assert torch.equal(backbone.encode_picture(pictures()), codes)  # with the LoRA on


def test_gradients_reach_the_lora_and_nothing_else(backbone):
    backbone.add_lora("normals", 2, 2, backbone.targets, seed=0)
    for p in backbone.lora_parameters("normals"):
        nn.init.normal_(p, std=0.1)
    backbone.render(backbone.sample([0])).square().mean().backward()
    mine = {id(p) for p in backbone.lora_parameters("normals")}
    for name, p in backbone.model.named_parameters():
        assert (p.grad is not None) == (id(p) in mine), name
        assert id(p) not in mine or p.grad.abs().sum() > 0, name


def test_learns_to_draw_a_constant_map(backbone):
    codes = backbone.encode_picture(pictures(4))
    wanted = torch.tensor([0.6, 0.4, 0.45]).view(1, 3, 1, 1).expand(4, -1, 16, 16)
    backbone.add_lora("normals", 4, 4, backbone.targets, seed=0)
    optimizer = torch.optim.AdamW(backbone.lora_parameters("normals"), lr=1e-1)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(backbone.render(codes), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def parameters_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_shares_of_the_published_f16_1024_are_the_tables():
    """LoRA parameters over all parameters of the VQGAN: encoder, codebook and decoder."""
    with torch.device("meta"):
        model = VQModel(
            down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 128, 256, 256, 512),
            layers_per_block=2,
            latent_channels=256,
            num_vq_embeddings=1024,
            sample_size=256,
        )
    whole = parameters_of(model)
    everywhere = VQGANBackbone(copy.deepcopy(model), [], "f16-1024")
    everywhere.add_lora("all", 8, 8, ATTENTION, seed=0)
    decoder = VQGANBackbone(model, [], "f16-1024")
    decoder.add_lora("decoder", 8, 8, decoder.targets, seed=0)
    shares = [
        sum(p.numel() for p in b.lora_parameters(n)) / whole for b, n in ((decoder, "decoder"), (everywhere, "all"))
    ]
    assert [f"{100 * share:.3f}" for share in shares] == ["0.182", "0.318"]


def test_sampled_codes_depend_on_their_own_seed_alone(backbone):
    both = backbone.sample([5, 6])
    assert both.shape == (2, 4, 4) and torch.equal(both[1:], backbone.sample([6]))
    assert not torch.equal(both[0], both[1])
    assert both.min() >= 0 and both.max() < 32


def test_sizes_that_do_not_fit_get_a_sentence(backbone):
    with pytest.raises(ValueError, match="multiples of 4, not 18 x 16"):
        backbone.encode_picture(torch.rand(1, 3, 16, 18))
    with pytest.raises(ValueError, match=r"data\.resolution=18"):
        backbone.dummy_conditions(1, 18)
    assert backbone.render(backbone.dummy_conditions(2, 24)).shape == (2, 3, 24, 24)


def test_a_saved_folder_loads_and_a_damaged_one_gets_a_sentence(backbone, tmp_path):
    folder = tmp_path / "faces"
    copy.deepcopy(backbone.model).half().save_pretrained(folder)
    loaded = load_backbone(folder, [get_intrinsic("depth")])
    assert isinstance(loaded, VQGANBackbone) and loaded.name == "faces"
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    again = load_backbone(folder, [])
    assert loaded.fingerprint == again.fingerprint != backbone.fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    with pytest.raises(ValueError, match="do not belong together"):
        load_backbone(folder, [])
    (folder / "config.json").write_text(json.dumps({**config, "block_out_channels": [8, 16, 16]}))
    with pytest.raises(ValueError, match="do not belong together"):
        load_backbone(folder, [])
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_backbone(folder, [])


def test_codebook_follows_its_vectors_and_idle_codes_are_moved():
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0]])
    book = Codebook(weight)
    z = torch.cat([torch.full((6, 2), -0.4), torch.full((2, 2), 2.0)])
    codes = book.nearest(z)
    assert codes.tolist() == [0] * 6 + [1] * 2
    for _ in range(1500):
        book.update(z, codes)
    torch.testing.assert_close(weight[:2], torch.tensor([[-0.4, -0.4], [2.0, 2.0]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(book.count, torch.tensor([6.0, 2.0, 0.0]), rtol=0, atol=1e-3)
    assert book.scatter(z, generator, below=0.5) == 1
    assert weight[2].tolist() in z.tolist() and weight[0].allclose(torch.tensor(-0.4), atol=1e-3)


def test_recipe_goes_on_from_its_checkpoint_and_writes_a_base(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "labelled", lambda split, count: labelled(split, 2))
    rgb = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "rgb.npy", rgb)
    settings = {"pictures": tmp_path / "rgb.npy", "batch": 2, "every": 10, "peak": 1e-3, "seed": 0}
    recipe.main(tmp_path, steps=1, **settings)
    first = load_backbone(tmp_path / "model", [])
    recipe.main(tmp_path, steps=2, **settings)
    assert "step 2 psnr" in capsys.readouterr().out
    state = torch.load(tmp_path / "vqgan.ckpt", weights_only=True)
    assert state["step"] == 2 and int(state["average"]["n_averaged"]) == 2
    second = load_backbone(tmp_path / "model", [])
    assert first.fingerprint != second.fingerprint
    assert second.encode_picture(torch.rand(1, 3, 64, 64)).shape == (1, 16, 16)


def test_random_control_sees_the_same_codes_and_draws_otherwise(tmp_path):
    tiny().save_pretrained(tmp_path / "trained")
    make_random(tmp_path / "trained", tmp_path / "random")
    trained, random = (load_backbone(tmp_path / name, []) for name in ("trained", "random"))
    codes = trained.encode_picture(pictures())
    assert torch.equal(random.encode_picture(pictures()), codes)
    assert trained.fingerprint != random.fingerprint
    with torch.no_grad():
        assert (trained.render(codes) - random.render(codes)).abs().mean() > 0.05


def test_conditions_of_the_control_are_the_same_under_its_own_hash(tmp_path):
    tiny().save_pretrained(tmp_path / "trained")
    make_random(tmp_path / "trained", tmp_path / "random")
    trained, random = (load_backbone(tmp_path / name, []) for name in ("trained", "random"))
    make_set(trained, tmp_path / "data" / "train", count=2)
    theirs = restamp(tmp_path / "data", tmp_path / "theirs", tmp_path / "random")
    files = sorted(theirs.glob("train/conditions/*"))
    assert len(files) == 2
    for file, codes in zip(files, trained.sample([0, 1]), strict=True):
        condition = read_condition(file)
        check_base(condition, random)
        assert torch.equal(condition.value, codes)
        with pytest.raises(ValueError, match="make a set with this one"):
            check_base(condition, trained)


def test_recipe_begins_as_the_embedded_vae():
    """They agree without quantisation and before training of the added attention."""
    vae = AutoencoderKL.from_pretrained(EMBEDDED / "vae").float().eval()
    model, x = recipe.from_vae(vae).eval(), pictures(2, 32) * 2 - 1
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode()
        torch.testing.assert_close(model.encode(x).latents, z, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            model.decode(z, force_not_quantize=True).sample, vae.decode(z).sample, rtol=1e-4, atol=1e-4
        )
    added = {key for key, _ in model.decoder.named_modules() if key.endswith(".to_q")}
    assert len(added) == 1 + 2
