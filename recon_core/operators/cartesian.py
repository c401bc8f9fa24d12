"""Sampling on the points of the FFT grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.fourier import fft_centred, ifft_centred

TOLERANCE = 1e-3  # cycles per field of view; a trajectory in float32 is good to about 1e-5


def is_whole(trajectory: Tensor) -> bool:
    """Whether every point is a whole number of cycles per field of view on every axis."""
    return bool((trajectory - trajectory.round()).abs().max() <= TOLERANCE)


def grid_index(trajectory: Tensor, shape: Sequence[int]) -> Tensor:
    """The nearest grid index `[axis, ...]` of each point; outside 0 .. N-1 where a point lies beyond the grid."""
    centre = torch.tensor([n // 2 for n in shape], device=trajectory.device)
    return trajectory.round().long() + centre.view(-1, *[1] * (trajectory.ndim - 1))


def is_on_grid(trajectory: Tensor, shape: Sequence[int]) -> bool:
    """Whether every point of `[axis, ...]` is a whole number of cycles within the FFT grid of `shape`."""
    index = grid_index(trajectory, shape)
    return is_whole(trajectory) and all(
        index[axis].min() >= 0 and index[axis].max() < n for axis, n in enumerate(shape)
    )


class CartesianSampling:
    """Fourier transform followed by picking grid points, some perhaps repeatedly, some never. See `Sampling`."""

    def __init__(self, trajectory: Tensor, shape: Sequence[int]) -> None:
        """Takes a trajectory `[axis, shot, sample]` for which `is_on_grid` holds.

        Raises:
            ValueError: A point lies between or beyond the grid points.
        """
        if not is_on_grid(trajectory, shape):
            raise ValueError(f"the trajectory does not lie on the FFT grid of {tuple(shape)}")
        self.shape = tuple(shape)
        self.trajectory = trajectory
        self._axes = tuple(range(-len(self.shape), 0))
        self._points = _flat(grid_index(trajectory, shape), self.shape).flatten()

    def forward(self, image: Tensor) -> Tensor:
        """From `[..., *shape]` to `[..., shot, sample]`."""
        grid = fft_centred(image, self._axes).flatten(-len(self.shape))
        return grid[..., self._points].view(*grid.shape[:-1], *self.trajectory.shape[1:])

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[..., shot, sample]` to `[..., *shape]`; repeated samples add up."""
        samples = kspace.flatten(-2)
        grid = samples.new_zeros(*samples.shape[:-1], math.prod(self.shape))
        grid.index_add_(-1, self._points, samples)
        return ifft_centred(grid.view(*grid.shape[:-1], *self.shape), self._axes)

    def transfer_functions(self, weights: Tensor) -> Tensor:
        """One phase: the weights of each grid point, added up, in the order of the FFT."""
        grid = weights.new_zeros(len(weights), math.prod(self.shape))
        grid.index_add_(-1, self._points, weights.flatten(1))
        in_order: Tensor = torch.fft.ifftshift(grid.view(1, -1, *self.shape), self._axes)
        return in_order

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.trajectory.nbytes + self._points.nbytes


def _flat(index: Tensor, shape: Sequence[int]) -> Tensor:
    """One index into the flattened grid, from one index per axis."""
    flat = index[0]
    for axis_index, n in zip(index[1:], shape[1:], strict=True):
        flat = flat * n + axis_index
    return flat
