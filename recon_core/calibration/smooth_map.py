"""Smooth maps from noisy ones, continued to where nothing was measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate

from recon_core.solvers.conjugate_gradient import conjugate_gradient

log = logging.getLogger("spinstream")

TENSION = 0.1
"""Of the width: about ten widths from any signal, the map levels off instead of going on with its slope."""

COARSEST = 4  # pixels along the longest axis of the coarsest grid
BEND, SLOPE = 20.0, 4.0  # curvature of the penalties for one pixel
ITERATIONS, TOLERANCE = 400, 1e-6


def smooth_map(values: Tensor, weights: Tensor, width: float) -> Tensor:
    """Penalised weighted least squares (Funai et al., IEEE Trans Med Imaging 27:1484, 2008) under tension.

    Minimises sum w (f - values)^2 + width^4 |second differences|^2 + (tension width)^2 |first differences|^2, where w
    are the weights divided by the mean of those above zero. At w = 1, structures of the wavelength 2 pi width are
    halved, slower ones kept: the transfer function is 1 / (1 + (k width)^4). Slopes are kept up to the edge of the
    signal, unlike those of a penalty on first differences. Solved by conjugate gradients on grids of all sizes at once
    (Bramble, Pasciak and Xu, Math Comp 55:1, 1990); the log says if they do not arrive.

    Args:
        values: real `[*shape]`, of any number of axes; those without weight do not matter.
        weights: `[*shape]`, not negative; the inverse variance, up to a factor.
        width: in pixels, above 0.

    Returns:
        `[*shape]` in the precision of `values`; zero where no pixel has any weight.

    Raises:
        ValueError: The width is not above zero, or a weight is negative or not finite.
        ArithmeticError: From `conjugate_gradient`.
    """
    if not width > 0:
        raise ValueError(f"expected a width above 0 pixels, got {width:g}")
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("expected weights of at least 0, got some that are negative or not finite")
    if not weights.any():
        return torch.zeros_like(values)
    weights = weights.double() / weights[weights > 0].double().mean()
    known = torch.where(weights > 0, values.double(), 0)
    offset = (weights * known).sum() / weights.sum()
    return (offset + _fit(known - offset, weights, width)).to(values)


def _fit(values: Tensor, weights: Tensor, width: float) -> Tensor:
    """Solves for a sum of maps on grids of fewer and fewer pixels, so that what is slow on one is fast on another."""
    scales = _scales(weights, width)
    start = torch.zeros(sum(scale.numel() for scale in scales)).to(values)
    adjoint = torch.func.vjp(lambda parts: _sum_of_grids(parts, scales), start)[1]

    def normal(parts: Tensor) -> Tensor:
        f = _sum_of_grids(parts, scales)
        (result,) = adjoint(weights * f + _penalty(f, width))
        return torch.as_tensor(result)

    (rhs,) = adjoint(weights * values)
    found = conjugate_gradient(normal, rhs, iterations=ITERATIONS, tolerance=TOLERANCE)
    if found.residuals[-1] > TOLERANCE:
        residual = found.residuals[-1]
        log.warning("a smooth map is not the best one: residual %.1g after %d iterations", residual, ITERATIONS)
    return _sum_of_grids(found.image, scales)


def _scales(weights: Tensor, width: float) -> list[Tensor]:
    """What brings the curvature of the sum to about 1 in each pixel of each grid, the finest grid first."""
    grids = [weights]
    while max(grids[-1].shape) > COARSEST:
        grids.append(_halved(grids[-1]))
    relative = [width / 2**level for level in range(len(grids))]
    stiffness = [BEND * wide**4 + SLOPE * (TENSION * wide) ** 2 for wide in relative]
    pixels = [weights.numel() / grid.numel() for grid in grids]
    return [((grid + stiff) * n).rsqrt() for grid, stiff, n in zip(grids, stiffness, pixels, strict=True)]


def _sum_of_grids(parts: Tensor, scales: Sequence[Tensor]) -> Tensor:
    """The map of unknowns that are laid end to end, those of the finest grid first."""
    each = torch.split(parts, [scale.numel() for scale in scales])
    grids = [part.view(scale.shape) * scale for part, scale in zip(each, scales, strict=True)]
    total: Tensor = grids[-1]
    for grid in reversed(grids[:-1]):
        total = grid + _doubled(total, grid.shape)
    return total


def _penalty(f: Tensor, width: float) -> Tensor:
    """Half the gradient of the penalty."""
    total = torch.zeros_like(f)
    axes = [axis for axis, size in enumerate(f.shape) if size > 1]
    for axis in axes:
        slope = torch.diff(f, dim=axis)
        bend = sum((_diff_adjoint(torch.diff(slope, dim=other), other) for other in axes), torch.zeros_like(slope))
        total = total + _diff_adjoint(width**4 * bend + (TENSION * width) ** 2 * slope, axis)
    return total


def _diff_adjoint(x: Tensor, axis: int) -> Tensor:
    edge = x.new_zeros([1 if i == axis else size for i, size in enumerate(x.shape)])
    return -torch.diff(x, dim=axis, prepend=edge, append=edge)


def _halved(x: Tensor) -> Tensor:
    """Means of pairs of pixels along each axis; an odd one at the end stays as it is."""
    for axis in range(x.ndim):
        along = x.movedim(axis, -1)
        means = avg_pool1d(along.flatten(0, -2)[None], 2, ceil_mode=True)
        x = means.reshape(*along.shape[:-1], -1).movedim(-1, axis)
    return x


def _doubled(x: Tensor, shape: torch.Size) -> Tensor:
    """Linear interpolation from the pixels of `_halved` to those of a grid of this shape."""
    for axis, size in enumerate(shape):
        along = x.movedim(axis, -1)
        wide = interpolate(along.flatten(0, -2)[None], scale_factor=2, mode="linear")[..., :size]
        x = wide.reshape(*along.shape[:-1], size).movedim(-1, axis)
    return x
