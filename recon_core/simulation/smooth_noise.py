"""Random functions of space that can be evaluated anywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def smooth_noise(positions: Tensor, wavelength: float, generator: torch.Generator, waves: int = 32) -> Tensor:
    """A random function of space with wavelengths within 25 % of one: about normal, mean 0, variance 1.

    A sum of plane waves in random directions, so that what comes out at a position does not depend on the grid.

    Args:
        positions: `[..., axis]`, float64.
        wavelength: in the unit of the positions.
        generator: the source of all randomness.
        waves: how many plane waves.

    Returns:
        float64 `[...]`.
    """
    directions = torch.randn(waves, positions.shape[-1], generator=generator, dtype=torch.float64)
    spread, phase = torch.rand(2, waves, generator=generator, dtype=torch.float64)
    wavenumbers = 2 * math.pi / wavelength / (0.75 + 0.5 * spread)
    total = torch.zeros(positions.shape[:-1], dtype=torch.float64)
    for vector, offset in zip(torch.nn.functional.normalize(directions) * wavenumbers[:, None], phase, strict=True):
        total += torch.cos(positions @ vector + 2 * math.pi * offset)
    return total * math.sqrt(2 / waves)
