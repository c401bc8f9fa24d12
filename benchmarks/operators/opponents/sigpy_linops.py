"""sigpy: its linear operators, composed with low-rank terms, and its own time-segmented SENSE operator."""

from __future__ import annotations

import sigpy
import sigpy.mri
import torch
from torch import Tensor

from benchmarks.operators.operator import ForwardAdjoint, Row
from benchmarks.operators.problem import Problem

# Of its gridding, for an error below that of the terms; the defaults are 1.25 and 4.
OVERSAMPLING, WIDTHS = 2, (4, 6)
SEGMENTS = 12


class _Linop(ForwardAdjoint):
    """Around A and A^H as sigpy composes them."""

    def __init__(self, operator: sigpy.linop.Linop, data: Tensor) -> None:
        super().__init__(data)
        self._operator, self._adjoint = operator, operator.H

    def forward(self, image: Tensor) -> Tensor:
        """To the samples, in the shape of the data."""
        return torch.from_numpy(self._operator(image.numpy())).view(self._data.shape)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From the samples, in the shape of the data."""
        return torch.from_numpy(self._adjoint(kspace.numpy().reshape(self._operator.oshape)))


def low_rank(problem: Problem, data: Tensor) -> ForwardAdjoint:
    """The sum over terms of Multiply * NUFFT * Multiply."""
    coil_maps, linop = problem.coil_maps.numpy(), sigpy.linop
    # A view: [shot, sample, axis].
    coordinates = problem.trajectory.movedim(0, -1).float().numpy()
    transform = linop.NUFFT(coil_maps.shape, coordinates, oversamp=OVERSAMPLING, width=problem.size.either(*WIDTHS))
    terms = zip(problem.terms.weights.numpy(), problem.terms.coefficients.numpy(), strict=True)
    composed = [
        linop.Multiply(transform.oshape, w) * transform * linop.Multiply(c.shape, coil_maps * c) for w, c in terms
    ]
    return _Linop(linop.Add(composed), data)


def own(problem: Problem, data: Tensor) -> ForwardAdjoint:
    """`sigpy.mri.linop.Sense` with `tseg`, which takes one readout: one operator per shot, stacked."""
    milliseconds = 1e3 * problem.size.dwell_s
    segmentation = {"b0": problem.field_hz.numpy(), "dt": milliseconds, "lseg": SEGMENTS, "n_bins": 100}
    shots = problem.trajectory.movedim(0, -1).float().numpy()
    per_shot = [sigpy.mri.linop.Sense(problem.coil_maps.numpy(), coord=k, tseg=segmentation) for k in shots]
    stacked = sigpy.linop.Vstack([sigpy.linop.Reshape((1, *a.oshape), a.oshape) * a for a in per_shot], axis=0)
    coils, readouts = problem.size.coils, (problem.size.shots, problem.size.samples)
    coil_first = sigpy.linop.Transpose((readouts[0], coils, readouts[1]), (1, 0, 2))
    return _Linop(coil_first * stacked, data)


ROWS = [Row("sigpy linear operators, low rank", low_rank), Row(f"sigpy Sense(tseg), {SEGMENTS} segments", own)]
