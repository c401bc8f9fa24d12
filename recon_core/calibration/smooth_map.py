"""Smooth maps from noisy ones, continued to where nothing was measured."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate

from recon_core.solvers.conjugate_gradient import conjugate_gradient

TENSION = 0.05
"""Of the width: about twenty widths from any signal, the map levels off instead of going on with its slope."""

COARSEST = 8  # pixels along the longest axis of the grid where solving begins
ITERATIONS, TOLERANCE = 200, 1e-4


def smooth_map(values: Tensor, weights: Tensor, width: float) -> Tensor:
    """Penalised weighted least squares (Funai et al., IEEE Trans Med Imaging 27:1484, 2008) under tension.

    Minimises sum w (f - values)^2 + width^4 |second differences|^2 + (tension width)^2 |first differences|^2, where w
    are the weights divided by the mean of those above zero. At w = 1, structures of the wavelength 2 pi width are
    halved, slower ones kept: the transfer function is 1 / (1 + (k width)^4). Slopes are kept up to the edge of the
    signal, unlike those of a penalty on first differences. Solved by conjugate gradients from coarse to fine.

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
    """Solves on a grid of half as many pixels first, and goes on from there."""
    start = torch.zeros_like(values)
    if max(values.shape) > COARSEST:
        coarse = _halved(weights)
        means = _halved(weights * values) / coarse.clamp(min=torch.finfo(values.dtype).tiny)
        start = _doubled(_fit(means, coarse, width / 2), values.shape)

    def normal(f: Tensor) -> Tensor:
        return weights * f + _penalty(f, width)

    return conjugate_gradient(normal, weights * values, start, iterations=ITERATIONS, tolerance=TOLERANCE).image


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
