"""The transform by torchkbnufft, on any device (Fessler and Sutton, IEEE Trans Signal Process 51:560, 2003)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from recon_core.operators.nufft_plan import radians_per_pixel

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    import torchkbnufft

# Six neighbours on a grid of twice the image leave a relative error of about 1e-5 against the direct sum. Looking the
# kernel up in a table of this many entries per grid point raises that to 5e-5.
NEIGHBOURS = 6
TABLE = 2**14


class MatrixPlan:
    """Holds the interpolation as a sparse matrix: several times faster than tables."""

    def __init__(self, trajectory: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._grid = _oversampled(shape)
        self._axes = tuple(range(-len(shape), 0))
        module = torchkbnufft.KbNufft(shape, self._grid, NEIGHBOURS, dtype=dtype, device=trajectory.device)
        self._scaling: Tensor = module.scaling_coef
        self._interpolation, self._spreading = _matrices(radians_per_pixel(trajectory, shape), shape, dtype)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._scaling.nbytes + _csr_bytes(self._interpolation) + _csr_bytes(self._spreading)

    def forward(self, images: Tensor) -> Tensor:
        """See `Plan`."""
        spectra = torch.fft.fftn(images * self._scaling, s=self._grid, dim=self._axes)
        samples: Tensor = (self._interpolation @ spectra.flatten(1).T).T
        return samples

    def adjoint(self, samples: Tensor) -> Tensor:
        """See `Plan`."""
        spectra = (self._spreading @ samples.T).T.reshape(-1, *self._grid)
        images: Tensor = torch.fft.ifftn(spectra, dim=self._axes, norm="forward")
        for axis, n in zip(self._axes, self._scaling.shape, strict=True):
            images = images.narrow(axis, 0, n)
        return images * self._scaling.conj()


class TablePlan:
    """Looks the kernel up each time, for trajectories whose matrix would be too large (mostly three-dimensional)."""

    def __init__(self, trajectory: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        settings = {"table_oversamp": TABLE, "dtype": dtype, "device": trajectory.device}
        self._forward = torchkbnufft.KbNufft(shape, _oversampled(shape), NEIGHBOURS, **settings)
        self._adjoint = torchkbnufft.KbNufftAdjoint(shape, _oversampled(shape), NEIGHBOURS, **settings)
        self._omega = radians_per_pixel(trajectory, shape).to(dtype.to_real())

    @property
    def nbytes(self) -> int:
        """Memory held."""
        tensors: tuple[Tensor, ...] = (self._omega, *self._forward.buffers(), *self._adjoint.buffers())
        return sum(tensor.nbytes for tensor in tensors)

    def forward(self, images: Tensor) -> Tensor:
        """See `Plan`."""
        samples: Tensor = self._forward(images[None], self._omega)[0]
        return samples

    def adjoint(self, samples: Tensor) -> Tensor:
        """See `Plan`."""
        images: Tensor = self._adjoint(samples[None], self._omega)[0]
        return images


def matrix_entries(trajectory: Tensor, shape: tuple[int, ...]) -> int:
    """Of the interpolation matrix of a `MatrixPlan`, which holds it twice."""
    return trajectory[0].numel() * int(NEIGHBOURS ** len(shape))


def _oversampled(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The grid of the FFT: twice the image, and never smaller than the kernel."""
    return tuple(2 * max(n, NEIGHBOURS) for n in shape)


def _matrices(omega: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The interpolation matrix `[sample, grid point]` and its adjoint, in compressed rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)", UserWarning)
        parts = torchkbnufft.calc_tensor_spmatrix(omega, shape, _oversampled(shape), NEIGHBOURS)
        real, imaginary = (part.coalesce() for part in parts)
        values = torch.complex(real.values(), imaginary.values()).to(dtype)
        matrix = torch.sparse_coo_tensor(real.indices(), values, real.shape)
        return matrix.to_sparse_csr(), matrix.mH.coalesce().to_sparse_csr()


def _csr_bytes(matrix: Tensor) -> int:
    return matrix.values().nbytes + matrix.col_indices().nbytes + matrix.crow_indices().nbytes
