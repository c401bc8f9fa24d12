"""Coil maps from coil images, by adaptive combination."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from recon_core.calibration.compression import principal_coils
from recon_core.calibration.eigenmaps import CHUNK, dominant_eigenpairs, with_reference


def walsh(images: Tensor, window: int = 5) -> Tensor:
    """Coil maps of Walsh, Gmitro and Marcellin (Magn Reson Med 43:682, 2000).

    The map of a pixel is the dominant eigenvector of the covariance of the coils over the window around it. Nothing is
    masked: where there is only noise, the map is noise of unit length.

    Args:
        images: complex `[coil, *shape]`, prewhitened.
        window: edge of the window in pixels, odd; cut off at the borders of the image.

    Returns:
        `[coil, *shape]` with a root sum of squares of one, or zero where all coils are zero in the window. The
        strongest virtual coil is real and positive.

    Raises:
        ValueError: The window is not a positive odd number, or the images are zero or not finite.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"expected an odd window of at least one pixel, got {window}")
    _, virtual_coils = principal_coils(images)
    margin = window // 2
    padded = pad(images, [margin, margin] * (images.ndim - 1))
    coils, length, *rest = images.shape
    step = max(CHUNK // (coils**2 * math.prod(rest)), 1)
    slabs = [_maps(padded[:, first : first + step + 2 * margin], window) for first in range(0, length, step)]
    return with_reference(torch.cat(slabs, 1), virtual_coils[0])


def _maps(images: Tensor, window: int) -> Tensor:
    """The dominant eigenvectors of all windows that lie within `[coil, *shape]`."""
    covariance = images[:, None] * images.conj()
    for axis in range(2, covariance.ndim):
        covariance = covariance.unfold(axis, window, 1).sum(-1)
    strength, maps = dominant_eigenpairs(covariance.movedim((0, 1), (-2, -1)))
    return torch.where(strength > 0, maps, 0)
