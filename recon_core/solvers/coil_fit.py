"""Coil maps for an image that is known, by least squares with a penalty on what is not smooth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.calibration.smooth_coils import Smoothness
from recon_core.solvers.conjugate_gradient import conjugate_gradient
from recon_core.solvers.joint_problem import JointProblem, normalised

_FIRST_ITERATIONS = 20


class CoilFit:
    """The maps s that minimise `sum_c |unit E (s_c x) - y_c|^2` and the penalty, for an image x.

    Unknown are the sine transforms of the wide maps, each mode divided by about its standard deviation given the data,
    which makes the system well conditioned.
    """

    def __init__(self, problem: JointProblem, smoothness: Smoothness) -> None:
        self._problem = problem
        self._smoothness = smoothness
        sampling = problem.single.encoding.sampling
        self._share = sampling.trajectory[0].numel() / math.prod(sampling.shape)

    def first(self, image: Tensor) -> Tensor:
        """From nothing. Wide modes `[sample, slice..., coil, y, x]`."""
        nothing = self._smoothness.padded(torch.zeros_like(self._problem.data))
        return self(image, nothing.expand(len(image), *nothing.shape), _FIRST_ITERATIONS)

    def __call__(self, image: Tensor, modes: Tensor, iterations: int) -> Tensor:
        """From the modes that fitted another image."""
        problem, smoothness = self._problem, self._smoothness
        unit, x = problem.unit[..., None, None, None], image.unsqueeze(-3)
        precisions = smoothness.precisions.to(image.real.dtype)
        seen = 2 * self._share * unit**2 * x.abs().square().mean((-2, -1), keepdim=True)
        scale = (precisions + seen).rsqrt()

        def back(coil_images: Tensor) -> Tensor:
            return scale * smoothness.transform(smoothness.padded(2 * x.conj() * coil_images))

        def normal(unknown: Tensor) -> Tensor:
            coil_images = smoothness.cropped(smoothness.transform(scale * unknown)) * x
            return back(problem.normal(coil_images)) + scale**2 * precisions * unknown

        rhs, start = back(unit * problem.data), modes / scale
        found = conjugate_gradient(normal, rhs, start, iterations=iterations, tolerance=1e-4, system_axes=3)
        return scale * found.image

    def wide(self, modes: Tensor) -> Tensor:
        """Maps on the wide grid, of any norm."""
        return self._smoothness.transform(modes)

    def maps(self, modes: Tensor) -> Tensor:
        """Of unit norm."""
        return normalised(self._smoothness.cropped(self._smoothness.transform(modes)))
