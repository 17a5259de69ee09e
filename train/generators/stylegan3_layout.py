"""Layers of StyleGAN3 and StyleGAN-XL as in the papers: their bands, rates, sizes and low-pass filters.

Karras et al., "Alias-Free Generative Adversarial Networks" (2021), section 3.2 and appendix C; Sauer et al.,
"StyleGAN-XL" (2022), section 3.2. Not used for converted files, which contain their layers and filters.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, log2, pi
from typing import Any

import torch
from torch import Tensor

MARGIN = 10  # pixels, at a layer's rate, by which its signal exceeds the picture on each side
FILTER_SIZE = 6  # taps per unit of up- or downsampling
FIRST_CUTOFF, FIRST_STOPBAND = 2.0, 2**2.1  # cycles per picture
LAST_STOPBAND = 2**0.3  # times the last cutoff
STEM = 16  # initial resolution of StyleGAN-XL
CRITICAL = 2  # number of last layers of a stage whose filters use the full band: sharp instead of alias-free


@dataclass(frozen=True)
class Band:
    """Band and size of a layer's output.

    Attributes:
        cutoff, stopband: limits of the transition band of the low-pass filters, in cycles per picture.
        rate: samples per picture side.
        size: samples per side, including margins.
        channels: number of channels.
        critical: whether it is among the last layers of its stage.
    """

    cutoff: float
    stopband: float
    rate: int
    size: int
    channels: int
    critical: bool

    @property
    def width(self) -> float:
        """Width of the transition band of the filters, in cycles per picture."""
        return 2 * (max(self.stopband, self.rate / 2) - self.cutoff)


def stylegan3_config(
    kind: str = "T",
    resolution: int = 256,
    *,
    channel_base: int | None = None,
    channel_max: int | None = None,
    num_layers: int | None = None,
    head_layers: int = 7,
    z_dim: int | None = None,
    w_dim: int = 512,
    label_dim: int | None = None,
    class_embedding: int = 320,
    conv_clamp: float | None = 256.0,
) -> dict[str, Any]:
    """Build the constructor arguments of `StyleGAN3` for a generator of the papers.

    T and R equal NVIDIA's layer by layer. XL follows the description in its paper; the released files may differ.

    Args:
        kind: "T" (translation equivariant), "R" (also rotation equivariant: 1x1 kernels, radial filters) or "XL".
        resolution: of the picture; a power of two, at least 8, for XL at least 16.
        channel_base, channel_max: a layer with cutoff f has `min(channel_base / 2 / f, channel_max)` channels. Default
            32768 and 512 for T, twice that for R and XL.
        num_layers: number of layers without ToRGB, default 14; for XL of the 16 pixel stem, default 10.
        head_layers: XL: layers added per doubling of the resolution, replacing the two critical layers and ToRGB.
        z_dim: width of z; default 512, for XL 64.
        w_dim: width of w.
        label_dim: number of classes; default 0, for XL 1000.
        class_embedding: XL: width of the class embedding.
        conv_clamp: bound after the leaky ReLUs, or None.

    Raises:
        ValueError: an unknown kind, or an unsupported resolution.
    """
    if kind not in ("T", "R", "XL"):
        raise ValueError(f"Unknown kind of StyleGAN3 {kind!r}; choose T, R or XL.")
    is_xl, large = kind == "XL", 1 if kind == "T" else 2
    smallest = STEM if is_xl else 8
    if resolution < smallest or resolution & (resolution - 1):
        raise ValueError(
            f"StyleGAN3-{kind} has resolutions of {smallest}, {2 * smallest}, ... pixels, not {resolution}."
        )
    width = (channel_base or 32768 * large, channel_max or 512 * large)
    z_dim = z_dim or (64 if is_xl else 512)
    label_dim = (1000 if is_xl else 0) if label_dim is None else label_dim

    count = num_layers or (10 if is_xl else 14)
    start = Band(FIRST_CUTOFF, FIRST_STOPBAND, 0, 0, 0, False)
    bands = _stage(start, STEM if is_xl else resolution, [i / (count - CRITICAL) for i in range(count)], width)
    numbers = list(range(count))
    stage = STEM
    while is_xl and stage < resolution:
        stage *= 2
        bands, after = bands[:-CRITICAL], numbers[-1] + 2  # the number of the removed ToRGB is not reused
        head = [(i + 1) / (head_layers - 1) for i in range(head_layers)]
        bands += _stage(bands[-1], stage, head, width)
        numbers = numbers[:-CRITICAL] + list(range(after, after + head_layers))

    kernel = 1 if kind == "R" else 3
    layers = [
        _layer(number, kernel, before, band, radial=kind == "R", clamp=conv_clamp)
        for number, (before, band) in zip(numbers, pairwise([bands[0], *bands]), strict=True)
    ]
    picture = replace(bands[-1], channels=3)
    layers.append(_layer(numbers[-1] + 1, 1, bands[-1], picture, radial=False, clamp=conv_clamp, is_torgb=True))
    return {
        "resolution": resolution,
        "z_dim": z_dim,
        "w_dim": w_dim,
        "mapping_layers": 2,
        "label_dim": label_dim,
        "class_embedding": class_embedding if is_xl and label_dim else None,
        "w_avg_per_class": is_xl and label_dim > 0,
        "output_scale": 0.25,
        "input": {
            "channels": bands[0].channels,
            "size": bands[0].size,
            "sampling_rate": bands[0].rate,
            "bandwidth": bands[0].cutoff,
        },
        "layers": layers,
    }


def _stage(before: Band, resolution: int, places: list[float], width: tuple[int, int]) -> list[Band]:
    """Build bands that grow geometrically from `before` (place 0) to the full band of `resolution` (place >= 1)."""
    cutoff, stopband = resolution / 2, resolution / 2 * LAST_STOPBAND
    bands = []
    for i, place in enumerate(places):
        fc = before.cutoff * (cutoff / before.cutoff) ** min(place, 1)
        ft = before.stopband * (stopband / before.stopband) ** min(place, 1)
        rate = 2 ** ceil(log2(min(2 * ft, resolution)))
        left = len(places) - i
        size = resolution if left == 1 else rate + 2 * MARGIN
        bands.append(Band(fc, ft, rate, size, round(min(width[0] / 2 / fc, width[1])), left <= CRITICAL))
    return bands


def _layer(
    number: int, kernel: int, before: Band, band: Band, *, radial: bool, clamp: float | None, is_torgb: bool = False
) -> dict[str, Any]:
    """Build a layer between two bands. Its leaky ReLU runs at twice the higher of their rates."""
    rate = max(before.rate, band.rate) * (1 if is_torgb else 2)
    up, down = rate // before.rate, rate // band.rate
    up_taps = FILTER_SIZE * up if up > 1 else 1
    down_taps = FILTER_SIZE * down if down > 1 else 1
    # The number of samples missing for the filters and rates, split so that the centres coincide.
    padding = (band.size - 1) * down + up_taps + down_taps - 1 - (before.size + kernel - 1) * up
    first = (padding + up) // 2
    shape = [down_taps, down_taps] if radial and not band.critical else [down_taps]
    up_filter = {"shape": [up_taps], "cutoff": before.cutoff, "width": before.width, "rate": rate}
    down_filter = {"shape": shape, "cutoff": band.cutoff, "width": band.width, "rate": rate}
    return {
        "name": f"L{number}_{band.size}_{band.channels}",
        "in_channels": before.channels,
        "out_channels": band.channels,
        "kernel": kernel,
        "is_torgb": is_torgb,
        "up_factor": up,
        "down_factor": down,
        "padding": [first, padding - first] * 2,
        "conv_clamp": clamp,
        "up_filter": up_filter if up > 1 else None,
        "down_filter": down_filter if down > 1 else None,
    }


def lowpass(shape: list[int], cutoff: float, width: float, rate: float) -> Tensor:
    """Design a low-pass filter of sum 1 by Kaiser's window method.

    Args:
        shape: [taps] for a separable filter, [taps, taps] for a radially symmetric one.
        cutoff, width, rate: middle and width of the transition band, and sampling rate, in the same unit.

    Returns:
        The taps, of the given shape, float32.
    """
    taps = shape[0]
    attenuation = 2.285 * (taps - 1) * pi * width / (rate / 2) + 7.95  # dB; Kaiser's estimate
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beta = 0.5842 * max(attenuation - 21, 0) ** 0.4 + 0.07886 * max(attenuation - 21, 0)
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
    place = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    if len(shape) == 1:
        kernel = torch.sinc(2 * cutoff * place) * window
    else:  # the jinc function, Fourier transform of a disc
        radius = torch.hypot(place[:, None], place).clamp(min=1e-6 / rate)  # (taps, taps)
        jinc = torch.special.bessel_j1(2 * pi * cutoff * radius) / (pi * radius)
        kernel = jinc * torch.outer(window, window)
    return (kernel / kernel.sum()).float()
