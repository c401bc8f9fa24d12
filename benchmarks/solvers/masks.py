"""Which points of the Cartesian grid are sampled."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_core.trajectories import cartesian_lines

_TRIALS = 12  # halvings of the interval in which the spacing of a Poisson disc lies


def equispaced_lines(matrix: int, acceleration: int) -> Tensor:
    """Every R-th line and, on top of these, at least 16 lines for calibration: `[2, line, sample]`."""
    return _lines(matrix, {*range(0, matrix, acceleration), *_centre(matrix, acceleration, 16)})


def random_lines(matrix: int, acceleration: int) -> Tensor:
    """Lines drawn evenly, matrix / R of them together with at least 8 for calibration: `[2, line, sample]`.

    Raises:
        ValueError: there are no more than the calibration lines.
    """
    centre, budget = set(_centre(matrix, acceleration, 8)), matrix // acceleration
    if budget <= len(centre):
        raise ValueError(
            f"R = {acceleration} leaves {budget} of {matrix} lines, but {len(centre)} are needed for calibration"
        )
    others = sorted(set(range(matrix)) - centre)
    drawn = np.random.default_rng(0).choice(others, budget - len(centre), replace=False)
    return _lines(matrix, {*centre, *drawn.tolist()})


def poisson_disc(matrix: int, acceleration: int, calibration: int = 20) -> Tensor:
    """Points within the ellipse of k-space that keep a distance which grows with the radius: `[2, point, 1]`.

    Both axes are phase encoded, so that every point is a shot. The calibration square is sampled fully; all points
    together are matrix^2 / R.
    """
    wanted = matrix**2 / acceleration
    least, most = 0.5, float(acceleration)
    for _ in range(_TRIALS):
        spacing = (least + most) / 2
        mask = _discs(matrix, spacing, calibration)
        least, most = (spacing, most) if mask.sum() > wanted else (least, spacing)
    points = torch.from_numpy(np.argwhere(mask)) - matrix // 2
    return points.T[..., None].double()


def _discs(matrix: int, spacing: float, calibration: int) -> NDArray[np.bool_]:
    """Throws darts at all grid points in random order; a hit blocks the points within its distance."""
    along = np.arange(matrix) - matrix // 2
    radius = np.hypot(*np.meshgrid(along, along, indexing="ij")) / (matrix / 2)
    distance = spacing * (0.5 + radius)
    hit = np.zeros((matrix, matrix), dtype=bool)
    free = radius < 1
    for y, x in np.random.default_rng(0).permutation(np.argwhere(free)):
        if free[y, x]:
            hit[y, x] = True
            reach = int(distance[y, x])
            rows, columns = (slice(max(i - reach, 0), i + reach + 1) for i in (y, x))
            near = np.hypot(along[rows, None] - along[y], along[None, columns] - along[x]) <= distance[y, x]
            free[rows, columns] &= ~near
    square = slice(matrix // 2 - calibration // 2, matrix // 2 + calibration // 2)
    hit[square, square] = True
    return hit


def _centre(matrix: int, acceleration: int, least: int) -> range:
    """As in fastMRI: 8 % of the lines, 4 % for high accelerations."""
    half = max(least, 2 * round((0.08 if acceleration <= 6 else 0.04) * matrix / 2)) // 2
    return range(matrix // 2 - half, matrix // 2 + half)


def _lines(matrix: int, numbers: set[int]) -> Tensor:
    return cartesian_lines(torch.tensor(sorted(numbers))[None] - matrix // 2, matrix, matrix // 2)
