"""torchkbnufft: forward and adjoint with low-rank terms, and its Toeplitz operator per hard segment."""

from __future__ import annotations

import math
import warnings
from functools import partial

import torch
from torch import Tensor

from benchmarks.operators.operator import Convolution, Row
from benchmarks.operators.problem import Problem
from benchmarks.operators.segmented import Segmented

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    import torchkbnufft

# Of the Kaiser-Bessel kernel: the fewest whose error stays below that of the terms (3 add half as much again), and the
# default for finer ones.
NEIGHBOURS = 4, 6


class KbNufftSegmented(Segmented):
    """Kaiser-Bessel interpolation from a table, on twice the grid: the defaults but for the number of neighbours."""

    def __init__(self, problem: Problem, data: Tensor) -> None:
        super().__init__(problem, data)
        shape = problem.field_hz.shape
        settings = {"im_size": tuple(shape), "numpoints": problem.size.either(*NEIGHBOURS), "dtype": torch.complex64}
        self._forward = torchkbnufft.KbNufft(**settings)
        self._adjoint = torchkbnufft.KbNufftAdjoint(**settings)
        self._omega = _radians(problem)
        self._scale = 1 / math.sqrt(shape.numel())
        self._readouts = problem.trajectory.shape[1:]

    def transform(self, images: Tensor) -> Tensor:
        """To samples."""
        return (self._forward(images, self._omega) * self._scale).unflatten(-1, self._readouts)

    def transform_adjoint(self, kspace: Tensor) -> Tensor:
        """To images."""
        return self._adjoint(kspace.flatten(-2), self._omega) * self._scale


class KbNufftToeplitz(Convolution):
    """A sample takes the phase of the middle of its segment; one Toeplitz kernel per segment."""

    def __init__(self, problem: Problem, data: Tensor, segments: int) -> None:
        shape = problem.field_hz.shape
        blocks = torch.arange(problem.size.samples).tensor_split(segments)
        settings = {"im_size": tuple(shape), "numpoints": problem.size.either(*NEIGHBOURS)}
        omega = _radians(problem).unflatten(-1, problem.trajectory.shape[1:])
        kernels = [
            torchkbnufft.calc_toeplitz_kernel(omega[..., block].flatten(1), **settings) / shape.numel()
            for block in blocks
        ]
        self._kernels = torch.stack(kernels)[:, None]
        middles = torch.stack([problem.times[block].mean() for block in blocks])
        angle = (-2 * math.pi * middles[:, None, None] * problem.field_hz).float()
        self._phases = torch.polar(torch.ones_like(angle), angle)
        self._coil_maps = problem.coil_maps
        self._toeplitz = torchkbnufft.ToepNufft()
        adjoint = torchkbnufft.KbNufftAdjoint(**settings)
        images = torch.stack([adjoint(data[None, ..., b].flatten(-2), omega[..., b].flatten(1))[0] for b in blocks])
        super().__init__(self._combine(images) / math.sqrt(shape.numel()))

    def normal(self, image: Tensor) -> Tensor:
        """All segments and coils as one batch."""
        return self._combine(self._toeplitz((self._phases * image)[:, None] * self._coil_maps, self._kernels))

    def _combine(self, images: Tensor) -> Tensor:
        return torch.einsum("lcyx,lyx,cyx->yx", images, self._phases.conj(), self._coil_maps.conj())


def _radians(problem: Problem) -> Tensor:
    sizes = torch.tensor(problem.field_hz.shape)[:, None]
    return (2 * math.pi * problem.trajectory.flatten(1) / sizes).float()


ROWS = [
    Row("torchkbnufft, low rank", KbNufftSegmented),
    Row("torchkbnufft Toeplitz, 10 hard segments", partial(KbNufftToeplitz, segments=10)),
    Row("torchkbnufft Toeplitz, 40 hard segments", partial(KbNufftToeplitz, segments=40)),
]
