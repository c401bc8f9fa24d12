"""Off-resonance of a head in a magnet."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recon_core.simulation.smooth_noise import smooth_noise

_SHIM_WAVELENGTH_M = 0.22
# Air: (x, y) and depth below the lowest slice, radius, in metres. One cavity behind the forehead, one at each ear.
_CAVITIES = ((0.0, -0.085, 0.026, 0.021), (0.058, 0.010, 0.030, 0.016), (-0.058, 0.010, 0.030, 0.016))


def smooth_field(
    mask: Tensor, positions: Tensor, percentile_hz: float, generator: torch.Generator, sinus: float = 1.0
) -> Tensor:
    """A smooth field: what shims leave, and the dipole fields of air-filled cavities below the slices.

    A sphere of radius a with another susceptibility than its surroundings changes the field outside by
    (a/r)^3 (3 cos^2 theta - 1), with theta from the direction of the main field, z. (Schenck, Med Phys 23:815, 1996.)

    Args:
        mask: where the head is, bool `[slice, y, x]`.
        positions: `[slice, y, x, 3]` in metres, axes (x, y, z), x to the left of the patient, y to the back.
        percentile_hz: 99th percentile of |field| inside the mask.
        generator: the source of all randomness.
        sinus: weight of the cavities against the smooth rest; 0 leaves them out.

    Returns:
        float32 `[slice, y, x]` in Hz, for signal ~ exp(-2 pi i field t); mean 0 inside the mask, defined everywhere.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("expected a mask with a head in it, got an empty one")
    shape: Tensor = smooth_noise(positions, _SHIM_WAVELENGTH_M, generator)
    for x, y, below, radius in _CAVITIES:
        centre = torch.tensor([x, y, positions[..., 2].min() - below], dtype=torch.float64)
        shape = shape + 4 * sinus * _dipole(positions - centre, radius)
    shape = shape - shape[mask].mean()
    percentile = float(np.quantile(shape[mask].abs().numpy(), 0.99))
    return (shape * (percentile_hz / percentile)).to(torch.float32)


def _dipole(offset: Tensor, radius: float) -> Tensor:
    distance = offset.norm(dim=-1).clamp(min=radius)
    dipole: Tensor = (radius / distance) ** 3 * (3 * (offset[..., 2] / distance) ** 2 - 1)
    return dipole
