"""Sampling anywhere: the non-uniform Fourier transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.operators import nufft_finufft
from recon_core.operators.nufft_kaiser_bessel import MatrixPlan, TablePlan, matrix_entries
from recon_core.operators.nufft_plan import Plan
from recon_core.operators.toeplitz import doubled_grid

# The interpolation is held as a matrix up to this many entries, at 32 bytes each in single precision.
MATRIX_ENTRIES = 2**24


class Nufft:
    """By finufft on a processor where that is installed, else by torchkbnufft, on any device. See `Sampling`.

    Computes in the precision of what it is given. Relative errors of about 1e-5 in single precision; in double
    precision 1e-12 by finufft, 1e-5 by torchkbnufft. Safe to share between threads.
    """

    def __init__(self, trajectory: Tensor, shape: Sequence[int]) -> None:
        """Takes a trajectory `[axis, shot, sample]` in cycles per field of view, within +-N / 2."""
        self.shape = tuple(shape)
        self.trajectory = trajectory
        self._scale = 1 / math.sqrt(math.prod(self.shape))
        self._plans: dict[torch.dtype, Plan] = {}

    def forward(self, image: Tensor) -> Tensor:
        """From `[..., *shape]` to `[..., shot, sample]`."""
        batch = image.shape[: image.ndim - len(self.shape)]
        samples = self._plan(image.dtype).forward(image.reshape(-1, *self.shape)) * self._scale
        return samples.view(*batch, *self.trajectory.shape[1:])

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[..., shot, sample]` to `[..., *shape]`."""
        samples = kspace.flatten(-2)
        images = self._plan(kspace.dtype).adjoint(samples.reshape(-1, samples.shape[-1])) * self._scale
        return images.view(*samples.shape[:-1], *self.shape)

    def transfer_functions(self, weights: Tensor) -> Tensor:
        """Of `adjoint(weights * forward(image))`, for real weights `[product, shot, sample]`: see `Sampling`."""
        return doubled_grid(self, weights)

    @property
    def nbytes(self) -> int:
        """Memory held: grows with the first use of each precision."""
        return self.trajectory.nbytes + sum(plan.nbytes for plan in tuple(self._plans.values()))

    def _plan(self, dtype: torch.dtype) -> Plan:
        if dtype not in (torch.complex64, torch.complex128):
            raise TypeError(f"expected images or samples in complex64 or complex128, got {dtype}")
        if dtype not in self._plans:
            self._plans[dtype] = _plan_kind(self.trajectory, self.shape)(self.trajectory, self.shape, dtype)
        return self._plans[dtype]


def _plan_kind(trajectory: Tensor, shape: tuple[int, ...]) -> type[Plan]:
    if trajectory.device.type == "cpu" and nufft_finufft.AVAILABLE:
        return nufft_finufft.FinufftPlan
    return MatrixPlan if matrix_entries(trajectory, shape) <= MATRIX_ENTRIES else TablePlan
