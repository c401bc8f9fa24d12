"""Linear interpolation, for maps that are smooth but not band-limited."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def interpolated(values: Tensor, points: Tensor) -> Tensor:
    """Values of a map between its pixels; beyond its edge, those of the edge.

    Args:
        values: real `[*shape]`, two or three axes.
        points: real `[*out, axis]`, in pixels, axes in the order of `shape`.

    Returns:
        `[*out]` in the precision of `values`.

    Raises:
        ValueError: the points have another number of axes than the map.
    """
    if values.ndim not in (2, 3) or points.shape[-1] != values.ndim:
        raise ValueError(
            f"expected a map of 2 or 3 axes and points with as many, got {list(values.shape)} and {points.shape[-1]}"
        )
    last = torch.tensor(values.shape, dtype=torch.float64, device=points.device) - 1
    scaled = 2 * points.double() / last.clamp(min=1) - 1  # from -1 at the first pixel to 1 at the last
    places = scaled.flip(-1).reshape(1, -1, *(1,) * (values.ndim - 1), values.ndim)
    found = grid_sample(values.double()[None, None], places, padding_mode="border", align_corners=True)
    return found.reshape(points.shape[:-1]).to(values)
