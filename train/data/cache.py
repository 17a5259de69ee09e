"""Cache of latents or other conditions, so that the training loop needs neither photos nor encoder.

With a centre crop and no random augmentation, the photo's latent (the posterior's mode) and the mean and standard
deviation of the label's latent are constants, and `mean + std * noise` equals `sample()` of an encoding at every step.
They are stored in float32, because half precision would round the embedded model's means by 3e-4 (rms), and its
smallest standard deviations are 5e-4. A photo of 512 pixels and one label take 192 KiB.

For generators with a loss in pixel space only the canonical map of the label is stored, in half precision like the
labels themselves.
"""

import errno
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...intrinsics.codec import encode
from ...intrinsics.files import atomic_path
from ...intrinsics.vocabulary import Intrinsic
from ..backbones.interfaces import LabelEncoder, Named
from .conditions import encode_conditions
from .sample import PERMUTED, Sample, Source, nothing_readable, stack_maps, try_read, variant

VERSION = 1  # of the stored data; a change invalidates all older caches
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60.0  # limits the work lost when the process is killed
CHUNK_PIXELS = 512 * 512  # pixels encoded at a time; only variants of one sample, see `cache_latents`
ORDERS = tuple(permutations(range(3)))


class Encoded(Named, Protocol):
    """The interface of backbones that the cache requires, in addition to an encoder for samples without conditions."""

    def dummy_conditions(self, count: int, resolution: int) -> Tensor: ...


def cache_latents(
    source: Source,
    backbone: Encoded,
    encode_label: LabelEncoder | None,
    folder: str | Path,
    resolution: int,
    intrinsics: Sequence[Intrinsic],
    flip: bool = False,
    color_permutations: bool = False,
    progress: Callable[[int, int], None] | None = None,
    keep_maps: bool = False,
) -> "LatentCache":
    """Encode the samples that are missing in `folder`, and open the cache.

    Samples are encoded one at a time, so that latents are equal bit for bit after an interruption. Shards are written
    atomically. Only samples whose files changed are encoded again; unused latents are kept until the folder is
    deleted. Unreadable samples are added to `source.problems`.

    Args:
        source: source of photos and labels.
        backbone: encodes photos without stored conditions.
        encode_label: encodes label pictures; None stores no latents of labels.
        folder: created if missing; runs with different settings may share it.
        resolution: size in pixels of the centre crop, see `prepare`.
        intrinsics: intrinsics whose labels are encoded.
        flip: also store every sample mirrored.
        color_permutations: also store every sample with its colour channels in all six orders.
        progress: called with the numbers of samples done and in total.
        keep_maps: also store the canonical maps in half precision, for losses on pictures.

    Raises:
        ValueError: no sample can be read, or conditions are missing, of another generator, or would be mirrored.
        OSError: the disk is too small (checked before encoding) or becomes full.
    """
    settings = {
        "version": VERSION,
        "base": backbone.fingerprint,
        "resolution": resolution,
        "intrinsics": [[i.name, i.channels, i.raw_convention] for i in intrinsics],
        "flip": flip,
        "color_permutations": color_permutations,
        "maps": keep_maps,
    }
    folder = Path(folder) / f"latents_{_digest(json.dumps(settings))}"
    folder.mkdir(parents=True, exist_ok=True)
    keys = [_digest(source.stamp(i)) for i in range(len(source))]
    existing = _shards(folder)
    todo = [i for i, key in enumerate(keys) if key not in existing]
    latents = encode_label is not None
    needed = cache_bytes(len(todo), backbone, resolution, intrinsics, flip, color_permutations, latents, keep_maps)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The latents of {len(todo)} pictures require {needed / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB "
            "free; free some space, choose another folder, or set a limit",
        )
    done = len(source) - len(todo)
    if progress:
        progress(done, len(source))
    flips, orders = _variants(flip, color_permutations)
    shard: dict[str, Tensor] = {}
    started = time.monotonic()
    for n, i in enumerate(todo, 1):
        sample = try_read(source, i, resolution)
        if sample is not None:
            tensors = _encode(sample, backbone, encode_label, intrinsics, flips, orders, keep_maps)
            shard |= {f"{keys[i]}.{name}": x for name, x in tensors.items()}
        size = sum(x.numel() * x.element_size() for x in shard.values())
        if shard and (size > SHARD_BYTES or time.monotonic() - started > SHARD_SECONDS or n == len(todo)):
            _write(folder, shard)
            shard, started = {}, time.monotonic()
        if progress:
            progress(done + n, len(source))
    shards = _shards(folder)
    if not any(key in shards for key in keys):
        raise nothing_readable(source)
    return LatentCache(folder, source.names, keys, shards, flips, orders)


def cache_bytes(
    samples: int,
    backbone: Encoded,
    resolution: int,
    intrinsics: Sequence[Intrinsic],
    flip: bool = False,
    color_permutations: bool = False,
    label_latents: bool = True,
    keep_maps: bool = False,
) -> int:
    """Compute the size in bytes of the cache of `samples` samples on disk, without masks, which few samples have."""
    flips, orders = _variants(flip, color_permutations)
    condition = backbone.dummy_conditions(1, resolution).nbytes
    total = condition * len(flips) * len(orders)  # the photo
    for intrinsic in intrinsics:
        if label_latents:  # mean and deviation
            total += 2 * condition * len(flips) * (len(orders) if intrinsic.name in PERMUTED else 1)
        total += 2 * intrinsic.channels * resolution**2 if keep_maps else 0
    return samples * total


class LatentCache:
    """Memory-mapped latents on disk. Created by `cache_latents`.

    Sample `i` of `names` has the indices `i * variants` up to `(i + 1) * variants`: first the colour orders of the
    original, then those of the mirrored sample.

    Attributes:
        names: names of the readable samples.
        variants: 1, 2 (mirrored), 6 (colour orders) or 12 (both).
        fingerprint: hash of base, settings and data; equal if all latents are equal.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        keys: Sequence[str],
        shards: dict[str, tuple[Path, list[str]]],
        flips: Sequence[bool],
        orders: Sequence[tuple[int, ...]],
    ) -> None:
        kept = [(name, key) for name, key in zip(names, keys, strict=True) if key in shards]
        self.names = [name for name, _ in kept]
        self.keys = [key for _, key in kept]
        self.flips, self.orders = flips, orders
        self.variants = len(flips) * len(orders)
        self.fingerprint = _digest(folder.name + "".join(self.keys))
        files = {path: safe_open(path, "pt") for path in {shards[key][0] for key in self.keys}}
        self.files = {key: files[shards[key][0]] for key in self.keys}
        self.parts = {key: shards[key][1] for key in self.keys}

    def __len__(self) -> int:
        return len(self.keys) * self.variants

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Read the samples with these indices as CPU tensors, float32 except for conditions that are codes.

        Returns:
            `image`, the conditions (B, ...), and for every intrinsic, in latent space, `<name>_mean` and `<name>_std`
            (B, C, h, w); with `keep_maps` or in pixel space the canonical map `<name>` (B, C, R, R). `mask`
            (B, 1, R, R), 1 where the labels are valid, only if one of these samples has a mask.
        """
        rows = [self._row(int(index)) for index in indices]
        if any("mask" in row for row in rows) and not all("mask" in row for row in rows):
            mask = next(row["mask"] for row in rows if "mask" in row)
            rows = [{"mask": torch.ones_like(mask)} | row for row in rows]
        return {name: stack_maps([row[name] for row in rows]) for name in rows[0]}

    def _row(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"The cache has {len(self)} entries, not {index}.")
        key, which = self.keys[index // self.variants], index % self.variants
        flip, order = divmod(which, len(self.orders))
        row, maps = {}, {}
        for part in self.parts[key]:
            x = self.files[key].get_tensor(f"{key}.{part}")
            if part == "mask" or part.startswith("map:"):
                maps[part] = x.float()  # (C, R, R), without variants
            else:
                row[part] = x[which if len(x) == self.variants else flip]  # (C, h, w); few depend on the colour order
        if maps:
            mask = maps.pop("mask", None)
            labels = {part.removeprefix("map:"): x for part, x in maps.items()}
            sample = Sample(key, torch.empty(3, 1, 1), labels, mask)
            sample = variant(sample, self.flips[flip], self.orders[order])
            row |= sample.labels
            if sample.mask is not None:
                row["mask"] = sample.mask
        return row


def _variants(flip: bool, color_permutations: bool) -> tuple[tuple[bool, ...], tuple[tuple[int, ...], ...]]:
    return (False, True) if flip else (False,), ORDERS if color_permutations else ORDERS[:1]


@torch.no_grad()
def _encode(
    sample: Sample,
    backbone: Encoded,
    encode_label: LabelEncoder | None,
    intrinsics: Sequence[Intrinsic],
    flips: Sequence[bool],
    orders: Sequence[tuple[int, ...]],
    keep_maps: bool,
) -> dict[str, Tensor]:
    """Encode one prepared sample to {part: (variants or flips, C, h, w)}, maps and mask without variants."""
    samples = [variant(sample, flip, order) for flip in flips for order in orders]
    chunk = max(1, CHUNK_PIXELS // sample.photo[0].numel())
    tensors = {"image": encode_conditions(samples, backbone, chunk)}
    if encode_label is not None:
        for intrinsic in intrinsics:
            labels = [varied.labels[intrinsic.name] for varied in samples]
            if intrinsic.name not in PERMUTED or len(labels[0]) != 3:
                labels = labels[:: len(orders)]  # independent of the colour order
            pictures = torch.cat([encode(label[None], intrinsic) for label in labels])  # (N, 3, H, W)
            means, stds = zip(*map(encode_label, pictures.split(chunk)), strict=True)
            tensors[f"{intrinsic.name}_mean"] = torch.cat(means).float().cpu()
            tensors[f"{intrinsic.name}_std"] = torch.cat(stds).float().cpu()
    if keep_maps:
        tensors |= {f"map:{i.name}": sample.labels[i.name].half() for i in intrinsics}
    if sample.mask is not None:
        tensors["mask"] = sample.mask.to(torch.uint8)
    return tensors


def _write(folder: Path, shard: dict[str, Tensor]) -> None:
    path = folder / f"{secrets.token_hex(8)}.safetensors"  # random, because runs may share the folder
    try:
        with atomic_path(path) as temporary:
            save_file({name: x.contiguous() for name, x in shard.items()}, temporary)
    except (OSError, SafetensorError) as error:
        if shutil.disk_usage(folder).free < 2 * SHARD_BYTES:
            raise OSError(
                errno.ENOSPC, f"The disk of {folder} is full; free some space and run the same command to resume"
            ) from error
        raise


def _shards(folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Return {key of a sample: (its file, the names of its parts)}. Damaged files are removed."""
    shards: dict[str, tuple[Path, list[str]]] = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        samples: dict[str, tuple[Path, list[str]]] = {}
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    key, _, part = name.partition(".")
                    samples.setdefault(key, (path, []))[1].append(part)
        except SafetensorError:
            path.unlink(missing_ok=True)  # damaged by the disk or an incomplete copy; writes are atomic
        shards |= samples
    return shards


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]
