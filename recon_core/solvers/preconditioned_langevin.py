"""Annealed Langevin sampling with the exact likelihood, preconditioned by the curvature of the posterior."""

from __future__ import annotations

import math

import torch

from recon_core.priors.prior import Prior
from recon_core.solvers.linear_problem import LinearProblem, complex_normal
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.schedule import falling_levels

_FIRST_ITERATIONS = 20


def preconditioned_langevin(
    problem: LinearProblem,
    prior: Prior,
    run: Run,
    *,
    levels: int = 20,
    steps_per_level: int = 4,
    step: float = 0.5,
    highest: float = 1.0,
    lowest: float = 0.01,
    iterations: int = 5,
) -> Estimate:
    """pULA (Blumenthal, Holliber, Tamir, Uecker, arXiv 2512.05791, 2025): draws from the posterior.

    At each noise level the chain moves by the gradient of the exact log likelihood and of the log prior at that level,
    times `M = (2 unit^2 A^H A + 1 / level^2)^-1`, and by noise of the covariance `2 step M`, which conjugate gradients
    find from noise in k-space and in the image. No step size depends on the data.

    The estimate is the mean of what the prior and the data make of the last noisy images.

    Args:
        problem: in the units of the prior (`LinearProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent.
        levels: noise levels.
        steps_per_level: moves at each.
        step: below one; the variance of what the data determine comes out too large by `1 / (1 - step / 2)`.
        highest: noise level to begin with, of the unit image.
        lowest: noise level to end with.
        iterations: of conjugate gradients in each step.

    Raises:
        ValueError: the levels do not fall.
    """
    sigmas = falling_levels(prior, highest, lowest, levels)
    done, planned = 0, levels * steps_per_level
    image, sigma = _first(problem, sigmas[0], run), sigmas[0]
    while done < planned and run.go_on(done, planned):
        sigma = sigmas[done // steps_per_level]
        drift = problem.adjoint - problem.normal(image) + prior.score(image, sigma) / 2
        moved = step * drift + math.sqrt(2 * step) * _noise(problem, sigma, run)
        image = image + problem.solve(moved, sigma, None, iterations, 1e-3)
        done += 1
    denoised = prior.denoise(image, sigma)
    return Estimate.of(problem.tempered(denoised, sigma, denoised, iterations), done, planned)


def _first(problem: LinearProblem, sigma: float, run: Run) -> torch.Tensor:
    """Draws from what the data and a Gaussian of the first level allow."""
    return problem.solve(problem.adjoint + _noise(problem, sigma, run), sigma, None, _FIRST_ITERATIONS, 1e-3)


def _noise(problem: LinearProblem, sigma: float, run: Run) -> torch.Tensor:
    """Of the covariance unit^2 A^H A + 1 / (2 sigma^2), complex; `[sample, slice..., y, x]`."""
    of_data = problem.noise(run.samples, run.generator)
    return of_data + complex_normal(of_data.shape, of_data, run.generator) / (math.sqrt(2) * sigma)
