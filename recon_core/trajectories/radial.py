"""Radial spokes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2


def linear_angles(spokes: int) -> Tensor:
    """Angles pi i / spokes in radians, which cover the half circle evenly. float64 `[spoke]`."""
    return torch.arange(spokes, dtype=torch.float64) * (math.pi / spokes)


def golden_angles(spokes: int, first: int = 0) -> Tensor:
    """Angles of the spokes `first`, `first` + 1, ... in radians, 111.246 degrees apart. float64 `[spoke]`.

    The angle of a spoke depends on its number alone. (Winkelmann et al., IEEE Trans Med Imaging 26:68, 2007.)
    """
    numbers = torch.arange(first, first + spokes, dtype=torch.float64)
    return torch.remainder(numbers * GOLDEN_ANGLE, 2 * math.pi)


def radial_spokes(angles: Tensor, samples: int, matrix: tuple[int, int], centre_sample: int | None = None) -> Tensor:
    """Straight lines through the centre of k-space, from -N/2 to N/2.

    Args:
        angles: `[spoke]` in radians, from the x axis towards the y axis.
        samples: number of samples of a full spoke; more than the matrix means readout oversampling.
        matrix: image size (y, x).
        centre_sample: the sample at the centre of k-space, by default samples // 2.

    Returns:
        float64 `[2, spoke, sample]` in cycles per field of view, axes (y, x).
    """
    centre = samples // 2 if centre_sample is None else centre_sample
    radius = (torch.arange(samples, dtype=torch.float64) - centre) / samples
    directions = torch.stack([angles.sin() * matrix[0], angles.cos() * matrix[1]])
    return directions[:, :, None] * radius
