"""Makes slices that somebody brings fit for simulation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from recon_core.fourier import resize_centred
from recon_core.simulation.smooth_noise import smooth_noise

_PHASE_WAVELENGTH_M = 0.22


def fitted(images: Tensor, pixel: tuple[float, float], matrix: tuple[int, int]) -> Tensor:
    """Scales images to another matrix, as large as they fit without changing their proportions.

    Args:
        images: real `[slice, y, x]`.
        pixel: size of a pixel along (y, x), in any unit.
        matrix: (y, x) of the result, which has square pixels.

    Returns:
        `[slice, *matrix]`, zero where the images do not reach.
    """
    extents = [n * size for n, size in zip(images.shape[1:], pixel, strict=True)]
    scale = min(n / extent for n, extent in zip(matrix, extents, strict=True))
    size = [max(1, round(extent * scale)) for extent in extents]
    scaled = interpolate(images[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    return resize_centred(scaled, matrix)


def smooth_phase(positions: Tensor, generator: torch.Generator, radians: float = 0.8) -> Tensor:
    """exp(i phase) of a smooth background phase with a standard deviation of `radians`, complex64 `[...]`.

    Args:
        positions: `[..., axis]` in metres.
        generator: the source of all randomness.
        radians: how strong it is.
    """
    offset = 2 * math.pi * torch.rand((), generator=generator, dtype=torch.float64)
    phase = radians * smooth_noise(positions, _PHASE_WAVELENGTH_M, generator) + offset
    return torch.polar(torch.ones_like(phase), phase).to(torch.complex64)
