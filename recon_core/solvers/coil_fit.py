"""Coil maps for an image that is known, by least squares with a penalty on what is not smooth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.calibration.smooth_coils import Smoothness
from recon_core.solvers.conjugate_gradient import conjugate_gradient
from recon_core.solvers.joint_problem import JointProblem, normalised

_FIRST_ITERATIONS = 20
_BEYOND = 100.0  # times what data hold a mode by: those of higher precision end at a percent of what data say


class CoilFit:
    """The maps s that minimise `sum_c |unit E (s_c x) - y_c|^2` and the penalty, for an image x.

    Unknown are the sine transforms of the wide maps, each mode divided by about its standard deviation given the data,
    which makes the system well conditioned. Modes that the penalty holds much more strongly than an image of about one
    can move them are left at zero, the same ones in all slices: maps of slices that are solved together may differ by a
    thousandth from those of each alone.
    """

    def __init__(self, problem: JointProblem, smoothness: Smoothness) -> None:
        self._problem = problem
        sampling = problem.single.encoding.sampling
        seen = sampling.trajectory[0].numel() / math.prod(sampling.shape)
        self._seen = 2 * seen * problem.unit[..., None, None, None] ** 2
        self._slow = smoothness.slow(_BEYOND * float(self._seen.max()))

    def first(self, image: Tensor) -> Tensor:
        """From nothing. Modes `[sample, slice..., coil, mode along y, mode along x]`."""
        nothing = self._slow.adjoint(torch.zeros_like(self._problem.data))
        return self(image, nothing.expand(len(image), *nothing.shape), _FIRST_ITERATIONS)

    def __call__(self, image: Tensor, modes: Tensor, iterations: int) -> Tensor:
        """From the modes that fitted another image."""
        problem, slow = self._problem, self._slow
        unit, x = problem.unit[..., None, None, None], image.unsqueeze(-3)
        precisions = slow.precisions.to(image.real.dtype)
        scale = (precisions + self._seen * x.abs().square().mean((-2, -1), keepdim=True)).rsqrt()

        def back(coil_images: Tensor) -> Tensor:
            return scale * slow.adjoint(2 * x.conj() * coil_images)

        def normal(unknown: Tensor) -> Tensor:
            return back(problem.normal(slow.maps(scale * unknown) * x)) + scale**2 * precisions * unknown

        rhs, start = back(unit * problem.data), modes / scale
        found = conjugate_gradient(normal, rhs, start, iterations=iterations, tolerance=1e-4, system_axes=3)
        return scale * found.image

    def wide(self, modes: Tensor) -> Tensor:
        """Maps on the wide grid, of any norm."""
        return self._slow.wide(modes)

    def maps(self, modes: Tensor) -> Tensor:
        """Of unit norm."""
        return normalised(self._slow.maps(modes))
