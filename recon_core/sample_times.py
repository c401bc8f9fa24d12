"""When the samples visit each point of k-space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

_SMOOTHING = 0.7  # grid points
_LEAST = 1e-3  # of the largest density, for a point to count as visited


def visiting_times(trajectory: Tensor, times: Tensor, shape: Sequence[int]) -> Tensor:
    """The mean time of the samples around each grid point of k-space; at points without samples, of the nearest.

    Args:
        trajectory: `[2, shot, sample]` in cycles per field of view, axes (y, x).
        times: in seconds, `[shot, sample]`.
        shape: (y, x), of the grid whose centre n // 2 is the centre of k-space.

    Returns:
        Seconds, `[y, x]`.
    """
    late, visits = np.zeros(shape), np.zeros(shape)
    places = [k.flatten().double().cpu().numpy() + n // 2 for k, n in zip(trajectory, shape, strict=True)]
    seconds = times.flatten().double().cpu().numpy()
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        index = [np.floor(place).astype(int) + step for place, step in zip(places, corner, strict=True)]
        inside = np.all([(i >= 0) & (i < n) for i, n in zip(index, shape, strict=True)], axis=0)
        near = np.prod([1 - np.abs(place - i) for place, i in zip(places, index, strict=True)], axis=0)
        at = tuple(i[inside] for i in index)
        np.add.at(visits, at, near[inside])
        np.add.at(late, at, (near * seconds)[inside])
    return torch.from_numpy(_filled(late, visits)).to(times)


def _filled(late: NDArray[np.float64], visits: NDArray[np.float64]) -> NDArray[np.float64]:
    smooth_late, smooth_visits = (ndimage.gaussian_filter(part, _SMOOTHING) for part in (late, visits))
    visited = smooth_visits > _LEAST * smooth_visits.max()
    times = np.divide(smooth_late, smooth_visits, out=np.zeros_like(late), where=visited)
    nearest = ndimage.distance_transform_edt(~visited, return_distances=False, return_indices=True)
    filled: NDArray[np.float64] = times[tuple(nearest)]
    return filled
