"""The blind problem near a point: image and field move together, to first order."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.linalg import solve_triangular

from recon_core.fourier import fft_centred, ifft_centred
from recon_core.solvers.blind_problem import BlindProblem
from recon_core.solvers.conjugate_gradient import conjugate_gradient
from recon_core.solvers.linear_problem import complex_normal

_LEFT_TO_THE_FIELD = 0.02
"""Of the curvature along the field, what is about left of it once the image may follow: measured on spirals."""

_AXES = (-2, -1)
_RIDGE = 1e-6
_TOLERANCE = 1e-3


class Linearised:
    """`|unit A(psi + B dtheta)(x + dx) - y|^2 + pull |x + dx - centre|^2 + caution |theta + dtheta|_P^2 / 2`, the
    model to first order.

    Gauss and Newton: the model is linear in dx and dtheta, `unit A dx + unit A' B dtheta`, with A' from `slope`. Both
    share one application of the Toeplitz kernels. With the field alone at rest the image would take up what the field
    leaves, and the other way round, so that steps in turns are many times as small.

    The unknowns are those that a circulant matrix (for the image, from the density of the samples) and the Cholesky
    factor of what the field alone would see make well conditioned: without them CG needs three times the iterations.
    """

    def __init__(
        self,
        problem: BlindProblem,
        image: Tensor,
        coefficients: Tensor,
        pull: float,
        caution: float = 1.0,
        movable: int | None = None,
    ) -> None:
        """Takes the point.

        Args:
            problem: in the units of a prior.
            image: x, `[y, x]`.
            coefficients: theta, `[function]`.
            pull: precision of each complex pixel about the centre, `1 / (2 level^2)`.
            caution: times that the precision of the coefficients counts.
            movable: how many of the first coefficients may move; all by default.
        """
        self._problem, self._image, self._pull = problem, image, pull
        self._coefficients, self._basis = coefficients[:movable], problem.basis.first(movable)
        self._model = problem.model.with_field(problem.field(coefficients))
        self._slope = self._model.slope(problem.unit * image)
        self._precision = caution * self._basis.precision / 2
        self._whiten = (problem.unit**2 * problem.density + pull).rsqrt()
        self._factor = torch.linalg.cholesky(self._curvature())

    def step(self, centre: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """dx and dtheta of the minimum, for a centre `[y, x]`; dtheta of what may move."""
        problem = self._problem
        residual = problem.data_images - self._model.gram(self._model.expand(problem.unit * self._image))
        towards, along = self._transposed(residual)
        towards = towards + self._pull * (centre - self._image)
        along = along - self._precision * self._coefficients
        image, coefficients = self._solve(towards[None], along[None], iterations)
        return image[0], coefficients[0]

    def draws(self, count: int, generator: Generator, iterations: int) -> Tensor:
        """Draws of dtheta from the Gaussian with this curvature, `[count, function]`.

        Noise as the data and the priors hold it, sent through the same equations, has that covariance (Papandreou and
        Yuille, NIPS 2010). It is what is left open of the field where the image is open too.
        """
        problem = self._problem
        shape = problem.model.coil_maps.shape[0], *problem.model.encoding.sampling.trajectory.shape[1:]
        # One at a time: samples of all coils are large.
        noise = [problem.model.data_images(complex_normal(shape, self._image, generator)) for _ in range(count)]
        towards, along = self._transposed(torch.stack(noise))
        towards = towards + math.sqrt(self._pull) * complex_normal(towards.shape, towards, generator)
        # The likelihood is exp(-|.|^2): of real unknowns, a precision of two halves.
        white = torch.randn(along.shape, generator=generator, dtype=along.dtype, device=along.device)
        return self._solve(towards, along + self._precision.mul(0.5).sqrt() * white, iterations)[1]

    def _curvature(self) -> Tensor:
        """About what is left to see of the field, `[function, function]`.

        As if the samples saw each pixel for itself, with the strength that they see all of them with.
        """
        functions, slope = self._basis.functions.flatten(1), self._slope
        bright = (self._problem.unit * self._image).abs().square()
        seen = (slope.conj() * self._model.gram(slope)).real.sum() / bright.sum()
        curvature = (functions * (_LEFT_TO_THE_FIELD * seen * bright).flatten()) @ functions.T
        # Functions of which nothing is seen stay where they are.
        ridge = _RIDGE * curvature.diagonal().mean()
        return curvature + torch.diag(ridge + self._precision)

    def _transposed(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """From S^H E^H of samples `[..., term, y, x]` to the sides of image and coefficients."""
        along = self._basis.transpose((self._slope.conj() * terms).real.sum(-3))
        return self._problem.unit * self._model.combine(terms), along

    def _solve(self, towards: Tensor, along: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """Images `[system, y, x]` and coefficients `[system, function]` for as many right-hand sides."""

        def normal(unknown: Tensor) -> Tensor:
            image, coefficients = self._unpacked(unknown)
            moved = self._slope * self._basis.field(coefficients).unsqueeze(-3)
            terms = self._model.gram(self._model.expand(self._problem.unit * image) + moved)
            towards, along = self._transposed(terms)
            return self._packed(towards + self._pull * image, along + self._precision * coefficients)

        rhs = self._packed(towards, along)
        found = conjugate_gradient(normal, rhs, iterations=iterations, tolerance=_TOLERANCE, system_axes=1)
        return self._unpacked(found.image)

    def _packed(self, image: Tensor, coefficients: Tensor) -> Tensor:
        """Both as one real vector of each system, well conditioned."""
        channels = torch.view_as_real(self._filtered(image).contiguous()).flatten(1)
        return torch.cat([channels, solve_triangular(self._factor, coefficients.mT, upper=False).mT], 1)

    def _unpacked(self, unknown: Tensor) -> tuple[Tensor, Tensor]:
        pixels = 2 * self._image.numel()
        channels = unknown[:, :pixels].reshape(-1, *self._image.shape, 2)
        coefficients = solve_triangular(self._factor.mT, unknown[:, pixels:].mT, upper=True).mT
        return self._filtered(torch.view_as_complex(channels.contiguous())), coefficients

    def _filtered(self, image: Tensor) -> Tensor:
        return ifft_centred(self._whiten * fft_centred(image, _AXES), _AXES)
