"""Ours: Toeplitz kernels of all pairs of low-rank terms."""

from __future__ import annotations

from torch import Tensor

from benchmarks.operators.operator import Row
from benchmarks.operators.problem import Problem
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import sampling_operator


class Ours:
    """A `LinearModel` and what it keeps of the data."""

    def __init__(self, problem: Problem, data: Tensor) -> None:
        self._model = linear_model(problem)
        self._data_images = self._model.data_images(data)

    def normal(self, image: Tensor) -> Tensor:
        """A^H A image."""
        return self._model.normal(image)

    def gradient(self, image: Tensor) -> Tensor:
        """Of ||A image - data||^2."""
        return self._model.image_gradient(self._model.residual_images(image, self._data_images))


def linear_model(problem: Problem, slices: int = 1, device: str = "cpu") -> LinearModel:
    """With its kernels; for more than one slice the same maps are stacked."""
    reach = problem.size.reach_hz
    sampling = sampling_operator(problem.trajectory.float().to(device), problem.field_hz.shape)
    functions = LowRank(problem.sample_times.float().to(device), -reach, reach, problem.size.error)
    maps, field = (x.to(device) for x in (problem.coil_maps, problem.field_hz))
    if slices > 1:
        maps, field = (x.repeat(slices, *[1] * x.ndim) for x in (maps, field))
    model = LinearModel(Encoding(sampling, functions), maps, field)
    _ = model.encoding.kernels  # built at their first use
    return model


ROWS = [Row("spinstream", Ours)]
