"""Light from an equirectangular panorama: spherical harmonics for diffuse, a prefiltered stack for specular."""

from dataclasses import dataclass
from functools import cached_property
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from .lights import Light, Number, number

# The prefiltered stack has levels of roughness 0, 1/7 .. 1. A pixel is 2.8 degrees, about the lobe of roughness 1/7.
STACK_HEIGHT, STACK_WIDTH, LEVELS = 64, 128, 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Environment(Light):
    """Light from an equirectangular panorama. Uniform radiance 1 gives every surface a shading of 1; casts no shadows.

    The panorama is fixed to the camera: its centre column is in the viewing direction (behind the subject, az 180),
    columns to the right of it are to the camera's right (+X, az 90 at three quarters of the width), the left and
    right edges meet behind the camera (az 0), and the top row is straight up. At the share u of the width and v
    of the height, az = -360 u and el = 90 - 180 v degrees, with direction (sin az cos el, sin el, cos az cos el).

    Attributes:
        image: (1, 3, h, w) linear light, finite, >= 0, of any size; must not be modified in place. See
            `read_panorama`.
        rotation: degrees added to all azimuths in the panorama: 90 moves the region behind the camera to its right.

    Raises:
        ValueError: the image has another shape.
    """

    image: Tensor
    rotation: Number = 0.0

    def __post_init__(self) -> None:
        shape = tuple(self.image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or 0 in shape:
            raise ValueError(f"A panorama must have shape (1, 3, height, width), not {shape}.")

    @cached_property
    def harmonics(self) -> Tensor:
        return sh_coefficients(self.image)

    @cached_property
    def stack(self) -> Tensor:
        return prefilter(self.image)

    def to_panorama(self, directions: Tensor) -> Tensor:
        """Convert camera-frame directions (B, 3, H, W) to the frame of the unrotated panorama."""
        x, y, z = directions.unbind(1)  # (B, H, W) each
        angle = number(self.rotation, directions)[:, 0] * (pi / 180)  # (B or 1, 1, 1)
        sin, cos = angle.sin(), angle.cos()
        return torch.stack([x * cos - z * sin, y.expand_as(x * cos), z * cos + x * sin], dim=1)


def irradiance(light: Environment, normals: Tensor) -> Tensor:
    """Compute the diffuse shading by the panorama, E / pi, before colour and intensity.

    Spherical harmonics of order 2 contain 99 % of the energy of any irradiance (Ramamoorthi and Hanrahan 2001). A
    single small sun is the worst case, with an error of up to 0.094 of its shading of a facing surface, at grazing
    angles. Negative values of the polynomial opposite to strong lights are clamped.

    Args:
        light: its tensors may have the batch size of `normals`.
        normals: (B, 3, H, W) unit, OpenGL camera frame.

    Returns:
        (B, 3, H, W) linear, >= 0; a panorama of radiance 1 gives 1.
    """
    # The cached result of a tensor under optimisation would belong to a graph that the first backward pass frees.
    coefficients = sh_coefficients(light.image) if light.image.requires_grad else light.harmonics
    basis = sh_basis(light.to_panorama(normals))  # (B, 9, H, W)
    return torch.einsum("bihw,ic->bchw", basis, coefficients.to(normals.device)).clamp(min=0)


def sh_basis(directions: Tensor) -> Tensor:
    """Evaluate the basis of `sh_coefficients`, (B, 3, H, W) unit -> (B, 9, H, W).

    In order: 1, y, z, x, xy, yz, 3z^2 - 1, xz, x^2 - y^2.
    """
    x, y, z = directions.unbind(1)  # (B, H, W) each
    one = torch.ones_like(x)
    return torch.stack([one, y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y], dim=1)


def sh_coefficients(image: Tensor) -> Tensor:
    """Project the panorama's irradiance onto order-2 real spherical harmonics, as a polynomial of the normal.

    E(n) / pi = sum_i c[i] * p_i(n) with the polynomials p of `sh_basis` in the unrotated panorama's frame (see
    `Environment`), in the usual order (l, m) = (0, 0), (1,-1), (1, 0), (1, 1), (2,-2) .. (2, 2). The constants of the
    orthonormal harmonics (squared, for projection and evaluation) and of the cosine lobe (pi, 2 pi / 3, pi / 4 over
    pi) are included in c. The projection is exact for pixels of constant radiance, of any size.

    Args:
        image: (1, 3, h, w) linear light.

    Returns:
        (9, 3) float32, coefficient by RGB, on the device of the image.
    """
    height, width = image.shape[-2:]
    el = pi / 2 - torch.arange(height + 1, dtype=torch.float64) * (pi / height)  # (h+1,) edges of the rows
    az = torch.arange(width + 1, dtype=torch.float64) * (-2 * pi / width)  # (w+1,) edges of the columns
    se, ce, sa, ca = el.sin(), el.cos(), az.sin(), az.cos()
    # Antiderivatives of 1, y, y^2, s, y s, s^2 times cos(el), with y = sin(el) and s = cos(el) ...
    rows = torch.stack([se, se**2 / 2, se**3 / 3, (el + se * ce) / 2, -(ce**3) / 3, se - se**3 / 3])
    # ... and of 1, sin, cos, sin^2, sin cos, cos^2 of az. Both angles decrease along the picture, hence the sign.
    columns = torch.stack([az, -ca, sa, (az - sa * ca) / 2, sa**2 / 2, (az + sa * ca) / 2])
    rows, columns = (-edge.diff(dim=1).float().to(image.device) for edge in (rows, columns))
    m = rows @ image[0].float() @ columns.T  # (3, 6, 6): integrals over the sphere, x = s sin(az), z = s cos(az)
    one, y, z, x = m[:, 0, 0], m[:, 1, 0], m[:, 3, 2], m[:, 3, 1]
    xy, yz, zz, xz, xx, yy = m[:, 4, 1], m[:, 4, 2], m[:, 5, 5], m[:, 5, 4], m[:, 5, 3], m[:, 2, 0]
    projected = torch.stack([one, y, z, x, xy, yz, 3 * zz - one, xz, xx - yy])  # (9, 3)
    folded = projected.new_tensor([1, 2, 2, 2, 15 / 4, 15 / 4, 5 / 16, 15 / 4, 15 / 16]) / (4 * pi)
    return projected * folded[:, None]


def reflection(light: Environment, normals: Tensor, view: Tensor, roughness: Tensor, f0: Tensor) -> Tensor:
    """Compute the GGX reflection of the panorama by the split sum of Karis 2013, before colour and intensity.

    Args:
        light: its tensors may have the batch size of `normals`.
        normals, view: (B, 3, H, W) unit, OpenGL camera frame; view points to the camera.
        roughness: (B, 1, H, W) perceptual, in [0, 1].
        f0: (B or 1, 1, 1, 1) reflectance at normal incidence.

    Returns:
        (B, 3, H, W) linear, >= 0: reflected radiance.
    """
    stack = prefilter(light.image) if light.image.requires_grad else light.stack  # (1, 3, LEVELS, h, w), as above
    n_v = (normals * view).sum(1, keepdim=True)  # (B, 1, H, W)
    u, v = panorama_uv(light.to_panorama(2 * n_v * normals - view))  # (B, H, W) each
    # Padded by one pixel, so that interpolation wraps around the left and right edges and the poles.
    top, bottom = (stack[..., row : row + 1, :].roll(STACK_WIDTH // 2, -1) for row in (0, STACK_HEIGHT - 1))
    stack = torch.cat([top, stack, bottom], dim=-2)
    stack = torch.cat([stack[..., -1:], stack, stack[..., :1]], dim=-1)  # (1, 3, LEVELS, h+2, w+2)
    # Pixel centres are at (index + 0.5) / size; grid_sample expects the first and last one at -1 and 1.
    column = (u * STACK_WIDTH + 0.5) * (2 / (STACK_WIDTH + 1)) - 1
    row = (v * STACK_HEIGHT + 0.5) * (2 / (STACK_HEIGHT + 1)) - 1
    grid = torch.stack(torch.broadcast_tensors(column, row, roughness[:, 0] * 2 - 1), dim=-1)[None]  # (1, B, H, W, 3)
    sampled = F.grid_sample(stack.to(grid.device), grid, padding_mode="border", align_corners=True)  # (1, 3, B, H, W)
    return sampled[0].transpose(0, 1) * environment_brdf(n_v, roughness, f0)


def environment_brdf(n_v: Tensor, roughness: Tensor, f0: Tensor) -> Tensor:
    """Compute the share of a uniform environment that GGX reflects, (B, 1, H, W) in [0, 1].

    The analytic fit of Karis, "Physically based shading on mobile" (2014), after Lazarov 2013. Compared with an
    integral of our `ggx`, the mean error is 0.01 for F0 0.04 and the maximum 0.08 (grazing, smooth). As there,
    reflectances below 0.02, which do not occur in real materials, also decrease at grazing angles.
    """
    a = 1 - roughness
    b = 0.0425 - 0.0275 * roughness
    grazing = torch.minimum(a * a, torch.exp2(-9.28 * n_v.clamp(0, 1))) * a + b
    scale = 1.04 - 0.572 * roughness - 1.04 * grazing
    offset = -0.04 + 0.022 * roughness + 1.04 * grazing
    return (f0 * scale + (50 * f0).clamp(max=1) * offset).clamp(0, 1)


def prefilter(image: Tensor) -> Tensor:
    """Filter the panorama for increasing roughness: (1, 3, h, w) -> (1, 3, LEVELS, STACK_HEIGHT, STACK_WIDTH).

    Level i has roughness i / (LEVELS - 1) and is the mean over directions L of the radiance, weighted by D(H) N.L with
    N = V = R (Karis 2013); level 0 is the panorama itself. A uniform panorama is unchanged.
    """
    small = area_average(image)  # (1, 3, h, w) of the stack
    el = pi / 2 - (torch.arange(STACK_HEIGHT, device=image.device) + 0.5) * (pi / STACK_HEIGHT)  # (h,) row centres
    turn = torch.arange(STACK_WIDTH, device=image.device) * (2 * pi / STACK_WIDTH)  # (w,) difference of azimuths
    alpha2 = (torch.arange(1, LEVELS, device=image.device) / (LEVELS - 1))[:, None, None, None] ** 4  # (L, 1, 1, 1)
    out, in_ = el[:, None, None], el[None, :, None]
    n_l = out.sin() * in_.sin() + out.cos() * in_.cos() * turn.cos()  # (h, h, w)
    # GGX of the half vector, whose squared cosine is (1 + N.L) / 2; pixels are weighted by their solid angle.
    lobe = n_l.clamp(min=0) * in_.cos() / ((1 - n_l) / 2 + alpha2 * (1 + n_l) / 2).clamp(min=1e-12).square()
    lobe = lobe / lobe.sum((-2, -1), keepdim=True)  # (L, h, h, w)
    # The lobes of a row are rotations of one lobe: a circular convolution along the azimuth.
    spectrum = torch.einsum("loif,cif->clof", torch.fft.rfft(lobe), torch.fft.rfft(small[0]))
    rough = torch.fft.irfft(spectrum, n=STACK_WIDTH).clamp(min=0)  # (3, L, h, w); rounding may give negative values
    return torch.cat([small[0][:, None], rough], dim=1)[None]


def area_average(image: Tensor) -> Tensor:
    """Resample a panorama to the stack's size, (1, 3, h, w) -> (1, 3, STACK_HEIGHT, STACK_WIDTH), conserving energy.

    Every new pixel is the mean radiance over its solid angle, so that a sun of one pixel keeps its power.
    """

    def shares(new: Tensor, old: Tensor) -> Tensor:  # edges (n+1,), (o+1,) -> (n, o), rows sum to 1
        overlap = torch.minimum(new[1:, None], old[1:]) - torch.maximum(new[:-1, None], old[:-1])
        return (overlap.clamp(min=0) / new.diff()[:, None]).float().to(image.device)

    def edges(count: int) -> Tensor:
        return torch.linspace(0, 1, count + 1, dtype=torch.float64)

    height, width = image.shape[-2:]
    rows = shares(-(edges(STACK_HEIGHT) * pi).cos(), -(edges(height) * pi).cos())  # in terms of solid angle
    columns = shares(edges(STACK_WIDTH), edges(width))
    return rows @ image.float() @ columns.T


def panorama_uv(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Convert directions (B, 3, H, W) in the unrotated panorama's frame to u, v (B, H, W) in [0, 1].

    See `Environment`. At the poles u is 0.
    """
    x, y, z = directions.unbind(1)  # (B, H, W) each
    across2 = x * x + z * z
    pole = across2 < 1e-12  # where the azimuth and the gradient of atan2 are undefined
    az = torch.atan2(torch.where(pole, 0.0, x), torch.where(pole, 1.0, z))
    el = torch.atan2(y, (across2 + 1e-12).sqrt())
    return (-az / (2 * pi)) % 1, 0.5 - el / pi
