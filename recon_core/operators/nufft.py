"""Sampling anywhere: the non-uniform Fourier transform of torchkbnufft."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from recon_core.operators.toeplitz import doubled_grid

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    import torchkbnufft

# Six neighbours on a grid of twice the image leave a relative error of about 1e-5 against the direct sum. Looking the
# kernel up in a table of this many entries per grid point raises that to 5e-5.
NEIGHBOURS = 6
TABLE = 2**14

# The interpolation is held as a matrix up to this many entries, at 32 bytes each in single precision.
MATRIX_ENTRIES = 2**24


class Nufft:
    """Kaiser-Bessel gridding (Fessler and Sutton, IEEE Trans Signal Process 51:560, 2003). See `Sampling`.

    Computes in the precision of what it is given.
    """

    def __init__(self, trajectory: Tensor, shape: Sequence[int]) -> None:
        """Takes a trajectory `[axis, shot, sample]` in cycles per field of view, within +-N / 2."""
        self.shape = tuple(shape)
        self.trajectory = trajectory
        self._scale = 1 / math.sqrt(math.prod(self.shape))
        self._plans: dict[torch.dtype, _Plan] = {}

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

    def _plan(self, dtype: torch.dtype) -> _Plan:
        if dtype not in self._plans:
            entries = self.trajectory[0].numel() * NEIGHBOURS ** len(self.shape)
            kind = _MatrixPlan if entries <= MATRIX_ENTRIES else _TablePlan
            self._plans[dtype] = kind(self.trajectory, self.shape, dtype)
        return self._plans[dtype]


class _Plan(Protocol):
    """The transform of one precision: images `[batch, *shape]`, samples `[batch, sample]`, without scale."""

    def forward(self, images: Tensor) -> Tensor: ...
    def adjoint(self, samples: Tensor) -> Tensor: ...


class _MatrixPlan:
    """Holds the interpolation as a sparse matrix: several times faster than tables."""

    def __init__(self, trajectory: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._grid = _oversampled(shape)
        self._axes = tuple(range(-len(shape), 0))
        module = torchkbnufft.KbNufft(shape, self._grid, NEIGHBOURS, dtype=dtype, device=trajectory.device)
        self._scaling: Tensor = module.scaling_coef
        self._interpolation, self._spreading = _matrices(_radians(trajectory, shape), shape, dtype)

    def forward(self, images: Tensor) -> Tensor:
        spectra = torch.fft.fftn(images * self._scaling, s=self._grid, dim=self._axes)
        samples: Tensor = (self._interpolation @ spectra.flatten(1).T).T
        return samples

    def adjoint(self, samples: Tensor) -> Tensor:
        spectra = (self._spreading @ samples.T).T.reshape(-1, *self._grid)
        images: Tensor = torch.fft.ifftn(spectra, dim=self._axes, norm="forward")
        for axis, n in zip(self._axes, self._scaling.shape, strict=True):
            images = images.narrow(axis, 0, n)
        return images * self._scaling.conj()


class _TablePlan:
    """Looks the kernel up each time, for trajectories whose matrix would be too large (mostly three-dimensional)."""

    def __init__(self, trajectory: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        settings = {"table_oversamp": TABLE, "dtype": dtype, "device": trajectory.device}
        self._forward = torchkbnufft.KbNufft(shape, _oversampled(shape), NEIGHBOURS, **settings)
        self._adjoint = torchkbnufft.KbNufftAdjoint(shape, _oversampled(shape), NEIGHBOURS, **settings)
        self._omega = _radians(trajectory, shape).to(dtype.to_real())

    def forward(self, images: Tensor) -> Tensor:
        samples: Tensor = self._forward(images[None], self._omega)[0]
        return samples

    def adjoint(self, samples: Tensor) -> Tensor:
        images: Tensor = self._adjoint(samples[None], self._omega)[0]
        return images


def _oversampled(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The grid of the FFT: twice the image, and never smaller than the kernel."""
    return tuple(2 * max(n, NEIGHBOURS) for n in shape)


def _radians(trajectory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[axis, sample]` in radians per pixel, in double precision."""
    sizes = torch.tensor(shape, dtype=torch.float64, device=trajectory.device)
    return 2 * math.pi * trajectory.double().flatten(1) / sizes[:, None]


def _matrices(omega: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The interpolation matrix `[sample, grid point]` and its adjoint, in compressed rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)", UserWarning)
        parts = torchkbnufft.calc_tensor_spmatrix(omega, shape, _oversampled(shape), NEIGHBOURS)
        real, imaginary = (part.coalesce() for part in parts)
        values = torch.complex(real.values(), imaginary.values()).to(dtype)
        matrix = torch.sparse_coo_tensor(real.indices(), values, real.shape)
        return matrix.to_sparse_csr(), matrix.mH.coalesce().to_sparse_csr()
