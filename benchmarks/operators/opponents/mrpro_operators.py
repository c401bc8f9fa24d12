"""mrpro: its time-segmented operator, and its Toeplitz operator for a temporal subspace."""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from mrpro.data import KTrajectory, SpatialDimension
from mrpro.operators import FourierOp, TimeSegmentedFourierOp
from mrpro.operators.NonUniformFastFourierOp import NonUniformFastFourierOp, SubspaceNonUniformFastFourierOpGramOp
from torch import Tensor

from benchmarks.operators.operator import Convolution, ForwardAdjoint, Row
from benchmarks.operators.problem import Problem

SEGMENTS = 9, 12  # the fewest that reach the error of the low-rank terms


class TimeSegmented(ForwardAdjoint):
    """`TimeSegmentedFourierOp`: segments with least-squares interpolators; finufft inside, at its eps of 1e-6."""

    def __init__(self, problem: Problem, data: Tensor) -> None:
        super().__init__(data)
        matrix = SpatialDimension(1, *problem.field_hz.shape)
        transform = FourierOp(matrix, matrix, _trajectory(problem))
        times, field = problem.times.float(), problem.field_hz[None]
        self._operator = TimeSegmentedFourierOp(transform, field, times, n_segments=problem.size.either(*SEGMENTS))
        self._coil_maps = problem.coil_maps[:, None]

    def forward(self, image: Tensor) -> Tensor:
        """To `[coil, shot, sample]`."""
        return self._operator(self._coil_maps * image)[0][:, 0]

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[coil, shot, sample]`."""
        return (self._operator.adjoint(kspace[:, None])[0] * self._coil_maps.conj()).sum((0, 1))


class Subspace(Convolution):
    """`SubspaceNonUniformFastFourierOpGramOp`, which was made for fingerprinting, with our low-rank terms.

    Its own set-up does a transform per time point, minutes here. The same kernel is put together from those of its
    weighted Toeplitz operators.
    """

    def __init__(self, problem: Problem, data: Tensor) -> None:
        terms, shape = problem.terms, problem.field_hz.shape
        transform = NonUniformFastFourierOp((-2, -1), tuple(shape), tuple(shape), _trajectory(problem))
        kernel = torch.empty(len(terms), len(terms), 1, *(2 * n for n in shape))
        for i, j in combinations_with_replacement(range(len(terms)), 2):
            weight = (terms.weights[i] * terms.weights[j]).expand(1, 1, 1, problem.size.shots, -1)
            kernel[i, j] = kernel[j, i] = transform.toeplitz(weight)._kernel.view(kernel.shape[2:])
        one_time = KTrajectory(*(k[..., :1] for k in (_trajectory(problem).kz, *_yx(problem))))
        self._gram = SubspaceNonUniformFastFourierOpGramOp(
            NonUniformFastFourierOp((-2, -1), tuple(shape), tuple(shape), one_time), torch.ones(1, len(terms))
        )
        self._gram._kernel = kernel
        self._coil_maps = problem.coil_maps[:, None]
        self._coefficients = terms.coefficients[:, None, None]
        (images,) = transform.adjoint((data * terms.weights[:, None, None])[:, :, None])
        super().__init__(self._combine(images))

    def normal(self, image: Tensor) -> Tensor:
        """All terms and coils as one batch."""
        return self._combine(self._gram(self._coefficients * image * self._coil_maps)[0])

    def _combine(self, images: Tensor) -> Tensor:
        return ((images * self._coefficients.conj()).sum(0) * self._coil_maps.conj()).sum((0, 1))


def _trajectory(problem: Problem) -> KTrajectory:
    """`[other, coil, k2, k1, k0]` with shots along k1."""
    return KTrajectory(torch.zeros(1, 1, 1, 1, 1), *_yx(problem))


def _yx(problem: Problem) -> Tensor:
    return problem.trajectory.float()[:, None, None, None]


ROWS = [
    Row("mrpro TimeSegmentedFourierOp", TimeSegmented),
    Row("mrpro subspace Toeplitz, low rank", Subspace),
]
