"""Spirals with a closed formula, and how interleaves follow from one another."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def interleaf_angles(interleaves: int) -> Tensor:
    """Angles -2 pi i / interleaves in radians: float64 `[interleaf]`.

    Interleaves follow each other clockwise (from y towards x) while each winds anticlockwise: the order in which
    Gadgetron computes the interleaves of a scan.
    """
    return torch.arange(interleaves, dtype=torch.float64) * (-2 * math.pi / interleaves)


def turned(shot: Tensor, angles: Tensor) -> Tensor:
    """A shot turned by each of some angles.

    Args:
        shot: `[2, sample]`, axes (y, x), in a unit that is the same along both, such as 1/m.
        angles: `[shot]` in radians, from the x axis towards the y axis.

    Returns:
        `[2, shot, sample]`.
    """
    y, x = shot[:, None]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack([sin * x + cos * y, cos * x - sin * y])


def archimedean_spiral(interleaves: int, samples: int, matrix: tuple[int, int], shots: Tensor | None = None) -> Tensor:
    """Spiral-out interleaves of uniform density: see `variable_density_spiral` with the exponent 1."""
    return variable_density_spiral(interleaves, samples, matrix, 1.0, shots)


def variable_density_spiral(
    interleaves: int, samples: int, matrix: tuple[int, int], exponent: float, shots: Tensor | None = None
) -> Tensor:
    """Spiral-out interleaves k = N/2 tau^exponent exp(i omega tau), 0 <= tau <= 1, with samples at even arc lengths.

    Even arc lengths are what a gradient of constant amplitude gives. Neighbouring turns, of all interleaves together,
    are one cycle per field of view apart at the edge of k-space, and closer towards the centre for exponents above 1.
    (Kim, Adalsteinsson, Spielman: Simple analytic variable density spiral design. Magn Reson Med 50:214, 2003.)

    Args:
        interleaves: of the fully sampled trajectory.
        samples: per interleaf.
        matrix: image size (y, x).
        exponent: at least 1, which is the Archimedean spiral.
        shots: numbers of the interleaves to compute, by default all.

    Returns:
        float64 `[2, shot, sample]` in cycles per field of view, axes (y, x).

    Raises:
        ValueError: the exponent is below 1.
    """
    if exponent < 1:
        raise ValueError(f"expected a density exponent of at least 1, got {exponent}")
    angles = interleaf_angles(interleaves)
    omega = math.pi * exponent * max(matrix) / interleaves

    def spiral(tau: np.ndarray) -> np.ndarray:
        return np.asarray(tau**exponent * np.exp(1j * omega * tau))

    fine = np.linspace(0, 1, 32 * samples)
    arc_length = np.concatenate([[0], np.abs(np.diff(spiral(fine))).cumsum()])
    unit = spiral(np.interp(np.linspace(0, arc_length[-1], samples), arc_length, fine))
    interleaf = torch.from_numpy(np.stack([unit.imag, unit.real]))
    extent = torch.tensor(matrix, dtype=torch.float64)[:, None, None] / 2
    return extent * turned(interleaf, angles if shots is None else angles[shots])
