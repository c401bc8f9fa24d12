"""finufft with plans: low-rank terms around two-dimensional transforms, and one three-dimensional transform."""

from __future__ import annotations

import math

import finufft
import numpy as np
import torch
from torch import Tensor

from benchmarks.operators.operator import ForwardAdjoint, Row
from benchmarks.operators.problem import Problem
from benchmarks.operators.segmented import Segmented

# The coarsest that leave the error of the terms as it is; in single precision there is nothing below 1e-6.
EPS, EPS_OF_TYPE_THREE = (3e-4, 1e-6), (1e-3, 1e-6)


class Planned(Segmented):
    """Types 1 and 2, planned for all terms and coils at once."""

    def __init__(self, problem: Problem, data: Tensor) -> None:
        super().__init__(problem, data)
        batch, shape = len(problem.terms) * problem.size.coils, tuple(problem.field_hz.shape)
        angles = [a.float().numpy() for a in _radians(problem).flatten(1)]
        settings = {"eps": problem.size.either(*EPS), "dtype": "complex64", "nthreads": torch.get_num_threads()}
        self._to_samples = finufft.Plan(2, shape, batch, isign=-1, **settings)
        self._to_images = finufft.Plan(1, shape, batch, isign=1, **settings)
        for plan in (self._to_samples, self._to_images):
            plan.setpts(*angles)
        self._scale = 1 / math.sqrt(math.prod(shape))
        self._samples = np.empty((batch, len(angles[0])), np.complex64)
        self._images = np.empty((batch, *shape), np.complex64)
        self._split = (len(problem.terms), problem.size.coils)
        self._readouts = problem.trajectory.shape[1:]

    def transform(self, images: Tensor) -> Tensor:
        """To samples."""
        self._to_samples.execute(images.flatten(0, 1).numpy(), self._samples)
        samples = torch.from_numpy(self._samples).mul_(self._scale)
        return samples.view(*self._split, *self._readouts)

    def transform_adjoint(self, kspace: Tensor) -> Tensor:
        """To images."""
        self._to_images.execute(kspace.reshape(self._samples.shape).numpy(), self._images)
        return torch.from_numpy(self._images).mul_(self._scale).unflatten(0, self._split)


class TypeThree(ForwardAdjoint):
    """The field as a third coordinate of the pixels, and time as that of the samples: no terms at all."""

    def __init__(self, problem: Problem, data: Tensor) -> None:
        super().__init__(data)
        shape, coils = problem.field_hz.shape, problem.size.coils
        # Type 3 costs grow with the extents, so that positions and times are counted from their middles.
        y, x = torch.meshgrid(*(torch.arange(n) - n // 2 for n in shape), indexing="ij")
        pixels = [y.flatten(), x.flatten(), 2 * math.pi * problem.field_hz.flatten()]
        times = (problem.times - problem.times.mean()).expand(problem.trajectory.shape[1:])
        samples = [*_radians(problem).flatten(1), times.flatten()]
        pixels, samples = ([a.float().numpy() for a in axes] for axes in (pixels, samples))
        settings = {
            "eps": problem.size.either(*EPS_OF_TYPE_THREE),
            "dtype": "complex64",
            "nthreads": torch.get_num_threads(),
        }
        self._to_samples = finufft.Plan(3, 3, coils, isign=-1, **settings)
        self._to_samples.setpts(*pixels, *samples)
        self._to_pixels = finufft.Plan(3, 3, coils, isign=1, **settings)
        self._to_pixels.setpts(*samples, *pixels)
        angle = -2 * math.pi * problem.times.mean() * problem.field_hz
        self._maps = problem.coil_maps * torch.polar(torch.ones_like(angle), angle) / math.sqrt(shape.numel())

    def forward(self, image: Tensor) -> Tensor:
        """To `[coil, shot, sample]`."""
        samples = self._to_samples.execute((self._maps * image).flatten(1).numpy())
        return torch.from_numpy(samples).view(self._data.shape)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[coil, shot, sample]`."""
        images = torch.from_numpy(self._to_pixels.execute(kspace.flatten(1).numpy()))
        return (images.view(self._maps.shape) * self._maps.conj()).sum(0)


def _radians(problem: Problem) -> Tensor:
    sizes = torch.tensor(problem.field_hz.shape)[:, None, None]
    return 2 * math.pi * problem.trajectory / sizes


ROWS = [Row("finufft planned, low rank", Planned), Row("finufft type 3 over (y, x, field)", TypeThree)]
