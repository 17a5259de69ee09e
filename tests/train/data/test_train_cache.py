"""The latent cache against encoding directly with diffusers' own VAE."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from intrinsic_lora.intrinsics import INTRINSICS, Intrinsic, encode, mirror_normals, write_npz, write_png
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.tests.support.closeness import assert_rounded
from intrinsic_lora.train.data import cache as cache_module
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.data.cache import LatentCache, cache_bytes, cache_latents
from intrinsic_lora.train.recipes.embedded.data import labelled

SIZE = 64
NAMES = ("normals", "albedo")
BOTH = [INTRINSICS[name] for name in NAMES]


class Backbone:
    """The backbone interface that the cache uses, on a real tiny VAE; counts the encoded pictures."""

    downsample = 4

    def __init__(self, vae: AutoencoderKL, fingerprint: str = "tiny") -> None:
        self.vae, self.fingerprint, self.encoded = vae, fingerprint, 0

    def _posterior(self, pictures: torch.Tensor):
        self.encoded += len(pictures)
        return self.vae.encode(pictures * 2 - 1).latent_dist

    def dummy_conditions(self, count: int, resolution: int) -> torch.Tensor:
        return torch.zeros(count, 4, resolution // 4, resolution // 4)

    def encode_picture(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._posterior(pictures).mode() * self.vae.config.scaling_factor

    def encode_target(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self._posterior(pictures)
        return posterior.mean * self.vae.config.scaling_factor, posterior.std * self.vae.config.scaling_factor


def cached(source, backbone, *settings, **options) -> LatentCache:
    """Open the cache with the latents of the labels."""
    return cache_latents(source, backbone, backbone.encode_target, *settings, **options)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return tiny.components()["vae"]


@pytest.fixture
def backbone(vae) -> Backbone:
    return Backbone(vae)


def write_scenes(root: Path, count: int, size: int = SIZE) -> dict[str, torch.Tensor]:
    """Scenes of the embedded model's training split as files; returns their maps, (N, C, H, W)."""
    truth = labelled("train", count, size)
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write_png(root / f"{i:04d}_rgb.png", truth["rgb"][i])
        maps = {name: truth[name][i].permute(1, 2, 0) for name in INTRINSICS}
        write_npz(root / f"{i:04d}.npz", **{n: x[..., 0] if n == "depth" else x for n, x in maps.items()})
    return truth


def rewrite(path: Path, **arrays: np.ndarray) -> None:
    with np.load(path) as file:
        kept = {key: file[key] for key in file.files}
    np.savez(path, **(kept | arrays))


@pytest.fixture
def truth(tmp_path) -> dict[str, torch.Tensor]:
    return write_scenes(tmp_path / "data", 4)


def opened(tmp_path: Path, intrinsics=BOTH):
    return open_source("folder", tmp_path / "data", intrinsics)


@torch.no_grad()
def test_sample_from_the_cache_is_the_vaes_sample(tmp_path, truth, backbone):
    """The paper's target is `vae.encode(label).latent_dist.sample() * scaling_factor`, with the same noise."""
    cache = cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)
    assert len(cache) == 4 and cache.variants == 1
    batch = cache.batch(range(4))
    factor = backbone.vae.config.scaling_factor
    direct = backbone.vae.encode(truth["rgb"] * 2 - 1).latent_dist.mode() * factor
    assert_rounded(batch["image"], direct)
    for name in NAMES:
        posterior = backbone.vae.encode(encode(truth[name], name) * 2 - 1).latent_dist
        direct = posterior.sample(torch.Generator().manual_seed(7)) * factor
        noise = torch.randn(direct.shape, generator=torch.Generator().manual_seed(7))
        mean, std = batch[f"{name}_mean"], batch[f"{name}_std"]
        assert mean.dtype == std.dtype == torch.float32 and (std > 0).all()
        assert_rounded(mean + std * noise, direct)
    assert set(batch) == {"image", "normals_mean", "normals_std", "albedo_mean", "albedo_std"}


@torch.no_grad()
def test_a_pictures_latents_are_those_of_the_vae_to_the_last_bit(tmp_path, truth, backbone):
    cache = cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)
    for i in range(4):
        row = cache.batch([i])
        label = encode(truth["albedo"][i : i + 1], "albedo")
        assert torch.equal(row["image"], backbone.encode_picture(truth["rgb"][i : i + 1]))
        mean, std = backbone.encode_target(label)
        assert torch.equal(row["albedo_mean"], mean) and torch.equal(row["albedo_std"], std)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("permute", [False, True])
@torch.no_grad()
def test_every_variant(tmp_path, truth, backbone, flip, permute):
    """The variants come in the documented order; the test makes them from tensors, not from files."""
    from itertools import permutations

    intrinsics = [*BOTH, INTRINSICS["depth"], INTRINSICS["shading"]]
    source = open_source("folder", tmp_path / "data", intrinsics, limit=2)
    cache = cached(source, backbone, tmp_path / "cache", SIZE, intrinsics, flip, permute, keep_maps=True)
    orders = list(permutations(range(3))) if permute else [(0, 1, 2)]
    assert cache.variants == len(orders) * (2 if flip else 1) and len(cache) == 2 * cache.variants
    index = 0
    for i in (0, 2):  # which an even spread picks
        for mirrored in (False, True) if flip else (False,):
            for order in orders:
                picture, maps = truth["rgb"][i : i + 1, list(order)], {}
                for name in ("normals", "albedo", "depth", "shading"):
                    values = truth[name][i : i + 1]
                    values = values[:, list(order)] if name == "albedo" else values
                    maps[name] = (
                        values if not mirrored else mirror_normals(values) if name == "normals" else values.flip(-1)
                    )
                row = cache.batch([index])
                photo = backbone.encode_picture(picture.flip(-1) if mirrored else picture)
                assert_rounded(row["image"], photo)
                for name, values in maps.items():
                    mean, std = backbone.encode_target(encode(values, name))
                    assert_rounded(row[f"{name}_mean"], mean)
                    assert_rounded(row[f"{name}_std"], std)
                    torch.testing.assert_close(row[name], values, rtol=1e-3, atol=1e-3)
                index += 1
    assert index == len(cache)


def test_a_larger_photo_is_prepared(tmp_path, backbone):
    write_scenes(tmp_path / "data", 1, 80)
    cache = cached(opened(tmp_path), backbone, tmp_path / "cache", 32, BOTH)
    assert cache.batch([0])["image"].shape == (1, 4, 8, 8)


def latents(cache) -> torch.Tensor:
    batch = cache.batch(range(len(cache)))
    return torch.cat([batch[name].flatten(1) for name in sorted(batch)], dim=1)


def test_an_interrupted_cache_goes_on_and_is_the_same(tmp_path, truth, vae, monkeypatch):
    whole = cached(opened(tmp_path), Backbone(vae), tmp_path / "whole", SIZE, BOTH)
    monkeypatch.setattr(cache_module, "SHARD_SECONDS", 0)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise Stop

    seen: list[tuple[int, int]] = []
    first, second = Backbone(vae), Backbone(vae)
    with pytest.raises(Stop):
        cached(opened(tmp_path), first, tmp_path / "cache", SIZE, BOTH, progress=stop)
    assert seen == [(0, 4), (1, 4), (2, 4)] and first.encoded == 2 * 3
    seen.clear()
    cache = cached(opened(tmp_path), second, tmp_path / "cache", SIZE, BOTH, progress=lambda *step: seen.append(step))
    assert seen == [(2, 4), (3, 4), (4, 4)] and second.encoded == 2 * 3
    assert torch.equal(latents(cache), latents(whole)) and cache.fingerprint == whole.fingerprint
    third = Backbone(vae)
    assert torch.equal(latents(cached(opened(tmp_path), third, tmp_path / "cache", SIZE, BOTH)), latents(whole))
    assert third.encoded == 0


class Pool:
    """A backbone without a network, for a child process that starts quickly."""

    downsample, fingerprint, encoded = 4, "pool", 0

    def dummy_conditions(self, count, resolution):
        return torch.zeros(count, 3, resolution // 4, resolution // 4)

    def encode_picture(self, pictures):
        self.encoded += len(pictures)
        return torch.nn.functional.avg_pool2d(pictures, 4)

    def encode_target(self, pictures):
        mean = self.encode_picture(pictures)
        return mean, torch.ones_like(mean)


KILLED = """
import os, signal, sys, torch
from intrinsic_lora.intrinsics import INTRINSICS
from intrinsic_lora.train.data import cache
from intrinsic_lora.train.data import open_source

def half(tensors, path, count=[0]):
    save(tensors, path)
    count[0] += 1
    if count[0] == 3:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

save, cache.save_file, cache.SHARD_SECONDS = cache.save_file, half, 0
names = [INTRINSICS["normals"], INTRINSICS["albedo"]]
"""
RUN = """
pool = Pool()
source = open_source('folder', sys.argv[1], names)
cache.cache_latents(source, pool, pool.encode_target, sys.argv[2], 64, names)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_sigkill_in_the_middle_of_a_file(tmp_path, truth):
    script = KILLED + inspect.getsource(Pool) + RUN
    arguments = [sys.executable, "-c", script, str(tmp_path / "data"), str(tmp_path / "cache")]
    child = subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert child.returncode == -signal.SIGKILL
    assert any(path.name.startswith(".") for path in (tmp_path / "cache").rglob("*"))  # the half it was writing
    backbone = Pool()
    cache = cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)
    assert backbone.encoded == 2 * 3  # two of four samples were safe
    whole = cached(opened(tmp_path), Pool(), tmp_path / "whole", SIZE, BOTH)
    assert len(cache) == 4 and torch.equal(latents(cache), latents(whole))


def test_a_changed_label_is_encoded_again_alone(tmp_path, truth, vae):
    before = cached(opened(tmp_path), Backbone(vae), tmp_path / "cache", SIZE, BOTH)
    old = latents(before)
    rewrite(tmp_path / "data" / "0002.npz", albedo=np.full((SIZE, SIZE, 3), 0.5, np.float32))
    backbone = Backbone(vae)
    after = cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)
    assert backbone.encoded == 3 and before.fingerprint != after.fingerprint
    changed = (latents(after) != old).any(1)
    assert changed.tolist() == [False, False, True, False]
    grey = encode(torch.full((1, 3, SIZE, SIZE), 0.5), "albedo")
    assert torch.equal(after.batch([2])["albedo_mean"], backbone.encode_target(grey)[0])


def test_a_new_sample_or_a_smaller_set_keeps_the_rest(tmp_path, truth, vae):
    all_four = cached(opened(tmp_path), Backbone(vae), tmp_path / "cache", SIZE, BOTH)
    backbone = Backbone(vae)
    half = open_source("folder", tmp_path / "data", BOTH, limit=2)
    assert torch.equal(latents(cached(half, backbone, tmp_path / "cache", SIZE, BOTH)), latents(all_four)[::2])
    assert backbone.encoded == 0
    write_scenes(tmp_path / "more", 5)
    for path in (tmp_path / "more").glob("0004*"):
        path.rename(tmp_path / "data" / path.name)
    assert len(cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)) == 5
    assert backbone.encoded == 3


def test_other_settings_do_not_see_each_other(tmp_path, truth, vae):
    only = BOTH[:1]
    linear = Intrinsic("albedo", "albedo", 3, "linear")
    caches = [
        cached(opened(tmp_path, used), Backbone(vae, base), tmp_path / "cache", size, used, *options)
        for base, size, used, options in [
            ("tiny", SIZE, only, ()),
            ("tiny", 32, only, ()),
            ("other", SIZE, only, ()),
            ("tiny", SIZE, only, (True,)),
            ("tiny", SIZE, only, (False, True)),
            ("tiny", SIZE, BOTH, ()),
            ("tiny", SIZE, [*only, linear], ()),
        ]
    ]
    assert len({cache.fingerprint for cache in caches}) == len(caches)
    assert len(list((tmp_path / "cache").iterdir())) == len(caches)


@pytest.mark.parametrize("damage", ["truncated", "empty", "rubbish"])
def test_a_damaged_shard_is_made_again(tmp_path, truth, vae, damage, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_SECONDS", 0)
    good = latents(cached(opened(tmp_path), Backbone(vae), tmp_path / "cache", SIZE, BOTH))
    shard = sorted((tmp_path / "cache").rglob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.unlink()  # the old cache still maps it
    shard.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "rubbish": b"\xff" * 99}[damage])
    backbone = Backbone(vae)
    assert torch.equal(latents(cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)), good)
    assert backbone.encoded == 3


def test_unreadable_samples_are_left_out(tmp_path, truth, backbone):
    (tmp_path / "data" / "0001_rgb.png").write_bytes(b"damaged")
    source = opened(tmp_path)
    cache = cached(source, backbone, tmp_path / "cache", SIZE, BOTH, flip=True)
    assert cache.names == ["0000_rgb", "0002_rgb", "0003_rgb"] and len(cache) == 6
    assert len(source.problems) == 1 and source.problems[0].startswith("0001_rgb: ")
    assert_rounded(cache.batch([2])["image"], backbone.encode_picture(truth["rgb"][2:3]))
    for path in (tmp_path / "data").glob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="None of the 4 samples can be read"):
        cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)


def test_a_square_in_which_nothing_counts_is_left_out(tmp_path, truth, backbone):
    for i in range(4):
        write_png(tmp_path / "data" / f"{i:04d}_rgb.png", torch.cat([truth["rgb"][i]] * 3, dim=2))  # 64 x 192
        arrays = {n: np.concatenate([truth[n][i].permute(1, 2, 0).numpy()] * 3, 1) for n in NAMES}
        mask = np.ones((SIZE, 3 * SIZE))
        mask[:, SIZE : 2 * SIZE] = i > 0
        np.savez(tmp_path / "data" / f"{i:04d}.npz", mask=mask, **arrays)
    source = opened(tmp_path)
    assert len(source) == 4 and len(cached(source, backbone, tmp_path / "cache", SIZE, BOTH)) == 3
    assert source.problems == ["0000_rgb: it has no valid pixels: its masks exclude all of them."]


def test_masks_come_along(tmp_path, truth, backbone):
    mask = np.tri(SIZE, dtype=np.float32)
    rewrite(tmp_path / "data" / "0001.npz", mask=mask)
    cache = cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH, flip=True)
    assert "mask" not in cache.batch([0, 1, 4])
    batch = cache.batch([0, 2, 3])
    assert batch["mask"].shape == (3, 1, SIZE, SIZE) and batch["mask"].dtype == torch.float32
    np.testing.assert_array_equal(batch["mask"][:, 0].numpy(), np.stack([np.ones_like(mask), mask, mask[:, ::-1]]))


def test_grey_and_coloured_shading_share_a_batch(tmp_path, truth, backbone):
    rewrite(tmp_path / "data" / "0001.npz", shading=np.random.default_rng(0).random((SIZE, SIZE, 3), np.float32))
    shading = [INTRINSICS["shading"]]
    source = opened(tmp_path, shading)
    cache = cached(source, backbone, tmp_path / "cache", SIZE, shading, False, True, keep_maps=True)
    batch = cache.batch([5, 11])  # the last order of the colours: BGR
    assert batch["shading"].shape == (2, 3, SIZE, SIZE)
    coloured = source[1].labels["shading"][None]
    assert torch.allclose(batch["shading"][1:], coloured.flip(1), atol=1e-3)
    mean, _ = backbone.encode_target(encode(coloured.flip(1), "shading"))
    assert_rounded(batch["shading_mean"][1:], mean)


def test_the_size_is_known_before(tmp_path, truth, backbone):
    for options in ({}, {"flip": True}, {"flip": True, "color_permutations": True}, {"keep_maps": True}):
        folder = tmp_path / f"cache{len(options)}{'keep_maps' in options}"
        cached(opened(tmp_path), backbone, folder, SIZE, BOTH, **options)
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        assert cache_bytes(4, backbone, SIZE, BOTH, **options) == pytest.approx(size, rel=0.05)


def test_a_full_disk_is_reported_before_and_during(tmp_path, truth, backbone, monkeypatch):
    usage = cache_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"latents of 4 pictures require \d\.\d+ GB.* free some space") as caught:
        cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)
    assert backbone.encoded == 0 and "\n" not in str(caught.value)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage._replace(free=10**6))

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "save_file", full)
    with pytest.raises(OSError, match="is full; free some space"):
        cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_index_that_is_not_there(tmp_path, truth, backbone):
    cache = cached(opened(tmp_path), backbone, tmp_path / "cache", SIZE, BOTH)
    assert cache.batch(torch.tensor([3, 0, 3]))["image"].shape[0] == 3
    for index in (-1, 4):
        with pytest.raises(IndexError, match="4 entries"):
            cache.batch([index])
