"""Density compensation."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.operators.sampling import Sampling
from recon_core.operators.toeplitz import difference_blocks


def pipe_menon(sampling: Sampling, iterations: int = 20) -> Tensor:
    """Weights w for which `sampling.adjoint(w * sampling.forward(image))` is the image, as nearly as weights can.

    The fixed point w <- w / (psi w) of Pipe and Menon (Magn Reson Med 41:179, 1999), with psi(i, j) = |a_i^H a_j|^2
    for unit rows a_i of the operator A: then psi w = 1 are the normal equations of min ||A^H diag(w) A - 1|| over
    positive w. That also fixes the scale; where the iterations end before they converge, the scale is the best one in
    the same sense. psi is positive and vanishes between the points of a grid, so that Cartesian samples get one over
    their multiplicity.

    Args:
        sampling: with any trajectory, repeated points included.
        iterations: of the fixed point.

    Returns:
        Real weights `[shot, sample]` in the precision of the trajectory, in grid cells per sample.
    """
    correlate = _Correlation(sampling)
    weights = torch.ones_like(sampling.trajectory[0])
    for _ in range(iterations):
        weights = weights / correlate(weights)
    return weights * (weights.sum() / (weights * correlate(weights)).sum())


class _Correlation:
    """The product of psi with weights, at the cost of a few forward and adjoint operations.

    |a_i^H a_j|^2 is the Fejer kernel: the transform of the number of pairs of pixels at each difference, which
    is N - |d| on each axis. Weights are real and so is what becomes of them: differences d and -d contribute equally,
    and the half with d >= 0 on the first axis is enough.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        places, phases = difference_blocks(sampling)
        pairs = _pairs(sampling)
        halves = [block for block, place in enumerate(places) if place[0].start > 0]
        self._phases = phases[halves]
        self._pairs = 2 * torch.stack([pairs[places[block]] for block in halves])
        self._pairs[:, 0] /= 2  # d = 0 on the first axis holds both d and -d of the other axes

    def __call__(self, weights: Tensor) -> Tensor:
        spread = self._pairs * self._sampling.adjoint(self._phases * weights)
        total = (self._phases.conj() * self._sampling.forward(spread)).real.sum(0)
        # psi is positive, with ones on its diagonal: less than the weight itself can only be rounding.
        return total.maximum(weights)


def _pairs(sampling: Sampling) -> Tensor:
    """The fraction of pixels that have a partner at each difference, on the grid of differences."""
    pairs = sampling.trajectory.new_ones(())
    for n in sampling.shape:
        difference = torch.arange(-n, n, device=pairs.device)
        pairs = pairs[..., None] * (1 - difference.abs() / n).to(pairs)
    return pairs
